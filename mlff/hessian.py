"""Second derivatives of energies, and first ones of dipoles, of many systems at once.

A row of a Hessian is the gradient of one component of the forces. Systems do not act on
each other, so the gradient of the sum of that component over all systems of a call
holds a row of each of them: ``3 · max_atoms`` backward passes serve any number of
systems, and three more their dipoles.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from mlff.batch import AtomsBatch, Edges
from mlff.device import exact
from mlff.forcefield.parts import Parts
from mlff.heads import centered
from mlff.inference import check_batch
from mlff.potential import Potential
from mlff.start import check_contacts

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Derivatives:
    """Derivatives of one system with n atoms; coordinates run x, y, z of each atom.

    Attributes:
        forces: (n, 3), eV/Å.
        hessian: symmetric, (3n, 3n), eV/Å².
        dipole_derivatives: change of the dipole about a point fixed in space with each
            coordinate, (3n, 3), e; that of an ion sums up to its charge. ``None``
            without a dipole head, and for a periodic system.
    """

    forces: Array
    hessian: Array
    dipole_derivatives: Array | None


def hessians(
    systems: Sequence[Atoms],
    potential: Potential,
    *,
    charge: Any = None,
    spin: Any = None,
) -> list[Array]:
    """Return the Hessian of the energy of each system, by automatic differentiation.

    Constraints are not looked at. With a float32 network entries carry a relative error
    of about 1e-5; ``mlff.load(name, dtype=torch.float64)`` has none.

    Args:
        systems: ASE systems, each with its charge and spin (2S+1) in ``info``.
        potential: on the device to run on.
        charge: total charge, e: one for all or one per system; read from each
            ``atoms.info`` unless given, and in agreement with it.
        spin: multiplicity 2S+1, likewise.

    Returns:
        One per system, in order: (3n, 3n), eV/Å², float64, symmetric; coordinates run
        x, y, z of the first atom, and so on.

    Raises:
        InputError: a potential without energies, or whatever is wrong with a system;
            the text names it.
    """
    batch = AtomsBatch.from_atoms(systems, charge, spin)
    found = derivatives(batch, potential, dipoles=False)
    return [one.hessian for one in found]


def derivatives(
    batch: AtomsBatch, potential: Potential, *, dipoles: bool = True
) -> list[Derivatives]:
    """Return forces, Hessians and dipole derivatives of all systems.

    Systems share a call as far as memory allows: what a call needs is counted before.

    Args:
        batch: the systems.
        potential: on the device to run on.
        dipoles: whether to differentiate dipoles too, where there are any.

    Raises:
        InputError: a potential without energies, an element outside training, atoms
            in one place, or a system that does not fit into memory.
    """
    check_batch(potential, batch)
    potential.check_properties(("energy", "forces"), periodic=False)
    check_contacts(batch)
    out: dict[int, Derivatives] = {}
    with exact(potential.device):
        periodic = batch.pbc.any(1)
        for boxes in (False, True):  # a call with a periodic system has no dipoles
            chosen = torch.nonzero(periodic == boxes)[:, 0]
            if len(chosen):
                wanted = dipoles and not boxes and "dipole" in potential.properties
                some = batch.select(chosen).to(potential.device)
                found = _of_like(some, _curved(potential, wanted))
                out.update(zip(chosen.tolist(), found, strict=True))
    return [out[index] for index in range(batch.n_systems)]


class _Curved(Potential):
    """A potential whose call gives second derivatives: what memory is counted of.

    Args:
        potential: shares its modules.
        dipoles: whether dipoles are differentiated too.
    """

    def __init__(self, potential: Potential, dipoles: bool) -> None:
        heads = dict(potential.heads.items())
        super().__init__(potential.model, heads, {}, potential.info)
        self.names = ("forces", *(("dipole",) if dipoles else ()))

    def forward(
        self,
        batch: AtomsBatch,
        edges: Edges,
        properties: Sequence[str] = (),
        *,
        create_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Return ``forces`` (n_atoms, 3) and, by atom and axis, the derivatives.

        These are ``hessian`` (n_atoms, 3, 3 · max_atoms) and, if wanted, ``dipole``
        (n_atoms, 3, 3).
        """
        positions = batch.positions.detach().requires_grad_(True)
        # Memory is counted on tensors without numbers, where one pass tells of all.
        columns = range(1 if positions.is_meta else 3 * batch.max_atoms)
        hessian = positions.new_zeros((*positions.shape, 3 * batch.max_atoms))
        with torch.enable_grad():
            batch = batch.replace(positions=positions)
            out = super().forward(batch, edges, self.names, create_graph=True)
            forces = out["forces"]
            for column in columns:
                slot, axis = divmod(column, 3)
                own = (batch.slot == slot).double()
                hessian[:, :, column] = -_gradient(forces, positions, own, axis)
            found = {"forces": forces.detach(), "hessian": hessian}
            if "dipole" in out:
                fixed = out["dipole"] + _of_the_charge(batch)
                every = fixed.new_ones(batch.n_systems)
                changes = [_gradient(fixed, positions, every, x) for x in range(3)]
                found["dipole"] = torch.stack(changes, dim=2)
        return found


# Kept, as what a call needs is counted once for each of them, which takes a second.
_known: weakref.WeakKeyDictionary[Potential, dict[bool, _Curved]] = (
    weakref.WeakKeyDictionary()
)


def _curved(potential: Potential, dipoles: bool) -> _Curved:
    kinds = _known.setdefault(potential, {})
    if dipoles not in kinds:
        kinds[dipoles] = _Curved(potential, dipoles)
    found = kinds[dipoles]
    # What may have been replaced since.
    found.model, found.heads = potential.model, potential.heads
    found.references = potential.references
    return found


def _gradient(values: Tensor, positions: Tensor, rows: Tensor, axis: int) -> Tensor:
    """Differentiate the sum of one component of some rows, (n_atoms, 3)."""
    seed = torch.zeros_like(values)
    seed[:, axis] = rows
    (gradient,) = torch.autograd.grad(
        values, positions, seed, retain_graph=True, materialize_grads=True
    )
    return gradient


def _of_the_charge(batch: AtomsBatch) -> Tensor:
    """Move dipoles from the center of nuclear charge to the origin, (n_systems, 3)."""
    center = batch.total(batch.positions - centered(batch)) / batch.counts()[:, None]
    return batch.charge[:, None] * center


def _of_like(batch: AtomsBatch, curved: _Curved) -> list[Derivatives]:
    """Evaluate systems that are all periodic, or none of them."""
    parts = Parts(curved, batch, curved.names)
    found: list[list[Derivatives]] = []

    def call(part: AtomsBatch, edges: Edges) -> dict[str, Tensor]:
        # Kept here, as rows of parts with larger and smaller systems differ.
        found.append(_by_system(curved(part, edges), part.counts().tolist()))
        return {}

    parts.evaluate(batch, call)
    order = torch.cat(parts.systems).tolist()
    placed = zip(order, (one for part in found for one in part), strict=True)
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


def _by_system(out: dict[str, Tensor], sizes: list[int]) -> list[Derivatives]:
    """Cut the rows of a call, on the host."""
    start, found = 0, []
    arrays = {name: value.cpu().numpy() for name, value in out.items()}
    for n in sizes:
        own = {name: array[start : start + n] for name, array in arrays.items()}
        rows = own["hessian"].reshape(3 * n, -1)[:, : 3 * n]
        dipole = own["dipole"].reshape(3 * n, 3).copy() if "dipole" in own else None
        found.append(
            Derivatives(
                forces=own["forces"].copy(),
                hessian=0.5 * (rows + rows.T),
                dipole_derivatives=dipole,
            )
        )
        start += n
    return found

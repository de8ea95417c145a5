"""Several systems as one set of tensors: what every model, list and integrator takes.

Systems are validated here, once, when they enter; nothing is checked in a step.

Conventions: cells are stored as rows; an edge has a receiver ``i`` and a sender ``j``,
and its vector is ``r_j − r_i + shift @ cell``. Positions and cells are float64 always;
a model casts the vectors, not the positions, so that precision does not depend on where
a molecule sits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula
from torch import Tensor

from mlff.errors import InputError, InputTypeError
from mlff.state import State, read_state

#: Coordinates beyond this (Å) have lost the digits that a chemist needs.
MAX_COORDINATE = 1e6


def _per(axis: str) -> Any:
    return field(metadata={"per": axis})


@dataclass(frozen=True, kw_only=True)
class AtomsBatch:
    """Systems, one after the other.

    Attributes:
        numbers: atomic numbers, (n_atoms,), int64.
        positions: Cartesian coordinates, (n_atoms, 3), float64, Å.
        system: index of the system of each atom, ascending, (n_atoms,), int64.
        slot: index of each atom inside its system, (n_atoms,), int64.
        cell: cell vectors as rows, (n_systems, 3, 3), float64, Å.
        pbc: periodic along each cell vector, (n_systems, 3), bool.
        charge: total charge, (n_systems,), int64, e.
        multiplicity: 2S+1, (n_systems,), int64.
        n_systems: number of systems.
        max_atoms: atoms of the largest system.
        periodic: whether any system is periodic along any vector.
    """

    numbers: Tensor = _per("atom")
    positions: Tensor = _per("atom")
    system: Tensor = _per("atom")
    slot: Tensor = _per("atom")
    cell: Tensor = _per("system")
    pbc: Tensor = _per("system")
    charge: Tensor = _per("system")
    multiplicity: Tensor = _per("system")
    n_systems: int
    max_atoms: int
    periodic: bool

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all systems together."""
        return self.numbers.shape[0]

    @property
    def uniform(self) -> bool:
        """Whether all systems have the same number of atoms."""
        return self.n_atoms == self.n_systems * self.max_atoms

    @classmethod
    def from_atoms(
        cls,
        systems: Sequence[Atoms],
        charge: Any = None,
        spin: Any = None,
        *,
        strict: bool = False,
        check_parity: bool = True,
    ) -> Self:
        """Validate ASE systems and put them into one batch, on the CPU.

        Args:
            systems: any number of systems; they are not modified.
            charge: total charge, e: one for all or one per system; read from each
                ``atoms.info`` unless given, and in agreement with it.
            spin: multiplicity 2S+1, likewise.
            strict: raise if a charge or multiplicity is missing.
            check_parity: refuse a multiplicity that the electron count excludes.

        Raises:
            InputError: an empty system, coordinates or cells that are not finite or
                out of range, a periodic axis without a cell vector, a singular cell,
                an atomic number outside 1 … 118, an impossible state. The text
                names the system.
        """
        if not isinstance(systems, (list, tuple)):
            kind = type(systems).__name__
            raise InputTypeError(f"`systems` must be a list of Atoms, got {kind}")
        charges = _one_per_system(charge, len(systems), "charge")
        spins = _one_per_system(spin, len(systems), "spin")
        states = []
        for index, atoms in enumerate(systems):
            try:
                check_geometry(atoms)
                states.append(
                    read_state(
                        atoms,
                        charges[index],
                        spins[index],
                        strict=strict,
                        check_parity=check_parity,
                    )
                )
            except (InputError, InputTypeError) as error:
                if len(systems) == 1:
                    raise
                raise type(error)(f"system {index}: {error}") from error
        return cls._assemble(systems, states)

    @classmethod
    def _assemble(cls, systems: Sequence[Atoms], states: list[State]) -> Self:
        counts = [len(atoms) for atoms in systems]
        n = len(systems)
        pbc = np.array([a.pbc for a in systems], dtype=bool).reshape(n, 3)
        return cls(
            numbers=_stack([a.numbers for a in systems], (0,), np.int64),
            positions=_stack([a.positions for a in systems], (0, 3), np.float64),
            system=torch.from_numpy(np.repeat(np.arange(n), counts)),
            slot=_stack([np.arange(c) for c in counts], (0,), np.int64),
            cell=_stack([a.cell.array[None] for a in systems], (0, 3, 3), np.float64),
            pbc=torch.from_numpy(pbc),
            charge=torch.tensor([s.charge for s in states], dtype=torch.int64),
            multiplicity=torch.tensor(
                [s.multiplicity for s in states], dtype=torch.int64
            ),
            n_systems=n,
            max_atoms=max(counts, default=0),
            periodic=bool(pbc.any()),
        )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced; nothing is validated."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{**content, **changes})

    def to(self, device: torch.device | str) -> Self:
        """Return this batch with every tensor on a device."""
        moved = {
            f.name: getattr(self, f.name).to(device) for f in fields(self) if f.metadata
        }
        return self.replace(**moved)

    def counts(self) -> Tensor:
        """Atoms of each system, (n_systems,), int64."""
        zeros = torch.zeros(
            self.n_systems, dtype=torch.int64, device=self.system.device
        )
        return zeros.index_add(0, self.system, torch.ones_like(self.system))

    def total(self, values: Tensor) -> Tensor:
        """Sum values of atoms over each system, (n_atoms, …) → (n_systems, …)."""
        if self.uniform:
            return values.unflatten(0, (self.n_systems, self.max_atoms)).sum(1)
        zeros = values.new_zeros((self.n_systems, *values.shape[1:]))
        return zeros.index_add(0, self.system, values)

    def formulas(self) -> tuple[str, ...]:
        """Distinct compositions, Hill notation, ascending: ``("CH2", "H2O")``."""
        return tuple(self.formula_states())

    def formula_states(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """States of each composition, ascending: ``{"CH2": ((0, 1), (0, 3))}``."""
        counts = torch.zeros(self.n_systems, 119, dtype=torch.int64)
        one = torch.ones(self.n_atoms, dtype=torch.int64)
        place = (self.system.cpu(), self.numbers.cpu())
        counts = counts.index_put(place, one, accumulate=True)
        states = torch.stack((self.charge, self.multiplicity), 1).cpu()
        found: dict[str, list[tuple[int, int]]] = {}
        for row in torch.cat((counts, states), 1).unique(dim=0).tolist():
            *numbers, charge, multiplicity = row
            composition = {chemical_symbols[z]: n for z, n in enumerate(numbers) if n}
            formula = Formula.from_dict(composition).format("hill")
            found.setdefault(formula, []).append((charge, multiplicity))
        return {formula: tuple(sorted(found[formula])) for formula in sorted(found)}

    def select(self, systems: Sequence[int] | Tensor) -> Self:
        """Return the batch of these systems, in this order.

        Args:
            systems: indices into this batch, (n_selected,), or a mask (n_systems,).

        Raises:
            InputError: a mask of another length.
        """
        device = self.system.device
        chosen = torch.as_tensor(systems, device=device)
        if chosen.dtype == torch.bool:
            if chosen.shape != (self.n_systems,):
                raise InputError(
                    f"`systems` must be a mask of {self.n_systems} systems, got "
                    f"shape {tuple(chosen.shape)}"
                )
            chosen = chosen.nonzero()[:, 0]
        chosen = chosen.to(torch.int64)
        counts = self.counts()
        starts = counts.cumsum(0) - counts
        sizes = counts[chosen]
        system = torch.repeat_interleave(
            torch.arange(len(chosen), device=device), sizes
        )
        slot = (
            torch.arange(len(system), device=device)
            - ((sizes.cumsum(0) - sizes)[system])
        )
        atoms = starts[chosen][system] + slot
        content: dict[str, Any] = {}
        for f in fields(self):
            if f.metadata:
                rows = atoms if f.metadata["per"] == "atom" else chosen
                content[f.name] = getattr(self, f.name)[rows]
        content.update(
            system=system,
            slot=slot,
            n_systems=len(chosen),
            max_atoms=int(sizes.max()) if len(chosen) else 0,
            periodic=bool(content["pbc"].any()),
        )
        return type(self)(**content)

    @classmethod
    def concat(cls, batches: Sequence[Self]) -> Self:
        """Return one batch of all systems of several, in order."""
        if not batches:
            raise InputError("`batches` is empty: there is nothing to concatenate")
        content: dict[str, Any] = {
            f.name: torch.cat([getattr(b, f.name) for b in batches])
            for f in fields(cls)
            if f.metadata
        }
        offset, systems = 0, []
        for b in batches:
            systems.append(b.system + offset)
            offset += b.n_systems
        content.update(
            system=torch.cat(systems),
            n_systems=offset,
            max_atoms=max(b.max_atoms for b in batches),
            periodic=any(b.periodic for b in batches),
        )
        return cls(**content)


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Directed pairs of atoms, both directions of each; data without gradient.

    Pairs beyond a model's cutoff are allowed: they contribute exactly nothing.

    Attributes:
        i: receiver, (n_edges,), int64.
        j: sender, (n_edges,), int64.
        shift: cell vectors to add to the sender, (n_edges, 3), float64 integers;
            ``None`` if no edge crosses a boundary.
        degree: if not ``None``, every atom receives exactly this many edges and the
            edges are ordered by receiver, so that edge data is a dense array
            (n_atoms, degree, …).
        has_fill: whether rows were filled up to ``degree`` with edges ``j == i``,
            shift zero; such an edge is treated as lying beyond every cutoff.
    """

    i: Tensor
    j: Tensor
    shift: Tensor | None
    degree: int | None = None
    has_fill: bool = False

    @property
    def n_edges(self) -> int:
        """Number of directed edges, fill included."""
        return self.i.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """Return these edges on a device."""
        shift = None if self.shift is None else self.shift.to(device)
        return type(self)(
            i=self.i.to(device),
            j=self.j.to(device),
            shift=shift,
            degree=self.degree,
            has_fill=self.has_fill,
        )


@dataclass(frozen=True, kw_only=True)
class Graph:
    """All that a model sees: a batch, its edges, and their geometry with gradient.

    Attributes:
        batch: the systems.
        edges: who is whose neighbour.
        vectors: ``r_j − r_i + shift @ cell``, (n_edges, 3), Å, in the model's dtype.
        distances: lengths of the vectors, (n_edges,), Å; beyond the cutoff for fill.
    """

    batch: AtomsBatch
    edges: Edges
    vectors: Tensor
    distances: Tensor


def edge_vectors(batch: AtomsBatch, edges: Edges) -> Tensor:
    """Return ``r_j − r_i + shift @ cell``, (n_edges, 3), float64, Å.

    Differentiable in ``batch.positions`` and ``batch.cell``.
    """
    vectors = batch.positions[edges.j] - batch.positions[edges.i]
    if edges.shift is not None:
        cells = batch.cell[batch.system[edges.i]]
        vectors = vectors + torch.einsum("ec,ecx->ex", edges.shift, cells)
    return vectors


def check_geometry(atoms: Atoms) -> None:
    """Raise if a system has no meaning for a potential.

    Raises:
        InputError: empty, not finite, out of range, unknown element, or a periodic
            axis that its cell does not span.
    """
    if not isinstance(atoms, Atoms):
        raise InputTypeError(f"`atoms` must be ASE Atoms, got {type(atoms).__name__}")
    if len(atoms) == 0:
        raise InputError("`atoms` is empty: an energy needs at least one atom")
    numbers = atoms.numbers
    if (numbers < 1).any() or (numbers > 118).any():
        bad = sorted({int(z) for z in numbers if not 1 <= z <= 118})
        raise InputError(f"`atoms.numbers` must lie in 1 … 118, got {bad}")
    positions = np.asarray(atoms.positions, np.float64)
    if not np.isfinite(positions).all():
        rows = np.flatnonzero(~np.isfinite(positions).all(axis=1))[:5].tolist()
        raise InputError(f"`atoms.positions` must be finite; not so for atoms {rows}")
    if np.abs(positions).max() > MAX_COORDINATE:
        raise InputError(
            f"`atoms.positions` must lie within ±{MAX_COORDINATE:g} Å, got "
            f"{np.abs(positions).max():.3g}; move the system to the origin"
        )
    cell = atoms.cell.array
    if not np.isfinite(cell).all():
        raise InputError("`atoms.cell` must be finite")
    if atoms.pbc.any():
        _check_cell(cell[atoms.pbc], atoms.pbc)


def _check_cell(periodic: np.ndarray[Any, Any], pbc: np.ndarray[Any, Any]) -> None:
    lengths = np.linalg.norm(periodic, axis=1)
    if (lengths < 1e-6).any():
        axes = np.flatnonzero(pbc)[lengths < 1e-6].tolist()
        raise InputError(
            f"`atoms.pbc` is set along cell vectors {axes}, which are zero; set the "
            "cell with atoms.set_cell(...) or switch pbc off"
        )
    unit = periodic / lengths[:, None]
    if np.linalg.svd(unit, compute_uv=False).min() < 1e-6:
        raise InputError(
            "`atoms.cell` is singular: its periodic vectors are linearly dependent"
        )


def _one_per_system(value: Any, n: int, name: str) -> list[Any]:
    if isinstance(value, str) or np.ndim(value) == 0:
        return [value] * n
    if len(value) != n:
        raise InputError(
            f"`{name}` must be one value or one per system ({n}), got {len(value)}"
        )
    return list(value)


def _stack(
    arrays: Sequence[np.ndarray[Any, Any]], empty: tuple[int, ...], dtype: Any
) -> Tensor:
    if not arrays:
        return torch.from_numpy(np.zeros(empty, dtype))
    return torch.from_numpy(np.concatenate(arrays).astype(dtype))

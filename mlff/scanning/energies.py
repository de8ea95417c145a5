"""Evaluating all systems of a scan, in calls that fit into memory."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mlff.batch import AtomsBatch, Edges
from mlff.committee import Committee
from mlff.forcefield.parts import Parts
from mlff.inference import region_of
from mlff.neighbors import MIN_DISTANCE
from mlff.potential import Potential, build_graph

Array = NDArray[np.float64]

# Atoms whose neighbor lists are held at a time.
_ATOMS_AT_ONCE = 100_000


class Found(NamedTuple):
    """What a potential says of systems of one molecule.

    Attributes:
        energies: (n_systems,), eV; not a number where there is a remark.
        forces: (n_systems, n_atoms, 3), eV/Å, likewise; ``None`` if not asked for.
        outside: whether a system is outside the region seen in training, (n_systems,),
            bool; ``None`` if the model records none.
        members: energies of each member of a committee, (n_systems, n_members), eV;
            ``None`` for one potential.
        remarks: why there is no energy, (n_systems,), texts; empty where there is one.
    """

    energies: Array
    forces: Array | None
    outside: NDArray[np.bool_] | None
    members: Array | None
    remarks: NDArray[np.object_]


def evaluate(
    potential: Potential, batch: AtomsBatch, *, forces: bool, progress: bool
) -> Found:
    """Evaluate systems of one molecule; what is wrong with one is told in its remark.

    Args:
        potential: on its device.
        batch: the systems, on the CPU, all of the same atoms.
        forces: whether to give forces.
        progress: show a bar.
    """
    region = region_of(potential)
    properties = ("energy", "forces") if forces else ("energy",)
    parts: list[dict[str, Tensor]] = []

    def call(some: AtomsBatch, edges: Edges) -> dict[str, Tensor]:
        distances = build_graph(some, edges, torch.float64).distances
        if isinstance(potential, Committee):
            each = potential.members(some, edges, properties)
            out = {name: values.mean(0) for name, values in each.items()}
            out["members"] = each["energy"].T.contiguous()
        else:
            out = potential(some, edges, properties)
        near = distances.new_full((some.n_systems,), torch.inf)
        owner = some.system[edges.i]
        out["closest"] = near.scatter_reduce(0, owner, distances, "amin")
        if region is not None:
            out["outside"] = region.outside(some, edges, distances)
        bar.update(some.n_systems)
        return out

    with tqdm(
        total=batch.n_systems, desc="scan", unit="system", disable=not progress
    ) as bar:
        every = torch.arange(batch.n_systems)
        for systems in every.split(max(1, _ATOMS_AT_ONCE // batch.max_atoms)):
            some = batch.select(systems).to(potential.device)
            out = Parts(potential, some, properties).evaluate(some, call)
            parts.append({name: values.cpu() for name, values in out.items()})
    return _found(batch, {k: torch.cat([one[k] for one in parts]) for k in parts[0]})


def _found(batch: AtomsBatch, out: dict[str, Tensor]) -> Found:
    arrays: dict[str, Any] = {name: values.numpy() for name, values in out.items()}
    energies, forces = arrays["energy"], arrays.get("forces")
    close = arrays["closest"] < MIN_DISTANCE
    finite = np.isfinite(energies)
    positions = batch.positions.unflatten(0, (batch.n_systems, -1))
    remarks = np.full(batch.n_systems, "", dtype=object)
    remarks[~finite] = "energy not finite"
    if forces is not None:
        forces = forces.reshape(batch.n_systems, -1, 3)
        remarks[~np.isfinite(forces).all((1, 2))] = "forces not finite"
    for k in np.flatnonzero(close).tolist():
        remarks[k] = _contact(positions[k])
    good = remarks == ""
    if forces is not None:
        forces = np.where(good[:, None, None], forces, np.nan)
    return Found(
        energies=np.where(good, energies, np.nan),
        forces=forces,
        outside=arrays.get("outside"),
        members=arrays.get("members"),
        remarks=remarks,
    )


def _contact(positions: Tensor) -> str:
    """Say which two atoms of a system coincide."""
    distances = torch.cdist(positions, positions).fill_diagonal_(torch.inf)
    i, j = divmod(int(distances.argmin()), len(positions))
    return f"atoms {i} and {j} are {float(distances[i, j]):.1g} Å apart"

"""Evaluating the same systems step after step, as dynamics and relaxation do.

Knows nothing of time steps: positions go in, energies and forces come out, all on the
device. Nothing here waits for the device, but for one flag per neighbor list.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlff.batch import MAX_COORDINATE, AtomsBatch, Edges, edge_vectors
from mlff.device import exact
from mlff.errors import InputError
from mlff.forcefield.parts import Parts
from mlff.potential import Potential
from mlff.region import Region

#: Margin of neighbor lists by type of device, Å. A skin of 0.5 adds a third to the
#: pairs within 5 Å, and to the cost of the model. On a CPU a list costs a fiftieth of a
#: model call, so that it is better built at every other step; on a GPU it costs more.
SKIN = {"cpu": 0.1, "cuda": 0.3}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a potential says of every system; float64, on the device, detached.

    Attributes:
        energy: (n_systems,), eV.
        forces: (n_atoms, 3), eV/Å.
        stress: ``(1/V) ∂E/∂ε``, (n_systems, 3, 3), eV/Å³, not finite without a volume;
            ``None`` unless asked for.
        outside: whether a system has left the region seen in training, (n_systems,),
            bool; ``None`` unless a region is watched.
        positions: where the systems were evaluated, (n_atoms, 3), Å, if what gave the
            forces has moved them from where they were given; else ``None``.
        deviation: of the force on each atom over the members of a committee, the norm
            of those of its components, (n_atoms,), eV/Å; ``None`` unless asked for.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None
    outside: Tensor | None
    positions: Tensor | None = None
    deviation: Tensor | None = None


class ForceField:
    """Evaluates the same systems again and again.

    They are split by memory once, in an order of its own, and neighbor lists are kept
    while they hold.

    Args:
        potential: the potential.
        batch: the systems, in any order, on the device of the potential.
        skin: margin of the neighbor lists, Å; :data:`SKIN` if not given.
        stress: whether to evaluate the stress too.
        region: what training has seen; sets ``Evaluation.outside``.
        deviation: whether to evaluate deviations too; the potential is a committee.
        memory_bytes: bound of the memory of one call; if not given, a share of what is
            free.

    Raises:
        InputError: no system, another device, or a system that does not fit into
            memory.
    """

    def __init__(
        self,
        potential: Potential,
        batch: AtomsBatch,
        *,
        skin: float | None = None,
        stress: bool = False,
        region: Region | None = None,
        deviation: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        if batch.n_systems == 0:
            raise InputError("`batch` is empty: there is nothing to evaluate")
        if batch.positions.device != potential.device:
            raise InputError(
                f"`batch` is on {batch.positions.device}, but the potential on "
                f"{potential.device}; move it there with batch.to(potential.device)"
            )
        self.potential = potential
        self.region = region
        self._start = batch.positions.clone(), batch.cell.clone()
        further = {"stress": stress, "forces_deviation": deviation}
        asked = (name for name, wanted in further.items() if wanted)
        self._properties = ("energy", "forces", *asked)
        with exact(potential.device):
            self._parts = Parts(
                potential,
                batch,
                self._properties,
                skin=SKIN[potential.device.type] if skin is None else skin,
                memory_bytes=memory_bytes,
            )

    @property
    def parts(self) -> list[Tensor]:
        """Indices of the systems that share a call, (n_part,) each."""
        return self._parts.systems

    @property
    def builds(self) -> int:
        """How many neighbor lists have been built so far."""
        return self._parts.builds

    def refresh(self) -> None:
        """Forget the lists: the next call builds them at its positions."""
        self._parts.refresh()

    def __call__(self, batch: AtomsBatch) -> Evaluation:
        """Evaluate the systems where they are now.

        Args:
            batch: the same systems; positions and cells may have moved.

        Returns:
            Energies and more in the order of the batch, not a number for systems with
            positions or cells that are not finite or out of range.

        Raises:
            InputError: other systems, or what a neighbor list refuses.
        """
        with exact(self.potential.device):
            batch, good = self._sound(batch)
            out = self._parts.evaluate(batch, self._call)
        deviation = out.get("forces_deviation")
        return Evaluation(
            energy=out["energy"].where(good, math.nan),
            forces=out["forces"].where(good[batch.system, None], math.nan),
            stress=out.get("stress"),
            outside=out.get("outside"),
            deviation=None if deviation is None else deviation.norm(dim=1),
        )

    def _sound(self, batch: AtomsBatch) -> tuple[AtomsBatch, Tensor]:
        """Put systems without meaning back to their start, and say which have one.

        A search for neighbors would refuse the whole batch for one of them.
        """
        self._parts.check(batch)
        far = batch.total((~(batch.positions.abs() <= MAX_COORDINATE)).sum(1))
        good = (far == 0) & batch.cell.isfinite().all(2).all(1)
        positions = batch.positions.where(good[batch.system, None], self._start[0])
        cell = batch.cell.where(good[:, None, None], self._start[1])
        return batch.replace(positions=positions, cell=cell), good

    def _call(self, batch: AtomsBatch, edges: Edges) -> dict[str, Tensor]:
        out = self.potential(batch, edges, self._properties)
        if self.region is not None:
            distances = edge_vectors(batch, edges).detach().norm(dim=1)
            out["outside"] = self.region.outside(batch, edges, distances)
        return out

    def state_energies(
        self, batch: AtomsBatch, states: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return the energies of the same geometries in other electronic states.

        Args:
            batch: the same systems; positions and cells may have moved.
            states: (charge, multiplicity 2S+1) of each state.

        Returns:
            (n_systems, n_states), eV.
        """

        def call(part: AtomsBatch, edges: Edges) -> dict[str, Tensor]:
            columns = []
            for charge, multiplicity in states:
                state = part.replace(
                    charge=torch.full_like(part.charge, charge),
                    multiplicity=torch.full_like(part.multiplicity, multiplicity),
                )
                columns.append(self.potential(state, edges, ("energy",))["energy"])
            return {"energy": torch.stack(columns, dim=1)}

        with exact(self.potential.device):
            batch, good = self._sound(batch)
            energies = self._parts.evaluate(batch, call)["energy"]
        return energies.where(good[:, None], math.nan)

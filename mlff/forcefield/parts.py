"""Evaluating many systems part by part, in calls that fit into memory.

Each part (:mod:`mlff.forcefield.plan`) keeps its neighbor list. Results come back in
the caller's order, and nothing waits for the device but for one flag of each list that
depends on positions. A part that meets a full device is halved and repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlff.batch import AtomsBatch, Edges
from mlff.errors import InputError
from mlff.forcefield.memory import free_bytes, is_out_of_memory
from mlff.forcefield.plan import bytes_of_one, has_all_pairs, plan, too_large
from mlff.neighbors.verlet import NeighborList
from mlff.potential import Potential
from mlff.properties import PROPERTIES

#: Evaluates some systems: by name, one row per system or per atom.
Call = Callable[[AtomsBatch, Edges], dict[str, Tensor]]


@dataclass(frozen=True)
class _Part:
    """Systems that share a call; all but positions and cells stays as it is."""

    systems: Tensor
    batch: AtomsBatch
    neighbors: NeighborList


class Parts:
    """Systems cut into parts that are evaluated one after the other.

    Args:
        potential: what will be called, on the device of the batch.
        batch: the systems, in any order.
        properties: what will be asked at most.
        skin: of the neighbor lists, Å.
        memory_bytes: bound of the memory of one call. If not given, a system must fit
            into what is free, and systems share a call up to a part of that.
        max_atoms: further bound of the systems that share a call, atoms.

    Raises:
        InputError: a system that does not fit.
    """

    def __init__(
        self,
        potential: Potential,
        batch: AtomsBatch,
        properties: Sequence[str],
        *,
        skin: float = 0.0,
        memory_bytes: int | None = None,
        max_atoms: int | None = None,
    ) -> None:
        self._potential, self._properties, self._skin = potential, properties, skin
        self._device = batch.positions.device
        self._shape = batch.cell.shape, batch.positions.shape
        groups = plan(
            potential,
            batch,
            properties,
            potential.cutoff + skin,
            memory_bytes=memory_bytes,
            max_atoms=max_atoms,
        )
        self._parts = [
            self._part(batch, torch.tensor(group, device=self._device))
            for group in groups
        ]
        order = torch.cat([batch.system[:0], *self.systems])
        # Rows of the caller's atoms in the order of the parts.
        rows = torch.arange(batch.n_atoms, device=self._device)[:, None]
        atoms = batch.replace(positions=rows).select(order).positions[:, 0]
        self._order = None if atoms.equal(rows[:, 0]) else (order, atoms)
        self._back = {"system": order.argsort(), "atom": atoms.argsort()}

    def _part(self, batch: AtomsBatch, systems: Tensor) -> _Part:
        some = batch.select(systems)
        fixed = has_all_pairs(some.max_atoms, some.periodic)
        backend = "all_pairs" if fixed else "auto"
        listed = NeighborList(self._potential.cutoff, self._skin, backend)
        return _Part(systems, some, listed)

    @property
    def systems(self) -> list[Tensor]:
        """Indices of the systems of each part, (n_part,), int64."""
        return [part.systems for part in self._parts]

    @property
    def builds(self) -> int:
        """How many neighbor lists were built so far."""
        return sum(part.neighbors.builds for part in self._parts)

    def refresh(self) -> None:
        """Forget the lists: the next evaluation builds them at its positions."""
        for part in self._parts:
            part.neighbors.forget()

    def check(self, batch: AtomsBatch) -> None:
        """Raise :class:`InputError` unless a batch can be that of the same systems."""
        found = batch.cell.shape, batch.positions.shape
        if found != self._shape:
            raise InputError(
                f"`batch` must hold the same {self._shape[0][0]} systems with "
                f"{self._shape[1][0]} atoms as before, got {batch.n_systems} with "
                f"{batch.n_atoms}; other systems need a new force field"
            )

    def evaluate(self, batch: AtomsBatch, call: Call) -> dict[str, Tensor]:
        """Evaluate the systems at their positions and cells of now.

        Args:
            batch: the systems as they were given first, but for positions and cells.
            call: evaluates a part. Names that ``PROPERTIES`` does not know are taken
                for properties of systems.

        Returns:
            What the calls gave, in the caller's order.

        Raises:
            InputError: what a neighbor list refuses, or a system that does not fit
                into memory.
        """
        positions, cell = batch.positions, batch.cell
        if self._order is not None:
            positions, cell = positions[self._order[1]], cell[self._order[0]]
        found: list[dict[str, Tensor]] = []
        atom = system = 0
        while len(found) < len(self._parts):
            part = self._parts[len(found)]
            end_atom = atom + part.batch.n_atoms
            end_system = system + part.batch.n_systems
            moved = part.batch.replace(
                positions=positions[atom:end_atom], cell=cell[system:end_system]
            )
            out = self._attempt(part, moved, call)
            if out is None:
                self._halve(len(found))
                continue
            found.append(out)
            atom, system = end_atom, end_system
        return self._gathered(found)

    def _attempt(
        self, part: _Part, batch: AtomsBatch, call: Call
    ) -> dict[str, Tensor] | None:
        """Call the model; ``None`` if the device is full."""
        try:
            return call(batch, part.neighbors.update(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here, and not in the handler, the tensors of the call are gone.
        return None

    def _gathered(self, found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        if len(found) == 1 and self._order is None:
            return found[0]
        out = {}
        for name in found[0] if found else ():
            rows = torch.cat([one[name] for one in found])
            if self._order is not None:
                per = PROPERTIES[name].per if name in PROPERTIES else "system"
                rows = rows[self._back[per]]
            out[name] = rows
        return out

    def _halve(self, index: int) -> None:
        part = self._parts[index]
        part.neighbors.forget()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        n = part.batch.n_systems
        if n == 1:
            cutoff = self._potential.cutoff + self._skin
            need = bytes_of_one(self._potential, part.batch, self._properties, cutoff)
            free = free_bytes(self._device)
            raise InputError(too_large(part.batch, int(part.systems[0]), need, free))
        halves = []
        for half in torch.arange(n, device=self._device).tensor_split(2):
            smaller = self._part(part.batch, half)
            halves.append(replace(smaller, systems=part.systems[half]))
        self._parts[index : index + 1] = halves

"""The region that training has seen, and which systems have left it.

Two kinds of ranges, taken over every atom of every training system:

- ``C-H``: distance from an atom of the first element to the nearest atom of the second
  in its system, Å. Atoms of a periodic system have their own images as neighbors. A
  model sees nothing beyond its cutoff, so that distances are cut off there: a longest
  distance equal to the cutoff says that some atom had none in reach.
- ``H-C-H``: angle at the middle atom between its two nearest neighbors, degrees; atoms
  with fewer than two in reach have none. Distances alone let CH2 be bent flat: with
  short bonds the hydrogen atoms stay as far apart as they were.

Bonds and bends are covered; which combinations of them were seen, torsions, and what
lies behind the nearest neighbors are not. A system inside may still be extrapolation;
one that is outside is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from mlff.batch import AtomsBatch, Edges, edge_vectors
from mlff.errors import InputError
from mlff.neighbors import neighbor_list

#: How far outside its range a distance (Å) or an angle (degrees) may be. Over the 1,554
#: DFT points around the grid that the shipped CH2 model learned from, everything within
#: these margins has an error of at most 41 meV; beyond, up to 0.8 eV.
MARGIN_A, MARGIN_DEGREES = 0.1, 10.0

# Atoms whose edges are looked at in one go when a region is measured.
_ATOMS_AT_ONCE = 10_000

Ranges = dict[tuple[int, ...], tuple[float, float]]


class _Table(NamedTuple):
    """Where each kind of pair and angle stands in a flat table of ranges.

    Row 0 stands for all elements that were not seen, row k for the k-th that was. Pairs
    come first, then angles: (a, b) at ``a * n + b``, (b, a, c) with b ≤ c at
    ``n**2 + (a * n + b) * n + c``, of ``n`` rows.
    """

    row: Tensor  # of each atomic number, (119,), int64
    n: int
    low: Tensor  # (n**2 + n**3,), float64
    high: Tensor

    def key(self, place: int) -> tuple[int, ...]:
        """Return the atomic numbers that a place stands for, 0 if not seen."""
        elements = [0, *self.row.nonzero()[:, 0].tolist()]
        if place < self.n**2:
            return elements[place // self.n], elements[place % self.n]
        rest, c = divmod(place - self.n**2, self.n)
        a, b = divmod(rest, self.n)
        return elements[b], elements[a], elements[c]


class _Measured(NamedTuple):
    """What decides, (n_atoms, n + 1): distances to each element, then the angle."""

    value: Tensor  # Å and degrees, float64
    place: Tensor  # in the table, int64
    exists: Tensor  # bool


@dataclass(frozen=True, kw_only=True)
class Region:
    """Ranges of distances and angles, and how far outside them a system may be.

    Attributes:
        ranges: (element, element of its neighbor) → shortest and longest distance, Å;
            (neighbor, element, neighbor) → smallest and largest angle, degrees.
            Atomic numbers; the neighbors of an angle ascending.
        cutoff: of the model, Å.
        margin_A: how far outside its range a distance may be, Å.
        margin_degrees: how far outside its range an angle may be; ``math.inf`` for
            no say of the angles.
    """

    ranges: Ranges
    cutoff: float
    margin_A: float = MARGIN_A
    margin_degrees: float = MARGIN_DEGREES

    def __post_init__(self) -> None:
        for name in ("margin_A", "margin_degrees"):
            if not getattr(self, name) >= 0:
                raise InputError(
                    f"`{name}` must be zero or positive, got {getattr(self, name)}"
                )

    @classmethod
    def from_batch(cls, batch: AtomsBatch, cutoff: float) -> Self:
        """Measure the region that systems cover, for example those of a training set.

        Args:
            batch: any number of systems, on any device.
            cutoff: of the model, Å.

        Returns:
            The region, with the default margins.
        """
        table = _table(batch.numbers.unique().tolist(), {}, batch.numbers.device)
        low = torch.full_like(table.low, math.inf)
        high = -low
        for part in _parts(batch):
            edges = neighbor_list(part, cutoff)
            found = _measure(part, edges, _lengths(part, edges), table, cutoff)
            place, value = found.place[found.exists], found.value[found.exists]
            low = low.scatter_reduce(0, place, value, "amin")
            high = high.scatter_reduce(0, place, value, "amax")
        ranges = {
            table.key(k): (float(low[k]), float(high[k]))
            for k in (low <= high).nonzero()[:, 0].tolist()
        }
        return cls(ranges=ranges, cutoff=cutoff)

    @classmethod
    def from_json(
        cls,
        content: Mapping[str, Sequence[float]],
        cutoff: float,
        *,
        margin_A: float = MARGIN_A,
        margin_degrees: float = MARGIN_DEGREES,
    ) -> Self:
        """Read what a model file records, ``potential.info.region``.

        Args:
            content: as :meth:`to_json` returns it.
            cutoff: of the model, Å.
            margin_A: how far outside its range a distance may be, Å.
            margin_degrees: how far outside its range an angle may be.

        Raises:
            InputError: nothing is recorded, or not by elements with two numbers each.
        """
        if not content:
            raise InputError(
                "this model file records no region seen in training, so that leaving "
                "it cannot be noticed; train the model again with this version of "
                "mlff, or switch the check off"
            )
        ranges: Ranges = {}
        for name, limits in content.items():
            try:
                key = tuple(atomic_numbers[symbol] for symbol in name.split("-"))
                lowest, highest = (float(limit) for limit in limits)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise _unusable(name, limits) from error
            if len(key) not in (2, 3) or not lowest <= highest:
                raise _unusable(name, limits)
            ranges[key] = (lowest, highest)
        return cls(
            ranges=ranges,
            cutoff=cutoff,
            margin_A=margin_A,
            margin_degrees=margin_degrees,
        )

    def to_json(self) -> dict[str, tuple[float, float]]:
        """Return the ranges by symbols, ``{"C-H": (0.95, 1.2), …}``, Å and degrees."""
        return {_symbols(key): limits for key, limits in self.ranges.items()}

    @torch.no_grad()
    def outside(self, batch: AtomsBatch, edges: Edges, distances: Tensor) -> Tensor:
        """Say which systems have left the region, without waiting for the device.

        Outside too: a distance that is not a number, an element that was not seen, two
        elements in one system that never were. Angles of a kind that was not seen have
        no say.

        Args:
            batch: any systems.
            edges: every pair within the cutoff, perhaps some beyond.
            distances: length of each edge, (n_edges,), Å; those of fill do not matter.

        Returns:
            (n_systems,), bool, on the device of the batch.
        """
        table = self._on(batch.numbers.device)
        found = _measure(batch, edges, distances, table, self.cutoff)
        wrong = (_excess(found, table) > 0).any(dim=1).to(torch.int64)
        return wrong.new_zeros(batch.n_systems).index_add(0, batch.system, wrong) > 0

    @torch.no_grad()
    def reasons(self, batch: AtomsBatch) -> list[str]:
        """Say in words how each system has left the region; not for use in a step.

        Args:
            batch: any systems, with finite positions.

        Returns:
            One text per system, of the distance or angle that is furthest outside (1 Å
            counts as 100°), like ``"C-H is 1.412 Å, seen 0.950 … 1.200 Å"``; empty
            for a system inside.
        """
        table = self._on(batch.numbers.device)
        edges = neighbor_list(batch, self.cutoff)
        found = _measure(batch, edges, _lengths(batch, edges), table, self.cutoff)
        excess = _excess(found, table)
        excess[:, -1] /= 100.0
        texts = [""] * batch.n_systems
        for system in batch.system[(excess > 0).any(dim=1)].unique().tolist():
            rows = batch.system == system
            worst = int(excess[rows].argmax())
            key = table.key(int(found.place[rows].ravel()[worst]))
            texts[system] = self._in_words(key, float(found.value[rows].ravel()[worst]))
        return texts

    def _in_words(self, key: tuple[int, ...], value: float) -> str:
        if key not in self.ranges:
            return f"{_symbols(key)} was not in the training data"
        low, high = self.ranges[key]
        if len(key) == 3:
            return f"{_symbols(key)} is {value:.1f}°, seen {low:.1f} … {high:.1f}°"
        size = f"{value:.3f} Å" if value < self.cutoff else f"> {self.cutoff:g} Å"
        return f"{_symbols(key)} is {size}, seen {low:.3f} … {high:.3f} Å"

    def _on(self, device: torch.device) -> _Table:
        """Return the ranges, margins included, as tensors."""
        if device not in self._tables:
            elements = sorted({z for key in self.ranges for z in key})
            with_margins = {}
            for key, (low, high) in self.ranges.items():
                margin = self.margin_A if len(key) == 2 else self.margin_degrees
                with_margins[key] = (low - margin, high + margin)
            self._tables[device] = _table(elements, with_margins, device)
        return self._tables[device]

    @cached_property
    def _tables(self) -> dict[torch.device, _Table]:
        return {}


def _unusable(name: object, limits: object) -> InputError:
    return InputError(
        "`region` must hold entries like 'C-H': [0.95, 1.20] and 'H-C-H': [90, 140], "
        f"got {name!r}: {limits!r}"
    )


def _symbols(key: tuple[int, ...]) -> str:
    return "-".join(chemical_symbols[z] if z else "another element" for z in key)


def _table(elements: Sequence[int], ranges: Ranges, device: torch.device) -> _Table:
    row = torch.zeros(119, dtype=torch.int64)
    row[list(elements)] = torch.arange(1, len(elements) + 1)
    n = len(elements) + 1
    low = torch.full((n**2 + n**3,), math.inf, dtype=torch.float64)
    low[n**2 :] = -math.inf
    high = torch.full_like(low, math.inf)
    for key, limits in ranges.items():
        k = [int(row[z]) for z in key]
        place = k[0] * n + k[1]
        if len(k) == 3:
            place = n**2 + (k[1] * n + k[0]) * n + k[2]
        low[place], high[place] = limits
    return _Table(row.to(device), n, low.to(device), high.to(device))


def _parts(batch: AtomsBatch) -> Iterator[AtomsBatch]:
    """Yield the systems in groups whose edges fit into memory."""
    group = batch.counts().cumsum(0) // _ATOMS_AT_ONCE
    for value in group.unique():
        yield batch.select(group == value)


def _lengths(batch: AtomsBatch, edges: Edges) -> Tensor:
    return torch.linalg.vector_norm(edge_vectors(batch, edges).detach(), dim=1)


def _excess(found: _Measured, table: _Table) -> Tensor:
    """How far outside, Å and degrees, (n_atoms, n + 1); not above 0 where inside."""
    below = table.low[found.place] - found.value
    above = found.value - table.high[found.place]
    excess = torch.maximum(below, above).nan_to_num(nan=math.inf, posinf=math.inf)
    return excess.where(found.exists, -math.inf)


def _measure(
    batch: AtomsBatch, edges: Edges, distances: Tensor, table: _Table, cutoff: float
) -> _Measured:
    """Measure the distances and the angle of each atom. No host sync."""
    row, columns = (
        table.row[batch.numbers],
        torch.arange(table.n, device=edges.i.device),
    )
    reach = distances.detach().to(torch.float64)
    far = reach >= cutoff
    if edges.has_fill:
        fill = edges.i == edges.j
        if edges.shift is not None:
            fill = fill & (edges.shift == 0).all(1)
        far = far | fill
    reach = reach.masked_fill(far, math.inf)
    near = reach.new_full((batch.n_atoms * table.n,), cutoff)
    slot = edges.i * table.n + row[edges.j]
    near = near.scatter_reduce(0, slot, reach, "amin").view(-1, table.n)
    angle, angle_place, bent = _angles(batch, edges, reach, row, table.n)
    place = torch.cat([row[:, None] * table.n + columns, angle_place[:, None]], dim=1)
    return _Measured(
        value=torch.cat([near, angle[:, None]], dim=1),
        place=place,
        exists=torch.cat([_others(batch, row, columns), bent[:, None]], dim=1),
    )


def _others(batch: AtomsBatch, row: Tensor, columns: Tensor) -> Tensor:
    """Whether the system of each atom has each element besides it, (n_atoms, n)."""
    n = len(columns)
    count = row.new_zeros(batch.n_systems * n)
    count = count.index_add(0, batch.system * n + row, torch.ones_like(row))
    itself = row[:, None] == columns
    others = count.view(-1, n)[batch.system] > itself
    if batch.periodic:  # its own images
        others = others | (itself & batch.pbc.any(1)[batch.system][:, None])
    return others


def _angles(
    batch: AtomsBatch, edges: Edges, reach: Tensor, row: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Angle between the two nearest neighbors, °, its place, and whether it exists."""
    if edges.n_edges == 0:
        return reach.new_zeros(batch.n_atoms), row, row < 0
    arms, kinds = [], []
    ids = torch.arange(edges.n_edges, device=row.device)
    for _ in range(2):
        least = reach.new_full((batch.n_atoms,), math.inf)
        least = least.scatter_reduce(0, edges.i, reach, "amin")
        candidates = ids.where(reach == least[edges.i], edges.n_edges - 1)
        nearest = torch.full_like(row, edges.n_edges - 1)
        nearest = nearest.scatter_reduce(0, edges.i, candidates, "amin")
        chosen = Edges(
            i=torch.arange(batch.n_atoms, device=row.device),
            j=edges.j[nearest],
            shift=None if edges.shift is None else edges.shift[nearest],
        )
        arms.append(edge_vectors(batch, chosen))
        kinds.append(row[chosen.j])
        reach = reach.masked_fill(ids == nearest[edges.i], math.inf)
    first, second = arms
    across = torch.linalg.vector_norm(torch.linalg.cross(first, second), dim=1)
    angle = torch.atan2(across, (first * second).sum(dim=1)).rad2deg()
    low, high = torch.minimum(*kinds), torch.maximum(*kinds)
    return angle, n**2 + (row * n + low) * n + high, least < math.inf

"""Relaxation on the surface where some internal coordinates keep their values.

With c the residuals of the held coordinates and J = ∂c/∂x, forces lose what they have
along the rows of J, and a geometry that a straight move has led off the surface goes
back by Newton steps of least length,

    F ← F − Jᵀ (J Jᵀ)⁻¹ J F,    x ← x − Jᵀ (J Jᵀ)⁻¹ c(x).

An angle of 0 or 180° is two conditions, as the middle atom can leave the line in two
directions: the parts across the line of ``u ∓ v``, with unit vectors u and v along both
bonds. Angles count in radians here. Everything is batched and waits for no device.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.coordinates import Coordinate, defined, jacobian, residuals, values
from mlff.errors import InputError
from mlff.forcefield import Evaluation
from mlff.relaxation.descent import Forces

#: What is held is held within this, Å and radians; a move that cannot be is refused.
HELD_WITHIN = 1e-8

#: An angle this close to 0 or 180° (degrees) is held on the line.
ON_LINE_DEGREES = 1e-4

# Newton steps back to the surface: a move of 0.2 Å needs three or four.
_STEPS = 6

# Added to J Jᵀ, relative to its mean diagonal: rows may be zero or depend on others.
_REGULAR = 1e-12


class Held:
    """The surface on which coordinates of many systems have given values.

    Args:
        coordinates: those held in each system.
        targets: their values, (n_systems, n_coordinates), Å and degrees.
    """

    def __init__(self, coordinates: Sequence[Coordinate], targets: Tensor) -> None:
        #: Atoms that coordinates are made of, ascending.
        self.atoms = sorted({k for one in coordinates for k in one.atoms})
        self._coordinates = [
            Coordinate(one.kind, tuple(map(self.atoms.index, one.atoms)))
            for one in coordinates
        ]
        self._targets = targets
        units = [math.pi / 180 if c.kind != "bond" else 1.0 for c in coordinates]
        self._units = targets.new_tensor(units)
        off_line = torch.minimum(targets.abs(), (targets - 180.0).abs())
        self._on_line = off_line < ON_LINE_DEGREES
        self._lines = [
            row
            for row, one in enumerate(coordinates)
            if one.kind == "angle" and bool(self._on_line[:, row].any())
        ]

    def settle(self, positions: Tensor, n_steps: int = _STEPS) -> tuple[Tensor, Tensor]:
        """Return the geometries nearby where everything has its value.

        Args:
            positions: of :attr:`atoms`, (n_systems, n, 3), Å.
            n_steps: Newton steps.

        Returns:
            Positions, and whether they are within :data:`HELD_WITHIN`, (n_systems,).
        """
        for _ in range(n_steps):
            off, rows = self._conditions(positions)
            positions = positions - _least_length(rows, off)
        off, _ = self._conditions(positions)
        return positions, (off.abs() < HELD_WITHIN).all(1)

    def along(self, positions: Tensor, vectors: Tensor) -> Tensor:
        """Return vectors without their parts across the surface.

        Args:
            positions: of :attr:`atoms`, on the surface, (n_systems, n, 3), Å.
            vectors: one per atom of these, (n_systems, n, 3).
        """
        _, rows = self._conditions(positions)
        across = (rows * vectors[:, None]).sum((2, 3))
        return vectors - _least_length(rows, across)

    def _conditions(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return c, (n_systems, n_rows), and J, (n_systems, n_rows, n, 3)."""
        off = residuals(positions, self._coordinates, self._targets) * self._units
        rows = jacobian(positions, self._coordinates) * self._units[:, None, None]
        for place in self._lines:
            on_line = self._on_line[:, place]
            for side in _off_line(positions, self._coordinates[place].atoms):
                on = torch.where(on_line, side[0], 0.0)
                row = torch.where(on_line[:, None, None], side[1], 0.0)
                off = torch.cat([off, on[:, None]], 1)
                rows = torch.cat([rows, row[:, None]], 1)
            straight = torch.zeros_like(off, dtype=torch.bool)
            straight[:, place] = on_line
            off = off.masked_fill(straight, 0.0)
            rows = rows.masked_fill(straight[:, :, None, None], 0.0)
        return off, rows


def _off_line(positions: Tensor, atoms: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return how far three atoms are off a line on either side, and derivatives."""
    first, vertex, last = (positions[:, k] for k in atoms)
    arms = [first - vertex, last - vertex]
    lengths = [arm.norm(dim=1, keepdim=True) for arm in arms]
    u, v = (arm / length for arm, length in zip(arms, lengths, strict=True))
    sign = -torch.sign((u * v).sum(1, keepdim=True))
    least = u.abs().argmin(1, keepdim=True)
    flattest = (least == torch.arange(3, device=u.device)).to(u)
    one_side = torch.linalg.cross(u, flattest, dim=1)
    one_side = one_side / one_side.norm(dim=1, keepdim=True)
    out = []
    for side in (one_side, torch.linalg.cross(u, one_side, dim=1)):
        off = (side * (u + sign * v)).sum(1)
        by_first = (side - (side * u).sum(1, keepdim=True) * u) / lengths[0]
        by_last = sign * (side - (side * v).sum(1, keepdim=True) * v) / lengths[1]
        row = torch.zeros_like(positions)
        row[:, atoms[0]], row[:, atoms[2]] = by_first, by_last
        row[:, atoms[1]] = -(by_first + by_last)
        out.append((off, row))
    return out


def _least_length(rows: Tensor, values: Tensor) -> Tensor:
    """Return the shortest d with J d = values, (n_systems, n, 3)."""
    flat = rows.flatten(2)
    gram = flat @ flat.mT
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    one = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    gram = gram + _REGULAR * mean[:, None, None] * one
    # The form without a check, which would wait for the device.
    shares, _ = torch.linalg.solve_ex(gram, values[:, :, None])
    return (flat.mT @ shares)[:, :, 0].unflatten(1, rows.shape[2:])


class HeldForces:
    """Forces of systems in which coordinates are held.

    Geometries are put back onto the surface before they are evaluated, and forces are
    those along it; where a geometry cannot be put back, the energy is not a number.

    Args:
        forces: of the systems as they are.
        batch: the systems.
        coordinates: those held in each system.
        targets: their values, (n_systems, n_coordinates), Å and degrees.
    """

    def __init__(
        self,
        forces: Forces,
        batch: AtomsBatch,
        coordinates: Sequence[Coordinate],
        targets: Tensor,
    ) -> None:
        self._forces, self._held = forces, Held(coordinates, targets)
        counts = batch.counts()
        starts = counts.cumsum(0) - counts
        self._rows = starts[:, None] + starts.new_tensor(self._held.atoms)

    def __call__(self, batch: AtomsBatch) -> Evaluation:
        """Evaluate the systems on the surface, near where they are."""
        near, good = self._held.settle(batch.positions[self._rows])
        positions = batch.positions.index_put((self._rows,), near)
        found = self._forces(batch.replace(positions=positions))
        along = self._held.along(near, found.forces[self._rows])
        return replace(
            found,
            energy=found.energy.where(good, math.nan),
            forces=found.forces.index_put((self._rows,), along),
            positions=positions,
        )


def held_values(batch: AtomsBatch, coordinates: Sequence[Coordinate]) -> Tensor:
    """Return the values that coordinates have, and will keep.

    Args:
        batch: the systems, on the CPU.
        coordinates: to be held in each.

    Returns:
        (n_systems, n_coordinates), Å and degrees.

    Raises:
        InputError: an atom that a system has not, a coordinate without meaning in its
            geometry, or a periodic system.
    """
    counts = batch.counts()
    smallest = int(counts.argmin())
    if coordinates and batch.periodic:
        raise InputError("`hold` is for molecules, and a system is periodic")
    for one in coordinates:
        one.check_atoms(int(counts[smallest]))
    starts = (counts.cumsum(0) - counts)[:, None]
    out = batch.positions.new_zeros(batch.n_systems, len(coordinates))
    for row, one in enumerate(coordinates):
        chain = Coordinate(one.kind, tuple(range(len(one.atoms))))
        positions = batch.positions[starts + starts.new_tensor(one.atoms)]
        good = defined(positions, [chain])[:, 0]
        if not good.all():
            raise InputError(
                f"`hold`, system {int(good.to(torch.int8).argmin())}: {one} has no "
                "meaning in this geometry"
            )
        out[:, row] = values(positions, [chain])[:, 0]
    return out

"""Geometries of a grid: a molecule in which coordinates have the values of each point.

Fragments move as bodies, one coordinate after the other: bonds first, then angles, then
dihedrals, so that a later one does not undo an earlier one along a chain. Where it
does, as for a triangle of bonds, Newton steps of least length end the way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from mlff.coordinates import KINDS, defined, moving_atoms, placed
from mlff.relaxation.held import Held
from mlff.scanning.axes import Axis

# Newton steps where bodies do not suffice, and points that make them together.
_STEPS, _TOGETHER = 30, 10_000


class Geometries(NamedTuple):
    """Geometries of all points of a grid, in C order.

    Attributes:
        positions: (n_points, n_atoms, 3), float64, Å.
        reached: whether a geometry has the values of its point, (n_points,), bool;
            where not, positions mean nothing.
    """

    positions: Tensor
    reached: NDArray[np.bool_]


def targets(axes: Sequence[Axis]) -> NDArray[np.float64]:
    """Return the values of all coordinates at all points, in C order.

    Args:
        axes: of the grid.

    Returns:
        (n_points, n_coordinates), the coordinates axis by axis; Å and degrees.
    """
    places = np.indices([len(axis) for axis in axes]).reshape(len(axes), -1)
    columns = [axis.values[k] for axis, k in zip(axes, places, strict=True)]
    return np.concatenate(columns, axis=1)


def geometries(atoms: Atoms, axes: Sequence[Axis]) -> Geometries:
    """Return a molecule at all points of a grid; all else as rigid as it can be.

    Args:
        atoms: the molecule, in a geometry that shows its bonds.
        axes: of the grid.
    """
    every = [one for axis in axes for one in axis.coordinates]
    wanted = torch.from_numpy(targets(axes))
    start = torch.from_numpy(np.array(atoms.positions, np.float64))
    positions = start.expand(len(wanted), *start.shape).clone()
    for k in sorted(range(len(every)), key=lambda k: list(KINDS).index(every[k].kind)):
        moving = torch.from_numpy(moving_atoms(atoms, every[k]))
        positions = placed(positions, every[k], wanted[:, k], moving)
    reached = torch.ones(len(wanted), dtype=torch.bool)
    for rows in torch.arange(len(wanted)).split(_TOGETHER):
        held = Held(every, wanted[rows])
        near = positions[rows][:, held.atoms]
        _, good = held.settle(near, 0)
        if not good.all():
            moved, good = held.settle(near, _STEPS)
            positions[rows[:, None], torch.tensor(held.atoms)] = moved
        reached[rows] = good & defined(positions[rows], every).all(1)
    return Geometries(positions, reached.numpy())

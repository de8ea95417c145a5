"""What is scanned: axes of a grid, each of one coordinate or of several together.

Written as text, an axis is a coordinate, first and last value, and how many:
``"angle 1 0 2 90 180 46"``. Coordinates that move together are joined by ``+``; those
without values take the ones of the last: ``"bond 0 1 + bond 0 2 0.9 1.4 21"``. In
Python tuples do as well: ``("angle", 1, 0, 2, 90, 180, 46)``, and a list of them is one
axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlff.coordinates import KINDS, Coordinate, check_defined, jacobian
from mlff.errors import InputError, InputTypeError

#: Points that an axis may have.
MAX_POINTS = 10**6

_LIKE = "like 'angle 1 0 2 90 180 46' or ('angle', 1, 0, 2, 90, 180, 46)"

# Displacement that lifts symmetry, Å, and what counts as no change of a coordinate
# then, relative.
_LIFTED, _DEPENDENT = 0.05, 1e-6


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a grid.

    Attributes:
        coordinates: that change along it, at least one.
        values: of each coordinate at each point, (n_points, n_coordinates), Å and
            degrees.
    """

    coordinates: tuple[Coordinate, ...]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        values = np.array(self.values, np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.coordinates):
            raise InputError(
                f"`values` of an axis must have a column for each of its "
                f"{len(self.coordinates)} coordinates, got shape {values.shape}"
            )
        if len(values) < 2:
            raise InputError(f"{self.name}: needs at least 2 points, got {len(values)}")
        for one, column in zip(self.coordinates, values.T, strict=True):
            for value in column.tolist():
                one.check_value(value)
            if len(set(column.tolist())) < 2:
                raise InputError(f"{one}: all its values are {column[0]:g}")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @classmethod
    def of(cls, given: Any) -> Self:
        """Read an axis.

        Args:
            given: text, a tuple, a list of these for coordinates that move together, or
                an axis.

        Raises:
            InputError: whatever is wrong; the text names the coordinate.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            given = [part.split() for part in given.split("+")]
        elif isinstance(given, tuple):
            given = [given]
        if not isinstance(given, list) or not given:
            raise InputTypeError(f"an axis must be {_LIKE}, got {given!r}")
        parts = [_part(part) for part in given]
        if parts[-1][1] is None:
            raise InputError(
                f"{parts[-1][0]}: needs first value, last value and number of points, "
                + _LIKE
            )
        # Read backwards: what has no values takes those of the next that has.
        columns: list[NDArray[np.float64]] = []
        for one, course in reversed(parts):
            if course is not None and columns and len(course) != len(columns[0]):
                raise InputError(
                    f"{one}: {len(course)} points, but the coordinates that move with "
                    f"it have {len(columns[0])}"
                )
            columns.append(columns[-1] if course is None else course)
        coordinates = tuple(one for one, _ in parts)
        return cls(coordinates, np.stack(columns[::-1], axis=1))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def together(self) -> bool:
        """Whether all coordinates have the same values."""
        same = (self.values == self.values[:, :1]).all()
        return bool(same) and len({one.unit for one in self.coordinates}) == 1

    @property
    def name(self) -> str:
        """The coordinates in words: ``bonds 0-1 and 0-2``."""
        kinds = {one.kind for one in self.coordinates}
        if len(self.coordinates) > 1 and len(kinds) == 1:
            chains = [str(one).split()[1] for one in self.coordinates]
            return f"{kinds.pop()}s {' and '.join(chains)}"
        return " and ".join(map(str, self.coordinates))

    @property
    def unit(self) -> str:
        """Of the first coordinate, ``"Å"`` or ``"degrees"``."""
        return self.coordinates[0].unit

    def __str__(self) -> str:
        first, last = self.values[0], self.values[-1]
        pairs = list(zip(first.tolist(), last.tolist(), strict=True))
        ends = [f"{a:g} to {b:g}" for a, b in pairs[: 1 if self.together else None]]
        units = [one.unit for one in self.coordinates]
        told = ", ".join(f"{e} {u}" for e, u in zip(ends, units, strict=False))
        return f"{self.name}, {told}, {len(self)} points"


def _part(given: Any) -> tuple[Coordinate, NDArray[np.float64] | None]:
    """Read a coordinate and, if they are there, its values."""
    if isinstance(given, str):
        given = given.split()
    if isinstance(given, Coordinate):
        given = (given.kind, *given.atoms)
    if not isinstance(given, (tuple, list)) or not given:
        raise InputTypeError(f"a coordinate of an axis must be {_LIKE}, got {given!r}")
    kind, *numbers = given
    if kind not in list(KINDS):
        raise InputError(
            f"the first word of an axis must be one of {', '.join(KINDS)}, got {kind!r}"
        )
    n_atoms = KINDS[kind]
    one = Coordinate(kind, tuple(numbers[:n_atoms]))
    rest = numbers[n_atoms:]
    if not rest:
        return one, None
    if len(rest) != 3:
        raise InputError(
            f"{one}: after its {n_atoms} atoms must come first value, last value and "
            f"number of points, got {' '.join(map(str, rest))}"
        )
    return one, _course(one, *rest)


def _course(one: Coordinate, first: Any, last: Any, count: Any) -> Any:
    try:
        start, stop, n = float(first), float(last), int(str(count), 10)
    except (TypeError, ValueError):
        raise InputError(
            f"{one}: first and last value must be numbers and the number of points an "
            f"integer, got {first!r}, {last!r}, {count!r}"
        ) from None
    for value in (start, stop):
        one.check_value(value)
    if n < 2:
        raise InputError(f"{one}: needs at least 2 points, got {n}")
    if start == stop:
        raise InputError(f"{one}: first and last value are both {start:g}")
    if n > MAX_POINTS:
        raise InputError(f"{one}: {n:,} points; along an axis at most {MAX_POINTS:,}")
    return np.linspace(start, stop, n)


def read_axes(coordinates: Any, atoms: Atoms) -> tuple[Axis, ...]:
    """Read the axes of a grid and hold them against a molecule.

    Args:
        coordinates: list of what :meth:`Axis.of` reads.
        atoms: the molecule.

    Raises:
        InputError: no axis, an atom that is not there, a coordinate without meaning, or
            coordinates that determine each other.
    """
    alone = isinstance(coordinates, tuple) and coordinates[:1] in [(k,) for k in KINDS]
    if alone or not isinstance(coordinates, (list, tuple)):
        raise InputTypeError(
            f"`coordinates` must be a list of axes, each {_LIKE}, got {coordinates!r}"
        )
    axes = tuple(map(Axis.of, coordinates))
    if not axes:
        raise InputError(f"`coordinates` is empty; give at least one axis {_LIKE}")
    every = [one for axis in axes for one in axis.coordinates]
    for k, one in enumerate(every):
        one.check_atoms(len(atoms))
        if any(map(one.same_as, every[:k])):
            raise InputError(f"{one} is scanned twice; name it once")
    check_defined(atoms.positions, every)
    _check_independent(atoms, every)
    return axes


def _check_independent(atoms: Atoms, every: Sequence[Coordinate]) -> None:
    """Raise if a coordinate follows from the others, wherever the atoms are."""
    noise = np.random.default_rng(0).normal(0.0, _LIFTED, atoms.positions.shape)
    rows = jacobian(atoms.positions + noise, every).reshape(len(every), -1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for k in range(1, len(every) + 1):
        if np.linalg.svd(rows[:k], compute_uv=False).min() < _DEPENDENT:
            others = ", ".join(map(str, every[: k - 1]))
            raise InputError(
                f"{every[k - 1]} follows from {others}: it cannot be scanned beside "
                "them; leave one of them out"
            )


def count_points(axes: Sequence[Axis]) -> int:
    """Return the number of points of a grid."""
    return math.prod(map(len, axes))

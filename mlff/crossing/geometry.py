"""What may move: mobile atoms, and internal coordinates that are held.

A search works on the vector of the Cartesian coordinates of the mobile atoms. Held
coordinates are met exactly at every geometry it sees, by Newton's method along their
derivatives, which costs no energies. Residuals are in Å and radians here, so that both
weigh about alike.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from mlff.constraints import mobile_atoms
from mlff.coordinates import (
    KINDS,
    STRAIGHT_DEGREES,
    Coordinate,
    check_defined,
    defined,
    jacobian,
    residuals,
    values,
)
from mlff.errors import InputError

Array = NDArray[np.float64]

# Held coordinates are met within this, Å and radians.
_MET = 1e-9

# Newton steps towards held coordinates, and how long one may be, Å.
_MOST_STEPS, _LONGEST_STEP = 100, 0.3

# Singular values below this part of the largest belong to redundant coordinates.
_REDUNDANT = 1e-8


class Held(NamedTuple):
    """An internal coordinate and the value that it keeps, Å or degrees."""

    coordinate: Coordinate
    value: float

    @classmethod
    def of(cls, given: Any, atoms: Atoms) -> Self:
        """Read ``("bond", 0, 1, 1.0)`` or ``"bond 0 1 1.0"``, or both without a value.

        Args:
            given: kind, atoms, and the value, Å or degrees; that in ``atoms`` if left
                out.
            atoms: the molecule.

        Raises:
            InputError: an unknown kind, an atom that is not there, or a value that no
                geometry has or that cannot be held.
        """
        if isinstance(given, cls):
            given = (given.coordinate.kind, *given.coordinate.atoms, given.value)
        words: Any = given.split() if isinstance(given, str) else given
        listed = isinstance(words, (tuple, list)) and len(words) > 0
        if not listed or words[0] not in list(KINDS):
            raise InputError(
                "`constraints` must hold entries like ('bond', 0, 1, 1.00) or "
                f"'angle 1 0 2 105', of {', '.join(KINDS)}, got {given!r}"
            )
        n_words = 1 + KINDS[words[0]]
        coordinate = Coordinate.of(tuple(words[:n_words]))
        coordinate.check_atoms(len(atoms))
        if len(words) == n_words:
            check_defined(atoms.positions, [coordinate])
            words = [*words, values(atoms.positions, [coordinate])[0]]
        try:
            (value,) = map(float, words[n_words:])
        except (TypeError, ValueError):
            raise InputError(
                f"`constraints`: {coordinate} must be followed by one value in "
                f"{coordinate.unit}, got {list(words[n_words:])}"
            ) from None
        coordinate.check_value(value)
        if coordinate.kind == "angle" and min(value, 180 - value) < STRAIGHT_DEGREES:
            raise InputError(
                f"`constraints`: {coordinate} cannot be held at {value:g}°, as a "
                "straight angle has no derivative; hold it a degree away"
            )
        return cls(coordinate, value)

    def __str__(self) -> str:
        unit = "Å" if self.coordinate.kind == "bond" else "°"
        return f"{self.coordinate} = {self.value:g} {unit}"


class Freedom:
    """Geometries of a molecule that a search may visit.

    Attributes:
        held: coordinates that keep a value.
        mobile: which atoms may move, (n_atoms,), bool.

    Args:
        atoms: the molecule; its ``FixAtoms`` hold.
        constraints: as :meth:`Held.of` reads them.

    Raises:
        InputError: a constraint that cannot be understood or is given twice, one of
            ``atoms`` that is not ``FixAtoms``, or no atom that may move.
    """

    def __init__(self, atoms: Atoms, constraints: Sequence[Any] = ()) -> None:
        if not isinstance(constraints, (list, tuple)):
            raise InputError(
                f"`constraints` must be a list of them, got {constraints!r}: put it "
                "into brackets"
            )
        self.held = [Held.of(one, atoms) for one in constraints]
        for index, one in enumerate(self.held):
            if any(one.coordinate.same_as(o.coordinate) for o in self.held[:index]):
                raise InputError(f"`constraints`: {one.coordinate} is given twice")
        for other in atoms.constraints:
            if not isinstance(other, FixAtoms):
                raise InputError(
                    f"`atoms` has the constraint {type(other).__name__}, but only "
                    "FixAtoms is known here; hold internal coordinates with "
                    "`constraints`, and remove it with atoms.set_constraint()"
                )
        self.mobile: NDArray[np.bool_] = mobile_atoms([atoms]).numpy()
        if not self.mobile.any():
            raise InputError("`atoms`: FixAtoms holds every atom; none may move")
        self._start = np.array(atoms.positions, np.float64)
        self._coordinates = [one.coordinate for one in self.held]
        self._targets = np.array([one.value for one in self.held])
        kinds = (one.kind for one in self._coordinates)
        self._scale = np.array([1.0 if k == "bond" else math.radians(1) for k in kinds])

    @property
    def size(self) -> int:
        """Number of Cartesian coordinates that may move."""
        return 3 * int(self.mobile.sum())

    def vector(self, positions: Array) -> Array:
        """Return what may move of positions or gradients, (…, n_atoms, 3) → (…, d)."""
        return positions[..., self.mobile, :].reshape(*positions.shape[:-2], self.size)

    def positions(self, vector: Array) -> Array:
        """Return the positions of all atoms, (n_atoms, 3), Å."""
        out = self._start.copy()
        out[self.mobile] = vector.reshape(-1, 3)
        return out

    def rows(self, vector: Array) -> Array:
        """Return the derivatives of held coordinates, (n_held, d), Å/Å and rad/Å."""
        found = jacobian(self.positions(vector), self._coordinates)
        return self._scale[:, None] * self.vector(found)

    def along(self, positions: Array, gradient: Array) -> Array:
        """Return the part of a gradient that leaves held coordinates as they are.

        Args:
            positions: (n_atoms, 3), Å.
            gradient: (n_atoms, 3).

        Returns:
            (n_atoms, 3), zero for fixed atoms.
        """
        rows, own = self.rows(self.vector(positions)), self.vector(gradient)
        own = own - np.linalg.pinv(rows, rcond=_REDUNDANT) @ (rows @ own)
        out = np.zeros_like(positions)
        out[self.mobile] = own.reshape(-1, 3)
        return out

    def residuals(self, positions: Array) -> Array:
        """Return by how much held coordinates are missed, (n_held,), Å and degrees."""
        return residuals(positions, self._coordinates, self._targets)

    def met(self, vector: Array) -> Array | None:
        """Return the nearest geometry in which held coordinates have their values.

        ``None`` if there is none, or none in reach.
        """
        if not self.held:
            return vector
        for _ in range(_MOST_STEPS):
            positions = self.positions(vector)
            if not defined(positions, self._coordinates).all():
                return None
            off = self._scale * self.residuals(positions)
            if np.abs(off).max() < _MET:
                return vector
            step = np.linalg.pinv(self.rows(vector), rcond=_REDUNDANT) @ off
            length = float(np.linalg.norm(step))
            if length == 0:  # all its atoms are fixed
                return None
            vector = vector - step * min(1.0, _LONGEST_STEP / length)
        return None

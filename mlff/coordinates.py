"""Bonds, angles and dihedrals of one molecule: values, derivatives, and setting them.

Knows geometry only; nothing of energies or constraints. Values are in Å and degrees,
derivatives in Å/Å and degrees/Å. An angle is that at its middle atom, 0 … 180°. A
dihedral a-b-c-d is the angle from the plane abc to the plane bcd, −180 … 180°, positive
if the bond cd is turned clockwise as seen along b → c (IUPAC); ASE gives the same plus
a multiple of 360°. Derivatives of dihedrals are those of Blondel, Karplus, J. Comput.
Chem. 17, 1132 (1996), eq. 27.

Everything takes one geometry, (n_atoms, 3), or any number of geometries of the same
molecule, (…, n_atoms, 3), as numpy arrays or tensors, and gives back the same kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self, TypeVar

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mlff.errors import InputError, InputTypeError

Points = TypeVar("Points", NDArray[np.float64], Tensor)

#: Number of atoms of each kind of coordinate.
KINDS = {"bond": 2, "angle": 3, "dihedral": 4}

#: Two atoms are bonded up to this many times the sum of their covalent radii.
BOND_FACTOR = 1.3

#: Three atoms are in line within this, degrees: a dihedral over them has no meaning.
STRAIGHT_DEGREES = 0.1

#: Atoms closer than this (Å) have no direction between them.
COINCIDENT_A = 1e-6

# An axis is taken from another plane where the sine of an angle is below this.
_NO_PLANE = 1e-9


@dataclass(frozen=True)
class Coordinate:
    """An internal coordinate of a molecule.

    Attributes:
        kind: ``"bond"``, ``"angle"`` or ``"dihedral"``.
        atoms: two, three or four different indices, in the order of the chain; the
            middle one of three is the vertex of the angle.
    """

    kind: str
    atoms: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind not in list(KINDS):
            raise InputError(f"`kind` must be one of {list(KINDS)}, got {self.kind!r}")
        object.__setattr__(self, "atoms", tuple(map(_index, self.atoms)))
        if len(self.atoms) != KINDS[self.kind]:
            raise InputError(
                f"`atoms` of a {self.kind} must be {KINDS[self.kind]} indices, got "
                f"{list(self.atoms)}"
            )
        if len(set(self.atoms)) < len(self.atoms):
            raise InputError(f"{self}: an atom is named twice")
        if min(self.atoms) < 0:
            raise InputError(f"{self}: indices of atoms begin with 0")

    @classmethod
    def of(cls, given: Any) -> Self:
        """Return a coordinate written as ``("angle", 1, 0, 2)`` or ``"angle 1 0 2"``.

        Raises:
            InputError: an unknown kind, or not as many different indices as it has.
        """
        if isinstance(given, cls):
            return given
        words: Any = given.split() if isinstance(given, str) else given
        if not isinstance(words, (tuple, list)) or not words:
            raise InputTypeError(
                "a coordinate must be like ('angle', 1, 0, 2) or 'angle 1 0 2', got "
                f"{given!r}"
            )
        return cls(words[0], tuple(words[1:]))

    @property
    def unit(self) -> str:
        """``"Å"`` or ``"degrees"``."""
        return "Å" if self.kind == "bond" else "degrees"

    def __str__(self) -> str:
        return f"{self.kind} {'-'.join(map(str, self.atoms))}"

    def same_as(self, other: "Coordinate") -> bool:
        """Whether both have the same value in every geometry, as 0-1 and 1-0 have."""
        either_way = other.atoms, other.atoms[::-1]
        return self.kind == other.kind and self.atoms in either_way

    def check_atoms(self, n_atoms: int) -> None:
        """Raise :class:`InputError` unless a molecule has the atoms."""
        beyond = [k for k in self.atoms if k >= n_atoms]
        if beyond:
            raise InputError(
                f"{self}: there is no atom {beyond[0]}; the molecule has {n_atoms}, "
                "and the first is 0"
            )

    def check_value(self, value: float) -> None:
        """Raise :class:`InputError` unless a geometry can have the value."""
        if not math.isfinite(value):
            raise InputError(f"{self}: values must be finite, got {value}")
        if self.kind == "bond" and not value > 0:
            raise InputError(f"{self}: a length must be positive, got {value:g} Å")
        if self.kind == "angle" and not 0 <= value <= 180:
            raise InputError(f"{self}: an angle must lie in 0 … 180°, got {value:g}°")


def _index(value: Any) -> int:
    try:
        return int(value, 10) if isinstance(value, str) else int(value.__index__())
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"a coordinate needs indices of atoms, got {value!r}"
        ) from None


def values(positions: Points, coordinates: Sequence[Coordinate]) -> Points:
    """Return the values of coordinates; differentiable where they have a derivative.

    Args:
        positions: (…, n_atoms, 3), Å.
        coordinates: any number.

    Returns:
        (…, n_coordinates), Å and degrees.
    """
    if not isinstance(positions, Tensor):
        return values(_tensor(positions), coordinates).numpy()
    found = [_value(positions, one) for one in coordinates]
    empty = positions.new_zeros((*positions.shape[:-2], 0))
    return torch.stack(found, -1) if found else empty


def residuals(
    positions: Points, coordinates: Sequence[Coordinate], targets: Any
) -> Points:
    """Return how far values are from others, the short way round for dihedrals.

    Args:
        positions: (…, n_atoms, 3), Å.
        coordinates: any number.
        targets: (…, n_coordinates), Å and degrees.

    Returns:
        Values minus targets, (…, n_coordinates), Å and degrees.
    """
    if not isinstance(positions, Tensor):
        wanted = torch.as_tensor(targets, dtype=torch.float64)
        return residuals(_tensor(positions), coordinates, wanted).numpy()
    off = values(positions, coordinates) - targets
    columns = list(off.unbind(-1))
    for row, one in enumerate(coordinates):
        if one.kind == "dihedral":
            columns[row] = columns[row] - 360.0 * (columns[row] / 360.0).round()
    return torch.stack(columns, -1) if columns else off


def jacobian(positions: Points, coordinates: Sequence[Coordinate]) -> Points:
    """Return the derivatives of coordinates with respect to positions.

    A straight angle has none; given is that of bending in one of the many planes.

    Args:
        positions: (…, n_atoms, 3), Å.
        coordinates: any number.

    Returns:
        (…, n_coordinates, n_atoms, 3), Å/Å and degrees/Å; not a number where atoms
        coincide or a dihedral has no meaning, see :func:`defined`.
    """
    if not isinstance(positions, Tensor):
        return jacobian(_tensor(positions), coordinates).numpy()
    shape = (*positions.shape[:-2], len(coordinates), *positions.shape[-2:])
    out = positions.new_zeros(shape)
    for row, one in enumerate(coordinates):
        for atom, vector in zip(one.atoms, _gradient(positions, one), strict=True):
            out[..., row, atom, :] = vector
    return out


def defined(positions: Points, coordinates: Sequence[Coordinate]) -> Any:
    """Say where coordinates have a meaning.

    Args:
        positions: (…, n_atoms, 3), Å.
        coordinates: any number.

    Returns:
        (…, n_coordinates), bool: false where atoms coincide, or where a dihedral has
        three atoms in line.
    """
    if not isinstance(positions, Tensor):
        return defined(_tensor(positions), coordinates).numpy()
    shape = (*positions.shape[:-2], len(coordinates))
    good = positions.new_ones(shape, dtype=torch.bool)
    for row, one in enumerate(coordinates):
        chain = positions[..., list(one.atoms), :]
        lengths = (chain[..., 1:, :] - chain[..., :-1, :]).norm(dim=-1)
        good[..., row] = (lengths > COINCIDENT_A).all(-1)
        if one.kind == "dihedral":
            for first in (0, 1):
                bend = _angle(*chain[..., first : first + 3, :].unbind(-2))
                off_line = torch.minimum(bend, 180.0 - bend)
                good[..., row] &= off_line > STRAIGHT_DEGREES
    return good


def _tensor(positions: Any) -> Tensor:
    return torch.from_numpy(np.array(positions, np.float64))


def _value(positions: Tensor, one: Coordinate) -> Tensor:
    chain = [positions[..., k, :] for k in one.atoms]
    if one.kind == "bond":
        return (chain[1] - chain[0]).norm(dim=-1)
    if one.kind == "angle":
        return _angle(*chain)
    first, axis, last = (b - a for a, b in pairwise(chain))
    one_normal, other_normal = _cross(first, axis), _cross(axis, last)
    along = axis.norm(dim=-1) * (first * other_normal).sum(-1)
    return torch.atan2(along, (one_normal * other_normal).sum(-1)).rad2deg()


def _angle(first: Tensor, vertex: Tensor, last: Tensor) -> Tensor:
    # Exact to rounding at every angle, unlike the arc cosine near 0 and 180°.
    u, v = first - vertex, last - vertex
    return torch.atan2(_cross(u, v).norm(dim=-1), (u * v).sum(-1)).rad2deg()


def _gradient(positions: Tensor, one: Coordinate) -> list[Tensor]:
    """Return the derivative with respect to each atom of the coordinate, (…, 3)."""
    chain = [positions[..., k, :] for k in one.atoms]
    if one.kind == "bond":
        vector = chain[1] - chain[0]
        unit = vector / vector.norm(dim=-1, keepdim=True)
        return [-unit, unit]
    degrees = 180.0 / math.pi
    if one.kind == "angle":
        u, v = chain[0] - chain[1], chain[2] - chain[1]
        normal = _normal(u, v)
        one_end = degrees * _cross(u, normal) / _dot(u, u)
        other_end = degrees * _cross(normal, v) / _dot(v, v)
        return [one_end, -(one_end + other_end), other_end]
    f, g, h = chain[0] - chain[1], chain[1] - chain[2], chain[3] - chain[2]
    a, b = _cross(f, g), _cross(h, g)
    length = g.norm(dim=-1, keepdim=True)
    a, b = degrees * a / _dot(a, a), degrees * b / _dot(b, b)
    shared = _dot(f, g) / length * a - _dot(h, g) / length * b
    return [-length * a, length * a + shared, -shared - length * b, length * b]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.cross(a, b, dim=-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _normal(u: Tensor, v: Tensor) -> Tensor:
    """Return the unit normal of a plane; of any plane that has both if in line."""
    normal = _cross(u, v)
    least = u.abs().argmin(-1, keepdim=True)
    flattest = (least == torch.arange(3, device=u.device)).to(u)
    flat = _dot(normal, normal) <= _NO_PLANE**2 * _dot(u, u) * _dot(v, v)
    normal = torch.where(flat, _cross(u, flattest), normal)
    return normal / normal.norm(dim=-1, keepdim=True)


def moving_atoms(atoms: Atoms, coordinate: Coordinate) -> NDArray[np.bool_]:
    """Return which atoms move when a coordinate is set, (n_atoms,).

    The last atom of a bond or an angle does, and all that is bonded to the other atoms
    of the coordinate only through it: the fragment behind the bond, or in a ring the
    atom with its own substituents. For a dihedral a-b-c-d all that hangs on c in this
    way turns about b-c; if d is not among it, as in a ring, d and what hangs on d.
    Atoms are bonded within :data:`BOND_FACTOR` times the sum of covalent radii.

    Args:
        atoms: the molecule, in a geometry that shows its bonds.
        coordinate: of it.

    Raises:
        InputError: an atom that is not there.
    """
    coordinate.check_atoms(len(atoms))
    vectors = atoms.positions[:, None] - atoms.positions[None]
    radii = covalent_radii[atoms.numbers]
    reach = BOND_FACTOR * (radii[:, None] + radii[None])
    bonded = np.linalg.norm(vectors, axis=2) < reach
    *others, last = coordinate.atoms
    if coordinate.kind == "dihedral":
        turned = _hanging(bonded, others[2], others[:2])
        if turned[last]:
            return turned
    return _hanging(bonded, last, others)


def _hanging(
    bonded: NDArray[np.bool_], carrier: int, others: list[int]
) -> NDArray[np.bool_]:
    """Return an atom and what is bonded to others through it only, (n_atoms,)."""
    without = bonded.copy()
    without[carrier] = without[:, carrier] = False
    _, part = connected_components(csr_array(without), directed=False)
    carried = np.isin(part, part[bonded[carrier]])
    carried &= ~np.isin(part, part[others])
    carried[carrier] = True
    return carried


def placed(
    positions: Tensor, coordinate: Coordinate, value: Tensor, moving: Tensor
) -> Tensor:
    """Return geometries in which a coordinate has a value: atoms move as one body.

    Other coordinates that cross the border of what moves change too.

    Args:
        positions: (…, n_atoms, 3), Å.
        coordinate: to set; a straight angle is bent in one of the many planes.
        value: (…,), Å or degrees.
        moving: atoms that move, the last of the coordinate among them, (n_atoms,),
            bool, as from :func:`moving_atoms`.
    """
    off = residuals(positions, [coordinate], value[..., None])
    chain = [positions[..., k, :] for k in coordinate.atoms]
    if coordinate.kind == "bond":
        vector = chain[1] - chain[0]
        shift = -off * vector / vector.norm(dim=-1, keepdim=True)
        return torch.where(moving[:, None], positions + shift[..., None, :], positions)
    if coordinate.kind == "angle":
        axis = _normal(chain[0] - chain[1], chain[2] - chain[1])
    else:
        axis = chain[2] - chain[1]
        axis = axis / axis.norm(dim=-1, keepdim=True)
    center = chain[-2][..., None, :]
    arms, axis = positions - center, axis[..., None, :].expand_as(positions)
    turn = (-off).deg2rad()[..., None]
    turned = (
        turn.cos() * arms
        + turn.sin() * _cross(axis, arms)
        + (1.0 - turn.cos()) * _dot(axis, arms) * axis
    )
    return torch.where(moving[:, None], center + turned, positions)


def set_coordinate(atoms: Atoms, coordinate: Any, value: float) -> Atoms:
    """Return a copy of a molecule in which a coordinate has a value.

    The fragment behind it moves as one body, see :func:`moving_atoms`.

    Args:
        atoms: not modified.
        coordinate: a :class:`Coordinate`, or what :meth:`Coordinate.of` reads.
        value: Å or degrees.

    Raises:
        InputError: no such atom, a value that no geometry has, or a coordinate without
            meaning here.
    """
    one = Coordinate.of(coordinate)
    moving = moving_atoms(atoms, one)
    one.check_value(value)
    check_defined(atoms.positions, [one])
    target = torch.tensor(float(value), dtype=torch.float64)
    moved = placed(_tensor(atoms.positions), one, target, torch.from_numpy(moving))
    out = atoms.copy()
    out.arrays["positions"] = moved.numpy()
    return out


def check_defined(
    positions: NDArray[np.float64], coordinates: Sequence[Coordinate]
) -> None:
    """Raise :class:`InputError` unless all coordinates mean something in a geometry."""
    good = defined(positions, coordinates)
    for one, fine in zip(coordinates, good.tolist(), strict=True):
        if not fine:
            raise InputError(
                f"{one} has no meaning in this geometry: atoms of it coincide or, of a "
                "dihedral, three are in line; begin with another geometry"
            )

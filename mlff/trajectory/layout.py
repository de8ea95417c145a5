"""What a trajectory holds: its systems, and what each frame says of them.

Systems stand one after the other, as in :class:`mlff.batch.AtomsBatch`. The tables
below are the only place that names what is stored; nothing here touches a file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from mlff.errors import InputError

if TYPE_CHECKING:  # reading a trajectory needs no torch
    from mlff.batch import AtomsBatch

Array = np.ndarray[Any, Any]


class Kind(NamedTuple):
    """How a quantity is stored: one row per what, shape of a row, type, unit."""

    axis: str
    tail: tuple[int, ...]
    dtype: str
    unit: str = ""


#: What stays from frame to frame.
SYSTEMS = {
    "numbers": Kind("atom", (), "<i8"),
    "masses": Kind("atom", (), "<f8", "amu"),
    "mobile": Kind("atom", (), "?"),
    "cell": Kind("system", (3, 3), "<f8", "Angstrom"),
    "pbc": Kind("system", (3,), "?"),
    "charge": Kind("system", (), "<i8", "e"),
    "multiplicity": Kind("system", (), "<i8"),
    "dof": Kind("system", (), "<f8"),
    "seed": Kind("system", (), "<i8"),
}

#: What every frame has.
FRAMES = {
    "step": Kind("one", (), "<i8"),
    "positions": Kind("atom", (3,), "<f8", "Angstrom"),
    "momenta": Kind("atom", (3,), "<f8", "sqrt(amu eV)"),
    "cell": Kind("system", (3, 3), "<f8", "Angstrom"),
    "energy": Kind("system", (), "<f8", "eV"),
    "kinetic": Kind("system", (), "<f8", "eV"),
    "heat": Kind("system", (), "<f8", "eV"),
    "status": Kind("system", (), "<i1"),
    "status_step": Kind("system", (), "<i8"),
    "state_energies": Kind("state", (), "<f8", "eV"),
}


def typed(value: Any, dtype: str, name: str) -> Array:
    """Return an array of this type, in C order; what would lose digits is refused."""
    array = np.asarray(value)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise InputError(f"`{name}` must be of type {dtype}, got {array.dtype}")
    return np.asarray(array, dtype, order="C")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The systems of a trajectory: all that does not change from frame to frame.

    Attributes:
        numbers: atomic numbers, (n_atoms,).
        ptr: atoms of system k are ``ptr[k]`` … ``ptr[k + 1] - 1``, (n_systems + 1,).
        masses: (n_atoms,), amu.
        mobile: atoms that may move, (n_atoms,), bool.
        cell: cell vectors as rows, (n_systems, 3, 3), Å; the initial ones if they vary.
        pbc: periodic along each cell vector, (n_systems, 3), bool.
        charge: total charge, (n_systems,), e.
        multiplicity: 2S+1, (n_systems,).
        dof: degrees of freedom of the kinetic energy, (n_systems,).
        seed: of the noise, (n_systems,).
        names: what the systems are called, (n_systems,).
        states: (charge, multiplicity) whose energies every frame has too.
        variable_cell: whether every frame has its own cells.

    Raises:
        InputError: no system, a shape that does not fit, or names that do not.
    """

    numbers: Array
    ptr: Array
    masses: Array
    mobile: Array
    cell: Array
    pbc: Array
    charge: Array
    multiplicity: Array
    dof: Array
    seed: Array
    names: tuple[str, ...]
    states: tuple[tuple[int, int], ...] = ()
    variable_cell: bool = False

    def __post_init__(self) -> None:
        ptr = typed(self.ptr, "<i8", "ptr")
        if ptr.ndim != 1 or len(ptr) < 2 or ptr[0] != 0 or (np.diff(ptr) < 1).any():
            raise InputError(
                "`ptr` must rise from 0 to n_atoms, at least one atom for each of at "
                f"least one system, got {ptr.tolist()[:8]}"
            )
        content: dict[str, Any] = {"ptr": ptr}
        for name, kind in SYSTEMS.items():
            array = typed(getattr(self, name), kind.dtype, name)
            rows = ptr[-1] if kind.axis == "atom" else len(ptr) - 1
            if array.shape != (rows, *kind.tail):
                raise InputError(
                    f"`{name}` must have shape {(int(rows), *kind.tail)}, got "
                    f"{array.shape}"
                )
            content[name] = array
        if (content["numbers"] < 1).any() or (content["numbers"] > 118).any():
            raise InputError("`numbers` must lie in 1 … 118")
        names = tuple(str(name) for name in self.names)
        states = tuple((int(q), int(m)) for q, m in self.states)
        if len(names) != len(ptr) - 1:
            raise InputError(
                f"`names` must be one per system ({len(ptr) - 1}), got {len(names)}"
            )
        if len(set(states)) != len(states):
            raise InputError(f"`states` holds one twice: {list(states)}")
        content.update(names=names, states=states)
        for name, value in content.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_batch(
        cls,
        batch: "AtomsBatch",
        *,
        masses: Any,
        mobile: Any,
        dof: Any,
        seed: Any,
        names: Sequence[str] | None = None,
        states: Sequence[tuple[int, int]] = (),
        variable_cell: bool = False,
    ) -> Self:
        """Return the layout of a batch.

        Args:
            batch: on any device.
            masses: tensor (n_atoms,), amu.
            mobile: tensor (n_atoms,), bool.
            dof: tensor (n_systems,).
            seed: tensor (n_systems,).
            names: one per system; their indices if not given.
            states: see the class.
            variable_cell: see the class.
        """

        def host(tensor: Any) -> Array:
            return np.asarray(tensor.detach().cpu().numpy())

        return cls(
            numbers=host(batch.numbers),
            ptr=np.concatenate([[0], np.cumsum(host(batch.counts()))]),
            masses=host(masses),
            mobile=host(mobile),
            cell=host(batch.cell),
            pbc=host(batch.pbc),
            charge=host(batch.charge),
            multiplicity=host(batch.multiplicity),
            dof=host(dof),
            seed=host(seed),
            names=tuple(names or map(str, range(batch.n_systems))),
            states=tuple(states),
            variable_cell=variable_cell,
        )

    @property
    def n_systems(self) -> int:
        """Number of systems."""
        return len(self.ptr) - 1

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all systems together."""
        return int(self.ptr[-1])

    @property
    def frame_bytes(self) -> int:
        """Bytes that a frame takes in the file, its checksum included."""
        shapes = self.frame_shapes()
        return sum(dtype.itemsize * math.prod(s) for dtype, s in shapes.values()) + 8

    def frame_shapes(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Return type and shape of everything that a frame of these systems holds."""
        n, m = self.n_atoms, self.n_systems
        axes: dict[str, tuple[int, ...]] = {"one": (), "atom": (n,), "system": (m,)}
        axes["state"] = (m, len(self.states))
        absent = set() if self.variable_cell else {"cell"}
        absent |= set() if self.states else {"state_energies"}
        return {
            name: (np.dtype(kind.dtype), axes[kind.axis] + kind.tail)
            for name, kind in FRAMES.items()
            if name not in absent
        }

    def differences(self, other: "Layout") -> tuple[str, ...]:
        """Return the names of the fields in which another layout differs."""
        return tuple(
            f.name
            for f in fields(self)
            if not np.array_equal(getattr(self, f.name), getattr(other, f.name))
        )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A moment of a run, from which it can go on.

    Attributes:
        step: number of steps made.
        positions: (n_atoms, 3), Å.
        momenta: (n_atoms, 3), sqrt(amu·eV), ASE's unit.
        cell: (n_systems, 3, 3), Å; written only if it varies.
        energy: potential energy, (n_systems,), eV.
        kinetic: kinetic energy, (n_systems,), eV.
        heat: energy put in by thermostat and barostat, (n_systems,), eV.
        status: 0 of systems that run, otherwise why they do not, (n_systems,), int8.
        status_step: last good step of those that do not run, (n_systems,).
        state_energies: energies in other states, (n_systems, n_states), eV.
    """

    step: int
    positions: Array
    momenta: Array
    cell: Array
    energy: Array
    kinetic: Array
    heat: Array
    status: Array
    status_step: Array
    state_energies: Array


def check_header(header: Any) -> None:
    """Raise unless a header is a dict that says how long a step is."""
    timestep = header.get("timestep_fs") if isinstance(header, dict) else None
    if not isinstance(timestep, (int, float)) or not 0 < timestep < float("inf"):
        raise InputError(
            "`header` must be a dict with a positive number `timestep_fs`, got "
            f"{timestep!r}"
        )

"""Many systems on their way downhill, and what every way has in common.

An optimizer is a frozen pair of ``init`` and ``step``: it holds settings, a
:class:`Descent` everything that changes. A step proposes a move of every system,
evaluates all of them in one force call, and takes a move or refuses it, each system for
itself; nothing waits for the device. A state is always the last good geometry with its
energy and forces: a move to something that is no number or to an explosion is refused,
and tried again shorter.

Cells are fixed; only positions relax. Units: eV and Å.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.forcefield import Evaluation

#: What gives energies and forces: a :class:`mlff.forcefield.ForceField`, perhaps behind
#: something that puts systems back to where they may be.
Forces = Callable[[AtomsBatch], Evaluation]

State = TypeVar("State", bound="Descent")

#: Marks a field with one row per atom, and one that is a tuple of such; all others
#: have one row per system.
ATOM: Mapping[str, str] = MappingProxyType({"per": "atom"})
HISTORY: Mapping[str, str] = MappingProxyType({"per": "history"})

#: Bytes of one vector per atom.
VECTOR_BYTES = 24

# A refused move is tried again this much shorter.
_SHORTER = 0.3


class Cause(IntEnum):
    """Why a move was refused."""

    NONE = 0
    NOT_FINITE = 1
    FORCE = 2
    REGION = 3
    ENERGY = 4

    @property
    def reason(self) -> str:
        """What happened, in words."""
        return _REASONS[self]


_REASONS = {
    Cause.NONE: "",
    Cause.NOT_FINITE: "energy or forces not finite",
    Cause.FORCE: "forces beyond max_force_eV_per_A",
    Cause.REGION: "outside the region seen in training",
    Cause.ENERGY: "no way downhill found",
}


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Systems on their way downhill, where each of them was last good.

    Attributes:
        batch: the systems.
        mobile: atoms that may move, (n_atoms,), bool.
        frozen: systems that stay as they are, (n_systems,), bool.
        energy: (n_systems,), eV; infinite before the first evaluation.
        forces: of all atoms, those that may not move included, (n_atoms, 3), eV/Å.
        cause: why the last move was refused, values of :class:`Cause`, (n_systems,),
            int8; ``NONE`` if it was taken.
        tried: longest move of an atom in the last step, taken or not, (n_systems,), Å.
    """

    batch: AtomsBatch
    mobile: Tensor = field(metadata=ATOM)
    frozen: Tensor
    energy: Tensor
    forces: Tensor = field(metadata=ATOM)
    cause: Tensor
    tried: Tensor

    @property
    def pull(self) -> Tensor:
        """Forces on the atoms that may move, zero on the others, (n_atoms, 3), eV/Å."""
        return self.forces * self.mobile[:, None]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{**content, **changes})

    def select(self, systems: Tensor) -> Self:
        """Return the state of these systems, (n_selected,) int64, in this order."""
        atoms = atoms_of(self.batch, systems)
        content: dict[str, Any] = {"batch": self.batch.select(systems)}
        for f in fields(self)[1:]:
            value, per = getattr(self, f.name), f.metadata.get("per")
            if per == "history":
                content[f.name] = tuple(past[atoms] for past in value)
            else:
                content[f.name] = value[atoms if per == "atom" else systems]
        return type(self)(**content)

    @classmethod
    def concat(cls, states: Sequence[Self]) -> Self:
        """Return one state of all systems of several, in order."""
        content: dict[str, Any] = {
            "batch": AtomsBatch.concat([s.batch for s in states])
        }
        for f in fields(cls)[1:]:
            values = [getattr(state, f.name) for state in states]
            if f.metadata.get("per") == "history":
                content[f.name] = _joined(values, [s.forces for s in states])
            else:
                content[f.name] = torch.cat(values)
        return cls(**content)


def atoms_of(batch: AtomsBatch, systems: Tensor) -> Tensor:
    """Return the atoms of some systems, system by system, int64.

    Args:
        batch: the systems.
        systems: indices, (n_selected,), int64.
    """
    everyone = torch.arange(batch.n_atoms, device=systems.device)
    return batch.replace(positions=everyone).select(systems).positions


def _joined(
    histories: Sequence[tuple[Tensor, ...]], like: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Join histories of unequal length; what is missing was zero."""
    length = max(len(past) for past in histories)
    filled = [
        (*past, *[torch.zeros_like(rows)] * (length - len(past)))
        for past, rows in zip(histories, like, strict=True)
    ]
    return tuple(torch.cat(rows) for rows in zip(*filled, strict=True))


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC, Generic[State]):
    """What all optimizers share; use ``LBFGS`` or ``FIRE``.

    Attributes:
        max_step_A: longest move of an atom in one step, Å.
    """

    max_step_A: float = 0.2

    def __post_init__(self) -> None:
        for f in fields(self):
            value, whole = getattr(self, f.name), f.type is int
            good = isinstance(value, int if whole else (int, float))
            if not good or isinstance(value, bool) or not 0 < value < math.inf:
                what = "a positive integer" if whole else "a positive number"
                raise InputError(f"`{f.name}` must be {what}, got {value!r}")

    @property
    @abstractmethod
    def bytes_per_atom(self) -> int:
        """Memory that a state takes."""

    @abstractmethod
    def init(self, batch: AtomsBatch, mobile: Tensor) -> State:
        """Return the state before the first evaluation.

        The first step moves nothing: it evaluates the systems where they are.

        Args:
            batch: the systems, on the device.
            mobile: atoms that may move, (n_atoms,), bool.
        """

    def step(self, state: State, forces: Forces, max_force: float = math.inf) -> State:
        """Return the state one step later; one force call.

        Args:
            state: of the same systems as the forces.
            forces: gives energies and forces, one call for all.
            max_force: a move to a force beyond this, eV/Å, is refused, unless the
                force was still larger before.
        """
        state, move = self._propose(state)
        move = self._shortened(state, move)
        trial = state.batch.replace(positions=state.batch.positions + move)
        found = forces(trial)
        if found.positions is not None:
            trial = trial.replace(positions=found.positions)
            move = trial.positions - state.batch.positions
        cause = self._judge(state, found, max_force)
        taken = (cause == Cause.NONE) & ~state.frozen
        rows = taken[state.batch.system, None]
        tried = largest(state.batch, move)
        return self._learn(state, move, found, cause).replace(
            batch=trial.replace(
                positions=torch.where(rows, trial.positions, state.batch.positions)
            ),
            energy=torch.where(taken, found.energy, state.energy),
            forces=torch.where(rows, found.forces, state.forces),
            cause=torch.where(state.frozen, state.cause, cause),
            tried=torch.where(state.frozen, state.tried, tried),
        )

    @abstractmethod
    def _propose(self, state: State) -> tuple[State, Tensor]:
        """Return the state and a move, (n_atoms, 3), Å; none without forces."""

    @abstractmethod
    def _learn(
        self, state: State, move: Tensor, found: Evaluation, cause: Tensor
    ) -> State:
        """Return the state with what a move has taught, taken or refused."""

    def _shortened(self, state: State, move: Tensor) -> Tensor:
        """Cap the move of each system, after a refusal far below what was refused."""
        refused = state.cause != Cause.NONE
        reach = torch.where(refused, _SHORTER * state.tried, self.max_step_A)
        length = largest(state.batch, move)
        factor = torch.where(length > reach, reach / length, 1.0)
        # What is frozen is evaluated where it is: no neighbor list has to follow it.
        factor = torch.where(state.frozen, 0.0, factor)
        return move * factor[state.batch.system, None]

    def _judge(self, state: State, found: Evaluation, max_force: float) -> Tensor:
        """Return why each move has to be refused, (n_systems,), int8."""
        now = largest(state.batch, found.forces * state.mobile[:, None])
        before = largest(state.batch, state.pull)
        exploded = (now > max_force) & (now > before) & state.energy.isfinite()
        cause = torch.zeros_like(state.cause)
        if found.outside is not None:
            cause = cause.masked_fill(found.outside, Cause.REGION)
        cause = cause.masked_fill(exploded, Cause.FORCE)
        # A sum, unlike a maximum, keeps what is not a number on every device.
        square = state.batch.total(found.forces.square().sum(1))
        finite = torch.isfinite(found.energy + square)
        return cause.masked_fill(~finite, Cause.NOT_FINITE)


def started(batch: AtomsBatch, mobile: Tensor) -> dict[str, Any]:
    """Return the fields that all states share, before the first evaluation."""
    zeros = batch.positions.new_zeros(batch.n_systems)
    return {
        "batch": batch,
        "mobile": mobile,
        "frozen": zeros.bool(),
        "energy": zeros + math.inf,
        "forces": torch.zeros_like(batch.positions),
        "cause": zeros.to(torch.int8),
        "tried": zeros,
    }


def largest(batch: AtomsBatch, vectors: Tensor) -> Tensor:
    """Return the length of the longest vector of each system, (n_systems,).

    Args:
        batch: the systems.
        vectors: one per atom, (n_atoms, 3).
    """
    squares = vectors.square().sum(1)
    zeros = squares.new_zeros(batch.n_systems)
    return zeros.scatter_reduce(0, batch.system, squares, "amax").sqrt()

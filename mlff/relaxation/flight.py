"""Batching in flight: who has finished leaves, who waits enters, all others go on.

A :class:`Flight` keeps systems on the device and steps them with an optimizer. What has
finished is frozen on the device in the same step, so that nothing depends on when the
host looks, or on who else is in flight.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.coordinates import Coordinate
from mlff.forcefield import ForceField
from mlff.forcefield.memory import free_bytes
from mlff.potential import Potential
from mlff.region import Region
from mlff.relaxation.descent import (
    Cause,
    Descent,
    Forces,
    Optimizer,
    atoms_of,
    largest,
)
from mlff.relaxation.held import HeldForces
from mlff.relaxation.relaxed import Landing

#: A system is given up when it may not even move this far, Å.
MIN_MOVE = 1e-4

# Systems are exchanged when this part of those in flight has finished. An exchange
# costs less than one step of fifty CH2.
_EXCHANGE = 0.1

# Part of the free memory that the states in flight may take; calls have a bound of
# their own.
_MEMORY_SHARE = 0.125


class Outcome(IntEnum):
    """How far a system is."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    GIVEN_UP = 3


@dataclass(frozen=True, kw_only=True)
class FlightPlan:
    """What moves systems, and when they have arrived.

    Attributes:
        potential: on the device.
        optimizer: what moves them.
        fmax: a system has converged below this force, eV/Å.
        max_steps: of each system.
        max_force: no move may lead to a larger force, eV/Å.
        region: that no move may leave.
        max_systems: in flight at a time; as many as fit into memory if ``None``.
        skin: of the neighbor lists, Å; ``None`` for what suits the device.
        hold: coordinates of every system that keep the values they begin with.
    """

    potential: Potential
    optimizer: Optimizer[Any]
    fmax: float
    max_steps: int
    max_force: float
    region: Region | None
    max_systems: int | None
    skin: float | None
    hold: tuple[Coordinate, ...] = ()

    def reason(self, outcome: Outcome, cause: Cause) -> str:
        """Return why a system has not converged; empty if it has."""
        if outcome == Outcome.CONVERGED:
            return ""
        if outcome == Outcome.MAX_STEPS:
            return f"not converged in {self.max_steps} steps"
        return cause.reason


@dataclass(frozen=True, kw_only=True)
class _Flying:
    """Systems on the device.

    Attributes:
        state: where they are.
        steps: that each has made, (n_systems,), int64.
        outcome: values of :class:`Outcome`, (n_systems,), int64.
    """

    state: Descent
    steps: Tensor
    outcome: Tensor


class Flight:
    """Systems on their way, and those that wait for a place.

    Args:
        plan: what moves them.
        systems: all of them, on the CPU.
        mobile: atoms that may move, (n_atoms,), bool.
        targets: values of what is held, (n_systems, n_hold), Å and degrees.
        waiting: indices of those that are to fly, in this order.
    """

    def __init__(
        self,
        plan: FlightPlan,
        systems: AtomsBatch,
        mobile: Tensor,
        targets: Tensor,
        waiting: list[int],
    ) -> None:
        self._plan, self._device = plan, plan.potential.device
        self._systems, self._sizes = systems, systems.counts().tolist()
        self._mobile = mobile.split(self._sizes)
        self._waiting = waiting[::-1]
        self._targets = targets
        free = _MEMORY_SHARE * free_bytes(self._device)
        self._max_atoms = int(free / plan.optimizer.bytes_per_atom)
        self._index = np.zeros(0, dtype=np.int64)
        self._landed = np.zeros(0, dtype=bool)
        self._flying: _Flying | None = None

    def exchange(self) -> bool:
        """Let finished systems go and waiting ones come; say whether any are left."""
        kept = np.flatnonzero(~self._landed)
        if len(kept) > (1.0 - _EXCHANGE) * len(self._landed):
            return True
        come = self._called(self._index[kept].tolist())
        if not len(kept) and not come:
            return False
        parts = [self._entered(come)] if come else []
        if self._flying is not None and len(kept):
            old = torch.from_numpy(kept).to(self._device)
            stay = self._flying
            parts.append(
                _Flying(
                    state=stay.state.select(old),
                    steps=stay.steps[old],
                    outcome=stay.outcome[old],
                )
            )
        states = [part.state for part in parts]
        self._flying = _Flying(
            state=type(states[0]).concat(states),
            steps=torch.cat([part.steps for part in parts]),
            outcome=torch.cat([part.outcome for part in parts]),
        )
        self._index = np.concatenate([np.array(come, np.int64), self._index[kept]])
        self._landed = np.zeros(len(self._index), dtype=bool)
        batch, plan = self._flying.state.batch, self._plan
        self._forces: Forces = ForceField(
            plan.potential, batch, skin=plan.skin, region=plan.region
        )
        if plan.hold:
            targets = self._targets[self._index].to(self._device)
            self._forces = HeldForces(self._forces, batch, plan.hold, targets)
        return True

    def _called(self, flying: list[int]) -> list[int]:
        """Take from the waiting as many as there is room for, at least one in all."""
        atoms, n = sum(self._sizes[k] for k in flying), len(flying)
        come: list[int] = []
        while self._waiting:
            atoms, n = atoms + self._sizes[self._waiting[-1]], n + 1
            full = atoms > self._max_atoms or n > (self._plan.max_systems or n)
            if full and n > 1:
                break
            come.append(self._waiting.pop())
        return come

    def _entered(self, come: list[int]) -> _Flying:
        batch = self._systems.select(come).to(self._device)
        mobile = torch.cat([self._mobile[k] for k in come]).to(self._device)
        # The first step evaluates, and is not counted.
        steps = torch.full((len(come),), -1, device=self._device)
        return _Flying(
            state=self._plan.optimizer.init(batch, mobile),
            steps=steps,
            outcome=torch.zeros_like(steps),
        )

    def go(self, n_steps: int) -> None:
        """Make some steps; nothing here waits for the device."""
        flying, plan = self._airborne(), self._plan
        for _ in range(n_steps):
            state = plan.optimizer.step(flying.state, self._forces, plan.max_force)
            steps = torch.where(state.frozen, flying.steps, flying.steps + 1)
            outcome = torch.where(
                state.frozen, flying.outcome, self._outcome(state, steps)
            )
            state = state.replace(frozen=outcome != Outcome.RUNNING)
            flying = _Flying(state=state, steps=steps, outcome=outcome)
        self._flying = flying

    def _airborne(self) -> _Flying:
        assert self._flying is not None, "exchange() comes first"
        return self._flying

    def _outcome(self, state: Descent, steps: Tensor) -> Tensor:
        """Return how far each system is, values of :class:`Outcome`."""
        good = state.energy.isfinite()
        lost = ((state.cause != Cause.NONE) & (state.tried < MIN_MOVE)) | ~good
        converged = good & (largest(state.batch, state.pull) < self._plan.fmax)
        outcome = torch.zeros_like(steps)
        late = steps >= self._plan.max_steps
        outcome = outcome.masked_fill(late, Outcome.MAX_STEPS)
        outcome = outcome.masked_fill(lost, Outcome.GIVEN_UP)
        return outcome.masked_fill(converged, Outcome.CONVERGED)

    def landings(self) -> list[Landing]:
        """Return what has finished since the last call; waits for the device."""
        flying = self._airborne()
        state, outcome = flying.state, flying.outcome.cpu().numpy()
        new = np.flatnonzero((outcome != Outcome.RUNNING) & ~self._landed)
        self._landed[new] = True
        chosen = torch.from_numpy(new).to(self._device)
        rows = atoms_of(state.batch, chosen)
        ends = np.cumsum([self._sizes[k] for k in self._index[new]])
        vectors = torch.stack([state.batch.positions[rows], state.forces[rows]])
        arrays = np.split(vectors.cpu().numpy(), ends[:-1], axis=1)
        fmax = largest(state.batch, state.pull)
        columns = (state.energy, fmax, flying.steps, state.cause)
        numbers = [column[chosen].tolist() for column in columns]
        return [
            Landing(
                system=int(self._index[place]),
                positions=positions.copy(),
                forces=forces.copy(),
                energy=energy,
                fmax=force,
                n_steps=steps,
                reason=self._plan.reason(Outcome(outcome[place]), Cause(cause)),
            )
            for place, (positions, forces), energy, force, steps, cause in zip(
                new, arrays if len(new) else [], *numbers, strict=True
            )
        ]

    @property
    def n_live(self) -> int:
        """Systems in flight that have not landed."""
        return int((~self._landed).sum())

    def largest_force(self) -> float:
        """Return the largest force on an atom that may move, eV/Å; waits."""
        return float(self._airborne().state.pull.norm(dim=1).max())

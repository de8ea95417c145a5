"""Bounds that a system may not pass: one bad system does not end a run.

A system whose forces or kinetic energy leave the bounds, or are no numbers, is put back
to its last good step and stays there; all others go on. The decision is made on the
device in every step, from forces that have not moved an atom yet.
"""

from dataclasses import asdict, dataclass
from enum import IntEnum
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor

from mlff.committee import check_committee
from mlff.dynamics.phase import MDState
from mlff.errors import InputError
from mlff.potential import Potential
from mlff.region import MARGIN_A, MARGIN_DEGREES, Region


class Status(IntEnum):
    """Whether a system still runs, and if not, why."""

    RUNNING = 0
    NOT_FINITE = 1
    FORCE = 2
    TEMPERATURE = 3
    REGION = 4
    DEVIATION = 5

    @property
    def reason(self) -> str:
        """What happened, in words."""
        return _REASONS[self]


_REASONS = {
    Status.RUNNING: "running",
    Status.NOT_FINITE: "energy or forces were not finite",
    Status.FORCE: "a force passed max_force_eV_per_A",
    Status.TEMPERATURE: "the temperature passed max_temperature_K",
    Status.REGION: "it left the region seen in training",
    Status.DEVIATION: "the committee disagreed: a force deviation passed "
    "max_deviation_eV_per_A",
}


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What has become of each system.

    Attributes:
        status: values of :class:`Status`, (n_systems,), int8.
        step: last good step of the frozen, −1 of the others, (n_systems,), int64.
    """

    status: Tensor
    step: Tensor

    @classmethod
    def start(cls, n_systems: int, device: torch.device) -> Self:
        """Return that everything runs."""
        return cls(
            status=torch.zeros(n_systems, dtype=torch.int8, device=device),
            step=torch.full((n_systems,), -1, dtype=torch.int64, device=device),
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a run.

    Attributes:
        max_force_eV_per_A: largest force on an atom, eV/Å.
        max_temperature_K: largest kinetic temperature of a system, K.
        max_deviation_eV_per_A: largest deviation of the force on an atom over the
            members of a :class:`mlff.Committee`, eV/Å: the square root of the sum of
            the variances of its components, each a sample variance. ``None`` for no
            bound. For dynamics; relaxations refuse it.
        region: ``"ignore"``, or ``"freeze"`` for systems that leave the region seen in
            training (:mod:`mlff.region`).
        margin_A: how far outside a range of it a distance may be, Å.
        margin_degrees: how far outside a range of it an angle may be.
    """

    max_force_eV_per_A: float = 100.0
    max_temperature_K: float = 20_000.0
    max_deviation_eV_per_A: float | None = None
    region: str = "ignore"
    margin_A: float = MARGIN_A
    margin_degrees: float = MARGIN_DEGREES

    def __post_init__(self) -> None:
        bounds = ["max_force_eV_per_A", "max_temperature_K"]
        if self.max_deviation_eV_per_A is not None:
            bounds.append("max_deviation_eV_per_A")
        for name in bounds:
            value = getattr(self, name)
            if not _is_real(value) or not value > 0:
                raise InputError(f"`{name}` must be a positive number, got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.region not in ("ignore", "freeze"):
            raise InputError(
                f"`region` must be 'ignore' or 'freeze', got {self.region!r}"
            )
        for name in ("margin_A", "margin_degrees"):
            value = getattr(self, name)
            if not _is_real(value) or not value >= 0:
                raise InputError(f"`{name}` must be zero or positive, got {value!r}")
            object.__setattr__(self, name, float(value))

    def settings(self) -> dict[str, Any]:
        """Return the bounds as JSON types, for resuming; unset ones left out.

        A run of before there was such a bound can be resumed so.
        """
        return {k: v for k, v in asdict(self).items() if v is not None}

    @property
    def watches_deviation(self) -> bool:
        """Whether the force field must give deviations."""
        return self.max_deviation_eV_per_A is not None

    def check(self, potential: Potential) -> None:
        """Raise :class:`InputTypeError` unless a potential can give what is bounded."""
        if self.watches_deviation:
            check_committee(potential, "max_deviation_eV_per_A")

    def watched(self, potential: Potential) -> Region | None:
        """Return the region to watch, if any.

        Raises:
            InputError: the model file records none.
        """
        if self.region == "ignore":
            return None
        return Region.from_json(
            potential.info.region,
            potential.cutoff,
            margin_A=self.margin_A,
            margin_degrees=self.margin_degrees,
        )

    def hold(
        self, before: MDState, after: MDState, watch: Watch
    ) -> tuple[MDState, Watch]:
        """Put systems that passed a bound back to where they were.

        Args:
            before: the state one step earlier, good wherever ``watch`` says running.
            after: the state now.
            watch: what was known before.

        Returns:
            The state now, and what is known now.
        """
        found = self._status(after)
        ran = watch.status == Status.RUNNING
        status = torch.where(ran, found, watch.status)
        newly = ran & (status != Status.RUNNING)
        step = torch.where(newly, before.step, watch.step)
        return _kept(before, after, status == Status.RUNNING), Watch(
            status=status, step=step
        )

    def _status(self, state: MDState) -> Tensor:
        forces = state.forces.square().sum(1)
        zeros = forces.new_zeros(state.batch.n_systems)
        largest = zeros.scatter_reduce(0, state.batch.system, forces, "amax")
        temperature = state.temperature()
        finite = torch.isfinite(state.energy + temperature + state.batch.total(forces))
        status = torch.zeros_like(finite, dtype=torch.int8)
        if state.outside is not None and self.region == "freeze":
            status = status.masked_fill(state.outside, Status.REGION)
        if state.deviation is not None and self.max_deviation_eV_per_A is not None:
            widest = zeros.scatter_reduce(
                0, state.batch.system, state.deviation, "amax"
            )
            apart = widest > self.max_deviation_eV_per_A
            status = status.masked_fill(apart, Status.DEVIATION)
        status = status.masked_fill(
            temperature > self.max_temperature_K, Status.TEMPERATURE
        )
        status = status.masked_fill(largest > self.max_force_eV_per_A**2, Status.FORCE)
        return status.masked_fill(~finite, Status.NOT_FINITE)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _kept(before: MDState, after: MDState, good: Tensor) -> MDState:
    """``after`` where good, ``before`` elsewhere."""
    atoms = good[after.batch.system, None]
    cells = good[:, None, None]
    batch = after.batch.replace(
        positions=torch.where(atoms, after.batch.positions, before.batch.positions),
        cell=torch.where(cells, after.batch.cell, before.batch.cell),
    )
    stress = after.stress
    if stress is not None and before.stress is not None:
        stress = torch.where(cells, stress, before.stress)
    return after.replace(
        batch=batch,
        momenta=torch.where(atoms, after.momenta, before.momenta),
        energy=torch.where(good, after.energy, before.energy),
        forces=torch.where(atoms, after.forces, before.forces),
        stress=stress,
        heat=torch.where(good, after.heat, before.heat),
    )

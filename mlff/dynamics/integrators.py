"""Equations of motion for many systems at once: frozen ``init``/``step`` pairs.

An integrator holds settings, an :class:`mlff.dynamics.phase.MDState` everything that
changes; a step is a function of the two and of the force field, makes one force call,
and never waits for the device. Noise is a function of seed, step and atom
(:mod:`mlff.dynamics.noise`), so a state is all that a restart needs and a system moves
alone as it does in a batch.

Units: eV, Å, amu and ASE's time Å·sqrt(amu/eV) inside; arguments carry their unit.

| symbol | here |
|---|---|
| r, p, m, F | ``batch.positions``, ``momenta``, ``masses``, ``forces`` |
| Δt, γ, τ | ``timestep_fs``, ``friction_per_fs``, ``time_constant_fs`` |
| K, N_f, k_B T | ``kinetic_energy()``, ``dof``, ``units.kB * temperature_K`` |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from ase import units
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.dynamics.phase import (
    INITIAL,
    THERMOSTAT,
    MDState,
    chi_squares,
    degrees_of_freedom,
    per_atom,
    thermal_momenta,
    without_motion,
)
from mlff.dynamics.schedules import Target, at_time, check_target, described
from mlff.errors import InputError
from mlff.forcefield import ForceField

# System k of a batch with the one seed s has the seed s · 2^20 + k.
_SEEDS_APART = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Integrator(ABC):
    """What all integrators share; use one of the subclasses.

    Attributes:
        timestep_fs: Δt, fs.
        seed: of initial velocities and noise: one for each system, or one integer s,
            of which system k gets ``s · 2^20 + k``.
        remove_motion: take out the momentum of the center of mass, and for systems
            that are not periodic the angular momentum; where an atom is fixed neither.
    """

    timestep_fs: float
    seed: int | Sequence[int] = 0
    remove_motion: bool = False

    def __post_init__(self) -> None:
        if not (is_number(self.timestep_fs) and 0 < self.timestep_fs <= 100):
            raise InputError(
                f"`timestep_fs` must lie in (0, 100] fs, got {self.timestep_fs!r}; "
                "0.25 to 1 is usual with hydrogen"
            )
        try:
            seeds = np.atleast_1d(np.asarray(self.seed))
        except ValueError:  # sequences of several lengths
            seeds = np.empty(0)
        # Not by abs(), of which the smallest integer has none.
        whole = seeds.dtype.kind in "iu"
        if not whole or (seeds <= -(2**43)).any() or (seeds >= 2**43).any():
            raise InputError(f"`seed` must be integers below 2^43, got {self.seed!r}")
        if not isinstance(self.remove_motion, (bool, np.bool_)):
            raise InputError(
                f"`remove_motion` must be True or False, got {self.remove_motion!r}"
            )

    @property
    def needs_stress(self) -> bool:
        """Whether the force field must give the stress."""
        return False

    @property
    def timestep(self) -> float:
        """Δt in ASE's unit of time."""
        return self.timestep_fs * units.fs

    def init(
        self,
        batch: AtomsBatch,
        forcefield: ForceField,
        *,
        masses: Tensor,
        momenta: Tensor,
        mobile: Tensor,
    ) -> MDState:
        """Return the state at step 0.

        Systems that come at rest get velocities of the initial temperature, if the
        integrator has one.

        Args:
            batch: the systems, on the device.
            forcefield: made for them.
            masses: (n_atoms,), float64, amu.
            momenta: (n_atoms, 3), float64, amu Å per ASE time.
            mobile: atoms that may move, (n_atoms,), bool.

        Raises:
            InputError: a setting that does not fit the systems.
        """
        self.check(batch)
        state = MDState(
            batch=batch,
            momenta=momenta * mobile[:, None],
            masses=masses,
            mobile=mobile,
            energy=batch.positions.new_zeros(batch.n_systems),
            forces=torch.zeros_like(batch.positions),
            stress=None,
            outside=None,
            heat=batch.positions.new_zeros(batch.n_systems),
            dof=degrees_of_freedom(batch, mobile, self.remove_motion),
            seed=_seeds(self.seed, batch),
            step=0,
        )
        state = self._thermalized(state)
        if self.remove_motion:
            state = without_motion(state)
        return state.evaluated(forcefield(batch))

    @abstractmethod
    def step(self, state: MDState, forcefield: ForceField) -> MDState:
        """Return the state one time step later; one force call."""

    @abstractmethod
    def initial_temperature(self) -> Target | None:
        """Temperature of initial velocities, K; ``None`` leaves systems at rest."""

    @abstractmethod
    def check(self, batch: AtomsBatch) -> None:
        """Raise :class:`InputError` if a setting does not fit these systems."""

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON types, for trajectories and resuming."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        out: dict[str, Any] = {"integrator": type(self).__name__}
        for name, value in content.items():
            if isinstance(value, Integrator):
                out[name] = value.settings()
            elif value is None or isinstance(value, (bool, int, str)):
                out[name] = value
            else:
                out[name] = described(value)
        return out

    def _thermalized(self, state: MDState) -> MDState:
        target = self.initial_temperature()
        if target is None:
            return state
        temperature = at_time(target, 0.0, state.heat, "temperature_K")
        drawn = thermal_momenta(state, temperature, INITIAL)
        at_rest = (state.batch.total(state.momenta.abs().sum(1)) == 0)[
            state.batch.system
        ]
        momenta = torch.where(at_rest[:, None], drawn, state.momenta)
        return state.replace(momenta=momenta)


@dataclass(frozen=True, kw_only=True)
class VelocityVerlet(Integrator):
    """Constant energy: Swope, Andersen, Berens, Wilson, J. Chem. Phys. 76, 637 (1982).

    Attributes:
        initial_temperature_K: of the velocities of systems that come at rest; they
            stay at rest if not given.
    """

    initial_temperature_K: Target | None = None

    def initial_temperature(self) -> Target | None:
        """See :class:`Integrator`."""
        return self.initial_temperature_K

    def check(self, batch: AtomsBatch) -> None:
        """See :class:`Integrator`."""
        if self.initial_temperature_K is not None:
            check_target(
                self.initial_temperature_K, batch.n_systems, "initial_temperature_K"
            )

    def step(self, state: MDState, forcefield: ForceField) -> MDState:
        """See :class:`Integrator`."""
        return verlet_step(state, forcefield, self.timestep)


@dataclass(frozen=True, kw_only=True)
class Langevin(Integrator):
    """Canonical ensemble by friction and noise, splitting B A O A B.

    Leimkuhler, Matthews, Appl. Math. Res. eXpress 2013, 34. Positions sample the
    canonical distribution to fourth order at high friction and second order else; the
    kinetic energy at the end of a step is low by a part (ωΔt)²/4 of each vibration ω.

    Attributes:
        temperature_K: T, K; a number, one per system, or a function of the time in fs.
        friction_per_fs: γ, 1/fs; a number or one per system. ASE's ``friction`` is this
            divided by ``ase.units.fs``.
    """

    temperature_K: Target
    friction_per_fs: float | Sequence[float] = 0.01

    def initial_temperature(self) -> Target | None:
        """See :class:`Integrator`."""
        return self.temperature_K

    def check(self, batch: AtomsBatch) -> None:
        """See :class:`Integrator`."""
        check_target(self.temperature_K, batch.n_systems, "temperature_K")
        check_target(self.friction_per_fs, batch.n_systems, "friction_per_fs")
        if callable(self.friction_per_fs):
            raise InputError("`friction_per_fs` must be a number or one per system")

    def step(self, state: MDState, forcefield: ForceField) -> MDState:
        """See :class:`Integrator`."""
        half = 0.5 * self.timestep
        state = self.thermostatted(state.kicked(half).drifted(half)).drifted(half)
        state = state.evaluated(forcefield(state.batch)).kicked(half)
        return state.replace(step=state.step + 1)

    def thermostatted(self, state: MDState) -> MDState:
        """``p ← e^(−γΔt) p + sqrt((1 − e^(−2γΔt)) m k_B T) ξ``."""
        time_fs = state.step * self.timestep_fs
        friction = at_time(self.friction_per_fs, 0.0, state.heat, "friction_per_fs")
        loss = -self.timestep_fs * per_atom(friction, state.batch)
        kept = torch.exp(loss)[:, None] if isinstance(loss, Tensor) else math.exp(loss)
        noise = thermal_momenta(
            state,
            at_time(self.temperature_K, time_fs, state.heat, "temperature_K"),
            THERMOSTAT,
        )
        momenta = kept * state.momenta + (1.0 - kept**2) ** 0.5 * noise
        after = state.replace(momenta=momenta)
        if self.remove_motion:
            after = without_motion(after)
        return after.replace(
            heat=state.heat + after.kinetic_energy() - state.kinetic_energy()
        )


@dataclass(frozen=True, kw_only=True)
class VelocityRescaling(Integrator):
    """Canonical ensemble by a stochastic factor on all velocities of a system.

    Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007), eqs. A7 and A8. The
    motion of the whole system is taken out by default: the factor never redistributes
    energy between it and the rest.

    Attributes:
        temperature_K: T, K; a number, one per system, or a function of the time in fs.
        time_constant_fs: τ, fs.
    """

    temperature_K: Target
    time_constant_fs: float = 100.0
    remove_motion: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.time_constant_fs) and self.time_constant_fs > 0):
            raise InputError(
                f"`time_constant_fs` must be positive, got {self.time_constant_fs!r}"
            )

    def initial_temperature(self) -> Target | None:
        """See :class:`Integrator`."""
        return self.temperature_K

    def check(self, batch: AtomsBatch) -> None:
        """See :class:`Integrator`."""
        check_target(self.temperature_K, batch.n_systems, "temperature_K")

    def step(self, state: MDState, forcefield: ForceField) -> MDState:
        """See :class:`Integrator`."""
        return self.thermostatted(verlet_step(state, forcefield, self.timestep))

    def thermostatted(self, state: MDState) -> MDState:
        """Multiply the velocities of each system by its factor α."""
        dof = state.dof
        time_fs = state.step * self.timestep_fs
        temperature = at_time(self.temperature_K, time_fs, state.heat, "temperature_K")
        kept = float(np.exp(-self.timestep_fs / self.time_constant_fs))
        kinetic = state.kinetic_energy()
        moves = (dof > 0) & (kinetic > 0)
        ratio = 0.5 * units.kB * temperature / torch.where(moves, kinetic, 1.0)
        first, others = chi_squares(state)
        spread = torch.sqrt(kept * (1.0 - kept) * ratio)
        square = (
            kept + (1.0 - kept) * ratio * (first**2 + others) + 2.0 * first * spread
        )
        # The factor may change sign, eq. A8: at long time steps only.
        sign = torch.where(
            first * torch.sqrt((1.0 - kept) * ratio) < -(kept**0.5), -1, 1
        )
        factor = torch.where(moves, sign * torch.sqrt(square.clamp(min=0.0)), 1.0)
        gained = torch.where(moves, (square - 1.0) * kinetic, 0.0)
        return state.replace(
            momenta=state.momenta * factor[state.batch.system, None],
            heat=state.heat + gained,
        )


def verlet_step(state: MDState, forcefield: ForceField, timestep: float) -> MDState:
    """Return the state one step of velocity Verlet later, ``timestep`` in ASE time."""
    state = state.kicked(0.5 * timestep).drifted(timestep)
    state = state.evaluated(forcefield(state.batch)).kicked(0.5 * timestep)
    return state.replace(step=state.step + 1)


def _seeds(seed: int | Sequence[int], batch: AtomsBatch) -> Tensor:
    device = batch.system.device
    if np.ndim(seed) == 0:
        first = int(np.asarray(seed)) * _SEEDS_APART
        return first + torch.arange(batch.n_systems, device=device)
    seeds = torch.as_tensor(np.asarray(seed, np.int64), device=device)
    if seeds.shape != (batch.n_systems,):
        raise InputError(
            f"`seed` must be one integer or one per system ({batch.n_systems}), got "
            f"{len(seeds)}"
        )
    return seeds


def is_number(value: Any) -> bool:
    """Whether this is one finite number, a bool not counted as one."""
    whole = isinstance(value, (int, float, np.integer, np.floating))
    return whole and not isinstance(value, bool) and bool(np.isfinite(value))

"""What a run of many systems amounts to: numbers for each system and for each kind.

A frame counts for a system until that is frozen. Temperatures are averaged over the
second half of a run, drifts and fluctuations are those of the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray

from mlff.dynamics.limits import Status
from mlff.dynamics.schedules import Ramp
from mlff.errors import InputError
from mlff.state import State, read_state
from mlff.trajectory import Trajectory

if TYPE_CHECKING:
    from mlff.dynamics.integrators import Integrator
    from mlff.dynamics.record import Series
    from mlff.md import MDResult

Array = NDArray[np.float64]

# A slope of fewer points says nothing.
_POINTS_OF_A_SLOPE = 3

# From this many systems on the error of a mean follows from how much they differ;
# below, each is cut into pieces in time that count as systems.
_ENOUGH_SYSTEMS, _PIECES = 8, 5


class Kind(NamedTuple):
    """What systems that are counted together have in common.

    Attributes:
        formula: composition, Hill notation.
        charge: total charge, e.
        multiplicity: 2S+1.
    """

    formula: str
    charge: int
    multiplicity: int

    @classmethod
    def of(cls, atoms: Atoms) -> Self:
        """Return the kind of a system."""
        state = read_state(atoms)
        formula = atoms.get_chemical_formula("hill")
        return cls(formula, state.charge, state.multiplicity)

    def __str__(self) -> str:
        return f"{self.formula}, {State(self.charge, self.multiplicity)}"


def by_kind(kinds: Sequence[Kind]) -> dict[Kind, NDArray[np.int64]]:
    """Return the indices of each kind, the most frequent kind first."""
    found: dict[Kind, list[int]] = {}
    for index, kind in enumerate(kinds):
        found.setdefault(kind, []).append(index)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return {kind: np.array(indices) for kind, indices in ordered}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it is reported: series of every system, and what to hold them against.

    Attributes:
        kinds: (n_systems,).
        n_atoms: of each system, (n_systems,).
        dof: degrees of freedom N_f of the kinetic energy, (n_systems,).
        times_fs: of the frames, (n_frames,), fs.
        energy: potential energy, (n_frames, n_systems), eV.
        kinetic: kinetic energy, likewise.
        heat: energy put in by thermostat and barostat, likewise.
        target_K: temperature asked for, broadcastable to (n_frames, n_systems), K;
            ``None`` at constant energy.
        frozen: why and after which time (fs) a system was stopped, by index.
        state_energies: of the geometries in other states, by (charge, multiplicity),
            each (n_frames, n_systems), eV.
    """

    kinds: tuple[Kind, ...]
    n_atoms: NDArray[np.int64]
    dof: Array
    times_fs: Array
    energy: Array
    kinetic: Array
    heat: Array
    target_K: Array | None = None
    frozen: Mapping[int, tuple[float, str]] = field(default_factory=dict)
    state_energies: Mapping[tuple[int, int], Array] = field(default_factory=dict)

    @classmethod
    def from_result(cls, result: "MDResult", integrator: "Integrator") -> Self:
        """Return what a run gave.

        Args:
            result: of :func:`mlff.run_md`.
            integrator: that moved the systems.
        """
        series = result.series
        settings = integrator.settings()
        return cls(
            kinds=tuple(Kind.of(atoms) for atoms in result.atoms),
            n_atoms=np.array([len(atoms) for atoms in result.atoms]),
            dof=series.dof,
            times_fs=series.times_fs,
            energy=series.energy,
            kinetic=series.kinetic,
            heat=series.heat,
            target_K=_target(settings, series.times_fs),
            frozen={
                index: (found.step * integrator.timestep_fs, found.reason)
                for index, found in result.frozen.items()
            },
            state_energies=_by_state(series),
        )

    @classmethod
    def read(cls, trajectory: Trajectory | str | Path) -> Self:
        """Return what a trajectory holds, also that of a killed or a growing run.

        Args:
            trajectory: open, or its file.

        Raises:
            InputError: no frame is in it yet.
            DataError: not a trajectory, or damaged.
        """
        if not isinstance(trajectory, Trajectory):
            trajectory = Trajectory(trajectory)
        if trajectory.n_frames == 0:
            raise InputError(f"{trajectory.path} holds no whole frame yet")
        layout, header = trajectory.layout, trajectory.header
        status, steps = trajectory.status[-1], trajectory.status_step[-1]
        symbols = np.array(chemical_symbols)[layout.numbers]
        formulas = (
            str(Formula.from_list(part.tolist()).format("hill"))
            for part in np.split(symbols, layout.ptr[1:-1])
        )
        states = zip(
            formulas, layout.charge.tolist(), layout.multiplicity.tolist(), strict=True
        )
        return cls(
            kinds=tuple(Kind(*state) for state in states),
            n_atoms=np.diff(layout.ptr),
            dof=layout.dof,
            times_fs=trajectory.times_fs,
            energy=trajectory.energy,
            kinetic=trajectory.kinetic,
            heat=trajectory.heat,
            target_K=_target(header, trajectory.times_fs),
            frozen={
                index: (
                    float(steps[index] * header["timestep_fs"]),
                    Status(status[index]).reason,
                )
                for index in np.flatnonzero(status).tolist()
            },
            state_energies=_by_state(trajectory),
        )

    @property
    def n_systems(self) -> int:
        """Number of systems."""
        return len(self.kinds)

    @cached_property
    def groups(self) -> dict[Kind, NDArray[np.int64]]:
        """Systems of each kind."""
        return by_kind(self.kinds)

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Whether a system had not been frozen, (n_frames, n_systems)."""
        last = np.full(self.n_systems, np.inf)
        for index, (time_fs, _) in self.frozen.items():
            last[index] = time_fs
        return self.times_fs[:, None] <= last * (1 + 1e-9)

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """Frames of the second half of the run of systems that were not frozen."""
        middle = 0.5 * (self.times_fs[0] + self.times_fs[-1])
        return self.alive & (self.times_fs >= middle)[:, None]

    @cached_property
    def temperature(self) -> Array:
        """Kinetic temperature, (n_frames, n_systems), K; not a number without N_f."""
        dof = np.where(self.dof > 0, self.dof, np.nan)
        return np.asarray(2.0 * self.kinetic / (units.kB * dof))

    @cached_property
    def change(self) -> Array:
        """Conserved energy less that of the first frame, (n_frames, n_systems).

        meV per atom; constant zero if integration were exact.
        """
        conserved = self.energy + self.kinetic - self.heat
        return np.asarray(1000.0 * (conserved - conserved[0]) / self.n_atoms)

    @cached_property
    def mean_temperature(self) -> Array:
        """Of each system, (n_systems,), K; not a number where no frame counts."""
        return mean_of(self.temperature, self.counted)

    @cached_property
    def drift(self) -> Array:
        """Slope of the conserved energy of each system, (n_systems,), meV/atom/ps."""
        return self._line[0]

    @cached_property
    def fluctuation(self) -> Array:
        """Scatter of the conserved energy about its slope, (n_systems,), meV/atom."""
        return self._line[1]

    @cached_property
    def _line(self) -> tuple[Array, Array]:
        """Least squares of each system: slope, and standard deviation about it."""
        alive = self.alive
        time = self.times_fs[:, None] / 1000.0
        time = time - mean_of(np.broadcast_to(time, alive.shape), alive)
        change = np.where(alive, self.change - mean_of(self.change, alive), 0.0)
        time = np.where(alive, time, 0.0)
        enough = alive.sum(0) >= _POINTS_OF_A_SLOPE
        square = np.where(enough, (time**2).sum(0), np.nan)
        slope = (time * change).sum(0) / square
        rest = ((change - slope * time) ** 2).sum(0) / np.maximum(alive.sum(0), 1)
        return slope, np.sqrt(rest)

    def temperature_of(self, systems: NDArray[np.int64]) -> tuple[float, float]:
        """Return the mean temperature of some systems and its standard error, K."""
        return self.average(self.temperature, systems)

    def average(self, values: Array, systems: NDArray[np.int64]) -> tuple[float, float]:
        """Return the mean over the second half of some systems, and its standard error.

        The error is that of the mean over systems that move independently; of fewer
        than eight systems, five pieces of the second half each. A system that was
        stopped weighs as much as it has frames.

        Args:
            values: of each system at each frame, (n_frames, n_systems).
            systems: which to average over.
        """
        rows = np.flatnonzero(self.counted.any(1))
        n_pieces = 1 if len(systems) >= _ENOUGH_SYSTEMS else min(_PIECES, len(rows))
        counted = self.counted & np.isfinite(values)
        pieces = [p[:, None] for p in np.array_split(rows, max(1, n_pieces))]
        means = np.concatenate(
            [mean_of(values[p, systems], counted[p, systems]) for p in pieces]
        )
        weights = np.concatenate([counted[p, systems].sum(0) for p in pieces])
        means, weights = means[weights > 0], weights[weights > 0]
        if len(means) == 0:
            return np.nan, np.nan
        weights = weights / weights.sum()
        mean, n = float(weights @ means), len(means)
        if n < 2:
            return mean, np.nan
        return mean, float(np.sqrt(n / (n - 1) * (weights**2 @ (means - mean) ** 2)))

    def gaps(self) -> dict[tuple[tuple[int, int], tuple[int, int]], Array]:
        """Return E(first state) − E(state) of every geometry, eV, by the two states.

        (n_frames, n_systems) each.
        """
        states = list(self.state_energies)
        return {
            (states[0], state): self.state_energies[states[0]]
            - self.state_energies[state]
            for state in states[1:]
        }


def _by_state(source: "Series | Trajectory") -> dict[tuple[int, int], Array]:
    energies = source.state_energies
    return {state: energies[..., k] for k, state in enumerate(source.states)}


def _target(settings: Mapping[str, Any], times_fs: Array) -> Array | None:
    """Temperature asked for at each frame, (n_frames, n_systems or 1), K.

    Args:
        settings: as :meth:`mlff.dynamics.integrators.Integrator.settings` returns them.
        times_fs: of the frames.
    """
    target = {**settings, **settings.get("thermostat", {})}.get("temperature_K")
    if isinstance(target, Mapping):
        if "times_fs" not in target:  # a function, which no file can hold
            return None
        ramp = Ramp(times_fs=tuple(target["times_fs"]), values=tuple(target["values"]))
        return np.array([[ramp(time)] for time in times_fs])
    if target is None:
        return None
    return np.broadcast_to(np.atleast_2d(target), (len(times_fs), np.size(target)))


def mean_of(values: Array, where: NDArray[np.bool_]) -> Array:
    """Return the mean of each column over some rows; not a number where none is.

    Args:
        values: (n_frames, n_systems).
        where: which of them count, likewise.
    """
    count = where.sum(0)
    total = np.where(where, values, 0.0).sum(0)
    return np.asarray(total / np.where(count > 0, count, np.nan))

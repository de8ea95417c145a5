"""Molecular dynamics of many systems at once, on any device.

:func:`run_md` takes ASE systems, each with its own charge, multiplicity, cell, periodic
axes, masses, velocities and fixed atoms, and moves all of them together: one model call
a step. Frames go to one HDF5 file (:mod:`mlff.trajectory`), each a point from which a
killed run continues to the same numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor
from tqdm import tqdm

from mlff.device import exact
from mlff.dynamics.integrators import Integrator, is_number
from mlff.dynamics.limits import Limits, Status, Watch
from mlff.dynamics.phase import MDState
from mlff.dynamics.record import Recorder
from mlff.errors import InputError, InputTypeError
from mlff.forcefield import ForceField
from mlff.potential import Potential
from mlff.start import Start, check_states, digest
from mlff.trajectory.layout import Frame, Layout
from mlff.trajectory.series import Series


@dataclass(frozen=True, kw_only=True)
class MDOptions:
    """What a run may be told beyond the usual.

    Attributes:
        limits: bounds that freeze a system.
        states: (charge, multiplicity) pairs whose energies are recorded at every frame
            at the geometries of that frame, whatever state drives the motion: gaps.
        skin_A: margin of the neighbor lists, Å; ``None`` for what suits the device.
        overwrite: replace an existing trajectory.
        progress: show a bar.
    """

    limits: Limits = field(default_factory=Limits)
    states: Sequence[tuple[int, int]] = ()
    skin_A: float | None = None
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.limits, Limits):
            raise InputTypeError(f"`limits` must be a Limits, got {self.limits!r}")
        if self.skin_A is not None:
            if not is_number(self.skin_A) or self.skin_A < 0:
                raise InputError(
                    f"`skin_A` must be zero or positive, got {self.skin_A!r}"
                )
            object.__setattr__(self, "skin_A", float(self.skin_A))
        if not isinstance(self.states, Iterable):
            raise InputError(
                f"`states` must hold (charge, multiplicity) pairs, got {self.states!r}"
            )
        # Kept: what can be read once would be empty at the second reading.
        object.__setattr__(self, "states", tuple(self.states))


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A system that passed a bound.

    Attributes:
        step: its last good step.
        reason: which bound.
    """

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class MDResult:
    """How a run ended.

    Attributes:
        atoms: the systems at the last step, in order: positions, cell, momenta, energy
            and forces; of a frozen system its last good step.
        frozen: what was stopped, by index.
        outside: how systems have left the region seen in training (:mod:`mlff.region`)
            at the last step, in words, by index; empty if the model records none.
        series: energies and temperatures of every system at every frame.
        n_steps: steps made.
    """

    atoms: list[Atoms]
    frozen: dict[int, Frozen]
    outside: dict[int, str]
    series: Series
    n_steps: int


def run_md(
    systems: Sequence[Atoms],
    potential: Potential,
    integrator: Integrator,
    *,
    n_steps: int,
    trajectory: str | Path | None = None,
    every: int = 10,
    resume: bool = False,
    options: MDOptions | None = None,
) -> MDResult:
    """Move many systems together.

    Velocities are taken from the systems; those that come at rest get velocities of the
    integrator's temperature. ``FixAtoms`` constraints hold. Nothing given is modified.

    Args:
        systems: ASE systems, each with its charge and spin (2S+1) in ``info``.
        potential: on the device to run on.
        integrator: :class:`mlff.VelocityVerlet`, :class:`mlff.Langevin`, …
        n_steps: length of the run, counted from its beginning also when resumed.
        trajectory: HDF5 file to write, suffix ``.h5``; read it with
            :class:`mlff.Trajectory`.
        every: steps between frames.
        resume: continue the run in ``trajectory`` if there is one. The systems and
            settings must be the same; only ``n_steps`` may grow.
        options: limits, recorded states, and more.

    Returns:
        The last step and what was recorded.

    Raises:
        InputError: whatever is wrong with the systems or settings, before any step.
    """
    options = MDOptions() if options is None else options
    _check_call(potential, integrator, n_steps, every, options)
    n_steps, every = int(n_steps), int(every)
    with torch.no_grad(), exact(potential.device):
        run = _Run(systems, potential, integrator, options)
        recorder = Recorder(
            run.layout(),
            run.header(every),
            None if trajectory is None else Path(trajectory),
            n_frames=n_steps // every + 1,
            resume=resume,
            overwrite=options.overwrite,
        )
        with closing(recorder):
            run.go(recorder, n_steps, every)
        return run.result(recorder.series())


def _check_call(
    potential: Any, integrator: Any, n_steps: Any, every: Any, options: Any
) -> None:
    if not isinstance(options, MDOptions):
        raise InputTypeError(
            f"`options` must be an MDOptions, got {type(options).__name__}"
        )
    if not isinstance(potential, Potential):
        raise InputTypeError(
            "`potential` must be a Potential, for example mlff.load('ch2'), got "
            f"{type(potential).__name__}"
        )
    potential.check_properties(("energy", "forces"), False)
    options.limits.check(potential)
    if not isinstance(integrator, Integrator):
        raise InputTypeError(
            "`integrator` must be one of mlff's, for example mlff.Langevin(...), got "
            f"{integrator!r}"
        )
    for name, value, lowest in (("n_steps", n_steps, 0), ("every", every, 1)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < lowest:
            raise InputError(f"`{name}` must be an integer ≥ {lowest}, got {value!r}")


class _Run:
    """The systems on the device, what moves them, and what has become of them."""

    def __init__(
        self,
        systems: Sequence[Atoms],
        potential: Potential,
        integrator: Integrator,
        options: MDOptions,
    ) -> None:
        self.systems, self.integrator, self.options = systems, integrator, options
        self.potential, device = potential, potential.device
        self.start = start = Start.from_atoms(systems, potential)
        check_states(potential, start.batch, options.states)
        batch = start.batch.to(device)
        self.forcefield = ForceField(
            potential,
            batch,
            skin=options.skin_A,
            stress=integrator.needs_stress,
            region=options.limits.watched(potential),
            deviation=options.limits.watches_deviation,
        )
        self.state = integrator.init(
            batch,
            self.forcefield,
            masses=start.masses.to(device),
            momenta=start.momenta.to(device),
            mobile=start.mobile.to(device),
        )
        self.watch = Watch.start(batch.n_systems, device)
        self._hold(self.state, self.state)

    def go(self, recorder: Recorder, n_steps: int, every: int) -> None:
        """Make all steps that are left."""
        if recorder.last is not None:
            if recorder.last.step > n_steps:
                raise InputError(
                    f"`n_steps`={n_steps} is less than the {recorder.last.step} steps "
                    "that the run has made; it may only grow"
                )
            self._restore(recorder.last)
        else:
            recorder.append(self.frame())
        for step in self._bar(n_steps, every):
            if step % every == 0:
                # A frame's forces come from a list made at its positions, so that a
                # resumed run sums in the same order and has the same last digit.
                self.forcefield.refresh()
            self._hold(self.state, self.integrator.step(self.state, self.forcefield))
            if step % every == 0:
                recorder.append(self.frame())

    def _hold(self, before: MDState, after: MDState) -> None:
        limits = self.options.limits
        self.state, self.watch = limits.hold(before, after, self.watch)

    def _bar(self, n_steps: int, every: int) -> Iterator[int]:
        first = self.state.step
        with tqdm(
            total=n_steps,
            initial=first,
            desc="md",
            unit="step",
            disable=not self.options.progress,
        ) as bar:
            for step in range(first + 1, n_steps + 1):
                yield step
                if step % every == 0 or step == n_steps:
                    bar.update(step - bar.n)
                    if not bar.disable:
                        bar.set_postfix_str(self._described(bar), refresh=False)

    def _described(self, bar: Any) -> str:
        rate = bar.format_dict["rate"] or 0.0
        live = self.watch.status == Status.RUNNING
        temperature = float(self.state.temperature()[live].mean())
        ns_per_day = rate * self.integrator.timestep_fs * 86400e-6
        return (
            f"{temperature:.0f} K, {ns_per_day:.3g} ns/day each, "
            f"{int(live.sum())} of {len(live)} systems run"
        )

    def frame(self) -> Frame:
        """Return the state as what a trajectory holds."""
        state, watch = self.state, self.watch
        out = {
            "positions": state.batch.positions,
            "momenta": state.momenta,
            "cell": state.batch.cell,
            "energy": state.energy,
            "kinetic": state.kinetic_energy(),
            "heat": state.heat,
            "status": watch.status,
            "status_step": watch.step,
            "state_energies": self._state_energies(),
        }
        return Frame(
            step=state.step,
            **{name: value.cpu().numpy() for name, value in out.items()},
        )

    def _state_energies(self) -> Tensor:
        states = self.options.states
        if not states:
            return self.state.energy.new_zeros(len(self.state.energy), 0)
        return self.forcefield.state_energies(self.state.batch, states)

    def _restore(self, frame: Frame) -> None:
        device = self.potential.device

        def there(array: np.ndarray[Any, Any]) -> Tensor:
            return torch.from_numpy(np.array(array)).to(device)

        batch = self.state.batch.replace(
            positions=there(frame.positions), cell=there(frame.cell)
        )
        self.forcefield.refresh()
        state = self.state.replace(
            batch=batch,
            momenta=there(frame.momenta),
            heat=there(frame.heat),
            step=int(frame.step),
        ).evaluated(self.forcefield(batch))
        # Of a frozen system the energy is older than this list.
        self.state = state.replace(energy=there(frame.energy))
        self.watch = Watch(status=there(frame.status), step=there(frame.status_step))

    def layout(self) -> Layout:
        """Return what of the systems stays as it is."""
        state = self.state
        return Layout.from_batch(
            state.batch,
            masses=state.masses,
            mobile=state.mobile,
            dof=state.dof,
            seed=state.seed,
            names=[atoms.get_chemical_formula() for atoms in self.systems],
            states=self.options.states,
            variable_cell=self.integrator.needs_stress,
        )

    def header(self, every: int) -> dict[str, Any]:
        """Return what must be the same for a run to be resumed."""
        options = self.options
        return {
            **self.integrator.settings(),
            "every": every,
            "states": [list(map(int, state)) for state in options.states],
            "skin_A": options.skin_A,
            "limits": options.limits.settings(),
            "potential": digest(*self.potential.state_dict().values()),
            "dtype": str(self.potential.dtype).removeprefix("torch."),
            "device": self.potential.device.type,
            "start": self.start.digest(),
        }

    def _outside(self) -> dict[int, str]:
        info, limits = self.potential.info, self.options.limits
        if not info.region:
            return {}
        region = replace(limits, region="freeze").watched(self.potential)
        assert region is not None
        reasons = region.reasons(self.state.batch)
        return {index: text for index, text in enumerate(reasons) if text}

    def result(self, series: Series) -> MDResult:
        """Return how it ended."""
        status = self.watch.status.tolist()
        steps = self.watch.step.tolist()
        frozen = {
            index: Frozen(step=step, reason=Status(code).reason)
            for index, (code, step) in enumerate(zip(status, steps, strict=True))
            if code != Status.RUNNING
        }
        return MDResult(
            atoms=_atoms(self.systems, self.state),
            frozen=frozen,
            outside=self._outside(),
            series=series,
            n_steps=self.state.step,
        )


def _atoms(systems: Sequence[Atoms], state: MDState) -> list[Atoms]:
    """Return copies of the systems as they are now, with their results."""
    counts = [len(atoms) for atoms in systems]
    per_atom = [
        np.split(tensor.cpu().numpy(), np.cumsum(counts)[:-1])
        for tensor in (state.batch.positions, state.momenta, state.forces)
    ]
    cells, energies = state.batch.cell.cpu().numpy(), state.energy.tolist()
    out = []
    for index, (positions, momenta, forces) in enumerate(zip(*per_atom, strict=True)):
        atoms = systems[index].copy()
        # Not by set_positions, which keeps the type of what was there: float32, int.
        atoms.arrays["positions"] = positions.copy()
        atoms.arrays["momenta"] = momenta.copy()
        atoms.set_cell(cells[index])
        energy = energies[index]
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy, free_energy=energy, forces=forces.copy()
        )
        out.append(atoms)
    return out

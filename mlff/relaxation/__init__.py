"""Relaxing many systems at once, on any device.

:func:`relax` takes ASE systems, each with its own charge, multiplicity, cell, periodic
axes and fixed atoms, and moves all of them downhill together, one model call a step.
Batching is in flight: systems that have finished leave, waiting ones enter, so that a
thousand conformers cost what their steps cost. Cells stay as they are.
"""

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from tqdm import tqdm

from mlff.batch import AtomsBatch
from mlff.constraints import mobile_atoms
from mlff.coordinates import Coordinate
from mlff.device import exact
from mlff.dynamics.limits import Limits
from mlff.errors import InputError, InputTypeError
from mlff.inference import check_batch
from mlff.potential import Potential
from mlff.relaxation.descent import Optimizer
from mlff.relaxation.flight import Flight, FlightPlan
from mlff.relaxation.framelog import FrameLog
from mlff.relaxation.held import held_values
from mlff.relaxation.optimizers import FIRE, LBFGS
from mlff.relaxation.relaxed import Relaxed, Results
from mlff.start import check_contacts, digest

#: Optimizers by name.
OPTIMIZERS: dict[str, type[Optimizer[Any]]] = {"lbfgs": LBFGS, "fire": FIRE}

#: Steps between two looks at what has finished, by type of device: each look waits for
#: it. What finishes in between stays as it is, so that results do not depend on this.
CHECK_EVERY = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True, kw_only=True)
class RelaxOptions:
    """What a relaxation may be told beyond the usual.

    Attributes:
        limits: a move to a force beyond ``max_force_eV_per_A``, unless the force was
            still larger before, or with ``region="freeze"`` out of the region seen in
            training, is refused and tried again shorter; what gets no further that way
            stays where it is. There is no temperature to be limited.
        max_systems: systems in flight at a time; as many as fit into memory if not
            given.
        out: extended XYZ file that systems are appended to as they finish. It holds
            whole frames only, also after a kill.
        resume: take from ``out`` what has finished there, and relax the others.
            Systems and settings must be the same.
        overwrite: replace an existing ``out``.
        skin_A: margin of the neighbor lists, Å; ``None`` for what suits the device.
        progress: show a bar.
        hold: internal coordinates of every system that keep the values they begin
            with, like ``"angle 1 0 2"``. Forces of results are without their parts
            along these.
    """

    limits: Limits = field(default_factory=Limits)
    max_systems: int | None = None
    out: str | Path | None = None
    resume: bool = False
    overwrite: bool = False
    skin_A: float | None = None
    progress: bool = True
    hold: tuple[Coordinate | str, ...] = ()


def relax(
    systems: Sequence[Atoms],
    potential: Potential,
    fmax: float = 0.01,
    *,
    optimizer: str | Optimizer[Any] = "lbfgs",
    max_steps: int = 500,
    charge: Any = None,
    spin: Any = None,
    options: RelaxOptions | None = None,
) -> list[Relaxed]:
    """Move many systems downhill together, each until its forces are small.

    ``FixAtoms`` constraints hold; cells stay as they are. A system whose way leads to
    what is no number, or to an explosion, ends at its last good geometry, and the
    others go on. Nothing given is modified. One that starts on a ridge by symmetry
    falls to the side that rounding decides: rattle it.

    Args:
        systems: ASE systems, each with its charge and spin (2S+1) in ``info``.
        potential: on the device to run on.
        fmax: a system has converged when the force on each of its atoms that may move
            is shorter than this, eV/Å.
        optimizer: ``"lbfgs"``, ``"fire"``, or an ``mlff.LBFGS`` or ``mlff.FIRE`` with
            settings of its own.
        max_steps: of each system.
        charge: total charge, e: one for all or one per system; read from each
            ``atoms.info`` unless given, and in agreement with it.
        spin: multiplicity 2S+1, likewise.
        options: bounds, a file for results, and more.

    Returns:
        One result per system, in order.

    Raises:
        InputError: whatever is wrong with a system or a setting, before any step; the
            text names the system.
    """
    options = RelaxOptions() if options is None else options
    method = as_optimizer(optimizer)
    _check_call(potential, fmax, max_steps, options)
    with torch.no_grad(), exact(potential.device), ExitStack() as stack:
        whole = AtomsBatch.from_atoms(systems, charge, spin)
        if whole.n_systems == 0:
            return []
        check_batch(potential, whole)
        check_contacts(whole)
        mobile = mobile_atoms(systems)
        plan = FlightPlan(
            potential=potential,
            optimizer=method,
            fmax=float(fmax),
            max_steps=int(max_steps),
            max_force=options.limits.max_force_eV_per_A,
            region=options.limits.watched(potential),
            max_systems=options.max_systems,
            skin=options.skin_A,
            hold=_hold(options.hold, mobile),
        )
        targets = held_values(whole, plan.hold)
        results = Results(systems, whole, mobile)
        if options.out is not None:
            log = stack.enter_context(_log(Path(options.out), options))
            results.record(log, _settings(plan, options.limits))
        flight = Flight(plan, whole, mobile, targets, results.missing())
        n_steps = CHECK_EVERY[potential.device.type]
        with _Bar(len(systems), results, options.progress) as bar:
            while flight.exchange():
                flight.go(n_steps)
                results.add(flight.landings())
                bar.show(flight, n_steps)
        return results.ordered()


class _Bar:
    """Shows how many systems have finished, and how quickly the others move."""

    def __init__(self, total: int, results: Results, visible: bool) -> None:
        self._results = results
        self._bar = tqdm(
            total=total,
            initial=total - len(results.missing()),
            desc="relax",
            unit="system",
            disable=not visible,
        )
        self._began, self._made = time.monotonic(), 0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, flight: Flight, n_steps: int) -> None:
        """Show where a flight is after some more steps."""
        self._made += n_steps
        if self._bar.disable:
            return
        rate = self._made / (time.monotonic() - self._began)
        self._bar.set_postfix_str(
            f"{self._results.n_converged} converged, {flight.n_live} in flight, "
            f"{rate:.3g} steps/s, largest force {flight.largest_force():.2g} eV/Å",
            refresh=False,
        )
        self._bar.update(self._results.n_finished - self._bar.n)


def _log(path: Path, options: RelaxOptions) -> FrameLog:
    return FrameLog(path, resume=options.resume, overwrite=options.overwrite)


def _settings(plan: FlightPlan, limits: Limits) -> str:
    """Return all that a result depends on beside its system."""
    content = {
        "optimizer": type(plan.optimizer).__name__,
        **asdict(plan.optimizer),
        "fmax": plan.fmax,
        "max_steps": plan.max_steps,
        "limits": limits.settings(),
        "potential": digest(*plan.potential.state_dict().values()),
        "dtype": str(plan.potential.dtype),
    }
    if plan.hold:  # left out else, so that older files can be resumed
        content["hold"] = list(map(str, plan.hold))
    return json.dumps(content)


def _hold(given: Any, mobile: Tensor) -> tuple[Coordinate, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputTypeError(
            f"`hold` must be a list of coordinates like 'angle 1 0 2', got {given!r}"
        )
    hold = tuple(map(Coordinate.of, given))
    if hold and not mobile.all():
        raise InputError(
            "`hold` and FixAtoms cannot be had together; remove the constraints with "
            "atoms.set_constraint()"
        )
    for k, one in enumerate(hold):
        if any(map(one.same_as, hold[:k])):
            raise InputError(f"`hold` names {one} twice")
    return hold


def as_optimizer(optimizer: Any) -> Optimizer[Any]:
    """Return an optimizer, or that of a name.

    Raises:
        InputError: neither.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise InputError(
            f"`optimizer` must be one of {sorted(OPTIMIZERS)} or an instance from "
            f"mlff.relaxation.optimizers, got {optimizer!r}"
        )
    return OPTIMIZERS[optimizer]()


def _check_call(
    potential: Any, fmax: Any, max_steps: Any, options: RelaxOptions
) -> None:
    if not isinstance(options, RelaxOptions):
        raise InputTypeError(
            f"`options` must be a RelaxOptions, got {type(options).__name__}"
        )
    if not isinstance(options.limits, Limits):
        raise InputTypeError(f"`limits` must be a Limits, got {options.limits!r}")
    if options.limits.watches_deviation:
        raise InputError(
            "`limits.max_deviation_eV_per_A` is for dynamics; after a relaxation ask "
            "mlff.deviations(committee, systems)"
        )
    if not isinstance(potential, Potential):
        raise InputTypeError(
            "`potential` must be a Potential, for example mlff.load('ch2'), got "
            f"{type(potential).__name__}"
        )
    potential.check_properties(("energy", "forces"), False)
    check_end(fmax, max_steps)
    if options.max_systems is not None:
        _check_count("max_systems", options.max_systems, 1)
    if options.resume and options.out is None:
        raise InputError("`resume` needs `out`, the file to go on with")


def check_end(fmax: Any, max_steps: Any) -> None:
    """Raise unless a relaxation can end at a force, eV/Å, or after a number of steps.

    Raises:
        InputError: naming the argument.
    """
    real = isinstance(fmax, Real) and not isinstance(fmax, bool)
    if not real or not 0 < fmax < math.inf:
        raise InputError(f"`fmax` must be a positive number, eV/Å, got {fmax!r}")
    _check_count("max_steps", max_steps, 0)


def _check_count(name: str, value: Any, lowest: int) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not lowest <= value < 2**63:
        raise InputError(f"`{name}` must be an integer ≥ {lowest}, got {value!r}")

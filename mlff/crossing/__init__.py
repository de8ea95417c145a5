"""Minimum-energy crossing points of two electronic states.

Where two states of different charge or multiplicity have the same energy they form a
seam of one dimension less than the geometries; spin-forbidden reactions pass near its
lowest point. The search minimizes the mean energy subject to a vanishing gap
(:mod:`mlff.crossing.descent`), of any two states of a potential, or of any ASE
calculator that reads charge and spin from ``atoms.info``.

The effective gradient is that of Koga and Morokuma, Chem. Phys. Lett. 119, 371 (1985):
what is left of the gradient of the mean energy without its part along the gradient of
the gap. Both vanish together, the gap and the effective gradient, at a crossing point.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from ase import Atoms
from tqdm import tqdm

from mlff.batch import check_geometry
from mlff.crossing.descent import Ending, Point, Task, descend, described
from mlff.crossing.found import Crossing, Minimum, lowest, with_results
from mlff.crossing.geometry import Array, Freedom
from mlff.crossing.surfaces import FAILURES, Surfaces, in_state
from mlff.errors import InputError, InputTypeError
from mlff.relaxation import check_end
from mlff.state import State, as_integer

__all__ = ["Crossing", "CrossingOptions", "Minimum", "find_crossing", "profile"]

# How often the gap alone is made smaller, where the seam was out of reach.
_TRIES = 3

_MEAN, _DIFFERENCE = np.array([0.5, 0.5]), np.array([1.0, -1.0])


@dataclass(frozen=True, kw_only=True)
class CrossingOptions:
    """What a search may be told beyond the usual.

    Attributes:
        gap_eV: largest gap that may be left.
        rattle_A: the start is displaced at random by this, the same way every time: by
            symmetry forces would hold a linear or planar molecule where it is.
        minima: relax both states too, from the crossing and from the start.
        progress: show a bar.
    """

    gap_eV: float = 1e-4
    rattle_A: float = 0.02
    minima: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        _check_positive("gap_eV", self.gap_eV)
        if self.rattle_A != 0:
            _check_positive("rattle_A", self.rattle_A)


def find_crossing(
    atoms: Atoms,
    potential: Any,
    states: Sequence[tuple[int, int]],
    constraints: Sequence[Any] = (),
    *,
    fmax: float = 0.002,
    max_steps: int = 200,
    options: CrossingOptions | None = None,
) -> Crossing:
    """Find the lowest point, near a geometry, at which two states have one energy.

    What comes out is a local minimum on the seam. States that do not cross near the
    start end with ``converged=False`` near the geometry of the smallest gap found, and
    with the reason. ``FixAtoms`` constraints hold. What a potential gives outside of
    the region that it has seen is searched for once more, from the minimum of the mean
    energy; if that leads inside, it is taken.

    Args:
        atoms: where to start, a molecule; charge and spin in it are not looked at. It
            may be far from the crossing. Not modified.
        potential: a :class:`Potential`, which evaluates both states in one call, or an
            ASE calculator that reads charge and spin (2S+1) from ``atoms.info``.
        states: two (charge, multiplicity 2S+1).
        constraints: internal coordinates that keep a value, like
            ``("bond", 0, 1, 1.00)`` or ``"angle 1 0 2 105"``, Å and degrees; that of
            the start where no value is given.
        fmax: largest effective gradient on an atom that may be left, eV/Å.
        max_steps: geometries that the search may try; as many for each minimum.
        options: tolerances and more.

    Returns:
        The crossing, or what was found instead: see ``converged``.

    Raises:
        InputError: whatever is wrong with the molecule, the states or the constraints,
            before any step; a calculator without forces, with what is no number at the
            start, or with the same energies in both states.
        StateError: a state that the molecule cannot have.
        InputTypeError: neither a potential nor a calculator.
    """
    options = CrossingOptions() if options is None else options
    _check_call(atoms, fmax, max_steps, options)
    pair = _two_states(states)
    freedom = Freedom(atoms, constraints)
    surfaces = Surfaces(potential, atoms, pair)
    start = _start(atoms, freedom, options.rattle_A)
    surfaces.check(start)
    task = Task(
        weights=_MEAN,
        seam=_DIFFERENCE,
        fmax=float(fmax),
        gap_eV=float(options.gap_eV),
        max_steps=int(max_steps),
    )
    minima: tuple[Minimum, ...] = ()
    with _Bar(options.progress) as bar:
        path, reason = _search(surfaces, freedom, start, task, bar)
        if surfaces.outside(path[-1].positions):
            path, reason = _again(surfaces, freedom, path, reason, task, bar)
        if options.minima:
            free = Freedom(atoms)
            starts = (path[-1].positions, _start(atoms, free, options.rattle_A))
            alone = replace(task, weights=np.ones(1), seam=None, gap_eV=math.inf)
            minima = tuple(
                _minimum(Surfaces(potential, atoms, [one]), free, starts, alone, bar)
                for one in pair
            )
    last = path[-1]
    energies, gradients = last.values
    found = in_state(atoms, pair[0])
    found.arrays["positions"] = last.positions.copy()
    found.set_constraint(atoms.constraints)
    return Crossing(
        atoms=with_results(found, float(energies[0]), gradients[0]),
        states=pair,
        energies=(float(energies[0]), float(energies[1])),
        fmax=last.fmax,
        gap_slope=last.gap_slope,
        held=tuple(freedom.held),
        residuals=freedom.residuals(last.positions),
        difference=gradients[0] - gradients[1],
        mean=gradients.mean(0),
        minima=minima,
        path=tuple(path),
        n_calls=surfaces.n_calls,
        converged=not reason,
        reason=reason,
        outside=surfaces.outside(last.positions),
        unseen=surfaces.unseen,
    )


def profile(
    crossing: Crossing, potential: Any, reach_A: float = 0.3, n_points: int = 31
) -> tuple[Array, Array]:
    """Return both energies along the line on which the gap changes most.

    Args:
        crossing: the line goes through it, along the gradient of the gap without its
            part along held coordinates.
        potential: as of :func:`find_crossing`.
        reach_A: length of the line to each side, Å, in the space of all atoms.
        n_points: on the line, its ends included.

    Returns:
        Places on the line, (n_points,), Å, zero at the crossing, and energies,
        (n_points, 2), eV; not a number where there is none.

    Raises:
        InputError: a gap without a gradient.
    """
    freedom = Freedom(crossing.atoms, crossing.held)
    direction = freedom.along(crossing.atoms.positions, crossing.difference)
    length = float(np.linalg.norm(direction))
    if not length > 0:
        raise InputError("`crossing` has a gap without a gradient: there is no line")
    surfaces = Surfaces(potential, crossing.atoms, crossing.states)
    places = np.linspace(-reach_A, reach_A, n_points)
    energies = np.full((n_points, 2), np.nan)
    for k, place in enumerate(places):
        moved = crossing.atoms.positions + place / length * direction
        with suppress(*FAILURES):
            energies[k] = surfaces(moved).energies
    return places, energies


def _search(
    surfaces: Surfaces, freedom: Freedom, start: Array, task: Task, bar: "_Bar"
) -> tuple[list[Point], str]:
    """Return the way to the crossing, and why it did not get there, if so.

    Where steps along the seam lead nowhere, the gap alone is made smaller, until it
    changes its sign, which is another start, or has a minimum, which is the reason.
    """
    path: list[Point] = []
    left = task.max_steps
    for _ in range(_TRIES):
        ending = descend(
            surfaces, freedom, start, replace(task, max_steps=left), bar.crossing
        )
        path += ending.path
        left -= ending.n_steps
        last = path[-1]
        flat = last.gap_slope <= task.flat
        if abs(last.gap) <= task.gap_eV or flat or left <= 0:
            break
        nearest = min(path, key=lambda point: abs(point.gap))
        gap_alone = replace(
            task,
            weights=math.copysign(1.0, nearest.gap) * _DIFFERENCE,
            seam=None,
            gap_eV=math.inf,
            max_steps=left,
            floor=0.0,
        )
        closing = descend(surfaces, freedom, nearest.positions, gap_alone, bar.crossing)
        path += [described(freedom, p.positions, p.values, task) for p in closing.path]
        left -= closing.n_steps
        start = path[-1].positions
        if closing.path[-1].objective > 0 or left <= 0:
            ending = closing
            break
    return path, _explained(path, ending, task, bool(freedom.held))


def _again(
    surfaces: Surfaces,
    freedom: Freedom,
    path: list[Point],
    reason: str,
    task: Task,
    bar: "_Bar",
) -> tuple[list[Point], str]:
    """Search again from where the mean energy is lowest, and return what is better.

    Far from what it has seen a model has crossings that mean nothing.
    """
    mean = replace(task, seam=None, gap_eV=math.inf)
    relaxed = descend(surfaces, freedom, path[0].positions, mean, bar.minimum).path
    start = relaxed[-1].positions
    if surfaces.outside(start):
        return path, reason
    found, why = _search(surfaces, freedom, start, task, bar)
    if why or surfaces.outside(found[-1].positions):
        return path, reason
    way = [described(freedom, p.positions, p.values, task) for p in relaxed]
    return [*way, *found], why


def _explained(path: list[Point], ending: Ending, task: Task, held: bool) -> str:
    """Return in words why a search did not find a crossing; empty if it did."""
    last = path[-1]
    if abs(last.gap) <= task.gap_eV and last.fmax <= task.fmax:
        return ""
    smallest = min(abs(point.gap) for point in path)
    if abs(last.gap) > task.gap_eV and last.gap_slope <= task.flat:
        what = " with these coordinates held" if held else ""
        return (
            f"the states do not cross near the start{what}: the gap is "
            f"{last.gap:+.4f} eV where its gradient vanishes (below {task.flat:g} "
            f"eV/Å), and at no point of the search below {smallest:.4f} eV"
        )
    return f"{ending.reason}; the smallest gap on the way was {smallest:.4f} eV"


def _minimum(
    surfaces: Surfaces,
    freedom: Freedom,
    starts: Sequence[Array],
    task: Task,
    bar: "_Bar",
) -> Minimum:
    """Return the lowest minimum of one state that is reached from the starts."""
    found = []
    for start in starts:
        ending = descend(surfaces, freedom, start, task, bar.minimum)
        last = ending.path[-1]
        atoms = surfaces.atoms[0].copy()
        atoms.arrays["positions"] = last.positions.copy()
        energy = float(last.values.energies[0])
        with_results(atoms, energy, last.values.gradients[0])
        found.append(Minimum(atoms=atoms, energy=energy, converged=not ending.reason))
    return lowest(found)


def _start(atoms: Atoms, freedom: Freedom, rattle_A: float) -> Array:
    """Return the start, displaced, with held coordinates at their values."""
    vector = freedom.vector(np.array(atoms.positions, np.float64))
    noise = np.random.default_rng(0).normal(size=vector.shape)
    met = freedom.met(vector + rattle_A * noise)
    if met is None:
        raise InputError(
            "`constraints` cannot be met together from this geometry: "
            f"{', '.join(map(str, freedom.held))}. Check that a molecule can have "
            "these values, and begin nearer to them"
        )
    return freedom.positions(met)


class _Bar:
    """Shows how far a search has come."""

    def __init__(self, visible: bool) -> None:
        self._bar = tqdm(desc="crossing", unit="step", disable=not visible)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def crossing(self, point: Point) -> None:
        """Show a point of the search."""
        first, second = point.values.energies
        self._show(f"gap {first - second:+.4f} eV, gradient {point.fmax:.2g} eV/Å")

    def minimum(self, point: Point) -> None:
        """Show a point on the way to a minimum."""
        self._show(f"minima, largest force {point.fmax:.2g} eV/Å")

    def _show(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()


def _two_states(states: Any) -> tuple[State, State]:
    """Read two different states.

    Raises:
        InputError: anything else.
    """
    listed = list(states) if isinstance(states, Iterable) else []
    pairs = [one if isinstance(one, State) else _state(one) for one in listed]
    if len(pairs) != 2 or pairs[0] == pairs[1]:
        got = " and ".join(map(str, listed)) or repr(states)
        raise InputError(
            "`states` must be two different (charge, multiplicity 2S+1), like (0, 1) "
            f"and (0, 3), got {got}"
        )
    return pairs[0], pairs[1]


def _state(given: Any) -> State:
    pair = tuple(given) if isinstance(given, (tuple, list)) else ()
    if len(pair) != 2:
        raise InputError(
            "`states` must hold (charge, multiplicity 2S+1), like (0, 3), got "
            f"{given!r}"
        )
    return State(as_integer(pair[0], "charge"), as_integer(pair[1], "spin"))


def _check_call(
    atoms: Any, fmax: Any, max_steps: Any, options: CrossingOptions
) -> None:
    if not isinstance(options, CrossingOptions):
        raise InputTypeError(
            f"`options` must be a CrossingOptions, got {type(options).__name__}"
        )
    check_geometry(atoms)
    if atoms.pbc.any():
        raise InputError(
            "`atoms` is periodic, but a crossing is that of a molecule; switch it off "
            "with atoms.pbc = False"
        )
    check_end(fmax, max_steps)


def _check_positive(name: str, value: Any) -> None:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not 0 < value < math.inf:
        raise InputError(f"`{name}` must be a positive number, got {value!r}")

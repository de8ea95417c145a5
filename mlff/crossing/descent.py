"""Constrained minimization with few energies: on a seam of two states, or of one state.

Minimizes ``f = w·E`` over geometries, subject to ``s·E = 0`` if there is a seam, with
E the energies of the states. Sequential quadratic programming with a trust region, in
the manner of Byrd and Omojokun (Nocedal, Wright, Numerical Optimization, 2006, section
18.5): a step is a Newton step towards the seam, at most 0.8 of the trust radius, and
one along the tangent space that lowers the quadratic model of the Lagrangian. Steps are
judged by the augmented Lagrangian ``f + λ gap + ½ μ gap²``, which lets long steps along
a curved seam pass (their section 17.3).

Each state has a symmetric rank-one approximation of its Hessian, and so has each held
coordinate, from every geometry visited; that of the Lagrangian is their sum with the
multipliers of the moment, which may change sign and size from step to step. Overall
translation and rotation have no gradient, and so no part in any step.

Of SciPy, ``SLSQP`` needs a tenth to a third more geometries, does not see when to stop
for the noise of float32, and has no way around a geometry that cannot be computed;
``trust-constr`` needs up to three times as many (``benchmarks/crossings.py``).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mlff.crossing.geometry import Array, Freedom
from mlff.crossing.surfaces import FAILURES, Surfaces, Values

# Curvature of an energy before anything is known of it, eV/Å²: between that of a bond
# and that of a bend. No curvature along a step is taken to be below the second.
_STIFFNESS, _SOFTEST = 10.0, 0.05

# Trust radii, Å, times the square root of the number of mobile atoms.
_FIRST_RADIUS, _LAST_RADIUS = 0.15, 0.5

# Steps shorter than this, Å, lead nowhere.
_SHORTEST = 1e-5

# Changes of energies below this are noise of a float32 network, eV.
_NOISE = 1e-5

# A step is made if at least this part of the expected gain is there; others as usual.
_ENOUGH, _POOR, _GOOD = 0.1, 0.25, 0.7

# Of the trust radius, at most this goes towards the seam.
_TOWARDS = 0.8

# After so many steps that should have gone further towards the seam it is given up.
_PATIENCE = 25

# Gradients of the gap below this, eV/Å, lead to no seam.
_FLAT = 0.01

# Multipliers of the gap beyond this come from a gradient that is about to vanish.
_LARGEST_MULTIPLIER = 10.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to minimize, and until when.

    Attributes:
        weights: of the energies of the states in what is minimized, (n_states,).
        seam: of the energies in the gap that is to vanish; ``None`` for no seam.
        fmax: largest effective gradient on an atom that may be left, eV/Å.
        gap_eV: largest gap that may be left.
        max_steps: how many geometries may be tried.
        floor: what is minimized need not go below this, eV.
    """

    weights: Array
    seam: Array | None = None
    fmax: float
    gap_eV: float = math.inf
    max_steps: int
    floor: float = -math.inf

    @property
    def flat(self) -> float:
        """Gradient of the gap on an atom below which it vanishes, eV/Å."""
        return min(self.fmax, _FLAT)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A geometry of a search, and what is known there.

    Attributes:
        positions: (n_atoms, 3), Å.
        values: energies and gradients of the states.
        objective: what is minimized, eV.
        gap: weighted by ``Task.seam``, eV; zero without a seam.
        gap_slope: largest gradient of the gap on an atom, without its part along held
            coordinates, eV/Å.
        fmax: largest gradient of the objective on an atom, without its parts along the
            gradient of the gap and along held coordinates, eV/Å.
    """

    positions: Array
    values: Values
    objective: float
    gap: float
    gap_slope: float
    fmax: float


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a search ended.

    Attributes:
        path: the points that it went through; the last is where it ended.
        n_steps: geometries tried.
        reason: why it has not converged; empty if it has.
    """

    path: list[Point]
    n_steps: int
    reason: str


class _Local(NamedTuple):
    """A point to first order, in the coordinates that may move."""

    vector: Array  # (d,), Å
    point: Point
    slope: Array  # of the objective, (d,)
    rows: Array  # of the gap if there is one, then of held coordinates, (r, d)
    inverse: Array  # pseudo-inverse of the rows, (d, r)
    tangent: Array  # orthonormal basis of what no row sees, (d, t)
    gradients: Array  # of states, then of held coordinates, (k, d)
    multiplier: float  # of the gap in the Lagrangian
    weights: Array  # of states and held coordinates in the Lagrangian, (k,)


@dataclass
class _Memory:
    """What a search learns on its way."""

    hessians: Array
    radius: float
    penalty: float = 1.0
    failure: str = ""
    kept_off: int = 0
    path: list[Point] = field(default_factory=list)


def descend(
    surfaces: Surfaces,
    freedom: Freedom,
    start: Array,
    task: Task,
    show: Callable[[Point], None] = lambda point: None,
) -> Ending:
    """Minimize from one geometry on.

    Args:
        surfaces: the states.
        freedom: what may move.
        start: positions at which held coordinates are met, (n_atoms, 3), Å.
        task: what to minimize, and until when.
        show: called with each point of the path.

    Returns:
        Where it ended, and why.

    Raises:
        InputError: whatever the surfaces refuse at the start. Later geometries that
            they refuse shorten the steps.
    """
    vector = freedom.vector(start)
    here = _localize(freedom, vector, surfaces(start), task)
    n_curved = len(task.weights) + len(freedom.held)
    hessians = np.zeros((n_curved, freedom.size, freedom.size))
    hessians[: len(task.weights)] = _STIFFNESS * np.eye(freedom.size)
    scale = math.sqrt(freedom.size / 3)
    memory = _Memory(hessians, _FIRST_RADIUS * scale)
    search = _Search(surfaces, freedom, task, memory, _LAST_RADIUS * scale)
    while True:
        memory.path.append(here.point)
        show(here.point)
        if search.settled(here.point):
            return Ending(path=memory.path, n_steps=search.n_steps, reason="")
        moved = None
        while moved is None:
            reason = search.hopeless(here.point)
            if reason:
                return Ending(path=memory.path, n_steps=search.n_steps, reason=reason)
            moved = search.step(here)
        here = moved


class _Search:
    """Steps of one search."""

    def __init__(
        self,
        surfaces: Surfaces,
        freedom: Freedom,
        task: Task,
        memory: _Memory,
        largest: float,
    ) -> None:
        self._surfaces, self._freedom, self._task = surfaces, freedom, task
        self._memory, self._largest = memory, largest
        self.n_steps = 0

    def settled(self, point: Point) -> bool:
        """Whether a point is good enough."""
        task = self._task
        there = abs(point.gap) <= task.gap_eV and point.fmax <= task.fmax
        return there or point.objective <= task.floor

    def hopeless(self, point: Point) -> str:
        """Return why the search cannot go on, if so."""
        if abs(point.gap) > self._task.gap_eV and point.gap_slope <= self._task.flat:
            return (
                f"the gap is {point.gap:+.4f} eV where its gradient vanishes (below "
                f"{self._task.flat:g} eV/Å)"
            )
        if self._memory.kept_off > _PATIENCE:
            return f"the seam stayed out of reach for {_PATIENCE} steps"
        if self.n_steps >= self._task.max_steps:
            return f"not there after {self.n_steps} steps"
        if self._memory.radius < _SHORTEST:
            cause = self._memory.failure or "what is gained is not what gradients say"
            return f"no step longer than {_SHORTEST:g} Å leads further: {cause}"
        return ""

    def step(self, here: _Local) -> _Local | None:
        """Try one step; ``None`` if it was refused, and the next will be shorter."""
        memory = self._memory
        along, expected = self._proposal(here)
        there = self._visit(here, here.vector + along)
        ratio = self._gain(here, there, expected)
        length = float(np.linalg.norm(along))
        if there is None or ratio < _ENOUGH:
            memory.radius = (0.5 if ratio > -1 else 0.25) * length
            return None
        if ratio < _POOR:
            memory.radius = 0.5 * length
        elif ratio > _GOOD and length > _TOWARDS * memory.radius:
            memory.radius = min(2 * memory.radius, self._largest)
        return there

    def _proposal(self, here: _Local) -> tuple[Array, float]:
        """Return a step and how much it should lower the merit, eV."""
        memory, gap = self._memory, here.point.gap
        hessian = np.einsum("k,kde->de", here.weights, memory.hessians)
        towards = np.zeros_like(here.vector)
        if self._task.seam is not None:
            towards = -here.inverse[:, 0] * gap
            longest, distance = _TOWARDS * memory.radius, float(np.linalg.norm(towards))
            memory.kept_off = memory.kept_off + 1 if distance > longest else 0
            if distance > longest:
                towards *= longest / distance
        room = math.sqrt(memory.radius**2 - towards @ towards)
        curvatures, modes = np.linalg.eigh(here.tangent.T @ hessian @ here.tangent)
        basis = here.tangent @ modes
        slopes = basis.T @ (here.slope + hessian @ towards)
        # Saddle-free: the absolute curvature leads away from what is no minimum.
        stiff = np.maximum(np.abs(curvatures), _SOFTEST)
        along = towards - basis @ _within(slopes, stiff, room)
        change = here.slope @ along + 0.5 * along @ hessian @ along
        closing = 0.0
        if self._task.seam is not None:
            slope = here.rows[0] @ along
            change += here.multiplier * slope
            closing = 0.5 * (gap**2 - (gap + slope) ** 2)
        if closing > 0:
            memory.penalty = max(memory.penalty, change / (0.7 * closing))
        return along, float(memory.penalty * closing - change)

    def _visit(self, here: _Local, vector: Array) -> _Local | None:
        """Evaluate a geometry and learn from it; ``None`` where nothing is known."""
        met = self._freedom.met(vector)
        if met is None:
            self._memory.failure = "held coordinates cannot be met"
            return None
        self.n_steps += 1
        try:
            values = self._surfaces(self._freedom.positions(met))
        except FAILURES as error:
            self._memory.failure = " ".join(str(error).split())
            return None
        if not values.finite:
            self._memory.failure = "energies or forces are not finite"
            return None
        there = _localize(self._freedom, met, values, self._task)
        change = met - here.vector
        for hessian, new, old in zip(
            self._memory.hessians, there.gradients, here.gradients, strict=True
        ):
            _learn(hessian, change, new - old)
        return there

    def _gain(self, here: _Local, there: _Local | None, expected: float) -> float:
        """Return the part of the expected gain that is there."""
        if there is None:
            return -math.inf
        gained = here.point.objective - there.point.objective
        gained += here.multiplier * (here.point.gap - there.point.gap)
        gained += 0.5 * self._memory.penalty * (here.point.gap**2 - there.point.gap**2)
        return (gained + _NOISE) / (expected + _NOISE)


def described(freedom: Freedom, positions: Array, values: Values, task: Task) -> Point:
    """Return a point as a task sees it.

    Args:
        freedom: what may move.
        positions: (n_atoms, 3), Å.
        values: energies and gradients there.
        task: says what gap and gradients are meant.
    """
    gradients = freedom.vector(values.gradients)
    held = freedom.rows(freedom.vector(positions))
    rows, gap, gap_slope = held, 0.0, np.zeros(freedom.size)
    if task.seam is not None:
        gap, gap_slope = float(task.seam @ values.energies), task.seam @ gradients
        rows = np.vstack([gap_slope, held])
    return Point(
        positions=positions,
        values=values,
        objective=float(task.weights @ values.energies),
        gap=gap,
        gap_slope=_longest(_split(held)[1], gap_slope),
        fmax=_longest(_split(rows)[1], task.weights @ gradients),
    )


def _localize(freedom: Freedom, vector: Array, values: Values, task: Task) -> _Local:
    """Return a point and what is known about it to first order."""
    gradients = freedom.vector(values.gradients)
    slope = task.weights @ gradients
    held = freedom.rows(vector)
    rows = held
    if task.seam is not None:
        rows = np.vstack([task.seam @ gradients, held])
    inverse, tangent = _split(rows)
    multipliers = -inverse.T @ slope
    of_states, of_gap = task.weights, 0.0
    if task.seam is not None:
        most = _LARGEST_MULTIPLIER
        of_gap = float(np.clip(multipliers[0], -most, most))
        of_states = of_states + of_gap * task.seam
    return _Local(
        vector=vector,
        point=described(freedom, freedom.positions(vector), values, task),
        slope=slope,
        rows=rows,
        inverse=inverse,
        tangent=tangent,
        gradients=np.vstack([gradients, held]),
        multiplier=of_gap,
        weights=np.concatenate([of_states, multipliers[len(rows) - len(held) :]]),
    )


def _split(rows: Array) -> tuple[Array, Array]:
    """Return the pseudo-inverse of rows, and a basis of what they do not see."""
    if not len(rows):
        return np.zeros(rows.T.shape), np.eye(rows.shape[1])
    left, sizes, right = np.linalg.svd(rows)
    rank = int((sizes > 1e-7 * max(1.0, sizes[0])).sum())
    inverse = right[:rank].T @ (left[:, :rank] / sizes[:rank]).T
    return inverse, right[rank:].T


def _longest(tangent: Array, slope: Array) -> float:
    """Return the longest gradient on an atom, of its part in a space, eV/Å."""
    seen = tangent @ (tangent.T @ slope)
    return float(np.linalg.norm(seen.reshape(-1, 3), axis=1).max())


def _within(slopes: Array, stiff: Array, room: float) -> Array:
    """Minimize ``½ Σ k t² − Σ g t`` within a ball; stiffnesses k are positive."""
    if np.linalg.norm(slopes / stiff) <= room:
        return slopes / stiff
    low, high = 0.0, float(np.linalg.norm(slopes)) / room
    for _ in range(50):
        middle = 0.5 * (low + high)
        too_long = np.linalg.norm(slopes / (stiff + middle)) > room
        low, high = (middle, high) if too_long else (low, middle)
    return slopes / (stiff + high)


def _learn(hessian: Array, change: Array, turned: Array) -> None:
    """Let a Hessian explain how a gradient has turned: symmetric rank one, in place."""
    off = turned - hessian @ change
    weight = float(off @ change)
    small = 1e-8 * np.linalg.norm(off) * np.linalg.norm(change)
    if abs(weight) > small:
        hessian += np.outer(off, off) / weight

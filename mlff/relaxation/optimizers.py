"""Ways downhill: L-BFGS and FIRE for many systems at once.

What they share, and what a state is, says :mod:`mlff.relaxation.descent`. Units: eV
and Å.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.forcefield import Evaluation
from mlff.relaxation.descent import (
    ATOM,
    HISTORY,
    VECTOR_BYTES,
    Cause,
    Descent,
    Optimizer,
    started,
)

#: An energy may rise by this much per atom, eV: float32 networks do not resolve less.
ENERGY_NOISE = 1e-5

# What L-BFGS learns from a move needs a cosine of s and y beyond this: the curvature
# along it is then positive and not made of rounding errors.
_MIN_COSINE = 1e-4

# Where the surface does not bend up, γ grows by this factor: the way off a saddle would
# be crept else. Up to the largest γ; the cap on a step has the last word.
_BOLDER, _MAX_SCALE = 4.0, 1e3

# FIRE: growth of the time step on a good way, its fall on a bad one, decay of mixing.
_FASTER, _SLOWER, _MIXING_DECAY = 1.1, 0.5, 0.99


@dataclass(frozen=True, kw_only=True)
class LBFGSDescent(Descent):
    """State of :class:`LBFGS`.

    Attributes:
        moves: s_k of the last steps, newest first, (n_atoms, 3) each, Å.
        changes: y_k, the changes of the gradient along them, eV/Å.
        weights: ρ_k = 1/(s_k·y_k), (n_systems, memory), newest first; zero where the
            system has learned nothing.
        scale: γ, (n_systems,), Å²/eV.
    """

    moves: tuple[Tensor, ...] = field(metadata=HISTORY)
    changes: tuple[Tensor, ...] = field(metadata=HISTORY)
    weights: Tensor
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class LBFGS(Optimizer[LBFGSDescent]):
    """Quasi-Newton steps from a short history.

    Liu, Nocedal, Math. Program. 45, 503 (1989), algorithm 2.1 with their scaling M3:
    the direction is H F, with the inverse Hessian H that the pairs (s_k, y_k) make of
    γ = s·y/(y·y), taken from the newest of them. Instead of a line search, a step is as
    long as H says unless an atom would move too far, and is refused and shortened if
    the energy rises by more than :data:`ENERGY_NOISE` per atom. A refused step teaches
    its curvature too. Pairs without positive curvature are left out, and γ grows there.
    A system whose direction is not downhill forgets its pairs.

    Attributes:
        memory: pairs that are kept.
        curvature_eV_per_A2: 1/γ of the first step, eV/Å²; that of ASE's L-BFGS.
    """

    memory: int = 20
    curvature_eV_per_A2: float = 70.0

    @property
    def bytes_per_atom(self) -> int:
        """See :class:`Optimizer`."""
        return (2 * self.memory + 10) * VECTOR_BYTES

    def init(self, batch: AtomsBatch, mobile: Tensor) -> LBFGSDescent:
        """See :class:`Optimizer`."""
        one = batch.positions.new_ones(batch.n_systems)
        return LBFGSDescent(
            **started(batch, mobile),
            moves=(),
            changes=(),
            weights=one.new_zeros(batch.n_systems, self.memory),
            scale=one / self.curvature_eV_per_A2,
        )

    def _propose(self, state: LBFGSDescent) -> tuple[LBFGSDescent, Tensor]:
        batch, pull = state.batch, state.pull
        move = _two_loops(state)
        # Asked this way round, a direction that is not a number is not downhill.
        downhill = batch.total((move * pull).sum(1)) > 0
        state = state.replace(weights=torch.where(downhill[:, None], state.weights, 0))
        steepest = pull * state.scale[batch.system, None]
        return state, torch.where(downhill[batch.system, None], move, steepest)

    def _judge(
        self, state: LBFGSDescent, found: Evaluation, max_force: float
    ) -> Tensor:
        cause = super()._judge(state, found, max_force)
        slack = ENERGY_NOISE * state.batch.counts()
        rises = found.energy > state.energy + slack
        return cause.masked_fill(rises & (cause == Cause.NONE), Cause.ENERGY)

    def _learn(
        self, state: LBFGSDescent, move: Tensor, found: Evaluation, cause: Tensor
    ) -> LBFGSDescent:
        batch = state.batch
        sane = (cause == Cause.NONE) | (cause == Cause.ENERGY)
        change = (state.forces - found.forces) * state.mobile[:, None]
        # Not multiplied by zero: what is refused may not be a number.
        change = torch.where(sane[batch.system, None], change, 0.0)
        products = (move * change, move * move, change * change)
        sy, ss, yy = (batch.total(product.sum(1)) for product in products)
        curved = sy > _MIN_COSINE * (ss * yy).sqrt()
        weight = torch.where(curved, 1.0 / sy, 0.0)
        bolder = (_BOLDER * state.scale).clamp(max=_MAX_SCALE)
        scale = torch.where(sane & (ss > 0), bolder, state.scale)
        older = self.memory - 1
        return state.replace(
            moves=(move, *state.moves[:older]),
            changes=(change, *state.changes[:older]),
            weights=torch.cat([weight[:, None], state.weights[:, :older]], 1),
            scale=torch.where(curved, sy / yy, scale),
        )


def _two_loops(state: LBFGSDescent) -> Tensor:
    """Return H F, (n_atoms, 3), Å, by the two-loop recursion."""
    batch, system = state.batch, state.batch.system

    def share(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return (weight * batch.total((left * right).sum(1)))[system, None]

    # The columns beyond the pairs are zero: no system has learned so much.
    weights = state.weights.unbind(1)[: len(state.moves)]
    pairs = list(zip(state.moves, state.changes, weights, strict=True))
    out, shares = state.pull, []
    for move, change, weight in pairs:
        shares.append(share(weight, move, out))
        out = out - shares[-1] * change
    out = out * state.scale[system, None]
    for move, change, weight in reversed(pairs):
        out = out + (shares.pop() - share(weight, change, out)) * move
    return out


@dataclass(frozen=True, kw_only=True)
class FIREDescent(Descent):
    """State of :class:`FIRE`.

    Attributes:
        velocity: v, (n_atoms, 3), Å per unit of time.
        timestep: Δt, (n_systems,).
        mixing: α, (n_systems,).
        downhill: steps since the last one uphill, (n_systems,), int64.
    """

    velocity: Tensor = field(metadata=ATOM)
    timestep: Tensor
    mixing: Tensor
    downhill: Tensor


@dataclass(frozen=True, kw_only=True)
class FIRE(Optimizer[FIREDescent]):
    """Damped dynamics with inertia, for surfaces too rough for curvatures.

    Bitzek et al., PRL 97, 170201 (2006), with the corrections of Guénolé et al.,
    Comput. Mater. Sci. 175, 109584 (2020), algorithm 2: semi-implicit Euler, half a
    step back where the way goes uphill, and mixing after the velocity has changed; they
    save up to a fifth of the steps of distorted molecules. All masses are one, which
    makes the unit of time Å/√eV.

    Attributes:
        timestep: first Δt, Å/√eV.
        max_timestep: largest Δt.
        min_timestep: smallest Δt.
        patience: steps downhill before Δt grows. The paper has 20; with 5 molecules
            take a few per cent fewer steps.
        mixing: first α.
    """

    timestep: float = 0.1
    max_timestep: float = 1.0
    min_timestep: float = 0.002
    patience: int = 5
    mixing: float = 0.25

    @property
    def bytes_per_atom(self) -> int:
        """See :class:`Optimizer`."""
        return 12 * VECTOR_BYTES

    def init(self, batch: AtomsBatch, mobile: Tensor) -> FIREDescent:
        """See :class:`Optimizer`."""
        one = batch.positions.new_ones(batch.n_systems)
        return FIREDescent(
            **started(batch, mobile),
            velocity=torch.zeros_like(batch.positions),
            timestep=one * self.timestep,
            mixing=one * self.mixing,
            downhill=torch.zeros_like(one, dtype=torch.int64),
        )

    def _propose(self, state: FIREDescent) -> tuple[FIREDescent, Tensor]:
        batch, system, pull = state.batch, state.batch.system, state.pull
        power = batch.total((pull * state.velocity).sum(1))
        uphill = power < 0
        downhill = torch.where(uphill, 0, state.downhill + (power > 0))
        steady = downhill > self.patience
        timestep = torch.where(steady, _FASTER * state.timestep, state.timestep)
        timestep = torch.where(uphill, _SLOWER * timestep, timestep)
        timestep = timestep.clamp(self.min_timestep, self.max_timestep)
        mixing = torch.where(steady, state.mixing * _MIXING_DECAY, state.mixing)
        mixing = torch.where(uphill, self.mixing, mixing)
        dt, alpha, turn = (value[system, None] for value in (timestep, mixing, uphill))
        back = torch.where(turn, -0.5 * dt * state.velocity, 0.0)
        velocity = torch.where(turn, 0.0, state.velocity) + dt * pull
        speed, force = (batch.total(v.square().sum(1)).sqrt() for v in (velocity, pull))
        along = torch.where(force > 0, speed / force, 0.0)[system, None] * pull
        velocity = (1.0 - alpha) * velocity + alpha * along
        state = state.replace(
            velocity=velocity, timestep=timestep, mixing=mixing, downhill=downhill
        )
        return state, back + dt * velocity

    def _learn(
        self, state: FIREDescent, move: Tensor, found: Evaluation, cause: Tensor
    ) -> FIREDescent:
        good = cause == Cause.NONE
        return state.replace(
            velocity=torch.where(good[state.batch.system, None], state.velocity, 0.0),
            timestep=torch.where(good, state.timestep, _SLOWER * state.timestep),
            downhill=torch.where(good, state.downhill, 0),
        )

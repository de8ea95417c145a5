"""Optimizers: the formulas of the papers, and each system for itself in a batch."""

import math

import numpy as np
import pytest
import torch
from springs import Springs, systems
from torch.utils._python_dispatch import TorchDispatchMode

from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.forcefield import Evaluation
from mlff.relaxation.descent import Cause, largest
from mlff.relaxation.optimizers import ENERGY_NOISE, FIRE, LBFGS

BOTH = pytest.mark.parametrize("optimizer", [LBFGS(), FIRE()], ids=["lbfgs", "fire"])
NAMES = ("CH4", "CH3CHO", "CH3OH", "H2O", "C2H6")


class Surface:
    """Any energy per atom as a function of its position, with its exact forces."""

    def __init__(self, energy):
        self.energy = energy
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        positions = batch.positions.detach().requires_grad_(True)
        with torch.enable_grad():
            energy = batch.total(self.energy(positions))
            (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return Evaluation(
            energy=energy.detach(), forces=-gradient, stress=None, outside=None
        )


def stiff_and_soft(positions):
    """A narrow valley along x."""
    x, y, z = positions.unbind(1)
    return 0.5 * (x**2 + 40.0 * (y - 0.1 * x**2) ** 2 + 10.0 * z**2)


def distorted(names=NAMES, seed=0, amplitude=0.1):
    batch = AtomsBatch.from_atoms(systems(names))
    noise = np.random.default_rng(seed).normal(0.0, amplitude, (batch.n_atoms, 3))
    return batch.replace(positions=batch.positions + torch.from_numpy(noise))


def begun(optimizer, batch, fixed=()):
    mobile = torch.ones(batch.n_atoms, dtype=torch.bool)
    mobile[list(fixed)] = False
    return optimizer.init(batch, mobile)


def ran(optimizer, state, forces, n_steps, **options):
    for _ in range(n_steps):
        state = optimizer.step(state, forces, **options)
    return state


def point(*places):
    """Systems of two atoms, of which the second stays where it is."""
    batch = AtomsBatch.from_atoms(systems(["H2"] * len(places)))
    positions = torch.zeros(2 * len(places), 3, dtype=torch.float64)
    positions[::2] = torch.tensor(places, dtype=torch.float64)
    return batch.replace(positions=positions), range(1, 2 * len(places), 2)


@BOTH
def test_the_first_step_only_evaluates(optimizer):
    batch = distorted()
    forces = Springs(batch, internal=True)
    state = begun(optimizer, distorted(seed=1))
    assert state.energy.isinf().all()
    after = optimizer.step(state, forces)
    assert torch.equal(after.batch.positions, state.batch.positions)
    expected = forces(state.batch)
    assert torch.equal(after.energy, expected.energy)
    assert torch.equal(after.forces, expected.forces)
    assert after.cause.tolist() == [Cause.NONE] * 5


@BOTH
def test_every_system_reaches_its_minimum(optimizer):
    forces = Springs(distorted(amplitude=0.0), internal=True)
    n_steps = 60 if isinstance(optimizer, LBFGS) else 250
    state = ran(optimizer, begun(optimizer, distorted()), forces, n_steps)
    assert largest(state.batch, state.pull).max() < 1e-4
    assert state.energy.max() < 1e-8


@BOTH
def test_a_step_is_one_force_call_and_never_waits_for_the_device(optimizer):
    batch = distorted()
    found = Springs(batch)(batch)
    calls = []

    def forces(where):
        calls.append(where)
        return found

    class NoLook(TorchDispatchMode):
        """Refuses what would copy a value to the host."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func), func
            assert "nonzero" not in str(func), func
            return func(*args, **(kwargs or {}))

    state = ran(optimizer, begun(optimizer, batch), forces, 3)
    with NoLook():
        ran(optimizer, state, forces, 4)
    assert len(calls) == 7
    with NoLook(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(found.energy.max() > 0)


@BOTH
def test_a_system_moves_in_a_batch_as_it_does_alone(optimizer):
    batch, rest = distorted(), distorted(amplitude=0.0)
    together = ran(optimizer, begun(optimizer, batch), Springs(rest, internal=True), 25)
    for index in range(batch.n_systems):
        one = torch.tensor([index])
        alone = begun(optimizer, batch.select(one))
        alone = ran(optimizer, alone, Springs(rest.select(one), internal=True), 25)
        mine = together.select(one)
        gap = (mine.batch.positions - alone.batch.positions).abs().max()
        assert gap < 1e-11
        assert mine.cause.equal(alone.cause)


@BOTH
def test_systems_may_leave_and_enter_on_the_way(optimizer):
    """As in flight: histories of unequal age stand side by side."""
    batch, rest = distorted(), distorted(amplitude=0.0)
    whole = Springs(rest, internal=True)
    expected = ran(optimizer, begun(optimizer, batch), whole, 20)
    old = ran(optimizer, begun(optimizer, batch), whole, 8)
    stay, come = torch.tensor([3, 0]), torch.tensor([4, 1])
    entering = begun(optimizer, batch.select(come))
    mixed = type(old).concat([old.select(stay), entering])
    forces = Springs(rest.select(torch.cat([stay, come])), internal=True)
    mixed = ran(optimizer, mixed, forces, 12)
    gone = mixed.select(torch.tensor([0, 1]))
    late = ran(optimizer, mixed, forces, 8).select(torch.tensor([2, 3]))
    for found, index in ((gone, stay), (late, come)):
        wanted = expected.select(index).batch.positions
        assert (found.batch.positions - wanted).abs().max() < 1e-11


@BOTH
def test_frozen_systems_stay_exactly_where_they_are(optimizer):
    forces = Springs(distorted(amplitude=0.0), internal=True)
    state = ran(optimizer, begun(optimizer, distorted()), forces, 4)
    frozen = torch.tensor([False, True, False, False, True])
    stopped = ran(optimizer, state.replace(frozen=frozen), forces, 5)
    free = ran(optimizer, state, forces, 5)
    for index in range(5):
        one = torch.tensor([index])
        expected = (state if frozen[index] else free).select(one)
        found = stopped.select(one)
        for name in ("energy", "forces", "cause", "tried"):
            assert getattr(found, name).equal(getattr(expected, name)), name
        assert found.batch.positions.equal(expected.batch.positions)


@BOTH
def test_fixed_atoms_stay_and_their_forces_are_kept(optimizer):
    batch, fixed = distorted(), [0, 7, 20]
    forces = Springs(distorted(amplitude=0.0), internal=True)
    state = ran(optimizer, begun(optimizer, batch, fixed), forces, 300)
    assert torch.equal(state.batch.positions[fixed], batch.positions[fixed])
    assert largest(state.batch, state.pull).max() < 1e-3
    assert state.pull[fixed].abs().max() == 0
    assert torch.equal(state.forces, forces(state.batch).forces)


@BOTH
def test_no_atom_moves_further_than_it_may(optimizer):
    batch = distorted()
    steep = Springs(distorted(amplitude=0.0, seed=4), constant=900.0, internal=True)
    state = begun(optimizer, batch)
    for _ in range(12):
        after = optimizer.step(state, steep)
        moved = (after.batch.positions - state.batch.positions).norm(dim=1)
        assert moved.max() <= 0.2 * (1 + 1e-12)
        state = after


def walled(bad):
    """Systems at z > 0.5 are drawn to x = −1, but there is a wall at x = −0.3."""

    def energy(positions):
        x, y, z = positions.unbind(1)
        behind = 2.0 * (x + 1.0) ** 2 + torch.where(x < -0.3, bad, 0.0)
        return torch.where(z > 0.5, behind, 2.0 * (x - 0.1) ** 2) + 0.5 * y.square()

    return Surface(energy)


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_entered_and_no_other_system_notices(optimizer, bad):
    batch, fixed = point((1.0, 0.2, 0.0), (0.15, 0.0, 0.6))
    state = begun(optimizer, batch, fixed)
    for _ in range(80):
        state = optimizer.step(state, walled(bad))
        assert torch.isfinite(state.energy).all()
        assert torch.isfinite(state.forces).all()
        assert float(state.batch.positions[2, 0]) >= -0.3
    assert float(state.batch.positions[2, 0]) < -0.29
    one = torch.tensor([0])
    alone = begun(optimizer, batch.select(one), [1])
    alone = ran(optimizer, alone, walled(bad), 80)
    assert torch.equal(state.select(one).batch.positions, alone.batch.positions)


@BOTH
def test_a_refused_move_is_tried_again_shorter_until_next_to_nothing(optimizer):
    batch, fixed = point((-0.3, 0.0, 0.6), (-0.3, 0.1, 0.7))
    state = begun(optimizer, batch, fixed)
    state = ran(optimizer, state, walled(math.nan), 2)
    tried = [state.tried]
    while tried[-1].max() > 1e-5:
        state = optimizer.step(state, walled(math.nan))
        assert state.cause.tolist() == [Cause.NOT_FINITE] * 2
        assert (state.tried <= 0.31 * tried[-1]).all()
        tried.append(state.tried)
    assert torch.equal(state.batch.positions, batch.positions)
    assert tried[0].min() > 0.02
    assert len(tried) < 12


@BOTH
def test_an_explosion_is_refused_but_a_steep_start_is_not(optimizer):
    def cliff(positions):
        """A force of 300 eV/Å below x = 0.95, of 9 above."""
        x = positions[:, 0]
        return torch.where(x < 0.95, 300.0 * x, 9.0 * x + 291.0 * 0.95)

    batch, fixed = point((-5.0, 0, 0), (1.0, 0, 0))
    state = begun(optimizer, batch, fixed)
    causes = []
    for _ in range(9):
        state = optimizer.step(state, Surface(cliff), max_force=100.0)
        causes.append(state.cause.tolist())
    first, second = zip(*causes, strict=True)
    assert set(first) == {Cause.NONE}
    assert set(second) == {Cause.NONE, Cause.FORCE}
    assert state.batch.positions[0, 0] < -6.0
    assert 0.95 <= state.batch.positions[2, 0] < 1.0
    free = ran(optimizer, begun(optimizer, batch, fixed), Surface(cliff), 9)
    assert free.batch.positions[2, 0] < 0.5


@BOTH
def test_leaving_the_region_is_refused(optimizer):
    batch, fixed = point((1.0, 0, 0), (2.0, 0, 0))

    def forces(where):
        found = Surface(lambda p: p[:, 0].square())(where)
        outside = where.positions[::2, 0] < torch.tensor([0.8, -9.0])
        return Evaluation(
            energy=found.energy, forces=found.forces, stress=None, outside=outside
        )

    state = ran(optimizer, begun(optimizer, batch, fixed), forces, 40)
    assert state.batch.positions[0, 0] >= 0.8
    assert state.cause[0] == Cause.REGION
    assert abs(state.batch.positions[2, 0]) < 0.1


def test_lbfgs_never_goes_up_by_more_than_noise():
    batch = distorted(amplitude=0.25, seed=3)
    forces = Springs(distorted(amplitude=0.0), internal=True)
    optimizer = LBFGS(max_step_A=0.5)
    state = optimizer.step(begun(optimizer, batch), forces)
    noise = ENERGY_NOISE * batch.counts()
    refused = 0
    for _ in range(60):
        after = optimizer.step(state, forces)
        assert (after.energy <= state.energy + noise).all()
        refused += int((after.cause == Cause.ENERGY).sum())
        state = after
    assert refused > 0


def test_lbfgs_moves_by_the_inverse_hessian_of_its_pairs():
    """Against the matrix form, H ← (1 − ρsyᵀ) H (1 − ρysᵀ) + ρssᵀ, oldest first."""
    optimizer = LBFGS(memory=4)
    forces = Surface(stiff_and_soft)
    state = ran(optimizer, begun(optimizer, distorted(amplitude=0.2)), forces, 8)
    for index in range(state.batch.n_systems):
        one = state.select(torch.tensor([index]))
        size = 3 * one.batch.n_atoms
        inverse = one.scale[0] * torch.eye(size, dtype=torch.float64)
        kept = 0
        for s, y, rho in reversed(
            list(zip(one.moves, one.changes, one.weights[0], strict=True))
        ):
            if rho == 0:
                continue
            kept += 1
            s, y = s.reshape(-1), y.reshape(-1)
            assert math.isclose(rho, 1.0 / (s @ y), rel_tol=1e-9)
            left = torch.eye(size, dtype=torch.float64) - rho * torch.outer(s, y)
            inverse = left @ inverse @ left.T + rho * torch.outer(s, s)
        assert kept >= 2
        direction = (inverse @ one.pull.reshape(-1)).reshape(-1, 3)
        longest = direction.norm(dim=1).max()
        expected = direction * min(1.0, 0.2 / float(longest))
        after = optimizer.step(one, forces)
        move = after.moves[0]
        assert (move - expected).abs().max() < 1e-10


def test_lbfgs_needs_few_steps_in_a_narrow_valley():
    optimizer = LBFGS()
    batch = distorted(("CH4", "C2H6"), amplitude=0.0)
    state = begun(optimizer, batch)
    forces = Surface(stiff_and_soft)
    steps = 0
    while steps == 0 or largest(batch, state.pull).max() > 1e-6:
        state, steps = optimizer.step(state, forces), steps + 1
    assert steps < 40


def test_lbfgs_leaves_a_flat_saddle_faster_than_a_fixed_scale_would():
    """At 1/70 Å²/eV a force of 0.02 eV/Å moves 0.3 mÅ a step: 1 Å in 3,000 steps."""

    def double_well(positions):
        x, rest = positions[:, 0], positions[:, 1:]
        return 0.2 * (x**2 - 1.0) ** 2 + 5.0 * rest.square().sum(1)

    optimizer = LBFGS()
    batch, fixed = point((0.02, 0.1, 0.0), (-0.01, 0.0, 0.1))
    state = ran(optimizer, begun(optimizer, batch, fixed), Surface(double_well), 30)
    ends = state.batch.positions[::2, 0]
    assert torch.allclose(ends, torch.tensor([1.0, -1.0]).double(), atol=1e-3)


def test_lbfgs_goes_straight_down_where_its_pairs_are_spoiled():
    optimizer = LBFGS()
    forces = Surface(stiff_and_soft)
    state = ran(optimizer, begun(optimizer, distorted()), forces, 4)
    weights = state.weights.clone()
    weights[3] = math.nan
    # With this pair H is γ − 10⁶ F Fᵀ: what it calls downhill is not.
    weights[2] = torch.tensor([-1.0, *[0.0] * 19])
    mine = (state.batch.system == 2)[:, None]
    spoiled = state.replace(
        moves=(torch.where(mine, 1e3 * state.pull, state.moves[0]), *state.moves[1:]),
        changes=(torch.where(mine, 0.0, state.changes[0]), *state.changes[1:]),
        weights=weights,
    )
    after = optimizer.step(spoiled, forces)
    for index in (2, 3):
        one, then = (s.select(torch.tensor([index])) for s in (state, after))
        along = (then.moves[0] * one.pull).sum()
        assert along > (1 - 1e-12) * then.moves[0].norm() * one.pull.norm() > 0
        assert (then.weights[0, 1:] == 0).all()
    other = torch.tensor([0])
    undisturbed = optimizer.step(state, forces).select(other)
    assert torch.equal(after.select(other).batch.positions, undisturbed.batch.positions)
    assert (after.weights[0, 1:] != 0).any()


def test_fire_is_the_algorithm_of_the_paper():
    """Guénolé et al., algorithm 2, written out for one particle at a time."""
    optimizer = FIRE(patience=3)
    starts = ((1.2, 0.3, -0.2), (-0.4, 0.9, 0.6))
    batch, fixed = point(*starts)
    state = optimizer.step(begun(optimizer, batch, fixed), Surface(stiff_and_soft))
    ways = [[], []]
    turned = 0
    for _ in range(70):
        state = optimizer.step(state, Surface(stiff_and_soft))
        for way, x in zip(ways, state.batch.positions[::2], strict=True):
            way.append(x.numpy())
    for start, way in zip(starts, ways, strict=True):
        x, v = np.array(start), np.zeros(3)
        dt, alpha, count = 0.1, 0.25, 0
        for found in way:
            place = torch.tensor(x[None]).requires_grad_(True)
            stiff_and_soft(place).sum().backward()
            force = -place.grad[0].numpy()
            power = force @ v
            back = np.zeros(3)
            if power > 0:
                count += 1
                if count > 3:
                    dt, alpha = min(1.1 * dt, 1.0), 0.99 * alpha
            elif power < 0:
                turned += 1
                count, alpha, dt = 0, 0.25, max(0.5 * dt, 0.002)
                back, v = -0.5 * dt * v, np.zeros(3)
            v = v + dt * force
            speed, strength = np.linalg.norm(v), np.linalg.norm(force)
            v = (1 - alpha) * v + alpha * force / strength * speed
            move = back + dt * v
            move *= min(1.0, 0.2 / np.linalg.norm(move))
            x = x + move
            assert np.abs(x - found).max() < 1e-9
    assert turned >= 4


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LBFGS, {"memory": 0}),
        (LBFGS, {"memory": 2.5}),
        (LBFGS, {"max_step_A": -0.1}),
        (LBFGS, {"curvature_eV_per_A2": math.nan}),
        (FIRE, {"timestep": "fast"}),
        (FIRE, {"patience": True}),
        (FIRE, {"mixing": math.inf}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, options):
    (name,) = options
    with pytest.raises(InputError, match=f"`{name}` must be a positive"):
        kind(**options)

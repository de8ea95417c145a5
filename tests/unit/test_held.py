"""Coordinates that are held: forces along the surface, and the way back to it."""

import math

import numpy as np
import pytest
import torch
from ase.build import molecule
from springs import Springs
from torch.utils._python_dispatch import TorchDispatchMode

from mlff.batch import AtomsBatch
from mlff.coordinates import Coordinate, residuals, set_coordinate, values
from mlff.errors import InputError
from mlff.forcefield import Evaluation
from mlff.relaxation.descent import Cause, largest
from mlff.relaxation.held import HELD_WITHIN, Held, HeldForces, held_values
from mlff.relaxation.optimizers import FIRE, LBFGS
from mlff.state import set_state

CHAIN = tuple(map(Coordinate.of, ("bond 0 1", "angle 2 0 1", "dihedral 2 0 1 5")))


def ethanes(n: int, amplitude: float = 0.0) -> torch.Tensor:
    noise = np.random.default_rng(0).normal(0.0, amplitude, (n, 8, 3))
    return torch.from_numpy(molecule("C2H6").positions + noise)


def held(coordinates, targets) -> Held:
    return Held(coordinates, torch.as_tensor(targets, dtype=torch.float64))


def test_geometries_go_back_to_the_surface_by_the_shortest_way():
    start, moved = ethanes(4), ethanes(4, amplitude=0.05)
    surface = held(CHAIN, values(start, CHAIN))
    atoms = surface.atoms
    back, good = surface.settle(moved[:, atoms])
    assert good.all()
    out = moved.clone()
    out[:, atoms] = back
    assert residuals(out, CHAIN, values(start, CHAIN)).abs().max() < 1e-6
    # The way back has no part along the surface, but for its curvature.
    way = back - moved[:, atoms]
    along = surface.along(back, way)
    assert along.norm() < 0.1 * way.norm()
    assert way.norm() > 0.05


def test_forces_along_the_surface_do_no_work_on_what_is_held():
    positions = ethanes(5, amplitude=0.05)
    surface = held(CHAIN, values(positions, CHAIN))
    forces = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 4, 3)))
    along = surface.along(positions[:, surface.atoms], forces)
    moved = positions.clone()
    moved[:, surface.atoms] += 1e-6 * along
    assert residuals(moved, CHAIN, values(positions, CHAIN)).abs().max() < 1e-7
    # Projecting twice is projecting once, and nothing is added.
    again = surface.along(positions[:, surface.atoms], along)
    torch.testing.assert_close(again, along, rtol=0, atol=1e-9)
    assert (along.flatten(1).norm(dim=1) < forces.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("target", [180.0, 0.0])
def test_a_straight_angle_is_held_in_both_directions(target):
    one = Coordinate.of("angle 0 1 2")
    line = torch.tensor([[1.1, 0, 0], [0, 0, 0], [-1.3, 0, 0]], dtype=torch.float64)
    if target == 0.0:
        line[2, 0] = 2.3
    surface = held([one], [[target]] * 2)
    forces = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3, 3)))
    along = surface.along(line.repeat(2, 1, 1), forces)
    moved = line + 0.01 * along
    assert (values(moved, [one]) - target).abs().max() < 0.02
    back, good = surface.settle(line + 0.1 * forces)
    assert good.all()
    assert (values(back, [one]) - target).abs().max() < 1e-4
    # It may stretch, turn and move: nine directions less two.
    basis = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
    nine = held([one], [[target]] * 9).along(line.repeat(9, 1, 1), basis)
    assert int(torch.linalg.matrix_rank(nine.flatten(1), atol=1e-9)) == 7


def test_straight_and_bent_systems_share_a_batch():
    one = Coordinate.of("angle 1 0 2")
    water = molecule("H2O")
    targets = [180.0, 120.0, 179.99, 60.0]
    positions = [set_coordinate(water, one, t).positions for t in targets]
    start = torch.from_numpy(np.array(positions))
    surface = held([one], np.array(targets)[:, None])
    forces = torch.from_numpy(np.random.default_rng(3).normal(size=start.shape))
    order = torch.tensor(surface.atoms)
    out, good = surface.settle((start + 0.05 * forces)[:, order])
    assert good.all()
    found = values(out[:, order.argsort()], [one])[:, 0]
    np.testing.assert_allclose(found.numpy(), targets, atol=1e-5)


def test_coordinates_that_depend_on_each_other_do_no_harm():
    # Three distances fix the angle too.
    every = [Coordinate.of(t) for t in ("bond 0 1", "bond 0 2", "bond 1 2")]
    every.append(Coordinate.of("angle 1 0 2"))
    start = torch.from_numpy(molecule("H2O").positions).repeat(2, 1, 1)
    surface = held(every, values(start, every))
    moved = start + torch.from_numpy(
        np.random.default_rng(4).normal(0, 0.05, start.shape)
    )
    out, good = surface.settle(moved)
    assert good.all()
    forces = torch.from_numpy(np.random.default_rng(5).normal(size=start.shape))
    along = surface.along(out, forces)
    assert held(every[:3], values(start, every[:3])).along(out, forces) == (
        pytest.approx(along, abs=1e-6)
    )


def begun(names=("C2H6", "C2H6", "CH3CH2O", "H2O2")):
    systems = []
    for seed, name in enumerate(names):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=seed)
        odd = int(atoms.numbers.sum()) % 2
        systems.append(set_state(atoms, 0, 2 if odd else 1))
    return AtomsBatch.from_atoms(systems)


HOLD = tuple(map(Coordinate.of, ("bond 0 1", "dihedral 2 0 1 3")))


@pytest.mark.parametrize("optimizer", [LBFGS(), FIRE()], ids=["lbfgs", "fire"])
def test_optimizers_go_downhill_on_the_surface(optimizer):
    batch = begun()
    targets = held_values(batch, HOLD)
    springs = Springs(batch, internal=True)
    # Springs pull to other lengths than those held.
    springs.start = springs.start * 1.1
    forces = HeldForces(springs, batch, HOLD, targets)
    state = optimizer.init(batch, torch.ones(batch.n_atoms, dtype=torch.bool))
    for _ in range(150):
        state = optimizer.step(state, forces)
    assert (largest(batch, state.pull) < 1e-3).all()
    torch.testing.assert_close(
        held_values(state.batch, HOLD), targets, rtol=0, atol=1e-5
    )
    raw = springs(state.batch).forces
    assert (largest(batch, raw) > 0.1).all()


class NoLook(TorchDispatchMode):
    """Refuses what would copy a value to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), func
        assert "nonzero" not in str(func), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("target", [120.0, 180.0])
def test_nothing_in_a_step_waits_for_the_device(target):
    one = [Coordinate.of("angle 1 0 2")]
    atoms = set_coordinate(set_state(molecule("H2O"), 0, 1), one[0], target)
    batch = AtomsBatch.from_atoms([atoms] * 4)

    def forces(at):
        zeros = at.positions.new_zeros(at.n_systems)
        return Evaluation(
            energy=zeros, forces=0.01 * at.positions, stress=None, outside=None
        )

    wrapped = HeldForces(forces, batch, one, held_values(batch, one))
    with NoLook():
        wrapped(batch)
    with NoLook(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(batch.positions.max() > 0)


def test_what_cannot_be_put_back_is_refused():
    batch = begun()
    targets = held_values(batch, HOLD)

    def forces(at):
        return springs(at)

    springs = Springs(batch, internal=True)
    wild = HeldForces(forces, batch, HOLD, targets)
    ruined = batch.positions.clone()
    first = batch.system == 1
    ruined[first] = math.nan
    found = wild(batch.replace(positions=ruined))
    assert found.energy.isnan().tolist() == [False, True, False, False]
    state = LBFGS().init(batch, torch.ones(batch.n_atoms, dtype=torch.bool))
    state = LBFGS().step(state, wild)
    state = LBFGS().step(
        state.replace(batch=batch.replace(positions=ruined)),
        HeldForces(forces, batch, HOLD, targets),
    )
    assert state.cause.tolist()[1] == Cause.NOT_FINITE


def test_values_are_read_from_systems_of_any_size():
    batch = begun()
    found = held_values(batch, HOLD)
    for row, positions in zip(
        found, batch.positions.split(batch.counts().tolist()), strict=True
    ):
        torch.testing.assert_close(row, values(positions, HOLD), rtol=0, atol=1e-12)
    assert HELD_WITHIN < 1e-6


def test_what_cannot_be_held_is_refused():
    batch = begun()
    with pytest.raises(InputError, match="no atom 5; the molecule has 4"):
        held_values(batch, [Coordinate.of("bond 0 5")])
    straight = set_state(molecule("C2H2"), 0, 1)
    line = AtomsBatch.from_atoms([straight, straight])
    with pytest.raises(InputError, match="system 0: dihedral 2-0-1-3 has no"):
        held_values(line, [Coordinate.of("dihedral 2 0 1 3")])


def test_values_that_no_geometry_has_are_told():
    sides = [Coordinate.of(t) for t in ("bond 0 1", "bond 0 2", "bond 1 2")]
    start = torch.from_numpy(molecule("H2O").positions).repeat(2, 1, 1)
    surface = held(sides, [[1.0, 1.0, 1.5], [1.0, 1.0, 2.5]])
    _, good = surface.settle(start, 30)
    assert good.tolist() == [True, False]

"""Integrators: what a step conserves, samples and forgets, without a network.

Ensembles are tested in tests/physics; here is what a single run must keep exactly.
"""

import json

import numpy as np
import pytest
import torch
from ase import units
from springs import NAMES, started

from mlff.dynamics.integrators import Langevin, VelocityRescaling, VelocityVerlet
from mlff.dynamics.phase import chi_squares, without_motion
from mlff.dynamics.schedules import Ramp
from mlff.errors import InputError

VERLET = VelocityVerlet(timestep_fs=0.5)
LANGEVIN = Langevin(timestep_fs=0.5, temperature_K=300, friction_per_fs=0.02)
RESCALING = VelocityRescaling(timestep_fs=0.5, temperature_K=300, time_constant_fs=20)
ALL = pytest.mark.parametrize(
    "integrator", [VERLET, LANGEVIN, RESCALING], ids=lambda i: type(i).__name__
)


def run(integrator, n_steps, **options):
    state, forcefield = started(integrator, **options)
    for _ in range(n_steps):
        state = integrator.step(state, forcefield)
    return state, forcefield


@ALL
def test_a_step_makes_one_force_call(integrator):
    state, forcefield = run(integrator, 7, heat_K=300)
    assert state.step == 7
    assert forcefield.calls == 1 + 7


@ALL
def test_a_step_leaves_its_argument_as_it_was(integrator):
    state, forcefield = started(integrator, heat_K=300)
    positions, momenta = state.batch.positions.clone(), state.momenta.clone()
    integrator.step(state, forcefield)
    assert torch.equal(state.batch.positions, positions)
    assert torch.equal(state.momenta, momenta)


@ALL
def test_a_system_moves_alone_as_in_a_batch(integrator):
    together, _ = run(integrator, 20, heat_K=None)
    for index in (1, 4):
        seeded = type(integrator)(
            **{**vars(integrator), "seed": [int(together.seed[index])]}
        )
        alone, _ = run(seeded, 20, names=(NAMES[index],))
        mine = together.batch.system == index
        difference = together.batch.positions[mine] - alone.batch.positions
        assert difference.abs().max() < 1e-12


@ALL
def test_a_state_is_all_that_a_restart_needs(integrator):
    state, forcefield = started(integrator, heat_K=300)
    for _ in range(5):
        state = integrator.step(state, forcefield)
    middle = state.replace(momenta=state.momenta.clone())
    for _ in range(5):
        state = integrator.step(state, forcefield)
        middle = integrator.step(middle, forcefield)
    assert torch.equal(state.momenta, middle.momenta)
    assert torch.equal(state.batch.positions, middle.batch.positions)


@ALL
def test_fixed_atoms_stay_and_carry_no_energy(integrator):
    fixed = (0, 1, 2, 5)  # all of the water, one hydrogen of the methane
    state, _ = started(integrator, fixed=fixed)
    after, _ = run(integrator, 10, fixed=fixed, heat_K=300)
    assert torch.equal(
        after.batch.positions[list(fixed)], state.batch.positions[list(fixed)]
    )
    assert float(after.momenta[list(fixed)].abs().max()) == 0.0
    assert float(after.temperature()[0]) == 0.0
    assert state.dof.tolist()[:2] == [0.0, 12.0]


@ALL
def test_settings_are_json_and_tell_runs_apart(integrator):
    settings = json.loads(json.dumps(integrator.settings()))
    assert settings["integrator"] == type(integrator).__name__
    other = type(integrator)(**{**vars(integrator), "timestep_fs": 0.25})
    assert other.settings() != settings


def test_verlet_conserves_energy_to_second_order():
    def fluctuation(timestep_fs):
        integrator = VelocityVerlet(timestep_fs=timestep_fs)
        state, forcefield = started(integrator, heat_K=300)
        first = state.energy + state.kinetic_energy()
        worst = torch.zeros_like(first)
        for _ in range(round(60 / timestep_fs)):
            state = integrator.step(state, forcefield)
            now = state.energy + state.kinetic_energy()
            worst = torch.maximum(worst, (now - first).abs())
        return worst

    ratio = fluctuation(0.5) / fluctuation(0.25)
    assert abs(float(ratio.median()) - 4.0) < 0.5


def test_verlet_is_reversible():
    state, forcefield = run(VERLET, 50, heat_K=300)
    start, _ = started(VERLET, heat_K=300)
    back = state.replace(momenta=-state.momenta)
    for _ in range(50):
        back = VERLET.step(back, forcefield)
    assert (back.batch.positions - start.batch.positions).abs().max() < 1e-10


@pytest.mark.parametrize(
    "integrator", [LANGEVIN, RESCALING], ids=lambda i: type(i).__name__
)
def test_heat_accounts_for_what_the_thermostat_does(integrator):
    fine = type(integrator)(**{**vars(integrator), "timestep_fs": 0.1})
    state, forcefield = started(fine)
    first = state.energy + state.kinetic_energy()
    for _ in range(300):
        state = fine.step(state, forcefield)
    total = state.energy + state.kinetic_energy()
    assert (total - first).abs().min() > 1e-3  # the thermostat did work
    assert (total - state.heat - first).abs().max() < 1e-4


def test_systems_at_rest_start_with_the_target_temperature():
    names = ("C6H6",) * 64
    state, _ = started(LANGEVIN, names=names)
    assert abs(float(state.temperature().mean()) - 300.0) < 25.0
    assert state.temperature().std() > 20.0  # sampled, not scaled


def test_given_velocities_are_kept():
    state, _ = started(LANGEVIN, heat_K=50)
    assert float(state.temperature().mean()) < 120.0


def test_verlet_leaves_systems_at_rest_unless_told_a_temperature():
    state, _ = started(VERLET)
    assert float(state.momenta.abs().max()) == 0.0
    warm = VelocityVerlet(timestep_fs=0.5, initial_temperature_K=200)
    state, _ = started(warm)
    assert float(state.temperature().min()) > 0.0


@pytest.mark.parametrize("names", [("H2", "H2O", "C6H6", "CH4"), ("C2H2", "H2")])
def test_motion_of_the_whole_is_taken_out(names):
    integrator = VelocityVerlet(timestep_fs=0.5, remove_motion=True)
    state, _ = started(integrator, names=names, heat_K=300)
    batch, momenta = state.batch, state.momenta
    masses = state.masses[:, None]
    center = batch.total(masses * batch.positions) / batch.total(masses)
    arms = batch.positions - center[batch.system]
    assert batch.total(momenta).abs().max() < 1e-10
    assert batch.total(torch.linalg.cross(arms, momenta)).abs().max() < 1e-9
    rotations = [2 if name == "H2" else 3 for name in names]
    sizes = batch.counts().tolist()
    expected = [3.0 * n - 3 - r for n, r in zip(sizes, rotations, strict=True)]
    assert state.dof.tolist() == expected


def test_a_single_atom_has_no_degree_of_freedom_left():
    integrator = VelocityRescaling(timestep_fs=0.5, temperature_K=300)
    state, forcefield = started(integrator, names=("H", "H2O", "CH4", "O2"))
    assert float(state.dof[0]) == 0.0
    state = integrator.step(state, forcefield)
    assert torch.isfinite(state.momenta).all()
    assert float(state.temperature()[0]) == 0.0


def test_taking_out_motion_twice_changes_nothing():
    state, _ = started(VERLET, heat_K=300)
    once = without_motion(state)
    twice = without_motion(once)
    assert (once.momenta - twice.momenta).abs().max() < 1e-11
    assert (once.momenta - state.momenta).abs().max() > 0.1


def test_what_was_taken_out_stays_out_under_langevin():
    integrator = Langevin(timestep_fs=0.5, temperature_K=300, remove_motion=True)
    state, forcefield = started(integrator, internal=True)
    for _ in range(40):
        state = integrator.step(state, forcefield)
    assert state.batch.total(state.momenta).abs().max() < 1e-10


def test_each_system_has_its_own_temperature():
    targets = [0.0, 200.0, 400.0, 800.0, 0.0]
    integrator = Langevin(timestep_fs=0.5, temperature_K=targets, friction_per_fs=0.1)
    found = []
    state, forcefield = started(integrator, constant=0.0)
    for step in range(400):
        state = integrator.step(state, forcefield)
        if step > 50:
            found.append(state.temperature())
    mean = torch.stack(found).mean(0)
    assert float(mean[0]) == float(mean[4]) == 0.0
    # 350 steps hold some 17 correlation times of 10 fs for 15, 36 and 6 numbers.
    for index in (1, 2, 3):
        assert abs(float(mean[index]) / targets[index] - 1.0) < 0.35
    assert mean[1] < mean[2] < mean[3]


def test_a_ramp_heats_the_systems():
    ramp = Ramp(times_fs=(0, 50, 100), values=(100, 100, 1000))
    integrator = Langevin(timestep_fs=0.5, temperature_K=ramp, friction_per_fs=0.2)
    names = ("C6H6",) * 20
    state, forcefield = started(integrator, names=names, constant=0.0)
    for _ in range(100):
        state = integrator.step(state, forcefield)
    assert abs(float(state.temperature().mean()) - 100.0) < 15.0
    for _ in range(130):
        state = integrator.step(state, forcefield)
    assert abs(float(state.temperature().mean()) - 1000.0) < 120.0


def test_equal_seeds_give_equal_noise_and_others_do_not():
    first, _ = run(LANGEVIN, 3)
    again, _ = run(LANGEVIN, 3)
    other, _ = run(Langevin(**{**vars(LANGEVIN), "seed": 1}), 3)
    assert torch.equal(first.momenta, again.momenta)
    assert (first.momenta - other.momenta).abs().min(1).values.max() > 1e-3


def test_one_seed_gives_every_system_its_own_noise():
    state, _ = run(LANGEVIN, 1, names=("H2", "H2", "CH4", "CH4"))
    assert len(state.seed.unique()) == 4
    assert not torch.allclose(state.momenta[:2], state.momenta[2:4])


def test_rescaling_reproduces_the_formula_of_the_paper():
    """One step against eq. A7 evaluated by hand with the same numbers."""
    state, _ = started(RESCALING, heat_K=500)
    state = state.replace(step=5)
    first, others = (x.numpy() for x in chi_squares(state))
    kept = np.exp(-0.5 / 20)
    kinetic, dof = state.kinetic_energy().numpy(), state.dof.numpy()
    target = 0.5 * dof * units.kB * 300
    square = (
        kept
        + target / (dof * kinetic) * (1 - kept) * (first**2 + others)
        + 2 * np.sqrt(kept) * np.sqrt(target / (dof * kinetic) * (1 - kept)) * first
    )
    after = RESCALING.thermostatted(state).kinetic_energy().numpy()
    assert np.allclose(after, square * kinetic, rtol=1e-12)


def test_squares_are_as_many_as_degrees_of_freedom_less_one():
    state, _ = started(RESCALING, names=("H2", "CH4", "H2O", "C6H6") * 50)
    totals = torch.stack(
        [chi_squares(state.replace(step=k))[1] for k in range(60)]
    ).mean(0)
    for index in range(4):
        dof = float(state.dof[index])
        mean = float(totals[index::4].mean())
        error = (2 * max(dof - 1, 0) / (60 * 50)) ** 0.5
        assert abs(mean - (dof - 1)) <= 5 * error


BAD = [
    (lambda: VelocityVerlet(timestep_fs=0), "timestep_fs"),
    (lambda: VelocityVerlet(timestep_fs=float("nan")), "timestep_fs"),
    (lambda: VelocityVerlet(timestep_fs="1"), "timestep_fs"),
    (lambda: VelocityVerlet(timestep_fs=1, seed=0.5), "seed"),
    (lambda: VelocityVerlet(timestep_fs=1, seed=2**60), "seed"),
    (
        lambda: VelocityRescaling(timestep_fs=1, temperature_K=1, time_constant_fs=0),
        "time_constant_fs",
    ),
    (lambda: started(Langevin(timestep_fs=1, temperature_K=-1)), "temperature_K"),
    (lambda: started(Langevin(timestep_fs=1, temperature_K="warm")), "temperature_K"),
    (lambda: started(Langevin(timestep_fs=1, temperature_K=[1, 2])), "per system"),
    (
        lambda: started(
            Langevin(timestep_fs=1, temperature_K=300, friction_per_fs=-0.1)
        ),
        "friction_per_fs",
    ),
    (lambda: started(VelocityVerlet(timestep_fs=1, seed=[1, 2])), "seed"),
    (
        lambda: started(VelocityVerlet(timestep_fs=1, initial_temperature_K=-5)),
        "initial_temperature_K",
    ),
]


@pytest.mark.parametrize(("make", "named"), BAD)
def test_bad_settings_are_named(make, named):
    with pytest.raises(InputError, match=named):
        make()

"""Batched dynamics against ASE, against itself, and when something goes wrong."""

import copy
import gc

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.constraints import FixAtoms, FixBondLength
from ase.md.verlet import VelocityVerlet as ASEVerlet
from moving import molecules, random_potential

import mlff
from mlff.demo import methylene
from mlff.dynamics.limits import Limits
from mlff.errors import InputError, InputTypeError, StateError
from mlff.md import MDOptions, run_md

QUIET = MDOptions(progress=False)
VERLET = mlff.VelocityVerlet(timestep_fs=0.5)


@pytest.fixture(scope="module")
def potential():
    return random_potential()


def carbenes(n, spread=0.03, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for index in range(n):
        places = np.array([[0, 0, 0], [1.1, 0, 0], [-0.5, 0.98, 0]])
        atoms = Atoms("CH2", places + rng.normal(scale=spread, size=(3, 3)))
        out.append(mlff.set_state(atoms, 0, (1, 3)[index % 2]))
    return out


def test_fifty_steps_of_37_molecules_agree_with_ase_one_by_one(potential):
    systems = molecules(37)
    assert len({atoms.get_chemical_formula() for atoms in systems}) > 25
    sizes = [len(atoms) for atoms in systems]
    assert max(sizes) >= 4 * min(sizes)
    result = run_md(systems, potential, VERLET, n_steps=50, options=QUIET)
    assert not result.frozen
    worst, moved = 0.0, 0.0
    for start, found in zip(systems, result.atoms, strict=True):
        atoms = start.copy()
        atoms.calc = mlff.MLFFCalculator(potential)
        ASEVerlet(atoms, 0.5 * units.fs).run(50)
        worst = max(worst, np.abs(atoms.positions - found.positions).max())
        moved = max(moved, np.abs(atoms.positions - start.positions).max())
        assert found.get_potential_energy() == pytest.approx(
            atoms.get_potential_energy(), abs=1e-9
        )
    assert moved > 0.3
    assert worst < 1e-10


def test_a_molecule_moves_alone_as_it_does_among_others(potential):
    systems = molecules(7)
    integrator = mlff.Langevin(timestep_fs=0.5, temperature_K=300, seed=list(range(7)))
    together = run_md(systems, potential, integrator, n_steps=30, options=QUIET)
    for index in (0, 4):
        own = mlff.Langevin(timestep_fs=0.5, temperature_K=300, seed=[index])
        alone = run_md([systems[index]], potential, own, n_steps=30, options=QUIET)
        difference = together.atoms[index].positions - alone.atoms[0].positions
        assert np.abs(difference).max() < 1e-9


def test_the_systems_given_are_not_modified(potential):
    systems = molecules(4)
    copies = [atoms.copy() for atoms in systems]
    run_md(systems, potential, VERLET, n_steps=3, options=QUIET)
    for atoms, other in zip(systems, copies, strict=True):
        assert atoms == other
        assert atoms.info == other.info
        assert atoms.calc is None


def test_results_keep_states_constraints_and_order(potential):
    systems = molecules(5)
    systems[2].set_constraint(FixAtoms([0, 1]))
    result = run_md(systems, potential, VERLET, n_steps=5, options=QUIET)
    for start, found in zip(systems, result.atoms, strict=True):
        assert found.info == start.info
        assert (found.numbers == start.numbers).all()
    fixed = result.atoms[2]
    assert (fixed.positions[:2] == systems[2].positions[:2]).all()
    assert (fixed.positions[2:] != systems[2].positions[2:]).all()
    assert len(fixed.constraints) == 1


def test_series_hold_every_frame_of_every_system(potential):
    systems = molecules(4)
    result = run_md(systems, potential, VERLET, n_steps=25, every=10, options=QUIET)
    series = result.series
    assert series.times_fs.tolist() == [0.0, 5.0, 10.0]
    assert series.energy.shape == (3, 4)
    kinetic = [atoms.get_kinetic_energy() for atoms in systems]
    assert series.kinetic[0] == pytest.approx(kinetic)
    assert (series.heat == 0).all()
    spread = np.ptp(series.conserved, axis=0)
    assert (spread < 0.1 * np.ptp(series.kinetic, axis=0) + 1e-3).all()
    assert result.n_steps == 25


def test_periodic_and_free_systems_share_a_batch():
    potential = random_potential(scope="local", cutoff=3.0)
    free = molecules(3)
    cell = np.diag([4.0, 4.2, 4.4])
    places = np.array([[0.1, 0.1, 0.1], [0.6, 0.2, 0.7], [0.3, 0.7, 0.4]]) @ cell
    crystal = Atoms("CHO", places, cell=cell, pbc=True)
    slab = Atoms("CHO", places, cell=[4.0, 4.2, 0], pbc=(True, True, False))
    systems = [*free, mlff.set_state(crystal, 0, 2), mlff.set_state(slab, 0, 2)]
    result = run_md(systems, potential, VERLET, n_steps=40, options=QUIET)
    for start, found in zip(systems, result.atoms, strict=True):
        atoms = start.copy()
        atoms.calc = mlff.MLFFCalculator(potential)
        ASEVerlet(atoms, 0.5 * units.fs).run(40)
        assert np.abs(atoms.positions - found.positions).max() < 1e-9


def test_gaps_are_differences_of_the_same_geometry():
    potential = mlff.load("ch2", dtype=torch.float64)
    options = MDOptions(states=[(0, 1), (0, 3)], progress=False)
    systems = carbenes(4)
    integrator = mlff.VelocityVerlet(timestep_fs=0.5, initial_temperature_K=300)
    result = run_md(
        systems, potential, integrator, n_steps=20, every=10, options=options
    )
    series = result.series
    gaps = series.gaps((0, 1), (0, 3))
    assert gaps.shape == (3, 4)
    # The state that drives the motion is one of the two.
    assert series.state_energies[:, 0::2, 0] == pytest.approx(series.energy[:, 0::2])
    assert series.state_energies[:, 1::2, 1] == pytest.approx(series.energy[:, 1::2])
    last = [mlff.set_state(a.copy(), spin=s) for s in (1, 3) for a in result.atoms]
    for atoms in last:
        atoms.calc = None
    energies = [out["energy"] for out in mlff.predict(potential, last, ("energy",))]
    assert gaps[-1] == pytest.approx(np.subtract(energies[:4], energies[4:]), abs=1e-9)
    with pytest.raises(InputError, match="not recorded"):
        series.gaps((0, 1), (0, 5))


def test_a_state_that_the_electrons_exclude_cannot_be_recorded():
    potential = mlff.load("ch2")
    options = MDOptions(states=[(0, 1), (0, 2)], progress=False)
    with pytest.raises(StateError, match=r"states.*system 0"):
        run_md(carbenes(2), potential, VERLET, n_steps=1, options=options)


def test_one_bad_system_is_frozen_and_the_rest_goes_on(potential):
    systems = molecules(5)
    bad = systems[3]
    bad.set_momenta(bad.get_momenta() * 60)
    limits = Limits(max_temperature_K=20_000, max_force_eV_per_A=1e9)
    options = MDOptions(limits=limits, progress=False)
    result = run_md(systems, potential, VERLET, n_steps=30, options=options)
    assert set(result.frozen) == {3}
    assert "temperature" in result.frozen[3].reason
    assert result.frozen[3].step == 0
    good = [atoms for index, atoms in enumerate(systems) if index != 3]
    without = run_md(good, potential, VERLET, n_steps=30, options=QUIET)
    others = [atoms for index, atoms in enumerate(result.atoms) if index != 3]
    for one, other in zip(without.atoms, others, strict=True):
        assert np.abs(one.positions - other.positions).max() < 1e-9


def test_leaving_the_region_seen_in_training_freezes_a_system():
    potential = mlff.load("ch2", dtype=torch.float64)
    systems = [methylene(1.12, 101.0, spin=1) for _ in range(6)]
    momenta = np.zeros((3, 3))
    momenta[1, 0] = 1.5  # pulls one hydrogen away
    systems[4].set_momenta(momenta)
    options = MDOptions(limits=Limits(region="freeze"), progress=False)
    result = run_md(systems, potential, VERLET, n_steps=100, options=options)
    assert 4 in result.frozen
    assert "region" in result.frozen[4].reason
    assert 0 < result.frozen[4].step < 100
    assert len(result.frozen) == 1
    assert not result.outside
    free = run_md(systems, potential, VERLET, n_steps=12, options=QUIET)
    assert "Å, seen" in free.outside[4]
    far = result.atoms[4].get_distance(0, 1)
    assert far < 1.20 + 0.1 + 0.02
    assert far > 1.2


def test_a_model_without_a_region_refuses_to_watch_it(potential):
    options = MDOptions(limits=Limits(region="freeze"), progress=False)
    with pytest.raises(InputError, match="region"):
        run_md(molecules(2), potential, VERLET, n_steps=1, options=options)


def test_no_step_gives_the_start(potential):
    systems = molecules(2)
    result = run_md(systems, potential, VERLET, n_steps=0, options=QUIET)
    assert result.n_steps == 0
    assert (result.atoms[1].positions == systems[1].positions).all()
    assert result.series.energy.shape == (1, 2)


def broken(change):
    atoms = molecules(2)[1]
    change(atoms)
    return atoms


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"systems": []}, InputError, "systems"),
        ({"systems": molecules(2)[0]}, InputTypeError, "systems"),
        ({"potential": "ch2"}, InputTypeError, "potential"),
        ({"integrator": "langevin"}, InputTypeError, "integrator"),
        ({"n_steps": -1}, InputError, "n_steps"),
        ({"n_steps": 1.5}, InputError, "n_steps"),
        ({"every": 0}, InputError, "every"),
        ({"options": {}}, InputTypeError, "options"),
        ({"systems": [None, None]}, InputTypeError, "system 0"),
        (
            {"systems": [broken(lambda a: a.set_constraint(FixAtoms([99])))] * 2},
            InputError,
            "99",
        ),
        (
            {"systems": [broken(lambda a: a.set_constraint(FixBondLength(0, 1)))] * 2},
            InputError,
            "FixBondLength",
        ),
        (
            {"systems": [broken(lambda a: a.set_masses([-1.0] * len(a)))] * 2},
            InputError,
            "masses",
        ),
        (
            {"systems": [broken(lambda a: a.set_momenta([[np.nan] * 3] * len(a)))] * 2},
            InputError,
            "momenta",
        ),
        (
            {"systems": [*molecules(2), Atoms("Xe", info={"charge": 0, "spin": 1})]},
            InputError,
            "Xe",
        ),
        (
            {"systems": [*molecules(2), broken(lambda a: a.info.update(spin=17))]},
            StateError,
            "system 2",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_step(
    potential, arguments, error, named
):
    call = {
        "systems": molecules(2),
        "potential": potential,
        "integrator": VERLET,
        "n_steps": 2,
        "options": QUIET,
        **arguments,
    }
    with pytest.raises(error, match=named):
        run_md(
            call.pop("systems"), call.pop("potential"), call.pop("integrator"), **call
        )


def test_atoms_on_top_of_each_other_are_named_with_their_system(potential):
    systems = molecules(4)
    systems[2].positions[1] = systems[2].positions[0]
    with pytest.raises(InputError, match="system 2"):
        run_md(systems, potential, VERLET, n_steps=1, options=QUIET)


# Trajectories and resuming


def integrators():
    langevin = mlff.Langevin(timestep_fs=0.5, temperature_K=300, seed=5)
    rescaling = mlff.VelocityRescaling(
        timestep_fs=0.5,
        temperature_K=mlff.Ramp(times_fs=(0, 20), values=(300, 600)),
        time_constant_fs=20,
    )
    return {"verlet": VERLET, "langevin": langevin, "rescaling": rescaling}


def contents(path):
    """Everything a trajectory says, for comparison by value."""
    found = mlff.Trajectory(path)
    frames = [found.frame(k) for k in range(found.n_frames)]
    return [
        {name: np.asarray(value).tobytes() for name, value in vars(frame).items()}
        for frame in frames
    ]


@pytest.mark.parametrize("name", integrators())
def test_a_run_in_pieces_equals_one_in_one_go_bit_for_bit(name, potential, tmp_path):
    systems = molecules(6)
    integrator = integrators()[name]
    whole, pieces = tmp_path / "whole.h5", tmp_path / "pieces.h5"
    call = {"every": 5, "options": QUIET}
    full = run_md(systems, potential, integrator, n_steps=40, trajectory=whole, **call)
    for n_steps in (12, 25, 25, 40):
        part = run_md(
            systems,
            potential,
            integrator,
            n_steps=n_steps,
            trajectory=pieces,
            resume=True,
            **call,
        )
    assert contents(whole) == contents(pieces)
    assert len(contents(whole)) == 9
    for one, other in zip(full.atoms, part.atoms, strict=True):
        assert (one.positions == other.positions).all()
        assert (one.get_momenta() == other.get_momenta()).all()
    assert (full.series.conserved == part.series.conserved).all()


def test_lists_with_a_skin_resume_bit_for_bit(tmp_path):
    potential = random_potential(scope="local", cutoff=3.0)
    cell = np.diag([5.0, 5.2, 5.4])
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid([0.1, 0.4, 0.7], [0.1, 0.4, 0.7], [0.2, 0.6]), -1)
    places = (grid.reshape(-1, 3) + rng.uniform(-0.02, 0.02, (18, 3))) @ cell
    crystal = mlff.set_state(Atoms("C6H6O6", places, cell=cell, pbc=True), 0, 1)
    systems = [crystal, *molecules(3)]
    integrator = mlff.VelocityVerlet(timestep_fs=1.0, initial_temperature_K=600)
    call = {"every": 7, "options": QUIET}
    paths = [tmp_path / "whole.h5", tmp_path / "pieces.h5"]
    run_md(systems, potential, integrator, n_steps=60, trajectory=paths[0], **call)
    for n_steps in (20, 60):
        run_md(
            systems,
            potential,
            integrator,
            n_steps=n_steps,
            trajectory=paths[1],
            resume=True,
            **call,
        )
    assert contents(paths[0]) == contents(paths[1])


def test_frozen_systems_stay_frozen_after_a_resume(potential, tmp_path):
    systems = molecules(4)
    systems[1].set_momenta(systems[1].get_momenta() * 60)
    options = MDOptions(
        limits=Limits(max_temperature_K=20_000, max_force_eV_per_A=1e9), progress=False
    )
    paths = [tmp_path / "whole.h5", tmp_path / "pieces.h5"]
    call = {"every": 5, "options": options}
    run_md(systems, potential, VERLET, n_steps=20, trajectory=paths[0], **call)
    for n_steps in (10, 20):
        part = run_md(
            systems,
            potential,
            VERLET,
            n_steps=n_steps,
            trajectory=paths[1],
            resume=True,
            **call,
        )
    assert set(part.frozen) == {1}
    assert contents(paths[0]) == contents(paths[1])


def test_a_resumed_run_must_be_the_same(potential, tmp_path):
    systems, path = molecules(3), tmp_path / "run.h5"
    run_md(systems, potential, VERLET, n_steps=10, trajectory=path, options=QUIET)
    before = path.read_bytes()
    other = mlff.VelocityVerlet(timestep_fs=0.25)
    moved = [atoms.copy() for atoms in systems]
    moved[1].positions += 0.01
    cases = [
        ((systems, potential, other), {}, "timestep_fs"),
        ((moved, potential, VERLET), {}, "start"),
        ((systems[:2], potential, VERLET), {}, "start"),
        ((systems, potential, VERLET), {"every": 5}, "every"),
        ((systems, random_potential(n_layers=1), VERLET), {}, "potential"),
        ((systems, potential, integrators()["langevin"]), {}, "integrator"),
    ]
    for arguments, changes, named in cases:
        call = {"n_steps": 20, "every": 10, "options": QUIET, **changes}
        with pytest.raises(InputError, match=f"{named}="):
            run_md(*arguments, trajectory=path, resume=True, **call)
        assert path.read_bytes() == before


def test_a_trajectory_is_not_overwritten_unless_asked(potential, tmp_path):
    systems, path = molecules(2), tmp_path / "run.h5"
    run_md(systems, potential, VERLET, n_steps=3, trajectory=path, options=QUIET)
    with pytest.raises(InputError, match=r"run\.h5"):
        run_md(systems, potential, VERLET, n_steps=3, trajectory=path, options=QUIET)
    options = MDOptions(overwrite=True, progress=False)
    run_md(systems, potential, VERLET, n_steps=30, trajectory=path, options=options)
    assert len(contents(path)) == 4


@pytest.mark.parametrize("name", ["run.xyz", "run.traj", "run"])
def test_only_hdf5_is_written_as_a_run_goes(name, potential, tmp_path):
    with pytest.raises(InputError, match="export"):
        run_md(
            molecules(2),
            potential,
            VERLET,
            n_steps=3,
            trajectory=tmp_path / name,
            options=QUIET,
        )


def test_a_trajectory_says_what_a_result_says(potential, tmp_path):
    systems, path = molecules(4), tmp_path / "run.h5"
    result = run_md(
        systems, potential, VERLET, n_steps=20, trajectory=path, options=QUIET
    )
    found = mlff.Trajectory(path)
    assert found.n_frames == 3
    assert (found.energy == result.series.energy).all()
    for index, atoms in enumerate(result.atoms):
        last = found.atoms(index, -1)
        assert (last.positions == atoms.positions).all()
        assert (last.get_momenta() == atoms.get_momenta()).all()
        assert last.info["charge"] == atoms.info["charge"]
        assert last.info["spin"] == atoms.info["spin"]
        assert last.get_potential_energy() == atoms.get_potential_energy()


def test_a_barostat_runs_and_resumes(tmp_path):
    potential = random_potential(scope="local", cutoff=3.0)
    cell = np.diag([6.0, 6.2, 6.4])
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid([0.1, 0.4, 0.7], [0.1, 0.4, 0.7], [0.2, 0.6]), -1)
    places = (grid.reshape(-1, 3) + rng.uniform(-0.02, 0.02, (18, 3))) @ cell
    crystal = mlff.set_state(Atoms("C6H6O6", places, cell=cell, pbc=True), 0, 1)
    thermostat = mlff.Langevin(timestep_fs=0.5, temperature_K=300, friction_per_fs=0.05)
    integrator = mlff.FlexibleCellRescaling(
        thermostat=thermostat, pressure_GPa=1.0, compressibility_per_GPa=0.05
    )
    paths = [tmp_path / "whole.h5", tmp_path / "pieces.h5"]
    call = {"every": 5, "options": QUIET}
    systems = [crystal, crystal.copy()]
    run_md(systems, potential, integrator, n_steps=20, trajectory=paths[0], **call)
    for n_steps in (10, 20):
        part = run_md(
            systems,
            potential,
            integrator,
            n_steps=n_steps,
            trajectory=paths[1],
            resume=True,
            **call,
        )
    assert contents(paths[0]) == contents(paths[1])
    volumes = [atoms.get_volume() for atoms in part.atoms]
    assert abs(volumes[0] / crystal.get_volume() - 1) > 1e-5
    assert volumes[0] != volumes[1]  # each has its own noise


def test_positions_of_any_type_come_back_in_full_precision(potential):
    systems = molecules(2)
    for atoms in systems:
        for name in ("positions", "momenta"):
            atoms.arrays[name] = atoms.arrays[name].round().astype(int)
    systems[1].positions += np.arange(len(systems[1]))[:, None]
    result = run_md(systems[1:], potential, VERLET, n_steps=3, options=QUIET)
    for array in (result.atoms[0].positions, result.atoms[0].get_momenta()):
        assert array.dtype == np.float64
        assert np.abs(array - array.round()).max() > 1e-3


def test_numbers_of_numpy_are_as_good_as_those_of_python(potential, tmp_path):
    options = MDOptions(
        limits=Limits(max_force_eV_per_A=np.int64(500)),
        skin_A=np.float32(0.5),
        progress=False,
    )
    ramp = mlff.Ramp(times_fs=np.array([0, 10]), values=np.array([300, 400]))
    integrator = mlff.Langevin(timestep_fs=np.float64(0.5), temperature_K=ramp)
    call = {"every": np.int64(1), "trajectory": tmp_path / "run.h5", "resume": True}
    for n_steps in (np.int8(3), np.int16(6)):
        result = run_md(
            molecules(2),
            potential,
            integrator,
            n_steps=n_steps,
            options=options,
            **call,
        )
    assert result.series.times_fs.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_run_does_not_get_shorter(potential, tmp_path):
    call = {"trajectory": tmp_path / "run.h5", "options": QUIET, "every": 5}
    run_md(molecules(2), potential, VERLET, n_steps=20, **call)
    with pytest.raises(InputError, match="20 steps"):
        run_md(molecules(2), potential, VERLET, n_steps=10, resume=True, **call)


def test_a_copy_of_a_trajectory_reads_its_own_file(potential, tmp_path):
    for name, systems in (("a", molecules(2)), ("b", molecules(4)[2:])):
        path = tmp_path / f"{name}.h5"
        run_md(systems, potential, VERLET, n_steps=3, trajectory=path, options=QUIET)
    first = mlff.Trajectory(tmp_path / "a.h5")
    expected = first.positions(1)
    copies = [copy.copy(first), copy.deepcopy(first)]
    del first
    gc.collect()
    other = mlff.Trajectory(tmp_path / "b.h5")
    for found in copies:
        assert (found.positions(1) == expected).all()
    assert other.n_systems == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"limits": {}}, "limits"),
        ({"limits": None}, "limits"),
        ({"skin_A": "0.5"}, "skin_A"),
        ({"skin_A": -1.0}, "skin_A"),
        ({"states": None}, "states"),
    ],
)
def test_options_that_cannot_be_are_refused(options, named):
    with pytest.raises((InputError, InputTypeError), match=named):
        MDOptions(**options)


@pytest.mark.parametrize("states", [[(0,)], (0, 1), [None], [(0, 1.5)], [(True, 1)]])
def test_states_that_are_no_pairs_are_refused(states):
    options = MDOptions(states=states, progress=False)
    with pytest.raises(InputError, match="states"):
        run_md(carbenes(2), mlff.load("ch2"), VERLET, n_steps=1, options=options)

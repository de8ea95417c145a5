"""MLFFCalculator in daily use, with the tools of ASE around it."""

import copy
import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator as ASESumCalculator
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from calculator_cases import (
    carbene,
    crystal,
    energy_of,
    forces_of,
    with_state,
)
from numpy.testing import assert_allclose

import mlff.calculator
from mlff.batch import AtomsBatch
from mlff.calculator import MLFFCalculator, SumCalculator
from mlff.errors import (
    InputError,
    InputTypeError,
    MlffError,
    MlffWarning,
    ModelFileError,
    StateError,
)
from mlff.neighbors import neighbor_list
from mlff.potential import Potential
from mlff.state import State, set_state

pytestmark = pytest.mark.usefixtures("forget_warnings")


def test_a_model_is_a_name_a_path_or_a_potential(molecular, tmp_path):
    path = tmp_path / "model.safetensors"
    molecular.save(path)
    atoms = carbene()
    expected = energy_of(atoms, molecular)
    assert energy_of(atoms, path) == expected
    assert energy_of(atoms, str(path)) == expected
    for wrong in ("no-such-model", tmp_path / "missing"):
        with pytest.raises(ModelFileError, match="shipped"):
            MLFFCalculator(wrong)
    with pytest.raises(InputTypeError, match="`model`"):
        MLFFCalculator(3)


def test_another_precision_leaves_the_given_potential_as_it_is(molecular):
    calculator = MLFFCalculator(molecular, dtype=torch.float32)
    assert calculator.potential.dtype == torch.float32
    assert molecular.dtype == torch.float64
    assert MLFFCalculator(molecular, dtype="float64").potential is molecular
    atoms = carbene()
    double = energy_of(atoms, molecular)
    single = energy_of(atoms, molecular, dtype="float32")
    assert single != double
    assert single == pytest.approx(double, abs=1e-4)


def test_state_can_be_given_to_the_calculator_and_changed_there(molecular):
    atoms = carbene()
    atoms.info.clear()
    atoms.calc = MLFFCalculator(molecular, charge=0, spin=3)
    assert atoms.get_potential_energy() == energy_of(carbene(spin=3), molecular)
    assert atoms.calc.state_used == State(0, 3)
    assert atoms.calc.set(spin=np.int64(1)) == {"spin": 1}
    assert atoms.calc.results == {}
    assert atoms.get_potential_energy() == energy_of(carbene(spin=1), molecular)
    atoms.calc.parameters["spin"] = 5  # past set(), and yet seen
    assert atoms.get_potential_energy() == energy_of(carbene(spin=5), molecular)
    assert atoms.info == {}


def test_a_state_of_the_calculator_that_the_atoms_contradict_is_refused(molecular):
    atoms = carbene(spin=3)
    atoms.calc = MLFFCalculator(molecular, spin=1)
    with pytest.raises(StateError, match="argument spin = 1"):
        atoms.get_potential_energy()


def test_unknown_parameters_are_refused_with_the_known_ones(molecular):
    calculator = MLFFCalculator(molecular)
    with pytest.raises(InputError, match=r"'multiplicity'.*'charge', 'spin', 'strict'"):
        calculator.set(multiplicity=3)
    with pytest.raises(InputTypeError, match="`spin`"):
        calculator.set(spin="3")
    assert calculator.todict() == {}
    calculator.set(charge=1)
    assert calculator.todict() == {"charge": 1}


def test_without_atoms_or_results_there_is_a_clear_error(molecular):
    calculator = MLFFCalculator(molecular)
    with pytest.raises(InputError, match="`atoms`"):
        calculator.get_potential_energy()
    atoms = carbene()
    energy = calculator.get_potential_energy(atoms)
    assert calculator.get_potential_energy() == energy


def test_a_direct_call_that_fails_leaves_no_results(molecular):
    calculator = MLFFCalculator(molecular)
    atoms = carbene()
    calculator.calculate(atoms)
    assert calculator.results["energy"] == energy_of(atoms, molecular)
    atoms.positions[0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        calculator.calculate(atoms)
    assert calculator.results == {}
    assert calculator.atoms is None


def test_a_step_is_one_evaluation_and_keeps_list_and_batch(local, monkeypatch):
    calls = {"model": 0, "converted": 0}
    forward, from_atoms = Potential.forward, AtomsBatch.from_atoms.__func__

    def counted_forward(self, *args, **kwargs):
        calls["model"] += 1
        return forward(self, *args, **kwargs)

    def counted_from_atoms(cls, *args, **kwargs):
        calls["converted"] += 1
        return from_atoms(cls, *args, **kwargs)

    monkeypatch.setattr(Potential, "forward", counted_forward)
    monkeypatch.setattr(AtomsBatch, "from_atoms", classmethod(counted_from_atoms))
    atoms = crystal()
    atoms.calc = MLFFCalculator(local, skin=1.0)
    rng = np.random.default_rng(4)
    start = atoms.positions.copy()
    for _ in range(7):
        atoms.positions = start + 0.05 * rng.normal(size=(4, 3))
        atoms.get_forces()
        atoms.get_stress()
        atoms.get_potential_energy()
        atoms.get_potential_energies()
    assert calls == {"model": 7, "converted": 1}
    assert atoms.calc._neighbors.builds == 1
    fresh = forces_of(atoms, local)
    assert_allclose(atoms.get_forces(), fresh, atol=1e-10)


def test_another_cell_is_another_list_and_batch(local):
    atoms = crystal()
    atoms.calc = MLFFCalculator(local)
    atoms.get_forces()
    atoms.set_cell(atoms.cell.array * 0.9, scale_atoms=True)
    assert sorted(atoms.calc.check_state(atoms)) == ["cell", "positions"]
    assert atoms.get_potential_energy() == pytest.approx(energy_of(atoms, local))
    atoms.pbc = (True, False, True)
    assert atoms.calc.check_state(atoms) == ["pbc"]
    assert atoms.get_potential_energy() == pytest.approx(energy_of(atoms, local))


def test_per_atom_energies_add_up(molecular):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    energies = atoms.get_potential_energies()
    assert energies.shape == (3,)
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_a_model_that_overflows_is_an_error_not_a_number(molecular):
    potential = copy.deepcopy(molecular)
    potential.heads["energy"].linear.weight.fill_(1e308)
    expect_refusal_of = carbene()
    expect_refusal_of.calc = MLFFCalculator(potential)
    with pytest.raises(InputError, match="not finite"):
        expect_refusal_of.get_potential_energy()
    assert expect_refusal_of.calc.results == {}


def test_separate_molecules_in_a_model_of_global_attention_are_announced(
    molecular, local
):
    pair = carbene() + Atoms("CO", [[20, 0, 0], [20, 0, 1.2]])
    with_state(pair, spin=3)
    with pytest.warns(MlffWarning, match="2 parts"):
        energy_of(pair, molecular)
    energy_of(pair, local)  # additive: nothing to say, and warnings are errors here


def test_separate_molecules_add_up_where_the_model_is_additive(local):
    first = with_state(molecule("CH4"))
    second = with_state(Atoms("CO", [[50, 0, 0], [50, 0, 1.2]]))
    both = with_state(first + second)
    apart = energy_of(first, local) + energy_of(second, local)
    assert abs(energy_of(both, local) - apart) < 1e-9
    expected = np.vstack([forces_of(first, local), forces_of(second, local)])
    assert_allclose(forces_of(both, local), expected, atol=1e-8)


@pytest.mark.parametrize("name", ["CH2_s3B1d", "CO"])
def test_every_charge_and_multiplicity_has_an_energy_of_its_own(molecular, name):
    atoms = molecule(name)
    atoms.set_initial_magnetic_moments(None)
    electrons = sum(atoms.numbers)
    energies = [
        energy_of(with_state(atoms.copy(), charge, spin), molecular)
        for charge in (-2, -1, 0, 1, 2)
        for spin in (1, 2, 3, 4)
        if (electrons - charge + spin) % 2
    ]
    assert len(energies) == 10
    assert np.diff(np.sort(energies)).min() > 1e-6


def test_nothing_is_kept_of_past_calls(molecular):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    start = atoms.positions.copy()
    rng = np.random.default_rng(8)

    def run(n_calls):
        for _ in range(n_calls):
            atoms.positions = start + 0.02 * rng.normal(size=start.shape)
            atoms.get_forces()
        gc.collect()
        return len(gc.get_objects()), _resident_kilobytes()

    run(100)
    objects, memory = run(50)
    more_objects, more_memory = run(500)
    assert more_objects - objects < 50
    assert more_memory - memory < 2000  # kB: less than what one graph a call takes


def _resident_kilobytes():
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1])


def test_bfgs_finds_a_minimum(molecular):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    start = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=200)
    assert atoms.get_potential_energy() < start
    assert np.abs(atoms.get_forces()).max() < 1e-3


def test_velocity_verlet_conserves_energy_and_angular_momentum(molecular):
    atoms = carbene()
    rng = np.random.default_rng(9)
    atoms.set_momenta(0.05 * rng.normal(size=(3, 3)))
    from ase.md.velocitydistribution import Stationary, ZeroRotation

    Stationary(atoms)
    ZeroRotation(atoms)
    atoms.calc = MLFFCalculator(molecular)
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    start = atoms.get_total_energy()
    drift = []
    for _ in range(20):
        dynamics.run(10)
        drift.append(abs(atoms.get_total_energy() - start))
    assert max(drift) < 3e-3
    assert np.abs(atoms.get_angular_momentum()).max() < 1e-5


@pytest.mark.parametrize("suffix", ["traj", "extxyz", "db", "json"])
def test_frames_are_written_with_results_and_state(local, tmp_path, suffix):
    atoms = set_state(carbene(), charge=0, spin=3)
    atoms.calc = MLFFCalculator(local)
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    path = tmp_path / f"frame.{suffix}"
    write(path, atoms)
    frame = read(path)
    assert frame.get_potential_energy() == pytest.approx(energy)
    assert_allclose(frame.get_forces(), forces, atol=1e-7)
    assert energy_of(frame, local) == pytest.approx(energy, abs=1e-6)


def test_our_sum_sees_a_change_of_spin_that_the_sum_of_ase_misses(molecular):
    members = [MLFFCalculator(molecular), MLFFCalculator(molecular)]
    atoms = carbene(spin=3)
    for kind, sees in ((SumCalculator, True), (ASESumCalculator, False)):
        atoms.info["spin"] = 3
        atoms.calc = kind(members)
        before = atoms.get_potential_energy()
        atoms.info["spin"] = 1
        assert (abs(atoms.get_potential_energy() - before) > 1e-6) == sees
    assert energy_of(atoms, molecular) == pytest.approx(
        SumCalculator(members).get_potential_energy(atoms) / 2
    )


def test_our_sum_follows_parameters_of_its_members_and_exports_properties(molecular):
    member = MLFFCalculator(molecular, charge=0, spin=1)
    atoms = carbene()
    atoms.info.clear()
    atoms.calc = SumCalculator([member, EMT()])
    before = atoms.get_potential_energy()
    member.set(spin=3)
    assert abs(atoms.get_potential_energy() - before) > 1e-6
    found = atoms.get_properties(["energy", "forces"])
    assert found["energy"] == atoms.get_potential_energy()


def test_any_nonsense_is_an_answer_or_a_typed_error(local):
    rng = np.random.default_rng(11)
    junk = [0, 1, 2, 3, -1, 0.5, np.nan, "1", None, True, [1], np.ones(2), 1e30, {}]
    answered = refused = 0
    calculator = MLFFCalculator(local)
    for _ in range(200):
        n_atoms = int(rng.choice([0, 1, 2, 4, 7]))
        numbers = rng.choice([1, 6, 8], n_atoms)
        atoms = Atoms(numbers, rng.normal(size=(n_atoms, 3)) * rng.choice([1, 2, 4]))
        if rng.random() < 0.4:
            atoms.pbc = rng.random(3) < 0.7
            cell = 4 * np.eye(3) + rng.normal(size=(3, 3))
            atoms.set_cell(cell * (rng.random((3, 1)) < 0.9))
        if n_atoms and rng.random() < 0.2:
            bad = rng.choice([np.nan, np.inf, 1e7, 0.0])
            atoms.positions[rng.integers(n_atoms), rng.integers(3)] = bad
        atoms.info["charge"] = 0
        atoms.info["spin"] = 1 + int(numbers.sum()) % 2
        if rng.random() < 0.3:
            key = str(rng.choice(["charge", "spin", "mult", "S", "Q", "note"]))
            atoms.info[key] = junk[rng.integers(len(junk))]
        atoms.calc = calculator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MlffWarning)
            try:
                energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            except MlffError:
                refused += 1
                assert calculator.results == {}
            else:
                answered += 1
                assert np.isfinite(energy)
                assert np.isfinite(forces).all()
    assert answered > 50
    assert refused > 30


def test_the_pure_function_gives_the_same_without_any_cache(local):
    for atoms in (carbene(), crystal()):
        batch = AtomsBatch.from_atoms([atoms])
        edges = neighbor_list(batch, local.cutoff)
        found = mlff.calculator.evaluate(local, batch, edges)
        assert found["energy"] == pytest.approx(energy_of(atoms, local), abs=1e-10)
        assert type(found["energy"]) is type(found["free_energy"]) is float
        assert ("stress" in found) == bool(atoms.pbc.any())
        assert found["forces"].flags["OWNDATA"]

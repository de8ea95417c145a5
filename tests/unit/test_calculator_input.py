"""MLFFCalculator and bad geometries and states.

Each name begins with its number in the list of abuses (1–25 of 35) in the reliability
goals of the project.
"""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import make_supercell
from ase.cell import Cell
from ase.constraints import FixAtoms
from calculator_cases import (
    build,
    carbene,
    crystal,
    energy_of,
    expect_refusal,
    forces_of,
    with_state,
)
from numpy.testing import assert_allclose

from mlff.calculator import MLFFCalculator
from mlff.errors import (
    InputError,
    InputTypeError,
    MlffWarning,
    StateError,
)
from mlff.state import State

pytestmark = pytest.mark.usefixtures("forget_warnings")


def test_01_empty_atoms_are_refused(molecular):
    expect_refusal(with_state(Atoms()), molecular, InputError, "empty")


def test_02_a_single_atom_has_an_energy_and_exactly_no_force(molecular):
    atoms = with_state(Atoms("C"), spin=3)
    assert np.isfinite(energy_of(atoms, molecular))
    assert not forces_of(atoms, molecular).any()


def test_03_one_atom_in_a_tiny_cell_is_an_eighth_of_its_supercell(local):
    atoms = with_state(Atoms("C", cell=np.eye(3) * 1.2, pbc=True))
    larger = atoms.repeat(2)
    expected = energy_of(larger, local) / 8
    assert energy_of(atoms, local) == pytest.approx(expected, rel=1e-12)
    assert_allclose(forces_of(larger, local), 0.0, atol=1e-10)


@pytest.mark.parametrize("apart", [0.0, 5e-4])
def test_04_coincident_atoms_are_refused(molecular, apart):
    atoms = with_state(Atoms("CH2", [[0, 0, 0], [0, 0, 1.1], [0, 0, 1.1 + apart]]))
    expect_refusal(atoms, molecular, InputError, "atoms 1 and 2")


def test_04_coincident_images_are_refused(local):
    atoms = crystal()
    atoms.positions[1] = atoms.positions[0] + atoms.cell[2]
    expect_refusal(atoms, local, InputError, "atoms 0 and 1")


def test_04_atoms_that_run_into_each_other_are_refused(molecular):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    atoms.get_forces()
    atoms.positions[1] = atoms.positions[2]
    with pytest.raises(InputError, match="atoms 1 and 2"):
        atoms.get_forces()


def test_04_a_tenth_of_an_angstrom_is_finite(molecular):
    atoms = with_state(Atoms("CO", [[0, 0, 0], [0, 0, 0.1]]))
    assert np.isfinite(energy_of(atoms, molecular))
    assert np.isfinite(forces_of(atoms, molecular)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("periodic", [False, True])
def test_05_positions_that_are_not_finite_are_refused(local, bad, periodic):
    atoms = crystal(pbc=periodic)
    atoms.positions[2, 1] = bad
    expect_refusal(atoms, local, InputError, r"positions.*finite.*\[2\]")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_05_positions_that_become_not_finite_are_refused(molecular, bad):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    atoms.get_forces()
    atoms.positions[1, 2] = bad
    with pytest.raises(InputError, match=r"finite.*\[1\]"):
        atoms.get_forces()
    assert atoms.calc.results == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_06_a_cell_that_is_not_finite_is_refused(local, bad):
    atoms = crystal()
    atoms.cell[1, 1] = bad
    expect_refusal(atoms, local, InputError, r"cell.*finite")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_06_momenta_that_are_not_finite_are_refused(molecular, bad):
    atoms = carbene()
    atoms.arrays["momenta"] = np.zeros((3, 3))
    atoms.arrays["momenta"][2, 0] = bad
    expect_refusal(atoms, molecular, InputError, r"momenta.*\[2\]")


def test_07_elements_outside_training_are_refused_with_the_trained_ones(molecular):
    atoms = with_state(Atoms("NH3", carbene().positions[[0, 1, 2, 2]]))
    atoms.positions[3] += 1.0
    expect_refusal(atoms, molecular, InputError, r"\['N'\].*\['H', 'C', 'O'\]")


@pytest.mark.parametrize("number", [0, -1, 119])
def test_07_numbers_that_are_no_element_are_refused(molecular, number):
    atoms = carbene()
    atoms.numbers[1] = number
    expect_refusal(atoms, molecular, InputError, r"1 … 118")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_08_a_periodic_axis_without_a_cell_vector_is_refused(local, axis):
    atoms = crystal()
    atoms.cell[axis] = 0.0
    expect_refusal(atoms, local, InputError, rf"\[{axis}\], which are zero")
    atoms = carbene()
    atoms.pbc = True
    expect_refusal(atoms, local, InputError, r"\[0, 1, 2\], which are zero")


def test_09_a_singular_cell_is_refused(local):
    atoms = crystal()
    atoms.cell[2] = atoms.cell[0] - 2 * atoms.cell[1]
    expect_refusal(atoms, local, InputError, "singular")


def test_10_a_left_handed_cell_is_the_same_crystal(local):
    right = crystal()
    left = right.copy()
    left.set_cell(right.cell.array[[1, 0, 2]])
    assert np.linalg.det(left.cell.array) < 0
    assert energy_of(left, local) == pytest.approx(energy_of(right, local), rel=1e-13)
    for atoms in (left, right):
        atoms.calc = MLFFCalculator(local)
    assert_allclose(left.get_stress(), right.get_stress(), atol=1e-12)


def test_11_a_very_skewed_cell_is_the_same_crystal(local):
    straight = crystal()
    skewed = straight.copy()
    a, b, c = straight.cell.array
    skewed.set_cell([a, b + 6 * a, c - 5 * a + 4 * b])
    assert Cell(skewed.cell).angles().min() < 10
    assert_allclose(energy_of(skewed, local), energy_of(straight, local), rtol=1e-13)
    assert_allclose(forces_of(skewed, local), forces_of(straight, local), atol=1e-9)


def test_12_a_cutoff_beyond_half_the_cell_sees_all_images(local):
    atoms = with_state(
        Atoms("CO", [[0, 0, 0], [0.9, 0.8, 0.2]], cell=[2.0, 2.2, 2.5], pbc=True)
    )
    assert local.cutoff > max(atoms.cell.lengths())
    matrix = [[1, 1, 0], [0, 2, 0], [1, 0, 3]]
    larger = with_state(make_supercell(atoms, matrix))
    assert len(larger) == 6 * len(atoms)
    assert_allclose(energy_of(larger, local), 6 * energy_of(atoms, local), rtol=1e-12)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_13_a_slab_needs_no_third_cell_vector(local, fill):
    slab = crystal()
    slab.pbc = (True, True, False)
    slab.cell[2] = np.array([0, 0, 0.3]) * fill
    thick = slab.copy()
    thick.cell[2] = [0, 0, 60.0]
    thick.pbc = True
    assert_allclose(energy_of(slab, local), energy_of(thick, local), rtol=1e-13)
    assert_allclose(forces_of(slab, local), forces_of(thick, local), atol=1e-10)


def test_14_atoms_may_lie_in_any_cell(local):
    atoms = crystal()
    moved = atoms.copy()
    cells = np.random.default_rng(0).integers(-5, 6, (4, 3))
    moved.positions += cells @ atoms.cell.array
    assert_allclose(energy_of(moved, local), energy_of(atoms, local), rtol=1e-13)
    assert_allclose(forces_of(moved, local), forces_of(atoms, local), atol=1e-9)


def test_14_wrapping_between_steps_changes_nothing(local):
    atoms = crystal()
    atoms.calc = MLFFCalculator(local)
    before = atoms.get_forces()
    atoms.positions += 2 * atoms.cell[0] - atoms.cell[2]
    assert_allclose(atoms.get_forces(), before, atol=1e-9)
    atoms.wrap()
    assert_allclose(atoms.get_forces(), before, atol=1e-9)


@pytest.mark.parametrize("periodic", [False, True])
def test_15_coordinates_without_digits_left_are_refused(local, periodic):
    atoms = crystal(pbc=periodic)
    atoms.positions += 1e12
    expect_refusal(atoms, local, InputError, r"within ±1e\+06 Å")


def test_15_a_thousand_angstrom_away_nothing_changes(molecular):
    atoms = carbene()
    moved = atoms.copy()
    moved.positions += [1000, -1000, 1000]
    assert abs(energy_of(moved, molecular) - energy_of(atoms, molecular)) < 1e-9


def test_15_float32_does_not_depend_on_where_a_molecule_is(molecular):
    atoms = carbene()
    moved = atoms.copy()
    moved.positions += 1000
    here, there = (energy_of(a, molecular, dtype="float32") for a in (atoms, moved))
    assert abs(here - there) < 1e-4


def test_16_a_fractional_charge_is_refused(molecular):
    atoms = carbene()
    atoms.info["charge"] = 0.5
    expect_refusal(atoms, molecular, StateError, "integral, got 0.5")
    with pytest.raises(StateError, match=r"`charge`.*integral"):
        MLFFCalculator(molecular, charge=0.5)


def test_17_wrong_parity_is_refused_with_the_electron_count(molecular):
    expect_refusal(carbene(spin=2), molecular, StateError, "8 electrons")


@pytest.mark.parametrize(
    ("charge", "spin"), [(9, 2), (-9, 2), (0, 0), (0, -1), (0, 11)]
)
def test_18_states_out_of_range_are_refused(molecular, charge, spin):
    atoms = with_state(carbene(), charge, spin)
    expect_refusal(atoms, molecular, StateError, "must lie")


@pytest.mark.parametrize("key", ["spin_multiplicity", "mult", "multiplicity", "S"])
def test_19_keys_that_disagree_are_refused(molecular, key):
    atoms = carbene(spin=3)
    atoms.info[key] = 0 if key == "S" else 1
    expect_refusal(atoms, molecular, StateError, "conflicting")


def test_20_a_missing_state_is_assumed_with_one_warning(molecular):
    atoms = carbene(spin=1)
    atoms.info.clear()
    atoms.calc = MLFFCalculator(molecular)
    with pytest.warns(MlffWarning, match=r"charge 0 and spin \(multiplicity\) 1"):
        energy = atoms.get_potential_energy()
    atoms.positions += 0.1
    atoms.get_potential_energy()  # and warnings are errors here: it does not repeat
    assert atoms.info == {}
    assert atoms.calc.state_used == State(0, 1)
    assert energy == energy_of(carbene(spin=1), molecular)


def test_20_a_missing_state_is_refused_for_radicals_and_if_strict(molecular):
    radical = Atoms("CH3", np.eye(4, 3) * 1.1, info={"charge": 0})
    expect_refusal(radical, molecular, StateError, "9 electrons")
    atoms = carbene()
    atoms.info.clear()
    atoms.calc = MLFFCalculator(molecular, strict=True)
    with pytest.raises(StateError, match="no charge and no spin"):
        atoms.get_potential_energy()


@pytest.mark.parametrize(("key", "value"), [("spin", 1), ("spin", 5), ("charge", 2)])
def test_21_a_change_of_info_is_a_new_result(molecular, key, value):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    before = atoms.get_potential_energy()
    atoms.info[key] = value
    assert atoms.calc.check_state(atoms) == ["info"]
    after = atoms.get_potential_energy()
    assert abs(after - before) > 1e-6
    assert after == energy_of(atoms, molecular)


def test_21_a_state_changed_in_place_is_a_new_result(molecular):
    atoms = carbene()
    atoms.info["spin"] = np.array(3)
    atoms.calc = MLFFCalculator(molecular)
    before = atoms.get_potential_energy()
    atoms.info["spin"][...] = 1
    assert abs(atoms.get_potential_energy() - before) > 1e-6


def test_22_arrays_and_tensors_in_info_do_no_harm(molecular):
    atoms = carbene()
    expected = energy_of(atoms, molecular)
    atoms.info.update(field=np.ones(4), tensor=torch.ones(2, 2), nested={"x": [1]})
    atoms.calc = MLFFCalculator(molecular)
    assert atoms.get_potential_energy() == expected
    atoms.info["field"] = np.zeros(2)
    assert atoms.get_potential_energy() == expected


@pytest.mark.parametrize("value", [np.ones(3), torch.ones(2), "3", [3], {}, True])
def test_22_a_spin_that_is_no_number_is_a_typed_error(molecular, value):
    atoms = carbene()
    atoms.info["spin"] = value
    calculator = MLFFCalculator(molecular)
    with pytest.raises(InputTypeError, match="spin"):
        calculator.get_potential_energy(atoms)


def test_23_none_in_info_is_the_default(molecular):
    atoms = carbene()
    atoms.info.update(charge=None, spin=None)
    with pytest.warns(MlffWarning, match="assuming"):
        energy = energy_of(atoms, molecular)
    assert energy == energy_of(carbene(spin=1), molecular)


def test_24_unrelated_changes_are_no_new_result(molecular):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    atoms.get_potential_energy()
    atoms.info["note"] = np.ones(3)
    atoms.set_tags([1, 2, 3])
    atoms.set_momenta(np.ones((3, 3)))
    atoms.set_constraint(FixAtoms([0]))
    atoms.set_initial_magnetic_moments([2, 0, 0])  # the triplet that info says
    atoms.info["spin"] = np.int64(3)
    assert atoms.calc.check_state(atoms) == []


def test_25_a_state_outside_training_warns_once_and_is_refused_if_strict():
    potential = build(states=((0, 1), (0, 3)))
    atoms = carbene(spin=5)
    atoms.calc = MLFFCalculator(potential)
    with pytest.warns(MlffWarning, match=r"multiplicity 5 .*seen: .*1.*3"):
        atoms.get_potential_energy()
    atoms.positions *= 1.01
    atoms.get_potential_energy()
    atoms.calc.set(strict=True)
    with pytest.raises(InputError, match="multiplicity 5"):
        atoms.get_potential_energy()
    atoms.info["spin"] = 3
    assert np.isfinite(atoms.get_potential_energy())

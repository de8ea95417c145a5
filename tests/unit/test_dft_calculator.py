"""DFT as an ASE calculator: results, what makes them old, and what is refused."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces

import mlff
from mlff.dft import DFTCalculator, DFTSettings, NotConverged, label
from mlff.errors import InputError, InputTypeError, StateError

SETTINGS = DFTSettings(xc="hf", basis="sto-3g", stability=False)

pytestmark = pytest.mark.pyscf
pytest.importorskip("pyscf")


def hydroxyl(charge=0, spin=2):
    atoms = Atoms("OH", [[0.0, 0.0, 0.0], [0.1, 0.2, 0.95]])
    return mlff.set_state(atoms, charge, spin)


@pytest.fixture
def counted(monkeypatch):
    """Number of labels that were computed."""
    made = []

    def counting(*arguments):
        made.append(arguments)
        return label(*arguments)

    monkeypatch.setattr("mlff.dft.label", counting)
    return made


def test_results_are_those_of_a_label(counted):
    atoms = hydroxyl()
    atoms.calc = DFTCalculator(SETTINGS)
    expected = label(atoms, SETTINGS)
    assert atoms.get_potential_energy() == expected.info["REF_energy"]
    assert atoms.get_potential_energy(force_consistent=True) == pytest.approx(
        expected.info["REF_energy"]
    )
    np.testing.assert_array_equal(atoms.get_forces(), expected.arrays["REF_forces"])
    np.testing.assert_array_equal(
        atoms.get_dipole_moment(), expected.info["REF_dipole"]
    )
    assert len(counted) == 1
    assert atoms.calc.labelled.info["s_squared"] == expected.info["s_squared"]
    numerical = calculate_numerical_forces(atoms, eps=1e-3, iatoms=[1])
    np.testing.assert_allclose(numerical[0], atoms.get_forces()[1], atol=1e-3)


def test_another_state_is_another_calculation(counted):
    atoms = hydroxyl()
    atoms.calc = DFTCalculator(SETTINGS)
    neutral = atoms.get_potential_energy()
    mlff.set_state(atoms, -1, 1)
    anion = atoms.get_potential_energy()
    assert abs(anion - neutral) > 1.0
    assert atoms.calc.check_state(atoms) == []
    other = Atoms(atoms.numbers, atoms.positions, info={"charge": 0, "spin": 2})
    assert atoms.calc.check_state(other) == ["info"]
    assert atoms.calc.get_potential_energy(other) == pytest.approx(neutral, abs=1e-6)
    assert len(counted) == 3


def test_what_does_not_matter_is_no_reason_to_compute_again(counted):
    atoms = hydroxyl()
    atoms.calc = DFTCalculator(SETTINGS)
    atoms.get_potential_energy()
    atoms.info["note"] = "of no account"
    atoms.set_velocities(np.ones((2, 3)))
    atoms.get_forces()
    assert len(counted) == 1
    atoms.positions[1, 2] += 1e-3
    atoms.get_forces()
    assert len(counted) == 2


def test_a_failure_leaves_no_results(monkeypatch):
    atoms = hydroxyl()
    atoms.calc = DFTCalculator(SETTINGS)
    atoms.get_potential_energy()

    def fail(*arguments):
        raise NotConverged("on purpose")

    monkeypatch.setattr("mlff.dft.label", fail)
    atoms.positions[1, 2] += 0.01
    with pytest.raises(NotConverged):
        atoms.get_potential_energy()
    assert atoms.calc.results == {}
    assert atoms.calc.labelled is None


def test_what_has_no_label_is_refused():
    calculator = DFTCalculator(SETTINGS)
    with pytest.raises(StateError, match="no charge and no spin"):
        calculator.get_potential_energy(Atoms("OH", [[0, 0, 0], [0, 0, 1]]))
    with pytest.raises(StateError, match="does not fit"):
        calculator.get_potential_energy(
            Atoms("OH", [[0, 0, 0], [0, 0, 1]], info={"charge": 0, "spin": 1})
        )
    with pytest.raises(InputError, match="`atoms` is needed"):
        calculator.calculate()
    with pytest.raises(InputTypeError, match="must be mlff"):
        DFTCalculator("b3lyp5/cc-pvdz")
    assert DFTCalculator().settings == DFTSettings()

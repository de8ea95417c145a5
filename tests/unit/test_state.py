"""Every rule of reading, checking and writing the electronic state of a system."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.io import read, write

from mlff import errors
from mlff.errors import InputError, InputTypeError, MlffError, MlffWarning, StateError
from mlff.state import State, as_integer, check_state, read_state, set_state


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch):
    monkeypatch.setattr(errors, "_said", set())


def carbene(**info):
    """CH2 without any trace of a state but ``info``."""
    atoms = Atoms("CH2", [[0, 0, 0.1], [0, 0.98, -0.3], [0, -0.98, -0.3]])
    atoms.info.update(info)
    return atoms


def test_charge_and_spin_are_read_from_info():
    assert read_state(carbene(charge=1, spin=2)) == State(1, 2)


@pytest.mark.parametrize("key", ["charge", "total_charge", "Q"])
def test_every_charge_key_is_understood(key):
    assert read_state(carbene(**{key: -1, "spin": 2})).charge == -1


@pytest.mark.parametrize("key", ["spin_multiplicity", "spin", "mult", "multiplicity"])
def test_every_multiplicity_key_is_understood(key):
    assert read_state(carbene(**{key: 3, "charge": 0})).multiplicity == 3


@pytest.mark.parametrize(
    ("spin", "charge", "expected"), [(0, 0, 1), (0.5, 1, 2), (1, 0, 3)]
)
def test_legacy_q_and_s_hold_charge_and_spin_quantum_number(spin, charge, expected):
    assert read_state(carbene(Q=charge, S=spin)) == State(charge, expected)


def test_arguments_are_read_first_and_suffice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_state(carbene(), charge=-1, spin=2) == State(-1, 2)


def test_arguments_may_repeat_what_info_says():
    assert read_state(carbene(charge=1, spin=2), charge=1, spin=2) == State(1, 2)


@pytest.mark.parametrize(
    ("info", "arguments"),
    [
        ({"charge": 0, "total_charge": 1, "spin": 1}, {}),
        ({"charge": 0, "Q": 1, "spin": 1}, {}),
        ({"charge": 0, "spin": 1, "spin_multiplicity": 3}, {}),
        ({"charge": 0, "spin": 1, "mult": 3}, {}),
        ({"charge": 0, "multiplicity": 1, "S": 1}, {}),
        ({"charge": 0, "spin": 1}, {"charge": 1}),
        ({"charge": 0, "spin": 1}, {"spin": 3}),
    ],
)
def test_two_sources_that_disagree_are_refused_and_both_named(info, arguments):
    with pytest.raises(StateError, match="conflicting") as caught:
        read_state(carbene(**info), **arguments)
    assert str(caught.value).count(" = ") >= 2
    assert "set_state" in str(caught.value)


def test_initial_charges_that_disagree_with_info_are_refused():
    atoms = carbene(charge=0, spin=2)
    atoms.set_initial_charges([0.5, 0.25, 0.25])
    with pytest.raises(StateError, match="sum of initial_charges = 1"):
        read_state(atoms)


def test_sums_of_charges_and_moments_are_a_source():
    atoms = carbene()
    atoms.set_initial_charges([0.6, 0.2, 0.2])
    atoms.set_initial_magnetic_moments([-1, 0, 0])
    assert read_state(atoms) == State(1, 2)


def test_ase_molecules_with_moments_need_only_a_charge():
    assert read_state(molecule("CH2_s3B1d"), charge=0) == State(0, 3)
    assert read_state(molecule("NO"), charge=0) == State(0, 2)


def test_every_molecule_of_ase_g2_is_read_as_a_possible_neutral_state():
    for name in g2.names:
        atoms = molecule(name)
        radical = atoms.has("initial_magmoms")
        state = read_state(atoms, charge=0, spin=None if radical else 1)
        assert (state.multiplicity > 1) == radical, name


@pytest.mark.parametrize("moments", [[0.4, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0]])
def test_moments_without_an_integral_sum_are_refused(moments):
    atoms = carbene(charge=0)
    atoms.set_initial_magnetic_moments(moments)
    with pytest.raises(StateError, match="not integral"):
        read_state(atoms)


def test_rounding_in_partial_charges_is_forgiven():
    atoms = carbene(spin=2)
    atoms.set_initial_charges([0.3333, 0.3333, 0.3333])
    assert read_state(atoms).charge == 1


def test_noncollinear_moments_are_refused_with_the_cure():
    atoms = carbene(charge=0)
    atoms.set_initial_magnetic_moments(np.ones((3, 3)))
    with pytest.raises(StateError, match=r"set_initial_magnetic_moments\(None\)"):
        read_state(atoms)


@pytest.mark.parametrize(
    "value",
    [
        3,
        3.0,
        np.int64(3),
        np.int8(3),
        np.float32(3.0),
        np.array(3),
        np.array(3.0),
        torch.tensor(3),
        torch.tensor(3.0, requires_grad=True),
        Fraction(3),
    ],
)
def test_integral_scalars_of_every_kind_are_integers(value):
    found = as_integer(value, "spin")
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [
        "3",
        b"3",
        True,
        np.bool_(True),
        np.array(True),
        np.array("3"),
        [3],
        np.array([3]),
        torch.tensor([3]),
        {},
        1j,
        object(),
    ],
)
def test_values_that_are_no_number_are_a_typed_error_naming_them(value):
    with pytest.raises(InputTypeError, match="`spin`"):
        as_integer(value, "spin")


@pytest.mark.parametrize("value", [0.5, np.float32(2.25), np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_integral_are_refused(value):
    with pytest.raises(StateError, match="integral"):
        as_integer(value, "charge")


@pytest.mark.parametrize("key", ["charge", "spin", "S", "Q"])
@pytest.mark.parametrize("value", ["1", [1], {}, np.ones(2), 0.3, np.nan, True, 1j])
def test_nonsense_in_info_is_a_typed_error(key, value):
    atoms = carbene(charge=0, spin=1)
    if key in "QS":
        atoms.info.clear()
    atoms.info[key] = value
    with pytest.raises(MlffError, match=rf"info\['{key}'\]"):
        read_state(atoms)


def test_none_in_info_counts_as_missing():
    with pytest.warns(MlffWarning, match="charge 0 and spin .* 1"):
        assert read_state(carbene(charge=None, spin=None)) == State(0, 1)


def test_unrelated_info_is_never_looked_at():
    atoms = carbene(
        charge=0, spin=3, energy=np.ones(4), tensor=torch.ones(2), other="x"
    )
    assert read_state(atoms) == State(0, 3)


def test_a_missing_state_warns_once_and_names_what_is_assumed():
    with pytest.warns(MlffWarning, match="no charge and no spin"):
        first = read_state(carbene())
    assert first == read_state(carbene()) == State(0, 1)  # warnings are errors here


@pytest.mark.parametrize(("given", "missing"), [("charge", "spin"), ("spin", "charge")])
def test_half_a_state_warns_about_the_other_half(given, missing):
    value = {"charge": 0, "spin": 3}[given]
    with pytest.warns(MlffWarning, match=f"no {missing}: assuming"):
        read_state(carbene(**{given: value}))


def test_odd_electrons_have_no_default_multiplicity():
    methyl = Atoms("CH3", np.eye(4, 3))
    with pytest.raises(StateError, match="9 electrons"):
        read_state(methyl)
    with pytest.raises(StateError, match="7 electrons"):
        read_state(carbene(charge=1))


def test_strict_refuses_to_assume_anything():
    with pytest.raises(StateError, match="no charge and no spin"):
        read_state(carbene(), strict=True)
    with pytest.raises(StateError, match="no spin"):
        read_state(carbene(charge=0), strict=True)
    assert read_state(carbene(charge=0, spin=3), strict=True) == State(0, 3)


@pytest.mark.parametrize(("charge", "spin"), [(0, 2), (1, 1), (-1, 3), (2, 4)])
def test_wrong_parity_is_refused_with_the_electron_count(charge, spin):
    electrons = 8 - charge
    with pytest.raises(StateError, match=f"{electrons} electrons"):
        read_state(carbene(charge=charge, spin=spin))


@pytest.mark.parametrize(
    ("charge", "spin"), [(0, 0), (0, -1), (0, 11), (9, 1), (-9, 2)]
)
def test_states_out_of_range_are_refused_even_without_the_parity_check(charge, spin):
    for parity in (True, False):
        with pytest.raises(StateError, match="must lie"):
            read_state(carbene(charge=charge, spin=spin), check_parity=parity)


def test_parity_check_can_be_switched_off():
    assert read_state(carbene(charge=0, spin=2), check_parity=False) == State(0, 2)


def test_a_bare_proton_is_a_singlet():
    check_state([1], 1, 1)
    with pytest.raises(StateError, match="1 … 1"):
        check_state([1], 1, 3)


def test_reading_changes_nothing():
    atoms = carbene(charge=np.int64(1), spin=2, note="x")
    before = dict(atoms.info), set(atoms.arrays)
    read_state(atoms)
    assert (atoms.info, set(atoms.arrays)) == before
    assert type(atoms.info["charge"]) is np.int64


def test_set_state_writes_plain_integers_and_removes_synonyms():
    atoms = carbene(Q=0, S=0, mult=1, total_charge=0, note="kept")
    assert set_state(atoms, charge=np.int64(-1), spin=2.0) is atoms
    assert atoms.info == {"charge": -1, "spin": 2, "note": "kept"}
    assert type(atoms.info["charge"]) is int
    assert type(atoms.info["spin"]) is int
    assert read_state(atoms) == State(-1, 2)


def test_set_state_is_mirrored_where_ase_and_dft_codes_look():
    atoms = set_state(carbene(), charge=1, spin=4)
    assert atoms.get_initial_charges().sum() == 1
    assert atoms.get_initial_magnetic_moments().sum() == 3


def test_set_state_replaces_arrays_of_any_shape():
    atoms = carbene()
    atoms.set_initial_magnetic_moments(np.ones((3, 3)))
    set_state(atoms, charge=0, spin=3)
    assert read_state(atoms) == State(0, 3)


def test_set_state_keeps_the_half_that_is_not_given():
    atoms = set_state(carbene(), charge=0, spin=1)
    assert read_state(set_state(atoms, spin=3)) == State(0, 3)
    assert read_state(set_state(atoms, charge=2)) == State(2, 3)


def test_set_state_needs_both_halves_from_somewhere():
    with pytest.raises(StateError, match="`spin` is neither given"):
        set_state(carbene(), charge=0)


@pytest.mark.parametrize(("charge", "spin"), [(0, 2), (0, "x"), (0.5, 1), (99, 1)])
def test_a_refused_set_state_leaves_the_atoms_as_they_were(charge, spin):
    atoms = set_state(carbene(), charge=0, spin=3)
    with pytest.raises(MlffError):
        set_state(atoms, charge=charge, spin=spin)
    assert read_state(atoms) == State(0, 3)
    assert atoms.info == {"charge": 0, "spin": 3}


def test_a_supercell_of_a_cation_is_a_conflict_not_a_cation():
    atoms = set_state(carbene(), charge=1, spin=2)
    atoms.set_cell([8, 8, 8])
    with pytest.raises(StateError, match="conflicting"):
        read_state(atoms.repeat((2, 1, 1)))


def test_a_slice_that_loses_the_charge_is_a_conflict():
    atoms = set_state(carbene(), charge=1, spin=2)
    with pytest.raises(StateError, match="conflicting"):
        read_state(atoms[1:])


def test_a_sum_of_two_ions_is_a_conflict_not_the_first_ion():
    cation = set_state(carbene(), charge=1, spin=2)
    with pytest.raises(StateError, match="conflicting"):
        read_state(cation + set_state(carbene(), charge=1, spin=2))


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "json", "db"])
def test_a_state_survives_the_formats_of_ase(tmp_path, suffix):
    path = tmp_path / f"frame.{suffix}"
    write(path, set_state(carbene(), charge=1, spin=4))
    atoms = read(path)
    # the two last keep no info, but they do keep the arrays that mirror it
    assert read_state(atoms) == State(1, 4)


def test_errors_are_also_the_builtin_types_a_caller_expects():
    assert issubclass(StateError, InputError)
    assert issubclass(InputError, ValueError)
    assert issubclass(InputTypeError, TypeError)


def test_a_state_prints_sign_and_multiplicity():
    assert str(State(1, 2)) == "charge +1, multiplicity 2"

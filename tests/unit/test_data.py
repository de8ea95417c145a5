"""Reading, vetting and splitting labelled data: everything that must be refused."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms

from mlff import units
from mlff.data import (
    LabelKeys,
    geometry_groups,
    label_dataset,
    overlap,
)
from mlff.errors import DataError, InputError, MlffWarning, StateError
from mlff.scf import DFTSettings, is_level, named_level
from mlff.state import set_state
from mlff.testing.labelled import ATOMS, labelled_frames, labelled_methylenes
from mlff.vetting import check_references


@pytest.fixture
def frames() -> list[Atoms]:
    return labelled_frames(40)


def rename(frames, old, new):
    for atoms in frames:
        place = atoms.info if old in atoms.info else atoms.arrays
        place[new] = place.pop(old)
    return frames


def scale(frames, energy=1.0, forces=1.0):
    for atoms in frames:
        atoms.info["REF_energy"] *= energy
        atoms.arrays["REF_forces"] *= forces
    return frames


# Missing or misspelt keys


def test_a_misspelt_key_is_named_with_the_keys_found_and_the_nearest(frames):
    rename(frames, "REF_forces", "REF_force")
    with pytest.raises(DataError, match=r"keys found are .*'REF_force'.*nearest to"):
        label_dataset(frames)


def test_an_explicit_key_that_no_frame_has_is_an_error_naming_the_nearest(frames):
    keys = LabelKeys(energy="ref_energy")
    with pytest.raises(
        DataError, match=r"40 of 40 .*nearest to `ref_energy` is `REF_e"
    ):
        label_dataset(frames, keys=keys)


def test_frames_without_any_label_are_an_error(frames):
    bare = [
        Atoms(a.numbers, a.positions, info={"charge": 0, "spin": 1}) for a in frames
    ]
    with pytest.raises(DataError, match="no energies with forces"):
        label_dataset(bare)


def test_explicit_keys_are_read_and_no_others(frames):
    expected = label_dataset(frames).energy - 1.0
    for atoms in frames:
        atoms.info["dft_energy"] = atoms.info["REF_energy"] - 1.0
    keys = LabelKeys(energy="dft_energy")
    assert torch.equal(label_dataset(frames, keys=keys).energy, expected)


# Partial labels


def test_partial_labels_are_an_error_with_their_count(frames):
    for index in (3, 17):
        del frames[index].arrays["REF_forces"]
    with pytest.raises(DataError, match=r"2 of 40 .*first: frame 3"):
        label_dataset(frames)


def test_labels_that_are_text_are_an_error_with_their_frame(frames):
    frames[3].info["REF_energy"] = "abc"
    with pytest.raises(DataError, match="frame 3: `REF_energy` must be numbers"):
        label_dataset(frames)


# Units and signs

KCAL, HA = 1 / units.KCAL_PER_MOL, 1 / units.HARTREE
WRONG = {
    "energies in kcal/mol": (KCAL, 1.0),
    "energies in Hartree": (HA, 1.0),
    "energies and forces in kcal/mol": (KCAL, KCAL),
    "energies and forces in Hartree": (HA, HA),
    "forces in Hartree/Bohr": (1.0, 1 / units.HARTREE_PER_BOHR),
    "forces in kcal/mol/Å": (1.0, KCAL),
    "forces per Bohr": (1.0, units.BOHR),
    "gradients as forces": (1.0, -1.0),
}


@pytest.mark.parametrize("case", WRONG)
def test_labels_in_other_units_than_declared_are_refused(frames, case):
    with pytest.raises(DataError, match="trust_labels"):
        label_dataset(scale(frames, *WRONG[case]))


@pytest.mark.parametrize("case", WRONG)
def test_refused_labels_can_be_trusted_explicitly(frames, case):
    energy, forces = WRONG[case]
    expected = label_dataset(frames)
    trusted = label_dataset(scale(frames, energy, forces), trust_labels=True)
    np.testing.assert_allclose(trusted.energy, expected.energy * energy)
    np.testing.assert_allclose(trusted.forces, expected.forces * forces)


@pytest.mark.parametrize(
    ("energy_unit", "forces_unit", "factors"),
    [
        ("Hartree", "Hartree/Bohr", (HA, 1 / units.HARTREE_PER_BOHR)),
        ("kcal/mol", "kcal/mol/Ang", (KCAL, KCAL)),
        ("eV", "meV/nm", (1.0, 1e4)),
    ],
)
def test_declared_units_are_converted(frames, energy_unit, forces_unit, factors):
    expected = label_dataset(frames)
    keys = LabelKeys(energy_unit=energy_unit, forces_unit=forces_unit)
    found = label_dataset(scale(frames, *factors), keys=keys)
    np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-12, atol=0)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=1e-12, atol=1e-12)


def test_unknown_units_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"energy_unit.*Hartree"):
        LabelKeys(energy_unit="Ha")
    with pytest.raises(InputError, match=r"forces_unit.*Bohr"):
        LabelKeys(forces_unit="eV")


def test_forces_of_other_frames_are_refused(frames):
    forces = [atoms.arrays["REF_forces"] for atoms in frames]
    for atoms, wrong in zip(frames, forces[20:] + forces[:20], strict=True):
        atoms.arrays["REF_forces"] = wrong
    with pytest.raises(DataError, match="not of the same frames"):
        label_dataset(frames)


# Duplicates and overlap


def test_repeated_frames_are_counted(frames):
    with pytest.warns(MlffWarning, match=r"2 of 42 frames repeat .*frame 40"):
        label_dataset([*frames, frames[0], frames[7]])


def test_a_frame_in_another_state_is_no_repetition():
    labelled = labelled_methylenes()
    assert len(label_dataset(labelled)) == 96


def test_test_systems_that_copy_training_systems_are_counted():
    data = label_dataset(labelled_methylenes())
    groups = geometry_groups(data)
    mirrored = [k for k in range(96) if (groups == groups[k]).sum() == 4]
    pair = [k for k in mirrored if groups[k] == groups[mirrored[0]]]
    others = [k for k in range(96) if k not in pair]
    assert overlap(data.select(others), data.select(pair)) == 0
    assert overlap(data.select([*others, pair[0]]), data.select(pair[1:])) == 1


# Impossible labels


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_energy_that_is_not_finite_is_named_by_its_frame(frames, value):
    frames[11].info["REF_energy"] = value
    with pytest.raises(DataError, match="energy is not finite in frame 11"):
        label_dataset(frames, trust_labels=True)


def test_forces_that_are_not_finite_are_named_by_their_frame(frames):
    frames[5].arrays["REF_forces"][1, 2] = np.nan
    frames[8].arrays["REF_forces"][0, 0] = -np.inf
    with pytest.raises(DataError, match="not finite in frame 5 and 1 more"):
        label_dataset(frames, trust_labels=True)


def test_a_huge_force_is_named_by_its_frame(frames):
    frames[9].arrays["REF_forces"][0, 0] = 51.0
    with pytest.raises(DataError, match="beyond 50 eV/Å in frame 9"):
        label_dataset(frames)


def test_labels_of_the_wrong_shape_are_named_by_their_frame(frames):
    frames[6].info["REF_energy"] = np.array([1.0, 2.0])
    with pytest.raises(DataError, match=r"frame 6: .*one number, got shape \(2,\)"):
        label_dataset(frames)


def test_forces_of_too_few_atoms_are_named_by_their_frame(frames):
    frames[6].info["REF_forces"] = frames[6].arrays.pop("REF_forces")[:-1]
    with pytest.raises(DataError, match=r"frame 6: .*\(5, 3\).*\(4, 3\)"):
        label_dataset(frames)


# Net forces and torques


def test_a_net_force_is_reported_with_its_size(frames):
    frames[2].arrays["REF_forces"] += [0.05, 0.0, 0.0]
    with pytest.warns(MlffWarning, match=r"1 of 40 .*net force .*0\.25.*frame 2"):
        label_dataset(frames)


def test_a_torque_is_reported(frames):
    atoms = frames[3]
    arm = atoms.positions - atoms.positions.mean(0)
    atoms.arrays["REF_forces"] += 0.3 * np.cross([0.0, 0.0, 1.0], arm)
    with pytest.warns(MlffWarning, match=r"1 of 40 .*torque .*frame 3"):
        label_dataset(frames)


# Levels of theory


def test_mixed_levels_of_theory_are_refused(frames):
    frames[4].info["level_of_theory"] = "UKS-b3lyp5/cc-pvdz"
    with pytest.raises(DataError, match=r"several levels .*'toy' .*frame 4"):
        label_dataset(frames)


def test_frames_without_a_level_among_others_are_refused(frames):
    del frames[4].info["level_of_theory"]
    with pytest.raises(DataError, match=r"'none' \(frame 4\)"):
        label_dataset(frames)
    stated = label_dataset(frames, level_of_theory="PBE/def2-SVP")
    assert stated.level_of_theory == "PBE/def2-SVP"


def test_restricted_and_unrestricted_references_are_one_level(frames):
    for atoms in frames:
        kind = "RKS" if atoms.info["spin"] == 1 else "UKS"
        atoms.info["level_of_theory"] = f"{kind}-b3lyp5/cc-pvdz"
    assert label_dataset(frames).level_of_theory == "b3lyp5/cc-pvdz"


def test_unrestricted_singlets_are_a_level_of_their_own(frames):
    """Where a singlet breaks its symmetry the two differ by tenths of an eV."""
    for atoms in frames:
        atoms.info["level_of_theory"] = "UKS-b3lyp5/cc-pvdz"
    level = label_dataset(frames).level_of_theory
    assert level == "UKS-b3lyp5/cc-pvdz"
    assert named_level(level) == {
        "xc": "b3lyp5",
        "basis": "cc-pvdz",
        "reference": "unrestricted",
    }
    singlet = next(a for a in frames if a.info["spin"] == 1)
    singlet.info["level_of_theory"] = "RKS-b3lyp5/cc-pvdz"
    with pytest.raises(DataError, match="several levels of theory"):
        label_dataset(frames)


def test_energies_are_comparable_at_the_level_of_the_labels_only():
    restricted = DFTSettings(xc="b3lyp5", basis="cc-pvdz")
    broken = dataclasses.replace(restricted, reference="unrestricted")
    assert is_level(restricted, "b3lyp5/cc-pvdz")
    assert is_level(broken, "UKS-b3lyp5/cc-pvdz")
    assert not is_level(broken, "b3lyp5/cc-pvdz")
    assert not is_level(restricted, "UKS-b3lyp5/cc-pvdz")
    assert not is_level(restricted, "b3lyp5/def2-svp")
    assert not is_level(restricted, "")
    spelled = dataclasses.replace(broken, xc="B3LYP5", basis="cc-pVDZ")
    assert is_level(spelled, "UKS-b3lyp5/cc-pvdz")
    coarse = dataclasses.replace(restricted, grid_level=1)
    assert not is_level(coarse, "b3lyp5/cc-pvdz")


@pytest.mark.parametrize("name", ["", "b3lyp5", "toy", "CCSD(T)", "/cc-pvdz"])
def test_other_names_of_levels_stand_for_no_settings(name):
    assert named_level(name) == {}


# Reference energies


def test_isolated_atoms_with_several_energies_are_reported(frames):
    for energy in (-13.6, -13.1):
        atom = set_state(Atoms("H", [[0.0, 0.0, 0.0]]), charge=0, spin=2)
        atom.positions += energy
        atom.info.update(REF_energy=energy, level_of_theory="toy")
        atom.arrays["REF_forces"] = np.zeros((1, 3))
        frames.append(atom)
    with pytest.warns(MlffWarning, match=r"isolated atom Z=1 .*2 energies .*0\.5 eV"):
        label_dataset(frames)


def test_given_references_that_do_not_fit_are_reported(frames):
    data = label_dataset(frames)
    check_references(data, ATOMS)
    with pytest.warns(MlffWarning, match="not of the same level of theory"):
        check_references(data, {1: -13.6, 6: -990.0})
    with pytest.raises(DataError, match=r"no energy for the elements Z=\[6\]"):
        check_references(data, {1: -13.6})


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_or_one_frame_data_set_is_a_clear_error(frames, count):
    with pytest.raises(DataError, match=f"{count} frames: .* at least two"):
        label_dataset(frames[:count])


# States and selection


def test_a_frame_without_a_state_is_refused_by_name(frames):
    del frames[7].info["spin"]
    frames[7].set_initial_magnetic_moments(None)
    with pytest.raises(StateError, match="frame 7: no spin"):
        label_dataset(frames)


def test_a_state_that_the_electrons_exclude_is_refused_by_name(frames):
    frames[7].info["spin"] = 2
    frames[7].set_initial_magnetic_moments(None)
    with pytest.raises(StateError, match=r"frame 7: .*does not fit"):
        label_dataset(frames)

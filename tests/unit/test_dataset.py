"""Splits, copies of a geometry, reference energies, and selection."""

import numpy as np
import pytest
from ase import Atoms

from mlff.data import (
    fit_references,
    geometry_groups,
    label_dataset,
    overlap,
    random_split,
    symmetry_split,
)
from mlff.dataset import shuffled
from mlff.errors import DataError
from mlff.state import set_state
from mlff.testing.labelled import (
    ATOMS,
    label_toy,
    labelled_frames,
    labelled_methylenes,
)


@pytest.fixture
def frames() -> list[Atoms]:
    return labelled_frames(40)


# Splits that can be made again


def test_the_order_of_a_seed_is_the_same_for_ever():
    assert shuffled(8, seed=0) == [4, 0, 6, 7, 2, 1, 5, 3]
    assert shuffled(8, seed=1) != shuffled(8, seed=0)


def test_the_hash_sees_everything_that_a_model_could_learn_from(frames):
    hashes = {label_dataset(frames).hash, label_dataset(frames[::-1]).hash}
    frames[0].info["REF_energy"] += 1e-9
    hashes.add(label_dataset(frames).hash)
    frames[0].arrays["REF_forces"][0, 0] += 1e-9
    hashes.add(label_dataset(frames).hash)
    frames[0].info["spin"] = 3
    frames[0].set_initial_magnetic_moments(None)
    hashes.add(label_dataset(frames).hash)
    assert len(hashes) == 5
    assert label_dataset(labelled_frames(40)).hash in hashes


@pytest.mark.parametrize("split", [random_split, symmetry_split])
def test_a_split_depends_on_the_seed_and_on_nothing_else(split):
    data = label_dataset(labelled_methylenes())
    again = label_dataset(labelled_methylenes())
    assert split(data, (60, 10, 20), 3) == split(again, (60, 10, 20), 3)
    assert split(data, (60, 10, 20), 3) != split(data, (60, 10, 20), 4)


@pytest.mark.parametrize("split", [random_split, symmetry_split])
def test_parts_of_a_split_share_no_system(split):
    parts = split(label_dataset(labelled_methylenes()), (50, 10, 20), 0)
    together = [k for part in parts for k in part]
    assert len(set(together)) == len(together)
    assert set(together) <= set(range(96))


def test_a_random_split_gives_every_state_its_exact_share():
    data = label_dataset(labelled_methylenes())
    for part, size in zip(random_split(data, (66, 6, 24)), (66, 6, 24), strict=True):
        spins = data.select(part).batch.multiplicity
        assert (spins == 1).sum() == (spins == 3).sum() == size // 2


def test_a_random_split_of_uneven_states_keeps_sizes_and_shares():
    labelled = labelled_methylenes()
    data = label_dataset(
        [a for k, a in enumerate(labelled) if k % 2 == 0 or k % 6 == 1]
    )
    singlets, n = 48, len(data)
    for part, size in zip(random_split(data, (35, 7, 22)), (35, 7, 22), strict=True):
        assert len(part) == size
        found = int((data.select(part).batch.multiplicity == 1).sum())
        assert abs(found - size * singlets / n) <= 1.0


@pytest.mark.parametrize("sizes", [(64, 12, 20), (88, 6, 2)])
def test_a_symmetry_split_keeps_copies_and_states_together_and_meets_its_sizes(sizes):
    data = label_dataset(labelled_methylenes())
    groups = geometry_groups(data)
    parts = symmetry_split(data, sizes, seed=5)
    assert tuple(len(part) for part in parts) == sizes
    kinds = [set(groups[part].tolist()) for part in parts]
    assert len(set.union(*kinds)) == sum(len(kind) for kind in kinds)
    assert overlap(data.select(parts[0]), data.select(parts[2])) == 0


def test_a_random_split_of_a_symmetric_set_leaks():
    data = label_dataset(labelled_methylenes())
    leaky = random_split(data, (64, 12, 20), seed=5)
    assert overlap(data.select(leaky[0]), data.select(leaky[2])) > 0


@pytest.mark.parametrize("sizes", [(90, 10, 10), (0, 0), (-1, 5)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(DataError, match=r"cannot be cut from 96 frames"):
        random_split(label_dataset(labelled_methylenes()), sizes)


# What a copy is


def copies_of(atoms, generator):
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    order = np.arange(len(atoms))[::-1]
    yield Atoms(atoms.numbers, atoms.positions @ rotation + generator.normal(size=3))
    yield Atoms(atoms.numbers, atoms.positions * [1, 1, -1])
    yield Atoms(atoms.numbers[order], atoms.positions[order])


def test_rotated_reflected_and_reordered_frames_are_copies():
    generator = np.random.default_rng(1)
    originals = labelled_frames(8, seed=2)
    everything = list(originals)
    for atoms in originals:
        for copied in copies_of(atoms, generator):
            state = {k: atoms.info[k] for k in ("charge", "spin")}
            everything.append(label_toy(set_state(copied, **state)))
    groups = geometry_groups(label_dataset(everything, trust_labels=True))
    assert groups[:8].tolist() == list(range(8))
    assert groups[8:].tolist() == np.repeat(np.arange(8), 3).tolist()


def test_a_displacement_above_the_tolerance_makes_another_geometry():
    originals = labelled_frames(8, seed=2)
    moved = [atoms.copy() for atoms in originals]
    for atoms in moved:
        atoms.positions[1] += 0.005 * np.array([1.0, 1.0, 1.0])
        label_toy(atoms)
    groups = geometry_groups(label_dataset(originals + moved))
    assert len(set(groups.tolist())) == 16


def test_periodic_copies_are_found_across_the_boundary():
    def box(shift):
        atoms = Atoms("OHHOH", cell=[7.0, 8.0, 9.0], pbc=True)
        atoms.positions = np.random.default_rng(4).uniform(0.5, 6.5, (5, 3)) + shift
        atoms.wrap()
        atoms.info.update(charge=0, spin=2, REF_energy=-1.0)
        atoms.arrays["REF_forces"] = np.zeros((5, 3))
        return atoms

    stretched = box(0.0)
    stretched.cell[0, 0] += 0.1
    data = label_dataset(
        [box(0.0), box([3.0, 4.0, 5.0]), stretched, box([-1.0, 0.0, 0.0])],
        trust_labels=True,
    )
    assert geometry_groups(data).tolist() == [0, 0, 1, 0]


# Reference energies


def test_references_of_independent_compositions_are_exact(frames):
    for atoms in frames:
        atoms.info["REF_energy"] = sum(ATOMS[z] for z in atoms.numbers)
    found = fit_references(label_dataset(frames, trust_labels=True))
    assert found == pytest.approx({1: ATOMS[1], 6: ATOMS[6]}, abs=1e-8)


def test_references_of_one_stoichiometry_explain_its_mean_energy():
    data = label_dataset(labelled_methylenes())
    found = fit_references(data)
    mean = float(data.energy.mean())
    assert found[6] + 2 * found[1] == pytest.approx(mean, abs=1e-9)
    assert all(np.isfinite(list(found.values())))


# Selection


def test_selected_systems_keep_their_labels(frames):
    data = label_dataset(frames)
    part = data.select([17, 2, 30, 3])
    assert part.energy.tolist() == [
        frames[k].info["REF_energy"] for k in (17, 2, 30, 3)
    ]
    forces = np.concatenate([frames[k].arrays["REF_forces"] for k in (17, 2, 30, 3)])
    assert np.array_equal(part.forces.numpy(), forces)
    assert part.names == ("frame 17", "frame 2", "frame 30", "frame 3")
    assert data.states == ((0, 1), (0, 3), (1, 1))
    assert data.elements == (1, 6)

"""The kept list: complete at every step, whatever the caller does to the batch."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from neighbor_cases import CELL_LISTS, crystals, molecules

from mlff.errors import InputError
from mlff.neighbors import BACKENDS, NeighborList
from mlff.testing.neighbors import compare, random_batch


def walk(batch, steps, rng, length=0.05):
    for _ in range(steps):
        step = torch.from_numpy(rng.normal(scale=length, size=(batch.n_atoms, 3)))
        batch = batch.replace(positions=batch.positions + step)
        yield batch


def wrapped(batch):
    """Put every atom back into its cell, where it is periodic."""
    inverse = torch.linalg.pinv(batch.cell)[batch.system]
    fractions = torch.einsum("ax,axc->ac", batch.positions, inverse)
    crossed = fractions.floor() * batch.pbc[batch.system]
    moved = torch.einsum("ac,acx->ax", crossed, batch.cell[batch.system])
    return batch.replace(positions=batch.positions - moved)


@pytest.mark.parametrize("name", ["auto", "vesin", "matscipy"])
@pytest.mark.parametrize("skin", [0.0, 0.6])
def test_list_is_complete_at_every_step_of_a_random_walk(name, skin):
    for index in range(8):
        batch, cutoff = random_batch(7, index)
        listed = NeighborList(cutoff, skin, name)
        steps = 25
        for moved in walk(batch, steps, np.random.default_rng(index)):
            assert compare(moved, listed.update(moved), cutoff) == ""
        if batch.periodic and skin:
            assert 1 < listed.builds < steps


@pytest.mark.parametrize("name", ["auto", *CELL_LISTS])
def test_list_is_complete_when_atoms_are_wrapped_during_a_walk(name):
    for index in range(8):
        batch, cutoff = random_batch(8, index)
        listed = NeighborList(cutoff, 0.6, name)
        rng = np.random.default_rng(index)
        for step, moved in enumerate(walk(batch, 25, rng)):
            given = wrapped(moved) if step % 3 else moved
            assert compare(given, listed.update(given), cutoff) == ""


@pytest.mark.parametrize("name", CELL_LISTS)
def test_a_wrap_alone_forces_a_rebuild(name):
    batch = crystals(2, 4)
    batch.positions[0, 0] = -0.1
    listed = NeighborList(3.0, 0.5, name)
    listed.update(batch)
    folded = wrapped(batch)
    assert compare(folded, listed.update(folded), 3.0) == ""
    assert listed.builds == 2


@pytest.mark.parametrize("name", CELL_LISTS)
def test_list_follows_atoms_many_images_away(name):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5, name)
    for images in (0, 7, -40):
        shifted = batch.replace(positions=batch.positions + 4.0 * images)
        shifted.positions[1] -= 12.0 * images
        assert compare(shifted, listed.update(shifted), 3.0) == ""


@pytest.mark.parametrize("name", CELL_LISTS)
def test_small_moves_keep_the_list_and_half_a_skin_does_not(name):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5, name)
    kept = listed.update(batch)
    near = batch.positions.clone()
    near[2, 1] += 0.2499
    assert listed.update(batch.replace(positions=near)) is kept
    near[2, 1] += 0.0002
    assert listed.update(batch.replace(positions=near)) is not kept
    assert listed.builds == 2


def test_moves_add_up_from_the_build_and_not_from_the_last_step():
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5)
    builds = []
    for step in range(6):
        shift = torch.tensor([0.1 * step, 0, 0], dtype=torch.float64)
        listed.update(batch.replace(positions=batch.positions + shift))
        builds.append(listed.builds)
    assert builds == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("name", CELL_LISTS)
def test_another_cell_forces_a_rebuild_though_no_atom_moved(name):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5, name)
    listed.update(batch)
    for strain in (1.001, 0.7):
        strained = batch.replace(cell=batch.cell * strain)
        assert compare(strained, listed.update(strained), 3.0) == ""
    assert listed.builds == 3


@pytest.mark.parametrize("name", CELL_LISTS)
def test_other_periodic_axes_force_a_rebuild(name):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5, name)
    listed.update(batch)
    slab = batch.replace(pbc=batch.pbc & torch.tensor([True, True, False]))
    assert compare(slab, listed.update(slab), 3.0) == ""
    free = batch.replace(pbc=torch.zeros_like(batch.pbc), periodic=False)
    assert compare(free, listed.update(free), 3.0) == ""
    assert compare(batch, listed.update(batch), 3.0) == ""
    assert listed.builds == 4


def test_pbc_switched_on_ends_the_reign_of_all_pairs_and_off_restores_it():
    free, periodic = molecules(2, 4), crystals(2, 4)
    listed = NeighborList(3.0)
    for batch in (free, periodic, free):
        assert compare(batch, listed.update(batch), 3.0) == ""
    assert listed.builds == 3


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_list_follows_when_molecules_are_swapped(name):
    batch = molecules(2, 5, 3, 4)
    listed = NeighborList(2.0, 0.5, name)
    orders = ([0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0], [1, 3], [0, 1, 2, 3])
    for order in orders:
        chosen = batch.select(order)
        assert compare(chosen, listed.update(chosen), 2.0) == ""
    assert listed.builds == len(orders)


@pytest.mark.parametrize("name", CELL_LISTS)
def test_tensors_changed_in_place_by_the_caller_are_noticed(name):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5, name)
    listed.update(batch)
    batch.positions[0] += 1.0
    assert compare(batch, listed.update(batch), 3.0) == ""
    batch.cell[1] *= 0.9
    assert compare(batch, listed.update(batch), 3.0) == ""
    batch.pbc[0, 2] = False
    assert compare(batch, listed.update(batch), 3.0) == ""
    assert listed.builds == 4


@pytest.mark.parametrize("inference", [False, True])
def test_a_layout_changed_in_place_by_the_caller_is_noticed(inference):
    with torch.inference_mode(inference):
        batch = molecules(2, 4)
        listed = NeighborList(3.0)
        listed.update(batch)
        # The third atom changes over to the first system: sizes 3 and 3.
        batch.system[2] = 0
        batch.slot[2:] = torch.tensor([2, 0, 1, 2])
        changed = batch.replace(max_atoms=3)
        assert compare(changed, listed.update(changed), 3.0) == ""
        assert listed.builds == 2


def test_all_pairs_are_kept_however_far_the_atoms_go():
    batch = molecules(2, 4)
    listed = NeighborList(2.0, 0.0)
    kept = listed.update(batch)
    for scale in (1.5, 30.0):
        assert listed.update(batch.replace(positions=batch.positions * scale)) is kept
    again = molecules(2, 4, seed=1)
    assert again.system is not batch.system
    assert listed.update(again) is kept
    assert listed.builds == 1


def test_a_position_that_is_not_a_number_is_not_served_from_the_kept_list():
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5)
    listed.update(batch)
    lost = batch.positions.clone()
    lost[0, 0] = math.nan
    with pytest.raises(InputError, match="must be finite"):
        listed.update(batch.replace(positions=lost))
    # The failure leaves no list behind that a later call could take for its own.
    listed.update(batch)
    assert listed.builds == 2


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copied_list_works_on_its_own(duplicate):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5)
    listed.update(batch)
    other = duplicate(listed)
    moved = batch.replace(positions=batch.positions + 1.0)
    assert compare(moved, other.update(moved), 3.0) == ""
    assert (other.builds, listed.builds) == (2, 1)

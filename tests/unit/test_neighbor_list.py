"""The kept list: complete at every step, whatever the caller does to the batch."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from neighbor_cases import CELL_LISTS, batch_of, crystals, molecules
from torch.utils._python_dispatch import TorchDispatchMode

from mlff.errors import InputError
from mlff.neighbors import BACKENDS
from mlff.neighbors.verlet import NeighborList
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
    apart = torch.zeros_like(batch.positions)
    apart[2, 1], apart[3, 1] = 1.0, -1.0
    near = batch.replace(positions=batch.positions + 0.2499 * apart)
    assert listed.update(near) is kept
    assert compare(near, kept, 3.0) == ""
    far = batch.replace(positions=batch.positions + 0.2501 * apart)
    assert listed.update(far) is not kept
    assert listed.builds == 2


@pytest.mark.parametrize("name", CELL_LISTS)
def test_a_system_that_moves_as_a_whole_keeps_its_list(name):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5, name)
    kept = listed.update(batch)
    drift = torch.tensor([[30.0, -4.0, 0.0], [0.0, 0.0, 900.0]])[batch.system]
    drifted = batch.replace(positions=batch.positions + drift)
    assert listed.update(drifted) is kept
    assert compare(drifted, kept, 3.0) == ""


def test_moves_add_up_from_the_build_and_not_from_the_last_step():
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5)
    builds = []
    for step in range(6):
        moved = batch.positions.clone()
        moved[2:4, 0] += torch.tensor([0.1 * step, -0.1 * step])
        listed.update(batch.replace(positions=moved))
        builds.append(listed.builds)
    assert builds == [1, 1, 1, 2, 2, 2]


def deformed(batch, deformation, origin):
    """Deform cells and atoms together, as a barostat does, about any origin."""
    cell = batch.cell @ deformation
    arm = (batch.positions - origin[batch.system])[:, None]
    moved = (arm @ deformation[batch.system])[:, 0] + origin[batch.system]
    return batch.replace(cell=cell, positions=moved)


def random_deformation(rng, n_systems, size):
    return torch.eye(3, dtype=torch.float64) + torch.from_numpy(
        rng.normal(scale=size, size=(n_systems, 3, 3))
    )


@pytest.mark.parametrize("name", ["auto", *CELL_LISTS])
@pytest.mark.parametrize("size", [0.002, 0.02])
def test_list_is_complete_at_every_step_under_a_barostat(name, size):
    built = kept = 0
    for index in range(6):
        batch, cutoff = random_batch(9, index)
        if not batch.periodic:
            continue
        listed = NeighborList(cutoff, 0.6, name)
        rng = np.random.default_rng(index)
        steps = 15
        for step in range(steps):
            (batch,) = walk(batch, 1, rng, 0.02)
            deformation = random_deformation(rng, batch.n_systems, size)
            origin = torch.from_numpy(rng.normal(scale=5, size=(batch.n_systems, 3)))
            batch = deformed(batch, deformation, origin)
            if step % 5 == 4:
                batch = wrapped(batch)
            assert compare(batch, listed.update(batch), cutoff) == ""
        built, kept = built + listed.builds, kept + steps - listed.builds
    assert kept > built if size < 0.01 else kept > 0


@pytest.mark.parametrize("name", CELL_LISTS)
def test_an_isotropic_strain_is_allowed_to_use_up_the_skin_and_no_more(name):
    batch = crystals(2, 40, edge=9.0)
    bound = 0.5 / 3.5
    for scale in (1 - 0.999 * bound, 1 + 0.999 * bound, 1 - 1.001 * bound):
        listed = NeighborList(3.0, 0.5, name)
        kept = listed.update(batch)
        strain = scale * torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
        origin = torch.full((2, 3), 50.0, dtype=torch.float64)
        strained = deformed(batch, strain, origin)
        edges = listed.update(strained)
        assert (edges is kept) == (abs(scale - 1) < bound)
        assert compare(strained, edges, 3.0) == ""
    # What the bound is for: at more strain the kept list is wrong.
    squeezed = deformed(batch, strain * 0.8, origin)
    assert "missing" in compare(squeezed, kept, 3.0)


@pytest.mark.parametrize("name", CELL_LISTS)
def test_a_cell_that_moves_without_its_atoms_forces_a_rebuild(name):
    # Atoms near two faces: they meet across the boundary though neither has moved.
    batch = batch_of(
        [
            Atoms("He2", [[0.1, 1, 1], [8.0, 1, 1]], cell=[12, 12, 12], pbc=True),
            Atoms("He4", np.eye(4, 3) * 2, cell=[12, 12, 12], pbc=True),
        ]
    )
    listed = NeighborList(3.0, 0.5, name)
    kept = listed.update(batch)
    shrunk = batch.replace(cell=batch.cell * 0.8)
    assert "missing" in compare(shrunk, kept, 3.0)
    assert compare(shrunk, listed.update(shrunk), 3.0) == ""
    turned = batch.cell.clone()
    turned[0] = turned[0, [1, 2, 0]]
    other = batch.replace(cell=turned)
    assert compare(other, listed.update(other), 3.0) == ""
    assert listed.builds == 3


def test_vectors_that_are_not_periodic_may_change_at_will():
    slab = Atoms("He2", [[0, 0, 0], [1, 1, 5]], cell=[4, 4, 0], pbc=[1, 1, 0])
    batch = batch_of([slab, slab.repeat((2, 1, 1))])
    listed = NeighborList(3.0, 0.5)
    kept = listed.update(batch)
    cell = batch.cell.clone()
    cell[:, 2] = torch.tensor([1.0, 2.0, 3.0])
    other = batch.replace(cell=cell)
    assert listed.update(other) is kept
    assert compare(other, kept, 3.0) == ""


class Looks(TorchDispatchMode):
    """Counts the operations for which a host waits for a device."""

    WAITING = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__.strip("_") in {
            name.strip("_") for name in self.WAITING
        }
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("batch", "looks"), [(molecules(2, 4), 0), (crystals(2, 4), 1)]
)
def test_a_kept_list_reads_back_at_most_one_flag(batch, looks):
    listed = NeighborList(3.0, 0.5)
    with Looks() as building:
        kept = listed.update(batch)
    assert building.count > 0 or looks == 0
    moved = batch.replace(positions=batch.positions + 0.01)
    with Looks() as counted:
        assert listed.update(moved) is kept
    assert counted.count == looks
    with Looks() as counted:
        assert listed.update(moved.select([0, 1])) is kept
    # Another tensor that says which atoms are whose is compared by value.
    assert counted.count - select_looks(moved) <= 1


def select_looks(batch):
    with Looks() as counted:
        batch.select([0, 1])
    return counted.count


def test_a_forgotten_list_is_built_again_unless_it_knows_no_positions():
    for batch, builds in ((crystals(2, 4), 2), (molecules(2, 4), 1)):
        listed = NeighborList(3.0, 0.5)
        listed.forget()
        listed.update(batch)
        listed.forget()
        listed.update(batch)
        assert listed.builds == builds


@pytest.mark.parametrize("name", CELL_LISTS)
def test_other_periodic_axes_force_a_rebuild(name):
    batch = crystals(2, 4)
    listed = NeighborList(3.0, 0.5, name)
    listed.update(batch)
    slab = batch.replace(pbc=batch.pbc & torch.tensor([True, True, False]))
    assert compare(slab, listed.update(slab), 3.0) == ""
    assert compare(batch, listed.update(batch), 3.0) == ""
    free = batch.replace(pbc=torch.zeros_like(batch.pbc), periodic=False)
    assert compare(free, listed.update(free), 3.0) == ""
    assert compare(batch, listed.update(batch), 3.0) == ""
    assert listed.builds == 5


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
    moved = batch.replace(positions=batch.positions * 1.5)
    assert compare(moved, other.update(moved), 3.0) == ""
    assert (other.builds, listed.builds) == (2, 1)

import math
import re

import numpy as np
import pytest
import torch
from ase import Atoms
from neighbor_cases import CELL_LISTS, batch_of, crystals, molecules

from mlff.batch import AtomsBatch, Edges, edge_vectors
from mlff.errors import InputError
from mlff.neighbors import (
    ALL_PAIRS_ATOMS,
    BACKENDS,
    all_pairs,
    check_distances,
    neighbor_list,
)
from mlff.neighbors.verlet import NeighborList
from mlff.testing.neighbors import compare, random_batch


def same_edges(a, b):
    if (a.shift is None) != (b.shift is None):
        return False
    shifts = True if a.shift is None else a.shift.equal(b.shift)
    return a.i.equal(b.i) and a.j.equal(b.j) and shifts and a.degree == b.degree


# All pairs


def test_all_pairs_are_dense_rows_ordered_by_receiver():
    edges = all_pairs(molecules(4, 4), 1.0)
    assert edges.degree == 3
    assert not edges.has_fill
    assert edges.shift is None
    assert edges.i.tolist() == [a for a in range(8) for _ in range(3)]
    assert edges.j.reshape(8, 3)[:5].tolist() == [
        [1, 2, 3],
        [0, 2, 3],
        [0, 1, 3],
        [0, 1, 2],
        [5, 6, 7],
    ]


def test_all_pairs_fill_the_rows_of_smaller_systems_with_the_atom_itself():
    edges = all_pairs(molecules(2, 4, 1, 3), 1.0)
    assert edges.degree == 3
    assert edges.has_fill
    rows = edges.j.reshape(10, 3).tolist()
    assert rows[:2] == [[1, 0, 0], [0, 1, 1]]
    assert rows[6] == [6, 6, 6]
    assert rows[7:] == [[8, 9, 7], [7, 9, 8], [7, 8, 9]]


def test_all_pairs_of_lone_atoms_are_none():
    # The one kind of batch in which atoms and systems must be equal in number.
    edges = all_pairs(molecules(1, 1), 5.0)
    assert (edges.n_edges, edges.degree, edges.has_fill) == (0, 0, False)


def test_all_pairs_do_not_depend_on_positions():
    batch = molecules(2, 5)
    far = batch.replace(positions=batch.positions * 1000)
    assert same_edges(all_pairs(batch, 2.0), all_pairs(far, 2.0))


def test_all_pairs_refuse_a_periodic_batch():
    with pytest.raises(InputError, match=r"periodic.*'vesin'"):
        neighbor_list(crystals(2, 4), 3.0, "all_pairs")


# Choice of a back end, layout, refusals


@pytest.mark.parametrize(
    ("batch", "dense_all_pairs"),
    [
        (molecules(3, 4), True),
        (molecules(ALL_PAIRS_ATOMS, ALL_PAIRS_ATOMS), True),
        (molecules(ALL_PAIRS_ATOMS + 1, ALL_PAIRS_ATOMS + 1), False),
        (molecules(2, 2, 2, 2, 2, 24), False),
        (crystals(3, 4), False),
    ],
)
def test_auto_takes_all_pairs_for_small_molecules_of_similar_size(
    batch, dense_all_pairs
):
    edges = neighbor_list(batch, 1.2)
    is_all = not batch.periodic and same_edges(edges, all_pairs(batch, 1.2))
    assert is_all == dense_all_pairs
    assert compare(batch, edges, 1.2) == ""


@pytest.mark.parametrize("name", CELL_LISTS)
def test_even_rows_are_dense_and_uneven_ones_ragged(name):
    even = neighbor_list(crystals(8, 8), 5.0, name)
    assert even.degree is not None
    assert even.has_fill
    assert even.shift is not None
    assert even.shift.any()
    alone = even.i == even.j
    assert ((even.shift[alone] == 0).all(dim=1)).any()
    crowd = Atoms("He12", np.random.default_rng(0).random((12, 3)))
    lone = Atoms("He12", np.outer(np.arange(12), [50.0, 0, 0]))
    ragged = neighbor_list(batch_of([crowd, lone]), 3.0, name)
    assert ragged.degree is None
    assert not ragged.has_fill
    assert ragged.n_edges == 12 * 11


@pytest.mark.parametrize("name", CELL_LISTS)
def test_rows_without_a_gap_are_dense_without_fill(name):
    edges = neighbor_list(molecules(4, 4), 20.0, name)
    assert (edges.degree, edges.has_fill, edges.shift) == (3, False, None)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_empty_batch_has_no_edges(name):
    edges = neighbor_list(AtomsBatch.from_atoms([]), 4.0, name)
    assert edges.n_edges == 0
    listed = NeighborList(4.0, backend=name)
    for _ in range(2):
        assert listed.update(AtomsBatch.from_atoms([])).n_edges == 0


@pytest.mark.parametrize("name", BACKENDS)
def test_separated_molecules_of_one_system_do_not_slow_or_break_a_list(name):
    apart = Atoms("He4", [[0, 0, 0], [1, 0, 0], [9e5, 9e5, -9e5], [9e5, 9e5, -9e5 + 1]])
    batch = batch_of([apart, apart, Atoms("He2", [[0, 0, 0], [0, 0, 2.0]])])
    assert compare(batch, neighbor_list(batch, 5.0, name), 5.0) == ""


@pytest.mark.parametrize("name", CELL_LISTS)
def test_one_atom_in_a_cell_of_one_angstrom_has_all_its_images(name):
    atom = Atoms("He", cell=[1, 1, 1], pbc=True)
    batch = batch_of([atom, atom.repeat((2, 1, 1))])
    edges = neighbor_list(batch, 4.0001, name)
    assert edges.n_edges == 3 * 256
    assert (edges.i == edges.j)[:256].all()
    assert compare(batch, edges, 4.0001) == ""


@pytest.mark.parametrize("name", CELL_LISTS)
def test_left_handed_cell_has_the_distances_of_the_right_handed_one(name):
    batch = crystals(2, 4)
    swapped = batch.replace(cell=batch.cell[:, [1, 0, 2]])
    lengths = [
        edge_vectors(b, neighbor_list(b, 5.0, name)).norm(dim=1).sort().values
        for b in (batch, swapped)
    ]
    torch.testing.assert_close(*lengths, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELL_LISTS)
def test_supercell_has_the_neighbors_of_its_cell(name):
    rng = np.random.default_rng(0)
    cell = [[3.0, 0, 0], [1.0, 2.5, 0], [0.5, 0.5, 2.8]]
    small = Atoms("He2", 3 * rng.random((2, 3)), cell=cell, pbc=True)
    batch = batch_of([small, small.repeat((2, 2, 2))])
    edges = neighbor_list(batch, 4.0, name)
    lengths = edge_vectors(batch, edges).norm(dim=1)
    real = lengths > 0
    first = batch.system[edges.i] == 0
    one = lengths[first & real].sort().values
    eight = lengths[~first & real].sort().values
    torch.testing.assert_close(one.repeat_interleave(8), eight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CELL_LISTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e7])
def test_positions_without_meaning_are_refused_at_once(name, bad):
    batch = crystals(2, 4)
    batch.positions[3, 1] = bad
    with pytest.raises(InputError, match=r"finite and within.*atoms \[3\]"):
        neighbor_list(batch, 5.0, name)


@pytest.mark.parametrize("name", CELL_LISTS)
@pytest.mark.parametrize("edge", [0.0, 1e-6, 0.01])
def test_cells_with_absurdly_many_images_are_refused_at_once(name, edge):
    batch = crystals(2, 4)
    with pytest.raises(InputError, match=r"`cell` is too small.*unit"):
        neighbor_list(batch.replace(cell=batch.cell * edge), 5.0, name)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, math.nan, math.inf])
def test_cutoff_must_be_positive_and_finite(cutoff):
    with pytest.raises(InputError, match=r"`cutoff` must be positive and finite, got"):
        neighbor_list(molecules(2, 4), cutoff)
    with pytest.raises(InputError, match=r"`cutoff` must be positive and finite, got"):
        NeighborList(cutoff)


@pytest.mark.parametrize("skin", [-0.1, math.nan, math.inf])
def test_skin_must_not_be_negative(skin):
    with pytest.raises(InputError, match=r"`skin` must be zero or positive, got"):
        NeighborList(5.0, skin)


def test_unknown_back_end_is_answered_with_the_known_ones():
    known = re.escape(f"'auto' or one of {sorted(BACKENDS)}, got 'vesni'")
    with pytest.raises(InputError, match=known):
        neighbor_list(molecules(2, 4), 5.0, "vesni")
    with pytest.raises(InputError, match=known):
        NeighborList(5.0, backend="vesni")


@pytest.mark.parametrize("name", CELL_LISTS)
def test_a_list_takes_positions_and_cells_that_require_gradients(name):
    batch = crystals(2, 4)
    free = batch.replace(
        positions=batch.positions.requires_grad_(), cell=batch.cell.requires_grad_()
    )
    listed = NeighborList(3.0, backend=name)
    edges = listed.update(free)
    listed.update(free)
    assert listed.builds == 1
    assert not edges.shift.requires_grad
    edge_vectors(free, edges).square().sum().backward()
    assert free.cell.grad.abs().max() > 0


def test_a_list_is_the_same_in_every_run():
    batch, cutoff = random_batch(0, 5)
    first, *others = (neighbor_list(batch, cutoff, "vesin") for _ in range(5))
    assert all(same_edges(first, other) for other in others)


# Coincident atoms


def test_coincident_atoms_are_named():
    batch = molecules(2, 4)
    batch.positions[5] = batch.positions[3] + 1e-4
    for name in BACKENDS:
        edges = neighbor_list(batch, 5.0, name)
        with pytest.raises(InputError, match=r"atoms (3 and 5|5 and 3) are 0.00017 Å"):
            check_distances(edges, edge_vectors(batch, edges).norm(dim=1))


def test_close_atoms_and_fill_are_not_coincident():
    batch = molecules(2, 4)
    batch.positions[5] = batch.positions[3] + 2e-3
    for name in BACKENDS:
        edges = neighbor_list(batch, 5.0, name)
        check_distances(edges, edge_vectors(batch, edges).norm(dim=1))


def test_an_atom_on_its_own_image_is_coincident_though_i_is_j():
    edges = Edges(
        i=torch.tensor([0, 0]),
        j=torch.tensor([0, 0]),
        shift=torch.tensor([[0.0, 0, 0], [1.0, 0, 0]], dtype=torch.float64),
        degree=2,
        has_fill=True,
    )
    check_distances(edges, torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError, match="atoms 0 and 0"):
        check_distances(edges, torch.tensor([0.0, 1e-5]))


def test_building_a_list_leaves_the_state_of_torch_alone():
    batch = crystals(2, 4)
    before = (torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed())
    neighbor_list(batch, 3.0)
    after = (torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed())
    assert before == after


@pytest.mark.parametrize(
    ("cell", "pbc", "far"),
    [
        ((10, 10, 1e5), True, (0, 0, 0)),
        ((10, 10, 10), (True, True, False), (0, 0, 9e5)),
        ((2, 9, 9), (True, False, False), (0, 4e5, 0)),
        ((9, 9, 9), False, (9e5, 0, 0)),
        ((9, 9, 9), False, (9e5, 9e5, 0)),
        ((9, 9, 9), False, (1e4, 1e4, 0)),
    ],
)
@pytest.mark.parametrize("backend", CELL_LISTS)
def test_empty_space_does_not_change_a_list_however_much_there_is(
    backend, cell, pbc, far
):
    def lengths(most):
        near = 2.0 * np.random.default_rng(0).random((7, 3))
        gone = near[0] + np.minimum(far, most)
        sides = np.minimum(cell, most)
        atoms = Atoms("He8", np.vstack([near, gone + 0.1]), cell=sides, pbc=pbc)
        batch = batch_of([atoms, atoms])
        edges = neighbor_list(batch, 1.5, backend)
        found = edge_vectors(batch, edges).norm(dim=1)
        return sorted(found[found > 0].tolist())

    assert len(lengths(30)) >= 40
    assert lengths(1e6) == pytest.approx(lengths(30))


def test_a_cell_with_too_many_bins_is_refused():
    atoms = Atoms("He2", [[0, 0, 0], [1, 1, 1]], cell=[9, 9, 1e9], pbc=True)
    with pytest.raises(InputError, match="too long for a cutoff"):
        neighbor_list(batch_of([atoms, atoms]), 5.0)

"""Every back end against the explicit image sum, and the sum against ASE."""

import numpy as np
import pytest
import torch
from ase.cell import Cell
from ase.neighborlist import primitive_neighbor_list

from mlff.batch import Edges, edge_vectors
from mlff.neighbors import BACKENDS, neighbor_list, vesin
from mlff.testing.neighbors import (
    FREE_KINDS,
    PERIODIC_KINDS,
    check_neighbors,
    compare,
    explicit_pairs,
    random_batch,
)


@pytest.mark.parametrize("name", BACKENDS)
def test_back_end_lists_every_pair_and_no_other(name):
    periodic = name != "all_pairs"
    checked = check_neighbors(BACKENDS[name], n_systems=1200, periodic=periodic)
    assert checked >= 1200


def test_auto_lists_every_pair_and_no_other():
    assert check_neighbors(neighbor_list, n_systems=600, seed=1) >= 600


@pytest.mark.parametrize("name", sorted(BACKENDS.keys() - {"all_pairs"}))
def test_cell_lists_hold_no_edge_beyond_the_cutoff_but_fill(name):
    for index in range(40):
        batch, cutoff = random_batch(2, index)
        edges = BACKENDS[name](batch, cutoff)
        distances = edge_vectors(batch, edges).norm(dim=1)
        assert (distances < cutoff + 1e-6).all()


def test_generated_batches_hold_every_kind_and_every_difficulty():
    batches = [random_batch(0, index) for index in range(150)]
    assert all(b.n_systems not in (1, 3) for b, _ in batches)
    assert all(b.n_systems != b.n_atoms for b, _ in batches)
    assert any(b.pbc.any() and not b.pbc.any(dim=1).all() for b, _ in batches)
    edges = [vesin(*batch) for batch in batches]
    own_images = [e for e in edges if not e.has_fill and (e.i == e.j).any()]
    dense = [e for e in edges if e.degree is not None]
    filled = [e for e in edges if e.has_fill]
    far = [e for e in edges if e.shift is not None and (e.shift.abs() > 5).any()]
    assert min(map(len, (own_images, dense, filled, far))) >= 3
    assert len(set(FREE_KINDS + PERIODIC_KINDS)) >= 15


def test_generated_batches_can_be_replayed():
    first, second = random_batch(4, 9), random_batch(4, 9)
    assert torch.equal(first[0].positions, second[0].positions)
    assert first[1] == second[1]
    assert random_batch(5, 9)[1] != first[1]


def test_explicit_pairs_are_those_of_ase():
    systems = 0
    for index in range(25):
        batch, cutoff = random_batch(3, index)
        for s in range(batch.n_systems):
            positions = batch.positions[batch.system == s].numpy()
            cell, pbc = batch.cell[s].numpy(), batch.pbc[s].numpy()
            i, j, shift, distance = explicit_pairs(positions, cell, pbc, cutoff)
            complete = Cell(np.where(pbc[:, None], cell, 0.0)).complete().array
            expected = primitive_neighbor_list("ijdS", pbc, complete, positions, cutoff)
            ours = np.column_stack([i, j, shift])
            theirs = np.column_stack([expected[0], expected[1], expected[3]])
            assert sorted(ours.tolist()) == sorted(theirs.tolist())
            np.testing.assert_allclose(np.sort(distance), np.sort(expected[2]))
            systems += 1
    assert systems > 100


def _nearest_image_only(batch, cutoff):
    """Keep one image of each pair of atoms, and no image of an atom itself."""
    edges = _ragged(vesin(batch, cutoff))
    distances = edge_vectors(batch, edges).norm(dim=1)
    best = {}
    for edge in distances.argsort(descending=True).tolist():
        best[int(edges.i[edge]), int(edges.j[edge])] = edge
    return _kept(edges, sorted(e for (i, j), e in best.items() if i != j))


def _one_pbc_for_the_batch(batch, cutoff):
    everywhere = batch.pbc.all(dim=0).expand_as(batch.pbc)
    return vesin(batch.replace(pbc=everywhere), cutoff)


def _every_cell_periodic(batch, cutoff):
    """Take a cell for a sign of periodicity, as if the caller had set pbc."""
    spanned = torch.linalg.det(batch.cell).abs() > 1.0
    return vesin(batch.replace(pbc=batch.pbc | spanned[:, None], periodic=True), cutoff)


def _five_nearest(batch, cutoff):
    edges = _ragged(vesin(batch, cutoff))
    distances = edge_vectors(batch, edges).norm(dim=1)
    kept = []
    for atom in range(batch.n_atoms):
        mine = (edges.i == atom).nonzero()[:, 0]
        kept += mine[distances[mine].argsort()[:5]].tolist()
    return _kept(edges, sorted(kept))


def _wrapped_without_telling(batch, cutoff):
    """List shifts that hold for wrapped positions, not for those given."""
    fractions = torch.linalg.pinv(batch.cell)[batch.system]
    crossed = torch.einsum("ax,axc->ac", batch.positions, fractions).floor()
    crossed = crossed * batch.pbc[batch.system]
    moved = torch.einsum("ac,acx->ax", crossed, batch.cell[batch.system])
    return vesin(batch.replace(positions=batch.positions - moved), cutoff)


def _one_direction(batch, cutoff):
    edges = _ragged(vesin(batch, cutoff))
    return _kept(edges, (edges.i <= edges.j).nonzero()[:, 0].tolist())


def _twice(batch, cutoff):
    edges = _ragged(vesin(batch, cutoff))
    return _kept(edges, [e for edge in range(edges.n_edges) for e in (edge, edge)])


def _across_systems(batch, cutoff):
    merged = batch.replace(
        system=torch.zeros_like(batch.system), n_systems=1, pbc=batch.pbc[:1]
    )
    return vesin(merged, cutoff)


def _fill_not_declared(batch, cutoff):
    edges = vesin(batch, cutoff)
    return Edges(i=edges.i, j=edges.j, shift=edges.shift, degree=edges.degree)


def _rows_out_of_order(batch, cutoff):
    edges = vesin(batch, cutoff)
    shift = None if edges.shift is None else edges.shift.flip(0)
    return Edges(
        i=edges.i.flip(0),
        j=edges.j.flip(0),
        shift=shift,
        degree=edges.degree,
        has_fill=edges.has_fill,
    )


def _moves_the_atoms(batch, cutoff):
    edges = vesin(batch, cutoff)
    batch.positions.add_(1.0)
    return edges


def _ragged(edges):
    alone = edges.i == edges.j
    if edges.shift is not None:
        alone &= (edges.shift == 0).all(dim=1)
    return _kept(edges, (~alone).nonzero()[:, 0].tolist())


def _kept(edges, rows):
    rows = torch.tensor(rows, dtype=torch.int64)
    shift = None if edges.shift is None else edges.shift[rows]
    return Edges(i=edges.i[rows], j=edges.j[rows], shift=shift)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (_nearest_image_only, "missing"),
        (_one_pbc_for_the_batch, "missing"),
        (_every_cell_periodic, "surplus|not periodic"),
        (_five_nearest, "missing"),
        (_wrapped_without_telling, "missing"),
        (_one_direction, "missing"),
        (_twice, "listed twice"),
        (_across_systems, "two systems"),
        (_fill_not_declared, "has_fill is not set"),
        (_rows_out_of_order, "ordered by receiver"),
        (_moves_the_atoms, "changed the positions"),
    ],
)
def test_broken_back_end_is_found_and_can_be_replayed(broken, complaint):
    with pytest.raises(AssertionError, match=complaint) as caught:
        check_neighbors(broken)
    assert "random_batch(0, " in str(caught.value)


def test_comparison_accepts_the_ragged_form_of_a_right_list():
    # The broken back ends above start from this form: it must not be what is found.
    for index in range(30):
        batch, cutoff = random_batch(0, index)
        assert compare(batch, _ragged(vesin(batch, cutoff)), cutoff) == ""

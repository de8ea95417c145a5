"""The optional back end, with a stand-in for its library and with the library."""

import runpy
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from neighbor_cases import batch_of, crystals, molecules

from mlff import neighbors
from mlff.errors import InputError
from mlff.neighbors import (
    BACKENDS,
    alchemi,
    chosen_backend,
    neighbor_list,
    nvalchemi,
    vesin,
)
from mlff.neighbors.alchemi import installed, pairs_of_boxes
from mlff.testing.neighbors import (
    check_neighbors,
    compare,
    explicit_pairs,
    random_batch,
)

needs_library = pytest.mark.skipif(
    not installed(), reason="nvalchemi-toolkit-ops is not installed"
)


class StandIn:
    """The library's search by an explicit sum, in an order that is never the same."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.lengths, self.levels = [], []

    def __call__(
        self, positions, cutoff, cell, pbc, batch_idx, *, max_neighbors, strategy
    ):
        assert strategy == "atom_centric"
        assert batch_idx.dtype == torch.int32
        assert (torch.linalg.det(cell).abs() > 0).all()
        self.lengths.append(max_neighbors)
        config = sys.modules["warp"].config
        self.levels.append(config.log_level)
        config.log_level = 30  # as the library does when it is imported
        n, m = len(positions), max_neighbors
        counts = torch.zeros(n, dtype=torch.int32)
        # Places that are not taken hold what was in the memory.
        senders = torch.full((n, m), 2**31 - 7, dtype=torch.int32)
        shifts = torch.full((n, m, 3), -(2**31), dtype=torch.int32)
        for index in range(len(cell)):
            atoms = (batch_idx == index).nonzero()[:, 0]
            box = (t.numpy() for t in (positions[atoms], cell[index], pbc[index]))
            i, j, shift, _ = explicit_pairs(*box, cutoff)
            for pair in self.rng.permutation(len(i)):
                row = atoms[i[pair]]
                place = int(counts[row])
                if place < m:
                    senders[row, place] = atoms[j[pair]]
                    shifts[row, place] = torch.from_numpy(shift[pair])
                counts[row] += 1
        return senders, counts, shifts


@pytest.fixture
def library(monkeypatch):
    stand_in = StandIn()
    warp = SimpleNamespace(config=SimpleNamespace(log_level=20), LOG_WARNING=30)
    kernels = SimpleNamespace(batch_cell_list=stand_in)
    monkeypatch.setitem(sys.modules, "warp", warp)
    for name in ("nvalchemiops", "nvalchemiops.torch"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "nvalchemiops.torch.neighbors", kernels)
    return stand_in


@pytest.fixture
def version(monkeypatch):
    """Pretend that a version of the package is installed, or none."""

    def pretend(found):
        def answer(name):
            assert name == "nvalchemi-toolkit-ops"
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", answer)

    return pretend


# With a stand-in


def test_pairs_are_those_of_the_explicit_sum(library):
    assert check_neighbors(nvalchemi, n_systems=150, seed=5) >= 150
    assert library.lengths


def test_every_box_has_three_independent_vectors_and_its_own_periodic_ones():
    for index in range(60):
        batch, cutoff = random_batch(6, index)
        positions, boxes = alchemi._enclosed(batch, cutoff)
        assert (torch.linalg.det(boxes).abs() > 1e-3).all()
        assert boxes[batch.pbc].equal(batch.cell[batch.pbc])
        inside = torch.einsum(
            "ax,axc->ac", positions, torch.linalg.inv(boxes)[batch.system]
        )[~batch.pbc[batch.system]]
        assert ((inside > 0) & (inside < 1)).all()
        moved = positions - batch.positions
        for system in range(batch.n_systems):
            own = moved[batch.system == system]
            assert torch.allclose(own, own[0])


def test_rows_grow_until_every_pair_has_a_place(library):
    batch = crystals(4, 6, 5, 7)
    expected = pairs_of_boxes(batch, 5.0)
    assert len(library.lengths) == 1
    found = pairs_of_boxes(batch, 5.0, row_length=2)
    assert all(map(torch.equal, found, expected))
    most = int(torch.bincount(expected[0]).max())
    assert library.lengths[1:] == [2, most]


def test_order_of_pairs_does_not_depend_on_the_order_in_which_they_are_found(library):
    for index in range(8):
        batch, cutoff = random_batch(7, index)
        first, second = (pairs_of_boxes(batch, cutoff) for _ in range(2))
        assert all(map(torch.equal, first, second))


def test_atoms_a_million_cells_apart_keep_the_order_of_their_images(library):
    # Shifts this large would not fit into the number that orders them.
    places = [[0.1, 0.2, 0.3], [9e5 + 0.9, 0.8, 0.7]]
    far = Atoms("He2", places, cell=[0.5, 3, 3], pbc=True)
    batch = batch_of([far, far])
    i, j, shift = pairs_of_boxes(batch, 2.0)
    rows = torch.column_stack([i, j, shift])
    assert shift.abs().max() > 2**20
    assert len(rows.unique(dim=0)) == len(rows)
    again = pairs_of_boxes(batch, 2.0)
    assert shift.equal(again[2])


def test_a_list_that_cannot_be_held_is_refused_before_it_is_asked_for(
    library, monkeypatch
):
    batch = crystals(4, 6)
    monkeypatch.setattr(alchemi, "MAX_PLACES", 300)
    refusal = r"`batch` of 10 atoms.*5 Å.*at most 3\.0e\+02.*'vesin'"
    with pytest.raises(InputError, match=refusal):
        pairs_of_boxes(batch, 5.0)
    assert library.lengths == []
    with pytest.raises(InputError, match=refusal):
        pairs_of_boxes(batch, 5.0, row_length=2)
    assert library.lengths == [2]


def test_the_level_of_warp_is_what_it_was(library):
    config = sys.modules["warp"].config
    nvalchemi(crystals(4, 6), 5.0)
    assert library.levels == [30]
    assert config.log_level == 20
    config.log_level = 40
    nvalchemi(crystals(4, 6), 5.0)
    assert library.levels == [30, 40]
    assert config.log_level == 40


@pytest.mark.parametrize("name", ["warp", "nvalchemiops.torch.neighbors"])
def test_a_library_that_does_not_load_is_named_with_the_cure(
    library, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"'nvalchemi' is installed but.*'vesin'"):
        nvalchemi(crystals(4, 6), 5.0)


# Where it is offered and chosen


@pytest.mark.parametrize(
    ("found", "trusted"),
    [
        (None, False),
        ("0.3.1", False),
        ("0.4.12", False),
        ("0.5.0", True),
        ("0.10.0rc1", True),
        ("1.0b2", True),
    ],
)
def test_only_versions_without_known_faults_are_offered(version, found, trusted):
    version(found)
    assert installed() == trusted
    offered = runpy.run_path(neighbors.__file__)["BACKENDS"]
    assert ("nvalchemi" in offered) == trusted
    assert {"all_pairs", "vesin", "matscipy"} <= set(offered)


def test_a_back_end_that_is_not_installed_is_unknown(monkeypatch):
    monkeypatch.delitem(BACKENDS, "nvalchemi", raising=False)
    known = r"one of \['all_pairs', 'matscipy', 'vesin'\], got 'nvalchemi'"
    with pytest.raises(InputError, match=known):
        neighbor_list(crystals(4, 6), 5.0, "nvalchemi")


def on_gpu(batch):
    return batch.replace(positions=SimpleNamespace(is_cuda=True))


def mixed(n_periodic):
    """Some crystals among molecules."""
    crystal = Atoms("He4", 2.0 * np.eye(4, 3), cell=[4] * 3, pbc=[True, False, False])
    molecule = Atoms("He5", 3.0 * np.eye(5, 3))
    return batch_of([crystal] * n_periodic + [molecule] * 5)


@pytest.mark.parametrize(
    ("batch", "choice"),
    [
        (crystals(*range(3, 20)), "nvalchemi"),
        (mixed(4), "nvalchemi"),
        (mixed(3), "vesin"),
        (crystals(5000, edge=40.0), "vesin"),
        (molecules(40, 50, 60, 70, 80), "vesin"),
        (molecules(4, 4, 4, 4, 4, 4), "all_pairs"),
    ],
)
def test_auto_takes_it_for_several_periodic_systems_on_a_gpu_only(
    monkeypatch, batch, choice
):
    otherwise = "vesin" if choice == "nvalchemi" else choice
    monkeypatch.setitem(BACKENDS, "nvalchemi", nvalchemi)
    assert chosen_backend(on_gpu(batch), "auto") == choice
    assert chosen_backend(batch, "auto") == otherwise
    assert chosen_backend(batch, "nvalchemi") == "nvalchemi"
    monkeypatch.delitem(BACKENDS, "nvalchemi")
    assert chosen_backend(on_gpu(batch), "auto") == otherwise


# With the library itself


@needs_library
def test_the_library_counts_on_where_places_end():
    batch = crystals(40, 60, edge=6.0)
    found = pairs_of_boxes(batch, 5.0, row_length=1)
    expected = pairs_of_boxes(batch, 5.0)
    assert all(map(torch.equal, found, expected))
    assert compare(batch, nvalchemi(batch, 5.0), 5.0) == ""


@needs_library
def test_systems_that_are_long_in_every_direction_lose_no_pair():
    # Of a free axis this short beside the others, the library may sort atoms into
    # three bins and look at one of them.
    cutoff = 5.0
    ends = cutoff * np.array([483.6, 7561.3, 6156.6]) - cutoff - 1.0
    for x in np.linspace(0.0, ends[0] - 3.0, 300):
        pair = [[x, 1.0, 1.0], [x + 3.0, 1.0, 1.0]]
        atoms = Atoms("He4", [[0.0, 9.0, 0.0], *pair, ends])
        batch = batch_of([atoms, atoms])
        edges = nvalchemi(batch, cutoff)
        assert sorted(edges.i[edges.i != edges.j].tolist()) == [1, 2, 5, 6]


@needs_library
def test_a_list_is_built_in_inference_mode_without_a_word(capfd):
    batch = crystals(4, 6)
    nvalchemi(batch, 5.0)  # what the driver says when the library is loaded
    capfd.readouterr()
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed())
    with torch.inference_mode():
        copied = batch.replace(positions=batch.positions.clone())
        assert compare(copied, nvalchemi(copied, 5.0), 5.0) == ""
    after = (torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed())
    assert before == after
    assert capfd.readouterr() == ("", "")


@needs_library
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_lists_the_pairs_of_the_cpu_in_the_same_order():
    for index in range(40):
        batch, cutoff = random_batch(8, index)
        edges = nvalchemi(batch.to("cuda"), cutoff).to("cpu")
        assert compare(batch, edges, cutoff) == ""
        again = nvalchemi(batch.to("cuda"), cutoff).to("cpu")
        assert edges.j.equal(again.j)
        assert len(edges.i) == len(vesin(batch, cutoff).i)

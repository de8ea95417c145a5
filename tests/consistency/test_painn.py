"""PaiNN as the package computes it equals PaiNN as its equations stand, per edge."""

import pytest
import torch
from ase import Atoms
from torch.nn import functional as F

from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.models import build_model
from mlff.neighbors import neighbor_list
from mlff.nn.embedding import initial_vectors
from mlff.nn.radial import ENVELOPES
from mlff.potential import Potential, TrainingInfo, build_graph
from mlff.testing import check_model
from mlff.testing.cases import sample_systems

SMALL = {"n_features": 16, "n_layers": 2, "n_radial": 6, "cutoff": 3.0}
INFO = TrainingInfo(elements=(1, 6), states=((0, 1),))


def built(**options):
    torch.manual_seed(0)
    return build_model("painn", **{**SMALL, **options}).double()


def by_equations(model, graph):
    """Sections 3.2 and 3.3 of the paper: every message is formed on its edge."""
    i, j = graph.edges.i, graph.edges.j
    config = model.config
    s = model.embedding(graph.batch.numbers)
    v = initial_vectors(graph.batch, s.shape[1], config["charge_spin"], s.dtype)
    f = ENVELOPES[config["envelope"]](graph.distances, model.cutoff)[:, None]
    unit = torch.zeros(len(i), v.shape[1], dtype=s.dtype)
    unit[:, :3] = graph.vectors / graph.distances[:, None]
    for message, update in zip(model.messages, model.updates, strict=True):
        phi = message.outer(F.silu(message.inner(s[j])))
        filtered = phi * (message.filter(model.basis(graph.distances)) * f)
        m_s, m_r, m_v = filtered.chunk(3, dim=1)
        m_vector = m_r[:, None] * unit[:, :, None] + m_v[:, None] * v[j]
        s = s + torch.zeros_like(s).index_add(0, i, m_s)
        v = v + torch.zeros_like(v).index_add(0, i, m_vector)
        u, w = (v @ matrix.T for matrix in update.mix.weight.chunk(2))
        norm = (w.square().sum(1) + 1e-4).sqrt() - 1e-2
        a = update.outer(F.silu(update.inner(torch.cat((s, norm), 1))))
        a_vv, a_sv, a_ss = a.chunk(3, dim=1)
        s, v = s + a_ss + a_sv * (u * w).sum(1), v + a_vv[:, None] * u
    return s, v


@pytest.mark.parametrize("backend", ["all_pairs", "vesin"])
@pytest.mark.parametrize("charge_spin", ["internal", "cmret", "none"])
def test_model_equals_its_equations(charge_spin, backend):
    """Features and forces, to 1e-10, for every way that vectors may start."""
    model = built(charge_spin=charge_spin)
    batch = AtomsBatch.from_atoms(sample_systems())
    edges = neighbor_list(batch, model.cutoff, backend)
    positions = batch.positions.clone().requires_grad_(True)
    graph = build_graph(batch.replace(positions=positions), edges, torch.float64)
    features = model(graph)
    found = features.scalars, features.vectors
    expected = by_equations(model, graph)
    assert found[1].shape == (batch.n_atoms, 3 + (charge_spin == "internal"), 16)
    forces = []
    for pair in (found, expected):
        energy = pair[0].square().sum() + pair[1].square().sum()
        forces += torch.autograd.grad(energy, positions, retain_graph=True)
    assert forces[1].abs().max() > 1e-3
    for ours, theirs in zip((*found, forces[0]), (*expected, forces[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_dense_and_ragged_lists_give_the_same_features():
    model = built()
    batch = AtomsBatch.from_atoms(sample_systems())
    dense = neighbor_list(batch, model.cutoff, "all_pairs")
    real = dense.i != dense.j
    ragged = type(dense)(i=dense.i[real], j=dense.j[real], shift=None)
    assert dense.has_fill
    first, second = (
        model(build_graph(batch, edges, torch.float64)) for edges in (dense, ragged)
    )
    torch.testing.assert_close(first.scalars, second.scalars, rtol=0, atol=1e-12)
    torch.testing.assert_close(first.vectors, second.vectors, rtol=0, atol=1e-12)


def test_vectors_may_start_from_zeros_in_space_or_without_them():
    """What leaves out zeros is only faster; other tasks start from full vectors."""
    model = built()
    batch = AtomsBatch.from_atoms(sample_systems())
    graph = build_graph(batch, neighbor_list(batch, 3.0), torch.float64)
    scalars, edge = model.embedding(batch.numbers), model.edge_features(graph)
    full = initial_vectors(batch, 16, "internal", torch.float64)
    short = model.initial_vectors(graph, torch.float64)
    assert short.shape[1] == 1
    first = model.interact(scalars, full, graph, edge)
    second = model.interact(scalars, short, graph, edge)
    torch.testing.assert_close(first.scalars, second.scalars, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(first.vectors, second.vectors, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {"charge_spin": "cmret"},
        {"charge_spin": "none", "basis": "gaussian"},
        {"envelope": "cosine", "nuclei": "table"},
    ],
    ids=str,
)
def test_every_variant_keeps_the_contract(options):
    torch.manual_seed(0)
    config = {"name": "painn", "n_features": 16, "n_layers": 2, "n_radial": 6}
    potential = Potential.build(
        {**config, **options}, {1: -13.6, 6: -1027.0}, INFO, torch.float64
    )
    assert check_model(potential)


def test_published_size():
    """The representation of the paper: 580,736 parameters."""
    model = build_model("painn", nuclei="table")
    assert model.config["n_features"] == 128
    assert (model.config["n_layers"], model.config["n_radial"]) == (3, 20)
    assert sum(p.numel() for p in model.parameters()) == 580_736


def test_table_has_a_row_for_each_element_up_to_100_and_nan_beyond():
    table = built(nuclei="table").embedding
    rows = table(torch.arange(1, 119))
    assert torch.equal(rows[:100], table.rows)
    assert rows[100:].isnan().all()


def test_an_element_without_a_row_does_not_touch_other_systems():
    model = built(nuclei="table")
    heavy = Atoms(
        "MdH", positions=[[0, 0, 0], [0, 0, 1.5]], info={"charge": 0, "spin": 1}
    )
    batch = AtomsBatch.from_atoms([*sample_systems(), heavy])
    graph = build_graph(batch, neighbor_list(batch, 3.0), torch.float64)
    finite = model(graph).scalars.isfinite().all(1)
    assert finite[:-2].all()
    assert not finite[-2]


def test_unknown_nuclei_are_refused():
    with pytest.raises(InputError, match="`nuclei` must be one of"):
        build_model("painn", nuclei="tabel")

"""CMRET as the package computes it equals CMRET as the paper writes it, per edge."""

import pytest
import torch
from torch.nn import functional as F

from mlff.batch import AtomsBatch
from mlff.models import build_model
from mlff.models.cmret import CMRETConfig, Interaction, _EdgeData
from mlff.neighbors import neighbor_list
from mlff.nn.embedding import initial_vectors
from mlff.nn.radial import ENVELOPES
from mlff.potential import build_graph
from mlff.testing.cases import sample_systems


def edgewise_convolution(layer, scalars, graph, edge):
    """Equation 8 with W_o on every edge, then the sums of equations 10 and 11."""
    i, j = graph.edges.i, graph.edges.j
    envelope = edge.envelope[:, None]
    node = F.silu(layer.node(scalars))
    near, own = F.silu(layer.filter(edge.radial)).chunk(2, dim=-1)
    message = torch.cat((node[i] * own * envelope, node[j] * near * envelope), dim=-1)
    s1, s2, s3 = (layer.project(message) * envelope).chunk(3, dim=-1)
    direction = graph.vectors / graph.distances[:, None]
    zeros = torch.zeros_like(scalars)
    directed = torch.zeros(len(scalars), 3, scalars.shape[1], dtype=scalars.dtype)
    return (
        zeros.index_add(0, i, s1),
        zeros.index_add(0, i, s2),
        directed.index_add(0, i, s3[:, None, :] * direction[:, :, None]),
    )


@pytest.mark.parametrize("backend", ["all_pairs", "vesin"])
@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
def test_aggregated_form_equals_edgewise_form(basis, backend, monkeypatch):
    """Values, forces and the gradient of a force loss, to 1e-10."""
    torch.manual_seed(0)
    model = build_model(
        "cmret", n_features=16, n_layers=3, n_radial=10, basis=basis, cutoff=3.0
    ).double()
    for layer in model.layers:
        torch.nn.init.normal_(layer.project.bias)
    batch = AtomsBatch.from_atoms(sample_systems())
    edges = neighbor_list(batch, model.cutoff, backend)

    def outputs():
        positions = batch.positions.clone().requires_grad_(True)
        graph = build_graph(batch.replace(positions=positions), edges, torch.float64)
        features = model(graph)
        energy = features.scalars.square().sum() + features.vectors.square().sum()
        forces = torch.autograd.grad(energy, positions, create_graph=True)[0]
        parameters = list(model.parameters())
        second = torch.autograd.grad(
            forces.square().sum(), parameters, allow_unused=True
        )
        return energy, forces, [g for g in second if g is not None]

    energy, forces, second = outputs()
    monkeypatch.setattr(Interaction, "_convolve", edgewise_convolution)
    edge_energy, edge_forces, edge_second = outputs()
    torch.testing.assert_close(energy, edge_energy, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forces, edge_forces, rtol=1e-10, atol=1e-10)
    assert len(second) == len(edge_second) > 20
    for ours, theirs in zip(second, edge_second, strict=True):
        scale = theirs.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-10)


def test_dense_and_ragged_lists_give_the_same_features():
    torch.manual_seed(0)
    for options in ({}, {"scope": "local"}, {"scope": "local", "n_heads": 1}):
        model = build_model("cmret", n_features=16, n_layers=2, **options).double()
        batch = AtomsBatch.from_atoms(sample_systems())
        dense = neighbor_list(batch, model.cutoff, "all_pairs")
        real = dense.i != dense.j
        ragged = type(dense)(i=dense.i[real], j=dense.j[real], shift=None)
        assert dense.degree is not None
        assert dense.has_fill
        first, second = (
            model(build_graph(batch, edges, torch.float64)) for edges in (dense, ragged)
        )
        torch.testing.assert_close(first.scalars, second.scalars, rtol=0, atol=1e-12)
        torch.testing.assert_close(first.vectors, second.vectors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("charge_spin", ["internal", "none"])
def test_first_layer_may_leave_out_components_that_are_zero(charge_spin):
    torch.manual_seed(0)
    model = build_model(
        "cmret", n_features=16, n_layers=2, charge_spin=charge_spin
    ).double()
    batch = AtomsBatch.from_atoms(sample_systems())
    edges = neighbor_list(batch, model.cutoff)
    graph = build_graph(batch, edges, torch.float64)
    scalars = model.embedding(batch.numbers)
    vectors = initial_vectors(batch, 16, charge_spin, torch.float64)
    assert not vectors[:, :3].any()
    edge = _EdgeData.of(model.edge_features(graph), graph)
    full = model.layers[0](scalars, vectors, graph, edge)
    short = model.layers[0](scalars, vectors[:, 3:], graph, edge)
    assert full[1].shape == vectors.shape
    for ours, theirs in zip(short, full, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ENVELOPES)
def test_envelope_is_one_at_contact_and_zero_from_the_cutoff_on(name):
    distance = torch.tensor([0.0, 5.0, 5.0001, 900.0], dtype=torch.float64)
    values = ENVELOPES[name](distance, 5.0)
    assert values[0] == 1
    assert torch.equal(values[1:], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(("name", "continuous"), [("polynomial", 2), ("cosine", 1)])
def test_envelope_has_as_many_continuous_derivatives_as_it_says(name, continuous):
    distance = torch.tensor([5.0 - 1e-7], dtype=torch.float64, requires_grad=True)
    value = ENVELOPES[name](distance, 5.0)
    derivatives = []
    for _ in range(3):
        value = torch.autograd.grad(value.sum(), distance, create_graph=True)[0]
        derivatives.append(abs(float(value.detach())))
    vanishing = [d < 1e-4 for d in derivatives]
    assert vanishing[:continuous] == [True] * continuous
    assert not vanishing[continuous]


def test_published_size():
    """128 features, 6 layers and the options of the paper."""
    config = CMRETConfig()
    assert (config.n_features, config.n_layers, config.n_heads) == (128, 6, 4)
    assert (config.n_radial, config.cutoff, config.temperature) == (50, 5.0, 2.0)

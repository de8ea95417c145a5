"""GeoMFormer as the package computes it equals its equations, one edge at a time."""

import math

import pytest
import torch
from torch.nn import functional as F

from mlff.batch import AtomsBatch, Edges
from mlff.errors import InputError
from mlff.models import build_model
from mlff.models.geomformer import Block, GeoMFormerConfig
from mlff.neighbors import neighbor_list
from mlff.nn import edge_attention
from mlff.nn.edge_attention import AllPairs, EdgeList, neighborhood
from mlff.potential import build_graph
from mlff.testing import check_model
from mlff.testing.cases import sample_systems

SIZES = {"n_features": 8, "n_heads": 2, "n_layers": 2, "n_radial": 5, "cutoff": 3.0}


def attended(query, key, value, bias, edge, edges):
    """Σ_j w_ij v_j with the weights of a softmax that always holds the atom itself.

    Queries, keys, values (n_atoms, C, d) of one head, biases (n_edges,).
    """
    out = []
    scale = math.sqrt(min(query.shape[1], 3) * query.shape[2])
    for i in range(len(query)):
        near = [e for e in range(edges.n_edges) if edges.i[e] == i]
        own = torch.exp((query[i] * key[i]).sum() / scale)
        total, sum_ = own, own * value[i]
        for e in near:
            j = edges.j[e]
            logit = (query[i] * key[j]).sum() / scale + bias[e]
            weight = edge.envelope[e] * torch.exp(logit)
            total, sum_ = total + weight, sum_ + weight * value[j]
        out.append(sum_ / total)
    return torch.stack(out)


def directed(layer, head, s, query, key, bias, edge, edges):
    """Σ_j w_ij r̂_ij ⊗ (W b_ij ⊙ W s_j), features of one head."""
    out = torch.zeros(len(s), 3, query.shape[2], dtype=s.dtype)
    part = slice(head * query.shape[2], (head + 1) * query.shape[2])
    scale = math.sqrt(3 * query.shape[2])
    for i in range(len(s)):
        near = [e for e in range(edges.n_edges) if edges.i[e] == i]
        logits = {e: (query[i] * key[edges.j[e]]).sum() / scale + bias[e] for e in near}
        total = torch.exp((query[i] * key[i]).sum() / scale)
        for e, logit in logits.items():
            total = total + edge.envelope[e] * torch.exp(logit)
        for e, logit in logits.items():
            weight = edge.envelope[e] * torch.exp(logit) / total
            sent = layer.filter(edge.radial[e]) * layer.sent(s[edges.j[e]])
            moved = weight * edge.directions[e][:, None] * sent[None, part]
            out = out.index_add(0, torch.tensor([i]), moved[None])
    return out


def four_attentions(layer, s, z, edge, edges):
    """Inv-Self + Inv-Cross and Equ-Self + Equ-Cross."""
    n_heads, width = layer.n_heads, s.shape[1]
    q, k, v, cross_q, gate_k, gate_v = (
        F.linear(s, w, b)[:, None]
        for w, b in zip(
            layer.scalar_in.weight.chunk(6), layer.scalar_in.bias.chunk(6), strict=True
        )
    )
    w = [F.linear(z, part) for part in layer.vector_in.weight.chunk(10)]
    cross_k, cross_v = (
        (w[3] * w[4]).sum(1, keepdim=True),
        (w[5] * w[6]).sum(1, keepdim=True),
    )
    bias = layer.bias(edge.radial).view(-1, 4, n_heads)
    kinds = [
        (q, k, v),
        (cross_q, cross_k, cross_v),
        (w[0], w[1], w[2]),
        (w[7], w[8] * gate_k, w[9] * gate_v),
    ]
    out = []
    for kind, (query, key, value) in enumerate(kinds):
        heads = zip(*(x.chunk(n_heads, -1) for x in (query, key, value)), strict=True)
        mixed = []
        for head, (qh, kh, vh) in enumerate(heads):
            received = attended(qh, kh, vh, bias[:, kind, head], edge, edges)
            if kind == 2 and layer.directed:
                more = directed(
                    layer, head, s, qh, kh, bias[:, kind, head], edge, edges
                )
                received = torch.cat((received[:, :3] + more, received[:, 3:]), 1)
            mixed.append(received)
        out.append(torch.cat(mixed, -1))
    left, right = layer.scalar_out.weight.split(width, dim=1)
    scalars = F.linear(out[0], left) + F.linear(out[1], right) + layer.scalar_out.bias
    left, right = layer.vector_out.weight.split(width, dim=1)
    return scalars[:, 0], F.linear(out[2], left) + F.linear(out[3], right)


def reference(model, graph):
    """The whole model."""
    edge, edges = model.edge_features(graph), graph.edges
    s = model.embedding(graph.batch.numbers)
    v = model.initial_vectors(graph, s.dtype)
    sent = model.filter(edge.radial) * model.sent(s)[edges.j]
    arrows = F.pad(edge.directions, (0, v.shape[1] - 3))
    s = s.index_add(0, edges.i, sent)
    v = v.index_add(0, edges.i, arrows[:, :, None] * sent[:, None])
    for block in model.blocks:
        ds, dv = four_attentions(
            block.attentions,
            block.scalar_norms[0](s),
            block.vector_norms[0](v),
            edge,
            edges,
        )
        s, v = s + ds, v + dv
        ns, nv = block.scalar_norms[1](s), block.vector_norms[1](v)
        hidden, gate = F.gelu(block.scalar_inner(ns)).chunk(2, dim=-1)
        s = s + block.scalar_outer(hidden)
        v = v + block.vector_outer(block.vector_inner(nv) * gate[:, None])
    return model.scalar_norm(s), model.vector_norm(v)


def with_forces(function, batch, edges):
    positions = batch.positions.clone().requires_grad_(True)
    graph = build_graph(batch.replace(positions=positions), edges, torch.float64)
    scalars, vectors = function(graph)
    weight = torch.arange(1.0, 1.0 + scalars.shape[1], dtype=torch.float64)
    energy = (scalars * weight).sum() + (vectors.square() * weight).sum()
    return scalars, vectors, torch.autograd.grad(energy, positions)[0]


@pytest.mark.parametrize("directions", [False, True])
@pytest.mark.parametrize("way", [AllPairs, EdgeList])
@pytest.mark.parametrize("backend", ["all_pairs", "vesin"])
def test_the_module_equals_the_equations(backend, way, directions, monkeypatch):
    torch.manual_seed(0)
    model = build_model("geomformer", directed=directions, **SIZES).double()
    batch = AtomsBatch.from_atoms(sample_systems()[:4])
    edges = neighbor_list(batch, model.cutoff, backend)
    monkeypatch.setattr(edge_attention, "_MAX_PAIRS", 0 if way is EdgeList else 100)
    graph = build_graph(batch, edges, torch.float64)
    assert isinstance(neighborhood(graph, graph.distances), way)
    ours = with_forces(lambda g: vars(model(g)).values(), batch, edges)
    theirs = with_forces(lambda g: reference(model, g), batch, edges)
    assert ours[2].abs().max() > 1e-2
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def graph_of(cutoff, backend):
    batch = AtomsBatch.from_atoms(sample_systems())
    return build_graph(batch, neighbor_list(batch, cutoff, backend), torch.float64)


def test_both_ways_to_attend_give_the_same():
    """Matrices of all pairs and the list of edges, filled up or not; weights too."""
    torch.manual_seed(0)
    graph = graph_of(3.0, "all_pairs")
    assert graph.edges.has_fill
    assert isinstance(neighborhood(graph, graph.distances), AllPairs)
    envelope = (1 - graph.distances / 3.0).clamp(min=0)
    n = graph.batch.n_atoms
    query, key, value = torch.randn(3, 2, n, 6, dtype=torch.float64)
    bias = torch.randn(graph.edges.n_edges, 2, dtype=torch.float64)
    for given in (bias, None):
        found = []
        for way in (AllPairs.of(graph, envelope), EdgeList(graph.edges, envelope)):
            received, weights = way.attend(query, key, value, given)
            found.append((received, way.of_edges(weights)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_attention_weights_and_the_own_one_sum_to_one():
    torch.manual_seed(0)
    graph = graph_of(3.0, "all_pairs")
    envelope = (1 - graph.distances / 3.0).clamp(min=0)
    query, key = 10 * torch.randn(2, 2, graph.batch.n_atoms, 6, dtype=torch.float64)
    for way in (AllPairs.of(graph, envelope), EdgeList(graph.edges, envelope)):
        received, weights = way.attend(query, key, torch.ones_like(key))
        torch.testing.assert_close(received, torch.ones_like(key))
        far = envelope == 0
        assert far.any()
        assert not way.of_edges(weights)[far].any()


def test_fill_cannot_reach_a_result():
    """Not even infinite biases of edges that do not exist: places behind the matrix."""
    graph = graph_of(3.0, "all_pairs")
    fill = graph.edges.i == graph.edges.j
    assert fill.any()
    way = AllPairs.of(graph, (1 - graph.distances / 3.0).clamp(min=0))
    bias = torch.where(fill, torch.inf, 0.0)[:, None].double()
    query = torch.randn(1, graph.batch.n_atoms, 4, dtype=torch.float64)
    assert torch.isfinite(way.attend(query, query, query, bias)[0]).all()


def test_large_systems_and_lists_with_images_attend_along_edges():
    graph = graph_of(1.2, "vesin")
    assert isinstance(neighborhood(graph, graph.distances), EdgeList)
    full = graph_of(3.0, "all_pairs")
    shift = torch.zeros(full.edges.n_edges, 3, dtype=torch.float64)
    edges = Edges(i=full.edges.i, j=full.edges.j, shift=shift)
    images = build_graph(full.batch, edges, torch.float64)
    assert isinstance(neighborhood(images, images.distances), EdgeList)


def test_weights_of_a_block_are_those_of_the_published_one():
    """20 F² + 5 F·F_ff, without biases, norms and the network of the distances."""
    block = Block(GeoMFormerConfig(n_features=64, n_heads=8, widening=2))
    published = sum(
        p.numel()
        for name, p in block.named_parameters()
        if p.ndim == 2 and not name.startswith("attentions.bias")
    )
    assert published == 20 * 64**2 + 5 * 64 * 128


def test_only_invariant_projections_have_biases():
    model = build_model("geomformer", **SIZES)
    biased = {n for n, p in model.named_parameters() if n.endswith("bias")}
    assert biased
    assert not any("vector" in name for name in biased)


@pytest.mark.parametrize(
    "options",
    [
        {"basis": "gaussian", "directed": True},
        {"charge_spin": "cmret"},
        {"charge_spin": "none", "envelope": "cosine", "n_heads": 1},
    ],
    ids=str,
)
def test_variants_keep_the_contract(options):
    torch.manual_seed(0)
    small = {"n_features": 16, "n_layers": 2, "n_radial": 6, "n_heads": 4}
    model = build_model("geomformer", **{**small, **options}).double()
    assert check_model(model)


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="n_heads"):
        build_model("geomformer", n_features=20, n_heads=8)
    with pytest.raises(InputError, match="directed"):
        build_model("geomformer", directed=1)

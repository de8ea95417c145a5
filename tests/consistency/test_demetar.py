"""DEMETAr as the package computes it equals its equations, one edge at a time; the
published network has the published size, and the symmetries that it really has."""

import math
from functools import partial

import pytest
import torch
from ase import Atoms
from torch.nn import functional as F

from mlff.batch import AtomsBatch, Edges
from mlff.errors import InputError
from mlff.models import build_model
from mlff.models.demetar import DEMETArNBody, incident
from mlff.neighbors import all_pairs, neighbor_list
from mlff.nn.edge_attention import EdgeRows
from mlff.nn.encoder import among_all
from mlff.potential import build_graph
from mlff.testing import check_model
from mlff.testing.cases import sample_systems

SIZES = {"n_features": 8, "n_heads": 2, "n_layers": 2, "n_radial": 5, "cutoff": 3.0}


def mean(own_logit, own_value, others):
    """Softmax over (logit, envelope, value) and a term that is always there."""
    total = torch.exp(own_logit)
    sum_ = total * own_value
    for logit, envelope, value in others:
        weight = envelope * torch.exp(logit)
        total, sum_ = total + weight, sum_ + weight * value
    return sum_ / total


def block_of(block, tokens, own, others):
    """One encoder block. ``others``: (token, envelope of it, bias by head)."""
    out = []
    parts = zip(block.project.weight.chunk(3), block.project.bias.chunk(3), strict=True)
    q, k, v = (F.linear(tokens, w, b) for w, b in parts)
    d = tokens.shape[1] // block.n_heads
    for t in range(len(tokens)):
        heads = []
        for h in range(block.n_heads):
            part = slice(h * d, (h + 1) * d)
            logit = (q[t, part] * k[t, part]).sum() / math.sqrt(d)
            terms = [
                (
                    (q[t, part] * k[o, part]).sum() / math.sqrt(d) + bias[h],
                    f,
                    v[o, part],
                )
                for o, f, bias in others[t]
            ]
            heads.append(mean(logit + own[t][h], v[t, part], terms))
        out.append(torch.cat(heads))
    tokens = block.norms[0](tokens + block.out(torch.stack(out)))
    return block.norms[1](tokens + block.outer(F.silu(block.inner(tokens))))


def reference(model, graph):
    """The whole model."""
    edge, edges = model.edge_features(graph), graph.edges
    i, j, f = edges.i.tolist(), edges.j.tolist(), edge.envelope
    n_heads = model.cross.n_heads
    s = model.embedding(graph.batch.numbers)
    v = model.initial_vectors(graph, s.dtype)
    n_atoms, n_edges, none = len(s), edges.n_edges, [0.0] * n_heads
    incoming = [[e for e in range(n_edges) if i[e] == a] for a in range(n_atoms)]

    ends = F.linear(s[i] + s[j], model.ends.weight) + 2 * model.ends.bias
    tokens = ends + model.length(edge.radial)
    for number, block in enumerate(model.edge_encoder):

        def bias(first, second, number=number):
            if not model.angles:
                return none
            cosine = (edge.directions[first] * edge.directions[second]).sum()
            return model.angles[number] @ torch.stack([cosine**p for p in range(6)])

        own = [bias(e, e) for e in range(n_edges)]
        others = [
            [(k, f[k], bias(e, k)) for k in incoming[i[e]] if k != e]
            for e in range(n_edges)
        ]
        tokens = block_of(block, tokens, own, others)

    neighbors = [[(j[e], f[e], none) for e in incoming[a]] for a in range(n_atoms)]
    for block in model.node_encoder:
        s = block_of(block, s, [none] * n_atoms, neighbors)

    q, d = model.cross.query(s), s.shape[1] // n_heads
    k, value = model.cross.key_value(tokens).chunk(2, dim=-1)
    received = []
    for a in range(n_atoms):
        heads = []
        for h in range(n_heads):
            part = slice(h * d, (h + 1) * d)
            terms = [
                ((q[a, part] * k[e, part]).sum() / math.sqrt(d), f[e], value[e, part])
                for e in incoming[a]
            ]
            heads.append(mean(model.nothing[h], 0 * s[a, part], terms))
        received.append(torch.cat(heads))
    for e in range(n_edges):
        arrow = f[e] * edge.directions[e][:, None] * model.arrows(tokens[e])
        arrow = F.pad(arrow, (0, 0, 0, v.shape[1] - 3))
        v = v.index_add(0, torch.tensor([i[e]]), arrow[None])
    first, second = model.mix(v).chunk(2, dim=-1)
    s = s + model.cross.out(torch.stack(received))
    s = s + model.products((first * second).sum(1))
    for block in model.joint_encoder:
        s = block_of(block, s, [none] * n_atoms, neighbors)
    return s, v


def with_forces(function, batch, edges):
    positions = batch.positions.clone().requires_grad_(True)
    graph = build_graph(batch.replace(positions=positions), edges, torch.float64)
    scalars, vectors = function(graph)
    weight = torch.arange(1.0, 1.0 + scalars.shape[1], dtype=torch.float64)
    energy = (scalars * weight).sum() + (vectors.square() * weight).sum()
    return scalars, vectors, torch.autograd.grad(energy, positions)[0]


def built(**options):
    torch.manual_seed(0)
    model = build_model("demetar", **{**SIZES, **options}).double()
    torch.nn.init.normal_(model.nothing)
    return model


@pytest.mark.parametrize("angles", [True, False])
@pytest.mark.parametrize("backend", ["all_pairs", "vesin"])
def test_the_module_equals_the_equations(backend, angles):
    model = built(angles=angles, n_edge_layers=2 if angles else 1)
    batch = AtomsBatch.from_atoms(sample_systems()[:3])
    edges = neighbor_list(batch, model.cutoff, backend)
    ours = with_forces(lambda g: vars(model(g)).values(), batch, edges)
    theirs = with_forces(lambda g: reference(model, g), batch, edges)
    assert ours[2].abs().max() > 1e-2
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def shuffled(edges):
    """The same edges as a ragged list, in no order."""
    real = (edges.i != edges.j).nonzero()[:, 0]
    order = real[torch.randperm(len(real))]
    return Edges(i=edges.i[order], j=edges.j[order], shift=None)


def test_dense_and_ragged_lists_give_the_same():
    """Rows of a width for every power of two, and atoms without any edge."""
    model = built()
    far = Atoms("CH", positions=[[0, 0, 0], [9.0, 0, 0]], info={"charge": 0, "spin": 2})
    batch = AtomsBatch.from_atoms([far, *sample_systems()])
    dense = neighbor_list(batch, model.cutoff, "all_pairs")
    near = build_graph(batch, dense, torch.float64).distances < model.cutoff
    ragged = shuffled(dense)
    inside = Edges(i=dense.i[near], j=dense.j[near], shift=None)
    assert set(range(batch.n_atoms)) - set(inside.i.tolist())
    rows = EdgeRows.of(inside, batch.n_atoms)
    assert len({block.shape[1] for block in rows.blocks if len(block)}) > 1
    expected = with_forces(lambda g: vars(model(g)).values(), batch, dense)
    for edges in (ragged, inside):
        found = with_forces(lambda g: vars(model(g)).values(), batch, edges)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_rows_come_back_in_the_order_of_the_edges():
    torch.manual_seed(0)
    edges = Edges(i=torch.randint(0, 9, (40,)), j=torch.zeros(40).long(), shift=None)
    rows = EdgeRows.of(edges, 11)
    values = torch.arange(80.0).view(40, 2)
    assert torch.equal(rows.join(rows.split(values), values), values)
    for block, present in zip(rows.blocks, rows.present, strict=True):
        receivers = edges.i[block]
        assert (receivers == receivers[:, :1]).all()
        assert (present.sum(1) * 2 > block.shape[1]).all()
    empty = Edges(i=torch.zeros(0).long(), j=torch.zeros(0).long(), shift=None)
    none = values[:0]
    assert torch.equal(EdgeRows.of(empty, 5).join((), none), none)


def test_attention_weights_and_the_own_one_sum_to_one():
    torch.manual_seed(0)
    batch = AtomsBatch.from_atoms(sample_systems())
    dense = all_pairs(batch, 3.0)
    for edges in (dense, shuffled(dense)):
        graph = build_graph(batch, edges, torch.float64)
        envelope = (1 - graph.distances / 3.0).clamp(min=0)
        query, key = 5 * torch.randn(2, edges.n_edges, 2, 4, dtype=torch.float64)
        rows = EdgeRows.of(edges, batch.n_atoms)
        received = rows.attend(query, key, torch.ones_like(key), envelope)
        torch.testing.assert_close(received, torch.ones_like(key))


def test_atoms_attend_to_their_own_edges_alone():
    """The mask that the published code inverts: no mass at all elsewhere."""
    model = built()
    batch = AtomsBatch.from_atoms(sample_systems())
    edges = all_pairs(batch, model.cutoff)
    graph = build_graph(batch, edges, torch.float64)
    envelope = model.edge_features(graph).envelope
    torch.manual_seed(1)
    query = torch.randn(batch.n_atoms, 2, 4, dtype=torch.float64)
    key = torch.randn(edges.n_edges, 2, 4, dtype=torch.float64)
    one_hot = torch.eye(edges.n_edges, dtype=torch.float64)
    value = one_hot[:, None].expand(-1, 2, -1)
    mass = model._to_edges(query, key, value, edges, envelope).detach()
    own = edges.i == torch.arange(batch.n_atoms)[:, None]
    reached = own & (envelope > 0)
    assert reached.sum() > batch.n_atoms
    assert torch.equal(mass[:, 0] > 0, reached)
    assert (mass.sum(-1) < 1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"basis": "gaussian", "angles": False},
        {"charge_spin": "cmret", "n_edge_layers": 2},
        {"charge_spin": "none", "envelope": "cosine", "n_heads": 1},
    ],
    ids=str,
)
def test_variants_keep_the_contract(options):
    torch.manual_seed(0)
    small = {"n_features": 16, "n_layers": 2, "n_radial": 6, "n_heads": 4}
    model = build_model("demetar", **{**small, **options}).double()
    assert check_model(model)


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="n_heads"):
        build_model("demetar", n_features=20, n_heads=8)
    with pytest.raises(InputError, match="n_heads"):
        DEMETArNBody(20)
    with pytest.raises(InputError, match="n_edge_layers"):
        build_model("demetar", n_edge_layers=0)


# The published network for charged particles


@pytest.mark.parametrize(
    ("width", "equivariant", "size"),
    [(64, False, 92_931), (128, False, 366_083), (64, True, 92_931 - 2 * 65)],
)
def test_published_size(width, equivariant, size):
    network = DEMETArNBody(width, equivariant=equivariant)
    assert sum(p.numel() for p in network.parameters()) == size


def particles(n_systems=4, size=5):
    torch.manual_seed(2)
    n = n_systems * size
    systems = [Atoms(f"H{size}", positions=torch.randn(size, 3).numpy())] * n_systems
    for atoms in systems:
        atoms.info.update(charge=0, spin=1 + size % 2)
    edges = all_pairs(AtomsBatch.from_atoms(systems), 1.0)
    positions, velocities = torch.randn(2, n, 3, dtype=torch.float64)
    charges = torch.randn(n, dtype=torch.float64).sign()
    return positions, velocities, charges, edges


def network(**options):
    torch.manual_seed(3)
    return DEMETArNBody(16, **options).double().eval()


def rotation():
    torch.manual_seed(4)
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return matrix * torch.linalg.det(matrix)


@pytest.mark.parametrize("equivariant", [False, True])
def test_translations_and_permutations_commute_with_the_network(equivariant):
    model = network(equivariant=equivariant)
    positions, velocities, charges, edges = particles()
    out = model(positions, velocities, charges, edges)
    shift = torch.tensor([3.0, -7.0, 11.0], dtype=torch.float64)
    moved = model(positions + shift, velocities, charges, edges)
    torch.testing.assert_close(moved, out + shift, rtol=0, atol=1e-11)
    order = torch.arange(20).view(4, 5)[:, [3, 1, 4, 0, 2]].flatten()
    swapped = model(positions[order], velocities[order], charges[order], edges)
    torch.testing.assert_close(swapped, out[order], rtol=0, atol=1e-12)


def test_rotations_commute_with_one_factor_for_each_node_and_not_with_three():
    """The published factors act on each component of the velocity."""
    matrix = rotation()
    positions, velocities, charges, edges = particles()
    errors = []
    for equivariant in (True, False):
        model = network(equivariant=equivariant)
        out = model(positions, velocities, charges, edges)
        turned = model(positions @ matrix.T, velocities @ matrix.T, charges, edges)
        errors.append(float((turned - out @ matrix.T).detach().abs().max()))
    assert errors[0] < 1e-12
    assert errors[1] > 1e-3


def test_systems_of_a_batch_do_not_meet():
    model = network()
    positions, velocities, charges, edges = particles()
    out = model(positions, velocities, charges, edges)
    changed = positions.clone()
    changed[5:10] *= 1.5
    other = model(changed, velocities, charges, edges)
    same = torch.ones(20, dtype=torch.bool)
    same[5:10] = False
    assert torch.equal(other[same], out[same])
    assert not torch.equal(other[~same], out[~same])


def test_nodes_attend_to_edges_that_begin_or_end_there():
    _, _, _, edges = particles()
    allowed = incident(edges, 20)
    assert allowed.shape == (4, 5, 20)
    assert (allowed.sum(2) == 8).all()
    torch.manual_seed(5)
    query = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    key = torch.randn(4, 20, 2, 3, dtype=torch.float64)
    value = torch.eye(20, dtype=torch.float64)[None, :, None].expand(4, -1, 2, -1)
    mass = partial(among_all, allowed=allowed)(query, key, value)
    assert torch.equal(mass[:, :, 0] > 0, allowed)
    torch.testing.assert_close(mass.sum(-1), torch.ones_like(mass[..., 0]))


def test_dropout_acts_in_training_alone_and_the_class_token_never():
    given = particles()
    model = network()
    assert torch.equal(model(*given), model(*given))
    model.train()
    out = model(*given)
    assert not torch.equal(out, model(*given))
    out.sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"class_token"}


def test_the_network_of_one_published_block_equals_its_equations():
    """Post-norm, ReLU, softmax over everyone: one block, written out."""
    block = network().node_encoder[0]
    torch.manual_seed(6)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = (
        part.view(2, 5, 8, 2).transpose(1, 2) for part in block.project(x).chunk(3, -1)
    )
    weights = (q @ k.transpose(2, 3) / math.sqrt(2)).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).reshape(2, 5, 16)
    y = F.layer_norm(x + block.out(mixed), (16,))
    expected = F.layer_norm(y + block.outer(F.relu(block.inner(y))), (16,))
    torch.testing.assert_close(block(x, among_all), expected)


def test_only_complete_graphs_of_one_size_are_taken():
    positions, velocities, charges, edges = particles()
    mixed = all_pairs(AtomsBatch.from_atoms(sample_systems()[:2]), 1.0)
    assert mixed.has_fill
    for wrong in (shuffled(edges), mixed):
        with pytest.raises(InputError, match="complete graph"):
            network()(positions, velocities, charges, wrong)

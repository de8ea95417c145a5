"""Attention on invariant features equals the paper's equations, edge by edge."""

import itertools
import math

import pytest
import torch
from ase.build import molecule
from torch import nn
from torch.nn import functional as F

from mlff.batch import AtomsBatch, Edges
from mlff.errors import InputError
from mlff.models import build_model
from mlff.models.invariant_attention import InvariantAttentionNBody, NormBias
from mlff.neighbors import neighbor_list
from mlff.nn.invariant_attention import SelfAttention
from mlff.potential import Potential, TrainingInfo, build_graph
from mlff.testing import check_model
from mlff.testing.cases import evaluate, sample_systems

SYMMETRIES = ("E3", "SE3")
SMALL = {"n_features": 16, "n_layers": 2, "n_radial": 6, "n_scalars": 8}
SIZES = {("E3", 5): 115_851, ("SE3", 4): 184_106}


def build(symmetry, **options):
    torch.manual_seed(0)
    return build_model(
        "invariant_attention", **{**SMALL, "symmetry": symmetry, **options}
    ).double()


# The paper, written out


def cross(a, b):
    """In space, on vectors of 3 or 4 components."""
    return F.pad(torch.linalg.cross(a[:, :3], b[:, :3]), (0, a.shape[1] - 3))


def inner(a, b):
    return (a * b).sum(1)


def det(a, b, c):
    return torch.linalg.det(torch.stack((a[:, :3], b[:, :3], c[:, :3]), 2))


def phi(net, vectors, scalars, arrow=None, label=None):
    """Equations 4 and 6 to 8 with every set member listed; vectors are (n, C)."""
    pairs = list(itertools.combinations(vectors, 2))
    invariants = [
        inner(a, b) for a, b in itertools.combinations_with_replacement(vectors, 2)
    ]
    basis = list(vectors)
    if net.handed:
        invariants += [det(*each) for each in itertools.combinations(vectors, 3)]
        basis += [cross(a, b) for a, b in pairs]
    inputs = [torch.stack(invariants, 1), scalars]
    if arrow is not None:
        more = [inner(a, arrow) for a in vectors]
        if net.handed:
            more += [det(a, b, arrow) for a, b in pairs]
        inputs += [torch.stack([*more, inner(arrow, arrow)], 1), label]
        basis.append(arrow)
        if net.handed:
            basis += [cross(a, arrow) for a in vectors]
    hidden = net.activation(net.norm(net.inner(torch.cat(inputs, 1))))
    out = net.outer(hidden)
    size = len(basis)
    n_new = (out.shape[1] - net.split[1]) // size
    weights = out[:, : size * n_new].view(len(out), size, n_new)
    new = [
        sum(weights[:, m, t, None] * basis[m] for m in range(size)) / size
        for t in range(n_new)
    ]
    return new, out[:, size * n_new :]


def heads_of(vectors, scalars, n_heads):
    """The share of each head, flattened: (n, n_heads, …)."""
    n = len(scalars)
    vectors = torch.stack(vectors, 1).reshape(n, n_heads, -1)
    width = scalars.shape[1] // n_heads
    return torch.cat((vectors, scalars.reshape(n, n_heads, width)), 2)


def attention_of_the_paper(self, features, edge_features, envelope, edges):
    """Equations 1 to 3 and the softmax, with all keys and values on edges."""
    vectors, scalars = features
    arrow, label = edge_features
    n_atoms, rows = vectors.shape[:2]
    own = list(vectors.unbind(2))
    sent = [v[edges.j] for v in own]
    arrow = F.pad(arrow, (0, rows - 3))
    query = heads_of(*phi(self.query, own, scalars), self.n_heads)
    key = heads_of(*phi(self.key, sent, scalars[edges.j], arrow, label), self.n_heads)
    value = phi(self.value, sent, scalars[edges.j], arrow, label)
    n_new, n_scalars = len(value[0]), value[1].shape[1]
    value = heads_of(*value, self.n_heads)
    # Three components of each vector count, with or without internal ones.
    depth = (3 * n_new + n_scalars) / self.n_heads
    logits = (query[edges.i] * key).sum(2) / math.sqrt(depth)
    attended = []
    for atom in range(n_atoms):
        mine = (edges.i == atom) & (envelope > 0)
        weights = envelope[mine, None] * torch.exp(logits[mine])
        total = weights.sum(0)
        if self.nothing is not None:
            total = total + torch.exp(self.nothing)
        attended.append(((weights / total)[:, :, None] * value[mine]).sum(0))
    attended = torch.stack(attended)
    cut = rows * n_new // self.n_heads
    new = attended[:, :, :cut].reshape(n_atoms, n_new, rows)
    result, out = phi(
        self.output,
        [*own, *new.unbind(1)],
        torch.cat((scalars, attended[:, :, cut:].flatten(1)), 1),
    )
    return torch.stack(result, 2), out


def interact_of_the_page(self, scalars, vectors, graph, edge):
    """The energy form: start, layers, end."""
    start = self.start(edge.radial)[:, None] * edge.directions[:, :, None]
    vectors = vectors @ self.mix.weight.T
    space = vectors[:, :3].index_add(0, graph.edges.i, start)
    vectors = torch.cat((space, vectors[:, 3:]), 1)
    for layer in self.layers:
        moved, out = attention_of_the_paper(
            layer.attention,
            (vectors, scalars),
            (edge.directions, edge.radial),
            edge.envelope,
            graph.edges,
        )
        out = layer.norm(out)
        scalars = scalars + out * torch.sigmoid(out)
        vectors = vectors + moved * torch.sigmoid(layer.gate(scalars))[:, None]
    return scalars, vectors @ self.spread.weight.T


def edge_lists(batch, cutoff):
    dense = neighbor_list(batch, cutoff, "all_pairs")
    real = dense.i != dense.j
    assert dense.has_fill
    yield dense
    yield neighbor_list(batch, cutoff, "vesin")
    yield Edges(i=dense.i[real], j=dense.j[real], shift=None)


@pytest.mark.parametrize("charge_spin", ["internal", "none"])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_fast_form_equals_the_equations(symmetry, charge_spin):
    """Values, forces and the gradient of a force loss, on every kind of list."""
    model = build(symmetry, n_vectors=4, n_heads=2, cutoff=3.0, charge_spin=charge_spin)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "nothing")):
            nn.init.normal_(parameter, std=0.3)
    batch = AtomsBatch.from_atoms(sample_systems())
    parameters = list(model.layers.parameters())

    def derivatives(energy, positions):
        forces = torch.autograd.grad(energy, positions, create_graph=True)[0]
        loss = forces.square().sum()
        return forces, torch.autograd.grad(loss, parameters, allow_unused=True)

    for edges in edge_lists(batch, model.cutoff):
        found = []
        for fast in (True, False):
            positions = batch.positions.clone().requires_grad_(True)
            graph = build_graph(
                batch.replace(positions=positions), edges, torch.float64
            )
            if fast:
                out = model(graph)
                scalars, vectors = out.scalars, out.vectors
            else:
                scalars, vectors = interact_of_the_page(
                    model,
                    model.embedding(batch.numbers),
                    model.initial_vectors(graph, torch.float64),
                    graph,
                    model.edge_features(graph),
                )
            energy = scalars.square().sum() + vectors.square().sum()
            found.append((scalars, vectors, *derivatives(energy, positions)))
        ours, theirs = found
        assert ours[1][:, :3].abs().max() > 1e-2
        for mine, reference in zip(ours[:3], theirs[:3], strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)
        for mine, reference in zip(ours[3], theirs[3], strict=True):
            if reference is not None:
                scale = reference.abs().max().clamp(min=1)
                torch.testing.assert_close(
                    mine / scale, reference / scale, rtol=0, atol=1e-9
                )


# Mirror images


def energies(symmetry, atoms):
    info = TrainingInfo(elements=(1, 6, 9, 17, 35), states=((0, 1),))
    model = {"name": "invariant_attention", **SMALL, "symmetry": symmetry}
    torch.manual_seed(0)
    potential = Potential.build(
        model, dict.fromkeys(info.elements, 0.0), info, torch.float64
    )
    mirrored = atoms.copy()
    mirrored.positions[:, 2] *= -1
    mirrored.rotate(50, (1, 2, 3))
    return evaluate(potential, [atoms, mirrored], ("energy",))["energy"]


@pytest.fixture
def chiral():
    atoms = molecule("CH4")
    atoms.numbers[2:] = (9, 17, 35)
    atoms.positions[2:] *= [[1.2], [1.5], [1.7]]
    atoms.info.update(charge=0, spin=1)
    return atoms


def planar():
    atoms = molecule("C2H4")
    atoms.info.update(charge=0, spin=1)
    atoms.rotate(30, (1, 1, 0))
    return atoms


def test_e3_gives_mirror_images_one_energy(chiral):
    first, second = energies("E3", chiral)
    assert abs(first - second) < 1e-11


def test_se3_tells_the_hands_of_a_molecule_apart(chiral):
    first, second = energies("SE3", chiral)
    assert abs(first - second) > 1e-6


def test_se3_gives_a_planar_molecule_and_its_mirror_image_one_energy():
    first, second = energies("SE3", planar())
    assert abs(first - second) < 1e-11


def test_model_declares_its_symmetry():
    assert build("E3").symmetry == "O3"
    assert build("SE3").symmetry == "SO3"
    assert build("SE3", charge_spin="cmret").symmetry == "broken"


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"basis": "gaussian", "envelope": "cosine", "n_vectors": 3, "n_heads": 1},
        {"charge_spin": "none", "symmetry": "SE3", "n_vectors": 2, "n_heads": 2},
        {"charge_spin": "cmret", "n_vectors": 1, "n_heads": 1},
    ],
    ids=str,
)
def test_variants_keep_the_contract(options):
    torch.manual_seed(0)
    assert check_model(
        build_model("invariant_attention", **{**SMALL, **options}).double()
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"symmetry": "O3"}, "symmetry"),
        ({"n_heads": 3}, "n_vectors"),
        ({"n_heads": 4, "n_scalars": 6}, "n_scalars"),
        ({"n_vectors": 0}, "n_vectors"),
    ],
)
def test_options_that_cannot_be_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        build_model("invariant_attention", **options)


# Bodies in motion

N_SYSTEMS, N_BODIES = 4, 5


def bodies():
    """Positions, velocities, charges and complete dense edges of four systems."""
    generator = torch.Generator().manual_seed(1)
    n = N_SYSTEMS * N_BODIES
    positions, velocities = torch.randn(
        2, n, 3, generator=generator, dtype=torch.float64
    )
    charges = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    pairs = [
        (first + a, first + b)
        for first in range(0, n, N_BODIES)
        for a, b in itertools.permutations(range(N_BODIES), 2)
    ]
    i, j = torch.tensor(pairs).T.contiguous()
    return (
        positions,
        velocities,
        charges.double(),
        Edges(i=i, j=j, shift=None, degree=4),
    )


def network(symmetry, n_channels=4, train=True):
    torch.manual_seed(0)
    return InvariantAttentionNBody(n_channels, symmetry).double().train(train)


def orthogonal(reflect):
    matrix, _ = torch.linalg.qr(
        torch.randn(
            3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        )
    )
    sign = torch.linalg.det(matrix) * (-1 if reflect else 1)
    matrix[:, 0] *= torch.sign(sign)
    return matrix


@pytest.mark.parametrize(("symmetry", "n_channels"), SIZES)
def test_published_networks_have_their_published_sizes(symmetry, n_channels):
    net = InvariantAttentionNBody(n_channels, symmetry)
    assert sum(p.numel() for p in net.parameters()) == SIZES[symmetry, n_channels]


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_published_network_equals_the_equations(symmetry, monkeypatch):
    """And needs neither the order of a dense list nor a degree."""
    positions, velocities, charges, dense = bodies()
    ragged = Edges(i=dense.i.flip(0), j=dense.j.flip(0), shift=None)
    net = network(symmetry)
    first = [net(positions, velocities, charges, edges) for edges in (dense, ragged)]
    monkeypatch.setattr(SelfAttention, "forward", attention_of_the_paper)
    reference = net(positions, velocities, charges, dense)
    for out in first:
        for ours, theirs in zip(out, reference, strict=True):
            assert theirs.abs().max() > 1e-3
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("symmetry", "reflect"), [("E3", False), ("E3", True), ("SE3", False)]
)
def test_bodies_move_as_their_frame_does(symmetry, reflect, train):
    positions, velocities, charges, edges = bodies()
    net, matrix = network(symmetry, train=train), orthogonal(reflect)
    still = net(positions, velocities, charges, edges)
    turned = net(positions @ matrix.T + 7.0, velocities @ matrix.T, charges, edges)
    for before, after in zip(still, turned, strict=True):
        assert before.shape == positions.shape
        torch.testing.assert_close(after, before @ matrix.T, rtol=1e-9, atol=1e-10)


def test_se3_network_sees_a_reflection():
    positions, velocities, charges, edges = bodies()
    net, matrix = network("SE3"), orthogonal(reflect=True)
    still, _ = net(positions, velocities, charges, edges)
    turned, _ = net(positions @ matrix.T, velocities @ matrix.T, charges, edges)
    assert (turned - still @ matrix.T).abs().max() > 1e-4


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_the_order_of_bodies_does_not_matter(symmetry):
    positions, velocities, charges, edges = bodies()
    net = network(symmetry)
    out = net(positions, velocities, charges, edges)
    order = torch.arange(N_SYSTEMS * N_BODIES).view(N_SYSTEMS, N_BODIES)[[2, 0, 3, 1]][
        :, [3, 1, 4, 0, 2]
    ]
    order = order.flatten()
    mixed = net(positions[order], velocities[order], charges[order], edges)
    for before, after in zip(out, mixed, strict=True):
        torch.testing.assert_close(after, before[order], rtol=1e-9, atol=1e-10)


def test_normbias_keeps_directions_and_normalizes_the_batch():
    torch.manual_seed(0)
    norm = NormBias(6).double()
    vectors = torch.randn(20, 3, 6, dtype=torch.float64)
    scalars = torch.randn(20, 6, dtype=torch.float64) * 5 + 100
    new_vectors, new_scalars = norm(vectors, scalars)
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    expected = F.relu(F.layer_norm(lengths, (6,)) + norm.vector_bias)
    torch.testing.assert_close(
        new_vectors, vectors / lengths[:, None] * expected[:, None]
    )
    standard = (scalars - scalars.mean(0)) / scalars.std(0, correction=0)
    torch.testing.assert_close(new_scalars, F.relu(standard), rtol=1e-6, atol=1e-6)

"""EGNN equals its equations, per edge: the energy form and both published networks."""

import pytest
import torch
from torch.nn import functional as F

from mlff.batch import AtomsBatch, Edges
from mlff.errors import InputError
from mlff.models import build_model
from mlff.models.edgewise import EdgeFeatures
from mlff.models.egnn import EGNNReadout, EGNNVelocity
from mlff.neighbors import neighbor_list
from mlff.nn.embedding import initial_vectors
from mlff.nn.radial import ENVELOPES
from mlff.potential import Potential, TrainingInfo, build_graph
from mlff.testing import check_model
from mlff.testing.cases import sample_systems

SMALL = {"n_features": 16, "n_layers": 2, "n_radial": 6, "cutoff": 3.0}
INFO = TrainingInfo(elements=(1, 6), states=((0, 1),))
QM9 = {
    "gate": True,
    "coordinates": False,
    "vector_feedback": False,
    "radial": "squared",
    "nuclei": "powers",
    "charge_spin": "none",
}


def built(**options):
    torch.manual_seed(0)
    return build_model("egnn", **{**SMALL, **options}).double()


def message_of(layer, own, other, about):
    """Equations 3 and 8: a concatenation through two layers, then the gate."""
    whole = torch.cat((own, other, about), dim=-1)
    message = F.silu(layer.message(F.silu(layer.pair(whole))))
    if layer.gate is not None:
        message = torch.sigmoid(layer.gate(message)) * message
    return message


def by_equations(model, graph):
    """The energy form: every message, φ_x included, is formed on its edge."""
    i, j, config = graph.edges.i, graph.edges.j, model.config
    h = model.embedding(graph.batch.numbers)
    v = initial_vectors(graph.batch, h.shape[1], config["charge_spin"], h.dtype)
    f = ENVELOPES[config["envelope"]](graph.distances, model.cutoff)[:, None]
    if config["radial"] == "squared":
        about = graph.distances[:, None] ** 2
    else:
        about = f * model.basis(graph.distances)
    unit = torch.zeros(len(i), v.shape[1], dtype=h.dtype)
    unit[:, :3] = graph.vectors / graph.distances[:, None]
    for layer in model.layers:
        message = f * message_of(layer, h[i], h[j], about)
        if config["coordinates"]:
            phi_x = layer.vector_outer(F.silu(layer.vector_inner(message)))
            shift = (f * unit)[:, :, None] * phi_x[:, None]
            v = v + torch.zeros_like(v).index_add(0, i, shift)
        known = [h, torch.zeros_like(h).index_add(0, i, message)]
        if config["vector_feedback"]:
            u, w = (v @ matrix.T for matrix in layer.mix.weight.chunk(2))
            known.append((u * w).sum(1))
        h = h + layer.outer(F.silu(layer.inner(torch.cat(known, 1))))
    return h, v


@pytest.mark.parametrize("backend", ["all_pairs", "vesin"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"charge_spin": "cmret", "gate": False},
        {"charge_spin": "none", "radial": "squared"},
        {"coordinates": False},
        {"vector_feedback": False, "nuclei": "powers"},
    ],
    ids=str,
)
def test_model_equals_its_equations(options, backend):
    """Features and forces, to 1e-10."""
    model = built(**options)
    batch = AtomsBatch.from_atoms(sample_systems())
    edges = neighbor_list(batch, model.cutoff, backend)
    positions = batch.positions.clone().requires_grad_(True)
    graph = build_graph(batch.replace(positions=positions), edges, torch.float64)
    features = model(graph)
    found = features.scalars, features.vectors
    expected = by_equations(model, graph)
    forces = []
    for pair in (found, expected):
        energy = pair[0].square().sum() + pair[1].square().sum()
        forces += torch.autograd.grad(energy, positions, retain_graph=True)
    assert forces[1].abs().max() > 1e-3
    for ours, theirs in zip((*found, forces[0]), (*expected, forces[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("radial", ["basis", "squared"])
def test_dense_and_ragged_lists_give_the_same_features(radial):
    model = built(radial=radial)
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


@pytest.mark.parametrize(
    "options",
    [
        {"charge_spin": "cmret", "gate": False},
        {"charge_spin": "none", "basis": "gaussian"},
        {"envelope": "cosine", "radial": "squared"},
        {"vector_feedback": False},
        {"vector_feedback": False, "charge_spin": "none"},
        {"coordinates": False},
        QM9,
    ],
    ids=str,
)
def test_every_variant_keeps_the_contract(options):
    torch.manual_seed(0)
    config = {"name": "egnn", "n_features": 16, "n_layers": 2, "n_radial": 6}
    potential = Potential.build(
        {**config, **options}, {1: -13.6, 6: -1027.0}, INFO, torch.float64
    )
    assert check_model(potential)


def test_charge_and_spin_reach_the_scalars_through_the_feedback_alone():
    batch = AtomsBatch.from_atoms(sample_systems())
    neutral = batch.replace(charge=batch.charge * 0, multiplicity=batch.charge * 0 + 1)
    edges = neighbor_list(batch, 3.0)
    for feedback in (True, False):
        model = built(vector_feedback=feedback)
        first, second = (
            model(build_graph(b, edges, torch.float64)) for b in (batch, neutral)
        )
        change = (first.scalars - second.scalars).abs().amax(1)
        charged = (batch.charge != 0) | (batch.multiplicity != 1)
        assert torch.equal(change > 1e-6, charged[batch.system] & feedback)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"radial": "cubed"}, "`radial` must be one of"),
        ({"nuclei": "table"}, "`nuclei` must be one of"),
        ({"gate": 1}, "`gate` must be true or false"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        build_model("egnn", **options)


# The network for QM9


def test_published_size_for_qm9():
    """Seven layers of 128 with their read-out: 745,224 parameters."""
    model = build_model("egnn", **{**QM9, "n_features": 128, "n_layers": 7})
    parameters = [*model.parameters(), *EGNNReadout(128).parameters()]
    assert sum(p.numel() for p in parameters) == 745_224


def test_without_envelope_it_is_the_network_for_qm9():
    """Complete graph, squared distances, one number of each molecule."""
    model, readout = built(**QM9), EGNNReadout(16).double()
    systems = sample_systems()
    batch = AtomsBatch.from_atoms(systems)
    edges = neighbor_list(batch, 50.0, "vesin")
    real = edges.i != edges.j
    edges = Edges(i=edges.i[real], j=edges.j[real], shift=None)
    graph = build_graph(batch, edges, torch.float64)
    h = model.embedding(batch.numbers)
    edge = EdgeFeatures(
        radial=graph.distances.square()[:, None],
        envelope=torch.ones_like(graph.distances),
        directions=graph.vectors / graph.distances[:, None],
    )
    vectors = initial_vectors(batch, 16, "none", torch.float64)
    found = readout(model.interact(h, vectors, graph, edge).scalars, batch)
    assert found.shape == (len(systems),)
    for atoms, ours in zip(systems, found, strict=True):
        expected = _molecule(model, readout, atoms)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def _molecule(model, readout, atoms):
    """The published network on one molecule, pair by pair."""
    x, n = torch.tensor(atoms.positions), len(atoms)
    rows = []
    for z in atoms.numbers:
        one_hot = [float(z == other) for other in (1, 6, 7, 8, 9)]
        rows.append([o * (z / 9) ** k for k in range(3) for o in one_hot])
    h = model.embedding.linear(torch.tensor(rows, dtype=torch.float64))
    for layer in model.layers:
        new = []
        for i in range(n):
            total = torch.zeros(16, dtype=torch.float64)
            for j in range(n):
                if i != j:
                    squared = (x[i] - x[j]).square().sum()[None]
                    total = total + message_of(layer, h[i], h[j], squared)
            known = torch.cat((h[i], total))
            new.append(h[i] + layer.outer(F.silu(layer.inner(known))))
        h = torch.stack(new)
    return readout.molecule(readout.atoms(h).sum(0))[0]


def test_elements_that_qm9_does_not_have_are_nan():
    embedding = built(nuclei="powers").embedding
    rows = embedding(torch.arange(1, 119))
    known = torch.tensor([0, 5, 6, 7, 8])
    assert torch.equal(rows.isfinite().all(1).nonzero()[:, 0], known)


# The network for moving particles


def particles(sizes, seed=0):
    """Random particles of several systems and the edges between all of each."""
    generator = torch.Generator().manual_seed(seed)
    n, width = sum(sizes), max(sizes) - 1
    x, v = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    q = 2.0 * torch.randint(0, 2, (n,), generator=generator).double() - 1
    i, j, start = [], [], 0
    for size in sizes:
        for a in range(start, start + size):
            others = [b for b in range(start, start + size) if b != a]
            i += [a] * width
            j += others + [a] * (width - len(others))
        start += size
    fill = len(set(sizes)) > 1
    edges = Edges(
        i=torch.tensor(i), j=torch.tensor(j), shift=None, degree=width, has_fill=fill
    )
    return x, v, q, edges


def network(gain=1.0):
    """With shifts that can be seen: they start a thousand times smaller."""
    torch.manual_seed(1)
    net = EGNNVelocity(n_features=16, n_layers=3).double().requires_grad_(False)
    for layer in net.layers:
        layer.vector_outer.weight *= 1e3 * gain
    return net


def particles_by_equations(net, x, v, q):
    """One system, particle by particle."""
    n, start = len(x), x
    h = [net.embedding(v[i].norm()[None]) for i in range(n)]
    for layer, push in zip(net.layers, net.pushes, strict=True):
        new_x, new_h = [], []
        for i in range(n):
            total, shift = torch.zeros_like(h[i]), torch.zeros_like(x[i])
            for j in (j for j in range(n) if j != i):
                squared = (x[i] - x[j]).square().sum()
                at_start = (start[i] - start[j]).square().sum()
                about = torch.stack((squared, q[i] * q[j], at_start))
                message = message_of(layer, h[i], h[j], about)
                phi_x = layer.vector_outer(F.silu(layer.vector_inner(message)))
                total, shift = total + message, shift + (x[i] - x[j]) * phi_x
            new_x.append(x[i] + shift / (n - 1) + push(h[i]) * v[i])
            known = torch.cat((h[i], total))
            new_h.append(h[i] + layer.outer(F.silu(layer.inner(known))))
        x, h = torch.stack(new_x), new_h
    return x


def test_published_size_for_particles():
    """Four layers of 64: 134,020 parameters."""
    assert sum(p.numel() for p in EGNNVelocity().parameters()) == 134_020


def test_shifts_start_small():
    """Xavier with a gain of 1e-3 for the last layer of φ_x."""
    for layer in EGNNVelocity().layers:
        bound = 1e-3 * (6 / 65) ** 0.5
        assert bound / 2 < layer.vector_outer.weight.abs().max() <= bound


def test_particles_move_as_the_equations_say():
    x, v, q, edges = particles((5, 5))
    net = network()
    found = net(x, v, q, edges)
    for part in (slice(0, 5), slice(5, 10)):
        expected = particles_by_equations(net, x[part], v[part], q[part])
        torch.testing.assert_close(found[part], expected, rtol=1e-10, atol=1e-10)
        assert (expected - x[part]).abs().max() > 1e-2


def test_fill_and_ragged_lists_change_nothing():
    x, v, q, edges = particles((5, 2, 4, 6))
    net, real = network(), edges.i != edges.j
    assert not real.all()
    found = net(x, v, q, edges)
    ragged = Edges(i=edges.i[real], j=edges.j[real], shift=None)
    torch.testing.assert_close(found, net(x, v, q, ragged), rtol=1e-12, atol=1e-12)
    for part in (slice(0, 5), slice(5, 7), slice(7, 11), slice(11, 17)):
        expected = particles_by_equations(net, x[part], v[part], q[part])
        torch.testing.assert_close(found[part], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gain", [1.0, 300.0])
@pytest.mark.parametrize("reflect", [False, True])
def test_rotations_reflections_and_translations_are_followed(reflect, gain):
    """Also by shifts beyond 100, which a clamp of their components would bend."""
    x, v, q, edges = particles((5, 5))
    net = network(gain)
    matrix = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    if (torch.linalg.det(matrix) < 0) != reflect:
        matrix = -matrix
    away = torch.tensor([3.0, -7.0, 11.0], dtype=torch.float64)
    found = net(x, v, q, edges)
    assert ((found - x).abs().max() > 100) == (gain > 1)
    turned = net(x @ matrix.T + away, v @ matrix.T, q, edges)
    torch.testing.assert_close(turned, found @ matrix.T + away, rtol=1e-9, atol=1e-9)


def test_the_order_of_particles_does_not_matter():
    x, v, q, edges = particles((5, 5))
    order = torch.tensor([3, 0, 4, 1, 2, 6, 9, 7, 8, 5])
    net = network()
    found = net(x, v, q, edges)
    shuffled = net(x[order], v[order], q[order], edges)
    torch.testing.assert_close(shuffled, found[order], rtol=1e-12, atol=1e-12)


def test_charges_matter():
    x, v, q, edges = particles((5, 5))
    net = network()
    other = q.clone()
    other[0] = -other[0]
    change = (net(x, v, other, edges) - net(x, v, q, edges)).abs().amax(1)
    assert (change[:5] > 1e-8).all()
    assert not change[5:].any()

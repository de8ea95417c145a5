"""Networks for particles: symmetry, signature, and what cannot be built."""

import inspect

import pytest
import torch

from mlff import MODELS
from mlff.errors import InputError, InputTypeError
from mlff.models.edgewise import Edgewise
from mlff.nbody import NBodyModel, build_network
from mlff.nbody.networks import PUBLISHED, all_edges

SMALL = {"n_features": 8, "n_layers": 2, "n_radial": 6}
N_SYSTEMS, N_PARTICLES = 4, 5
CPU = torch.device("cpu")

FAMILIES = [name for name, kind in MODELS.items() if issubclass(kind, Edgewise)]
NETWORKS = {
    **{name: {"name": name, **SMALL} for name in FAMILIES},
    "cmret, internal axis": {"name": "cmret", **SMALL, "charge_spin": "internal"},
    "cmret, gated": {"name": "cmret", **SMALL, "gated": True},
    "published EGNN": {"name": "published_egnn", "n_features": 8},
    "published attention": {"name": "published_attention", "n_channels": 3},
    "published DEMETAr, repaired": {
        "name": "published_demetar",
        "n_features": 16,
        "equivariant": True,
    },
}


def build(table, predict_velocity=False, seed=0):
    predict_velocity |= table["name"] == "published_attention"  # which always does
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(predict_velocity=predict_velocity, **table).double()
        if isinstance(network, NBodyModel):
            torch.nn.init.normal_(network.motion.weight)  # which is zero at first
    return network.eval()


def state(seed=1, n_systems=N_SYSTEMS):
    random = torch.Generator().manual_seed(seed)
    x, v = torch.randn(2, n_systems * N_PARTICLES, 3, generator=random).double()
    charges = torch.randint(2, (len(x),), generator=random).double() * 2 - 1
    return x, v, charges


def move(network, x, v, charges):
    edges = all_edges(len(x) // N_PARTICLES, N_PARTICLES, CPU)
    return network(x, v, charges, edges)


def orthogonal(determinant):
    random = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(3, 3, generator=random).double())[0]
    return q * torch.linalg.det(q) * determinant


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("determinant", [1, -1], ids=["rotation", "reflection"])
def test_answers_turn_with_the_system(name, determinant):
    network, q = build(NETWORKS[name]), orthogonal(determinant)
    x, v, charges = state()
    moved = move(network, x, v, charges)[0]
    turned = move(network, x @ q.T, v @ q.T, charges)[0]
    assert moved.abs().min(0).values.max() > 0
    torch.testing.assert_close(turned, moved @ q.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_do_not_depend_on_where_the_system_is(name):
    network = build(NETWORKS[name])
    x, v, charges = state()
    shift = torch.tensor([3.0, -7.0, 11.0]).double()
    found = move(network, x + shift, v, charges)[0]
    torch.testing.assert_close(
        found, move(network, x, v, charges)[0], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_follow_the_order_of_the_particles(name):
    network = build(NETWORKS[name])
    x, v, charges = state()
    order = torch.tensor([2, 0, 4, 1, 3])
    rows = (torch.arange(N_SYSTEMS)[:, None] * N_PARTICLES + order).flatten()
    found = move(network, x[rows], v[rows], charges[rows])[0]
    expected = move(network, x, v, charges)[0][rows]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_systems_of_a_batch_do_not_feel_each_other(name):
    network = build(NETWORKS[name])
    x, v, charges = state()
    moved = move(network, x, v, charges)[0]
    for rows in torch.arange(len(x)).split(2 * N_PARTICLES):
        alone = move(network, x[rows], v[rows], charges[rows])[0]
        torch.testing.assert_close(alone, moved[rows], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_feel_charges_velocities_and_distances(name):
    network = build({"name": name, **SMALL})
    x, v, charges = state()
    moved = move(network, x, v, charges)[0]
    flipped = charges.clone()
    flipped[0] *= -1
    for changed in ((x, v, flipped), (x, v * 1.1, charges), (x * 1.1, v, charges)):
        difference = move(network, *changed)[0] - moved
        assert difference[:N_PARTICLES].abs().max() > 1e-6
    # Nothing but the first system has another charge.
    other = (move(network, x, v, flipped)[0] - moved)[N_PARTICLES:]
    assert other.abs().max() < 1e-12


def test_a_network_starts_with_no_motion_and_learns_from_there():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("cmret", predict_velocity=True, **SMALL).double()
    moved, changed = move(network, *state())
    assert moved.abs().max() == changed.abs().max() == 0
    moved.square().sub(moved).sum().backward()
    assert network.motion.weight.grad.abs().max() > 0


def test_velocities_are_predicted_on_request():
    moved, changed = move(build(NETWORKS["cmret"], predict_velocity=True), *state())
    assert moved.shape == changed.shape == (20, 3)
    assert (moved - changed).abs().max() > 1e-3
    assert move(build(NETWORKS["cmret"]), *state())[1] is None


def test_a_gate_lets_the_last_scalars_act():
    def without_gradient(table):
        network = build(table)
        move(network, *state())[0].square().sum().backward()
        trained = [(k, p) for k, p in network.named_parameters() if p.requires_grad]
        return {k for k, p in trained if p.grad is None}

    assert any("residual" in name for name in without_gradient(NETWORKS["cmret"]))
    assert without_gradient(NETWORKS["cmret, gated"]) == set()


def test_the_published_network_for_positions_is_given_as_displacements():
    network = build(NETWORKS["published EGNN"])
    x, v, charges = state()
    new = network.network(x, v, charges, all_edges(N_SYSTEMS, N_PARTICLES, CPU))
    moved, changed = move(network, x, v, charges)
    assert changed is None
    torch.testing.assert_close(moved, new - x)


def test_edges_of_a_size_are_made_once():
    assert all_edges(6, 5, CPU) is all_edges(6, 5, CPU)
    edges = all_edges(2, 5, CPU)
    assert (edges.n_edges, edges.degree, edges.has_fill) == (40, 4, False)


@pytest.mark.parametrize(
    ("table", "predict", "error", "message"),
    [
        ({"name": "cmre"}, False, InputError, r"`network\.name` must be one of"),
        ({"name": "cmret", "heads": 2}, False, InputError, "no option 'heads'"),
        ({"name": "cmret", "n_layers": 0}, False, InputError, "n_layers"),
        ({"name": "cmret", "gated": 1}, False, InputTypeError, r"network\.gated"),
        (
            {"name": "cmret", "charge_spin": "cmret"},
            False,
            InputError,
            "direction of the laboratory",
        ),
        ({"name": "published_egnn", "width": 8}, False, InputError, "'width'; it has"),
        ({"name": "published_egnn"}, True, InputError, "predicts positions only"),
        (
            {"name": "published_attention", "n_channels": 2},
            False,
            InputError,
            "predicts velocities as well",
        ),
        (
            {"name": "published_egnn", "n_features": "8"},
            False,
            InputTypeError,
            r"`network\.n_features` must be an integer .*'8'",
        ),
        ({"name": "published_attention"}, True, InputError, r"n_channels` is missing"),
        (
            {"name": ["painn"]},
            False,
            InputTypeError,
            r"must be a string, .*\['painn'\]",
        ),
    ],
)
def test_what_cannot_be_built_is_an_error(table, predict, error, message):
    with pytest.raises(error, match=message):
        build_network(predict_velocity=predict, **table)


WRONG = {
    int: [0, -3, True, "8", 2.0, 10**12],
    float: [-0.1, 1.0, float("nan"), True, "0.1"],
    bool: [1, "yes"],
    str: [["E3"], 3],
}
OPTIONS = [
    (name, option, parameter.annotation)
    for name, (kind, _) in PUBLISHED.items()
    for option, parameter in inspect.signature(kind).parameters.items()
]


@pytest.mark.parametrize(("name", "option", "kind"), OPTIONS)
def test_a_published_network_checks_each_of_its_options(name, option, kind):
    for value in WRONG[kind]:
        error = InputError if type(value) is kind else InputTypeError
        with pytest.raises(error, match=f"`network.{option}` must be .*, got ") as told:
            build_network(name, name == "published_attention", **{option: value})
        assert repr(value) in str(told.value)


def test_a_published_network_may_be_as_small_as_one():
    for name, (kind, _) in PUBLISHED.items():
        whole = [o for n, o, annotation in OPTIONS if n == name and annotation is int]
        assert whole
        table = {"name": name, **dict.fromkeys(whole, 1)}
        assert move(build(table), *state())[0].isfinite().all(), kind


def test_every_published_network_has_a_name_of_its_own():
    assert not set(PUBLISHED) & set(MODELS)
    assert {"published_egnn", "published_attention", "published_demetar"} <= set(
        PUBLISHED
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_start_with_gradients_that_can_be_followed(name):
    """Deep, wide and on particles far apart: products of features do not run away."""
    torch.manual_seed(0)
    network = build_network(name, False, n_features=48, n_layers=4, gated=True)
    torch.nn.init.normal_(network.motion.weight, std=0.1)
    edges = all_edges(20, 5, CPU)
    positions = 5.0 * torch.randn(100, 3)
    velocities = torch.randn(100, 3)
    charges = torch.randint(0, 2, (100,)) * 2.0 - 1.0
    moved, _ = network(positions, velocities, charges, edges)
    moved.square().mean().backward()
    norms = [w.grad.norm() for w in network.parameters() if w.grad is not None]
    assert float(moved.detach().abs().max()) < 1e3
    assert float(torch.stack(norms).norm()) < 1e4

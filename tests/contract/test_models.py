"""Every registered model and every variant of CMRET is held to the contract; every
check is shown to fail on a model that breaks just that promise."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import nn

from mlff.heads import EnergyHead
from mlff.models import MODELS, Features, Representation, build_model
from mlff.nn.attention import ACTIVATIONS
from mlff.nn.segments import edge_sum
from mlff.potential import Potential, TrainingInfo
from mlff.testing import check_model
from mlff.testing import models as contract

INFO = TrainingInfo(elements=(1, 6), states=((0, 1),))
REFERENCES = {1: -13.6, 6: -1027.0}
SMALL = {"n_features": 32, "n_layers": 3, "n_radial": 8}

#: Every registered model, and the form of one that tells mirror images apart.
FORMS = [
    *({"name": name} for name in MODELS),
    {"name": "invariant_attention", "symmetry": "SE3", "n_vectors": 4},
]

VARIANTS = [
    {},
    {"basis": "bessel"},
    {"envelope": "cosine"},
    {"charge_spin": "cmret"},
    {"charge_spin": "none"},
    {"skip": True},
    {"scope": "local", "skip": True},
    {"scope": "local", "basis": "bessel", "n_heads": 1},
    {"attention": "none"},
    {"residual": False, "n_output_blocks": 1},
    *({"attention": name} for name in ACTIVATIONS if name != "softmax"),
    *(
        {"attention": name, "scope": "local"}
        for name in ACTIVATIONS
        if not name.startswith("softmax")
    ),
]


def build(options, dtype=torch.float64):
    torch.manual_seed(0)
    return Potential.build(
        {"name": "cmret", **SMALL, **options}, REFERENCES, INFO, dtype
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: "-".join(map(str, form.values()))
)
def test_every_registered_model_keeps_the_contract(form, dtype):
    torch.manual_seed(0)
    potential = Potential.build({**form, **SMALL}, REFERENCES, INFO, dtype)
    assert len(check_model(potential)) == len(contract.MODEL_CHECKS)


def test_a_model_alone_can_be_checked():
    torch.manual_seed(0)
    assert check_model(build_model("cmret", **SMALL).double())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_of_cmret_keeps_the_contract(options):
    assert check_model(build(options))


def test_the_papers_charge_vector_breaks_rotation_and_merges_states():
    """Kept selectable; this is what selecting it costs."""
    potential = build({"charge_spin": "cmret"})
    energy, _ = contract._spread(potential, [False] * 10)
    assert energy > 1e-6
    energy, force = contract._spread(build({}), [False] * 50 + [True] * 50)
    assert energy < 1e-9
    assert force < 1e-8


class Toy(Representation):
    """An honest pair model, to be broken in one place at a time."""

    Config = dataclasses.make_dataclass("NoOptions", [], frozen=True)
    cutoff = 5.0
    n_features = 4
    symmetry = "O3"
    additive = True
    supports_periodic = True
    resolves_states = True

    def __init__(self, config=None):
        super().__init__(config)
        self.weight = nn.Parameter(torch.tensor([1.0, -0.7, 0.4, 0.2]))

    @property
    def config(self):
        return {"name": "toy"}

    def pair(self, graph):
        x = (graph.distances / self.cutoff).clamp(max=1)
        return ((1 - x) ** 4)[:, None] * torch.exp(
            -self.weight * graph.distances[:, None]
        )

    def site(self, graph, sums):
        batch = graph.batch
        dtype = self.weight.dtype
        charge = batch.charge[batch.system].to(dtype)[:, None]
        spin = (batch.multiplicity[batch.system] - 1).to(dtype)[:, None]
        number = batch.numbers.to(dtype)[:, None]
        state = 0.3 * charge * self.weight + 0.07 * spin * self.weight**2
        return torch.tanh(sums * (number + 0.1) + state)

    def forward(self, graph):
        sums = edge_sum(self.pair(graph), graph.edges, graph.batch.n_atoms)
        scalars = self.site(graph, sums)
        return Features(
            scalars=scalars, vectors=scalars.new_zeros((len(scalars), 3, 4))
        )


class SeesPositions(Toy):
    def site(self, graph, sums):
        return super().site(graph, sums + 1e-4 * graph.batch.positions[:, :1])


class SeesDirections(Toy):
    def pair(self, graph):
        return super().pair(graph) * (1 + 0.1 * graph.vectors[:, :1])


class MirrorImagesDiffer(Toy):
    def site(self, graph, sums):
        size = graph.batch.n_atoms
        weight = (graph.distances < 5).to(sums.dtype)[:, None] * self.pair(graph)[:, :1]
        axis = edge_sum(weight * graph.vectors, graph.edges, size)
        other = edge_sum(weight**2 * graph.vectors, graph.edges, size)
        third = edge_sum(weight**3 * graph.vectors, graph.edges, size)
        triple = (torch.linalg.cross(axis, other) * third).sum(1, keepdim=True)
        return super().site(graph, sums + 1e3 * triple)


class SeesOrder(Toy):
    def site(self, graph, sums):
        return super().site(graph, sums * (1 + 1e-3 * graph.batch.slot[:, None]))


class MixesSystems(Toy):
    def site(self, graph, sums):
        return super().site(graph, sums + 0.01 * sums.mean())


class CountsEdges(Toy):
    def site(self, graph, sums):
        one = torch.ones_like(graph.distances[:, None])
        return super().site(graph, sums + 0.01 * edge_sum(one, graph.edges, len(sums)))


class NoEnvelope(Toy):
    def pair(self, graph):
        inside = (graph.distances < self.cutoff).to(graph.distances.dtype)
        return inside[:, None] * torch.exp(
            -0.1 * self.weight * graph.distances[:, None]
        )


class DetachesForces(Toy):
    def pair(self, graph):
        return super().pair(graph) + 0.01 * super().pair(graph).detach() ** 2


class RootAtZero(Toy):
    """Its first derivative is finite for an isolated atom, its second is not."""

    def site(self, graph, sums):
        vector = edge_sum(
            self.pair(graph)[:, :1] * graph.vectors, graph.edges, len(sums)
        )
        return super().site(
            graph, sums + torch.linalg.vector_norm(vector, dim=1)[:, None]
        )


class SaysAdditive(Toy):
    def site(self, graph, sums):
        total = sums.new_zeros((graph.batch.n_systems, 4))
        total = total.index_add(0, graph.batch.system, sums)
        return super().site(graph, sums + 0.1 * total[graph.batch.system])


class IgnoresSpin(Toy):
    def site(self, graph, sums):
        batch = graph.batch.replace(
            multiplicity=torch.ones_like(graph.batch.multiplicity)
        )
        return super().site(
            type(graph)(
                batch=batch,
                edges=graph.edges,
                vectors=graph.vectors,
                distances=graph.distances,
            ),
            sums,
        )


class MovesAtoms(Toy):
    def forward(self, graph):
        out = super().forward(graph)
        graph.batch.charge.add_(1)
        return out


class ForgetsOnSaving(Toy):
    def __init__(self, config=None):
        super().__init__(config)
        self.register_buffer("scale", torch.rand(1), persistent=False)

    def site(self, graph, sums):
        return super().site(graph, sums * self.scale)


class NotPeriodic(Toy):
    def site(self, graph, sums):
        counts = graph.batch.counts()[graph.batch.system].to(sums.dtype)
        return super().site(graph, sums * (1 + 0.01 * counts[:, None]))


class SaysBroken(Toy):
    symmetry = "broken"


class SaysNotAdditive(Toy):
    additive = False


BROKEN = {
    contract.translation: [SeesPositions],
    contract.rotation_and_reflection: [SeesDirections, MirrorImagesDiffer, SaysBroken],
    contract.permutation: [SeesOrder],
    contract.batch_equals_singles: [MixesSystems],
    contract.no_gradient_between_systems: [MixesSystems],
    contract.edges_beyond_cutoff_count_nothing: [CountsEdges],
    contract.smooth_at_cutoff: [NoEnvelope],
    contract.forces_are_derivatives: [DetachesForces],
    contract.angular_momentum_is_conserved: [SeesDirections],
    contract.second_derivatives_are_finite: [RootAtZero],
    contract.separated_parts_add_up: [SaysAdditive, SaysNotAdditive],
    contract.states_have_energies_of_their_own: [IgnoresSpin],
    contract.inputs_are_not_modified: [MovesAtoms],
    contract.file_gives_the_same_numbers: [ForgetsOnSaving],
    contract.periodic_systems: [NotPeriodic],
}


def toy(model):
    torch.manual_seed(1)
    head = EnergyHead(4)
    return Potential(model(), {"energy": head}, REFERENCES, INFO).double()


@pytest.fixture
def registered(monkeypatch):
    """Make toys loadable under the name in their configuration."""

    def register(model):
        monkeypatch.setitem(MODELS, "toy", model)

    return register


def test_the_honest_toy_passes_every_check(registered):
    registered(Toy)
    assert check_model(toy(Toy))


@pytest.mark.parametrize("check", contract.MODEL_CHECKS, ids=lambda c: c.__name__)
def test_every_check_fails_on_a_model_that_breaks_its_promise(check, registered):
    for broken in BROKEN[check]:
        registered(broken)
        with pytest.raises(AssertionError):
            check(toy(broken))


def random_molecule(rng):
    """1 to 30 atoms of carbon and hydrogen, at least 0.6 Å apart, perhaps far apart."""
    size = int(rng.integers(1, 31))
    box = 1.2 * size ** (1 / 3) * rng.choice([1.0, 3.0])
    points = []
    while len(points) < size:
        point = rng.uniform(0, box, 3)
        if all(np.linalg.norm(point - other) > 0.6 for other in points):
            points.append(point)
    atoms = Atoms(rng.choice([1, 6], size), positions=points)
    charge = int(rng.integers(-1, 2)) if size > 1 else 0
    electrons = int(atoms.numbers.sum()) - charge
    spin = 1 + electrons % 2 + 2 * int(rng.integers(2)) * (electrons > 2)
    atoms.info.update(charge=charge, spin=spin)
    return atoms


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "local"])
def test_training_stays_finite_on_a_thousand_random_molecules(scope):
    """Goal P15: mixed batches, sizes 1 to 30, single precision."""
    rng = np.random.default_rng(0)
    options = {"scope": scope, "n_features": 8, "n_layers": 2, "n_radial": 4}
    potential = build(options, torch.float32)
    for _ in range(100):
        contract._check_double_backward(
            potential, [random_molecule(rng) for _ in range(10)]
        )

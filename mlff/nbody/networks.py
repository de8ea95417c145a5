"""Networks for particles, behind one signature: published ones, and every model.

``(positions, velocities, charges, edges) → (Δx, Δv or None)`` with all particles of all
systems behind one another, (n, 3) and (n,), and edges from :func:`all_edges`.
"""

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from mlff.batch import AtomsBatch, Edges, Graph
from mlff.errors import InputError, InputTypeError
from mlff.models import MODELS, build_model
from mlff.models.base import Representation
from mlff.models.demetar import DEMETArNBody
from mlff.models.edgewise import EdgeFeatures, Edgewise
from mlff.models.egnn import EGNNVelocity
from mlff.models.invariant_attention import InvariantAttentionNBody
from mlff.neighbors import all_pairs
from mlff.nn.embedding import internal_axes
from mlff.nn.linear import Linear
from mlff.nn.segments import gather
from mlff.nn.vectors import GatedEquivariantBlock

Motion = tuple[Tensor, Tensor | None]

#: Networks made for this task, and whether they return new positions (else
#: displacements and changes of velocity).
PUBLISHED: dict[str, tuple[type[nn.Module], bool]] = {
    "published_attention": (InvariantAttentionNBody, False),
    "published_demetar": (DEMETArNBody, True),
    "published_egnn": (EGNNVelocity, True),
}

# What an option of these may be, by the annotation of its parameter; the only number
# that is no integer is a probability.
_OPTIONS: dict[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "an integer in 1 … 4096"),
    float: ((int, float), "a number in [0, 1)"),
    str: (str, "a string"),
}


@lru_cache(maxsize=16)
def all_edges(n_systems: int, n_particles: int, device: torch.device) -> Edges:
    """Return every pair of particles of each system, both directions."""
    return all_pairs(_particles(n_systems, n_particles, device), cutoff=1.0)


@lru_cache(maxsize=16)
def _particles(n_systems: int, n_particles: int, device: torch.device) -> AtomsBatch:
    """Return sizes and system indices, all that a model may know of a batch here."""
    n = n_systems * n_particles
    each = torch.arange(n, device=device)
    nothing = torch.zeros(n_systems, dtype=torch.int64, device=device)
    return AtomsBatch(
        numbers=torch.ones_like(each),
        positions=torch.zeros(n, 3, dtype=torch.float64, device=device),
        system=each // n_particles,
        slot=each % n_particles,
        cell=torch.zeros(n_systems, 3, 3, dtype=torch.float64, device=device),
        pbc=torch.zeros(n_systems, 3, dtype=torch.bool, device=device),
        charge=nothing,
        multiplicity=nothing + 1,
        n_systems=n_systems,
        max_atoms=n_particles,
        periodic=False,
    )


# Size of the vectors that models start from, for the same reason as the tanh below.
_START = 0.2


class NBodyModel(nn.Module):
    """A model of atoms that moves particles.

    Its layers are what they are; only what they start from is new. Scalars:
    ``W [q_i, |v_i|] + b``; vectors: ``v_i ⊗ w``, nothing in internal components; edges:
    ``tanh(W [basis(d_ij), q_i q_j, ln(1 + d_ij²)] + b)`` in place of radial functions,
    with envelope 1, between all particles of a system. Bounded, because no envelope
    takes far pairs out, and models that multiply features layer by layer would start
    beyond all numbers. Results: ``Δx = W_x v``, ``Δv = W_v v`` from
    its vector features, without bias, at first zero. Equivariant to rotations,
    reflections and permutations, invariant to translations, as far as the model is.

    Args:
        representation: the model; its nuclear embedding stays unused.
        predict_velocity: predict the change of velocities as well.
        gated: let the scalars of the last layer gate the vectors before they are read.
            Otherwise what a model does to scalars after the last use by a vector,
            which in ``demetar`` is most of it, has no effect.
    """

    def __init__(
        self, representation: Edgewise, predict_velocity: bool, gated: bool = False
    ) -> None:
        super().__init__()
        width = representation.n_features
        n_radial = representation.config["n_radial"]
        self.representation = representation
        representation.embedding.requires_grad_(False)
        self.rows = 3 + internal_axes(representation.config["charge_spin"])
        self.scalars = Linear(2, width)
        self.vectors = nn.Parameter(_START * torch.randn(width))
        self.radial = Linear(n_radial + 2, n_radial)
        self.gate = GatedEquivariantBlock(width) if gated else None
        self.motion = Linear(width, 2 if predict_velocity else 1, bias=False)
        nn.init.zeros_(self.motion.weight)  # no motion: what is known without learning

    def forward(
        self, positions: Tensor, velocities: Tensor, charges: Tensor, edges: Edges
    ) -> Motion:
        """Predict how far particles come.

        Args:
            positions: (n, 3), in the dtype of the network.
            velocities: (n, 3).
            charges: (n,).
            edges: from :func:`all_edges`.

        Returns:
            Δx and, if predicted, Δv, (n, 3).
        """
        assert edges.degree is not None  # all pairs
        size = edges.degree + 1
        batch = _particles(len(positions) // size, size, positions.device)
        vectors = gather(positions, edges.j) - gather(positions, edges.i)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        graph = Graph(batch=batch, edges=edges, vectors=vectors, distances=distances)
        speeds = torch.linalg.vector_norm(velocities, dim=1)
        scalars = self.scalars(torch.stack((charges, speeds), dim=1))
        moving = velocities[:, :, None] * self.vectors
        moving = nn.functional.pad(moving, (0, 0, 0, self.rows - 3))
        edge = self._edge_features(graph, charges)
        features = self.representation.interact(scalars, moving, graph, edge)
        vectors = features.vectors
        if self.gate is not None:
            vectors = self.gate(features.scalars, vectors)[1]
        motion = self.motion(vectors[:, :3])
        return motion[..., 0], motion[..., 1] if motion.shape[-1] > 1 else None

    def _edge_features(self, graph: Graph, charges: Tensor) -> EdgeFeatures:
        edges, distances = graph.edges, graph.distances
        products = gather(charges, edges.i) * gather(charges, edges.j)
        pair = torch.stack((products, distances.square().log1p()), dim=1)
        basis = self.representation.basis(distances)
        return EdgeFeatures(
            radial=torch.tanh(self.radial(torch.cat((basis, pair), dim=1))),
            envelope=torch.ones_like(distances),
            directions=graph.vectors / distances[:, None],
        )


class _Published(nn.Module):
    """A network made for this task, behind the signature of all."""

    def __init__(self, network: nn.Module, predicts_positions: bool) -> None:
        super().__init__()
        self.network = network
        self.predicts_positions = predicts_positions

    def forward(
        self, positions: Tensor, velocities: Tensor, charges: Tensor, edges: Edges
    ) -> Motion:
        out = self.network(positions, velocities, charges, edges)
        if self.predicts_positions:
            return out - positions, None
        moved, changed = out
        return moved, changed


def build_network(
    name: str, predict_velocity: bool = False, **options: Any
) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        name: a key of :data:`PUBLISHED`, or of ``mlff.MODELS``.
        predict_velocity: predict the change of velocities as well.
        **options: of the network, or of the model and ``gated`` of
            :class:`NBodyModel`. Charge and spin of a molecule mean nothing here, so
            that models have ``charge_spin="none"``.

    Raises:
        InputError: unknown name, an option that is unknown, missing or out of range,
            or a network that does not predict what is asked for.
        InputTypeError: a name or an option of the wrong type.
    """
    if not isinstance(name, str):
        raise InputTypeError(f"`network.name` must be a string, got {name!r}")
    if name in PUBLISHED:
        return _build_published(name, predict_velocity, options)
    if name not in MODELS or not issubclass(MODELS[name], Edgewise):
        edgewise = [key for key, kind in MODELS.items() if issubclass(kind, Edgewise)]
        raise InputError(
            f"`network.name` must be one of {sorted((*PUBLISHED, *edgewise))}, got "
            f"{name!r}"
        )
    if options.setdefault("charge_spin", "none") == "cmret":
        raise InputError(
            "`network.charge_spin`='cmret' plants a direction of the laboratory; "
            "leave it out"
        )
    gated = options.pop("gated", False)
    if not isinstance(gated, bool):
        raise InputTypeError(f"`network.gated` must be true or false, got {gated!r}")
    model: Representation = build_model(name, **options)
    assert isinstance(model, Edgewise)
    return NBodyModel(model, predict_velocity, gated)


def _build_published(
    name: str, predict_velocity: bool, options: dict[str, Any]
) -> nn.Module:
    network, predicts_positions = PUBLISHED[name]
    known = inspect.signature(network).parameters
    for option, value in options.items():
        if option not in known:
            raise InputError(
                f"network {name!r} has no option {option!r}; it has {list(known)}"
            )
        _check_option(option, known[option].annotation, value)
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            needed = _OPTIONS[parameter.annotation][1]
            raise InputError(
                f"`network.{option}` is missing: {name!r} needs it, {needed}"
            )
    if predict_velocity == predicts_positions:
        what = "positions only" if predicts_positions else "velocities as well"
        raise InputError(
            f"`predict_velocity`={str(predict_velocity).lower()}, but network {name!r} "
            f"predicts {what}; change one of the two"
        )
    return _Published(network(**options), predicts_positions)


def _check_option(option: str, kind: type, value: Any) -> None:
    """Raise unless a value is of the type that a parameter has, and in its range."""
    accepted, needed = _OPTIONS[kind]
    wrong = f"`network.{option}` must be {needed}, got {value!r}"
    flag = isinstance(value, bool)  # an integer to Python
    if not isinstance(value, accepted) or flag != (kind is bool):
        raise InputTypeError(wrong)
    if kind is int and not 1 <= value <= 4096:
        raise InputError(wrong)
    if kind is float and not 0 <= value < 1:
        raise InputError(wrong)

"""EGNN: an equivariant network without equivariant features, and its energy form.

Satorras, Hoogeboom, Welling, ICML 2021; equation numbers are theirs, and this is their
layer, :class:`mlff.nn.egnn.EGNNLayer`, of which they and we make every network::

    m_ij = σ(w m̃) m̃,  m̃ = φ_e(h_i, h_j, |x_i − x_j|², a_ij)              (eqs. 3, 8)
    x_i += C Σ_j (x_i − x_j) φ_x(m_ij)                                    (eq. 4)
    h_i += φ_h(h_i, Σ_j m_ij)                                             (eqs. 5, 6)

:class:`EGNN` is a model of energies. Where it leaves the paper, and what ``gate``,
``coordinates``, ``vector_feedback``, ``radial`` and ``nuclei`` take back:

- atoms stay where they are, or neighbor lists would go stale: eq. 4 moves F vectors
  ``v_i += Σ_j f_ij r̂_ij ⊗ φ_x(m_ij)`` in their place (``coordinates``).
- every message carries the envelope f: the paper has no cutoff, so that energies
  extrapolate with the squared distance and do not add up. A cutoff is at most 50 Å.
- a radial basis stands for the squared distance (``radial="squared"`` is published).
- ``<U v_i, V v_i>`` enters φ_h (``vector_feedback``): without it there are no angles,
  and charge and spin, with which v starts, reach the energy through the head alone.
- nuclei enter by their electron configuration, as in all our models;
  ``nuclei="powers"`` are the 15 features that the paper uses for QM9.

With ``gate=True, coordinates=False, vector_feedback=False, radial="squared",
nuclei="powers", n_layers=7`` and :class:`EGNNReadout` it is the network for QM9.
:class:`EGNNVelocity` is the network for moving particles.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlff.batch import AtomsBatch, Edges, Graph
from mlff.errors import InputError
from mlff.models.base import Features
from mlff.models.edgewise import EdgeFeatures, Edgewise, EdgewiseConfig, check_flags
from mlff.nn.egnn import EGNNLayer, perceptron
from mlff.nn.linear import Linear
from mlff.nn.segments import edge_sum, gather

#: What an edge tells the messages about its length.
RADIAL = ("basis", "squared")

#: Ways to embed an element.
NUCLEI = ("configuration", "powers")

#: Elements of QM9.
QM9_ELEMENTS = (1, 6, 7, 8, 9)


@dataclass(frozen=True, kw_only=True)
class EGNNConfig(EdgewiseConfig):
    """Options of EGNN; see the module for what is published.

    Attributes:
        gate: weigh messages by ``σ(w m̃)`` ("edge inference", eq. 8).
        coordinates: sum edge directions into vectors.
        vector_feedback: let the vectors act on the scalars.
        radial: ``"basis"`` or ``"squared"`` distance, Å².
        nuclei: ``"configuration"``, or ``"powers"``: H, C, N, O, F only.
    """

    n_layers: int = 4
    gate: bool = True
    coordinates: bool = True
    vector_feedback: bool = True
    radial: str = "basis"
    nuclei: str = "configuration"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self, "gate", "coordinates", "vector_feedback")
        for name, allowed in (("radial", RADIAL), ("nuclei", NUCLEI)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"`{name}` must be one of {list(allowed)}, got "
                    f"{getattr(self, name)!r}"
                )


class NuclearPowers(nn.Module):
    """One-hot element times ``(Z/9)^{0, 1, 2}``, through one linear layer.

    Elements that are not in QM9 have no features. To refuse them would cost a look at
    the data in every call, so theirs are NaN, and with them all that follows.

    Args:
        n_features: width F.
    """

    one_hot: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        n = len(QM9_ELEMENTS)
        table = torch.full((119, n), torch.nan)
        table[list(QM9_ELEMENTS)] = torch.eye(n)
        self.register_buffer("one_hot", table, persistent=False)
        self.linear = nn.Linear(3 * n, n_features)

    def forward(self, numbers: Tensor) -> Tensor:
        """Embed atomic numbers (n_atoms,): (n_atoms, F)."""
        element = self.one_hot[numbers]
        ratio = numbers.to(element.dtype)[:, None] / max(QM9_ELEMENTS)
        powers = (element, element * ratio, element * ratio**2)
        return self.linear(torch.cat(powers, dim=1))


class EGNN(Edgewise):
    """The model of energies; see the module for the equations and the deviations.

    Args:
        config: options.
    """

    Config = EGNNConfig
    name = "egnn"

    def __init__(self, config: EGNNConfig) -> None:
        super().__init__(config)
        width = config.n_features
        if config.nuclei == "powers":
            self.add_module("embedding", NuclearPowers(width))
        self.squared = config.radial == "squared"
        self.layers = nn.ModuleList(
            EGNNLayer(
                width,
                1 if self.squared else config.n_radial,
                gate=config.gate,
                channels=width if config.coordinates else 0,
                feedback=config.vector_feedback,
            )
            for _ in range(config.n_layers)
        )

    def edge_features(self, graph: Graph) -> EdgeFeatures:
        """See :class:`mlff.models.edgewise.Edgewise`.

        A squared distance carries no envelope: messages do.
        """
        edge = super().edge_features(graph)
        if not self.squared:
            return edge
        return EdgeFeatures(
            radial=graph.distances.square()[:, None],
            envelope=edge.envelope,
            directions=edge.directions,
        )

    def interact(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Features:
        """See :class:`mlff.models.edgewise.Edgewise`."""
        envelope = edge.envelope[:, None]
        weights = envelope * edge.directions
        for layer in self.layers:
            scalars, vectors = layer(
                scalars, vectors, graph.edges, edge.radial, envelope, weights
            )
        return Features(scalars=scalars, vectors=vectors)


class EGNNReadout(nn.Module):
    """One number of a molecule, as published for QM9: ``MLP(Σ_i MLP(h_i))``.

    Not additive, since it acts on the sum: a property of a molecule, not an energy.

    Args:
        n_features: width F.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.atoms = perceptron(n_features, n_features)
        self.molecule = perceptron(n_features, 1)

    def forward(self, scalars: Tensor, batch: AtomsBatch) -> Tensor:
        """Read scalars (n_atoms, F): (n_systems,)."""
        total: Tensor = self.molecule(batch.total(self.atoms(scalars)))
        return total[:, 0]


class EGNNVelocity(nn.Module):
    """The network for charged particles: from positions and velocities to positions.

    Equations 3, 5, 6 and, in place of 4, ``x_i += φ_v(h_i) v_i + 1/(N − 1) Σ_j
    (x_i − x_j) φ_x(m_ij)`` (eq. 7) with the velocity of the input and h before its
    update. Left out is the published code's clamp of every component of a shift to
    ±100, which no rotation keeps. Rotations, reflections, translations and the order of
    the particles are followed exactly.

    Args:
        n_features: width F.
        n_layers: layers.
    """

    def __init__(self, n_features: int = 64, n_layers: int = 4) -> None:
        super().__init__()
        layers = [
            EGNNLayer(n_features, 3, gate=False, channels=1) for _ in range(n_layers)
        ]
        for layer in layers:
            nn.init.xavier_uniform_(layer.vector_outer.weight, gain=1e-3)
        self.embedding = Linear(1, n_features)
        self.layers = nn.ModuleList(layers)
        self.pushes = nn.ModuleList(perceptron(n_features, 1) for _ in layers)

    def forward(
        self, positions: Tensor, velocities: Tensor, charges: Tensor, edges: Edges
    ) -> Tensor:
        """Predict where particles go.

        Args:
            positions: (n_particles, 3), in the dtype of the network.
            velocities: (n_particles, 3).
            charges: (n_particles,).
            edges: all pairs of every system, both directions; fill is left out.

        Returns:
            New positions, (n_particles, 3).
        """
        real = (edges.i != edges.j).to(positions.dtype)[:, None]
        others = edge_sum(real, edges, len(positions)).clamp(min=1)
        share = real / gather(others, edges.i)
        products = (gather(charges, edges.i) * gather(charges, edges.j))[:, None]
        start = _between(positions, edges).square().sum(1, keepdim=True)
        scalars = self.embedding(torch.linalg.vector_norm(velocities, dim=1)[:, None])
        for layer, push in zip(self.layers, self.pushes, strict=True):
            between = _between(positions, edges)
            squared = between.square().sum(1, keepdim=True)
            pair = torch.cat((squared, products, start), dim=1)
            pushed = positions + push(scalars) * velocities
            scalars, moved = layer(
                scalars, pushed[:, :, None], edges, pair, real, -share * between
            )
            positions = moved[:, :, 0]
        return positions


def _between(positions: Tensor, edges: Edges) -> Tensor:
    """Return ``x_j − x_i``, (n_edges, 3)."""
    return gather(positions, edges.j) - gather(positions, edges.i)

"""Self-attention through invariant features, for molecules and for bodies in motion.

Chen, Villar, "SE(3)-equivariant self-attention via invariant features", workshop
Machine Learning and the Physical Sciences, NeurIPS 2022; equation numbers are theirs.
Each atom has T vectors and L scalars. A map Φ (:mod:`mlff.nn.invariants`) makes queries
of them (eq. 1), and keys and values of those of a neighbor, the vector of the edge and
its label (eqs. 2, 3). Logits are inner products of queries and keys over vectors and
scalars. A last Φ takes what an atom had and what it attended to.

``symmetry="E3"`` (default): inner products only; energies of mirror images are equal,
as they are in nature. ``symmetry="SE3"`` adds determinants and cross products: the two
hands of a chiral molecule get *different* energies. It is there for properties that
have a hand (optical rotation, circular dichroism), and for comparison; an energy
should use it only averaged over both hands. With ``n_vectors=4`` it costs about what
``"E3"`` costs with 8, and with 8 three to four times that.

Where :class:`InvariantAttention` leaves the paper, and why:

- the first vectors are ``W v⁰ + Σ_j r̂ ⊗ W (φ RBF)``; the published program for
  molecules takes absolute positions, which is not invariant under translations.
- edges carry radial functions instead of the type of a bond, which has none in motion;
  their vector is the unit vector.
- softmax with the envelope and a learned logit of nothing, so that neighbors leave
  smoothly and an isolated atom has no 0/0.
- SiLU for ReLU, which has kinks.
- in the place of the norm nonlinearity, whose direction v/|v| jumps at v = 0 and whose
  batch normalization makes energies depend on the batch:
  ``s ← s + SiLU(LayerNorm(o_s))``, ``v ← v + o_v ⊙ σ(W s)``.

:class:`InvariantAttentionNBody` is the published network, without any of these changes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlff.batch import Edges, Graph
from mlff.errors import InputError
from mlff.models.base import Features
from mlff.models.edgewise import EdgeFeatures, Edgewise, EdgewiseConfig, check_integers
from mlff.nn.invariant_attention import AttentionForm, SelfAttention
from mlff.nn.invariants import Width
from mlff.nn.linear import Linear
from mlff.nn.segments import edge_moments
from mlff.nn.vectors import add_in_space

#: What the model is equivariant to, besides translations and permutations.
SYMMETRIES = ("E3", "SE3")

# Width of the perceptrons of the published network.
_PUBLISHED_HIDDEN = 128


@dataclass(frozen=True, kw_only=True)
class InvariantAttentionConfig(EdgewiseConfig):
    """Options of the attention on invariant features.

    Attributes:
        n_features: scalars of an atom; also the width of the perceptrons.
        n_vectors: vectors of an atom, T; a multiple of ``n_heads``. Cost grows with T²
            (``"E3"``) or T³ (``"SE3"``).
        n_scalars: scalars of queries, keys and values; a multiple of ``n_heads``.
        n_heads: attention heads.
        symmetry: ``"E3"``, or ``"SE3"`` which tells mirror images apart.
    """

    n_vectors: int = 8
    n_scalars: int = 64
    n_heads: int = 4
    symmetry: str = "E3"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, {"n_vectors": 32, "n_scalars": 1024, "n_heads": 64})
        check_symmetry(self.symmetry)
        for name in ("n_vectors", "n_scalars"):
            if getattr(self, name) % self.n_heads:
                raise InputError(
                    f"`n_heads` must divide {name} ({getattr(self, name)}), got "
                    f"{self.n_heads}"
                )


def check_symmetry(symmetry: str) -> None:
    """Raise unless the symmetry is one of :data:`SYMMETRIES`.

    Raises:
        InputError: for an unknown name.
    """
    if symmetry not in SYMMETRIES:
        raise InputError(
            f"`symmetry` must be one of {list(SYMMETRIES)}, got {symmetry!r}"
        )


class Interaction(nn.Module):
    """One layer: attention, then gated residual sums in place of NormBias.

    Args:
        config: options of the model.
    """

    def __init__(self, config: InvariantAttentionConfig) -> None:
        super().__init__()
        width = Width(config.n_vectors, config.n_features)
        inner = Width(config.n_vectors, config.n_scalars)
        handed = config.symmetry == "SE3"
        form = AttentionForm(
            n_hidden=config.n_features,
            n_heads=config.n_heads,
            handed=handed,
            smooth=True,
        )
        self.attention = SelfAttention(width, inner, width, config.n_radial, form)
        self.norm = nn.LayerNorm(config.n_features)
        self.gate = Linear(config.n_features, config.n_vectors)

    def forward(
        self, vectors: Tensor, scalars: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> tuple[Tensor, Tensor]:
        """Return new vectors (n_atoms, 3 + internal, T) and scalars (n_atoms, F)."""
        new_vectors, new_scalars = self.attention(
            (vectors, scalars),
            (edge.directions, edge.radial),
            edge.envelope,
            graph.edges,
        )
        scalars = scalars + F.silu(self.norm(new_scalars))
        gate = torch.sigmoid(self.gate(scalars))
        return vectors + new_vectors * gate[:, None], scalars


class InvariantAttention(Edgewise):
    """The model of molecules; see the module for equations and deviations.

    Args:
        config: options.
    """

    Config = InvariantAttentionConfig
    name = "invariant_attention"

    def __init__(self, config: InvariantAttentionConfig) -> None:
        super().__init__(config)
        if config.symmetry == "SE3" and self.symmetry == "O3":
            self.symmetry = "SO3"
        width, n_vectors = config.n_features, config.n_vectors
        self.mix = Linear(width, n_vectors, bias=False)
        self.start = Linear(config.n_radial, n_vectors, bias=False)
        self.layers = nn.ModuleList(Interaction(config) for _ in range(config.n_layers))
        self.spread = Linear(n_vectors, width, bias=False)

    def interact(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Features:
        """See :class:`mlff.models.edgewise.Edgewise`."""
        arrows = edge_moments(
            edge.directions, self.start(edge.radial), graph.edges, len(scalars)
        )
        vectors = add_in_space(self.mix(vectors), arrows)
        for layer in self.layers:
            vectors, scalars = layer(vectors, scalars, graph, edge)
        return Features(scalars=scalars, vectors=self.spread(vectors))


class NormBias(nn.Module):
    """The published nonlinearity: ReLU of normalized lengths and scalars.

    ``v ← ReLU(LayerNorm(|v|) + β) v/|v|``, ``s ← ReLU(BatchNorm(s) + β)``. It jumps at
    v = 0, and mixes the systems of a batch while it is trained.

    Args:
        n_channels: number of vectors, and of scalars.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.vector_norm = nn.LayerNorm(n_channels)
        self.vector_bias = nn.Parameter(torch.rand(n_channels))
        self.scalar_norm = nn.BatchNorm1d(n_channels)
        self.scalar_bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, vectors: Tensor, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """Transform (n, 3, C) and (n, C)."""
        lengths = torch.sqrt(vectors.square().sum(1) + 1e-12)
        scale = F.relu(self.vector_norm(lengths) + self.vector_bias) / lengths
        new_scalars = F.relu(self.scalar_norm(scalars) + self.scalar_bias)
        return scale[:, None] * vectors, new_scalars


class InvariantAttentionNBody(nn.Module):
    """The published network for charged particles (section 3, "N-body").

    Three layers of attention and :class:`NormBias`, the second and third added to what
    they start from, then one layer of attention to two vectors; one head. An edge has
    the vector ``x_i − x_j`` and the scalar ``q_i q_j``.

    Args:
        n_channels: vectors, and scalars, of a particle: 5 for ``"E3"`` and 4 for
            ``"SE3"`` in the paper.
        symmetry: ``"E3"`` or ``"SE3"``.
    """

    def __init__(self, n_channels: int, symmetry: str = "E3") -> None:
        super().__init__()
        check_symmetry(symmetry)
        form = AttentionForm(
            n_hidden=_PUBLISHED_HIDDEN,
            n_heads=1,
            handed=symmetry == "SE3",
            smooth=False,
        )
        width, moved = Width(n_channels, n_channels), Width(2, 0)
        befores = (Width(1, 0), width, width)
        self.layers = nn.ModuleList(
            SelfAttention(before, width, width, 1, form) for before in befores
        )
        self.norms = nn.ModuleList(NormBias(n_channels) for _ in befores)
        self.last = SelfAttention(width, moved, moved, 1, form)

    def forward(
        self, positions: Tensor, velocities: Tensor, charges: Tensor, edges: Edges
    ) -> tuple[Tensor, Tensor]:
        """Return changes of positions and of velocities, (n, 3) each.

        Args:
            positions: (n, 3).
            velocities: (n, 3).
            charges: (n,).
            edges: every pair inside each system.
        """
        i, j = edges.i, edges.j
        arrows = positions[i] - positions[j]
        labels = (charges[i] * charges[j])[:, None]
        present = (i != j).to(positions.dtype)
        vectors, scalars = velocities[:, :, None], charges.new_zeros((len(charges), 0))
        for depth, (layer, norm) in enumerate(
            zip(self.layers, self.norms, strict=True)
        ):
            new_vectors, new_scalars = layer(
                (vectors, scalars), (arrows, labels), present, edges
            )
            if depth > 0:
                new_vectors = vectors + new_vectors
                new_scalars = scalars + new_scalars
            vectors, scalars = norm(new_vectors, new_scalars)
        moved, _ = self.last((vectors, scalars), (arrows, labels), present, edges)
        return moved[:, :, 0], moved[:, :, 1]

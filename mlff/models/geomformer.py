"""GeoMFormer: two streams, invariant and equivariant, that attend to each other.

Chen, Luo, He, Zheng, Liu, Wang, ICML 2024 (PMLR 235). Written from the paper's block
equations and figure; no code of theirs is public. Where we leave the paper:

- atoms attend to neighbors within the cutoff and to themselves, with weights that
  vanish with the envelope; the paper's attention is global, so that its energies do not
  add up and its cost is quadratic.
- vectors start from directions to neighbors and from charge and spin; the paper starts
  from positions relative to the centroid, which are not local and mean nothing in a
  crystal.
- ``VectorNorm`` in the place of the whitening norm, which breaks rotations where
  vectors are nearly dependent, as in every planar molecule, or has no derivative there.
- biases of the logits are a network of the radial functions, the same for all pairs of
  elements; the logit of an atom with itself has none.
- no dropout: forces must be the derivative of one energy.
- ``directed=True`` (ours) sends directions through each equivariant self-attention;
  else they enter with the start alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlff.batch import Graph
from mlff.models.base import Features
from mlff.models.edgewise import (
    EdgeFeatures,
    Edgewise,
    EdgewiseConfig,
    check_flags,
    check_integers,
)
from mlff.nn.edge_attention import Neighborhood, check_heads, neighborhood
from mlff.nn.linear import Linear
from mlff.nn.segments import edge_moments, gather
from mlff.nn.vectors import VectorNorm, add_in_space


@dataclass(frozen=True, kw_only=True)
class GeoMFormerConfig(EdgewiseConfig):
    """Options of GeoMFormer.

    Attributes:
        n_layers: blocks.
        n_heads: heads of each attention; divides F.
        widening: width of the feed-forward networks, in units of F.
        directed: send directions through the equivariant self-attention.
    """

    n_layers: int = 4
    n_heads: int = 8
    widening: int = 2
    directed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, {"n_heads": 64, "widening": 16})
        check_flags(self, "directed")
        check_heads(self.n_features, self.n_heads)


class FourAttentions(nn.Module):
    """The attentions of a block; all read the same features.

    With invariant features s, equivariant features z, ⟨,⟩ over components:

    - invariant self: Q, K, V linear in s;
    - invariant cross: Q linear in s, K and V each ⟨z W_1, z W_2⟩;
    - equivariant self: Q, K, V linear in z, logits ⟨Q, K⟩ / √(3d);
    - equivariant cross: Q linear in z, K and V each z W_1 ⊙ s W_2.

    The two that give scalars run side by side, as heads of one attention, and so do
    the two that give vectors.

    Args:
        config: options of the model.
    """

    def __init__(self, config: GeoMFormerConfig) -> None:
        super().__init__()
        width = config.n_features
        self.n_heads = config.n_heads
        self.directed = config.directed
        self.head_width = width // config.n_heads
        self.scalar_in = Linear(width, 6 * width)
        self.vector_in = Linear(width, 10 * width, bias=False)
        self.scalar_out = Linear(2 * width, width)
        self.vector_out = Linear(2 * width, width, bias=False)
        self.bias = nn.Sequential(
            Linear(config.n_radial, width), nn.SiLU(), Linear(width, 4 * config.n_heads)
        )
        if config.directed:
            self.sent = Linear(width, width)
            self.filter = Linear(config.n_radial, width, bias=False)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        graph: Graph,
        edge: EdgeFeatures,
        around: Neighborhood,
    ) -> tuple[Tensor, Tensor]:
        """Return what scalars (n_atoms, F) and vectors (n_atoms, C, F) receive."""
        query, key, value, cross_query, key_gate, value_gate = (
            part[:, None] for part in self.scalar_in.parts(scalars, 6)
        )
        vector = self.vector_in.parts(vectors, 10)
        cross_key = (vector[3] * vector[4]).sum(1, keepdim=True)
        cross_value = (vector[5] * vector[6]).sum(1, keepdim=True)
        scalar_bias, vector_bias = self.bias(edge.radial).chunk(2, dim=1)
        new_scalars, _ = around.attend(
            self._by_head(query, cross_query) / math.sqrt(self.head_width),
            self._by_head(key, cross_key),
            self._by_head(value, cross_value),
            scalar_bias,
        )
        new_vectors, weights = around.attend(
            self._by_head(vector[0], vector[7]) / math.sqrt(3 * self.head_width),
            self._by_head(vector[1], vector[8] * key_gate),
            self._by_head(vector[2], vector[9] * value_gate),
            vector_bias,
        )
        mixed = self._by_component(new_vectors)
        if self.directed:
            weights = around.of_edges(weights)[:, : self.n_heads]
            sent = self._directions(scalars, weights, graph, edge)
            rest = (0, mixed.shape[2] - sent.shape[2], 0, mixed.shape[1] - 3)
            mixed = mixed + F.pad(sent, rest)
        scalars = self.scalar_out(self._by_component(new_scalars)[:, 0])
        return scalars, self.vector_out(mixed)

    def _by_head(self, own: Tensor, cross: Tensor) -> Tensor:
        """Return heads of both, (2 n_heads, n_atoms, C · d), from (n_atoms, C, F)."""
        heads = (
            x.unflatten(2, (self.n_heads, -1)).permute(2, 0, 1, 3) for x in (own, cross)
        )
        return torch.cat(tuple(heads)).flatten(2)

    def _by_component(self, heads: Tensor) -> Tensor:
        """Return both side by side, (n_atoms, C, 2F)."""
        return heads.unflatten(2, (-1, self.head_width)).permute(1, 2, 0, 3).flatten(2)

    def _directions(
        self, scalars: Tensor, weights: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Tensor:
        """Return ``Σ_j w_ij r̂_ij ⊗ (W b_ij ⊙ W s_j)``, (n_atoms, 3, F)."""
        sent = self.filter(edge.radial) * gather(self.sent(scalars), graph.edges.j)
        sent = weights.repeat_interleave(self.head_width, dim=1) * sent
        return edge_moments(edge.directions, sent, graph.edges, len(scalars))


class Block(nn.Module):
    """Attentions, then feed-forward networks, each after a norm and added.

    Args:
        config: options of the model.
    """

    def __init__(self, config: GeoMFormerConfig) -> None:
        super().__init__()
        width, wide = config.n_features, config.widening * config.n_features
        self.scalar_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.vector_norms = nn.ModuleList(VectorNorm(width) for _ in range(2))
        self.attentions = FourAttentions(config)
        self.scalar_inner = Linear(width, 2 * wide)
        self.scalar_outer = Linear(wide, width)
        self.vector_inner = Linear(width, wide, bias=False)
        self.vector_outer = Linear(wide, width, bias=False)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        graph: Graph,
        edge: EdgeFeatures,
        around: Neighborhood,
    ) -> tuple[Tensor, Tensor]:
        """Return new scalars (n_atoms, F) and vectors (n_atoms, 3 + internal, F)."""
        s, v = self.scalar_norms[0](scalars), self.vector_norms[0](vectors)
        s, v = self.attentions(s, v, graph, edge, around)
        scalars, vectors = scalars + s, vectors + v
        s, v = self.scalar_norms[1](scalars), self.vector_norms[1](vectors)
        hidden, gate = map(F.gelu, self.scalar_inner.parts(s, 2))
        scalars = scalars + self.scalar_outer(hidden)
        vectors = vectors + self.vector_outer(self.vector_inner(v) * gate[:, None])
        return scalars, vectors


class GeoMFormer(Edgewise):
    """The model; see the module for the equations and the deviations.

    Args:
        config: options.
    """

    Config = GeoMFormerConfig
    name = "geomformer"

    def __init__(self, config: GeoMFormerConfig) -> None:
        super().__init__(config)
        width = config.n_features
        self.sent = Linear(width, width)
        self.filter = Linear(config.n_radial, width, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.scalar_norm = nn.LayerNorm(width)
        self.vector_norm = VectorNorm(width)

    def interact(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Features:
        """See :class:`mlff.models.edgewise.Edgewise`."""
        sent = self.filter(edge.radial) * gather(self.sent(scalars), graph.edges.j)
        weights = F.pad(edge.directions, (1, 0), value=1.0)
        start = edge_moments(weights, sent, graph.edges, len(scalars))
        scalars = scalars + start[:, 0]
        vectors = add_in_space(vectors, start[:, 1:])
        around = neighborhood(graph, edge.envelope)
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors, graph, edge, around)
        return Features(
            scalars=self.scalar_norm(scalars), vectors=self.vector_norm(vectors)
        )

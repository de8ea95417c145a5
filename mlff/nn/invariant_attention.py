"""Self-attention whose queries, keys and values are equivariant maps.

Chen & Villar 2022; equation numbers are theirs. Edges cost what depends on both atoms:
scalars of keys and values, linear in a hidden layer, never exist on them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlff.batch import Edges
from mlff.nn.attention import edge_softmax
from mlff.nn.invariants import (
    EdgeMap,
    EquivariantMap,
    Surroundings,
    Width,
    edge_contraction,
    edge_products,
)
from mlff.nn.linear import linear
from mlff.nn.segments import edge_moments, edge_sum, gather

# Logit of a term that is not there; finite, so that an atom without edges has no NaN.
_ABSENT = -1e9


@dataclass(frozen=True, kw_only=True)
class AttentionForm:
    """How attention is done.

    Attributes:
        n_hidden: width of the perceptrons.
        n_heads: attention heads.
        handed: SE(3) instead of E(3).
        smooth: SiLU, and a term of nothing in the softmax; else as published.
    """

    n_hidden: int
    n_heads: int
    handed: bool
    smooth: bool


class SelfAttention(nn.Module):
    """Attention of atoms to their neighbors and the map after it (eqs. 1 to 3).

    Args:
        before: width of the atoms.
        inner: width of queries, keys and values.
        after: width of the result.
        n_labels: scalars of an edge.
        form: the rest.
    """

    membership: Tensor

    def __init__(
        self,
        before: Width,
        inner: Width,
        after: Width,
        n_labels: int,
        form: AttentionForm,
    ) -> None:
        super().__init__()
        shape = (form.n_hidden, form.handed, form.smooth)
        pair = Width(before.vectors + 1, before.scalars + n_labels)
        both = Width(before.vectors + inner.vectors, before.scalars + inner.scalars)
        self.n_heads = form.n_heads
        self.query = EquivariantMap(before, inner, *shape)
        self.key = EdgeMap(pair, inner, *shape)
        self.value = EdgeMap(pair, inner, *shape)
        self.output = EquivariantMap(both, after, *shape)
        self.nothing = nn.Parameter(torch.zeros(form.n_heads)) if form.smooth else None
        self.inverse_tau = math.sqrt(form.n_heads / (3 * inner.vectors + inner.scalars))
        # 1 where a vector belongs to a head, (n_heads, T).
        share = inner.vectors // form.n_heads
        heads = torch.eye(form.n_heads).repeat_interleave(share, dim=1)
        self.register_buffer("membership", heads, persistent=False)

    def forward(
        self,
        features: tuple[Tensor, Tensor],
        edge_features: tuple[Tensor, Tensor],
        envelope: Tensor,
        edges: Edges,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            features: vectors (n_atoms, 3 + internal, T), scalars (n_atoms, L).
            edge_features: vectors (n_edges, 3), scalars (n_edges, …).
            envelope: φ, (n_edges,).
            edges: who attends to whom.

        Returns:
            New vectors and scalars.
        """
        around = self.key.surroundings(features, edge_features, edges)
        weights = self._weights(self.query(*features), around, envelope, edges)
        vectors, scalars = self._attend(weights, around, edges)
        out: tuple[Tensor, Tensor] = self.output(
            torch.cat((features[0], vectors), 2), torch.cat((features[1], scalars), 1)
        )
        return out

    def _weights(
        self,
        query: tuple[Tensor, Tensor],
        around: Surroundings,
        envelope: Tensor,
        edges: Edges,
    ) -> Tensor:
        """Return the softmax of ``⟨q_i, k_ij⟩ / sqrt(d)``, (n_edges, n_heads).

        The vectors of a key enter by their coefficients, ``Σ_tm c_tm ⟨q_t, b_m⟩``, its
        scalars by the query as the hidden layer sees it, ``(Wᵀ q) · hidden + q · b``.
        """
        vectors, scalars = (self.inverse_tau * part for part in query)
        hidden = self.key.hidden(around, edges)
        products = edge_products(around.basis, vectors.transpose(1, 2), edges)
        products = (self.key.coefficients(hidden) * products).sum(1)
        weight, bias = self._by_heads(self.key)
        scalars = scalars.view(len(scalars), *bias.shape)
        seen = torch.einsum("nhd,hdk->nhk", scalars, weight)
        offsets = (scalars * bias).sum(2)
        logits = linear(products, self.membership / self.key.n_basis)
        logits = logits + edge_products(hidden[:, None], seen, edges)[:, 0]
        logits = logits + gather(offsets, edges.i)
        absent = logits.new_full((self.n_heads,), _ABSENT)
        nothing = absent if self.nothing is None else self.nothing
        nothing = nothing.expand_as(offsets)
        return edge_softmax(logits, nothing, envelope, edges)[0]

    def _attend(
        self, weights: Tensor, around: Surroundings, edges: Edges
    ) -> tuple[Tensor, Tensor]:
        """Return ``Σ_j w_ij val_ij``: vectors (n_atoms, 3 + internal, T), scalars.

        Scalars are linear in the hidden layer, so that layer is summed instead.
        """
        n_atoms = len(around.atoms)
        hidden = self.value.hidden(around, edges)
        scale = linear(weights, self.membership.T / self.value.n_basis)
        coefficients = self.value.coefficients(hidden) * scale[:, None]
        vectors = edge_contraction(coefficients, around.basis, edges, n_atoms)
        weight, bias = self._by_heads(self.value)
        sums = edge_moments(weights, hidden, edges, n_atoms)
        total = edge_sum(weights, edges, n_atoms)
        scalars = torch.einsum("nhk,hdk->nhd", sums, weight)
        return vectors, (scalars + total[:, :, None] * bias).flatten(1)

    def _by_heads(self, net: EdgeMap) -> tuple[Tensor, Tensor]:
        """Weight and bias of the scalars of a map, (n_heads, share, …)."""
        weight, bias = net.scalar_layer()
        shape = (self.n_heads, len(bias) // self.n_heads)
        return weight.unflatten(0, shape), bias.unflatten(0, shape)

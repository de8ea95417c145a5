"""Encoder blocks of a transformer, told by a function who attends to whom.

The projections and the sums are here; which tokens see each other, and how much they
count, is the caller's.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mlff.nn.linear import Linear

#: From queries, keys and values, (…, n_heads, D) each, to what every token receives.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class EncoderBlock(nn.Module):
    """Self-attention, then a network as wide as the tokens; a norm after each sum.

    ``x ← LN(x + W_o attend(Q x, K x, V x))``, ``x ← LN(x + W₂ σ(W₁ x))``.

    Args:
        n_features: width F.
        n_heads: heads; divides F.
        activation: σ.
        dropout: probability; of both sums and, as published, before σ.
    """

    def __init__(
        self,
        n_features: int,
        n_heads: int,
        activation: Callable[[Tensor], Tensor] = F.silu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.activation = activation
        self.project = Linear(n_features, 3 * n_features)
        self.out = Linear(n_features, n_features)
        self.inner = Linear(n_features, n_features)
        self.outer = Linear(n_features, n_features)
        self.norms = nn.ModuleList(nn.LayerNorm(n_features) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, attend: Attend) -> Tensor:
        """Transform tokens (…, F)."""
        projected = self.project.parts(tokens, 3)
        query, key, value = (_heads(part, self.n_heads) for part in projected)
        mixed = self.out(attend(_scaled(query), key, value).flatten(-2))
        tokens = self.norms[0](tokens + self.dropout(mixed))
        hidden = self.activation(self.dropout(self.inner(tokens)))
        out: Tensor = self.norms[1](tokens + self.dropout(self.outer(hidden)))
        return out


class CrossAttention(nn.Module):
    """Attention of nodes to edges (eq. 9).

    Args:
        n_features: width F.
        n_heads: heads; divides F.
    """

    def __init__(self, n_features: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = Linear(n_features, n_features)
        self.key_value = Linear(n_features, 2 * n_features)
        self.out = Linear(n_features, n_features)

    def forward(self, nodes: Tensor, edges: Tensor, attend: Attend) -> Tensor:
        """Return what nodes (…, F) receive from edges (…, F)."""
        query = _scaled(_heads(self.query(nodes), self.n_heads))
        parts = self.key_value.parts(edges, 2)
        key, value = (_heads(part, self.n_heads) for part in parts)
        out: Tensor = self.out(attend(query, key, value).flatten(-2))
        return out


def among_all(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Let all tokens of a system attend to each other, or to those allowed.

    Args:
        query: scaled, (n_systems, n_queries, n_heads, D).
        key: (n_systems, n_keys, n_heads, D).
        value: (n_systems, n_keys, n_heads, D).
        allowed: (n_systems, n_queries, n_keys).

    Returns:
        (n_systems, n_queries, n_heads, D).
    """
    logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None], -math.inf)
    return (logits.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)


def _heads(tokens: Tensor, n_heads: int) -> Tensor:
    return tokens.unflatten(-1, (n_heads, -1))


def _scaled(query: Tensor) -> Tensor:
    return query / math.sqrt(query.shape[-1])

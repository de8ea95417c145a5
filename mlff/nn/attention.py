"""Self-attention over the atoms of a system, global or inside the cutoff.

Hand-written products throughout: fused kernels have no second derivative, which
training on forces needs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlff.batch import AtomsBatch, Edges, Graph
from mlff.errors import InputError
from mlff.nn.linear import Linear, linear
from mlff.nn.segments import edge_max, edge_moments, edge_sum, gather

#: Activations that the CMRET paper compares (Tables 1 and 2). ``softmax2d`` normalises
#: over receivers and senders together.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "softmax": None,
    "softmax2d": None,
    "silu": F.silu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "mish": F.mish,
}

#: How far attention reaches.
SCOPES = ("global", "local")

# On a CPU, PyTorch does batched matrix products of fewer multiplications than this one
# number at a time.
_TINY_PRODUCT = 400


def check_attention(
    scope: str, activation: str, n_features: int, n_heads: int, temperature: float
) -> None:
    """Raise unless this attention can be built.

    Raises:
        InputError: naming the argument.
    """
    if not isinstance(scope, str) or scope not in SCOPES:
        raise InputError(f"`scope` must be one of {list(SCOPES)}, got {scope!r}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(
            f"`attention` must be one of {list(ACTIVATIONS)}, got {activation!r}"
        )
    if scope == "local" and activation == "softmax2d":
        raise InputError(
            "`attention`='softmax2d' normalises over the whole system and has no "
            "local form; use 'softmax' or scope='global'"
        )
    if n_heads < 1 or n_features % n_heads:
        raise InputError(
            f"`n_heads` must divide n_features ({n_features}), got {n_heads}"
        )
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature <= 100:
        raise InputError(f"`temperature` must lie in (0, 100], got {temperature!r}")


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (CMRET eqs. 6, 7): ``Σ_j α_ij V s_j``.

    ``α = σ(Q s (K s)ᵀ / τ)`` with ``τ = sqrt(c · d)``, d the features of a head.

    Global scope is the paper's: all atoms of a system attend to each other. Energies of
    separated parts then do not add up, and the cost is quadratic.

    Local scope attends along edges, with weights that vanish at the cutoff φ_ij and an
    always-present term of the atom itself, so that the last neighbor leaves smoothly:
    ``α_ij = φ_ij exp(l_ij) / (exp(l_ii) + Σ_k φ_ik exp(l_ik))``; an element-wise
    activation becomes ``α_ij = φ_ij σ(l_ij)``.

    Args:
        n_features: width F.
        n_heads: number of heads; divides F.
        activation: σ, a key of :data:`ACTIVATIONS`.
        temperature: c.
        scope: ``"global"`` or ``"local"``.
    """

    membership: Tensor

    def __init__(
        self,
        n_features: int,
        n_heads: int,
        activation: str,
        temperature: float,
        scope: str,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.activation = activation
        self.scope = scope
        self.inverse_tau = 1 / math.sqrt(temperature * n_features / n_heads)
        self.head_width = n_features // n_heads
        self.project = Linear(n_features, 3 * n_features)
        # 1 where a feature belongs to a head, (n_heads, F).
        heads = torch.eye(n_heads).repeat_interleave(self.head_width, dim=1)
        self.register_buffer("membership", heads, persistent=False)

    def forward(self, scalars: Tensor, graph: Graph, envelope: Tensor) -> Tensor:
        """Attend.

        Args:
            scalars: (n_atoms, F).
            graph: batch and edges.
            envelope: φ of each edge, (n_edges,).

        Returns:
            (n_atoms, F).
        """
        projected = self.project(scalars)
        if self.scope == "local":
            return self._local(projected, graph, envelope)
        return self._global(projected, graph.batch)

    def _global(self, projected: Tensor, batch: AtomsBatch) -> Tensor:
        shape = (batch.n_systems, batch.max_atoms)
        if batch.uniform:
            padded, present = projected, None
        else:
            row = batch.system * batch.max_atoms + batch.slot
            size = batch.n_systems * batch.max_atoms
            padded = projected.new_zeros(size, projected.shape[1])
            padded = padded.index_copy(0, row, projected)
            present = torch.zeros(size, dtype=torch.bool, device=row.device)
            present = present.index_fill(0, row, True).view(shape)
        absent = None if present is None else ~present
        tiny = batch.max_atoms**2 * self.head_width < _TINY_PRODUCT
        attend = self._by_pairs if tiny else self._by_heads
        mixed = attend(padded.view(*shape, -1), absent).flatten(0, 1)
        return mixed if present is None else mixed[row]

    def _by_heads(self, projected: Tensor, absent: Tensor | None) -> Tensor:
        """Attend by matrix products, one for each system and head.

        Args:
            projected: queries, keys and values, (n_systems, max_atoms, 3F).
            absent: what is padding, (n_systems, max_atoms).

        Returns:
            (n_systems, max_atoms, F).
        """
        shape = (*projected.shape[:2], 3, self.n_heads, self.head_width)
        query, key, value = projected.view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        logits = (query * self.inverse_tau) @ key.transpose(-1, -2)
        absent = None if absent is None else absent[:, None]
        return (self._weights(logits, absent, 2) @ value).transpose(1, 2).flatten(2)

    def _by_pairs(self, projected: Tensor, absent: Tensor | None) -> Tensor:
        """Attend by element-wise products over all pairs of atoms of a system.

        Arguments and result are those of :meth:`_by_heads`.
        """
        query, key, value = projected.chunk(3, dim=-1)
        products = query[:, :, None] * key[:, None]
        logits = linear(products, self.inverse_tau * self.membership)
        absent = None if absent is None else absent[..., None]
        weights = self._weights(logits, absent, 1)
        return (linear(weights, self.membership.T) * value[:, None]).sum(2)

    def _weights(self, logits: Tensor, absent: Tensor | None, axis: int) -> Tensor:
        """α of padded systems; receivers lie along ``axis``, senders along the next."""
        function = ACTIVATIONS[self.activation]
        both = self.activation == "softmax2d"
        if absent is not None:
            excluded = absent.unsqueeze(axis)
            if both:
                excluded = excluded | absent.unsqueeze(axis + 1)
            if function is None:
                logits = logits.masked_fill(excluded, -math.inf)
        if function is not None:
            weights = function(logits)
            return weights if absent is None else weights.masked_fill(excluded, 0)
        if both:
            return logits.flatten(axis, axis + 1).softmax(axis).view_as(logits)
        return logits.softmax(axis + 1)

    def _local(self, projected: Tensor, graph: Graph, envelope: Tensor) -> Tensor:
        n_atoms = projected.shape[0]
        edges = graph.edges
        query, key, value = projected.view(n_atoms, 3, self.n_heads, -1).unbind(1)
        query = query * self.inverse_tau
        own = (query * key).sum(-1)
        logits = (gather(query, edges.i) * gather(key, edges.j)).sum(-1)
        function = ACTIVATIONS[self.activation]
        if function is not None:
            weights, own_weight = function(logits) * envelope[:, None], function(own)
        else:
            weights, own_weight = edge_softmax(logits, own, envelope, edges)
        if self.n_heads == 1:
            far = edge_moments(weights, gather(value[:, 0], edges.j), edges, n_atoms)
        else:
            far = edge_sum(weights[:, :, None] * gather(value, edges.j), edges, n_atoms)
        return (own_weight[:, :, None] * value + far).flatten(1)


def edge_softmax(
    logits: Tensor, own: Tensor, envelope: Tensor, edges: Edges
) -> tuple[Tensor, Tensor]:
    """Normalise over the neighbors of each atom and a term that is always there.

    ``w_ij = φ_ij exp(l_ij) / D_i``, ``w_i = exp(l_i) / D_i`` with ``D_i = exp(l_i) +
    Σ_k φ_ik exp(l_ik)``: smooth as the last neighbor leaves, and never 0/0.

    Args:
        logits: l_ij, (n_edges, n_heads).
        own: l_i, of the atom itself or of nothing, (n_atoms, n_heads).
        envelope: φ_ij, (n_edges,).
        edges: who receives.

    Returns:
        Weights of the edges, (n_edges, n_heads), and of the atoms, (n_atoms, n_heads).
    """
    # Cancels identically, so it may carry no gradient.
    highest = edge_max(logits, edges, own)
    weights = torch.exp(logits - gather(highest, edges.i)) * envelope[:, None]
    own_weight = torch.exp(own - highest)
    total = own_weight + edge_sum(weights, edges, len(own))
    return weights / gather(total, edges.i), own_weight / total

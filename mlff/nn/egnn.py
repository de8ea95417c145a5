"""One layer of EGNN, of which its energy form and both published networks are made.

Satorras, Hoogeboom, Welling, ICML 2021; equation numbers are theirs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlff.batch import Edges
from mlff.nn.linear import Linear, linear
from mlff.nn.segments import edge_moments, edge_sum, gather


class EGNNLayer(nn.Module):
    """Messages, vectors and update of one layer, with weights f and w of the edges.

    ::

        m_ij = f_ij σ(g m̃) m̃,  m̃ = φ_e(h_i, h_j, a_ij)                   (eqs. 3, 8)
        v_i += Σ_j w_ij ⊗ φ_x(m_ij)                                          (eq. 4)
        h_i += φ_h(h_i, Σ_j m_ij, <U v_i, V v_i>)                         (eqs. 5, 6)

    Linear maps of atoms are applied to atoms, and the last one of φ_x, which has no
    bias, after the sum: same function, less work.

    Args:
        n_features: width F of h and m.
        n_pair: width of a.
        gate: whether messages are weighed by ``σ(g m̃)`` (eq. 8).
        channels: vectors of an atom; 0 if v stays as it is.
        feedback: whether ``<U v, V v>``, which the paper does not have, enters φ_h;
            then v has F channels.
    """

    def __init__(
        self,
        n_features: int,
        n_pair: int,
        *,
        gate: bool,
        channels: int,
        feedback: bool = False,
    ) -> None:
        super().__init__()
        self.pair = Linear(2 * n_features + n_pair, n_features)
        self.message = Linear(n_features, n_features)
        self.gate = Linear(n_features, 1) if gate else None
        self.channels = channels
        if channels:
            self.vector_inner = Linear(n_features, n_features)
            self.vector_outer = Linear(n_features, channels, bias=False)
        self.mix = Linear(n_features, 2 * n_features, bias=False) if feedback else None
        self.inner = Linear((3 if feedback else 2) * n_features, n_features)
        self.outer = Linear(n_features, n_features)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        edges: Edges,
        pair: Tensor,
        envelope: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return new scalars and vectors.

        Args:
            scalars: h, (n_atoms, F).
            vectors: v, (n_atoms, 3 + internal, channels).
            edges: who receives from whom.
            pair: a, (n_edges, n_pair); finite, fill included.
            envelope: f, (n_edges, 1).
            weights: w, (n_edges, 3).
        """
        n_atoms = len(scalars)
        message = self._messages(scalars, edges, pair, envelope)
        if self.channels:
            hidden = F.silu(self.vector_inner(message))
            shift = self.vector_outer(edge_moments(weights, hidden, edges, n_atoms))
            vectors = vectors + F.pad(shift, (0, 0, 0, vectors.shape[1] - 3))
        known = [scalars, edge_sum(message, edges, n_atoms)]
        if self.mix is not None:
            u, v = self.mix.parts(vectors, 2)
            known.append((u * v).sum(1))
        update = self.outer(F.silu(self.inner(torch.cat(known, dim=1))))
        return scalars + update, vectors

    def _messages(
        self, scalars: Tensor, edges: Edges, pair: Tensor, envelope: Tensor
    ) -> Tensor:
        """Return m, (n_edges, F)."""
        width = scalars.shape[1]
        own, other, shared = self.pair.weight.split((width, width, pair.shape[1]), 1)
        receivers = linear(scalars, own, self.pair.bias)
        hidden = gather(linear(scalars, other), edges.j) + linear(pair, shared)
        if edges.degree is None:
            hidden = hidden + gather(receivers, edges.i)
        else:
            rows = hidden.unflatten(0, (len(scalars), edges.degree))
            hidden = (rows + receivers[:, None]).flatten(0, 1)
        message = F.silu(self.message(F.silu(hidden)))
        if self.gate is not None:
            envelope = envelope * self.gate(message).sigmoid()
        return envelope * message


def perceptron(n_in: int, n_out: int) -> nn.Sequential:
    """Return two linear layers with SiLU between, the inner one as wide as the input.

    Args:
        n_in: features in.
        n_out: features out.
    """
    return nn.Sequential(Linear(n_in, n_in), nn.SiLU(), Linear(n_in, n_out))

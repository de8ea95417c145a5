"""CMRET: an equivariant transformer that knows total charge and spin.

Tao, Morimoto, Leoni, arXiv:2308.10752; equation numbers are theirs. Where we leave the
paper:

- charge and spin sit on an internal axis (``charge_spin="internal"``); the paper's
  vector (eq. 9) breaks rotation invariance and merges states. It stays selectable.
- the envelope has two continuous derivatives; the paper's cosine stays selectable.
- the output of W_o (eq. 8), bias included, is multiplied by the envelope once more:
  as printed, its bias makes the energy jump when an atom crosses the cutoff.
- sums over neighbors are taken before W_o, which is linear: same function, less work.
- all neighbors inside the cutoff, not the nearest fifteen; all periodic images.
- attention may be confined to the cutoff (``scope="local"``): extensive, linear cost.
- ``skip=True`` adds each layer's input to its output (the paper replaces).

Edge vectors are ``r_j − r_i``, the negative of the paper's.
"""

import math
from dataclasses import dataclass
from functools import reduce

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
from mlff.nn.attention import Attention, check_attention
from mlff.nn.linear import Linear, linear
from mlff.nn.segments import edge_moments, edge_sum, gather
from mlff.nn.vectors import add_in_space

#: ``attention`` of a network without.
NO_ATTENTION = "none"


@dataclass(frozen=True, kw_only=True)
class CMRETConfig(EdgewiseConfig):
    """Options of CMRET; the defaults are the paper's sizes and our corrections.

    Attributes:
        n_layers: interaction layers T.
        n_radial: radial functions K.
        n_heads: attention heads.
        basis: ``"gaussian"`` (eq. 3) or ``"bessel"`` (eq. 2).
        envelope: ``"polynomial"`` (C²) or ``"cosine"`` (eq. 4, C¹).
        attention: ``softmax``, ``softmax2d``, ``silu``, ``softplus``, ``gelu``,
            ``mish``, or ``none`` for a network without attention (section 3.1).
        temperature: c in τ = sqrt(c·d); the paper compares 1, 1.5 and 2.
        scope: ``"global"`` or ``"local"``.
        skip: add each layer's input to its output.
        residual: pass each layer's read-out through ResML; ``False`` adds it up as it
            is (section 3.1).
        n_output_blocks: gated equivariant blocks of the heads; section 3.1 compares one
            and two.
    """

    n_layers: int = 6
    n_radial: int = 50
    basis: str = "gaussian"
    n_heads: int = 4
    attention: str = "softmax"
    temperature: float = 2.0
    scope: str = "global"
    skip: bool = False
    residual: bool = True
    n_output_blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, {"n_heads": 64, "n_output_blocks": 8})
        check_flags(self, "skip", "residual")
        attention = "softmax" if self.attention == NO_ATTENTION else self.attention
        check_attention(
            self.scope, attention, self.n_features, self.n_heads, self.temperature
        )


@dataclass(frozen=True)
class _EdgeData:
    """What all layers share about the edges.

    Attributes:
        radial: φ·RBF (eq. 5), (n_edges, K).
        envelope: φ, (n_edges,).
        moments: φ²·[1, r̂], (n_edges, 4): one φ of eq. 8, one for W_o.
        offsets: Σ_j φ·[1, r̂], (n_atoms, 4): what the bias of W_o is multiplied by.
    """

    radial: Tensor
    envelope: Tensor
    moments: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, edge: EdgeFeatures, graph: Graph) -> "_EdgeData":
        envelope = edge.envelope[:, None]
        moments = envelope * F.pad(edge.directions, (1, 0), value=1.0)
        return cls(
            radial=edge.radial,
            envelope=edge.envelope,
            moments=envelope * moments,
            offsets=edge_sum(moments, graph.edges, graph.batch.n_atoms),
        )


class ResML(nn.Module):
    """``x + W₂ SiLU(W₁ x)``: the residual layer of the scalar read-out.

    Args:
        n_features: width F.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.inner = Linear(n_features, n_features)
        self.outer = Linear(n_features, n_features)
        _normal_before_silu(self.inner)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (n_atoms, F)."""
        return x + self.outer(F.silu(self.inner(x)))


class Interaction(nn.Module):
    """One layer: convolution (eq. 8), attention (eqs. 6, 7), update (eqs. 10, 11).

    Args:
        config: options of the model.
    """

    def __init__(self, config: CMRETConfig) -> None:
        super().__init__()
        width = config.n_features
        self.node = Linear(width, width)
        self.filter = Linear(config.n_radial, 2 * width)
        self.project = Linear(2 * width, 3 * width)
        self.attention = None
        if config.attention != NO_ATTENTION:
            self.attention = Attention(
                width,
                config.n_heads,
                config.attention,
                config.temperature,
                config.scope,
            )
        self.scalar_update = Linear(width, 3 * width)
        self.vector_update = Linear(width, 3 * width, bias=False)
        self.residual = ResML(width) if config.residual else nn.Identity()
        self._initialise(config.n_radial)

    def _initialise(self, n_radial: int) -> None:
        """Section 2.4 of the paper."""
        bound = math.sqrt(6 / n_radial)
        nn.init.uniform_(self.filter.weight, -bound, bound)
        nn.init.zeros_(self.filter.bias)
        _normal_before_silu(self.node)

    def forward(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: _EdgeData
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return Δs (n_atoms, F), Δv (n_atoms, 3 + internal, F) and the read-out.

        ``vectors`` may leave out the first three components where they are zero.
        """
        s1, s2, directed = self._convolve(scalars, graph, edge)
        message = s1 + scalars
        if self.attention is not None:
            message = message + self.attention(scalars, graph, edge.envelope)
        o1, o2, o3 = self.scalar_update(message).chunk(3, dim=-1)
        u1, u2, u3 = self.vector_update.parts(vectors, 3)
        new_scalars = o1 + o2 * (u1 * u2).sum(1)
        carried = s2[:, None] * vectors + o3[:, None] * u3
        new_vectors = add_in_space(carried, directed)
        return new_scalars, new_vectors, self.residual(new_scalars)

    def _convolve(
        self, scalars: Tensor, graph: Graph, edge: _EdgeData
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return Σ_j s1, Σ_j s2 (n_atoms, F) and Σ_j s3 ⊗ r̂ (n_atoms, 3, F).

        With filters f, node features h and weights w = φ²[1, r̂], the sums
        ``Σ_j w ⊗ [h_i f2 ‖ h_j f1]`` are taken first; W_o acts on atoms only.
        """
        n_atoms, width = scalars.shape
        node = F.silu(self.node(scalars))
        near, own = map(F.silu, self.filter.parts(edge.radial, 2))
        neighbor = near * gather(node, graph.edges.j)
        sums = torch.cat(
            (
                edge_moments(edge.moments, own, graph.edges, n_atoms) * node[:, None],
                edge_moments(edge.moments, neighbor, graph.edges, n_atoms),
            ),
            dim=-1,
        )
        isotropic, directed = sums.split((1, 3), dim=1)
        weight, bias = self.project.weight, self.project.bias
        split = 2 * width
        scalar = linear(isotropic[:, 0], weight[:split])
        scalar = scalar + edge.offsets[:, :1] * bias[:split]
        directed = linear(directed, weight[split:])
        directed = directed + edge.offsets[:, 1:, None] * bias[split:]
        s1, s2 = scalar.chunk(2, dim=-1)
        return s1, s2, directed


class CMRET(Edgewise):
    """The model; see the module for the equations and the deviations.

    Args:
        config: options.
    """

    Config = CMRETConfig
    name = "cmret"

    def __init__(self, config: CMRETConfig) -> None:
        super().__init__(config)
        self.skip = config.skip
        self.n_output_blocks = config.n_output_blocks
        self.additive = config.scope == "local" or config.attention == NO_ATTENTION
        self.supports_periodic = self.additive or config.attention == "softmax"
        self.layers = nn.ModuleList(Interaction(config) for _ in range(config.n_layers))

    def interact(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Features:
        """See :class:`mlff.models.edgewise.Edgewise`."""
        shared = _EdgeData.of(edge, graph)
        readouts = []
        for layer in self.layers:
            new_scalars, new_vectors, readout = layer(scalars, vectors, graph, shared)
            readouts.append(readout)
            if self.skip:
                new_scalars = scalars + new_scalars
                new_vectors = vectors + new_vectors
            scalars, vectors = new_scalars, new_vectors
        return Features(scalars=reduce(torch.add, readouts), vectors=vectors)

    def initial_vectors(self, graph: Graph, dtype: torch.dtype) -> Tensor:
        """See :class:`mlff.models.edgewise.Edgewise`; without what is zero in space."""
        vectors = super().initial_vectors(graph, dtype)
        broken = self.symmetry == "broken"
        return vectors if broken or self.skip else vectors[:, 3:]


def _normal_before_silu(layer: nn.Linear) -> None:
    """Normal weights, σ = sqrt(3/(2F)) (section 2.4)."""
    nn.init.normal_(layer.weight, std=math.sqrt(1.5 / layer.in_features))
    nn.init.zeros_(layer.bias)

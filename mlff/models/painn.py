"""PaiNN, with total charge and spin: the second model of the CMRET paper (Fig. 3).

Schütt, Unke, Gastegger, ICML 2021: section 3 and Fig. 2, whose names are used here.
Every layer has a message block (eqs. 7, 8), which sums over neighbors j, and an update
block (eqs. 9, 10), which stays on an atom::

    (m_s, m_r, m_v) = φ(s_j) ⊙ (W e(d_ij) + b) f(d_ij)
    s_i += Σ_j m_s          v_i += Σ_j (m_r ⊗ r̂_ij + m_v ⊙ v_j)
    s_i += a_ss + a_sv ⊙ <U v_i, V v_i>          v_i += a_vv ⊙ U v_i

with ``φ`` two linear layers and ``a = MLP(s_i ‖ |V v_i|)``. Where we leave the paper:

- vectors start from total charge and spin (``charge_spin``), as in the CMRET paper; it
  says no more about this model than that. ``"none"`` starts from zero, as published.
- nuclei enter by their electron configuration, as there; ``nuclei="table"`` is the
  published learned row for each of 100 elements.
- the envelope f has two continuous derivatives; the cosine stays selectable.
- the norm is smooth at zero, on a scale that a force does not feel as a kink.
- φ and ``m_v ⊙ v_j = filter ⊙ (φ(s_j) ⊙ v_j)`` are computed on atoms; the sum over
  ``m_r ⊗ r̂`` is a matrix product. Same function, less work.
- weights start as PyTorch starts them.

Edge vectors are ``r_j − r_i``, the negative of the paper's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlff.batch import Edges, Graph
from mlff.errors import InputError
from mlff.models.base import Features
from mlff.models.edgewise import EdgeFeatures, Edgewise, EdgewiseConfig
from mlff.nn.convolution import convolve
from mlff.nn.linear import Linear, linear
from mlff.nn.segments import edge_moments, gather
from mlff.nn.vectors import smooth_norm

#: Ways to embed an element.
NUCLEI = ("configuration", "table")

#: Rows of the published table: Z = 1 … 100.
N_ELEMENTS = 100


@dataclass(frozen=True, kw_only=True)
class PaiNNConfig(EdgewiseConfig):
    """Options of PaiNN; the defaults are the paper's sizes and our corrections.

    Attributes:
        nuclei: ``"configuration"`` (electron configuration, any element) or ``"table"``
            (a learned row for each element up to 100, as published).
    """

    nuclei: str = "configuration"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nuclei not in NUCLEI:
            raise InputError(
                f"`nuclei` must be one of {list(NUCLEI)}, got {self.nuclei!r}"
            )


class NuclearTable(nn.Module):
    """A learned row for each element up to Z = 100.

    Elements beyond have no row. To refuse them would cost a look at the data in every
    call, so their features are NaN, and with them all that follows.

    Args:
        n_features: width F.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(N_ELEMENTS, n_features))

    def forward(self, numbers: Tensor) -> Tensor:
        """Embed atomic numbers (n_atoms,) in 1 … 118: (n_atoms, F)."""
        missing = (0, 0, 1, 118 - N_ELEMENTS)
        return gather(F.pad(self.rows, missing, value=torch.nan), numbers)


class Message(nn.Module):
    """Message block (Fig. 2b).

    Args:
        n_features: width F.
        n_radial: radial functions K.
    """

    def __init__(self, n_features: int, n_radial: int) -> None:
        super().__init__()
        self.inner = Linear(n_features, n_features)
        self.outer = Linear(n_features, 3 * n_features)
        self.filter = Linear(n_radial, 3 * n_features)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        edges: Edges,
        basis: Tensor,
        directions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return new scalars and vectors.

        Args:
            scalars: s, (n_atoms, F).
            vectors: v, (n_atoms, 3 + internal, F); it may leave out the first three
                components where they are zero.
            edges: who receives from whom.
            basis: e f, and f in the last column, (n_edges, K + 1).
            directions: r̂, (n_edges, 3).
        """
        n_atoms = len(scalars)
        of_s, of_r, of_v = self.outer.parts(F.silu(self.inner(scalars)), 3)
        filter_s, filter_r, filter_v = self._filters(basis)
        directed = filter_r * gather(of_r, edges.j)
        spatial = edge_moments(directions, directed, edges, n_atoms)
        carried = [
            part + convolve(filter_v, of_v * part, edges) for part in vectors.unbind(1)
        ]
        scalars = scalars + convolve(filter_s, of_s, edges)
        return scalars, _add_in_space(carried, spatial)

    def _filters(self, basis: Tensor) -> tuple[Tensor, ...]:
        """Return (W e + b) f for m_s, m_r and m_v, (n_edges, F) each."""
        bias = self.filter.bias[:, None]
        weights = torch.cat((self.filter.weight, bias), dim=1).chunk(3)
        return tuple(linear(basis, weight) for weight in weights)


class Update(nn.Module):
    """Update block (Fig. 2c).

    Args:
        n_features: width F.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.mix = Linear(n_features, 2 * n_features, bias=False)
        self.inner = Linear(2 * n_features, n_features)
        self.outer = Linear(n_features, 3 * n_features)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return new scalars (n_atoms, F) and vectors (n_atoms, 3 + internal, F)."""
        u, v = self.mix.parts(vectors, 2)
        known = torch.cat((scalars, smooth_norm(v)), dim=1)
        vv, sv, ss = self.outer(F.silu(self.inner(known))).chunk(3, dim=1)
        return scalars + ss + sv * (u * v).sum(1), vectors + vv[:, None] * u


class PaiNN(Edgewise):
    """The model; see the module for the equations and the deviations.

    Args:
        config: options.
    """

    Config = PaiNNConfig
    name = "painn"

    def __init__(self, config: PaiNNConfig) -> None:
        super().__init__(config)
        width, layers = config.n_features, range(config.n_layers)
        if config.nuclei == "table":
            self.add_module("embedding", NuclearTable(width))
        self.messages = nn.ModuleList(Message(width, config.n_radial) for _ in layers)
        self.updates = nn.ModuleList(Update(width) for _ in layers)

    def interact(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Features:
        """See :class:`mlff.models.edgewise.Edgewise`."""
        basis = torch.cat((edge.radial, edge.envelope[:, None]), dim=1)
        for message, update in zip(self.messages, self.updates, strict=True):
            scalars, vectors = message(
                scalars, vectors, graph.edges, basis, edge.directions
            )
            scalars, vectors = update(scalars, vectors)
        return Features(scalars=scalars, vectors=vectors)

    def initial_vectors(self, graph: Graph, dtype: torch.dtype) -> Tensor:
        """See :class:`mlff.models.edgewise.Edgewise`; without what is zero in space."""
        vectors = super().initial_vectors(graph, dtype)
        return vectors if self.symmetry == "broken" else vectors[:, 3:]


def _add_in_space(components: list[Tensor], spatial: Tensor) -> Tensor:
    """Add to the first three components, or prepend them if there are none yet.

    Args:
        components: of a vector, (n_atoms, F) each: 3 + internal or internal.
        spatial: (n_atoms, 3, F).

    Returns:
        (n_atoms, 3 + internal, F).
    """
    first = list(spatial.unbind(1))
    if len(components) >= 3:
        first = [a + b for a, b in zip(first, components, strict=False)]
        components = components[3:]
    return torch.stack((*first, *components), dim=1)

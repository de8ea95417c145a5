"""DEMETAr: one encoder for atoms, one for edges, joined by attention of atoms to edges.

Simion, Vasilev, Schäfer, Go, Kersten, "DEMETAr: Double Encoder Method for an
Equivariant Transformer Architecture" (a report on the web); equation numbers are its.
Its text is what we build: its code has atoms attend to the edges that are *not* theirs.
:class:`DEMETAr` gives energies. Where it leaves the report:

- an edge attends to the edges of the same receiver, an atom to its neighbors, with
  weights that vanish at the cutoff and a term that is always there: the token itself,
  or nothing where atoms attend to edges. The report's reach over the whole molecule.
- edges start from both atoms and the distance, not from a bond type; atoms without
  their distance from the center of mass, which has a kink and no periodic meaning.
- the angle between two edges may add to the logits of their attention (``angles``).
- vectors are ``Σ_j f r̂_ij ⊗ W t_ij`` of edge tokens t_ij, its "future work", instead of
  a factor on a velocity. Their inner products enter the atoms before the joint encoder,
  which is how charge and spin reach the energy.
- √d divides the logits, as usual; eqs. 9 and 10 print it outside the softmax.
- SiLU instead of ReLU, no dropout: forces are derivatives. Atoms are summed, no class
  token: energies add up.

:class:`DEMETArNBody` is the published network for charged particles.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlff.batch import Edges, Graph
from mlff.errors import InputError
from mlff.models.base import Features
from mlff.models.edgewise import (
    EdgeFeatures,
    Edgewise,
    EdgewiseConfig,
    check_flags,
    check_integers,
)
from mlff.nn.attention import edge_softmax
from mlff.nn.edge_attention import (
    EdgeRows,
    Neighborhood,
    check_heads,
    neighborhood,
)
from mlff.nn.encoder import CrossAttention, EncoderBlock, among_all
from mlff.nn.linear import Linear
from mlff.nn.segments import edge_moments, edge_sum, gather
from mlff.nn.vectors import add_in_space

# Powers of the cosine between two edges, from the zeroth.
_N_POWERS = 6


@dataclass(frozen=True, kw_only=True)
class DEMETArConfig(EdgewiseConfig):
    """Options of DEMETAr.

    Attributes:
        n_layers: blocks of the joint encoder, h.
        n_edge_layers: blocks of the edge encoder, p.
        n_node_layers: blocks of the node encoder, r.
        n_heads: heads of each attention; divides F.
        angles: whether angles between edges add to the logits of the edge encoder.
    """

    n_layers: int = 2
    n_edge_layers: int = 1
    n_node_layers: int = 1
    n_heads: int = 8
    angles: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, {"n_heads": 64, "n_edge_layers": 64, "n_node_layers": 64})
        check_flags(self, "angles")
        check_heads(self.n_features, self.n_heads)


class DEMETAr(Edgewise):
    """The model; see the module for the equations and the deviations.

    Args:
        config: options.
    """

    Config = DEMETArConfig
    name = "demetar"

    def __init__(self, config: DEMETArConfig) -> None:
        super().__init__(config)
        width, n_heads = config.n_features, config.n_heads

        def encoder(n_blocks: int) -> nn.ModuleList:
            return nn.ModuleList(EncoderBlock(width, n_heads) for _ in range(n_blocks))

        self.ends = Linear(width, width)
        self.length = Linear(config.n_radial, width, bias=False)
        self.edge_encoder = encoder(config.n_edge_layers)
        self.angles = nn.ParameterList(
            torch.randn(n_heads, _N_POWERS) / _N_POWERS
            for _ in range(config.n_edge_layers if config.angles else 0)
        )
        self.node_encoder = encoder(config.n_node_layers)
        self.cross = CrossAttention(width, n_heads)
        self.nothing = nn.Parameter(torch.zeros(n_heads))
        self.arrows = Linear(width, width, bias=False)
        self.mix = Linear(width, 2 * width, bias=False)
        self.products = Linear(width, width, bias=False)
        self.joint_encoder = encoder(config.n_layers)

    def interact(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Features:
        """See :class:`mlff.models.edgewise.Edgewise`."""
        edges, n_atoms = graph.edges, len(scalars)
        tokens = self._encode_edges(scalars, graph, edge)
        among_atoms = partial(_to_neighbors, around=neighborhood(graph, edge.envelope))
        for block in self.node_encoder:
            scalars = block(scalars, among_atoms)
        incident = partial(self._to_edges, edges=edges, envelope=edge.envelope)
        received = self.cross(scalars, tokens, incident)
        weights = edge.envelope[:, None] * edge.directions
        moments = edge_moments(weights, tokens, edges, n_atoms)
        vectors = add_in_space(vectors, self.arrows(moments))
        first, second = self.mix.parts(vectors, 2)
        scalars = scalars + received + self.products((first * second).sum(1))
        for block in self.joint_encoder:
            scalars = block(scalars, among_atoms)
        return Features(scalars=scalars, vectors=vectors)

    def _encode_edges(
        self, scalars: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Tensor:
        """Return tokens, from ``W [s_i + s_j, b_ij]``, (n_edges, F)."""
        edges = graph.edges
        ends = self.ends(scalars)
        tokens = gather(ends, edges.i) + gather(ends, edges.j)
        tokens = tokens + self.length(edge.radial)
        rows = EdgeRows.of(edges, len(scalars))
        among_edges = partial(rows.attend, envelope=edge.envelope)
        if not self.angles:
            for block in self.edge_encoder:
                tokens = block(tokens, among_edges)
            return tokens
        powers = rows.angle_powers(edge.directions, _N_POWERS)
        for block, angles in zip(self.edge_encoder, self.angles, strict=True):
            biases = tuple(torch.tensordot(angles, p, dims=1) for p in powers)
            tokens = block(tokens, partial(among_edges, biases=biases))
        return tokens

    def _to_edges(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        edges: Edges,
        envelope: Tensor,
    ) -> Tensor:
        """Let atoms attend to the edges they receive, or to nothing."""
        logits = (gather(query, edges.i) * key).sum(-1)
        nothing = self.nothing.expand(len(query), -1)
        weights, _ = edge_softmax(logits, nothing, envelope, edges)
        return edge_sum(weights[..., None] * value, edges, len(query))


class DEMETArNBody(nn.Module):
    """The published network for charged particles: new positions from a snapshot.

    Norms after sums, ReLU, dropout, attention of all nodes and of all edges of a
    system to each other, and of nodes to the edges that begin or end there: the mask
    that the report describes. As published, a node is its charge alone, an edge is
    ``[q_i q_j, |r|², v_i · r̂]``, and positions move by ``v ⊙ Φ``, component by
    component: equivariant to translations and permutations, *not* to rotations.
    ``equivariant=True`` gives one Φ for each node, ``x + v Φ`` as in the report's
    proof, and 2 (F + 1) parameters less.

    The class token is among the published parameters, but takes no part: it has no
    gradient.

    Args:
        n_features: width F; published are 64 (92,931 parameters) and 128 (366,083).
        n_heads: heads; divides F.
        n_blocks: of each of the three encoders.
        dropout: probability while training.
        equivariant: one factor for each node instead of three.
    """

    def __init__(
        self,
        n_features: int = 64,
        n_heads: int = 8,
        n_blocks: int = 1,
        dropout: float = 0.1,
        equivariant: bool = False,
    ) -> None:
        super().__init__()
        check_heads(n_features, n_heads)

        def encoder() -> nn.ModuleList:
            return nn.ModuleList(
                EncoderBlock(n_features, n_heads, F.relu, dropout)
                for _ in range(n_blocks)
            )

        self.nodes = Linear(1, n_features)
        self.edges = Linear(3, n_features)
        self.node_encoder, self.edge_encoder = encoder(), encoder()
        self.joint_encoder = encoder()
        self.cross = CrossAttention(n_features, n_heads)
        self.out = Linear(n_features, 1 if equivariant else 3)
        self.class_token = nn.Parameter(torch.zeros(n_features))

    def forward(
        self, positions: Tensor, velocities: Tensor, charges: Tensor, edges: Edges
    ) -> Tensor:
        """Predict positions.

        Args:
            positions: of systems of one size, one after the other, (n_atoms, 3).
            velocities: (n_atoms, 3).
            charges: (n_atoms,).
            edges: the complete graph of each system, dense and without fill.

        Returns:
            (n_atoms, 3).

        Raises:
            InputError: other edges.
        """
        if edges.degree is None or edges.has_fill or edges.shift is not None:
            raise InputError(
                "`edges` must be the complete graphs of systems of one size, got a "
                "list that is ragged, filled up or periodic; use "
                "mlff.neighbors.all_pairs on systems of as many particles each"
            )
        size, i, j = edges.degree + 1, edges.i, edges.j
        vectors = positions[j] - positions[i]
        square = vectors.square().sum(1)
        along = (velocities[i] * vectors).sum(1) * torch.rsqrt(square)
        features = torch.stack((charges[i] * charges[j], square, along), dim=1)
        tokens = self.edges(features).unflatten(0, (-1, size * edges.degree))
        for block in self.edge_encoder:
            tokens = block(tokens, among_all)
        nodes = self.nodes(charges[:, None]).unflatten(0, (-1, size))
        for block in self.node_encoder:
            nodes = block(nodes, among_all)
        among_incident = partial(among_all, allowed=incident(edges, len(positions)))
        nodes = nodes + self.cross(nodes, tokens, among_incident)
        for block in self.joint_encoder:
            nodes = block(nodes, among_all)
        return positions + velocities * self.out(nodes).flatten(0, 1)


def incident(edges: Edges, n_atoms: int) -> Tensor:
    """Return which edges begin or end at a node: M of eq. 9.

    Args:
        edges: complete graphs of systems of one size.
        n_atoms: of all systems.

    Returns:
        (n_systems, nodes, edges) of each system, true for edges to attend to.
    """
    size = len(edges.i) // n_atoms + 1
    node = torch.arange(n_atoms, device=edges.i.device).view(-1, size, 1)
    i, j = (end.view(len(node), 1, -1) for end in (edges.i, edges.j))
    return (i == node) | (j == node)


def _to_neighbors(
    query: Tensor, key: Tensor, value: Tensor, around: Neighborhood
) -> Tensor:
    """Let atoms attend to their neighbors and themselves, (n_atoms, n_heads, D)."""
    by_head = (x.transpose(0, 1) for x in (query, key, value))
    return around.attend(*by_head)[0].transpose(0, 1)

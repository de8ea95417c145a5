"""Attention of atoms to their neighbors, and of the edges of an atom to each other.

Weights are smooth as in :func:`mlff.nn.attention.edge_softmax`: a neighbor, or an edge,
counts by its envelope, and a term of one's own is always there. Products are written
out by hand: fused kernels have no second derivative.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mlff.batch import AtomsBatch, Edges, Graph
from mlff.errors import InputError
from mlff.nn.attention import edge_softmax
from mlff.nn.segments import edge_sum, gather

# Matrices of all pairs of a system are used while they have at most this many times as
# many elements as there are edges.
_MAX_PAIRS = 8


def check_heads(n_features: int, n_heads: int) -> None:
    """Raise unless every head gets as many features.

    Raises:
        InputError: the number of heads does not divide the width.
    """
    if n_features % n_heads:
        raise InputError(
            f"`n_heads` must divide n_features ({n_features}), got {n_heads}"
        )


class Neighborhood(Protocol):
    """Who attends to whom: each atom to its neighbors and to itself."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``Σ_j w_ij value_j + w_i value_i`` and the weights w_ij.

        ``w_ij ∝ φ_ij exp(query_i · key_j + bias_ij)``, ``w_i ∝ exp(query_i · key_i)``.

        Args:
            query: scaled, (n_heads, n_atoms, D).
            key: (n_heads, n_atoms, D).
            value: (n_heads, n_atoms, D).
            bias: (n_edges, n_heads).

        Returns:
            What atoms receive, (n_heads, n_atoms, D), and weights, in a form for
            :meth:`of_edges`.
        """

    def of_edges(self, weights: Tensor) -> Tensor:
        """Return the weights of the edges, (n_edges, n_heads); 0 for fill."""


def neighborhood(graph: Graph, envelope: Tensor) -> Neighborhood:
    """Return the way to attend that suits a graph; results are the same.

    Args:
        graph: batch and edges.
        envelope: φ of each edge, (n_edges,).
    """
    batch, edges = graph.batch, graph.edges
    n_pairs = batch.n_systems * batch.max_atoms**2
    if edges.shift is None and n_pairs <= _MAX_PAIRS * edges.n_edges:
        return AllPairs.of(graph, envelope)
    return EdgeList(edges, envelope)


@dataclass(frozen=True)
class EdgeList:
    """Attention along a list of edges: for large systems and periodic ones.

    Attributes:
        edges: who receives from whom.
        envelope: φ, (n_edges,).
    """

    edges: Edges
    envelope: Tensor

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Neighborhood`."""
        edges = self.edges
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        logits = (gather(query, edges.i) * gather(key, edges.j)).sum(-1)
        if bias is not None:
            logits = logits + bias
        own = (query * key).sum(-1)
        weights, own = edge_softmax(logits, own, self.envelope, edges)
        sent = weights[:, :, None] * gather(value, edges.j)
        received = own[:, :, None] * value + edge_sum(sent, edges, len(value))
        return received.transpose(0, 1), weights

    def of_edges(self, weights: Tensor) -> Tensor:
        """See :class:`Neighborhood`."""
        return weights


@dataclass(frozen=True)
class AllPairs:
    """Attention by matrix products over all pairs of atoms of each system.

    Attributes:
        batch: the systems.
        row: of each atom, if every system had ``max_atoms``, (n_atoms,).
        place: of each edge in the matrices, flattened; behind them for fill.
        counted: φ of each pair, 1 on the diagonal, (n_systems, max_atoms, max_atoms).
    """

    batch: AtomsBatch
    row: Tensor
    place: Tensor
    counted: Tensor

    @classmethod
    def of(cls, graph: Graph, envelope: Tensor) -> "AllPairs":
        """Put the edges in their places."""
        batch, edges = graph.batch, graph.edges
        row = batch.system * batch.max_atoms + batch.slot
        place = row[edges.i] * batch.max_atoms + batch.slot[edges.j]
        if edges.has_fill:
            behind = batch.n_systems * batch.max_atoms**2
            place = torch.where(edges.i == edges.j, behind, place)
        itself = torch.eye(
            batch.max_atoms, dtype=envelope.dtype, device=envelope.device
        )
        spread = _spread(envelope[:, None], place, batch)[0]
        return cls(batch, row, place, spread + itself)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Neighborhood`."""
        query, key, value = (self._by_system(x) for x in (query, key, value))
        logits = query @ key.transpose(-1, -2)
        if bias is not None:
            logits = logits + _spread(bias, self.place, self.batch)
        # What does not count must not decide which exponentials underflow either.
        logits = logits.masked_fill(self.counted == 0, -math.inf)
        weights = logits.softmax(-1) * self.counted
        weights = weights / weights.sum(-1, keepdim=True)
        received = (weights @ value).flatten(1, 2)
        if not self.batch.uniform:
            received = received.index_select(1, self.row)
        return received, weights

    def of_edges(self, weights: Tensor) -> Tensor:
        """See :class:`Neighborhood`."""
        flat = torch.nn.functional.pad(weights.flatten(1), (0, 1))
        return gather(flat.T, self.place)

    def _by_system(self, values: Tensor) -> Tensor:
        """Return (n_heads, n_systems, max_atoms, D)."""
        shape = (self.batch.n_systems, self.batch.max_atoms)
        if not self.batch.uniform:
            padded = values.new_zeros(len(values), shape[0] * shape[1], values.shape[2])
            values = padded.index_copy(1, self.row, values)
        return values.unflatten(1, shape)


def _spread(values: Tensor, place: Tensor, batch: AtomsBatch) -> Tensor:
    """Return edge values (n_edges, n) as matrices, (n, n_systems, atoms, atoms)."""
    shape = (batch.n_systems, batch.max_atoms, batch.max_atoms)
    size = shape[0] * shape[1] * shape[2]
    flat = values.new_zeros(size + 1, values.shape[1])  # the last one is for fill
    flat = flat.index_copy(0, place, values)[:size]
    return flat.T.unflatten(1, shape)


@dataclass(frozen=True)
class EdgeRows:
    """The edges of each atom as a row, rows of similar length together.

    Dense edges are one block, without a copy. Ragged ones make a block for each power
    of two: how many there are depends on the data, so the host waits for them.

    Attributes:
        blocks: edges of the rows, (n_rows, width) each; ``None`` for dense edges.
        present: which of them exist, (n_rows, width) each; ``None`` for dense edges.
        place: of each edge among the blocks, flattened, (n_edges,).
        degree: width of the only block of dense edges.
    """

    blocks: tuple[Tensor, ...] | None
    present: tuple[Tensor, ...] | None
    place: Tensor | None
    degree: int = 0

    @classmethod
    def of(cls, edges: Edges, n_atoms: int) -> "EdgeRows":
        """Sort edges into rows."""
        if edges.degree is not None:
            return cls(None, None, None, edges.degree)
        index, device = edges.i, edges.i.device
        order = index.argsort(stable=True)
        counts = torch.zeros(n_atoms, dtype=torch.int64, device=device)
        counts = counts.index_add(0, index, torch.ones_like(index))
        first = counts.cumsum(0) - counts
        blocks, present, place = [], [], torch.empty_like(index)
        offset, width = 0, 1
        longest = int(counts.max()) if n_atoms else 0
        while width < 2 * longest:
            rows = ((counts > width // 2) & (counts <= width)).nonzero()
            column = torch.arange(width, device=device)
            exists = column < counts[rows]
            edge = order[torch.where(exists, first[rows] + column, first[rows])]
            numbers = torch.arange(edge.numel(), device=device).view_as(edge)
            place[edge[exists]] = offset + numbers[exists]
            blocks.append(edge)
            present.append(exists)
            offset, width = offset + edge.numel(), 2 * width
        return cls(tuple(blocks), tuple(present), place)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Lay out values of edges, (n_edges, …), as (n_rows, width, …) each."""
        if self.blocks is None:
            return (values.unflatten(0, (-1, self.degree)),) if len(values) else ()
        return tuple(
            gather(values, block.flatten()).unflatten(0, block.shape)
            for block in self.blocks
        )

    def split_envelope(self, envelope: Tensor) -> tuple[Tensor, ...]:
        """Lay out the envelope, zero where there is no edge."""
        parts = self.split(envelope)
        if self.present is None:
            return parts
        return tuple(p * e for p, e in zip(parts, self.present, strict=True))

    def join(self, parts: tuple[Tensor, ...], like: Tensor) -> Tensor:
        """Undo :meth:`split`; ``like`` is what was split, for the case of no edges."""
        if not parts:
            return like
        flat = torch.cat([part.flatten(0, 1) for part in parts])
        return flat if self.place is None else gather(flat, self.place)

    def angle_powers(self, directions: Tensor, n: int) -> tuple[Tensor, ...]:
        """Return ``(r̂_ij · r̂_ik)^p``, p < n, (n, n_rows, width, width) for each block.

        Args:
            directions: r̂, (n_edges, 3).
            n: number of powers, from the zeroth.
        """
        out = []
        for part in self.split(directions):
            cosine = part @ part.transpose(1, 2)
            powers = [torch.ones_like(cosine)]
            for _ in range(n - 1):
                powers.append(powers[-1] * cosine)
            out.append(torch.stack(powers))
        return tuple(out)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        envelope: Tensor,
        biases: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Let every edge attend to the edges of the same receiver, itself among them.

        ``w_jk ∝ φ_k exp(l_jk)`` for k ≠ j and ``w_jj ∝ exp(l_jj)``, without φ.

        Args:
            query: scaled, (n_edges, n_heads, D).
            key: (n_edges, n_heads, D).
            value: (n_edges, n_heads, D).
            envelope: φ of each edge, (n_edges,).
            biases: added to l, (n_heads, n_rows, width, width) for each block.

        Returns:
            (n_edges, n_heads, D).
        """
        values = (query, key, value)
        parts = zip(
            *(self.split(x) for x in values), self.split_envelope(envelope), strict=True
        )
        out = []
        for block, (q, k, v, counted) in enumerate(parts):
            bias = None if biases is None else biases[block]
            out.append(_attend_in_block(q, k, v, counted, bias))
        return self.join(tuple(out), value)


def _attend_in_block(
    query: Tensor, key: Tensor, value: Tensor, envelope: Tensor, bias: Tensor | None
) -> Tensor:
    """Attend inside rows, (n_rows, width, n_heads, D).

    With ``p = softmax(l)``, ``Σ_k w_jk v_k = S_j[v] / S_j[1]`` where ``S_j[v] =
    Σ_k p_jk φ_k v_k + p_jj (1 − φ_j) v_j``: φ acts on values, fewer than the weights.
    """
    q, k, v = (x.permute(2, 0, 1, 3).flatten(0, 1) for x in (query, key, value))
    counted = envelope.repeat(query.shape[2], 1)[..., None]
    if bias is None:
        logits = q @ k.transpose(1, 2)
    else:
        logits = torch.baddbmm(bias.flatten(0, 1), q, k.transpose(1, 2))
    weights = logits.softmax(-1)
    values = torch.cat((v, torch.ones_like(counted)), -1)
    own = weights.diagonal(dim1=1, dim2=2)[..., None] * (1 - counted)
    sums = weights @ (counted * values) + own * values
    mixed = sums[..., :-1] / sums[..., -1:]
    return mixed.unflatten(0, (query.shape[2], -1)).permute(1, 2, 0, 3)

"""Equivariant functions of a set of vectors, written with their invariants.

Every function of vectors that commutes with O(3) is a sum of the vectors, each times a
function of their inner products; for SO(3) the cross products and the determinants
join (Villar et al., NeurIPS 2021; Weyl 1946). Vectors may have more components than
the three of space: inner products run over all of them, determinants and cross products
over those of space.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlff.batch import Edges
from mlff.nn.linear import Linear, linear
from mlff.nn.segments import edge_sum, gather

# Standard deviation of a unit normal that is cut off at ±2.
_CUT_NORMAL = 0.8796


class Width(NamedTuple):
    """How many vectors and scalars there are."""

    vectors: int
    scalars: int


def n_equivariants(n_vectors: int, handed: bool) -> int:
    """Number of vectors and, if ``handed``, their cross products."""
    return n_vectors + handed * math.comb(n_vectors, 2)


def n_invariants(n_vectors: int, handed: bool) -> int:
    """Number of inner products and, if ``handed``, determinants."""
    return math.comb(n_vectors + 1, 2) + handed * math.comb(n_vectors, 3)


class Generators(nn.Module):
    """What all equivariant and invariant functions of T vectors are made of.

    Args:
        n_vectors: T.
        handed: SO(3) instead of O(3), which tells mirror images apart.
    """

    squares: Tensor
    pairs: Tensor
    triples: Tensor

    def __init__(self, n_vectors: int, handed: bool) -> None:
        super().__init__()
        self.handed = handed
        channels = range(n_vectors)
        pairs = list(itertools.combinations(channels, 2))
        squares = [
            a * n_vectors + b
            for a, b in itertools.combinations_with_replacement(channels, 2)
        ]
        triples = [
            row * n_vectors + c
            for row, (_, b) in enumerate(pairs)
            for c in range(b + 1, n_vectors)
        ]
        index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
        self.register_buffer("pairs", index.contiguous(), persistent=False)
        self.register_buffer("squares", torch.tensor(squares), persistent=False)
        index = torch.tensor(triples, dtype=torch.int64)
        self.register_buffer("triples", index, persistent=False)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return equivariants and invariants.

        Args:
            vectors: (n, 3 + internal, T).

        Returns:
            Vectors ``v_a`` and, if handed, ``v_a × v_b``, (n, M, 3 + internal), and
            ``⟨v_a, v_b⟩`` and, if handed, ``det[v_a v_b v_c]``, (n, I).
        """
        rows = vectors.transpose(1, 2)
        products = (rows @ vectors).flatten(1).index_select(1, self.squares)
        if not self.handed:
            return rows, products
        space = vectors[:, :3]
        first, second = (space.index_select(2, index) for index in self.pairs)
        crossed = torch.linalg.cross(first, second, dim=1).transpose(1, 2)
        volumes = (crossed @ space).flatten(1).index_select(1, self.triples)
        crossed = F.pad(crossed, (0, vectors.shape[1] - 3))
        return torch.cat((rows, crossed), 1), torch.cat((products, volumes), 1)


class EquivariantMap(nn.Module):
    """Φ: vectors and scalars in, vectors and scalars out (Chen & Villar 2022, eq. 4).

    A perceptron of the invariants and the scalars gives the new scalars (eq. 7) and the
    coefficients of the new vectors in the equivariants (eqs. 6, 8), divided by their
    number M as in the authors' program.

    Args:
        before: width of what enters.
        after: width of what comes out.
        n_hidden: width of the perceptron.
        handed: SO(3) instead of O(3).
        smooth: SiLU instead of the published ReLU.
    """

    #: How many of the vectors belong to an edge rather than to an atom.
    from_edges = 0

    def __init__(
        self, before: Width, after: Width, n_hidden: int, handed: bool, smooth: bool
    ) -> None:
        super().__init__()
        self.handed = handed
        self.activation = F.silu if smooth else F.relu
        self.n_basis = n_equivariants(before.vectors, handed)
        self.n_new = after.vectors
        self.split = [self.n_basis * after.vectors, after.scalars]
        n_inputs = n_invariants(before.vectors, handed) + before.scalars
        self.generators = Generators(before.vectors - self.from_edges, handed)
        self.inner = Linear(n_inputs, n_hidden)
        self.norm = nn.LayerNorm(n_hidden)
        self.outer = Linear(n_hidden, sum(self.split))
        for layer, gain in ((self.inner, 2.0), (self.outer, 1.0)):
            std = math.sqrt(gain / layer.in_features) / _CUT_NORMAL
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """Transform (n, 3 + internal, T) and (n, L)."""
        basis, invariants = self.generators(vectors)
        hidden = self.inner(torch.cat((invariants, scalars), 1))
        out = self.outer(self.activation(self.norm(hidden)))
        weights, scalars = out.split(self.split, dim=1)
        weights = weights.unflatten(1, (self.n_basis, self.n_new)) / self.n_basis
        return basis.transpose(1, 2) @ weights, scalars


class Surroundings(NamedTuple):
    """What an :class:`EdgeMap` reads, computed once for several of them.

    Attributes:
        atoms: invariants and scalars of each atom alone, (n_atoms, …).
        pairs: those that need the vector of the edge, (n_edges, …).
        basis: equivariants, (n_edges, M, 3 + internal).
    """

    atoms: Tensor
    pairs: Tensor
    basis: Tensor


class EdgeMap(EquivariantMap):
    """Φ of the vectors of a sender and the vector of the edge (eqs. 2, 3).

    What depends on the sender alone goes through the first layer once for each atom,
    not for each edge: ``det[v_a v_b d] = ⟨v_a × v_b, d⟩`` leaves one inner product with
    d for each equivariant of the sender. The outer layer is left to the caller, who can
    move most of it behind the sum over edges.

    Args:
        before: width of what enters, edge included.
        after: width of what comes out.
        n_hidden: width of the perceptron.
        handed: SO(3) instead of O(3).
        smooth: SiLU instead of the published ReLU.
    """

    from_edges = 1

    def surroundings(
        self,
        features: tuple[Tensor, Tensor],
        edge_features: tuple[Tensor, Tensor],
        edges: Edges,
    ) -> Surroundings:
        """Return what this map, and others of the same input, read.

        Args:
            features: vectors (n_atoms, 3 + internal, T) and scalars (n_atoms, L).
            edge_features: vectors d, (n_edges, 3), and scalars (n_edges, …).
            edges: who sends.
        """
        (vectors, scalars), (arrows, labels) = features, edge_features
        own, invariants = self.generators(vectors)
        internal = vectors.shape[1] - 3
        sent = gather(own, edges.j)
        along = sent[..., :3] @ arrows[:, :, None]
        square = arrows.square().sum(1, keepdim=True)
        basis = [sent, F.pad(arrows, (0, internal))[:, None]]
        if self.handed:
            sender = sent[:, : vectors.shape[2], :3]
            turned = torch.linalg.cross(sender, arrows[:, None].expand_as(sender))
            basis.append(F.pad(turned, (0, internal)))
        return Surroundings(
            atoms=torch.cat((invariants, scalars), 1),
            pairs=torch.cat((along[..., 0], square, labels), 1),
            basis=torch.cat(basis, 1),
        )

    def hidden(self, surroundings: Surroundings, edges: Edges) -> Tensor:
        """Return the hidden layer, (n_edges, n_hidden)."""
        weight, n_own = self.inner.weight, surroundings.atoms.shape[1]
        own = linear(surroundings.atoms, weight[:, :n_own], self.inner.bias)
        pair = linear(surroundings.pairs, weight[:, n_own:])
        return self.activation(self.norm(pair + gather(own, edges.j)))

    def coefficients(self, hidden: Tensor) -> Tensor:
        """Return the coefficients of the new vectors, (n_edges, M, T')."""
        n = self.split[0]
        out = linear(hidden, self.outer.weight[:n], self.outer.bias[:n])
        return out.unflatten(1, (self.n_basis, self.n_new))

    def scalar_layer(self) -> tuple[Tensor, Tensor]:
        """Return weight (L', n_hidden) and bias (L',) of the new scalars."""
        n = self.split[0]
        return self.outer.weight[n:], self.outer.bias[n:]


def edge_products(values: Tensor, atoms: Tensor, edges: Edges) -> Tensor:
    """Return inner products of edge values with values of the receiver.

    Args:
        values: (n_edges, M, C).
        atoms: (n_atoms, T, C).
        edges: who receives.

    Returns:
        (n_edges, M, T).
    """
    if edges.degree is None:
        return values @ gather(atoms, edges.i).transpose(1, 2)
    n_edges, m, c = values.shape
    rows = values.reshape(len(atoms), edges.degree * m, c)
    return (rows @ atoms.transpose(1, 2)).view(n_edges, m, atoms.shape[1])


def edge_contraction(
    weights: Tensor, values: Tensor, edges: Edges, n_atoms: int
) -> Tensor:
    """Return ``Σ_j Σ_m weights_ijm ⊗ values_ijm`` for each receiver i.

    Args:
        weights: (n_edges, M, T).
        values: (n_edges, M, C).
        edges: who receives.
        n_atoms: number of atoms.

    Returns:
        (n_atoms, C, T).
    """
    if edges.degree is None:
        return edge_sum(values.transpose(1, 2) @ weights, edges, n_atoms)
    rows = (n_atoms, edges.degree * values.shape[1])
    columns = values.reshape(*rows, values.shape[2]).transpose(1, 2)
    return columns @ weights.reshape(*rows, weights.shape[2])

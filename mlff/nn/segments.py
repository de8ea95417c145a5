"""Sums over the edges of each atom.

Dense edges (:class:`mlff.batch.Edges` with ``degree``) are summed as arrays and small
batched matrix products; ragged ones by ``index_add``. Both are the same function.
"""

from torch import Tensor

from mlff.batch import Edges


def gather(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]`` for an index (n_edges,) into the first axis.

    ``index_select`` is several times faster on a CPU; elsewhere its gradient would
    depend on the order in which threads add.
    """
    if values.device.type == "cpu":
        return values.index_select(0, index)
    return values[index]


def edge_sum(values: Tensor, edges: Edges, n_atoms: int) -> Tensor:
    """Sum edge values over the neighbors of each receiver.

    Args:
        values: (n_edges, …).
        edges: who receives.
        n_atoms: number of atoms.

    Returns:
        (n_atoms, …).
    """
    if edges.degree is not None:
        return values.unflatten(0, (n_atoms, edges.degree)).sum(1)
    zeros = values.new_zeros((n_atoms, *values.shape[1:]))
    return zeros.index_add(0, edges.i, values)


def edge_max(values: Tensor, edges: Edges, initial: Tensor) -> Tensor:
    """Return the larger of ``initial`` and the largest edge value, without gradient.

    Args:
        values: (n_edges, n_heads).
        edges: who receives.
        initial: (n_atoms, n_heads).

    Returns:
        (n_atoms, n_heads).
    """
    values, initial = values.detach(), initial.detach()
    index = edges.i[:, None].expand_as(values)
    return initial.scatter_reduce(0, index, values, "amax")


def edge_moments(weights: Tensor, values: Tensor, edges: Edges, n_atoms: int) -> Tensor:
    """Return ``Σ_j weights_ij ⊗ values_ij`` for each receiver i.

    Args:
        weights: (n_edges, n_moments).
        values: (n_edges, n_features).
        edges: who receives.
        n_atoms: number of atoms.

    Returns:
        (n_atoms, n_moments, n_features).
    """
    if edges.degree is not None:
        shape = (n_atoms, edges.degree)
        return weights.unflatten(0, shape).transpose(1, 2) @ values.unflatten(0, shape)
    zeros = values.new_zeros((n_atoms, weights.shape[1], values.shape[1]))
    return zeros.index_add(0, edges.i, weights[:, :, None] * values[:, None, :])

"""Sums over neighbors with a weight for every edge and channel."""

from torch import Tensor

from mlff.batch import Edges
from mlff.nn.segments import edge_sum, gather


def convolve(weights: Tensor, sources: Tensor, edges: Edges) -> Tensor:
    """Return ``Σ_j weights_ij ⊙ sources_j`` for each receiver i.

    For vectors this is called for one component after the other: an array of all
    components on all edges takes twice as long on a CPU.

    Args:
        weights: (n_edges, F).
        sources: (n_atoms, F).
        edges: who receives from whom.

    Returns:
        (n_atoms, F).
    """
    n_atoms = len(sources)
    values = gather(sources, edges.j)
    if edges.degree is None:
        return edge_sum(weights * values, edges, n_atoms)
    # In rows before the product: a gradient that is the same for a row stays a view.
    rows = (n_atoms, edges.degree)
    return (weights.unflatten(0, rows) * values.unflatten(0, rows)).sum(1)

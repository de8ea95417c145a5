"""Graphs as functions of positions and strain, and what their gradients are called.

Forces are ``−∂E/∂r``, the stress is ``(1/V) ∂E/∂ε`` with the symmetric strain ε that
deforms positions and cell: ``r → r (1 + ε)``, ASE's sign.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlff.batch import AtomsBatch, Edges, Graph, edge_vectors

# Length given to fill edges, Å: beyond every cutoff a model may have.
_FAR = 1e3


def build_graph(batch: AtomsBatch, edges: Edges, dtype: torch.dtype) -> Graph:
    """Compute edge geometry, differentiable in positions and cell.

    Vectors are formed in float64 and cast afterwards, so that precision does not
    depend on where a system sits.
    """
    vectors = edge_vectors(batch, edges)
    if edges.has_fill:
        real = edges.i != edges.j
        if edges.shift is not None:
            real = real | (edges.shift != 0).any(1)
        far = vectors.new_tensor((_FAR, 0.0, 0.0))
        vectors = torch.where(real[:, None], vectors, far)
    vectors = vectors.to(dtype)
    distances = torch.linalg.vector_norm(vectors, dim=1)
    return Graph(batch=batch, edges=edges, vectors=vectors, distances=distances)


def differentiable(
    batch: AtomsBatch, forces: bool, stress: bool, create_graph: bool = False
) -> tuple[AtomsBatch, list[Tensor]]:
    """Return the batch as a function of positions and strain, and these inputs.

    Args:
        batch: the systems.
        forces: whether positions are an input.
        stress: whether the strain is one.
        create_graph: take positions as they are if they have a gradient already.
    """
    positions, cell, inputs = batch.positions, batch.cell, []
    if forces:
        if not (create_graph and positions.requires_grad):
            positions = positions.detach().requires_grad_(True)
        inputs.append(positions)
    if stress:
        strain = torch.zeros_like(cell, requires_grad=True)
        inputs.append(strain)
        symmetric = 0.5 * (strain + strain.mT)
        moved = torch.einsum("ax,axy->ay", positions, symmetric[batch.system])
        positions = positions + moved
        cell = cell + cell @ symmetric
    return batch.replace(positions=positions, cell=cell), inputs


def derivatives(
    gradients: Sequence[Tensor], forces: bool, stress: bool, batch: AtomsBatch
) -> dict[str, Tensor]:
    """Name the gradients of energies by the inputs of :func:`differentiable`.

    Args:
        gradients: any axes before those of the inputs.
        forces: whether there is one by positions.
        stress: whether there is one by strain.
        batch: the systems.
    """
    out = {}
    if forces:
        out["forces"] = -gradients[0]
    if stress:
        volume = torch.linalg.det(batch.cell.detach()).abs()
        strain = gradients[-1]
        out["stress"] = 0.5 * (strain + strain.mT) / volume[:, None, None]
    return out

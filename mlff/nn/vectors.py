"""Operations on vector features (n_atoms, 3 + internal, F) that keep their symmetry.

Allowed are linear maps over channels without bias, products with scalars and inner
products over all components. Norms are smooth at zero.
"""

import torch
from torch import Tensor, nn

from mlff.nn.linear import Linear

# Radius of the smooth region of a norm. A smaller one puts a force kink at every
# centrosymmetric site, where vectors vanish: curvature there is 1/ε.
_EPSILON = 1e-2


def smooth_norm(vectors: Tensor) -> Tensor:
    """Return ``sqrt(|v|² + ε²) − ε`` over the components, (n_atoms, F)."""
    square = vectors.square().sum(1)
    return torch.sqrt(square + _EPSILON**2) - _EPSILON


def add_in_space(vectors: Tensor, spatial: Tensor) -> Tensor:
    """Add to the first three components, or prepend them if there are none yet.

    Args:
        vectors: (n_atoms, 3 + internal or internal, F).
        spatial: (n_atoms, 3, F).

    Returns:
        (n_atoms, 3 + internal, F).
    """
    internal = vectors.shape[1] - 3
    if internal < 0:
        return torch.cat((spatial, vectors), dim=1)
    return vectors + nn.functional.pad(spatial, (0, 0, 0, internal))


class VectorNorm(nn.Module):
    """Divide the vectors of an atom by their root mean square; scale the channels.

    ``v ← γ ⊙ v / sqrt(mean_c |v_c|² + ε)``, ε = 1e-2: one number for each atom, so that
    directions and the ratios of channels stay as they are.

    Args:
        n_features: width F.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n_features))

    def forward(self, vectors: Tensor) -> Tensor:
        """Transform (n_atoms, 3 + internal, F)."""
        square = vectors.square().sum(1, keepdim=True).mean(2, keepdim=True)
        return self.scale * vectors * torch.rsqrt(square + _EPSILON)


class GatedEquivariantBlock(nn.Module):
    """Mix scalars with the norms of vectors; gate vectors by scalars.

    PaiNN (Schütt, Unke, Gastegger, ICML 2021, Fig. 3), with the norm smooth at zero.

    Args:
        n_features: width F.
        vectors_out: whether vectors are needed afterwards.
    """

    def __init__(self, n_features: int, vectors_out: bool = True) -> None:
        super().__init__()
        out = 2 if vectors_out else 1
        self.vectors_out = vectors_out
        self.mix = Linear(n_features, out * n_features, bias=False)
        self.inner = Linear(2 * n_features, n_features)
        self.outer = Linear(n_features, out * n_features)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Transform scalars (n_atoms, F) and vectors (n_atoms, 3 + internal, F)."""
        lengths, *passed = self.mix.parts(vectors, 2 if self.vectors_out else 1)
        norms = smooth_norm(lengths)
        hidden = nn.functional.silu(self.inner(torch.cat((scalars, norms), 1)))
        out = self.outer(hidden)
        if not self.vectors_out:
            return out, vectors
        out, gate = out.chunk(2, dim=-1)
        return out, gate[:, None] * passed[0]

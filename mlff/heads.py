"""From features of atoms to a property: the output layer of section 2.1.6 of CMRET."""

import torch
from torch import Tensor, nn

from mlff.models.base import Features
from mlff.nn.vectors import GatedEquivariantBlock


class EnergyHead(nn.Module):
    """Interaction energy of each atom: LayerNorm, gated blocks, linear to one number.

    Args:
        n_features: width F of the features.
        n_blocks: gated equivariant blocks; the paper uses two.
    """

    def __init__(self, n_features: int, n_blocks: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_features)
        self.blocks = nn.ModuleList(
            GatedEquivariantBlock(n_features, vectors_out=k + 1 < n_blocks)
            for k in range(n_blocks)
        )
        self.linear = nn.Linear(n_features, 1)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return atomic energies without their reference, (n_atoms,), eV."""
        scalars, vectors = self.norm(features.scalars), features.vectors
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors)
        energies: Tensor = self.linear(scalars)
        return torch.squeeze(energies, 1)

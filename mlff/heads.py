"""From features of atoms to properties: the output layers of section 2.1.6 of CMRET.

Each head is a LayerNorm, gated equivariant blocks, and linear maps to a scalar y_i and,
where it needs one, a vector w_i of each atom. Positions x_i are about the center of
nuclear charge, so that nothing depends on where a molecule is; that center has no
meaning in a periodic system.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlff.batch import AtomsBatch
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


class _SystemHead(nn.Module):
    """What the heads of whole systems share: scalars and a vector of each atom.

    Args:
        n_features: width F of the features.
        n_scalars: scalars of each atom.
        n_blocks: gated equivariant blocks.
    """

    n_scalars = 1

    def __init__(self, n_features: int, n_blocks: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_features)
        self.blocks = nn.ModuleList(
            GatedEquivariantBlock(n_features) for _ in range(n_blocks)
        )
        self.scalar = nn.Linear(n_features, self.n_scalars)
        self.vector = nn.Linear(n_features, 1, bias=False)
        nn.init.zeros_(self.scalar.bias)

    def sites(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return y (n_atoms, n_scalars) and w (n_atoms, 3), float64."""
        scalars, vectors = self.norm(features.scalars), features.vectors
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors)
        spatial = self.vector(vectors[:, :3]).squeeze(2)
        return self.scalar(scalars).double(), spatial.double()


class DipoleHead(_SystemHead):
    """Dipole: ``μ = Σ_i (w_i + q_i x_i)``, partial charges ``q_i = y_i + (Q − Σ y)/N``.

    The paper (eq. 13) has y_i in the place of q_i: the monopole of an ion would then be
    whatever was learned.
    """

    def forward(self, features: Features, batch: AtomsBatch) -> Tensor:
        """Return dipoles about the center of nuclear charge, (n_systems, 3), e·Å."""
        scalar, vector = self.sites(features)
        missing = (batch.charge - batch.total(scalar[:, 0])) / batch.counts()
        charges = scalar + missing[batch.system, None]
        return batch.total(vector + charges * centered(batch))


class PolarizabilityHead(_SystemHead):
    """Polarizability: ``α = Σ_i (y_i 1 + w_i ⊗ x_i + x_i ⊗ w_i)``."""

    def forward(self, features: Features, batch: AtomsBatch) -> Tensor:
        """Return polarizability volumes, symmetric, (n_systems, 3, 3), Å³."""
        scalar, vector = self.sites(features)
        product = vector[:, :, None] * centered(batch)[:, None]
        isotropic = scalar[:, :, None] * torch.eye(3, device=scalar.device)
        return batch.total(isotropic + product + product.mT)


class SpatialExtentHead(_SystemHead):
    """Electronic spatial extent ⟨R²⟩: ``Σ_i (y_i |x_i|² + 2 w_i·x_i + z_i)``.

    The multipole expansion of ``∫ ρ(r) |r − r0|²`` around the atoms. The paper (eq. 12)
    has the first term alone, which says that an atom has no extent.
    """

    n_scalars = 2

    def forward(self, features: Features, batch: AtomsBatch) -> Tensor:
        """Return ⟨R²⟩ about the center of nuclear charge, (n_systems,), Å²."""
        scalar, vector = self.sites(features)
        place = centered(batch)
        far = scalar[:, 0] * place.square().sum(1) + 2.0 * (vector * place).sum(1)
        return batch.total(far + scalar[:, 1])


def centered(batch: AtomsBatch) -> Tensor:
    """Return positions about the center of nuclear charge, (n_atoms, 3), float64, Å."""
    charges = batch.numbers.double()
    middle = batch.total(charges[:, None] * batch.positions)
    return batch.positions - (middle / batch.total(charges)[:, None])[batch.system]


#: Heads by name.
HEADS: dict[str, type[nn.Module]] = {
    "energy": EnergyHead,
    "dipole": DipoleHead,
    "polarizability": PolarizabilityHead,
    "spatial_extent": SpatialExtentHead,
}


def _norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1)


def _mean_of_diagonal(tensors: Tensor) -> Tensor:
    return tensors.diagonal(dim1=1, dim2=2).mean(1)


def _frobenius(tensors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensors, dim=(1, 2))


#: Properties that follow from the output of a head of another name.
DERIVED: dict[str, Callable[[Tensor], Tensor]] = {
    "dipole_norm": _norm,
    "isotropic_polarizability": _mean_of_diagonal,
    "polarizability_norm": _frobenius,
}

"""Stand-ins for a force field whose exact results are known, batched."""

from dataclasses import dataclass

import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from mlff.batch import AtomsBatch, Edges, edge_vectors
from mlff.forcefield import Evaluation
from mlff.neighbors import neighbor_list


def evaluation(batch, energy, forces, virial) -> Evaluation:
    """``virial`` is ∂E/∂ε."""
    volume = torch.linalg.det(batch.cell).abs()
    periodic = batch.pbc.all(1)
    stress = virial / torch.where(periodic, volume, 1.0)[:, None, None]
    return Evaluation(energy=energy, forces=forces, stress=stress, outside=None)


class IdealGas:
    """No forces."""

    def __init__(self, batch: AtomsBatch) -> None:
        del batch
        self.calls = 0

    def __call__(self, batch: AtomsBatch) -> Evaluation:
        self.calls += 1
        zeros = torch.zeros_like(batch.cell[:, 0, 0])
        forces, virial = torch.zeros_like(batch.positions), torch.zeros_like(batch.cell)
        return evaluation(batch, zeros, forces, virial)


@dataclass(frozen=True)
class ElasticCell:
    """Atoms without forces in a cell that resists shear: U = k (tr(h hᵀ)/V^(2/3) − 3).

    h is a cell that was a cube at first; k in eV.
    """

    k: float

    def __call__(self, batch: AtomsBatch) -> Evaluation:
        one = torch.eye(3, dtype=torch.float64)
        unit = batch.cell / torch.linalg.det(batch.cell)[:, None, None] ** (1 / 3)
        square = unit.mT @ unit
        trace = square.diagonal(dim1=1, dim2=2).sum(1)
        virial = 2.0 * self.k * (square - trace[:, None, None] * one / 3.0)
        forces = torch.zeros_like(batch.positions)
        return evaluation(batch, self.k * (trace - 3.0), forces, virial)


@dataclass(frozen=True)
class Springs:
    """Each atom on a spring of its own to the place where it was made, k in eV/Å²."""

    places: Tensor
    k: Tensor

    def __call__(self, batch: AtomsBatch) -> Evaluation:
        away = batch.positions - self.places
        forces = -self.k[:, None] * away
        energy = batch.total(-0.5 * (forces * away).sum(1))
        return evaluation(batch, energy, forces, torch.zeros_like(batch.cell))


class MorseCrystal:
    """Morse bonds between the nearest neighbors that a crystal had when it was made.

    D in eV, a in 1/Å, r₀ in Å. The bonds stay, so that the energy is smooth.
    """

    def __init__(
        self, batch: AtomsBatch, depth: float = 0.3, width: float = 1.5, r0: float = 2.5
    ) -> None:
        self.depth, self.width, self.r0 = depth, width, r0
        edges = neighbor_list(batch, 1.2 * r0, "vesin")
        keep = (edge_vectors(batch, edges).norm(dim=1) > 0.1 * r0) & (
            edge_vectors(batch, edges).norm(dim=1) < 1.2 * r0
        )
        assert edges.shift is not None
        self.edges = Edges(i=edges.i[keep], j=edges.j[keep], shift=edges.shift[keep])
        assert len(self.edges.i) == 12 * batch.n_atoms

    def __call__(self, batch: AtomsBatch) -> Evaluation:
        vectors = edge_vectors(batch, self.edges)
        distances = vectors.norm(dim=1)
        decay = torch.exp(-self.width * (distances - self.r0))
        # Half of each bond to each of its two directed edges.
        energies = 0.5 * self.depth * (1.0 - decay) ** 2
        slope = self.depth * self.width * (1.0 - decay) * decay
        pull = (slope / distances)[:, None] * vectors
        zeros = torch.zeros_like(batch.positions)
        forces = 2.0 * zeros.index_add(0, self.edges.i, pull)
        system = batch.system[self.edges.i]
        virial = torch.zeros_like(batch.cell).index_add(
            0, system, pull[:, :, None] * vectors[:, None, :]
        )
        energy = torch.zeros_like(batch.cell[:, 0, 0]).index_add(0, system, energies)
        return evaluation(batch, energy, forces, virial)


def crystal(n: int, constant: float = 3.56, element: str = "Cu") -> Atoms:
    """n³ primitive cells of fcc."""
    atoms = bulk(element, "fcc", a=constant).repeat(n)
    atoms.info.update(charge=0, spin=1 + len(atoms) * atoms.numbers[0] % 2)
    return atoms

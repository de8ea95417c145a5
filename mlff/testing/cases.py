"""Molecules to test a model on, how to ask it, and how far off it may be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.neighbors import neighbor_list
from mlff.potential import Potential


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest deviation allowed, eV and eV/Å.

    Attributes:
        difference: forces against finite differences (P1).
        step: displacement for them, Å.
        energy: symmetries and batching, energy (P2–P5).
        force: symmetries and batching, force components (P2–P5).
        jump_energy: across the cutoff (P6).
        jump_force: across the cutoff (P6).
    """

    difference: float
    step: float
    energy: float
    force: float
    jump_energy: float
    jump_force: float


#: By precision of the network.
TOLERANCES = {
    torch.float64: Tolerance(
        difference=1e-6,
        step=1e-5,
        energy=1e-9,
        force=1e-8,
        jump_energy=1e-8,
        jump_force=1e-6,
    ),
    torch.float32: Tolerance(
        difference=5e-3,
        step=1e-3,
        energy=1e-5,
        force=1e-4,
        jump_energy=1e-5,
        jump_force=1e-3,
    ),
}

# Molecules of the G2 set with states that parity allows. Sizes differ pairwise, none is
# 1 or 3, so that a wrong broadcast cannot pass.
_CASES = (
    ("C2H2", -1, 2),
    ("CH4", 1, 2),
    ("C2H4", 0, 3),
    ("C2H6", 2, 1),
    ("C6H6", 0, 1),
)


def sample_systems(seed: int = 0) -> list[Atoms]:
    """Return rattled hydrocarbons in several charges and multiplicities."""
    systems = []
    for index, (name, charge, spin) in enumerate(_CASES):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=seed + index)
        atoms.info.update(charge=charge, spin=spin)
        systems.append(atoms)
    return systems


def evaluate(
    potential: Potential,
    systems: Sequence[Atoms],
    properties: Sequence[str] = ("energy", "forces"),
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Evaluate systems in one batch, without the checks that would refuse odd input."""
    batch = AtomsBatch.from_atoms(systems).to(potential.device)
    return potential(batch, neighbor_list(batch, potential.cutoff, backend), properties)

"""Labelled molecules at no cost: toy surfaces, one for each electronic state.

Every pair of atoms is bound by a Morse potential whose length and depth depend on the
elements, charge and multiplicity; total energies have the size of real ones. Good for
tests of everything that eats labels; means nothing chemically.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import covalent_radii
from numpy.typing import NDArray

from mlff.state import read_state, set_state

#: Molecule, charge and multiplicity of the frames, in turn.
SPECIES = (("CH2_s1A1d", 0, 1), ("CH2_s3B1d", 0, 3), ("CH4", 0, 1), ("CH3", 1, 1))

#: Energies of the atoms, eV: near the true ones.
ATOMS = {1: -13.6, 6: -1030.0, 8: -2040.0}


def labelled_frames(
    n: int,
    seed: int = 0,
    *,
    rattle: float = 0.07,
    species: Sequence[tuple[str, int, int]] = SPECIES,
) -> list[Atoms]:
    """Return molecules, rattled from ideal geometries, with toy labels.

    Args:
        n: number of frames.
        seed: of the displacements.
        rattle: their standard deviation, Å.
        species: ``(name, charge, multiplicity)`` of the frames, in turn.

    Returns:
        Frames whose ``info`` has ``charge``, ``spin``, ``REF_energy`` (eV) and
        ``level_of_theory``, and whose ``arrays`` have ``REF_forces`` (eV/Å).
    """
    generator = np.random.default_rng(seed)
    frames = []
    for index in range(n):
        name, charge, multiplicity = species[index % len(species)]
        ideal = molecule(name)
        atoms = Atoms(ideal.numbers, ideal.positions)
        atoms.positions += rattle * generator.normal(size=atoms.positions.shape)
        frames.append(label_toy(set_state(atoms, charge=charge, spin=multiplicity)))
    return frames


def labelled_methylenes(n_bonds: int = 4) -> list[Atoms]:
    """Return a grid of CH2 geometries, each as singlet and triplet, with toy labels.

    Most geometries occur twice, with their hydrogens exchanged.

    Args:
        n_bonds: lengths of each bond, 1.0 … 1.2 Å; every pair with three angles.
    """
    frames = []
    lengths = np.linspace(1.0, 1.2, n_bonds)
    for first, second, angle in product(lengths, lengths, np.deg2rad([95, 110, 125])):
        tip = [second * np.cos(angle), second * np.sin(angle), 0.0]
        for spin in (1, 3):
            atoms = Atoms("CHH", [[0.0] * 3, [first, 0.0, 0.0], tip])
            frames.append(label_toy(set_state(atoms, charge=0, spin=spin)))
    return frames


def label_toy(atoms: Atoms) -> Atoms:
    """Write the toy energy and forces of a molecule into it, and return it."""
    state = read_state(atoms, strict=True)
    energy, forces = toy_surface(atoms, state.charge, state.multiplicity)
    atoms.info["REF_energy"] = energy
    atoms.info["level_of_theory"] = "toy"
    atoms.arrays["REF_forces"] = forces
    return atoms


def toy_surface(
    atoms: Atoms, charge: int, multiplicity: int
) -> tuple[float, NDArray[np.float64]]:
    """Return energy (eV) and forces (n_atoms, 3) (eV/Å) of the toy surface."""
    depth = 3.0 - 0.4 * charge - 0.2 * (multiplicity - 1)
    stretch = 1.0 + 0.03 * (multiplicity - 1) + 0.02 * charge
    radii = covalent_radii[atoms.numbers]
    i, j = np.triu_indices(len(atoms), 1)
    vectors = atoms.positions[j] - atoms.positions[i]
    lengths = np.linalg.norm(vectors, axis=1)
    ideal = stretch * (radii[i] + radii[j])
    decay = np.exp(-2.0 * (lengths - ideal))
    energy = sum(ATOMS[int(z)] for z in atoms.numbers) + float(
        (depth * (decay**2 - 2.0 * decay)).sum()
    )
    slope = depth * -4.0 * (decay**2 - decay)
    pull = (slope / lengths)[:, None] * vectors
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, pull)
    np.add.at(forces, j, -pull)
    return energy + 0.3 * charge + 0.1 * multiplicity, forces

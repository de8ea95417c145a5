"""Calculators of two states whose crossings are known, for tests of the search."""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from mlff.state import read_state

SINGLET, TRIPLET = (0, 1), (0, 3)
BOTH = [SINGLET, TRIPLET]


class Pairs(Calculator):
    """Energies of distances between pairs of atoms, another function in each state.

    Reads the state from ``atoms.info``; ASE's cache sees what changes there only
    through the charges and moments that ``set_state`` writes.

    Args:
        wells: by (charge, multiplicity): function of all distances, Å, that returns
            energy, eV, and derivatives, eV/Å.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, wells):
        super().__init__()
        self.wells = wells
        self.asked = []

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        state = read_state(atoms)
        i, j = np.triu_indices(len(atoms), 1)
        vectors = atoms.positions[i] - atoms.positions[j]
        distances = np.linalg.norm(vectors, axis=1)
        self.asked.append((state.charge, state.multiplicity))
        energy, slopes = self.wells[self.asked[-1]](distances)
        pull = (slopes / distances)[:, None] * vectors
        forces = np.zeros_like(atoms.positions)
        np.add.at(forces, i, -pull)
        np.add.at(forces, j, pull)
        self.results = {"energy": float(energy), "forces": forces}


def well(center, stiffness=8.0, energy=0.0):
    """A harmonic well in the distances."""
    center = np.asarray(center, float)

    def values(distances):
        off = distances - center
        return energy + 0.5 * (stiffness * off**2).sum(), stiffness * off

    return values


#: Distances C-H, C-H, H-H of two wells, and the lower end of the second, eV.
BENT, WIDE, OFFSET = np.array([1.11, 1.11, 1.70]), np.array([1.02, 1.02, 1.95]), -0.4


def bent_and_wide(states=BOTH, stiffness=8.0):
    """Two wells of one stiffness: the seam is a plane in the distances."""
    wells = (well(BENT, stiffness), well(WIDE, stiffness, OFFSET))
    return Pairs(dict(zip(states, wells, strict=True)))


def lowest_crossing(stiffness=8.0):
    """Distances of their lowest crossing, by hand.

    With ``d = b - a``, ``E_a - E_b = k d (q - (a + b)/2) - offset`` and the mean is
    harmonic about ``(a + b)/2``: the nearest point of the plane to it.
    """
    d = WIDE - BENT
    return 0.5 * (BENT + WIDE) + OFFSET / (stiffness * d @ d) * d


def methylene(first=1.1, second=1.1, angle=110.0):
    """CH2 without a state, carbon first."""
    radians = np.deg2rad(angle)
    places = [
        [0.0, 0.0, 0.0],
        [first, 0.0, 0.0],
        [second * np.cos(radians), second * np.sin(radians), 0.0],
    ]
    return Atoms("CH2", places)


def distances(atoms):
    """Of all pairs, Å."""
    i, j = np.triu_indices(len(atoms), 1)
    return np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)

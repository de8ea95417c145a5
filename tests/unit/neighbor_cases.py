"""Batches that the tests of neighbor lists share."""

import numpy as np
from ase import Atoms

from mlff.batch import AtomsBatch
from mlff.neighbors import BACKENDS

#: Back ends that know cells.
CELL_LISTS = [name for name in BACKENDS if name != "all_pairs"]


def batch_of(systems):
    """Helium has an even number of electrons: any number of atoms is a singlet."""
    return AtomsBatch.from_atoms(systems, charge=0, spin=1)


def molecules(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return batch_of([Atoms(f"He{n}", 3.0 * rng.random((n, 3))) for n in sizes])


def crystals(*sizes, edge=4.0, seed=0):
    rng = np.random.default_rng(seed)
    return batch_of(
        [
            Atoms(f"He{n}", edge * rng.random((n, 3)), cell=[edge] * 3, pbc=True)
            for n in sizes
        ]
    )

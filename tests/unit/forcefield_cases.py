"""Systems and potentials that the tests of repeated evaluation share."""

import itertools

import numpy as np
import torch
from ase import Atoms

from mlff.neighbors import neighbor_list
from mlff.potential import Potential, TrainingInfo
from mlff.testing.cases import sample_systems

INFO = TrainingInfo(
    elements=(1, 6, 8), states=((-1, 2), (0, 1), (0, 2), (0, 3), (1, 2), (2, 1))
)
REFERENCES = {1: -13.6, 6: -1027.0, 8: -2041.0}


def built(scope="global", dtype=torch.float64):
    torch.manual_seed(0)
    options = {"n_features": 16, "n_layers": 2, "n_radial": 8, "scope": scope}
    made = Potential.build({"name": "cmret", **options}, REFERENCES, INFO, dtype)
    return made.eval().requires_grad_(False)


def crystal(n, seed, edge=6.0):
    rng = np.random.default_rng(seed)
    grid = np.array(list(itertools.product(range(3), repeat=3)))[:n] * edge / 3
    atoms = Atoms(f"C{n}", grid + rng.normal(0, 0.1, (n, 3)), cell=[edge] * 3, pbc=True)
    atoms.info.update(charge=0, spin=1)
    return atoms


def chain(n_carbons):
    """A rattled chain of CH2, larger than what lists of all pairs are for."""
    unit = np.array([[0, 0, 0], [0, 0.9, 0.6], [0, -0.9, 0.6]])
    places = np.concatenate(
        [unit + np.array([1.27 * k, 0, 0]) for k in range(n_carbons)]
    )
    atoms = Atoms("CH2" * n_carbons, places)
    atoms.rattle(0.05, seed=n_carbons)
    atoms.info.update(charge=0, spin=1)
    return atoms


def shuffled(systems, seed=0):
    order = np.random.default_rng(seed).permutation(len(systems))
    return [systems[k] for k in order]


def moved(batch, seed, scale=0.05):
    rng = np.random.default_rng(seed)
    step = torch.from_numpy(rng.normal(0, scale, (batch.n_atoms, 3)))
    return batch.replace(positions=batch.positions + step)


def alone(potential, batch, properties=("energy", "forces")):
    """Every system in a call of its own, with a fresh list."""
    out = []
    for k in range(batch.n_systems):
        one = batch.select([k])
        out.append(potential(one, neighbor_list(one, potential.cutoff), properties))
    return {name: torch.cat([one[name] for one in out]) for name in properties}


def counted(potential):
    """Count the systems of every call from here on."""
    calls = []
    potential.register_forward_pre_hook(lambda _, args: calls.append(args[0].n_systems))
    return calls


MIXED = [*sample_systems() * 2, *sample_systems(7)]
LARGE = [crystal(8, 0), *sample_systems(), chain(14), crystal(27, 1), chain(12)]

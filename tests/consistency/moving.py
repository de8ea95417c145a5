"""What the tests of dynamics share: a potential, molecules in many states."""

import itertools

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from mlff.potential import Potential, TrainingInfo
from mlff.state import set_state

STATES = tuple(itertools.product(range(-2, 3), range(1, 8)))


def random_potential(dtype=torch.float64, **options) -> Potential:
    """Random weights with forces of some eV/Å, so that 50 steps go somewhere."""
    model = {"name": "cmret", "n_features": 8, "n_layers": 2, "n_radial": 8, **options}
    info = TrainingInfo(elements=(1, 6, 7, 8), states=STATES)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        potential = Potential.build(model, {}, info, dtype)
        torch.nn.init.normal_(potential.heads["energy"].linear.weight, std=4.0)
    return potential.eval().requires_grad_(False)


def molecules(n: int) -> list[Atoms]:
    """Different molecules in different states, moving, sizes mixed."""
    names = [
        name
        for name in g2.names
        if set(molecule(name).symbols) <= set("HCNO") and len(molecule(name)) > 1
    ]
    rng = np.random.default_rng(3)
    out = []
    for index, name in enumerate(names[:n]):
        atoms = molecule(name)
        atoms.set_initial_magnetic_moments(None)
        charge = (0, 1, -1)[index % 3]
        odd = (int(atoms.numbers.sum()) - charge) % 2
        set_state(atoms, charge, (2 if odd else 1) + 2 * (index % 2))
        momenta = rng.normal(size=(len(atoms), 3))
        atoms.set_momenta(momenta * np.sqrt(0.04 * atoms.get_masses())[:, None])
        out.append(atoms)
    return out

"""What the tests of the calculator share: small potentials, systems, one refusal."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms

from mlff.calculator import MLFFCalculator
from mlff.potential import Potential, TrainingInfo

#: Every state that these tests ask about, so that none is reported as unseen.
STATES = tuple(itertools.product(range(-3, 4), range(1, 18)))


def build(dtype=torch.float64, states=STATES, **options):
    """A small potential for H, C and O whose forces are strong enough to test."""
    model = {"name": "cmret", "n_features": 8, "n_layers": 2, "n_radial": 8, **options}
    info = TrainingInfo(elements=(1, 6, 8), states=states)
    references = {1: -13.6, 6: -1027.0, 8: -2040.0}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        potential = Potential.build(model, references, info, dtype)
        torch.nn.init.normal_(potential.heads["energy"].linear.weight, std=20.0)
    return potential.eval().requires_grad_(False)


def with_state(atoms, charge=0, spin=1):
    atoms.info.update(charge=charge, spin=spin)
    return atoms


def carbene(spin=3):
    places = [[0.02, -0.01, 0.1], [0.0, 0.98, -0.33], [0.05, -0.93, -0.31]]
    return with_state(Atoms("CH2", places), spin=spin)


def crystal(pbc=True):
    cell = np.array([[4.1, 0.0, 0.0], [0.8, 3.9, 0.0], [-0.5, 0.6, 4.3]])
    places = np.array(
        [[0.1, 0.1, 0.2], [0.6, 0.2, 0.7], [0.3, 0.7, 0.4], [0.8, 0.8, 0]]
    )
    return with_state(Atoms("C2H2", places @ cell, cell=cell, pbc=pbc))


def energy_of(atoms, potential, **options):
    atoms = atoms.copy()
    atoms.calc = MLFFCalculator(potential, **options)
    return atoms.get_potential_energy()


def forces_of(atoms, potential):
    atoms = atoms.copy()
    atoms.calc = MLFFCalculator(potential)
    return atoms.get_forces(apply_constraint=False)


def expect_refusal(atoms, potential, error, match):
    """The error is typed, results are gone, and the Atoms are as they were."""
    calculator = MLFFCalculator(potential)
    good = carbene(spin=1)
    good.calc = calculator
    good.get_potential_energy()
    arrays = {name: array.copy() for name, array in atoms.arrays.items()}
    info = dict(atoms.info)
    atoms.calc = calculator
    for ask in (atoms.get_potential_energy, atoms.get_forces):
        with pytest.raises(error, match=match):
            ask()
        assert calculator.results == {}
        assert calculator.state_used is None
    assert atoms.info == info
    assert atoms.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(atoms.arrays[name], array)
    assert good.get_potential_energy() == energy_of(good, potential)

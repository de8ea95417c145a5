"""A CUDA device gives the numbers of the CPU."""

import numpy as np
import pytest
import torch
from ase.build import bulk

import mlff
from mlff.testing.cases import sample_systems

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def potential():
    states = ((-1, 2), (0, 1), (0, 3), (1, 2), (2, 1))
    info = mlff.TrainingInfo(elements=(1, 6), states=states)
    torch.manual_seed(0)
    options = {"name": "cmret", "n_features": 32, "n_layers": 2, "scope": "local"}
    return mlff.Potential.build(options, {}, info, torch.float64)


def test_molecules_have_the_energies_and_forces_of_the_cpu(potential):
    expected = mlff.predict(potential.cpu(), sample_systems())
    found = mlff.predict(potential.cuda(), sample_systems())
    for one, other in zip(found, expected, strict=True):
        assert one["energy"] == pytest.approx(other["energy"], abs=1e-9)
        np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-8)


def test_a_crystal_has_the_stress_of_the_cpu(potential):
    atoms = bulk("C", cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.info.update(charge=0, spin=1)
    stresses = []
    for device in ("cpu", "cuda"):
        atoms.calc = mlff.MLFFCalculator(potential, device=device)
        stresses.append(atoms.get_stress())
    np.testing.assert_allclose(stresses[1], stresses[0], atol=1e-8)

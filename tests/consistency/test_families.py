"""One word chooses the model; calculator, dynamics, relaxation and training go on."""

import numpy as np
import pytest
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from toy_training import changed, toy_config, write_toy_data

import mlff
from mlff.models import MODELS
from mlff.potential import Potential, TrainingInfo
from mlff.testing.cases import sample_systems
from mlff.train import fit

INFO = TrainingInfo(
    elements=(1, 6),
    states=tuple((q, m) for q in range(-2, 3) for m in range(1, 6)),
)
OPTIONS = {"n_features": 16, "n_layers": 2, "n_radial": 8}
FAMILIES = sorted(MODELS)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    return write_toy_data(tmp_path_factory.mktemp("data") / "toy.xyz")


@pytest.fixture(params=FAMILIES)
def potential(request):
    torch.manual_seed(0)
    options = {"name": request.param, **OPTIONS}
    built = Potential.build(
        options, {}, INFO, torch.float64, heads=("energy", "dipole")
    )
    return built.eval().requires_grad_(False)


def test_batched_dynamics_and_ase_move_alike(potential):
    """Five steps of charged and open-shell molecules of several sizes."""
    systems = sample_systems()
    rng = np.random.default_rng(0)
    for atoms in systems:
        atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * 0.3)
    options = mlff.MDOptions(progress=False)
    integrator = mlff.VelocityVerlet(timestep_fs=0.5)
    result = mlff.run_md(systems, potential, integrator, n_steps=5, options=options)
    for atoms, found in zip(systems, result.atoms, strict=True):
        alone = atoms.copy()
        alone.calc = mlff.MLFFCalculator(potential)
        VelocityVerlet(alone, 0.5 * units.fs).run(5)
        assert np.abs(alone.positions - found.positions).max() < 1e-10
        assert np.abs(alone.positions - atoms.positions).max() > 1e-3


def test_calculator_and_prediction_agree(potential):
    systems = sample_systems()
    found = mlff.predict(potential, systems, ("energy", "forces", "dipole"))
    for atoms, values in zip(systems, found, strict=True):
        atoms.calc = mlff.MLFFCalculator(potential)
        assert atoms.get_potential_energy() == pytest.approx(values["energy"], abs=1e-9)
        assert np.abs(atoms.get_forces() - values["forces"]).max() < 1e-9
        assert np.abs(atoms.get_dipole_moment() - values["dipole"]).max() < 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_file_needs_one_word(name, data_file, tmp_path):
    config = toy_config(
        data_file, tmp_path / "run", model={"name": name, **OPTIONS, "n_heads": 2}
    )
    if "n_heads" not in MODELS[name].Config.__dataclass_fields__:
        del config.model["n_heads"]
    result = fit(changed(config, epochs=3), progress=False)
    losses = np.loadtxt(
        tmp_path / "run" / "log.csv", delimiter=",", skiprows=1, usecols=2
    )
    assert losses[-1] < losses[0]
    loaded = mlff.load(tmp_path / "run" / "best.safetensors")
    assert loaded.config == result.potential.config
    assert loaded.config["model"]["name"] == name

"""The shipped CH2 model obeys the physics and is as accurate as its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.io import read
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import mlff
from mlff.demo import STATES, methylene
from mlff.potential import shipped
from mlff.region import Region
from mlff.testing import check_calculator, check_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def labels():
    return read(ROOT / "data_gen" / "ch2.xyz", ":", format="extxyz")


@pytest.mark.filterwarnings("ignore::mlff.MlffWarning")
def test_trained_weights_keep_the_model_contract():
    """In float64 only: far outside training, energies of 1e5 eV round in float32."""
    assert check_model(mlff.load("ch2", dtype=torch.float64))


@pytest.mark.filterwarnings("ignore::mlff.MlffWarning")
def test_the_calculator_keeps_the_calculator_contract():
    check_calculator(
        lambda: mlff.MLFFCalculator("ch2", dtype="float64"),
        [methylene(1.1, 120.0, 3), methylene(1.0, 100.0, 1)],
    )


def test_errors_are_those_of_the_card(labels):
    """Over all 2,000 labels, training ones included: no worse than the test errors."""
    potential = mlff.load("ch2")
    out = mlff.predict(potential, labels)
    energy = np.array(
        [o["energy"] - a.info["REF_energy"] for o, a in zip(out, labels, strict=True)]
    )
    forces = np.array(
        [o["forces"] - a.arrays["REF_forces"] for o, a in zip(out, labels, strict=True)]
    )
    stated = potential.info.metrics["test, random split"]["all"]
    assert 1e3 * np.abs(energy).mean() <= 1.05 * stated["energy_mae_meV"]
    assert 1e3 * np.abs(forces).mean() <= 1.05 * stated["forces_mae_meV_per_A"]


def test_accuracy_goal_is_met_on_unseen_points():
    metrics = mlff.load("ch2").info.metrics
    for split in ("random", "symmetry"):
        measured = metrics[f"test, {split} split"]["all"]
        assert measured["n_systems"] >= 490
        assert measured["energy_mae_meV"] <= 0.10
        assert measured["forces_mae_meV_per_A"] <= 1.0


def test_the_file_says_what_the_weights_have_seen():
    info = mlff.load("ch2").info
    assert info.elements == (1, 6)
    assert info.states == ((0, 1), (0, 3))
    assert info.level_of_theory == "b3lyp5/cc-pvdz"
    assert info.provenance["sizes"]["train"] > 1000


def test_the_file_records_the_region_of_its_own_training(labels):
    """Within its margins the errors are below 1 kcal/mol; beyond they are not."""
    potential = mlff.load("ch2")
    recorded = potential.info.region
    sizes = {(0.95, 1.2): ("C-H", "H-C"), (90.0, 140.0): ("H-C-H",)}
    for limits, names in sizes.items():
        assert all(recorded[name] == pytest.approx(limits) for name in names)
    region = Region.from_json(recorded, potential.cutoff)
    whole = Region.from_batch(mlff.AtomsBatch.from_atoms(labels), potential.cutoff)
    for key, limits in whole.ranges.items():
        assert region.ranges[key] == pytest.approx(limits, abs=0.02)
    frames = read(ROOT / "data_gen" / "ch2_surface.xyz", ":", format="extxyz")
    reasons = region.reasons(mlff.AtomsBatch.from_atoms(frames))
    out = mlff.predict(potential, frames, ("energy",))
    errors = np.array(
        [
            abs(o["energy"] - a.info["REF_energy"])
            for o, a in zip(out, frames, strict=True)
        ]
    )
    inside = np.array([not text for text in reasons])
    assert inside.sum() > 700
    assert errors[inside].max() < 0.043
    assert errors[~inside].max() > 0.5


def test_the_file_is_small_and_has_a_card():
    path = shipped()["ch2"]
    assert path.stat().st_size < 10e6
    card = path.with_suffix(".md").read_text()
    header = json.loads(json.dumps(mlff.load("ch2").info.metrics))
    value = header["test, symmetry split"]["all"]["forces_mae_meV_per_A"]
    assert f"{value:.3f}" in card


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("spin", [1, 3])
def test_turning_a_molecule_changes_nothing(spin, dtype, limit):
    """Goal P2: spread over 50 orientations, at both multiplicities."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(50):
        atoms = methylene(1.08, 125.0, spin)
        matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        atoms.positions = atoms.positions @ matrix.T
        frames.append(atoms)
    out = mlff.predict(mlff.load("ch2", dtype=dtype), frames, ("energy",))
    assert np.ptp([o["energy"] for o in out]) < limit


@pytest.mark.parametrize(
    ("dtype", "step", "limit"), [("float64", 1e-5, 1e-6), ("float32", 1e-3, 5e-3)]
)
@pytest.mark.parametrize("spin", [1, 3])
def test_forces_are_the_derivative_of_the_energy(spin, dtype, step, limit):
    """Goal P1."""
    atoms = methylene(1.12, 118.0, spin)
    atoms.rattle(0.05, seed=spin)
    frames = [atoms]
    for index in range(9):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index // 3, index % 3] += sign * step
            frames.append(moved)
    out = mlff.predict(mlff.load("ch2", dtype=dtype), frames)
    energy = np.array([o["energy"] for o in out[1:]])
    numeric = -(energy[0::2] - energy[1::2]) / (2 * step)
    assert np.abs(out[0]["forces"].ravel() - numeric).max() < limit


@pytest.mark.parametrize(("name", "spin"), STATES.items())
def test_minima_are_those_of_dft(name, spin):
    atoms = methylene(1.1, 115.0, spin)
    atoms.calc = mlff.MLFFCalculator("ch2", dtype="float64")
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    frames = read(
        shipped()["ch2"].with_name("ch2_reference.xyz"), ":2", format="extxyz"
    )
    expected = next(a for a in frames if a.info["spin"] == spin)
    assert abs(atoms.get_distance(0, 1) - expected.get_distance(0, 1)) < 1e-3
    assert abs(atoms.get_angle(1, 0, 2) - expected.get_angle(1, 0, 2)) < 0.1
    assert abs(atoms.get_potential_energy() - expected.info["REF_energy"]) < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("spin", [1, 3])
def test_energy_and_angular_momentum_are_conserved(spin):
    """Goals P10 and P12: 1 ps at 0.25 fs from 300 K, no rotation at the start."""
    atoms = methylene(1.08, 130.0 if spin == 3 else 100.0, spin)
    atoms.calc = mlff.MLFFCalculator("ch2", dtype="float64")
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    rng = np.random.default_rng(spin)
    thermalize_momenta(atoms, 300, exact_temperature=True, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    times, total, angular = [], [], []
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)

    def record():
        times.append(dynamics.get_number_of_steps() * 0.25e-3)
        total.append(1e3 * atoms.get_total_energy() / len(atoms))
        angular.append(np.linalg.norm(atoms.get_angular_momentum()))

    dynamics.attach(record, interval=10)
    dynamics.run(4000)
    assert abs(np.polyfit(times, total, 1)[0]) < 0.05
    assert np.ptp(total) < 2.0
    assert max(angular) < 1e-5


@pytest.mark.slow
def test_energy_error_falls_fourfold_when_the_time_step_halves():
    """Goal P11: velocity Verlet is of second order on this surface."""
    spreads = []
    for timestep in (0.5, 0.25):
        atoms = methylene(1.12, 120.0, 3)
        atoms.calc = mlff.MLFFCalculator("ch2", dtype="float64")
        total = []
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
        dynamics.attach(lambda a=atoms, t=total: t.append(a.get_total_energy()))
        dynamics.run(round(100 / timestep))
        spreads.append(np.std(total))
    assert 3.5 < spreads[0] / spreads[1] < 4.5

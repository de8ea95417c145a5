"""The shipped CH2 model against the physics it must obey.

python benchmarks/physics.py [--picoseconds 10]

Rotation spread of the energy (default embedding and the paper's), forces against
central differences, energy conservation and angular momentum of both states.
"""

import argparse
import json

import numpy as np
import torch
from ase import units
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

import mlff
from mlff.demo import STATES, methylene

ROTATIONS = 200


def rotations(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
        out.append(matrix * np.sign(np.diag(upper)))
    return out


def rotation_spread(potential: mlff.Potential, spin: int) -> float:
    """Largest minus smallest energy of one geometry over orientations, eV."""
    frames = []
    for matrix in rotations(ROTATIONS):
        atoms = methylene(1.08, 125.0, spin)
        atoms.positions = atoms.positions @ matrix.T
        frames.append(atoms)
    energies = [out["energy"] for out in mlff.predict(potential, frames, ("energy",))]
    return float(np.ptp(energies))


def force_error(potential: mlff.Potential, step: float) -> float:
    """Largest deviation from central differences over 40 geometries, eV/Å."""
    rng = np.random.default_rng(1)
    worst = 0.0
    for index in range(40):
        atoms = methylene(
            rng.uniform(0.95, 1.2), rng.uniform(90, 140), 1 + 2 * (index % 2)
        )
        atoms.rattle(0.05, seed=index)
        frames = [atoms]
        for k in range(9):
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[k // 3, k % 3] += sign * step
                frames.append(moved)
        out = mlff.predict(potential, frames)
        energy = np.array([o["energy"] for o in out[1:]])
        numeric = -(energy[0::2] - energy[1::2]) / (2 * step)
        worst = max(worst, float(np.abs(out[0]["forces"].ravel() - numeric).max()))
    return worst


def conservation(spin: int, picoseconds: float, dtype: torch.dtype) -> dict[str, float]:
    """NVE at 0.25 fs from 300 K, no rotation at the start."""
    atoms = methylene(1.08, 130.0 if spin == 3 else 100.0, spin)
    atoms.calc = mlff.MLFFCalculator("ch2", dtype=dtype)
    from ase.optimize import BFGS

    BFGS(atoms, logfile=None).run(fmax=1e-4)
    rng = np.random.default_rng(spin)
    thermalize_momenta(atoms, 300, exact_temperature=True, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    times, total, spin_l = [], [], []
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)

    def record() -> None:
        times.append(dynamics.get_number_of_steps() * 0.25e-3)
        total.append(1e3 * atoms.get_total_energy() / 3)
        spin_l.append(np.linalg.norm(atoms.get_angular_momentum()))

    dynamics.attach(record, interval=20)
    dynamics.run(round(picoseconds * 4000))
    slope, offset = np.polyfit(times, total, 1)
    residual = np.array(total) - slope * np.array(times) - offset
    return {
        "drift_meV_per_atom_per_ps": float(slope),
        "fluctuation_meV_per_atom": float(residual.std()),
        "largest_angular_momentum_amu_A2_per_ase_time": float(max(spin_l)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picoseconds", type=float, default=10.0)
    picoseconds = parser.parse_args().picoseconds
    torch.set_num_threads(1)
    double = mlff.load("ch2", dtype=torch.float64)
    single = mlff.load("ch2", dtype=torch.float32)
    config = {**double.config["model"], "charge_spin": "cmret"}
    torch.manual_seed(0)
    paper = mlff.Potential.build(config, {}, double.info, torch.float64)
    report = {
        "rotation_spread_eV": {
            "internal, triplet, float64": rotation_spread(double, 3),
            "internal, singlet, float64": rotation_spread(double, 1),
            "internal, triplet, float32": rotation_spread(single, 3),
            "cmret (random weights), triplet, float64": rotation_spread(paper, 3),
            "cmret (random weights), singlet, float64": rotation_spread(paper, 1),
        },
        "force_error_eV_per_A": {
            "float64": force_error(double, 1e-5),
            "float32": force_error(single, 1e-3),
        },
        "nve": {
            f"{name}, {str(dtype)[6:]}": conservation(spin, picoseconds, dtype)
            for name, spin in STATES.items()
            for dtype in (torch.float32, torch.float64)
        },
        "picoseconds": picoseconds,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

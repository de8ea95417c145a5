"""CPU time of one MD step and of one batched call, at the size peers are measured at.

python benchmarks/speed.py [--repeats 7]

128 features, 6 layers, 5 Å, 50 radial functions, float32, random weights, one thread.
"""

import argparse
import json
import platform
import time

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin

import mlff
from mlff.neighbors import neighbor_list

SIZE = {"name": "cmret", "n_features": 128, "n_layers": 6, "n_radial": 50}
INFO = mlff.TrainingInfo(elements=(1, 6, 8), states=((0, 1),))


def methylene(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(0.95, 1.20, 2)
    angle = np.deg2rad(rng.uniform(90, 140))
    far = [second * np.cos(angle), second * np.sin(angle), 0]
    atoms = Atoms("CH2", positions=[[0, 0, 0], [first, 0, 0], far])
    atoms.info.update(charge=0, spin=1)
    return atoms


def blob(n_atoms: int, seed: int) -> Atoms:
    """C, H and O at molecular density, no pair closer than 1 Å."""
    rng = np.random.default_rng(seed)
    radius = 1.15 * n_atoms ** (1 / 3)
    points = [np.zeros(3)]
    while len(points) < n_atoms:
        point = rng.uniform(-radius, radius, 3)
        if min(np.linalg.norm(point - p) for p in points) > 1.0:
            points.append(point)
    numbers = ([6] * 9 + [1] * 8 + [8] * 4)[:n_atoms]
    atoms = Atoms(numbers, positions=points)
    atoms.info.update(charge=0, spin=1)
    return atoms


class Nothing(Calculator):
    """What ASE itself costs."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def md_step(atoms: Atoms, calculator: Calculator, steps: int) -> float:
    """CPU milliseconds of one Langevin step."""
    atoms = atoms.copy()
    atoms.set_masses([1e5] * len(atoms))  # random forces must not scatter the atoms
    atoms.calc = calculator
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False
    )
    dynamics.run(3)
    start = time.process_time()
    dynamics.run(steps)
    return 1e3 * (time.process_time() - start) / steps


def batched(potential: mlff.Potential, systems: list[Atoms]) -> dict[str, float]:
    """CPU milliseconds of conversion + list, and of the model call."""
    start = time.process_time()
    batch = mlff.AtomsBatch.from_atoms(systems)
    edges = neighbor_list(batch, potential.cutoff)
    middle = time.process_time()
    potential(batch, edges)
    end = time.process_time()
    return {"convert_ms": 1e3 * (middle - start), "model_ms": 1e3 * (end - middle)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    potential = mlff.Potential.build(SIZE, {}, INFO).eval().requires_grad_(False)
    calculator = mlff.MLFFCalculator(potential)
    cases = {"CH2": methylene(3), "21 atoms": blob(21, 3)}
    batches = {
        "256 x CH2": [methylene(k) for k in range(256)],
        "64 x 21 atoms": [blob(21, k) for k in range(64)],
    }
    rows: dict[str, list] = {}
    for _ in range(repeats):
        for name, atoms in cases.items():
            rows.setdefault(f"{name}: MD step", []).append(
                md_step(atoms, calculator, 25)
            )
            rows.setdefault(f"{name}: MD step, ASE alone", []).append(
                md_step(atoms, Nothing(), 25)
            )
        for name, systems in batches.items():
            for part, value in batched(potential, systems).items():
                rows.setdefault(f"{name}: {part[:-3]}", []).append(value)
    report = {
        "cpu_ms_median": {k: round(float(np.median(v)), 3) for k, v in rows.items()},
        "repeats": repeats,
        "parameters": sum(p.numel() for p in potential.parameters()),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

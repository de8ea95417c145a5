"""Relaxing many CH2 at once against ASE one by one, in one run.

python benchmarks/relaxation.py [--systems 1000] [--sample 20] [--device cpu]

The shipped model, both states, distorted geometries, forces below 0.01 eV/Å.
"""

import argparse
import json
import platform
import time

import numpy as np
import torch
from ase import Atoms, optimize

import mlff
from mlff.forcefield import ForceField
from mlff.relaxation import RelaxOptions, flight

ASE = {"lbfgs": optimize.LBFGS, "fire": optimize.FIRE2}


def methylene(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(0.95, 1.3, 2)
    angle = np.deg2rad(rng.uniform(85, 145))
    far = [second * np.cos(angle), second * np.sin(angle), 0]
    atoms = Atoms("CH2", positions=[[0, 0, 0], [first, 0, 0], far])
    return mlff.set_state(atoms, 0, 1 + 2 * (seed % 2))


class Counted(ForceField):
    """Counts the systems that were evaluated."""

    evaluated = 0

    def __call__(self, batch):
        Counted.evaluated += batch.n_systems
        return super().__call__(batch)


def clock(potential) -> float:
    """CPU seconds of this process, which others do not disturb; time on a GPU."""
    if potential.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(potential.device)
    return time.perf_counter()


def batched(potential, systems, optimizer, max_systems) -> tuple[dict, list]:
    Counted.evaluated = 0
    options = RelaxOptions(progress=False, max_systems=max_systems)
    begun = clock(potential)
    found = mlff.relax(systems, potential, optimizer=optimizer, options=options)
    seconds = clock(potential) - begun
    steps = [one.n_steps for one in found]
    row = {
        "seconds": round(seconds, 3),
        "ms_per_system": round(1e3 * seconds / len(systems), 4),
        "converged": sum(one.converged for one in found),
        "mean_steps": round(float(np.mean(steps)), 2),
        "max_steps": max(steps),
        "evaluations_over_needed": round(
            Counted.evaluated / (sum(steps) + len(systems)), 3
        ),
    }
    return row, found


def one_by_one(potential, systems, optimizer) -> tuple[dict, list[float]]:
    calculator = mlff.MLFFCalculator(potential)
    steps, energies, spent = [], [], []
    for atoms in systems:
        atoms = atoms.copy()
        atoms.calc = calculator
        begun = clock(potential)
        method = ASE[optimizer](atoms, logfile=None)
        method.run(fmax=0.01, steps=500)
        spent.append(clock(potential) - begun)
        steps.append(method.nsteps)
        energies.append(atoms.get_potential_energy())
    row = {
        "sample": len(systems),
        "ms_per_system": round(1e3 * float(np.mean(spent)), 3),
        "mean_steps": round(float(np.mean(steps)), 2),
    }
    return row, energies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--max-systems", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    flight.ForceField = Counted
    potential = mlff.load("ch2", device=options.device)
    systems = [methylene(k) for k in range(options.systems)]
    # An odd stride, so that both states are in the sample.
    stride = max(options.systems // options.sample - 1, 1) | 1
    chosen = list(range(0, options.systems, stride))[: options.sample]
    mlff.relax(systems[:20], potential, options=RelaxOptions(progress=False))
    report = {}
    for optimizer in ASE:
        together, found = batched(potential, systems, optimizer, options.max_systems)
        alone, energies = one_by_one(potential, [systems[k] for k in chosen], optimizer)
        gaps = [abs(found[k].energy - e) for k, e in zip(chosen, energies, strict=True)]
        report[optimizer] = {
            "batched": together,
            "ase": alone,
            "ratio": round(alone["ms_per_system"] / together["ms_per_system"], 1),
            "max_energy_difference_meV": round(1e3 * max(gaps), 4),
        }
    report |= {
        "systems": options.systems,
        "device": options.device,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

"""Neighbor work as a share of a step of dynamics.

Atoms fly straight on with the velocities of 300 K, 0.5 fs a step: faster apart than in
any bound system, so that lists are rebuilt more often than in dynamics. List and model
are timed on the same batches, with random weights; CPU time of all threads, which other
processes do not change.

Two shares of a step are given: the time for lists, and this with the time that the
model spends on pairs in the skin, beyond its cutoff.

python benchmarks/neighbors_share.py [--steps 60] [--skin 0.1] [--atoms 5000]
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator

import numpy as np
import torch
from ase import Atoms, units
from ase.data import atomic_masses
from speed import INFO, blob, methylene

import mlff
from mlff.batch import AtomsBatch, Edges
from mlff.forcefield import SKIN
from mlff.neighbors import neighbor_list
from mlff.neighbors.verlet import NeighborList

MODEL = {"name": "cmret", "n_features": 64, "n_layers": 3, "n_radial": 32}

# Å^-3: organic liquids.
DENSITY = 0.1

COLUMNS = ("list", "list_and_skin")

# Model calls that are timed; the list is timed at every step.
CALLS = 3


def box(n_atoms: int, seed: int) -> Atoms:
    """C, H and O on a disordered lattice, periodic."""
    rng = np.random.default_rng(seed)
    n = round(n_atoms ** (1 / 3))
    spacing = DENSITY ** (-1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3), -1).reshape(-1, 3) * spacing
    numbers = rng.permutation(np.resize([6] * 9 + [1] * 8 + [8] * 4, n**3))
    positions = grid + rng.normal(0, 0.1 * spacing, grid.shape)
    atoms = Atoms(numbers, positions, cell=[n * spacing] * 3, pbc=True)
    odd = int(numbers.sum() % 2)
    atoms.info.update(charge=odd, spin=1)
    return atoms


def flight(batch: AtomsBatch, steps: int) -> Iterator[AtomsBatch]:
    masses = torch.from_numpy(atomic_masses)[batch.numbers][:, None]
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(batch.n_atoms, 3)))
    velocities = noise * torch.sqrt(units.kB * 300 / masses)
    for step in range(steps):
        moved = batch.positions + step * 0.5 * units.fs * velocities
        yield batch.replace(positions=moved)


def in_skin(batch: AtomsBatch, edges: Edges, cutoff: float) -> float:
    """Part of the pairs that only the skin adds; no pair of an isolated molecule."""
    if not batch.periodic:
        return 0.0
    exact = neighbor_list(batch, cutoff)
    return 1.0 - exact.n_edges / edges.n_edges


def measure(
    potential: mlff.Potential, systems: list[Atoms], steps: int, skin: float
) -> dict:
    batch = AtomsBatch.from_atoms(systems)
    listed = NeighborList(potential.cutoff, skin)
    spent, model = [], []
    for step, moved in enumerate(flight(batch, steps)):
        start = time.process_time()
        edges = listed.update(moved)
        spent.append(time.process_time() - start)
        if step <= CALLS:  # the first warms up
            start = time.process_time()
            potential(moved, edges)
            model.append(time.process_time() - start)
    per_step, call = np.mean(spent), np.median(model[1:])
    step_time = per_step + call
    wasted = per_step + in_skin(moved, edges, potential.cutoff) * call
    return {
        "atoms": batch.n_atoms,
        "edges": edges.n_edges,
        "steps": steps,
        "builds": listed.builds,
        "build_ms": round(1e3 * float(np.max(spent)), 2),
        "list_ms_per_step": round(1e3 * float(per_step), 3),
        "model_ms_per_step": round(1e3 * float(call), 1),
        "list_percent": round(100 * float(per_step / step_time), 2),
        "list_and_skin_percent": round(100 * float(wasted / step_time), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--skin", type=float, default=SKIN["cpu"])
    parser.add_argument("--atoms", type=int, default=5000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cases = {
        "1000 x CH2": ("global", [methylene(k) for k in range(1000)]),
        "64 x 21 atoms": ("global", [blob(21, k) for k in range(64)]),
        "one periodic box": ("local", [box(arguments.atoms, 0)]),
    }
    rows = {}
    print(f"{'':18}{'list':>13}{'model':>13}{'list':>9}{'with skin':>10}")
    for name, (scope, systems) in cases.items():
        potential = mlff.Potential.build({**MODEL, "scope": scope}, {}, INFO)
        potential.eval().requires_grad_(False)
        rows[name] = measure(potential, systems, arguments.steps, arguments.skin)
        shown = ("list_ms_per_step", "model_ms_per_step")
        times = (f"{rows[name][key]:9.2f} ms" for key in shown)
        shares = (f"{rows[name][f'{key}_percent']:6.2f} %" for key in COLUMNS)
        print(f"{name:18}", *times, *shares)
    about = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "skin_A": arguments.skin,
    }
    print(json.dumps({**rows, **about}, indent=1))


if __name__ == "__main__":
    main()

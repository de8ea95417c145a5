"""Batched dynamics against ASE one by one, as ratios in one run.

python benchmarks/throughput.py [--threads 2] [--sizes 10 100 1000 10000] [--device cpu]

The shipped model on CH2, half singlets, half triplets, Langevin at 300 K and 0.5 fs, as
``mlff.run_md`` runs it, frames every 10 steps in memory. ASE moves one of the molecules
with ``ase.md.langevin`` and ``MLFFCalculator``. Also the share of a step that is not
the model's, and the memory that a molecule takes.
"""

import argparse
import json
import platform
import subprocess
import sys
import time

import numpy as np
import torch
from ase import units
from ase.md.langevin import Langevin as ASELangevin

import mlff
from mlff.demo import methylene
from mlff.forcefield import ForceField
from mlff.md import MDOptions


def carbenes(n):
    rng = np.random.default_rng(0)
    return [
        methylene(rng.uniform(1.0, 1.15), rng.uniform(95, 140), (1, 3)[k % 2])
        for k in range(n)
    ]


class Timed(ForceField):
    """A force field that adds up the time it takes."""

    spent = 0.0

    def __call__(self, batch):
        start = now(batch.positions.device)
        out = super().__call__(batch)
        Timed.spent += now(batch.positions.device) - start
        return out


def now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ase_seconds(potential, steps):
    atoms = carbenes(2)[1]
    atoms.calc = mlff.MLFFCalculator(potential)
    dynamics = ASELangevin(
        atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False
    )
    dynamics.run(10)
    start = time.perf_counter()
    dynamics.run(steps)
    return (time.perf_counter() - start) / steps


def batched_seconds(potential, n, steps):
    """Seconds of a step, from the difference of a long and a short run."""
    integrator = mlff.Langevin(timestep_fs=0.5, temperature_K=300)
    systems = carbenes(n)
    spent = {}
    for length in (2, 2 + steps):
        Timed.spent = 0.0
        start = now(potential.device)
        mlff.run_md(
            systems,
            potential,
            integrator,
            n_steps=length,
            options=MDOptions(progress=False),
        )
        spent[length] = now(potential.device) - start, Timed.spent
    long, short = spent[2 + steps], spent[2]
    return (long[0] - short[0]) / steps, (long[1] - short[1]) / steps


def peak_megabytes(n):
    """Largest resident memory of a process that runs n molecules for a few steps."""
    code = (
        "import mlff, torch; torch.set_num_threads(1);"
        "from throughput import carbenes; from mlff.md import MDOptions;"
        f"mlff.run_md(carbenes({n}), mlff.load('ch2'), mlff.Langevin("
        "timestep_fs=0.5, temperature_K=300), n_steps=5,"
        "options=MDOptions(progress=False));"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=__file__.rpartition("/")[0] or ".",
        capture_output=True,
        text=True,
        check=True,
    )
    return int(out.stdout.split()[-1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    potential = mlff.load("ch2", options.device)
    mlff.md.ForceField = Timed
    batched_seconds(potential, 10, 5)  # what the first call of a process costs
    single, rows = [], {n: [] for n in options.sizes}
    for _ in range(options.repeats):
        single.append(ase_seconds(potential, 200))
        for n in options.sizes:
            steps = max(5, min(200, 20_000 // n))
            rows[n].append(batched_seconds(potential, n, steps))
    ase = float(np.median(single))
    table = []
    for n, found in rows.items():
        step, model = np.median(np.array(found), axis=0)
        table.append(
            {
                "molecules": n,
                "ms_per_step": round(1e3 * step, 3),
                "us_per_molecule_step": round(1e6 * step / n, 2),
                "ratio_to_ase": round(ase * n / step, 1),
                "share_outside_the_model": round(1.0 - model / step, 3),
            }
        )
    report = {
        "ase_ms_per_step": round(1e3 * ase, 3),
        "batched": table,
        "threads": options.threads,
        "device": options.device,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "repeats": options.repeats,
    }
    if options.device == "cpu":
        few, many = peak_megabytes(100), peak_megabytes(10_000)
        report["peak_MB"] = {"100": round(few), "10000": round(many)}
        report["kB_per_molecule"] = round(1024 * (many - few) / 9900, 1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

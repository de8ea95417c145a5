"""Resident memory of a process over many calculator calls.

python benchmarks/memory.py [--calls 100000]
"""

import argparse
import json
import resource

import numpy as np
import torch

import mlff
from mlff.demo import methylene


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    calls = parser.parse_args().calls
    torch.set_num_threads(1)
    atoms = methylene(1.1, 120.0, 3)
    atoms.calc = mlff.MLFFCalculator("ch2")
    rng = np.random.default_rng(0)
    start = atoms.positions.copy()
    marks = {}
    for call in range(calls + 1):
        if call in (1000, calls // 2, calls):
            marks[call] = round(resident_mb(), 1)
        atoms.positions = start + rng.normal(0, 0.01, (3, 3))
        atoms.get_forces()
    print(json.dumps({"resident_MB_after_calls": marks}))


if __name__ == "__main__":
    main()

"""Whether forces of ``states`` are wrong where two states of a multiplicity come close.

python benchmarks/kinks.py [--workers 2]

The model gives the lowest state of a charge and multiplicity. Where another one of the
same multiplicity has the same energy, its surface has a kink, which no smooth function
of the geometry can follow. Four of the eleven states have force errors above 30 meV/Å;
of the molecule in each that has most of them the lowest excitation within the
multiplicity (Tamm-Dancoff, at the level of the labels) stands beside the force error,
label by label; below it what the other molecules have in the same states. Found are
kept in --out; a killed benchmark goes on.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from ase import units
from tqdm import tqdm

import mlff
from mlff.dft import DFTSettings, check_input
from mlff.frames import read_frames
from mlff.scf import named_level, solve

LABELS = Path(__file__).parent.parent / "data_gen" / "states_test.xyz"
KINKED = (("CH4", 0, 3), ("CH3", 0, 4), ("CH4", 1, 2), ("O2", 1, 4))
EDGES = (-np.inf, 0.25, 0.5, 1.0, np.inf)


def lowest_excitation(index: int) -> float:
    """Lowest excitation energy of a label within its multiplicity, eV."""
    torch.set_num_threads(1)
    atoms = read_frames(LABELS)[index]
    settings = DFTSettings(**named_level(atoms.info["level_of_theory"]))
    field = solve(atoms, check_input(atoms, settings), settings).field
    excited = field.TDA()
    excited.nstates, excited.verbose = 3, 0
    energies, _ = excited.kernel()[:2]
    return float(np.min(energies) * units.Hartree)


def excitations(rows: list[int], out: Path, workers: int) -> dict[int, float]:
    """Those of some labels, by row; what is in the file is taken from there."""
    found = {}
    if out.exists():
        found = {int(k): float(v) for k, v in json.loads(out.read_text()).items()}
    left = [row for row in rows if row not in found]
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        each = zip(left, pool.map(lowest_excitation, left), strict=True)
        for row, energy in tqdm(each, total=len(left)):
            found[row] = energy
            out.write_text(json.dumps(found))
    return found


def main() -> None:
    """Print force errors by the distance of the next state."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/kinks.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_frames(LABELS)
    kind = [
        (a.info["config_type"], int(a.info["charge"]), int(a.info["spin"]))
        for a in frames
    ]
    rows = [k for k, one in enumerate(kind) if one in KINKED]
    energies = excitations(rows, arguments.out, arguments.workers)
    predicted = mlff.predict(mlff.load("states"), frames)
    errors = [
        1e3 * np.abs(o["forces"] - a.arrays["REF_forces"]).ravel()
        for o, a in zip(predicted, frames, strict=True)
    ]

    def told(chosen: list[int]) -> str:
        mean = np.concatenate([errors[k] for k in chosen]).mean() if chosen else np.nan
        return f"{f'{mean:.0f} ({len(chosen)})':>14s}"

    print(
        "force error, meV/Å (labels), by the lowest excitation in eV; other molecules"
    )
    bounds = list(pairwise(EDGES))
    headings = [f"{low:g} … {high:g}" for low, high in bounds] + ["others"]
    print(" " * 14 + "".join(f"{heading:>14s}" for heading in headings))
    for one in KINKED:
        mine = [k for k in rows if kind[k] == one]
        parts = [[k for k in mine if a <= energies[k] < b] for a, b in bounds]
        parts.append([k for k, o in enumerate(kind) if o[1:] == one[1:] and o != one])
        print(f"{one!s:14s}" + "".join(map(told, parts)))


if __name__ == "__main__":
    main()

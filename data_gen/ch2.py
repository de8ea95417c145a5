"""The singlet/triplet CH2 data: a grid for training and a surface for extrapolation.

    python data_gen/ch2.py grid --workers 2       # ch2.xyz, 2,000 labels
    python data_gen/ch2.py surface --workers 2    # ch2_surface.xyz, 1,554 labels
    python data_gen/ch2.py response --workers 2   # ch2_response.xyz, 300 labels
    python data_gen/ch2.py reference              # what `mlff demo` compares with

``grid`` is that of the CMRET paper (arXiv:2308.10752, section 2.2): 10 × 10 × 10 nodes
in the two bond lengths (0.95 … 1.20 Å) and the H-C-H angle (90 … 140°), each as singlet
and as triplet. ``surface`` is the region of its Figure 3: equal bonds, 21 × 37 nodes
(0.90 … 1.40 Å, 90 … 180°), for comparison only, never for training. ``response`` is
150 points of a Sobol sequence over the box of ``grid``, both states, with
polarizabilities. The singlet is
restricted throughout; where it is unstable towards an unrestricted solution the label
says so (``stable_uks``). ``reference`` relaxes both states with DFT and takes the angle
scan at 1.10 Å from ``surface``; it ships with the model.

B3LYP with VWN5 (PySCF's ``b3lyp5``) in cc-pVDZ. A killed run continues where it was.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.optimize import BFGS
from scipy.stats import qmc

from mlff.dft import DFTCalculator, DFTSettings, label
from mlff.labels import label_frames
from mlff.state import set_state

HERE = Path(__file__).parent
SETTINGS = DFTSettings(xc="b3lyp5", basis="cc-pvdz")

#: Energy of the first frame of ``grid``, eV. Functionals have changed their meaning
#: under the same name, so every run compares before it computes.
FIRST_ENERGY = -1062.612236


def methylene(
    first: float, second: float, angle: float, spin: int, config: str
) -> Atoms:
    """Return CH2 with two bond lengths (Å), the H-C-H angle (degrees) and its state."""
    radians = np.deg2rad(angle)
    atoms = Atoms(
        "CHH",
        positions=[
            [0.0, 0.0, 0.0],
            [first, 0.0, 0.0],
            [second * np.cos(radians), second * np.sin(radians), 0.0],
        ],
    )
    atoms.info["config_type"] = config
    return set_state(atoms, charge=0, spin=spin)


def grid() -> Iterator[Atoms]:
    """Yield the training geometries, singlet and triplet of each in turn."""
    bonds = np.linspace(0.95, 1.20, 10)
    for first, second, angle in product(bonds, bonds, np.linspace(90, 140, 10)):
        for spin in (1, 3):
            yield methylene(first, second, angle, spin, "ch2_grid")


def surface() -> Iterator[Atoms]:
    """Yield the symmetric geometries of the extrapolation test."""
    for bond, angle in product(np.linspace(0.90, 1.40, 21), np.linspace(90, 180, 37)):
        for spin in (1, 3):
            yield methylene(bond, bond, angle, spin, "ch2_surface")


def response() -> Iterator[Atoms]:
    """Yield geometries that fill the box of the training geometries evenly."""
    points = qmc.Sobol(3, rng=np.random.default_rng(0)).random_base2(8)[:150]
    for first, second, angle in qmc.scale(points, [0.95, 0.95, 90], [1.20, 1.20, 140]):
        for spin in (1, 3):
            yield methylene(first, second, angle, spin, "ch2_response")


def check_level() -> None:
    """Stop if the installed PySCF computes another level of theory."""
    energy = label(next(grid()), SETTINGS).info["REF_energy"]
    if abs(energy - FIRST_ENERGY) > 1e-5:
        raise SystemExit(
            f"{SETTINGS.xc}/{SETTINGS.basis} gives {energy:.6f} eV for the first frame "
            f"of the grid, the data were made with {FIRST_ENERGY:.6f} eV"
        )


def reference(out: Path) -> None:
    """Write the DFT minima of both states and the angle scan at 1.10 Å."""
    frames = []
    for spin, angle in ((1, 100.0), (3, 133.0)):
        atoms = methylene(1.1, 1.1, angle, spin, "ch2_minimum")
        atoms.calc = DFTCalculator(SETTINGS)
        BFGS(atoms).run(fmax=1e-3)
        frames.append(label(atoms, SETTINGS))
    scanned = read(HERE / "ch2_surface.xyz", ":", format="extxyz")
    on_scan = [a for a in scanned if abs(a.get_distance(0, 1) - 1.10) < 1e-6]
    for atoms in on_scan:
        atoms.info["config_type"] = "ch2_scan"
    write(out, frames + on_scan, format="extxyz")


RECIPES = {
    "grid": (grid, "ch2.xyz", SETTINGS),
    "surface": (surface, "ch2_surface.xyz", SETTINGS),
    "response": (
        response,
        "ch2_response.xyz",
        replace(SETTINGS, polarizability=True),
    ),
}
SHIPPED = HERE.parent / "mlff" / "pretrained" / "ch2_reference.xyz"


def main() -> None:
    """Label one of the sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=(*RECIPES, "reference"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="default: beside this script")
    arguments = parser.parse_args()
    check_level()
    if arguments.recipe == "reference":
        reference(arguments.out or SHIPPED)
        return
    frames, name, settings = RECIPES[arguments.recipe]
    out = arguments.out or HERE / name
    report = label_frames(list(frames()), out, settings, workers=arguments.workers)
    print(report)
    for index, reason in report.failed:
        print(f"frame {index}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()

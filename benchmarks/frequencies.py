"""Vibrations of both states of CH2: a model against DFT at its own level.

python benchmarks/frequencies.py [--model ch2]

The model relaxes each state and takes its Hessian by automatic differentiation; PySCF
takes the analytic Hessian of B3LYP (VWN5) / cc-pVDZ at its own minimum, which ships
with the package, and infrared intensities from differences of dipoles there.
Wavenumbers in cm⁻¹, intensities in km/mol.
"""

import argparse
from importlib import resources

import numpy as np
import torch
from ase import Atoms
from ase.io import read

import mlff
from mlff.dft import DFTSettings, check_input, label
from mlff.scf import solve

SETTINGS = DFTSettings(convergence=1e-11)
STEP = 0.005


def minima() -> list[Atoms]:
    """DFT minima of both states, singlet first."""
    path = resources.files("mlff") / "pretrained" / "ch2_reference.xyz"
    frames = read(str(path), ":", format="extxyz")
    return [a for a in frames if a.info["config_type"] == "ch2_minimum"]


def by_dft(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers and modes (n_modes, n_atoms, 3), mass-weighted."""
    from pyscf.hessian import thermo

    field = solve(atoms, check_input(atoms, SETTINGS), SETTINGS).field
    hessian = field.Hessian().kernel()
    found = thermo.harmonic_analysis(field.mol, hessian, imaginary_freq=False)
    masses = field.mol.atom_mass_list(isotope_avg=True)
    modes = found["norm_mode"] * np.sqrt(masses)[:, None]
    modes /= np.linalg.norm(modes, axis=(1, 2), keepdims=True)
    return found["freq_wavenumber"], modes


def intensities(atoms: Atoms, modes: np.ndarray) -> np.ndarray:
    """Of modes, from differences of DFT dipoles along them, km/mol."""
    out = []
    roots = np.sqrt(atoms.get_masses())[:, None]
    for mode in modes:
        dipoles = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * STEP * mode / roots
            dipoles.append(label(moved, SETTINGS).info["REF_dipole"])
        slope = (dipoles[0] - dipoles[1]) / (2 * STEP)
        out.append(mlff.spectra.KM_PER_MOL * float(slope @ slope))
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ch2", help="name or file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    potential = mlff.load(arguments.model, dtype=torch.float64)
    options = mlff.RelaxOptions(progress=False)
    for start in minima():
        plain = mlff.set_state(
            Atoms(start.numbers, start.positions),
            start.info["charge"],
            start.info["spin"],
        )
        (relaxed,) = mlff.relax([plain], potential, 1e-5, options=options)
        (ours,) = mlff.vibrations([relaxed.atoms], potential)
        wavenumbers, modes = by_dft(plain)
        strengths = intensities(plain, modes)
        print(f"2S+1 = {plain.info['spin']}")
        print(f"{'DFT':>10s}{'model':>10s}{'error':>10s}{'DFT':>12s}{'model':>10s}")
        for k, wavenumber in enumerate(wavenumbers):
            mine = ours.frequencies[k]
            strength = (
                "" if ours.intensities is None else f"{ours.intensities[k]:10.2f}"
            )
            print(
                f"{wavenumber:10.2f}{mine:10.2f}{mine - wavenumber:10.2f}"
                f"{strengths[k]:12.2f}{strength}"
            )


if __name__ == "__main__":
    main()

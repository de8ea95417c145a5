"""Small molecules in many electronic states: one set of labels for one model.

    python data_gen/states.py modes                # states_modes.xyz: minima and modes
    python data_gen/states.py labels --workers 2   # states.xyz, states_test.xyz: hours
    python data_gen/states.py bound                # how well anions hold an electron

Eleven molecules with charges 0 and +1, most in the two lowest multiplicities, and
anions: see ``SPECIES``. Anions are those that experiment knows to hold the electron
(CH, NH, OH, O2, CH2, NH2, CH3), in the lowest state, CH⁻ in two: a diffuse basis gives
any other a number too, that of a neutral molecule and an electron in the largest
orbital at hand. At this level and the minimum of the neutral, NH⁻, CH2⁻ and CH3⁻ lie
0.17, 0.22 and 0.67 eV above it all the same, see ``bound``; of those that are left out
the best is H2CO⁻, 1.1 eV above. Quartets of H2O⁺, NH3⁺, CH4⁺ and H2CO⁺ are left out:
they lie more than 6 eV above the doublet, among many others. Singlets of two unpaired
electrons are broken-symmetry solutions, mixtures with the triplet.

Geometries belong to the molecule, and every state is computed at all of them, so that
ionisation energies, electron affinities and gaps are vertical differences of labels;
then come more geometries in the states that are hardest to learn. A
geometry starts somewhere between the minimum of the ground state and that of another
state (both relaxed at ``SAMPLING``), moves along the harmonic modes of the ground state
by the amplitudes of a harmonic oscillator at ``TEMPERATURE_K``, clipped at 2.5 standard
deviations, and in every third geometry one bond is drawn: see ``STRETCH``. Molecules
and states take turns, so that a part of the set is a balanced set. Every eighth of
the usual geometries, with all its states, is kept for testing, in a file of its own.

B3LYP with VWN5 (``b3lyp5``) in def2-SVPD, which has diffuse functions, unrestricted in
every state. Solutions that are not minima are followed down; what does not become one
is rejected and counted in the provenance. A killed run continues where it was.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import minimize_rotation_and_translation, molecule
from ase.io import read, write
from ase.optimize import BFGS
from scipy.stats import norm, qmc

from mlff.dft import DFTCalculator, DFTSettings, check_input, label
from mlff.labels import label_frames
from mlff.scf import NotConverged, solve
from mlff.state import set_state

HERE = Path(__file__).parent
SETTINGS = DFTSettings(xc="b3lyp5", basis="def2-svpd", reference="unrestricted")

#: Where geometries come from: cheaper, and no label.
SAMPLING = DFTSettings(
    xc="b3lyp5", basis="def2-svp", reference="unrestricted", stability=False
)
TEMPERATURE_K = 1000.0

#: Number of geometries by number of atoms.
GEOMETRIES = {2: 26, 3: 68, 4: 140, 5: 160}

#: Every third geometry has one bond drawn to this range of its length, by number of
#: atoms.
STRETCH = {2: (0.85, 1.6), 3: (0.85, 1.35), 4: (0.85, 1.35), 5: (0.85, 1.35)}

States = tuple[tuple[int, int], ...]

#: One of so many geometries is not for training.
TEST_EVERY = 8


@dataclass(frozen=True)
class Species:
    """A molecule of ASE's collection.

    Attributes:
        states: (charge, 2S+1) to label, the ground state first.
        minima: states that have a minimum of their own near by, the ground state first.
        bonds: (center, end) of the bonds that are stretched; the end moves.
        more: geometries beyond the usual number, and
        hard: the states that these are labelled in: those whose lowest surface has
            kinks (CH4⁺ and what is like it), or whose bond is drawn far.
    """

    states: States
    minima: States
    bonds: tuple[tuple[int, int], ...]
    more: int = 0
    hard: States = ()


SPECIES = {
    "CH": Species(
        ((0, 2), (0, 4), (1, 1), (1, 3), (-1, 3), (-1, 1)),
        ((0, 2), (0, 4), (1, 1), (-1, 3)),
        ((0, 1),),
    ),
    "NH": Species(
        ((0, 3), (0, 1), (1, 2), (1, 4), (-1, 2)),
        ((0, 3), (1, 2), (-1, 2)),
        ((0, 1),),
    ),
    "OH": Species(
        ((0, 2), (0, 4), (1, 3), (1, 1), (-1, 1)),
        ((0, 2), (1, 3), (-1, 1)),
        ((0, 1),),
    ),
    "O2": Species(
        ((0, 3), (0, 1), (1, 2), (1, 4), (-1, 2)),
        ((0, 3), (1, 2), (1, 4), (-1, 2)),
        ((0, 1),),
        more=26,
        hard=((0, 3), (0, 1), (1, 2), (1, 4), (-1, 2)),
    ),
    "CH2_s3B1d": Species(
        ((0, 3), (0, 1), (1, 2), (1, 4), (-1, 2)),
        ((0, 3), (0, 1), (1, 2), (-1, 2)),
        ((0, 1), (0, 2)),
    ),
    "NH2": Species(
        ((0, 2), (0, 4), (1, 3), (1, 1), (-1, 1)),
        ((0, 2), (1, 3), (1, 1), (-1, 1)),
        ((0, 1), (0, 2)),
    ),
    "H2O": Species(
        ((0, 1), (0, 3), (1, 2)),
        ((0, 1), (1, 2)),
        ((0, 1), (0, 2)),
    ),
    "CH3": Species(
        ((0, 2), (0, 4), (1, 1), (1, 3), (-1, 1)),
        ((0, 2), (1, 1), (1, 3), (-1, 1)),
        ((0, 1), (0, 2), (0, 3)),
        more=80,
        hard=((0, 4), (1, 3)),
    ),
    "NH3": Species(
        ((0, 1), (0, 3), (1, 2)),
        ((0, 1), (1, 2)),
        ((0, 1), (0, 2), (0, 3)),
        more=60,
        hard=((0, 3),),
    ),
    "CH4": Species(
        ((0, 1), (0, 3), (1, 2)),
        ((0, 1), (1, 2)),
        ((0, 1), (0, 2), (0, 3), (0, 4)),
        more=200,
        hard=((0, 3), (1, 2)),
    ),
    "H2CO": Species(
        ((0, 1), (0, 3), (1, 2)),
        ((0, 1), (0, 3), (1, 2)),
        ((1, 0), (1, 2), (1, 3)),
    ),
}


def bare(name: str, state: tuple[int, int]) -> Atoms:
    """Return a molecule of ASE's collection in a state."""
    atoms = molecule(name)
    atoms.arrays.pop("initial_magmoms", None)
    atoms.info = {"config_type": name.split("_")[0]}
    return set_state(atoms, charge=state[0], spin=state[1])


def minimum(name: str, state: tuple[int, int]) -> Atoms:
    """Relax a molecule in a state at the level of sampling."""
    atoms = bare(name, state)
    atoms.rattle(0.02, seed=0)  # off the symmetry of the ground state
    atoms.calc = DFTCalculator(SAMPLING)
    if not BFGS(atoms, logfile=None).run(fmax=0.01, steps=80):
        raise SystemExit(f"{name} {state} has no minimum near by")
    atoms.calc = None
    return atoms


def displacements(atoms: Atoms) -> np.ndarray:
    """Standard deviations of the modes of a minimum, (n_modes, n_atoms, 3), Å."""
    from pyscf.hessian import thermo

    field = solve(atoms, check_input(atoms, SAMPLING), SAMPLING).field
    found = thermo.harmonic_analysis(
        field.mol, field.Hessian().kernel(), imaginary_freq=False
    )
    energies = found["freq_wavenumber"] * units.invcm
    if (energies <= 0).any():
        raise SystemExit(
            f"{atoms.symbols} is at no minimum: {found['freq_wavenumber']}"
        )
    modes = found["norm_mode"] * np.sqrt(field.mol.atom_mass_list(True))[:, None]
    modes /= np.linalg.norm(modes, axis=(1, 2), keepdims=True)
    # ⟨q²⟩ of an oscillator: ħ/(2ω) coth(ħω/2kT); ħ² = units._hbar² in eV amu Å².
    hbar_squared = (units._hbar * units.J * units.s) ** 2
    mean = (
        hbar_squared
        / (2 * energies)
        / np.tanh(energies / (2 * units.kB * TEMPERATURE_K))
    )
    masses = atoms.get_masses()[:, None]
    return np.asarray(np.sqrt(mean)[:, None, None] * modes / np.sqrt(masses))


def modes(out: Path) -> None:
    """Write the minima of every species and the modes of the first one."""
    frames = []
    for name, species in SPECIES.items():
        first = minimum(name, species.minima[0])
        for index, mode in enumerate(displacements(first)):
            first.set_array(f"mode_{index}", mode)
        frames.append(first)
        for state in species.minima[1:]:
            other = minimum(name, state)
            minimize_rotation_and_translation(first, other)
            frames.append(other)
        print(name, len(species.minima), "minima", flush=True)
    write(out, frames, format="extxyz")


def geometries(name: str, minima: list[Atoms]) -> list[np.ndarray]:
    """Sample the geometries of a species, each (n_atoms, 3), Å."""
    species, first = SPECIES[name], minima[0]
    names = sorted(k for k in first.arrays if k.startswith("mode_"))
    deviations = np.array([first.arrays[k] for k in names])
    generator = qmc.Sobol(len(names) + 4, rng=np.random.default_rng(len(first)))
    count = GEOMETRIES[len(first)] + species.more
    shortest, longest = STRETCH[len(first)]
    points = generator.random_base2(int(np.ceil(np.log2(count))))[:count]
    out = []
    for index, (*z, which, way, bond, factor) in enumerate(points):
        target = minima[int(which * len(minima))].positions
        amplitudes = np.clip(norm.ppf(z), -2.5, 2.5)
        positions = first.positions + way * (target - first.positions)
        positions = positions + np.einsum("m,max->ax", amplitudes, deviations)
        if index % 3 == 2:
            center, end = species.bonds[int(bond * len(species.bonds))]
            ratio = shortest + factor * (longest - shortest)
            vector = positions[end] - positions[center]
            positions[end] = positions[center] + ratio * vector
        out.append(positions)
    return out


def sampled(path: Path) -> Iterator[Atoms]:
    """Yield every geometry in every state; species and states take turns."""
    minima: list[Atoms] = list(read(path, ":", format="extxyz"))
    pools = {}
    for name, species in SPECIES.items():
        taken, minima = minima[: len(species.minima)], minima[len(species.minima) :]
        pools[name] = geometries(name, taken)
    for index in range(max(map(len, pools.values()))):
        for name, pool in pools.items():
            species, usual = SPECIES[name], index < GEOMETRIES[len(pool[0])]
            states = species.states if usual else species.hard
            for state in states if index < len(pool) else ():
                atoms = bare(name, state)
                atoms.positions = pool[index]
                atoms.info["geometry"] = index
                yield atoms


def is_test(atoms: Atoms) -> bool:
    """Whether a geometry is kept for testing."""
    index = int(atoms.info["geometry"])
    return index % TEST_EVERY == TEST_EVERY - 1 and index < GEOMETRIES[len(atoms)]


def label_all(out: Path, workers: int) -> None:
    """Label what is for training, and what is for testing beside it."""
    frames = list(sampled(HERE / "states_modes.xyz"))
    for path, test in ((out.with_stem(f"{out.stem}_test"), True), (out, False)):
        report = label_frames(
            [atoms for atoms in frames if is_test(atoms) == test],
            path,
            SETTINGS,
            workers=workers,
            task=stable_label,
        )
        print(report, flush=True)


def stable_label(atoms: Atoms, settings: DFTSettings) -> Atoms:
    """Label a molecule, or raise if the solution found is no minimum."""
    labelled = label(atoms, settings)
    if not labelled.info["stable"]:
        raise NotConverged("the solution stayed unstable: rejected")
    return labelled


def bound() -> None:
    """Print vertical detachment energies of the anions at the neutral minimum."""
    for name in SPECIES:
        atoms, energies = bare(name, SPECIES[name].minima[0]), {}
        odd = int(atoms.numbers.sum()) % 2
        for charge in (0, -1):
            for spin in (1, 3) if (odd + charge) % 2 == 0 else (2, 4):
                set_state(atoms, charge=charge, spin=spin)
                state = check_input(atoms, SETTINGS)
                found = solve(atoms, state, SETTINGS).field.e_tot * units.Hartree
                energies[charge, spin] = found
        neutral = min(e for (charge, _), e in energies.items() if charge == 0)
        for (charge, spin), energy in energies.items():
            if charge == -1:
                kept = (charge, spin) in SPECIES[name].states
                print(
                    f"{atoms.symbols!s:6} spin {spin}: {neutral - energy:6.2f} eV"
                    f"{'  labelled' if kept else ''}",
                    flush=True,
                )


def main() -> None:
    """Sample geometries, label them, or test the anions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("modes", "labels", "bound"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="default: beside this script")
    arguments = parser.parse_args()
    if arguments.part == "bound":
        bound()
    elif arguments.part == "modes":
        modes(arguments.out or HERE / "states_modes.xyz")
    else:
        label_all(arguments.out or HERE / "states.xyz", arguments.workers)


if __name__ == "__main__":
    main()

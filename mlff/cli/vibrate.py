"""The verb ``vibrations``: frequencies, infrared spectra and modes of many systems."""

import argparse
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mlff.cli.parsing import (
    add_state_options,
    add_verb,
    given,
    output_folder,
    read_structures,
    trajectory_file,
)
from mlff.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff.harmonic import Vibrations
    from mlff.potential import Potential
    from mlff.report.run import Kind
    from mlff.spectra import Spectrum
    from mlff.trajectory import Trajectory

#: What a folder that was written to holds.
CSV = "vibrations.csv"

# Systems in the table, and of a kind in its picture; the CSV file has them all.
_MOST_SYSTEMS, _MOST_CURVES = 20, 5

_COLUMNS = (
    *("system", "formula", "charge", "multiplicity", "mode"),
    *("wavenumber_per_cm", "reduced_mass_amu", "intensity_km_per_mol"),
)


_ONLY_OF_DYNAMICS = ("temperature_K", "skip_fs", "resolution_per_cm")


class _Species(NamedTuple):
    """What systems of one spectrum have in common.

    Attributes:
        kind: formula and state.
        masses: symbol and mass (amu) of the elements; of every atom, in order, where
            atoms of one element differ, as then it matters which.
    """

    kind: "Kind"
    masses: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, atoms: "Atoms") -> Self:
        """Return the species of a system."""
        from mlff.report.run import Kind

        masses = atoms.get_masses().round(3).tolist()
        every = tuple(zip(atoms.get_chemical_symbols(), masses, strict=True))
        elements = tuple(sorted(set(every)))
        alike = len(elements) == len(set(atoms.get_chemical_symbols()))
        return cls(Kind.of(atoms), elements if alike else every)

    def __str__(self) -> str:
        masses = ", ".join(f"{symbol} {mass:g}" for symbol, mass in self.masses)
        return f"{self.kind} (masses {masses})"


def add_verbs(verbs: Any) -> None:
    """Declare it."""
    parser = add_verb(
        verbs,
        "vibrations",
        _vibrations,
        "find the harmonic vibrations of relaxed systems",
        "mlff vibrations relaxed.xyz --model ch2 --out vibrations\n"
        "mlff vibrations relaxed.xyz --model dipoles.safetensors --out vibrations "
        "--trajectory run/trajectory.h5 --skip-fs 1000\n"
        "\nWrites a table, a CSV file, modes/*.xyz with a period of each mode, "
        "hessians/*.json\nfor ase.vibrations.VibrationsData.read and, with a model "
        "of dipoles, spectra.",
    )
    add = parser.add_argument
    add("structures", nargs="+", help="extxyz, traj, db or json files")
    add("--model", required=True, help="name of a shipped model, or a file")
    add("--out", required=True, help="folder to write into; made if missing")
    add("--force", action="store_true", help="replace what is in --out")
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    add("--dtype", help="float32 or float64 (that of the model)")
    add_state_options(parser)
    add(
        "--fmax",
        type=float,
        metavar="X",
        help="largest force that may be left, eV/Å (0.05)",
    )
    add = parser.add_argument_group("infrared spectra").add_argument
    add("--width-per-cm", type=float, default=10.0, metavar="X", help="of lines (10)")
    add("--trajectory", help="trajectory.h5 of replicas: adds the spectrum of dynamics")
    add("--temperature-K", type=float, metavar="X", help="of it (its mean)")
    add("--skip-fs", type=float, metavar="X", help="of its start, left out (0)")
    add("--resolution-per-cm", type=float, metavar="X", help="of its spectrum (10)")


def _vibrations(arguments: argparse.Namespace) -> int:
    from mlff.device import check_device, check_dtype
    from mlff.harmonic import vibrations
    from mlff.potential import load

    _check_options(arguments)
    folder = _check_folder(arguments.out, arguments.force)
    systems = read_structures(arguments.structures, arguments.charge, arguments.spin)
    potential = load(
        arguments.model, check_device(arguments.device), check_dtype(arguments.dtype)
    )
    dynamic = arguments.trajectory is not None
    if dynamic and "dipole" not in potential.properties:
        raise InputError(
            f"--trajectory: {arguments.model} has no dipoles, which a spectrum needs; "
            "take a model that was trained on them"
        )
    species = [_Species.of(atoms) for atoms in systems]
    kinds = [one.kind for one in species]
    replicas = _replicas(Path(arguments.trajectory), set(species)) if dynamic else None
    found = vibrations(systems, potential, **given(arguments, "fmax"))
    moving = _of_dynamics(arguments, potential, *replicas) if replicas else {}
    folder.mkdir(exist_ok=True)
    _clear(folder)
    table = _table(kinds, found)
    (folder / "vibrations.txt").write_text(table + "\n", encoding="utf-8")
    print(table)
    _write_csv(folder / CSV, kinds, found)
    _write_modes(folder, systems, found)
    _plot(folder, species, found, moving, arguments.width_per_cm)
    print(f"written to {folder}/")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse numbers that cannot be, before anything is computed or written."""
    from mlff.spectra import HIGHEST

    for name in _ONLY_OF_DYNAMICS:
        if arguments.trajectory is None and getattr(arguments, name) is not None:
            raise InputError(f"{_option(name)}: only with --trajectory")
    for name in ("width_per_cm", "fmax", *_ONLY_OF_DYNAMICS):
        value = getattr(arguments, name)
        highest = HIGHEST if name == "resolution_per_cm" else math.inf
        if value is None or 0 < value < highest or (name == "skip_fs" and value == 0):
            continue
        bound = "finite" if highest == math.inf else f"below {highest:g}"
        raise InputError(f"{_option(name)} must be positive and {bound}, got {value:g}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_folder(out: str, force: bool) -> Path:
    folder = output_folder(out)
    if (folder / CSV).exists() and not force:
        raise InputError(
            f"{folder / CSV} exists: replace it with --force, or choose another --out"
        )
    return folder


def _clear(folder: Path) -> None:
    """Remove what is there of an earlier command, which may have had more systems."""
    for pattern in ("modes/[0-9]*_*.xyz", "hessians/[0-9]*_*.json", "infrared_*.png"):
        for old in folder.glob(pattern):
            old.unlink()


def _replicas(
    path: Path, species: set[_Species]
) -> tuple["Trajectory", dict[_Species, list[int]]]:
    """A run, and which of its systems are of each species of the structures."""
    from mlff.trajectory import Trajectory

    trajectory = Trajectory(trajectory_file(path))
    there: dict[_Species, list[int]] = {}
    for index in range(trajectory.n_systems):
        there.setdefault(_Species.of(trajectory.atoms(index, 0)), []).append(index)
    common = {one: which for one, which in there.items() if one in species}
    if not common:
        raise InputError(
            f"--trajectory: {path} is of {'; '.join(map(str, there))}, the structures "
            f"are {'; '.join(sorted(map(str, species)))}: take a run of the same "
            "molecules with the same masses"
        )
    return trajectory, common


def _of_dynamics(
    arguments: argparse.Namespace,
    potential: "Potential",
    trajectory: "Trajectory",
    replicas: dict[_Species, list[int]],
) -> dict[_Species, "Spectrum"]:
    from mlff.spectra import infrared

    options = given(arguments, *_ONLY_OF_DYNAMICS)
    return {
        one: infrared(trajectory, potential, systems=which, **options)
        for one, which in replicas.items()
    }


def _table(kinds: list["Kind"], found: list["Vibrations"]) -> str:
    from mlff.report.tables import aligned

    bright = any(one.intensities is not None for one in found)
    rows: list[tuple[str, ...]] = [
        ("", "wavenumber", "reduced mass", "intensity"),
        ("", "cm⁻¹", "amu", "km/mol"),
    ]
    for index, (kind, one) in enumerate(zip(kinds, found, strict=True)):
        if index == _MOST_SYSTEMS:
            rows.append((f"… {len(found) - index} more in {CSV}", "", "", ""))
            break
        low = int((one.frequencies < 0).sum())
        note = f", {low} imaginary: no minimum" if low else ""
        rows.append((f"system {index}: {kind}{note}", "", "", ""))
        for k, wavenumber in enumerate(one.frequencies):
            intensity = "" if one.intensities is None else f"{one.intensities[k]:.2f}"
            mass = f"{one.reduced_masses[k]:.3f}"
            rows.append((f"  mode {k}", f"{wavenumber:.2f}", mass, intensity))
        energy = f"  zero-point energy {one.zero_point_energy:.4f} eV"
        rows.append((energy, "", "", ""))
    return "\n".join(aligned(rows if bright else [row[:3] for row in rows]))


def _write_csv(path: Path, kinds: list["Kind"], found: list["Vibrations"]) -> None:
    from mlff.report.tables import cell, write_csv

    rows = []
    for index, (kind, one) in enumerate(zip(kinds, found, strict=True)):
        for k, wavenumber in enumerate(one.frequencies):
            intensity = "" if one.intensities is None else cell(one.intensities[k])
            mass = cell(one.reduced_masses[k])
            rows.append([index, *kind, k, cell(wavenumber), mass, intensity])
    write_csv(path, _COLUMNS, rows)


def _write_modes(
    folder: Path, systems: list["Atoms"], found: list["Vibrations"]
) -> None:
    """Write a period of every mode, and what ASE reads back as VibrationsData."""
    from ase.io import jsonio, write

    from mlff.files import write_atomic

    for name in ("modes", "hessians"):
        (folder / name).mkdir(exist_ok=True)
    digits = len(str(len(systems) - 1))
    for index, (atoms, one) in enumerate(zip(systems, found, strict=True)):
        name = f"{index:0{digits}d}_{atoms.get_chemical_formula()}"
        text = jsonio.encode(one.data).encode()
        write_atomic(folder / "hessians" / f"{name}.json", text)
        frames = []
        for mode, wavenumber in enumerate(one.frequencies):
            for frame in one.animation(mode):
                for key in ("initial_charges", "initial_magmoms"):
                    frame.arrays.pop(key, None)
                state = {key: frame.info[key] for key in ("charge", "spin")}
                frame.info = {**state, "mode": mode, "wavenumber_per_cm": wavenumber}
                if one.intensities is not None:
                    frame.info["intensity_km_per_mol"] = one.intensities[mode]
                frames.append(frame)
        if frames:
            file = io.StringIO()
            write(file, frames, format="extxyz")
            write_atomic(folder / "modes" / f"{name}.xyz", file.getvalue().encode())


def _plot(
    folder: Path,
    species: list[_Species],
    found: list["Vibrations"],
    moving: dict[_Species, "Spectrum"],
    width: float,
) -> None:
    """Draw a picture of each kind of molecule, if there are intensities."""
    from mlff.report.run import by_kind
    from mlff.spectra import broadened, plot_infrared

    kinds = [one.kind for one in species]
    for kind, which in list(by_kind(kinds).items())[:_MOST_SYSTEMS]:
        bright = [k for k in which.tolist() if found[k].intensities is not None]
        curves, sticks = {}, None
        for k in bright[:_MOST_CURVES]:
            pair = found[k].frequencies, found[k].intensities
            curves[f"harmonic, system {k}"] = broadened(*pair, width)
            sticks = pair if len(bright) == 1 else None
        first: dict[_Species, int] = {}
        for k in which.tolist():
            first.setdefault(species[k], k)
        for one in (one for one in first if one in moving):
            of = f", masses of system {first[one]}" if len(first) > 1 else ""
            curves[f"dynamics{of}"] = moving[one]
        if curves:
            name = "_".join(map(str, kind))
            path = folder / f"infrared_{name}.png"
            plot_infrared(path, curves, sticks, title=str(kind))

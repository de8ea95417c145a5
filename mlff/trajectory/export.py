"""Frames of one system as ASE objects and as files that other programs read.

Knows nothing of HDF5: a system is a template, an ASE object with all that stays, and
pieces, some consecutive frames as arrays. Extended XYZ is formatted here, because
thousands of systems by thousands of frames are many: ten decimals, charge, multiplicity
(``spin`` = 2S+1) and momenta included, readable by ASE.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import atomic_masses, chemical_symbols
from ase.io.trajectory import TrajectoryWriter as ASETrajectoryWriter

from mlff.errors import InputError
from mlff.trajectory.layout import Array, Layout

#: Format → suffix of the files.
SUFFIXES = {"extxyz": ".xyz", "traj": ".traj"}

#: Suffix → format, where a file is named.
FORMATS = {".xyz": "extxyz", ".extxyz": "extxyz", ".traj": "traj"}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive frames of one system.

    Attributes:
        steps: (n_frames,).
        times_fs: (n_frames,), fs.
        positions: (n_frames, n_atoms, 3), Å.
        momenta: (n_frames, n_atoms, 3), sqrt(amu·eV).
        cell: (n_frames, 3, 3), Å.
        energy: (n_frames,), eV.
        status: (n_frames,), 0 while the system ran.
    """

    steps: Array
    times_fs: Array
    positions: Array
    momenta: Array
    cell: Array
    energy: Array
    status: Array


def template(layout: Layout, system: int) -> Atoms:
    """Return what stays of a system: elements, masses, constraint, state."""
    first, last = layout.ptr[system], layout.ptr[system + 1]
    numbers, masses = layout.numbers[first:last], layout.masses[first:last]
    atoms = Atoms(numbers, pbc=layout.pbc[system], cell=layout.cell[system])
    if not np.array_equal(masses, atomic_masses[numbers]):
        atoms.set_masses(masses)
    if not layout.mobile[first:last].all():
        atoms.set_constraint(FixAtoms(mask=~layout.mobile[first:last]))
    atoms.info["charge"] = int(layout.charge[system])
    atoms.info["spin"] = int(layout.multiplicity[system])
    return atoms


def images(template: Atoms, piece: Piece) -> Iterator[Atoms]:
    """Yield the frames of a piece as ASE objects with their energies."""
    for k in range(len(piece.steps)):
        atoms = template.copy()
        atoms.set_cell(piece.cell[k])
        atoms.set_positions(piece.positions[k], apply_constraint=False)
        atoms.set_momenta(piece.momenta[k], apply_constraint=False)
        atoms.info["step"] = int(piece.steps[k])
        atoms.info["time_fs"] = float(piece.times_fs[k])
        if piece.status[k]:
            atoms.info["status"] = int(piece.status[k])
        energy = float(piece.energy[k])
        atoms.calc = SinglePointCalculator(atoms, energy=energy, free_energy=energy)
        yield atoms


def write_extxyz(path: Path, template: Atoms, pieces: Iterator[Piece]) -> None:
    """Write frames of one system to a new file."""
    properties = "species:S:1:pos:R:3:momenta:R:3"
    ends = [""] * len(template)
    if template.has("masses"):
        properties += ":masses:R:1"
        ends = [f" {mass:.10f}" for mass in template.get_masses()]
    if template.constraints:
        properties += ":move_mask:L:1"
        fixed = set(template.constraints[0].index.tolist())
        ends = [f"{end} {'FT'[k not in fixed]}" for k, end in enumerate(ends)]
    body = "".join(
        f"{chemical_symbols[z]:<2}" + 6 * " %15.10f" + f"{end}\n"
        for z, end in zip(template.numbers, ends, strict=True)
    )
    state = f"charge={template.info['charge']} spin={template.info['spin']}"
    pbc = " ".join("FT"[int(axis)] for axis in template.pbc)
    tail = f'{state} Properties={properties} pbc="{pbc}"'
    with path.open("w", encoding="ascii") as file:
        for piece in pieces:
            rows = np.concatenate([piece.positions, piece.momenta], axis=2)
            numbers = rows.reshape(len(rows), -1).tolist()
            for k, (step, time_fs, energy) in enumerate(
                zip(
                    piece.steps.tolist(),
                    piece.times_fs.tolist(),
                    piece.energy.tolist(),
                    strict=True,
                )
            ):
                file.write(
                    f"{len(template)}\n{_lattice(piece.cell[k])}energy={energy!r} "
                    f"free_energy={energy!r} step={step} time_fs={time_fs!r} {tail}\n"
                )
                file.write(body % tuple(numbers[k]))


def _lattice(cell: Array) -> str:
    if not cell.any():
        return ""
    return f'Lattice="{" ".join(map(repr, cell.ravel().tolist()))}" '


def write_traj(path: Path, template: Atoms, pieces: Iterator[Piece]) -> None:
    """Write frames of one system to a new file in ASE's own format."""
    with ASETrajectoryWriter(str(path), "w") as writer:
        for piece in pieces:
            for atoms in images(template, piece):
                writer.write(atoms)


WRITERS = {"extxyz": write_extxyz, "traj": write_traj}


def targets(
    path: Path, format: str | None, layout: Layout, systems: list[int], force: bool
) -> tuple[str, dict[int, Path]]:
    """Decide what to write where; a folder is made, nothing is written.

    Args:
        path: a file, by its suffix, for one system; otherwise a folder.
        format: a key of :data:`SUFFIXES`; from the suffix, else extended XYZ.
        layout: all systems.
        systems: indices of those to be written.
        force: replace existing files.

    Returns:
        The format and the file of each system. Names are made of index and formula.

    Raises:
        InputError: a format that is not known or not that of the suffix, a file for
            several systems, files that exist, or a folder that cannot be made.
    """
    named = FORMATS.get(path.suffix.lower())
    chosen = format or named or "extxyz"
    if chosen not in SUFFIXES or (named and chosen != named):
        raise InputError(
            f"`format` must be one of {list(SUFFIXES)} and that of the suffix, got "
            f"{format!r} for {path.name}"
        )
    if named and len(systems) != 1:
        raise InputError(
            f"{path} is one file, but {len(systems)} systems are to be written: give "
            "a folder, or systems=[k]"
        )
    folder = path.parent if named else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {folder}: {error.strerror}") from error
    width = len(str(layout.n_systems - 1))
    files = {
        k: path
        if named
        else folder / f"{k:0{width}}_{_formula(layout, k)}{SUFFIXES[chosen]}"
        for k in systems
    }
    existing = [file for file in files.values() if file.exists()]
    if existing and not force:
        raise InputError(
            f"{existing[0]} exists; replace it with force=True, or write elsewhere"
        )
    return chosen, files


def _formula(layout: Layout, system: int) -> str:
    first, last = layout.ptr[system], layout.ptr[system + 1]
    return Atoms(layout.numbers[first:last]).get_chemical_formula()[:64]

"""The verb ``crossing``: minimum-energy crossing points of two states."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlff.cli.parsing import (
    add_verb,
    dft_settings,
    given,
    output_folder,
    states_option,
)
from mlff.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff.crossing import Crossing, CrossingOptions
    from mlff.dft import DFTCalculator
    from mlff.potential import Potential
    from mlff.report.crossing import ByDFT

#: What a folder that was written to holds.
JSON = "crossing.json"

_LEVEL = ("xc", "basis", "reference", "grid_level")


def add_verbs(verbs: Any) -> None:
    """Declare it."""
    parser = add_verb(
        verbs,
        "crossing",
        _crossing,
        "find the lowest point at which two electronic states have one energy",
        'mlff crossing ch2.xyz --model ch2 --states "0,1 0,3" --out crossing\n'
        'mlff crossing ch2.xyz --model ch2 --states "0,1 0,3" --out crossing '
        '--fix "bond 0 1 1.00" --fix "bond 0 2 1.00" --dft-check\n'
        'mlff crossing ch2.xyz --dft --states "0,1 0,3" --out crossing\n'
        "\nThe state in the file does not matter. Writes a table, crossing.xyz, "
        "crossing.json\nand a picture. Exit code 1: the states were not found to "
        "cross; the table says why.",
    )
    add = parser.add_argument
    add("structure", help="where to start: extxyz, traj, db or json file of one frame")
    add(
        "--states",
        required=True,
        type=states_option,
        metavar='"Q,M Q,M"',
        help="charge and multiplicity of both states",
    )
    add(
        "--model",
        help="name of a shipped model, or a file; several, separated by commas, are a "
        "committee; or --dft, or both",
    )
    add("--out", required=True, help="folder to write into; made if missing")
    add(
        "--fix",
        action="append",
        default=[],
        metavar='"KIND ATOMS VALUE"',
        help="hold a coordinate: 'bond 0 1 1.00', 'angle 1 0 2 105', 'dihedral 0 1 2 3 "
        "90'; at its value in the file if none is given; may be repeated",
    )
    add("--force", action="store_true", help="replace what is in --out")
    add("--quiet", action="store_true", help="show no progress bar")
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    add("--dtype", help="float32 or float64 (that of the model)")
    _add_search(parser.add_argument_group("search").add_argument)
    _add_dft(parser.add_argument_group("DFT").add_argument)


def _add_search(add: Any) -> None:
    add("--fmax", type=float, metavar="X", help="effective gradient left, eV/Å (0.002)")
    add("--gap-eV", type=float, metavar="X", help="largest gap left, eV (1e-4)")
    add("--max-steps", type=int, metavar="N", help="geometries to try (200)")
    add("--rattle-A", type=float, metavar="X", help="of the start, Å (0.02)")
    add(
        "--minima",
        action=argparse.BooleanOptionalAction,
        help="relax both states too, for the energies above them (yes)",
    )


def _add_dft(add: Any) -> None:
    add("--dft-check", action="store_true", help="compute both states at the point")
    add(
        "--dft",
        action="store_true",
        help="search by DFT; beside a model from the point that it found",
    )
    add("--xc", help="functional as PySCF names it (that of the model; b3lyp5)")
    add("--basis", help="basis set as PySCF names it (that of the model; cc-pvdz)")
    add(
        "--reference",
        choices=("auto", "restricted", "unrestricted"),
        help="auto: restricted for singlets, unrestricted otherwise (auto)",
    )
    add("--grid-level", type=int, help="integration grid, 0 … 9 (3)")


def _crossing(arguments: argparse.Namespace) -> int:
    from mlff.crossing import CrossingOptions, find_crossing, profile
    from mlff.report.crossing import report_crossing

    _check_options(arguments)
    folder = _check_folder(arguments.out, arguments.force)
    atoms = _start(arguments.structure)
    names = ("gap_eV", "rattle_A", "minima")
    options = CrossingOptions(progress=not arguments.quiet, **given(arguments, *names))
    search: dict[str, Any] = given(arguments, "states", "fmax", "max_steps")
    potential = _potential(arguments)
    calculator = _calculator(arguments, potential, atoms)
    source = calculator if potential is None else potential
    found = find_crossing(
        atoms, source, constraints=arguments.fix, options=options, **search
    )
    folder.mkdir(exist_ok=True)
    line = None
    if potential is not None and found.gap_slope > 0:
        line = profile(found, potential)
    # Written before DFT begins, so that a long calculation can be stopped.
    table = report_crossing(found, folder, line)
    if potential is not None and calculator is not None:
        reference = _by_dft(arguments, calculator, found, options, search)
        table = report_crossing(found, folder, line, reference)
    print(table)
    print(f"written to {folder}/")
    return 0 if found.converged else 1


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that do nothing, before anything is computed or written."""
    if arguments.model is None and not arguments.dft:
        raise InputError("give --model, or --dft to search without one")
    if arguments.model is None and arguments.dft_check:
        raise InputError("--dft-check: only with --model, whose point is checked")
    if not (arguments.dft or arguments.dft_check):
        for name in _LEVEL:
            if getattr(arguments, name) is not None:
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option}: only with --dft or --dft-check")


def _check_folder(out: str, force: bool) -> Path:
    folder = output_folder(out)
    if (folder / JSON).exists() and not force:
        raise InputError(
            f"{folder / JSON} exists: replace it with --force, or choose another --out"
        )
    return folder


def _start(path: str) -> "Atoms":
    from mlff.frames import read_frames

    frames = read_frames(path)
    if len(frames) != 1:
        raise InputError(
            f"{path} holds {len(frames)} frames, but a search starts from one; write "
            "that into a file of its own"
        )
    return frames[0]


def _potential(arguments: argparse.Namespace) -> "Potential | None":
    from mlff.device import check_device, check_dtype
    from mlff.potential import load

    if arguments.model is None:
        return None
    device, dtype = check_device(arguments.device), check_dtype(arguments.dtype)
    return load(arguments.model, device, dtype)


def _calculator(
    arguments: argparse.Namespace,
    potential: "Potential | None",
    atoms: "Atoms",
) -> "DFTCalculator | None":
    """Return DFT at the level of the model's labels, or as options say it.

    What cannot be computed is refused here, before any work is done.
    """
    if not (arguments.dft or arguments.dft_check):
        return None
    from mlff.dft import DFTCalculator, check_input
    from mlff.state import set_state

    trained = None if potential is None else potential.info.level_of_theory
    settings = dft_settings(trained, given(arguments, *_LEVEL))
    for state in arguments.states:
        check_input(set_state(atoms.copy(), *state), settings)
    return DFTCalculator(settings)


def _by_dft(
    arguments: argparse.Namespace,
    calculator: "DFTCalculator",
    found: "Crossing",
    options: "CrossingOptions",
    search: dict[str, Any],
) -> "ByDFT":
    """Compute both states at what a model found, and search from there."""
    from mlff.crossing import find_crossing
    from mlff.report.crossing import ByDFT

    check = own = None
    alone = replace(options, minima=False)
    if arguments.dft_check:
        still = replace(alone, rattle_A=0.0, progress=False)
        here = {**search, "max_steps": 0, "constraints": found.held}
        check = find_crossing(found.atoms, calculator, options=still, **here)
    if arguments.dft:
        there = {**search, "constraints": found.held}
        own = find_crossing(found.atoms, calculator, options=alone, **there)
    settings = calculator.settings
    return ByDFT(f"{settings.xc}/{settings.basis}", check, own)

"""What the verbs share: how they are declared, and reading structures with a state."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlff.errors import InputError, StateError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff.scf import DFTSettings

_STATE_HINT = "; or pass --charge and --spin, which hold for all frames"


def add_verb(verbs: Any, name: str, run: Any, summary: str, example: str) -> Any:
    """Add a verb; ``go_on`` is what an interrupted user is told."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="example:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(verb=run, go_on="run the same command again")
    return parser


def add_state_options(parser: Any) -> None:
    """Add the state of every frame."""
    parser.add_argument(
        "--charge", type=int, metavar="N", help="total charge of every frame"
    )
    parser.add_argument(
        "--spin", type=int, metavar="N", help="multiplicity 2S+1 of every frame"
    )


def states_option(text: str) -> list[list[int]]:
    """Read ``--states "0,1 0,3"``: charge and multiplicity of each."""
    from mlff.cli.runs import state_pairs

    try:
        return state_pairs(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def output_folder(out: str) -> Path:
    """Return the folder to write into, if it may be made; it need not exist.

    Raises:
        InputError: no folder above it, or something else of that name.
    """
    if not out:  # which would be the working directory
        raise InputError("--out is empty; name a folder, or . for this one")
    folder = Path(out)
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: there is no folder {folder.parent}; create it")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; choose another name for --out")
    return folder


def run_folder(out: str, product: str, arguments: argparse.Namespace) -> Path:
    """Return the folder of a run that can be resumed; it need not exist.

    Args:
        out: the folder.
        product: file that shows that the verb has written there.
        arguments: of the command, with ``force`` and ``resume``.

    Raises:
        InputError: what is there may be neither resumed nor replaced.
    """
    folder = output_folder(out)
    there = (folder / product).exists()
    if there and not (arguments.force or arguments.resume):
        raise InputError(
            f"{folder / product} exists: go on with --resume, replace it with --force, "
            "or choose another --out"
        )
    if arguments.resume and not there:
        print(f"{folder} holds nothing to go on with: starting", file=sys.stderr)
    return folder


def trajectory_file(path: str | Path) -> Path:
    """Return a trajectory, or the one in the folder of a run."""
    return Path(path) / "trajectory.h5" if Path(path).is_dir() else Path(path)


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given; the others keep the defaults of the function."""
    found = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def dft_settings(trained: str | None, chosen: dict[str, Any]) -> "DFTSettings":
    """Return the level of theory to compute beside a model.

    Args:
        trained: that of the labels of the model, as its file records it; ``None`` if
            there is no model.
        chosen: settings that take its place.

    Raises:
        InputError: functional and basis are neither given nor known.
    """
    from mlff.scf import DFTSettings, functional, named_level

    settings = {**named_level(trained or ""), **chosen}
    if trained is not None and not {"xc", "basis"} <= settings.keys():
        raise InputError(
            "the model does not say at which level its labels are, only "
            f"{trained or 'nothing'!r}: give xc and basis (--xc, --basis)"
        )
    functional(settings.get("xc", DFTSettings.xc))
    return DFTSettings(**settings)


def read_structures(
    paths: Iterable[str | Path], charge: int | None, spin: int | None
) -> list["Atoms"]:
    """Read every frame of some files, each with a state that is stated somewhere.

    Args:
        paths: extxyz, traj, db or json files.
        charge: of every frame; ``None`` if the files say it.
        spin: multiplicity 2S+1, likewise.

    Raises:
        StateError: a state that is missing or in conflict; names file and frame.
        InputError: no frame at all.
    """
    from mlff.frames import read_frames
    from mlff.state import read_state, set_state

    frames = []
    for path in paths:
        for index, frame in enumerate(read_frames(path)):
            try:
                state = read_state(frame, charge, spin, strict=True)
            except StateError as error:
                hint = "" if charge is not None and spin is not None else _STATE_HINT
                raise StateError(f"{path}, frame {index}: {error}{hint}") from error
            frames.append(set_state(frame, state.charge, state.multiplicity))
    if not frames:
        raise InputError(f"no structure in {', '.join(map(str, paths)) or 'no file'}")
    return frames

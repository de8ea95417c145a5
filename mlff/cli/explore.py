"""The verb ``scan``: surfaces of electronic states, with DFT beside them if wanted."""

import argparse
import io
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlff.cli.parsing import add_verb, dft_settings, run_folder, states_option
from mlff.errors import InputError, StateError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff.dft import DFTSettings
    from mlff.potential import Potential
    from mlff.scanning import Surface

#: What a folder that was written to holds: the settings.
SETTINGS = "scan.json"

# Relaxed points as they finish, and DFT labels: what is resumed.
_RELAXED, _LABELS = "relaxed.xyz", "dft.xyz"

# Frames that are held while they are written.
_FRAMES_AT_ONCE = 1000

# Settings of DFT, by the names that ``mlff label`` has for them.
_OF_DFT = ("xc", "basis", "reference", "grid_level")

# Options of a relaxed scan.
_OF_RELAX = ("fmax", "optimizer", "max_steps")


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """A scan.

    Attributes:
        structures: the file with the molecule, one frame.
        model: name of a shipped model, or a file.
        out: folder to write into.
        coordinates: axes, each as text: kind, atoms, first and last value, points.
        states: (charge, multiplicity) of each surface; that of the file if not given.
        relax: move all but the scanned coordinates downhill.
        fmax: of a relaxed scan, largest force that may be left, eV/Å.
        optimizer: ``"lbfgs"`` or ``"fire"``.
        max_steps: of each relaxation.
        forces: write forces too.
        dft: points along each axis that are labelled by DFT, too; 0 for none.
        xc: functional; that of the model's labels if not given.
        basis: basis set, likewise.
        reference: ``"auto"``, ``"restricted"`` or ``"unrestricted"``.
        grid_level: of the integration grid, 0 … 9.
        workers: processes for DFT.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of the network; that of the model file if not given.
    """

    structures: tuple[str, ...]
    model: str
    out: str
    coordinates: tuple[str, ...]
    states: tuple[tuple[int, int], ...] = ()
    relax: bool = False
    fmax: float = 0.01
    optimizer: str = "lbfgs"
    max_steps: int = 500
    forces: bool = False
    dft: int = 0
    xc: str | None = None
    basis: str | None = None
    reference: str | None = None
    grid_level: int | None = None
    workers: int = 1
    device: str = "cpu"
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.dft < 0 or self.dft == 1:
            raise InputError(
                f"`dft` must be at least 2 points along each axis, got {self.dft}"
            )
        if self.workers < 1:
            raise InputError(f"`workers` must be at least 1, got {self.workers}")
        for name in _OF_DFT if not self.dft else ():
            if getattr(self, name) is not None:
                raise InputError(f"`{name}` is of DFT points: ask for some with `dft`")
        if self.workers != 1 and not self.dft:
            raise InputError("`workers` is of DFT points: ask for some with `dft`")
        for name in _OF_RELAX if not self.relax else ():
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(
                    f"`{name}` is of a relaxed scan: ask for it with `relax`"
                )

    def potential(self) -> "Potential":
        """Return what the energies come from."""
        from mlff.device import check_device, check_dtype
        from mlff.potential import load

        return load(self.model, check_device(self.device), check_dtype(self.dtype))

    def dft_settings(self, trained: str) -> "DFTSettings":
        """Return the level of theory of the DFT points; see :func:`dft_settings`."""
        chosen = {name: getattr(self, name) for name in _OF_DFT}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        return dft_settings(trained, chosen)


def add_verbs(verbs: Any) -> None:
    """Declare it."""
    parser = add_verb(
        verbs,
        "scan",
        _scan,
        "follow electronic states along bonds, angles and dihedrals",
        'mlff scan ch2.xyz --model ch2 --coordinate "angle 1 0 2 90 180 46" '
        '--states "0,1 0,3" --out scan\n'
        'mlff scan ch2.xyz --model ch2 --coordinate "angle 1 0 2 90 180 46" --relax '
        '--states "0,1 0,3" --dft 7 --out scan\n'
        'mlff scan ch2.xyz --model ch2 --coordinate "angle 1 0 2 90 180 50" '
        '--coordinate "bond 0 1 + bond 0 2 0.9 1.4 50" --states "0,1 0,3" --out map\n'
        "mlff scan run.toml          # all options in a file, with _ for -\n"
        "mlff scan run.toml --resume # after a kill, or to add --dft\n"
        "\nA coordinate is its kind, its atoms counted from 0, first and last value (Å "
        "or\ndegrees) and the number of points; coordinates joined by + change "
        "together. Writes\na table, surface.csv, points.xyz and a picture. Exit code "
        "1: some points have no\nresult.",
    )
    parser.add_argument(
        "structures",
        nargs=1,
        metavar="structure",
        help="extxyz, traj, db or json file of one molecule; or a run file, TOML",
    )
    add = parser.add_argument
    add(
        "--model",
        help="name of a shipped model, or a file; several, separated by commas, are "
        "a committee, whose deviations are shown",
    )
    add("--out", help="folder to write into; made if missing")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a stopped run")
    again.add_argument("--force", action="store_true", help="replace what is in --out")
    add("--quiet", action="store_true", help="show no progress bar")
    add("--device", help="cpu or cuda (cpu)")
    add("--dtype", help="float32 or float64 (that of the model)")
    _add_grid(parser)
    _add_dft(parser)
    parser.set_defaults(
        go_on="what is on the disk is kept: run the same command with --resume"
    )


def _add_grid(parser: Any) -> None:
    add = parser.add_argument_group("surfaces").add_argument
    add(
        "--coordinate",
        action="append",
        dest="coordinates",
        metavar='"KIND ATOMS FROM TO N"',
        help='an axis, like "angle 1 0 2 90 180 46"; once for each axis',
    )
    add(
        "--states",
        type=states_option,
        metavar='"Q,M Q,M …"',
        help="charge and multiplicity of each surface (those of the structure)",
    )
    add("--forces", action="store_true", default=None, help="write forces too")
    add(
        "--relax",
        action="store_true",
        default=None,
        help="move all but the coordinates downhill, each state on its own surface",
    )
    add("--fmax", type=float, metavar="X", help="largest force left, eV/Å (0.01)")
    add("--optimizer", help="lbfgs or fire (lbfgs)")
    add("--max-steps", type=int, metavar="N", help="of each relaxation (500)")


def _add_dft(parser: Any) -> None:
    add = parser.add_argument_group("DFT beside the model").add_argument
    add("--dft", type=int, metavar="N", help="label N points along each axis (none)")
    add("--xc", help="functional as PySCF names it (that of the model's labels)")
    add("--basis", help="basis set as PySCF names it (likewise)")
    add("--reference", help="auto, restricted or unrestricted (auto)")
    add("--grid-level", type=int, metavar="N", help="integration grid, 0 … 9 (3)")
    add("--workers", type=int, metavar="N", help="single-threaded processes (1)")


def _scan(arguments: argparse.Namespace) -> int:
    from mlff.cli.dftpoints import dft_points
    from mlff.cli.runs import read_config
    from mlff.report import Reference, report_scan
    from mlff.scanning import ScanOptions, scan
    from mlff.scf import is_level

    config = read_config(ScanConfig, arguments)
    folder = _folder(config.out, arguments)
    atoms = _molecule(config)
    potential = config.potential()
    trained = potential.info.level_of_theory
    settings = config.dft_settings(trained) if config.dft else None
    task = _task(config, atoms, potential)
    if arguments.resume:
        _check_same(folder, task)
    _announce(config, atoms)
    if config.relax:
        folder.mkdir(exist_ok=True)
    if config.relax and arguments.force:  # what is stopped is not what was there
        (folder / SETTINGS).unlink(missing_ok=True)
    surface = scan(
        atoms,
        potential,
        config.coordinates,
        config.states or None,
        relax=config.relax,
        options=ScanOptions(
            fmax=config.fmax,
            optimizer=config.optimizer,
            max_steps=config.max_steps,
            forces=config.forces,
            out=folder / _RELAXED if config.relax else None,
            resume=arguments.resume,
            overwrite=arguments.force,
            progress=not arguments.quiet,
        ),
    )
    folder.mkdir(exist_ok=True)
    _write_settings(folder, task, settings, surface)
    if arguments.force and not config.relax:  # points of the scan that was there
        (folder / _RELAXED).unlink(missing_ok=True)
    _write_points(folder / "points.xyz", surface)
    # Before any DFT, which takes long: nothing of this is lost if that is stopped.
    table, failed = report_scan(surface, folder), 0
    if settings is not None:
        name = f"{settings.xc}/{settings.basis}"
        energies, failed = dft_points(
            surface,
            settings,
            config.dft,
            folder / _LABELS,
            workers=config.workers,
            progress=not arguments.quiet,
        )
        reference = Reference(name, energies, is_level(settings, trained))
        table = report_scan(surface, folder, reference)
    print(table)
    print(f"written to {folder}/")
    return 0 if surface.good.all() and not failed else 1


def _folder(out: str, arguments: argparse.Namespace) -> Path:
    written = [name for name in (SETTINGS, _RELAXED) if (Path(out) / name).exists()]
    return run_folder(out, written[0] if written else SETTINGS, arguments)


def _molecule(config: ScanConfig) -> "Atoms":
    """Read the one molecule that a scan is of."""
    from mlff.frames import read_frames
    from mlff.state import read_state

    if len(config.structures) != 1:
        raise InputError(
            f"a scan begins with one structure, got {len(config.structures)} files"
        )
    frames = read_frames(config.structures[0])
    if len(frames) != 1:
        raise InputError(
            f"{config.structures[0]} holds {len(frames)} structures, and a scan begins "
            "with one: write that one to a file of its own"
        )
    if not config.states:
        try:
            read_state(frames[0], strict=True)
        except StateError as error:
            raise StateError(f"{error}; or pass --states") from error
    return frames[0]


def _task(config: ScanConfig, atoms: "Atoms", potential: "Potential") -> dict[str, Any]:
    """Return all that the energies depend on, JSON types."""
    from mlff.start import digest

    names = ("coordinates", "states", "relax", "model", "dtype")
    of_relaxation = _OF_RELAX if config.relax else ()
    content = asdict(config)
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        **{name: content[name] for name in (*names, *of_relaxation)},
        "weights_sha256": digest(*potential.state_dict().values()),
    }


def _check_same(folder: Path, task: dict[str, Any]) -> None:
    """Refuse to go on with another scan than the one that is there."""
    import json

    from mlff.runfolder import check_same

    path = folder / SETTINGS
    if not path.exists():  # stopped while it relaxed: those points know their task
        return
    try:
        before = dict(json.loads(path.read_bytes())["scan"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}): replace the scan with --force"
        ) from error
    check_same(folder, before, task)


def _write_settings(
    folder: Path,
    task: dict[str, Any],
    settings: "DFTSettings | None",
    surface: "Surface",
) -> None:
    from mlff.runfolder import versions, write_json

    content = {
        "scan": task,
        "dft": None if settings is None else settings.identity(),
        "unseen_in_training": surface.unseen,
        "versions": versions(),
        "units": {"energy": "eV", "length": "Ang", "angle": "degrees"},
    }
    write_json(folder / SETTINGS, content)


def _announce(config: ScanConfig, atoms: "Atoms") -> None:
    from mlff.scanning.axes import count_points, read_axes

    axes = read_axes(config.coordinates, atoms)
    print("\n".join(map(str, axes)))
    n_states = max(1, len(config.states))
    states = "1 state" if n_states == 1 else f"{n_states} states"
    kind = "relaxed" if config.relax else "rigid"
    print(f"{kind} scan of {count_points(axes):,} points in {states}")


def _write_points(path: Path, surface: "Surface") -> None:
    from ase.io import write

    from mlff.files import write_atomic

    text, frames = io.StringIO(), surface.frames()
    # Not all at once: a frame takes ten times the memory of its text.
    while some := list(islice(frames, _FRAMES_AT_ONCE)):
        write(text, some, format="extxyz")
    write_atomic(path, text.getvalue().encode())

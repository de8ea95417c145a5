"""The command line: one verb for each function, and no more logic than that.

Everything heavy is imported inside the verbs, so that ``mlff --help`` answers at once.
A mistake of the user ends with one line on stderr and exit code 2, an interruption with
130 and how to go on; a traceback means a bug.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mlff import __version__
from mlff.errors import InputError, MlffError, MlffWarning, StateError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff.potential import Potential

Metrics = dict[str, dict[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments; those of the process if not given.

    Returns:
        The exit code: 0 done, 1 done in part, 2 refused, 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return int(arguments.verb(arguments))
        except (MlffError, OSError) as error:
            print(f"mlff: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"mlff: interrupted; {arguments.go_on}", file=sys.stderr)
            return 130


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    name = "" if issubclass(category, MlffWarning) else f"{category.__name__}: "
    print(f"mlff: warning: {name}{message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlff",
        description="Machine-learned force fields for molecules whose charge and spin "
        "matter. Units: eV, Å, e; spin is the multiplicity 2S+1.",
        epilog="mlff VERB --help tells more about each.",
    )
    parser.add_argument("--version", action="version", version=f"mlff {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_demo(verbs)
    _add_info(verbs)
    _add_label(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)
    return parser


def _add(verbs: Any, name: str, run: Any, summary: str, example: str) -> Any:
    """Add a verb; ``go_on`` is what an interrupted user is told."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="example:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=run, go_on="run the same command again")
    return parser


def _add_demo(verbs: Any) -> None:
    parser = _add(
        verbs,
        "demo",
        _demo,
        "relax, compare with DFT and run dynamics of singlet and triplet CH2",
        "mlff demo --out demo_output",
    )
    parser.add_argument("--out", default="demo_output", help="folder to write into")
    parser.add_argument(
        "--picoseconds", type=float, default=2.0, help="length of the dynamics"
    )


def _demo(arguments: argparse.Namespace) -> int:
    from mlff.demo import run_demo

    run_demo(arguments.out, picoseconds=arguments.picoseconds)
    return 0


def _add_info(verbs: Any) -> None:
    parser = _add(
        verbs,
        "info",
        _info,
        "show what a model is made for, how wrong it is and where it comes from",
        "mlff info              # names of the shipped models\n"
        "mlff info ch2\nmlff info runs/ch2/best.safetensors",
    )
    parser.add_argument("model", nargs="?", help="name of a shipped model, or a file")


def _info(arguments: argparse.Namespace) -> int:
    from mlff.potential import load, shipped

    models = shipped()
    if arguments.model is None:
        for name, path in models.items():
            print(f"{name:12s} {path}")
        return 0
    potential = load(arguments.model)
    path = models.get(arguments.model, Path(arguments.model))
    print("\n".join(_description(potential, path)))
    return 0


def _description(potential: "Potential", path: Path) -> list[str]:
    from ase.data import chemical_symbols

    from mlff.state import State
    from mlff.tensorfile import read_digest

    info = potential.info
    weights = sum(p.numel() for p in potential.parameters())
    elements = (chemical_symbols[z] for z in info.elements)
    lines = [
        f"file        {path}",
        f"sha256      {read_digest(path)}",
        f"elements    {', '.join(elements)}",
        f"states      {'; '.join(str(State(*state)) for state in info.states)}",
        f"molecules   {', '.join(info.formulas) or 'not recorded'}",
        f"labels      {info.level_of_theory or 'level of theory not recorded'}",
        f"properties  {', '.join(potential.properties)}",
        f"network     {weights} weights, {str(potential.dtype).removeprefix('torch.')}",
    ]
    lines += _tree({"model": potential.config["model"]})
    for name, metrics in info.metrics.items():
        lines += [f"errors      {name}", *_table(metrics, indent="  ")]
    return lines + _tree({"provenance": info.provenance})


def _tree(content: dict[str, Any], indent: str = "") -> list[str]:
    """Nested tables as indented lines."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_tree(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines


def _table(metrics: Metrics, indent: str = "") -> list[str]:
    """Errors, one line for each electronic state."""
    width = max(len(state) for state in metrics)
    columns = [
        ("E MAE", "energy_mae_meV"),
        ("E RMSE", "energy_rmse_meV"),
        ("E max", "energy_max_meV"),
        ("F MAE", "forces_mae_meV_per_A"),
        ("F RMSE", "forces_rmse_meV_per_A"),
        ("F max", "forces_max_meV_per_A"),
    ]
    names = "".join(f"{name:>10s}" for name, _ in columns)
    lines = [
        f"{indent}{'':{width}s}{'systems':>9s}{names}   (E in meV, F in meV/Å)",
    ]
    for state, row in metrics.items():
        values = "".join(f"{row[key]:10.3f}" for _, key in columns)
        lines.append(f"{indent}{state:{width}s}{row['n_systems']:9.0f}{values}")
    return lines


def _add_label(verbs: Any) -> None:
    parser = _add(
        verbs,
        "label",
        _label,
        "compute DFT energies, forces and dipoles with PySCF",
        "mlff label structures.xyz --out labels.xyz --workers 4\n"
        "mlff label cation.xyz --out labels.xyz --charge 1 --spin 2 --basis def2-svp\n"
        "\nA run that was stopped continues with the same command. Exit code 1: some\n"
        "frames have no label; the reasons are listed and kept.",
    )
    parser.add_argument("structures", help="extxyz, traj, db or json file")
    parser.add_argument("--out", required=True, help="extended XYZ file to write")
    parser.add_argument("--xc", help="functional as PySCF names it (b3lyp5)")
    parser.add_argument("--basis", help="basis set as PySCF names it (cc-pvdz)")
    parser.add_argument(
        "--reference",
        choices=("auto", "restricted", "unrestricted"),
        help="auto: restricted for singlets, unrestricted otherwise (auto)",
    )
    parser.add_argument("--grid-level", type=int, help="integration grid, 0 … 9 (3)")
    parser.add_argument("--charge", type=int, help="total charge of every frame")
    parser.add_argument("--spin", type=int, help="multiplicity 2S+1 of every frame")
    parser.add_argument(
        "--workers", type=int, default=1, help="single-threaded processes (1)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite --out")
    parser.add_argument(
        "--retry-failed", action="store_true", help="do failed jobs again"
    )
    parser.set_defaults(
        go_on="finished labels are kept: run the same command again to continue"
    )


def _label(arguments: argparse.Namespace) -> int:
    from mlff.dft import DFTSettings
    from mlff.frames import read_frames
    from mlff.labels import label_frames

    settings = DFTSettings(
        **_given(arguments, "xc", "basis", "reference", "grid_level")
    )
    frames = read_frames(arguments.structures)
    _set_states(frames, arguments)
    report = label_frames(
        frames,
        arguments.out,
        settings,
        workers=arguments.workers,
        force=arguments.force,
        retry_failed=arguments.retry_failed,
    )
    print(f"{arguments.out}: {report}")
    for index, reason in report.failed:
        print(f"frame {index}: {reason}", file=sys.stderr)
    return 1 if report.failed else 0


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given; the others keep the defaults of the function."""
    found = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _set_states(frames: list["Atoms"], arguments: argparse.Namespace) -> None:
    from mlff.state import read_state, set_state

    charge, spin = arguments.charge, arguments.spin
    for index, frame in enumerate(frames):
        try:
            state = read_state(frame, charge, spin, strict=True)
        except StateError as error:
            hint = "" if charge is not None and spin is not None else _STATE_HINT
            raise StateError(
                f"{arguments.structures}, frame {index}: {error}{hint}"
            ) from error
        set_state(frame, state.charge, state.multiplicity)


_STATE_HINT = "; or pass --charge and --spin, which hold for all frames"


def _add_train(verbs: Any) -> None:
    parser = _add(
        verbs,
        "train",
        _train,
        "train a potential on labelled frames",
        "mlff train run.toml\n"
        "\nA run that was stopped continues with the same command and ends with the\n"
        "same weights.",
    )
    parser.add_argument("config", help="run file, TOML; its paths are relative to it")
    parser.set_defaults(
        go_on="checkpoints are kept: run the same command again to continue"
    )


def _train(arguments: argparse.Namespace) -> int:
    from mlff.train import fit

    result = fit(arguments.config)
    for name, metrics in result.metrics.items():
        print("\n".join([name, *_table(metrics, indent="  ")]))
    print(f"best weights, of epoch {result.best_epoch}: {result.out}/best.safetensors")
    return 0


def _add_evaluate(verbs: Any) -> None:
    parser = _add(
        verbs,
        "evaluate",
        _evaluate,
        "measure a potential on labelled frames, for each electronic state",
        "mlff evaluate ch2 test.xyz --plot parity.png\n"
        "mlff evaluate model.safetensors set.db --energy-key E --forces-key F",
    )
    parser.add_argument("model", help="name of a shipped model, or a file")
    parser.add_argument("files", nargs="+", help="extxyz, traj, db or json files")
    parser.add_argument("--energy-key", help="where the energy is (REF_energy)")
    parser.add_argument("--forces-key", help="where the forces are (REF_forces)")
    parser.add_argument("--energy-unit", help="eV, meV, Hartree, kcal/mol, … (eV)")
    parser.add_argument("--forces-unit", help="e.g. Hartree/Bohr (eV/Ang)")
    parser.add_argument(
        "--trust-labels", action="store_true", help="skip the checks of the labels"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="parity plot to write")
    parser.add_argument("--force", action="store_true", help="overwrite these two")


def _evaluate(arguments: argparse.Namespace) -> int:
    for path in (arguments.out, arguments.plot):
        if path is not None and path.exists() and not arguments.force:
            raise InputError(f"{path} exists; choose another name or pass --force")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; create it")
    import json

    from mlff.data import LabelKeys
    from mlff.evaluation import evaluate
    from mlff.files import write_atomic
    from mlff.potential import load

    given = {
        "energy": arguments.energy_key,
        "forces": arguments.forces_key,
        "energy_unit": arguments.energy_unit,
        "forces_unit": arguments.forces_unit,
    }
    given = {name: value for name, value in given.items() if value is not None}
    metrics = evaluate(
        load(arguments.model, arguments.device),
        arguments.files,
        keys=LabelKeys(**given) if given else None,
        trust_labels=arguments.trust_labels,
        plot=arguments.plot,
    )
    print("\n".join(_table(metrics)))
    if arguments.out is not None:
        write_atomic(arguments.out, (json.dumps(metrics, indent=1) + "\n").encode())
    return 0

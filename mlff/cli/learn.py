"""Verbs from structures to a measured potential: ``label``, ``train``, ``evaluate``."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlff.cli.parsing import add_state_options, add_verb, given, read_structures
from mlff.errors import InputError

if TYPE_CHECKING:
    from mlff.committee import Committee
    from mlff.data import Dataset
    from mlff.report.calibration import Calibration

Metrics = dict[str, dict[str, float]]

# Columns of error tables.
_SHORT = {"energy": "E", "forces": "F"}


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    _add_label(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)


def error_table(metrics: Metrics, indent: str = "") -> list[str]:
    """Errors, one line for each electronic state."""
    from mlff.evaluation import in_words

    width = max(len(state) for state in metrics)
    first = next(iter(metrics.values()))
    units = {}
    columns = []
    for key in first:
        name, mean, unit = key.partition("_mae_")
        if mean:
            short = _SHORT.get(name, name.replace("_", " "))
            units[short] = in_words(unit)
            columns += [
                (f"{short} {kind}", f"{name}_{kind.lower()}_{unit}")
                for kind in ("MAE", "RMSE", "max")
            ]
    widths = [max(10, len(title) + 2) for title, _ in columns]
    names = "".join(f"{t:>{w}s}" for (t, _), w in zip(columns, widths, strict=True))
    told = ", ".join(f"{name} in {unit}" for name, unit in units.items())
    lines = [f"{indent}{'':{width}s}{'systems':>9s}{names}   ({told})"]
    for state, row in metrics.items():
        values = "".join(
            f"{_rounded(row[key]):>{w}s}"
            for (_, key), w in zip(columns, widths, strict=True)
        )
        lines.append(f"{indent}{state:{width}s}{row['n_systems']:9.0f}{values}")
    return lines


def _rounded(error: float) -> str:
    """Three decimals, or two digits of what would vanish."""
    return f"{error:.3f}" if error == 0 or error >= 0.01 else f"{error:.2g}"


def _add_label(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "label",
        _label,
        "compute DFT energies, forces, dipoles and spatial extents with PySCF",
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
    parser.add_argument(
        "--polarizability",
        action="store_true",
        default=None,
        help="compute it too: seven times the work",
    )
    add_state_options(parser)
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
    from mlff.labels import label_frames

    names = ("xc", "basis", "reference", "grid_level", "polarizability")
    settings = DFTSettings(**given(arguments, *names))
    structures = (arguments.structures,)
    frames = read_structures(structures, arguments.charge, arguments.spin)
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


def _add_train(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "train",
        _train,
        "train a potential on labelled frames",
        "mlff train run.toml\n"
        "mlff train run.toml --members 4    # a committee: one seed each\n"
        "\nA run that was stopped continues with the same command and ends with the\n"
        "same weights.",
    )
    parser.add_argument("config", help="run file, TOML; its paths are relative to it")
    parser.add_argument(
        "--members",
        type=int,
        metavar="N",
        help="train a committee of so many, with seeds seed, seed + 1, … on the same "
        "split, in the folders out/member_0, out/member_1, …",
    )
    parser.set_defaults(
        go_on="checkpoints are kept: run the same command again to continue"
    )


def _train(arguments: argparse.Namespace) -> int:
    from mlff.config import read_toml

    task = read_toml(arguments.config).get("task")
    if task == "nbody" and arguments.members is not None:
        raise InputError("--members is for potentials, not for the task 'nbody'")
    if task == "nbody":
        return _train_nbody(arguments.config)
    if task is not None:
        raise InputError(
            f"`task` must be 'nbody', or left out to train a potential, got {task!r}"
        )
    if arguments.members is not None:
        return _train_committee(arguments.config, arguments.members)
    from mlff.train import fit

    result = fit(arguments.config)
    for name, metrics in result.metrics.items():
        print("\n".join([name, *error_table(metrics, indent="  ")]))
    print(f"best weights, of epoch {result.best_epoch}: {result.out}/best.safetensors")
    return 0


def _train_committee(config: str, members: int) -> int:
    from mlff.train import fit_committee

    result = fit_committee(config, members)
    for name, metrics in result.metrics.items():
        print("\n".join([f"committee, {name}", *error_table(metrics, indent="  ")]))
    _compared(
        result.committee, result.held_out, result.out / "committee_calibration.png"
    )
    print(f"{members} members: {result.out}/committee.safetensors")
    return 0


def _train_nbody(config: str) -> int:
    from mlff.nbody import fit_nbody

    result = fit_nbody(config)
    metrics = result.metrics
    print(f"{'mean squared error, test':26s}{'positions':>11s}{'velocities':>12s}")
    for which, errors in metrics["test_mse"].items():
        velocities = errors["velocities"]
        shown = "" if velocities is None else f"{velocities:12.5f}"
        print(f"{which + ' weights':26s}{errors['positions']:11.5f}{shown}")
    for which, value in metrics["trivial_mse"].items():
        print(f"{which:26s}" + f"{value:{23 if which.endswith('of v') else 11}.5f}")
    print(
        f"{metrics['parameters']:,} parameters, {metrics['epochs']} epochs, "
        f"{metrics['wall_s']:.0f} s: {result.out}"
    )
    return 0


def _add_evaluate(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure a potential on labelled frames, for each electronic state",
        "mlff evaluate ch2 test.xyz --plot parity.png\n"
        "mlff evaluate committee.safetensors test.xyz --calibration calibration.png\n"
        "mlff evaluate model.safetensors set.db --energy-key E --forces-key F",
    )
    parser.add_argument(
        "model",
        help="name of a shipped model, or a file; several, separated by commas, are a "
        "committee, whose deviations are compared with its errors too",
    )
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
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="PLOT",
        help="plot to write of the errors of a committee against its deviations",
    )
    parser.add_argument("--force", action="store_true", help="overwrite these three")


def _evaluate(arguments: argparse.Namespace) -> int:
    for path in (arguments.out, arguments.plot, arguments.calibration):
        if path is not None and path.exists() and not arguments.force:
            raise InputError(f"{path} exists; choose another name or pass --force")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; create it")

    from mlff.committee import Committee, check_committee
    from mlff.data import LabelKeys
    from mlff.evaluation import check_format, comparable, evaluate
    from mlff.potential import load
    from mlff.runfolder import write_json

    keys = {
        "energy": arguments.energy_key,
        "forces": arguments.forces_key,
        "energy_unit": arguments.energy_unit,
        "forces_unit": arguments.forces_unit,
    }
    keys = {name: value for name, value in keys.items() if value is not None}
    potential = load(arguments.model, arguments.device)
    if arguments.calibration is not None:
        check_committee(potential, "calibration")
        check_format(arguments.calibration, "calibration")
    data = comparable(
        potential,
        arguments.files,
        LabelKeys(**keys) if keys else None,
        arguments.trust_labels,
    )
    metrics: dict[str, Any] = evaluate(potential, data, plot=arguments.plot)
    print("\n".join(error_table(metrics)))
    if isinstance(potential, Committee):
        found = _compared(potential, data, arguments.calibration)
        metrics["calibration"] = {one.name: one.to_json() for one in found}
    if arguments.out is not None:
        write_json(arguments.out, metrics)
    return 0


def _compared(
    committee: "Committee", data: "Dataset", plot: Path | None
) -> list["Calibration"]:
    """Tell, and draw if there is a name for it, how deviations and errors compare."""
    from mlff.report.calibration import calibrate, calibration_table, plot_calibration

    found = calibrate(committee, data)
    print("errors against deviations over the members (σ)")
    print("\n".join(f"  {line}" for line in calibration_table(found).splitlines()))
    if plot is not None:
        plot_calibration(plot, found)
    return found

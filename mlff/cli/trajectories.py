"""Verbs that read a trajectory, also one of a killed or a growing run."""

import argparse
from pathlib import Path
from typing import Any

from mlff.cli.parsing import add_verb, trajectory_file
from mlff.errors import InputError


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    _add_export(verbs)
    _add_report(verbs)


def _add_export(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "export",
        _export,
        "write the systems of a trajectory as files that other programs read",
        "mlff export run/trajectory.h5 --out frames\n"
        "mlff export run/trajectory.h5 --systems 0 7 --format traj --out frames\n"
        "mlff export run/trajectory.h5 --systems 3 --out third.xyz",
    )
    parser.add_argument("trajectory", help="trajectory.h5 of mlff md")
    parser.add_argument("--out", required=True, help="folder, or a file for one system")
    parser.add_argument(
        "--format", choices=("extxyz", "traj"), help="by the suffix, else extxyz"
    )
    parser.add_argument("--systems", type=int, nargs="+", help="indices (all)")
    parser.add_argument("--force", action="store_true", help="replace files")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def _export(arguments: argparse.Namespace) -> int:
    from mlff.trajectory import Trajectory

    trajectory = Trajectory(trajectory_file(arguments.trajectory))
    files = trajectory.export(
        arguments.out,
        arguments.format,
        arguments.systems,
        force=arguments.force,
        progress=not arguments.quiet,
    )
    if not files:
        print("nothing to write: every system was stopped before it moved")
        return 1
    print(f"{trajectory.n_frames} frames of {len(files)} systems: {arguments.out}")
    return 0


def _add_report(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "report",
        _report,
        "write table and plots of a trajectory, also while it grows",
        "mlff report run/trajectory.h5\nmlff report run/trajectory.h5 --out today",
    )
    parser.add_argument("trajectory", help="trajectory.h5 of mlff md")
    parser.add_argument("--out", help="folder, made if missing (that of the file)")


def _report(arguments: argparse.Namespace) -> int:
    from mlff.report import Run, report_md

    path = trajectory_file(arguments.trajectory)
    folder = path.parent if arguments.out is None else Path(arguments.out)
    run = Run.read(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {folder}: {error.strerror}") from error
    print(report_md(run, folder))
    print(f"written to {folder}/")
    return 0

"""Verbs that move many systems: ``md`` and ``relax``; their options and outputs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlff.cli.parsing import (
    add_state_options,
    add_verb,
    read_structures,
    run_folder,
    states_option,
)
from mlff.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff.cli.runs import MDConfig
    from mlff.potential import Potential

#: What is resumed; a folder that holds one has been written to by the verb.
TRAJECTORY, FINISHED = "trajectory.h5", "finished.xyz"

_GO_ON = "what is on the disk is kept: run the same command with --resume, not --force"


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    _add_md(verbs)
    _add_relax(verbs)


def _add_md(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "md",
        _md,
        "run molecular dynamics of many systems at once",
        "mlff md ch2.xyz --model ch2 --temperature-K 300 --picoseconds 1 --out run\n"
        "mlff md ch2.xyz --model ch2 --temperature-K 300 --picoseconds 5 --out run "
        '--charge 0 --spin 3 --replicas 100 --states "0,1 0,3"\n'
        "mlff md run.toml          # all options in a file, with _ for -\n"
        "mlff md run.toml --resume # after a kill, or to make it longer\n"
        "\nExit code 1: some systems were stopped at a bound; the others went on.",
    )
    _add_systems(parser)
    add = parser.add_argument_group("systems").add_argument
    add(
        "--replicas",
        type=int,
        metavar="N",
        help="copies of each frame, with noise of their own",
    )
    add(
        "--draw-velocities",
        action="store_true",
        default=None,
        help="forget velocities in the files",
    )
    _add_ensemble(parser)
    add = parser.add_argument_group("length and output").add_argument
    add("--steps", type=int, metavar="N", help="length of the run")
    add("--picoseconds", type=float, metavar="X", help="length of the run, instead")
    add(
        "--every",
        type=int,
        metavar="N",
        help="steps between frames (10); final.xyz has the last step in any case",
    )
    add(
        "--states",
        type=states_option,
        metavar='"Q,M Q,M …"',
        help="charge and multiplicity of states whose energies are recorded along the "
        "way; gaps are between these, so name the state that moves too (that of "
        "--charge and --spin or of the file)",
    )
    add(
        "--export",
        choices=("extxyz", "traj"),
        help="write a file of this kind for each system, too",
    )
    _add_bounds(parser)
    parser.set_defaults(go_on=_GO_ON)


def _add_systems(parser: Any) -> None:
    """Add what ``md`` and ``relax`` share."""
    parser.add_argument(
        "structures",
        nargs="+",
        help="extxyz, traj, db or json files; or one run file, TOML",
    )
    parser.add_argument(
        "--model",
        help="name of a shipped model, or a file; several, separated by commas, are "
        "a committee",
    )
    parser.add_argument("--out", help="folder to write into; made if missing")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a stopped run")
    again.add_argument("--force", action="store_true", help="replace what is in --out")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    parser.add_argument("--device", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", help="float32 or float64 (that of the model)")
    add_state_options(parser)


def _add_ensemble(parser: Any) -> None:
    add = parser.add_argument_group("ensemble").add_argument
    add(
        "--ensemble",
        help="nve, langevin, rescaling, npt-isotropic or npt-flexible (langevin)",
    )
    add(
        "--temperature-K",
        type=float,
        metavar="X",
        help="K; in a run file also [[time_fs, K], …]",
    )
    add("--timestep-fs", type=float, metavar="X", help="fs (0.5)")
    add("--friction-per-fs", type=float, metavar="X", help="of langevin, 1/fs (0.01)")
    add(
        "--time-constant-fs",
        type=float,
        metavar="X",
        help="of rescaling and npt, fs (100)",
    )
    add("--pressure-GPa", type=float, metavar="X", help="of npt, GPa")
    add(
        "--compressibility-per-GPa",
        type=float,
        metavar="X",
        help="of npt, 1/GPa; 0.45 for water",
    )
    add(
        "--pressure-time-constant-fs", type=float, metavar="X", help="of npt, fs (1000)"
    )
    add("--seed", type=int, metavar="N", help="of velocities and noise (0)")
    add(
        "--remove-motion",
        action=argparse.BooleanOptionalAction,
        help="take out motion of whole systems (only with rescaling)",
    )


def _add_bounds(parser: Any, temperature: bool = True) -> None:
    add = parser.add_argument_group("bounds that stop a system").add_argument
    add(
        "--max-force-eV-per-A",
        type=float,
        metavar="X",
        help="force on an atom, eV/Å (100)",
    )
    if temperature:
        add(
            "--max-temperature-K",
            type=float,
            metavar="X",
            help="of a system, K (20000)",
        )
        add(
            "--max-deviation-eV-per-A",
            type=float,
            metavar="X",
            help="of a force over the members of a committee, eV/Å (no bound)",
        )
    add("--region", help="ignore, or freeze what leaves the training data (ignore)")
    add(
        "--margin-A",
        type=float,
        metavar="X",
        help="how far distances may leave them, Å",
    )
    add(
        "--margin-degrees",
        type=float,
        metavar="X",
        help="how far angles may leave them, degrees",
    )


def _md(arguments: argparse.Namespace) -> int:
    from mlff.cli.runs import MDConfig, read_config
    from mlff.md import MDOptions, run_md
    from mlff.report import Run, report_md

    config = read_config(MDConfig, arguments)
    folder = run_folder(config.out, TRAJECTORY, arguments)
    integrator = config.integrator()
    systems = _systems(config)
    _check_frames(systems[:: config.replicas])
    potential = config.potential()
    folder.mkdir(exist_ok=True)
    print(
        f"{len(systems)} systems, {sum(map(len, systems))} atoms; {config.n_steps} "
        f"steps of {config.timestep_fs:g} fs, a frame every {config.every} steps"
    )
    result = run_md(
        systems,
        potential,
        integrator,
        n_steps=config.n_steps,
        trajectory=folder / TRAJECTORY,
        every=config.every,
        resume=arguments.resume,
        options=MDOptions(
            limits=config.limits,
            states=config.states,
            overwrite=arguments.force,
            progress=not arguments.quiet,
        ),
    )
    remarks = _unseen(potential, systems, config.states)
    if result.outside:
        index, text = next(iter(result.outside.items()))
        remarks.append(
            f"{len(result.outside)} of {len(systems)} systems have left the region "
            f"seen in training, for example system {index}: {text}; energies there "
            "mean little, and --region freeze stops such systems"
        )
    print(report_md(Run.from_result(result, integrator), folder, remarks))
    for index, atoms in enumerate(result.atoms):
        atoms.info.pop("converged", None)  # of a relaxation before
        if index in result.frozen:
            atoms.info["frozen"] = result.frozen[index].reason
    _write_frames(folder / "final.xyz", result.atoms)
    if config.export is not None:
        _export(folder, config.export, not arguments.quiet)
    print(f"written to {folder}/")
    return 1 if result.frozen else 0


def _unseen(
    potential: "Potential",
    systems: list["Atoms"],
    states: Sequence[tuple[int, int]] = (),
) -> list[str]:
    """Say what of the systems, and of these states of them, was not in training."""
    from mlff.batch import AtomsBatch
    from mlff.inference import unseen

    return list(unseen(potential, AtomsBatch.from_atoms(systems), states))


def _systems(config: "MDConfig") -> list["Atoms"]:
    """All copies of all frames; copies of one stand next to each other."""
    frames = read_structures(config.structures, config.charge, config.spin)
    for frame in frames:
        if config.draw_velocities and frame.has("momenta"):
            del frame.arrays["momenta"]
    alike = config.temperature_K is None or any(
        frame.get_momenta().any() for frame in frames
    )
    if config.replicas > 1 and config.ensemble == "nve" and alike:
        raise InputError(
            "at constant energy copies with the same velocities move alike: let them "
            "be drawn with --temperature-K and --draw-velocities, or take --replicas 1"
        )
    return [frame.copy() for frame in frames for _ in range(config.replicas)]


def _plain(frame: "Atoms") -> "Atoms":
    """A copy whose ``info`` holds nothing that a file would take for a result."""
    from mlff.relaxation.relaxed import without_results

    out = without_results(frame)
    out.calc = frame.calc
    return out


def _check_frames(frames: list["Atoms"]) -> None:
    """Refuse before a run what could not be written after it."""
    from mlff.relaxation.framelog import check_frame

    for index, frame in enumerate(frames):
        plain = _plain(frame)
        plain.calc = None
        check_frame(plain, f"frame {index}")


def _write_frames(path: Path, frames: list["Atoms"]) -> None:
    import io

    from ase.io import write

    from mlff.files import write_atomic

    text = io.StringIO()
    write(text, [_plain(frame) for frame in frames], format="extxyz")
    write_atomic(path, text.getvalue().encode())


def _export(folder: Path, format: str, progress: bool) -> None:
    from mlff.trajectory import Trajectory

    out = folder / "systems"
    if out.is_dir():  # of an earlier run, which may have had more systems
        for old in (*out.glob("[0-9]*_*.xyz"), *out.glob("[0-9]*_*.traj")):
            old.unlink()
    Trajectory(folder / TRAJECTORY).export(out, format, progress=progress)


def _add_relax(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "relax",
        _relax,
        "relax many systems at once",
        "mlff relax conformers.xyz --model ch2 --out relaxed\n"
        "mlff relax a.xyz b.traj --model ch2 --fmax 0.001 --charge 0 --spin 3 "
        "--out relaxed\n"
        "mlff relax run.toml --resume\n"
        "\nExit code 1: some systems have not converged.",
    )
    _add_systems(parser)
    add = parser.add_argument_group("relaxation").add_argument
    add(
        "--fmax",
        type=float,
        metavar="X",
        help="largest force that may be left, eV/Å (0.01)",
    )
    add("--optimizer", help="lbfgs or fire (lbfgs)")
    add("--max-steps", type=int, metavar="N", help="of each system (500)")
    add(
        "--hold",
        action="append",
        metavar='"KIND ATOMS"',
        help='a coordinate that keeps its value, like "angle 1 0 2"; any number',
    )
    _add_bounds(parser, temperature=False)
    parser.set_defaults(go_on=_GO_ON)


def _relax(arguments: argparse.Namespace) -> int:
    from mlff.cli.runs import RelaxConfig, read_config
    from mlff.relaxation import RelaxOptions, relax
    from mlff.report import report_relaxation

    config = read_config(RelaxConfig, arguments)
    folder = run_folder(config.out, FINISHED, arguments)
    systems = read_structures(config.structures, config.charge, config.spin)
    _check_frames(systems)
    potential = config.potential()
    folder.mkdir(exist_ok=True)
    print(f"{len(systems)} systems, {sum(map(len, systems))} atoms")
    results = relax(
        systems,
        potential,
        config.fmax,
        optimizer=config.optimizer,
        max_steps=config.max_steps,
        options=RelaxOptions(
            limits=config.limits,
            out=folder / FINISHED,
            resume=arguments.resume,
            overwrite=arguments.force,
            progress=not arguments.quiet,
            hold=config.hold,
        ),
    )
    print(report_relaxation(results, folder, _unseen(potential, systems)))
    for one in results:
        one.atoms.info["converged"] = one.converged
    _write_frames(folder / "relaxed.xyz", [one.atoms for one in results])
    print(f"written to {folder}/")
    return 0 if all(one.converged for one in results) else 1

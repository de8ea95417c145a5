"""Singlet and triplet methylene from the shipped model, as a person would run them.

Relaxes both states, compares with DFT, runs molecular dynamics and scans the angle;
writes trajectories, two plots and a summary. Everything goes through ASE.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from tqdm import tqdm

from mlff.calculator import MLFFCalculator
from mlff.errors import InputError
from mlff.inference import predict
from mlff.potential import Potential, load, shipped
from mlff.state import set_state

#: The two states: name → multiplicity.
STATES = {"singlet": 1, "triplet": 3}

#: Bond length of the angle scan, Å.
SCAN_BOND = 1.10

_COLORS = {"singlet": "tab:blue", "triplet": "tab:red"}


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """A relaxed structure of CH2.

    Attributes:
        bond: mean C-H distance, Å.
        angle: H-C-H, degrees.
        energy: eV.
    """

    bond: float
    angle: float
    energy: float

    @classmethod
    def of(cls, atoms: Atoms, energy: float) -> "Minimum":
        """Measure a structure."""
        bonds = atoms.get_distances(0, [1, 2])
        return cls(
            bond=float(bonds.mean()),
            angle=float(atoms.get_angle(1, 0, 2)),
            energy=float(energy),
        )


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """A run at constant energy.

    Attributes:
        times: fs, (n_frames,).
        total: total energy, eV, (n_frames,).
        drift: slope of the total energy, meV/atom/ps.
        fluctuation: its standard deviation about the slope, meV/atom.
    """

    times: list[float]
    total: list[float]
    drift: float
    fluctuation: float


def methylene(bond: float, angle: float, spin: int) -> Atoms:
    """Return CH2 with equal bonds (Å), the H-C-H angle (degrees) and multiplicity."""
    radians = np.deg2rad(angle)
    second = [bond * np.cos(radians), bond * np.sin(radians), 0.0]
    atoms = Atoms("CHH", positions=[[0, 0, 0], [bond, 0, 0], second])
    return set_state(atoms, charge=0, spin=spin)


def run_demo(
    out: str | Path = "demo_output",
    *,
    picoseconds: float = 2.0,
    temperature: float = 300.0,
    timestep: float = 0.5,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the demonstration and print what it finds.

    Args:
        out: folder for trajectories, plots and ``summary.json``; created.
        picoseconds: length of each of the two dynamics runs.
        temperature: of their initial velocities, K.
        timestep: fs.
        progress: show bars.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: a folder that cannot be written, or a run without a step.
    """
    folder = _folder(out)
    if not (timestep > 0 and picoseconds * 1000 >= timestep):
        raise InputError(
            f"`picoseconds`={picoseconds:g} and `timestep`={timestep:g} fs make no step"
        )
    potential, reference = load("ch2"), _reference()
    print("Relaxing both states of CH2 with the shipped model 'ch2' …")
    relaxed = {
        name: relax_state(potential, spin, folder / f"{name}_relax.traj")
        for name, spin in STATES.items()
    }
    minima = {
        name: Minimum.of(atoms, atoms.get_potential_energy())
        for name, atoms in relaxed.items()
    }
    _print_minima(minima, reference["minima"])
    steps = round(picoseconds * 1000 / timestep)
    runs = {}
    for index, (name, atoms) in enumerate(relaxed.items()):
        runs[name] = run_dynamics(
            atoms,
            steps,
            timestep,
            temperature,
            folder / f"{name}_md.traj",
            seed=index,
            progress=progress,
        )
        print(
            f"{name:8s} {picoseconds:g} ps of NVE from {temperature:g} K at "
            f"{timestep:g} fs: drift {runs[name].drift:+.4f} meV/atom/ps, "
            f"fluctuation {runs[name].fluctuation:.3f} meV/atom"
        )
    scan = scan_angle(potential)
    errors = _scan_errors(scan, reference["scan"])
    for name, error in errors.items():
        print(f"{name:8s} angle scan at {SCAN_BOND:.2f} Å against DFT: {error}")
    plot_scan(scan, reference["scan"], folder / "scan.png")
    plot_dynamics(runs, folder / "md_energy.png")
    summary = _summary(minima, reference["minima"], runs, errors)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(
        f"Written to {folder}/: scan.png, md_energy.png, *_relax.traj, *_md.traj, "
        "summary.json\nNext: open the plots, or `ase gui "
        f"{folder}/triplet_md.traj`; README.md shows the calculator in five lines."
    )
    return summary


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`out`={folder}: {error.strerror}") from error
    return folder


def _summary(
    minima: dict[str, Minimum],
    dft: dict[str, Minimum],
    runs: dict[str, Dynamics],
    scan_errors: dict[str, str],
) -> dict[str, Any]:
    return {
        "model": "ch2",
        "minima": {name: asdict(m) for name, m in minima.items()},
        "minima_dft": {name: asdict(m) for name, m in dft.items()},
        "gap_eV": _gap(minima),
        "gap_dft_eV": _gap(dft),
        "drift_meV_per_atom_per_ps": {n: r.drift for n, r in runs.items()},
        "scan_errors": scan_errors,
    }


def relax_state(potential: Potential, spin: int, trajectory: Path) -> Atoms:
    """Relax CH2 of one multiplicity with ASE's BFGS and keep its path."""
    atoms = methylene(1.10, 115.0, spin)
    atoms.calc = MLFFCalculator(potential)
    with Trajectory(trajectory, "w", atoms) as writer:
        optimizer = BFGS(atoms, trajectory=writer, logfile=None)
        optimizer.run(fmax=1e-4, steps=200)
    return atoms


def run_dynamics(
    start: Atoms,
    steps: int,
    timestep: float,
    temperature: float,
    trajectory: Path,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Dynamics:
    """Run velocity Verlet at constant energy from thermal velocities.

    Args:
        start: structure with a calculator; not modified.
        steps: number of steps.
        timestep: fs.
        temperature: of the initial velocities, K.
        trajectory: file for every tenth frame.
        seed: of the velocities.
        progress: show a bar.
    """
    atoms = start.copy()
    atoms.calc = start.calc
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, temperature, exact_temperature=True, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    times, total = [], []
    every = 10
    with Trajectory(trajectory, "w", atoms) as writer:
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
        bar = tqdm(total=steps, desc="md", unit="step", disable=not progress)

        def record() -> None:
            times.append(dynamics.get_number_of_steps() * timestep)
            total.append(float(atoms.get_total_energy()))
            writer.write()
            bar.update(min(every, steps - bar.n) if len(times) > 1 else 0)

        dynamics.attach(record, interval=every)
        dynamics.run(steps)
        bar.close()
    drift, residual = _drift(np.array(times), np.array(total), len(atoms))
    return Dynamics(times=times, total=total, drift=drift, fluctuation=residual)


def _drift(
    times: np.ndarray[Any, Any], total: np.ndarray[Any, Any], n_atoms: int
) -> tuple[float, float]:
    """Slope (meV/atom/ps) of the total energy and scatter about it (meV/atom)."""
    if len(times) < 3:
        return 0.0, 0.0
    slope, offset = np.polyfit(times / 1000, 1000 * total / n_atoms, 1)
    line = slope * times / 1000 + offset
    return float(slope), float(np.std(1000 * total / n_atoms - line))


def scan_angle(potential: Potential) -> dict[str, dict[str, list[float]]]:
    """Energies (eV) of both states along the H-C-H angle, in one batched call."""
    angles = np.linspace(90, 180, 91)
    frames = [
        methylene(SCAN_BOND, angle, spin)
        for spin in STATES.values()
        for angle in angles
    ]
    energies = [out["energy"] for out in predict(potential, frames, ("energy",))]
    rows = np.array(energies).reshape(len(STATES), -1)
    return {
        name: {"angle": angles.tolist(), "energy": row.tolist()}
        for name, row in zip(STATES, rows, strict=True)
    }


def _reference() -> dict[str, Any]:
    """DFT minima and scan points that come with the model."""
    frames = read(shipped()["ch2"].with_name("ch2_reference.xyz"), ":", format="extxyz")
    out: dict[str, Any] = {"minima": {}, "scan": {}}
    names = {spin: name for name, spin in STATES.items()}
    for atoms in frames:
        name, energy = names[int(atoms.info["spin"])], atoms.info["REF_energy"]
        if atoms.info["config_type"] == "ch2_minimum":
            out["minima"][name] = Minimum.of(atoms, energy)
        else:
            points = out["scan"].setdefault(name, {"angle": [], "energy": []})
            points["angle"].append(float(atoms.get_angle(1, 0, 2)))
            points["energy"].append(float(energy))
    return out


def _gap(minima: dict[str, Minimum]) -> float:
    return minima["singlet"].energy - minima["triplet"].energy


def _print_minima(model: dict[str, Minimum], dft: dict[str, Minimum]) -> None:
    print(f"{'':10s}{'C-H / Å':>20s}{'H-C-H / °':>22s}")
    print(f"{'':10s}{'model':>10s}{'DFT':>10s}{'model':>12s}{'DFT':>10s}")
    for name, found in model.items():
        expected = dft[name]
        print(
            f"{name:10s}{found.bond:10.4f}{expected.bond:10.4f}"
            f"{found.angle:12.2f}{expected.angle:10.2f}"
        )
    print(
        f"adiabatic gap E(singlet) − E(triplet): {_gap(model):.4f} eV, DFT "
        f"{_gap(dft):.4f} eV (B3LYP(VWN5)/cc-pVDZ, restricted singlet)"
    )


def _scan_errors(scan: dict[str, Any], dft: dict[str, Any]) -> dict[str, str]:
    """Mean errors inside and outside the angles of the training data."""
    errors = {}
    for name, points in dft.items():
        angles = np.array(points["angle"])
        found = np.interp(angles, scan[name]["angle"], scan[name]["energy"])
        error = 1000 * np.abs(found - np.array(points["energy"]))
        inside = angles <= 140
        errors[name] = (
            f"MAE {error[inside].mean():.2f} meV at 90-140° (trained), "
            f"{error[~inside].mean():.1f} meV at 140-180° (extrapolated)"
        )
    return errors


def plot_scan(scan: dict[str, Any], dft: dict[str, Any], path: Path) -> None:
    """Draw the model's curves with the DFT points on them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    zero = min(min(points["energy"]) for points in dft.values())
    for name, color in _COLORS.items():
        curve, points = scan[name], dft[name]
        axes.plot(
            curve["angle"],
            np.array(curve["energy"]) - zero,
            color=color,
            label=f"{name}, model",
        )
        axes.plot(
            points["angle"],
            np.array(points["energy"]) - zero,
            "o",
            color=color,
            fillstyle="none",
            markersize=4,
            label=f"{name}, DFT",
        )
    axes.axvspan(90, 140, color="0.93", zorder=0, label="angles in the training data")
    axes.set(
        xlabel="H-C-H angle / °",
        ylabel="energy / eV",
        title=f"CH$_2$, C-H {SCAN_BOND:.2f} Å",
        xlim=(90, 180),
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def plot_dynamics(runs: dict[str, Dynamics], path: Path) -> None:
    """Draw the total energy of each run about its mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        total = 1000 * (np.array(run.total) - np.mean(run.total)) / 3
        axes.plot(
            np.array(run.times) / 1000,
            total,
            color=_COLORS[name],
            linewidth=0.8,
            label=f"{name}, drift {run.drift:+.3f} meV/atom/ps",
        )
    axes.set(
        xlabel="time / ps",
        ylabel="total energy − mean / (meV/atom)",
        title="CH$_2$, constant energy",
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)

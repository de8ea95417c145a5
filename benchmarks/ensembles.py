"""Integrators of the package against what statistical mechanics says, on CH2.

python benchmarks/ensembles.py [--parts order langevin rescaling drift] [--plot x.png]

order      how much smaller the total-energy fluctuation is at half the time step
drift      of the total energy over 50 ps at 0.25 fs, meV/atom/ps
langevin   Langevin, all nine degrees of freedom
rescaling  velocity rescaling, no motion of the whole molecule: three

For the two thermostats: mean and variance of the kinetic energy, its distribution
(Kolmogorov-Smirnov against Gamma(N_f/2, k_B T)), the energy of each Cartesian degree
of freedom, and the distribution of the angle against the integral over the surface of
the model. Standard errors come from the means of independent replicas; samples for a
test of a distribution are spaced by three integrated autocorrelation times.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ensemble_statistics import (
    KT,
    TEMPERATURE_K,
    AngleDensity,
    Array,
    Samples,
    angle_density,
    angle_report,
    angles,
    internal_shares,
    kinetic_report,
)
from scipy import stats

import mlff
from mlff.batch import AtomsBatch
from mlff.demo import STATES, methylene
from mlff.dynamics.integrators import (
    Integrator,
    Langevin,
    VelocityRescaling,
    VelocityVerlet,
)
from mlff.dynamics.phase import MDState
from mlff.forcefield import ForceField

ANGLES = {"singlet": 102.0, "triplet": 134.0}


class Run:
    """Some systems, their force field, and where they are."""

    def __init__(
        self, potential: mlff.Potential, systems: list[Atoms], integrator: Integrator
    ) -> None:
        masses = torch.from_numpy(np.concatenate([a.get_masses() for a in systems]))
        batch = AtomsBatch.from_atoms(systems).to(potential.device)
        self.integrator = integrator
        self.forcefield = ForceField(potential, batch)
        self.state = self._started(
            batch, masses.to(potential.device), torch.zeros_like(batch.positions)
        )

    def _started(
        self, batch: AtomsBatch, masses: torch.Tensor, momenta: torch.Tensor
    ) -> MDState:
        mobile = torch.ones_like(batch.system, dtype=torch.bool)
        return self.integrator.init(
            batch, self.forcefield, masses=masses, momenta=momenta, mobile=mobile
        )

    def go(self, n_steps: int) -> None:
        for _ in range(n_steps):
            self.state = self.integrator.step(self.state, self.forcefield)

    def change(self, integrator: Integrator) -> None:
        """Go on with another integrator."""
        state, self.integrator = self.state, integrator
        self.state = self._started(state.batch, state.masses, state.momenta)

    def total_energy(self) -> Array:
        return (self.state.energy + self.state.kinetic_energy()).cpu().numpy()


def replicas(n: int) -> list[Atoms]:
    """``n`` molecules of each state, singlets first."""
    return [
        methylene(1.09, ANGLES[name], spin)
        for name, spin in STATES.items()
        for _ in range(n)
    ]


# Constant energy


def nve(timestep_fs: float, seed: int = 1) -> VelocityVerlet:
    return VelocityVerlet(
        timestep_fs=timestep_fs,
        initial_temperature_K=TEMPERATURE_K,
        remove_motion=True,
        seed=seed,
    )


def order(
    potential: mlff.Potential,
    *,
    n: int = 8,
    length_fs: float = 500.0,
    timesteps_fs: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125),
) -> dict[str, Any]:
    """Fluctuation of the total energy from the same starts at several time steps."""
    fluctuations = []
    for timestep in timesteps_fs:
        run = Run(potential, replicas(n), nve(timestep))
        energies = []
        for _ in range(round(length_fs / timesteps_fs[0])):
            run.go(round(timesteps_fs[0] / timestep))
            energies.append(run.total_energy())
        fluctuations.append(np.std(energies, axis=0))
    ratios = np.array(fluctuations[:-1]) / np.array(fluctuations[1:])
    return {
        "systems": 2 * n,
        "length_fs": length_fs,
        "fluctuation_meV_per_atom_median": {
            f"{t} fs": float(1e3 * np.median(f) / 3)
            for t, f in zip(timesteps_fs, fluctuations, strict=True)
        },
        "ratio_median_min_max": {
            f"{t} to {t / 2} fs": [float(f(r)) for f in (np.median, np.min, np.max)]
            for t, r in zip(timesteps_fs, ratios, strict=False)
        },
    }


def drift(
    potential: mlff.Potential,
    *,
    n: int = 8,
    picoseconds: float = 50.0,
    timestep_fs: float = 0.25,
) -> dict[str, Any]:
    """Slope of the total energy, by state."""
    run = Run(potential, replicas(n), nve(timestep_fs))
    stride = 20
    energies = [run.total_energy()]
    for _ in range(round(1e3 * picoseconds / timestep_fs / stride)):
        run.go(stride)
        energies.append(run.total_energy())
    per_atom = 1e3 * (np.array(energies) - energies[0]) / 3.0
    times = np.arange(len(per_atom)) * stride * timestep_fs * 1e-3
    slope, offset = np.polyfit(times, per_atom, 1)
    left = per_atom - slope * times[:, None] - offset
    out: dict[str, Any] = {
        "replicas_of_each_state": n,
        "picoseconds": picoseconds,
        "timestep_fs": timestep_fs,
    }
    for index, name in enumerate(STATES):
        own = slice(index * n, (index + 1) * n)
        size = np.abs(slope[own])
        out[name] = {
            "abs_drift_meV_per_atom_per_ps_median": float(np.median(size)),
            "abs_drift_meV_per_atom_per_ps_worst": float(size.max()),
            "drift_meV_per_atom_per_ps_mean": float(slope[own].mean()),
            "fluctuation_meV_per_atom_median": float(np.median(left[:, own].std(0))),
        }
    return out


# Canonical ensemble


def thermostat(name: str, timestep_fs: float, seed: int = 2) -> Integrator:
    common = {"timestep_fs": timestep_fs, "temperature_K": TEMPERATURE_K, "seed": seed}
    if name == "langevin":
        return Langevin(friction_per_fs=0.02, **common)
    return VelocityRescaling(time_constant_fs=50.0, **common)


def canonical(
    potential: mlff.Potential,
    name: str,
    *,
    n: int = 64,
    picoseconds: float = 10.0,
    timestep_fs: float = 0.25,
    spacing_fs: float = 10.0,
) -> dict[str, Samples]:
    """Sample both states with one thermostat, after 1 ps of Langevin dynamics."""
    wanted = thermostat(name, timestep_fs)
    start = Langevin(
        timestep_fs=timestep_fs,
        temperature_K=TEMPERATURE_K,
        friction_per_fs=0.02,
        seed=3,
        remove_motion=wanted.remove_motion,
    )
    run = Run(potential, replicas(n), start)
    run.go(round(min(1e3, 500.0 * picoseconds) / timestep_fs))
    run.change(wanted)
    momenta, positions = [], []
    for _ in range(round(1e3 * picoseconds / spacing_fs)):
        run.go(round(spacing_fs / timestep_fs))
        momenta.append(run.state.momenta.cpu().numpy())
        positions.append(run.state.batch.positions.cpu().numpy())
    masses = run.state.masses.cpu().numpy().reshape(2 * n, 3)
    p, r = (np.array(x).reshape(-1, 2 * n, 3, 3) for x in (momenta, positions))
    components = p**2 / (2.0 * masses[:, :, None])
    shares = np.ones_like(p)
    if wanted.remove_motion:
        shares = internal_shares(r, masses[0])
    out = {}
    for index, state in enumerate(STATES):
        own = slice(index * n, (index + 1) * n)
        out[state] = Samples(
            kinetic=components[:, own].sum((2, 3)),
            components=components[:, own].reshape(-1, n, 9),
            shares=shares[:, own].reshape(-1, n, 9),
            angle=angles(r[:, own]),
            dof=float(run.state.dof[0]),
            spacing_fs=spacing_fs,
        )
    return out


# Output


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    def potential(dtype: torch.dtype) -> mlff.Potential:
        return mlff.load("ch2", arguments.device, dtype)

    report: dict[str, Any] = {}
    if "order" in arguments.parts:
        report["order"] = order(potential(torch.float64))
    drawn: dict[str, Any] = {}
    single = potential(torch.float32)
    for name in ("langevin", "rescaling"):
        if name not in arguments.parts:
            continue
        samples = canonical(
            single, name, n=arguments.replicas, picoseconds=arguments.picoseconds
        )
        for state, spin in STATES.items():
            density = angle_density(single, spin, rotates=name == "langevin")
            drawn[f"{name}, {state}"] = samples[state], density
            report[f"{name}, {state}"] = {
                "replicas": arguments.replicas,
                "picoseconds_each": arguments.picoseconds,
                "kinetic": kinetic_report(samples[state]),
                "angle": angle_report(samples[state], density),
            }
    if "drift" in arguments.parts:
        for dtype in (torch.float32, torch.float64):
            report[f"drift, {str(dtype)[6:]}"] = drift(
                potential(dtype), picoseconds=arguments.drift_picoseconds
            )
    if arguments.plot and drawn:
        plot(drawn, arguments.plot)
    return report


def table(report: dict[str, Any]) -> str:
    head = ("", "K/exact", "z", "var K z", "KS p", "dof |z|", "angle", "exact")
    rows = [(*head, "z", "chi2 p", "KS p")]
    for name, entry in report.items():
        if "kinetic" not in entry:
            continue
        kinetic, angle = entry["kinetic"], entry["angle"]
        mean, bend = kinetic["mean_eV"], angle["mean_degrees"]
        numbers = (
            mean["found"] / mean["expected"],
            mean["z"],
            kinetic["variance_eV2"]["z"],
            kinetic["kolmogorov_smirnov"]["p"],
            kinetic["equipartition"]["z_largest"],
            bend["found"],
            bend["expected"],
            bend["z"],
            angle["chi_square_20_bins_p"],
            angle["kolmogorov_smirnov_p"],
        )
        rows.append((name, *(f"{x:.3f}" for x in numbers)))
    return "\n".join(
        f"{row[0]:20s}" + "".join(f"{x:>11s}" for x in row[1:]) for row in rows
    )


def plot(drawn: dict[str, tuple[Samples, AngleDensity]], path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(drawn), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(drawn), squeeze=False)
    for (name, (samples, density)), (top, bottom) in zip(
        drawn.items(), axes.T, strict=True
    ):
        energy = np.linspace(0.0, 8.0 * KT * samples.dof / 3, 200)
        top.hist(1e3 * samples.kinetic.ravel(), 100, density=True, alpha=0.5)
        exact = stats.gamma(samples.dof / 2, scale=KT).pdf(energy)
        top.plot(1e3 * energy, 1e-3 * exact, "k-", lw=1, label="canonical")
        top.set(title=name, xlabel="kinetic energy (meV)", xlim=(0, 1e3 * energy[-1]))
        width = np.diff(density.edges)
        bottom.hist(samples.angle.ravel(), density.edges, density=True, alpha=0.5)
        centers = 0.5 * (density.edges[1:] + density.edges[:-1])
        bottom.plot(
            centers, density.probability / width, "k-", lw=1, label="Boltzmann integral"
        )
        bottom.set(xlabel="H-C-H (degrees)")
        top.legend()
        bottom.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("order", "langevin", "rescaling", "drift")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--replicas", type=int, default=64, help="of each state")
    parser.add_argument(
        "--picoseconds", type=float, default=10.0, help="of each replica"
    )
    parser.add_argument("--drift-picoseconds", type=float, default=50.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", help="write histograms here")
    parser.add_argument("--json", help="write the report here too")
    arguments = parser.parse_args()
    report = measure(arguments)
    text = json.dumps(report, indent=1)
    print(text)
    print(table(report))
    if arguments.json:
        with open(arguments.json, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()

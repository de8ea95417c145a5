"""The figures and tables of the CMRET paper on CH2, beside DFT (arXiv:2308.10752).

python benchmarks/paper.py figure2    # angle scan: attention, output blocks, ResML
python benchmarks/paper.py figure3    # surfaces of four networks, and their errors
python benchmarks/paper.py table1     # activations of the attention, Bessel functions
python benchmarks/paper.py table2     # activations and temperatures, Gaussians

Sections 3.1 and 3.2. Every network sees the same 1,440 geometries of the random split,
in three orders and from three starts (--seeds), for the same number of epochs; nothing
is tuned for one of them. Single-head attention and 20 radial functions as there; 3
layers of 32 features for a hundred epochs instead of 5 layers for 7,000 to 20,000, so
that all of it takes about an hour and a half of one core. Runs are kept in --out and
shared by figures and tables; a killed benchmark goes on. Pictures go to --plots.
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

import mlff
from mlff.frames import read_frames

HERE = Path(__file__).parent.parent / "data_gen"
RECIPE = HERE / "train_ch2.toml"
SURFACE = HERE / "ch2_surface.xyz"

FULL = {
    "name": "cmret",
    "n_features": 32,
    "n_layers": 3,
    "n_radial": 20,
    "n_heads": 1,
    "basis": "gaussian",
    "attention": "softmax",
    "temperature": 2.0,
}
PAINN = {"name": "painn", "n_features": 32, "n_layers": 3, "n_radial": 20}
ACTIVATIONS = ("softmax", "softmax2d", "silu", "softplus", "gelu", "mish")

#: What each figure and table compares: label → options.
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "figure2": {
        "attention, 2 blocks, ResML": FULL,
        "no attention": {**FULL, "attention": "none"},
        "1 block": {**FULL, "n_output_blocks": 1},
        "1 block, no ResML": {**FULL, "n_output_blocks": 1, "residual": False},
    },
    "figure3": {
        "softmax, τ = √(2d)": FULL,
        "softmax, τ = √d": {**FULL, "temperature": 1.0},
        "Swish, τ = √(2d)": {**FULL, "attention": "silu"},
        "PaiNN": PAINN,
    },
    "table1": {
        name: {**FULL, "basis": "bessel", "attention": name, "temperature": 1.0}
        for name in ACTIVATIONS
    },
    "table2": {
        f"{name}, τ = √({c:g}d)": {**FULL, "attention": name, "temperature": c}
        for name in ("softmax", "silu")
        for c in (1.0, 1.5, 2.0)
    },
}

Row = dict[str, Any]


class Surface:
    """The labelled surface: equal bonds 0.90 … 1.40 Å, angles 90 … 180°, two states."""

    def __init__(self) -> None:
        self.frames: list[Atoms] = read_frames(SURFACE)
        self.bond = np.round([a.get_distance(0, 1) for a in self.frames], 4)
        self.angle = np.round([a.get_angle(1, 0, 2) for a in self.frames], 2)
        self.spin = np.array([int(a.info["spin"]) for a in self.frames])
        self.energy = np.array([a.info["REF_energy"] for a in self.frames])
        self.forces = np.array([a.arrays["REF_forces"] for a in self.frames])
        self.inside = (self.bond < 1.2001) & (self.angle < 140.01)
        self.inside &= self.bond > 0.9499

    def errors(self, potential: mlff.Potential) -> Row:
        """Energies of a potential, and its errors inside and outside of the square."""
        found = mlff.predict(potential, self.frames)
        energy = np.array([o["energy"] for o in found])
        forces = np.array([o["forces"] for o in found])
        out: Row = {"energies": energy.tolist()}
        for where, rows in (("inside", self.inside), ("outside", ~self.inside)):
            out[f"{where}_meV"] = 1e3 * np.abs(energy - self.energy)[rows].mean()
            out[f"{where}_meV_per_A"] = 1e3 * np.abs(forces - self.forces)[rows].mean()
        return out


def trained(options: Row, seed: int, arguments: argparse.Namespace) -> Row:
    """Train one network from one seed, or take what is there."""
    name = "_".join(f"{v}" for k, v in options.items() if FULL.get(k) != v) or "full"
    folder = arguments.out / f"{name}_{seed}_{arguments.epochs}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    base = mlff.TrainConfig.load(RECIPE)
    training = replace(base.training, epochs=arguments.epochs, batch_size=20)
    config = replace(
        base, out=str(folder / "run"), seed=seed, model=options, training=training
    )
    with warnings.catch_warnings():  # of mirror images in the random split
        warnings.simplefilter("ignore", mlff.errors.MlffWarning)
        metrics = mlff.fit(config, progress=False).metrics["test"]["all"]
        row = Surface().errors(mlff.load(folder / "run" / "best.safetensors"))
    row["test_meV"] = metrics["energy_mae_meV"]
    row["test_meV_per_A"] = metrics["forces_mae_meV_per_A"]
    result.write_text(json.dumps(row))
    return row


def table(study: dict[str, list[Row]]) -> str:
    """Errors of every network: mean over the seeds and the largest deviation."""
    columns = ("test", "inside", "outside")
    lines = ["MAE: energy/meV, force component/meV/Å; mean ± range/2 over seeds"]
    lines.append(f"{'':28s}" + "".join(f"{c:>34s}" for c in columns))
    for label, rows in study.items():
        cells = [f"{label:28s}"]
        for column in columns:
            for unit, width in (("meV", 15), ("meV_per_A", 19)):
                values = np.array([row[f"{column}_{unit}"] for row in rows])
                text = f"{values.mean():.3g} ± {np.ptp(values) / 2:.2g}"
                cells.append(f"{text:>{width}s}")
        lines.append("".join(cells))
    return "\n".join(lines)


def figure2(study: dict[str, list[Row]], path: Path) -> None:
    """Energies along the angle at 1.1 Å, both states, each network beside DFT."""
    figure, panels = _panels(2, len(study))
    surface = Surface()
    start = surface.energy.min()
    for column, (label, rows) in enumerate(study.items()):
        for row, (spin, color) in enumerate(((1, "tab:blue"), (3, "tab:red"))):
            axes = panels[row][column]
            where = (np.abs(surface.bond - 1.1) < 1e-3) & (surface.spin == spin)
            angles = surface.angle[where]
            axes.axvspan(90, 140, color="0.93", zorder=0)
            axes.plot(angles, surface.energy[where] - start, "k.", ms=4, label="DFT")
            for index, found in enumerate(rows):
                energies = np.array(found["energies"])[where] - start
                axes.plot(
                    angles,
                    energies,
                    color=color,
                    lw=1,
                    alpha=0.8,
                    label="network, 3 seeds" if index == 0 else None,
                )
            axes.set(xlim=(90, 180), xlabel="H-C-H angle, °")
            if row == 0:
                axes.set_title(label, fontsize="medium")
            if column == 0:
                name = "singlet" if spin == 1 else "triplet"
                axes.set_ylabel(f"{name}, eV above the minimum")
                axes.legend(fontsize="small")
    for row in panels:
        low = min(axes.get_ylim()[0] for axes in row)
        high = max(axes.get_ylim()[1] for axes in row)
        for axes in row:
            axes.set_ylim(low, high)
    figure.savefig(path, dpi=120)


def figure3(study: dict[str, list[Row]], path: Path, errors: bool) -> None:
    """Surfaces of both states, or how far they are from DFT; the first seed."""
    columns = {label: np.array(rows[0]["energies"]) for label, rows in study.items()}
    surface = Surface()
    if not errors:
        columns["DFT"] = surface.energy
    figure, panels = _panels(2, len(columns))
    bonds, angles = np.unique(surface.bond), np.unique(surface.angle)
    for row, spin in enumerate((1, 3)):
        where = surface.spin == spin
        for column, (label, energies) in enumerate(columns.items()):
            axes = panels[row][column]
            values = energies - (surface.energy if errors else surface.energy.min())
            grid = values[where].reshape(len(bonds), len(angles)).T
            if errors:
                levels = np.logspace(-1, 3, 9)
                shown = axes.contourf(
                    bonds,
                    angles,
                    np.clip(1e3 * np.abs(grid), 0.1, 1e3),
                    levels,
                    norm="log",
                    cmap="viridis",
                )
            else:
                levels = np.linspace(0, 3.6, 19)
                shown = axes.contourf(bonds, angles, grid, levels, extend="both")
            axes.plot(
                [0.95, 1.2, 1.2, 0.95, 0.95], [90, 90, 140, 140, 90], "--", color="0.8"
            )
            axes.set(xlim=(bonds[0], bonds[-1]), ylim=(90, 180))
            if row == 0:
                axes.set_title(label, fontsize="medium")
            else:
                axes.set_xlabel("C-H, Å")
            if column == 0:
                name = "singlet" if spin == 1 else "triplet"
                axes.set_ylabel(f"{name}: H-C-H, °")
    label = "|network − DFT|, meV" if errors else "eV above the lowest label"
    figure.colorbar(shown, ax=[a for row in panels for a in row], label=label)
    figure.savefig(path, dpi=120)


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def main() -> None:
    """Train what is missing, then print the table and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="+", choices=STUDIES)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--plots", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.study:
        study: dict[str, list[Row]] = {}
        for label, options in STUDIES[name].items():
            study[label] = [
                trained(options, seed, arguments) for seed in range(arguments.seeds)
            ]
            print(label, "done", flush=True)
        print(f"\n{name}, {arguments.epochs} epochs\n{table(study)}", flush=True)
        if name == "figure2":
            figure2(study, arguments.plots / "paper_figure2.png")
        if name == "figure3":
            figure3(study, arguments.plots / "paper_figure3.png", errors=False)
            figure3(study, arguments.plots / "paper_errors.png", errors=True)


if __name__ == "__main__":
    main()

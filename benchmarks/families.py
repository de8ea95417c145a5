"""Accuracy per cost of the model families on CH2: equal parameters, equal CPU time.

python benchmarks/families.py [--minutes 5] [--parameters 150000] [--plot families.png]

Every family gets the width that brings it closest to the number of parameters, and as
many epochs as fit into the CPU time on one thread. Epochs are timed first, of all
families in turn and several times over, and then fixed: the learning rate can run its
course, and what else the machine does during the training changes nothing. Leave it
alone while they are timed (--plan does only that, a few minutes). Everything else is
data_gen/train_ch2.toml and train_ch2_symmetric.toml, for all alike; nothing is tuned
for a family. Runs are kept in --out and taken up again: a killed benchmark goes on.
Each is one seed.
"""

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from ase.md.langevin import Langevin
from speed import blob, methylene

import mlff
from mlff.data import fit_references, load_dataset
from mlff.trainer import Trainer

RECIPES = Path(__file__).parent.parent / "data_gen"
SPLITS = {"random": "train_ch2.toml", "symmetric": "train_ch2_symmetric.toml"}

#: Families and the options in which they differ beside the width.
FAMILIES: dict[str, dict[str, Any]] = {
    "cmret": {"name": "cmret"},
    "painn": {"name": "painn"},
    "geomformer": {"name": "geomformer", "n_heads": 4},
    "demetar": {"name": "demetar", "n_heads": 4},
    "invariant_attention E3": {"name": "invariant_attention", "n_heads": 4},
    "invariant_attention SE3": {
        "name": "invariant_attention",
        "n_heads": 4,
        "n_vectors": 4,
        "symmetry": "SE3",
    },
    "egnn": {"name": "egnn"},
}
SHARED = {"n_layers": 3, "n_radial": 20}

INFO = mlff.TrainingInfo(elements=(1, 6, 8), states=((0, 1), (0, 3)))


def size(options: dict[str, Any]) -> int:
    """Weights of a potential."""
    potential = mlff.Potential.build(options, {}, INFO)
    return sum(weight.numel() for weight in potential.parameters())


def at_budget(options: dict[str, Any], parameters: int) -> dict[str, Any]:
    """The width, a multiple of 4, with the number of weights closest to a budget."""
    widths = range(8, 257, 4)
    found = []
    for width in widths:
        candidate = {**options, **SHARED, "n_features": width}
        n = size(candidate)
        found.append((abs(n - parameters), candidate))
        if n > 2 * parameters:
            break
    return min(found, key=lambda pair: pair[0])[1]


def planned(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options, epochs and costs of all families; measured once."""
    path = arguments.out / "plan.json"
    if path.exists():
        return json.loads(path.read_text())
    base = mlff.TrainConfig.load(RECIPES / SPLITS["random"])
    whole = load_dataset(base.data.files)
    data = whole.select(range(0, len(whole), 5))
    options = {n: at_budget(o, arguments.parameters) for n, o in FAMILIES.items()}
    runs = {
        name: Trainer(replace(base, model=o), data, fit_references(data), INFO)
        for name, o in options.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(4):
        for name, run in runs.items():
            start = time.process_time()
            run.run_epoch()
            if repeat:
                times[name].append((time.process_time() - start) / len(data))
    plan = {
        name: {
            "options": options[name],
            # Validation every tenth epoch adds five in a hundred.
            "epochs": int(
                60 * arguments.minutes / (min(times[name]) * base.data.train * 1.05)
            ),
            "ms_per_system": [1e3 * t for t in times[name]],
            **cost(options[name]),
        }
        for name in runs
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan, indent=1))
    return plan


def cost(options: dict[str, Any]) -> dict[str, float]:
    """CPU milliseconds of one MD step, and of one call on many molecules."""
    torch.manual_seed(0)
    potential = mlff.Potential.build(options, {}, INFO).eval().requires_grad_(False)
    out = {}
    for name, atoms in (("CH2", methylene(3)), ("21 atoms", blob(21, 3))):
        atoms.set_masses([1e5] * len(atoms))  # random forces must not scatter the atoms
        atoms.calc = mlff.MLFFCalculator(potential)
        dynamics = Langevin(
            atoms, 0.5 * units.fs, temperature_K=300, friction=0.01, fixcm=False
        )
        dynamics.run(3)
        times = []
        for _ in range(5):
            start = time.process_time()
            dynamics.run(10)
            times.append(1e2 * (time.process_time() - start))
        out[f"step_{name.replace(' ', '_')}_ms"] = float(np.median(times))
    return out


def measured(label: str, split: str, plan: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train one family on one split, or take what is there."""
    folder = out / f"{label.replace(' ', '_')}_{split}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    base = mlff.TrainConfig.load(RECIPES / SPLITS[split])
    config = replace(
        base,
        out=str(folder / "run"),
        model=plan["options"],
        training=replace(base.training, epochs=plan["epochs"]),
    )
    with warnings.catch_warnings():  # of mirror images in the random split
        warnings.simplefilter("ignore", mlff.errors.MlffWarning)
        metrics = mlff.fit(config, progress=False).metrics["test"]
    row = {
        "family": label,
        "split": split,
        "parameters": size(plan["options"]),
        "epochs": plan["epochs"],
        "energy_mae_meV": metrics["all"]["energy_mae_meV"],
        "forces_mae_meV_per_A": metrics["all"]["forces_mae_meV_per_A"],
        **{name: value for name, value in plan.items() if name.startswith("step_")},
    }
    result.write_text(json.dumps(row, indent=1))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    head = (
        "family",
        "split",
        "weights",
        "epochs",
        "E/meV",
        "F/meV/Å",
        "CH2/ms",
        "21/ms",
    )
    lines = [("{:24s}{:>10s}" + "{:>9s}" * 6).format(*head)]
    lines += [
        f"{row['family']:24s}{row['split']:>10s}{row['parameters']:9d}"
        f"{row['epochs']:9d}{row['energy_mae_meV']:9.3f}"
        f"{row['forces_mae_meV_per_A']:9.2f}{row['step_CH2_ms']:9.2f}"
        f"{row['step_21_atoms_ms']:9.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    marks = {"random": "o", "symmetric": "s"}
    labels = list(FAMILIES)
    for axes, key, title in zip(
        panels,
        ("step_CH2_ms", "step_21_atoms_ms"),
        ("one MD step of CH2, ms", "one MD step of 21 atoms, ms"),
        strict=True,
    ):
        for row in rows:
            color = f"C{labels.index(row['family'])}"
            shown = row["family"] if row["split"] == "symmetric" else None
            axes.plot(
                row[key],
                row["forces_mae_meV_per_A"],
                marks[row["split"]],
                color=color,
                label=shown,
            )
        axes.set(xscale="log", yscale="log", xlabel=title)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
    panels[0].set_ylabel("force MAE on unseen CH2, meV/Å")
    panels[1].legend(title="□ symmetric split, ○ random")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU time of a run")
    parser.add_argument("--parameters", type=int, default=150_000)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--out", type=Path, default=Path("runs/families"))
    parser.add_argument("--plan", action="store_true", help="measure times, then stop")
    parser.add_argument("--plot", help="picture to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = planned(arguments)
    if arguments.plan:
        print(json.dumps(plan, indent=1))
        return
    rows = []
    for split in arguments.splits:
        for label in FAMILIES:
            rows.append(measured(label, split, plan[label], arguments.out))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()

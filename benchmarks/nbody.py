"""Charged particles: the five systems of the source documents at equal cost.

python benchmarks/nbody.py DATA [--minutes 5] [--seeds 3] [--parameters 134000]

DATA is what ``python data_gen/nbody.py C --published`` writes: 3,000 trajectories of
five particles, 1,000 steps ahead. Every network gets the same CPU time on one thread
and about as many weights as the published EGNN; the two best get further seeds. The
learning rate falls to zero along a cosine over that time; nothing is tuned for a
network. Epochs are timed first, of all networks in turn and several times over: leave
the machine alone meanwhile (--plan does only that). Runs are kept in --out and taken up
again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff.nbody import NBodyConfig, NBodyTraining, build_network, fit_nbody
from mlff.nbody.data import load_nbody
from mlff.nbody.trainer import NBodyTrainer

#: Networks and options; a width is searched for models.
NETWORKS: dict[str, dict[str, Any]] = {
    "EGNN, published": {"name": "published_egnn"},
    "DEMETAr, published, equivariant": {
        "name": "published_demetar",
        "equivariant": True,
    },
    "EGNN": {"name": "egnn", "n_layers": 4, "coordinates": True},
    "PaiNN": {"name": "painn", "n_layers": 4},
    "GeoMFormer": {"name": "geomformer", "n_layers": 4, "n_heads": 4, "directed": True},
    "DEMETAr": {"name": "demetar", "n_heads": 4},
    "invariant attention, E(3)": {
        "name": "invariant_attention",
        "n_layers": 4,
        "n_heads": 4,
    },
}

#: Mean squared errors printed in the documents for this task (variant C).
PUBLISHED = {
    "EGNN, published": 0.0071,
    "GeoMFormer": 0.0047,
}


def weights(network: dict[str, Any]) -> int:
    options = dict(network)
    built = build_network(options.pop("name"), False, **options)
    return sum(w.numel() for w in built.parameters() if w.requires_grad)


def at_budget(network: dict[str, Any], parameters: int) -> dict[str, Any]:
    """A model at the width with the number of weights closest to a budget."""
    if network["name"].startswith("published"):
        return network
    found = []
    for width in range(8, 257, 4):
        candidate = {**network, "n_features": width, "gated": True}
        found.append((abs(weights(candidate) - parameters), width, candidate))
        if weights(candidate) > 2 * parameters:
            break
    return min(found, key=lambda row: row[:2])[2]


def config_of(
    network: dict[str, Any], data: Path, out: Path, epochs: int, seed: int
) -> NBodyConfig:
    return NBodyConfig(
        out=str(out),
        data=str(data),
        variant="C",
        network=network,
        training=NBodyTraining(
            epochs=epochs,
            batch_size=100,
            rate=1e-3,
            schedule="cosine",
            clip_norm=1.0,
            validate_every=max(epochs // 20, 1),
        ),
        seed=seed,
    )


def planned(arguments: argparse.Namespace) -> dict[str, Any]:
    """Networks at the budget and their epochs; measured once."""
    path = arguments.out / "plan.json"
    if path.exists():
        return json.loads(path.read_text())
    networks = {n: at_budget(o, arguments.parameters) for n, o in NETWORKS.items()}
    runs = {}
    for name, network in networks.items():
        config = config_of(network, arguments.data, Path("unused"), 10, 0)
        train = load_nbody(config.data, config.variant).train
        runs[name] = NBodyTrainer(config, train.to("cpu", torch.float32))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(4):
        for name, run in runs.items():
            start = time.process_time()
            run.run_epoch()
            if repeat:
                times[name].append(time.process_time() - start)
    plan = {
        name: {
            "network": networks[name],
            "epochs": int(60 * arguments.minutes / min(times[name])),
            "s_per_epoch": times[name],
        }
        for name in runs
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan, indent=1))
    return plan


def measured(
    label: str, seed: int, plan: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train one network with one seed, or take what is there."""
    name = "".join(c if c.isalnum() else "_" for c in label)
    folder = arguments.out / f"{name}_{seed}"
    metrics_file = folder / "metrics.json"
    if metrics_file.exists():
        metrics = json.loads(metrics_file.read_text())
    else:
        config = config_of(
            plan["network"], arguments.data, folder, plan["epochs"], seed
        )
        metrics = fit_nbody(config, progress=False).metrics
    return {
        "network": label,
        "seed": seed,
        "parameters": metrics["parameters"],
        "epochs": metrics["epochs"],
        "cpu_minutes": metrics["cpu_s"] / 60,
        "mse": metrics["test_mse"]["best"]["positions"],
        "published": PUBLISHED.get(label),
        "trivial": metrics["trivial_mse"],
    }


def show(row: dict[str, Any]) -> None:
    published = "" if row["published"] is None else f"{row['published']:10.4f}"
    print(
        f"{row['network']:34s}{row['seed']:5d}{row['parameters']:9d}{row['epochs']:8d}"
        f"{row['cpu_minutes']:9.1f}{row['mse']:10.4f}{published}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help=".npz of data_gen/nbody.py C")
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU time of a run")
    parser.add_argument("--parameters", type=int, default=134_000)
    parser.add_argument("--seeds", type=int, default=3, help="of the two best")
    parser.add_argument("--out", type=Path, default=Path("runs/nbody"))
    parser.add_argument("--plan", action="store_true", help="measure times, then stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = planned(arguments)
    if arguments.plan:
        print(json.dumps(plan, indent=1))
        return
    print(
        f"{'network':34s}{'seed':>5s}{'weights':>9s}{'epochs':>8s}{'CPU min':>9s}"
        f"{'MSE':>10s}{'published':>10s}"
    )
    rows = []
    for label in NETWORKS:
        rows.append(measured(label, 0, plan[label], arguments))
        show(rows[-1])
    best = sorted(rows, key=lambda row: row["mse"])[:2]
    for row in best:
        scores = [row["mse"]]
        for seed in range(1, arguments.seeds):
            other = measured(row["network"], seed, plan[row["network"]], arguments)
            show(other)
            scores.append(other["mse"])
        print(
            f"{row['network']}: {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f} "
            f"({len(scores)} seeds)"
        )
    print("trivial answers:", json.dumps(rows[0]["trivial"]))


if __name__ == "__main__":
    main()

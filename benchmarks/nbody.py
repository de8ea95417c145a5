"""Charged particles: the five systems of the source documents at equal cost.

python benchmarks/nbody.py DATA [--minutes 5] [--seeds 3] [--parameters 134000]

DATA is what ``python data_gen/nbody.py C --published`` writes: 3,000 trajectories of
five particles, 1,000 steps ahead. Every network gets the same CPU time on one thread
and about as many weights as the published EGNN; the two best get further seeds. The
learning rate falls to zero along a cosine over that time; nothing is tuned for a
network. Runs are kept in --out and taken up again.
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


def epochs_within(network: dict[str, Any], data: Path, minutes: float) -> int:
    """Epochs that fit into a CPU time."""
    config = config_of(network, data, Path("unused"), 10, 0)
    trajectories = load_nbody(config.data, config.variant).train.to(
        "cpu", torch.float32
    )
    run = NBodyTrainer(config, trajectories)
    run.run_epoch()
    start = time.process_time()
    run.run_epoch()
    return max(int(60 * minutes / (time.process_time() - start)), 20)


def measured(label: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one network with one seed, or take what is there."""
    name = "".join(c if c.isalnum() else "_" for c in label)
    folder = arguments.out / f"{name}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    plan = arguments.out / f"{name}.json"
    if not plan.exists():
        network = at_budget(NETWORKS[label], arguments.parameters)
        epochs = epochs_within(network, arguments.data, arguments.minutes)
        plan.write_text(json.dumps({"network": network, "epochs": epochs}))
    found = json.loads(plan.read_text())
    metrics_file = folder / "metrics.json"
    if metrics_file.exists():
        metrics = json.loads(metrics_file.read_text())
    else:
        config = config_of(
            found["network"], arguments.data, folder, found["epochs"], seed
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'network':34s}{'seed':>5s}{'weights':>9s}{'epochs':>8s}{'CPU min':>9s}"
        f"{'MSE':>10s}{'published':>10s}"
    )
    rows = []
    for label in NETWORKS:
        rows.append(measured(label, 0, arguments))
        show(rows[-1])
    best = sorted(rows, key=lambda row: row["mse"])[:2]
    for row in best:
        scores = [row["mse"]]
        for seed in range(1, arguments.seeds):
            other = measured(row["network"], seed, arguments)
            show(other)
            scores.append(other["mse"])
        print(
            f"{row['network']}: {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f} "
            f"({len(scores)} seeds)"
        )
    print("trivial answers:", json.dumps(rows[0]["trivial"]))


if __name__ == "__main__":
    main()

"""Skip connections on CH2: does adding a layer's input to its output help here?

python benchmarks/skip.py [--epochs 60] [--seeds 2]

The settings of data_gen/train_ch2_symmetric.toml, shorter; the same split and order of
the systems for both forms of a seed.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import mlff

CONFIG = Path(__file__).parent.parent / "data_gen" / "train_ch2_symmetric.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = mlff.TrainConfig.load(CONFIG)
    report = {}
    for seed in range(arguments.seeds):
        for skip in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                config = replace(
                    base,
                    out=folder,
                    seed=seed,
                    model={**base.model, "skip": skip},
                    training=replace(base.training, epochs=arguments.epochs),
                )
                metrics = mlff.fit(config, progress=False).metrics["test"]["all"]
            report[f"seed {seed}, skip={skip}"] = {
                "energy_mae_meV": round(metrics["energy_mae_meV"], 3),
                "forces_mae_meV_per_A": round(metrics["forces_mae_meV_per_A"], 3),
            }
    print(json.dumps({"epochs": arguments.epochs, "test": report}, indent=1))


if __name__ == "__main__":
    main()

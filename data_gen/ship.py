"""Put a trained potential into the package, with its model card.

    mlff train data_gen/train_ch2.toml
    mlff train data_gen/train_ch2_symmetric.toml
    python data_gen/ship.py ch2

    mlff train data_gen/train_states.toml
    python data_gen/ship.py states

Ships the weights of the first run of ``MODELS``. The test errors of all its runs go
into the file and onto the card, which is ``card_NAME.md`` with numbers filled in; those
of a symmetry split or of a test file are what to expect for new geometries.

    python data_gen/ship.py ch2 --again

describes the shipped weights again, without the runs: what the file says of its
training data is taken from the labels that it was trained on.
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlff
from mlff.config import from_table
from mlff.data import Dataset
from mlff.region import Region
from mlff.rundata import load_run_data
from mlff.state import State

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs"
SHIPPED = HERE.parent / "mlff" / "pretrained"

#: Runs of each model by what they were measured on; the first is shipped.
MODELS = {
    "ch2": {"random split": "ch2", "symmetry split": "ch2_symmetric"},
    "states": {"new geometries": "states"},
}


def main() -> None:
    """Write the model file and its card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument(
        "--again", action="store_true", help="describe the shipped weights again"
    )
    arguments = parser.parse_args()
    runs = MODELS[arguments.model]
    if arguments.again:
        potential = mlff.load(arguments.model)
        metrics = potential.info.metrics
    else:
        first = RUNS / next(iter(runs.values()))
        potential = mlff.load(first / "best.safetensors")
        metrics = measured(runs)
    labels = training_labels(potential).batch
    region = Region.from_batch(labels, potential.cutoff)
    potential.info = replace(
        potential.info,
        metrics=metrics,
        formulas=labels.formulas(),
        formula_states=labels.formula_states(),
        region=region.to_json(),
    )
    digest = potential.save(SHIPPED / f"{arguments.model}.safetensors")
    template = (HERE / f"card_{arguments.model}.md").read_text()
    text = card(template, potential, digest)
    (SHIPPED / f"{arguments.model}.md").write_text(text)
    print(text)


def measured(runs: dict[str, str]) -> dict[str, Any]:
    """Return the test errors of all runs."""
    return {
        f"test, {where}": json.loads((RUNS / run / "metrics.json").read_text())["test"]
        for where, run in runs.items()
    }


def training_labels(potential: mlff.Potential) -> Dataset:
    """Return the labels that a potential was trained on, found again by its split.

    Raises:
        SystemExit: the labels are not those of the training.
    """
    provenance = potential.info.provenance
    asked = provenance["config"]
    data = {name: value for name, value in asked["data"].items() if value is not None}
    config = from_table(mlff.TrainConfig, {**asked, "data": data, "out": ""})
    files, test_files = (
        tuple(str(HERE / name) for name in names)
        for names in (config.data.files, config.data.test_files)
    )
    own = replace(config.data, files=files, test_files=test_files)
    config = replace(config, data=own)
    with warnings.catch_warnings():  # of mirror images in a random split
        warnings.simplefilter("ignore", mlff.MlffWarning)
        found = load_run_data(config)
    if found.split["hash"] != provenance["split"]["hash"]:
        raise SystemExit(f"{files} do not hold the labels of this model's training")
    return found.train


def card(template: str, potential: mlff.Potential, digest: str) -> str:
    """Return the model card, Markdown."""
    info, provenance = potential.info, potential.info.provenance
    rows = [
        f"| {name.removeprefix('test, ')}, {state} | {row['energy_mae_meV']:.3f} | "
        f"{row['energy_max_meV']:.2f} | {row['forces_mae_meV_per_A']:.3f} | "
        f"{row['forces_max_meV_per_A']:.1f} |"
        for name, states in info.metrics.items()
        for state, row in states.items()
    ]
    ranges = [
        f"{name} {low:.2f} … {high:.2f} Å"
        if name.count("-") == 1
        else f"{name} {low:.0f} … {high:.0f}°"
        for name, (low, high) in info.region.items()
    ]
    options = {k: v for k, v in potential.config["model"].items() if k != "name"}
    seen = [
        f"| {formula} | {', '.join(State(*one).short for one in states)} |"
        for formula, states in info.formula_states.items()
    ]
    return template.format(
        level=info.level_of_theory,
        model=f"cmret, {', '.join(f'{k}={v}' for k, v in options.items())}",
        parameters=sum(p.numel() for p in potential.parameters()),
        epochs=provenance["config"]["training"]["epochs"],
        sizes=provenance["sizes"],
        digest=digest,
        rows="\n".join(rows),
        overlap=provenance["overlap"],
        region=", ".join(ranges),
        seen="\n".join(seen),
    )


if __name__ == "__main__":
    main()

"""Put the trained CH2 potential into the package, with its model card.

    mlff train data_gen/train_ch2.toml
    mlff train data_gen/train_ch2_symmetric.toml
    python data_gen/ship_ch2.py

Ships the weights of the first run. The test errors of both splits go into the file and
onto the card; those of the second are what to expect for new geometries.

    python data_gen/ship_ch2.py --again

describes the shipped weights again, without the runs: what the file says of its
training data is taken from the labels that it was trained on.
"""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlff
from mlff.data import Dataset, load_dataset, random_split
from mlff.region import Region

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs"
SHIPPED = HERE.parent / "mlff" / "pretrained"

CARD = """# ch2

Singlet and triplet methylene, CH2, neutral. One CMRET potential for both states.

- **Use**: bonds 0.95 … 1.20 Å, H-C-H angle 90 … 140°. Outside it extrapolates
  (`python benchmarks/surface.py` says how well); dissociation, linear CH2 with long
  bonds and any other molecule, charge or multiplicity are not covered. The calculator
  refuses other elements and warns about other states.
- **Region** of the training data, nearest neighbors and the angle between two, as the
  file records it: {region}.
- **Labels**: {level}, PySCF, restricted for the singlet, unrestricted for the triplet,
  grid response in the forces; `data_gen/ch2.py grid`, 2,000 labels. The restricted
  singlet is unstable towards an unrestricted solution at every point of the grid; the
  surface is the restricted one throughout.
- **Model**: `{model}`, {parameters:,} parameters, float32.
- **Training**: `mlff train data_gen/train_ch2.toml`, {epochs} epochs of
  {train} labels, best of the averaged weights on {validation} labels.
- **SHA-256** in the file: `{digest}`

| test errors | energy MAE / meV | largest | force MAE / meV/Å | largest |
|---|---|---|---|---|
{rows}

The random split is that of the CMRET paper: the labels are a full grid, so {overlap}
of its test points are mirror images of training points. The symmetry split keeps all
copies of a geometry, and both spin states, on one side.
"""


def main() -> None:
    """Write the model file and its card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--again", action="store_true", help="describe the shipped weights again"
    )
    if parser.parse_args().again:
        potential = mlff.load("ch2")
        metrics = potential.info.metrics
    else:
        potential = mlff.load(RUNS / "ch2" / "best.safetensors")
        metrics = measured()
    labels = training_labels(potential).batch
    region = Region.from_batch(labels, potential.cutoff)
    potential.info = replace(
        potential.info,
        metrics=metrics,
        formulas=labels.formulas(),
        formula_states=labels.formula_states(),
        region=region.to_json(),
    )
    digest = potential.save(SHIPPED / "ch2.safetensors")
    text = card(potential, digest)
    (SHIPPED / "ch2.md").write_text(text)
    print(text)


def measured() -> dict[str, Any]:
    """Return the test errors of both runs."""
    folders = {"random": "ch2", "symmetry": "ch2_symmetric"}
    return {
        f"test, {split} split": json.loads((RUNS / run / "metrics.json").read_text())[
            "test"
        ]
        for split, run in folders.items()
    }


def training_labels(potential: mlff.Potential) -> Dataset:
    """Return the labels that a potential was trained on, found again by its split.

    Raises:
        SystemExit: the labels are not those of the training.
    """
    provenance = potential.info.provenance
    settings = provenance["config"]["data"]
    sizes = tuple(settings[name] for name in ("train", "validation", "test"))
    whole = load_dataset(HERE / "ch2.xyz")
    rows = random_split(whole, sizes, provenance["split"]["seed"])
    parts = [whole.select(part) for part in rows]
    content = "".join(part.hash for part in parts)
    if hashlib.sha256(content.encode()).hexdigest() != provenance["split"]["hash"]:
        raise SystemExit("ch2.xyz does not hold the labels of this model's training")
    return parts[0]


def card(potential: mlff.Potential, digest: str) -> str:
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
    return CARD.format(
        level=info.level_of_theory,
        model=f"cmret, {', '.join(f'{k}={v}' for k, v in options.items())}",
        parameters=sum(p.numel() for p in potential.parameters()),
        epochs=provenance["config"]["training"]["epochs"],
        train=provenance["sizes"]["train"],
        validation=provenance["sizes"]["validation"],
        digest=digest,
        rows="\n".join(rows),
        overlap=provenance["overlap"],
        region=", ".join(ranges),
    )


if __name__ == "__main__":
    main()

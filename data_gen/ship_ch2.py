"""Put the trained CH2 potential into the package, with its model card.

    mlff train data_gen/train_ch2.toml
    mlff train data_gen/train_ch2_symmetric.toml
    python data_gen/ship_ch2.py

Ships the weights of the first run. The test errors of both splits go into the file and
onto the card; those of the second are what to expect for new geometries.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlff
from mlff.data import load_dataset

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs"
SHIPPED = HERE.parent / "mlff" / "pretrained"

CARD = """# ch2

Singlet and triplet methylene, CH2, neutral. One CMRET potential for both states.

- **Use**: bonds 0.95 … 1.20 Å, H-C-H angle 90 … 140°. Outside it extrapolates
  (`python benchmarks/surface.py` says how well); dissociation, linear CH2 with long
  bonds and any other molecule, charge or multiplicity are not covered. The calculator
  refuses other elements and warns about other states.
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
    potential = mlff.load(RUNS / "ch2" / "best.safetensors")
    metrics: dict[str, Any] = {}
    rows = []
    overlap = 0
    for name, folder in (("random", "ch2"), ("symmetry", "ch2_symmetric")):
        measured = json.loads((RUNS / folder / "metrics.json").read_text())
        metrics[f"test, {name} split"] = measured["test"]
        overlap = overlap or measured["overlap"]
        for state, row in measured["test"].items():
            rows.append(
                f"| {name} split, {state} | {row['energy_mae_meV']:.3f} | "
                f"{row['energy_max_meV']:.2f} | {row['forces_mae_meV_per_A']:.3f} | "
                f"{row['forces_max_meV_per_A']:.1f} |"
            )
    labels = load_dataset(HERE / "ch2.xyz").batch
    potential.info = replace(
        potential.info, metrics=metrics, formulas=labels.formulas()
    )
    digest = potential.save(SHIPPED / "ch2.safetensors")
    provenance = potential.info.provenance
    options = {k: v for k, v in potential.config["model"].items() if k != "name"}
    card = CARD.format(
        level=potential.info.level_of_theory,
        model=f"cmret, {', '.join(f'{k}={v}' for k, v in options.items())}",
        parameters=sum(p.numel() for p in potential.parameters()),
        epochs=provenance["config"]["training"]["epochs"],
        train=provenance["sizes"]["train"],
        validation=provenance["sizes"]["validation"],
        digest=digest,
        rows="\n".join(rows),
        overlap=overlap,
    )
    (SHIPPED / "ch2.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()

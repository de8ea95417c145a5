"""One network for many electronic states: errors, vertical differences, embeddings.

python benchmarks/states.py errors [--model states]   # of each molecule in each state
python benchmarks/states.py embeddings [--epochs 40]  # internal, cmret, none
python benchmarks/states.py committee [--epochs 40]   # do its deviations tell errors?
python benchmarks/states.py contamination             # which labels mix spins

``errors`` predicts the labels that are kept for testing and compares energies, forces
and the differences of labels at one geometry: energies to remove an electron from each
state of the neutral and of the anion, and gaps between the two multiplicities of a
charge; and names the labels that are furthest off. ``embeddings`` trains the three
embeddings of charge and spin for the same number of epochs and says which states each
cannot tell apart, and how much the energy changes when a molecule is turned.
``committee`` trains four networks and draws the errors on the labels for testing
against their deviations. Runs are kept in --out; a killed benchmark goes on.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation

import mlff
from mlff.data import load_dataset
from mlff.frames import read_frames
from mlff.report.calibration import calibrate, calibration_table, plot_calibration

HERE = Path(__file__).parent.parent / "data_gen"
RECIPE = HERE / "train_states.toml"
LABELS = HERE / "states_test.xyz"

#: Energies closer than this are one energy, eV.
SAME = 1e-5

Key = tuple[int, int]


def state_of(atoms: Atoms) -> Key:
    return int(atoms.info["charge"]), int(atoms.info["spin"])


def by_geometry(
    frames: list[Atoms], energies: np.ndarray
) -> Iterator[dict[Key, float]]:
    """Energies of all states of each geometry in turn."""
    groups: dict[tuple[str, int], dict[Key, float]] = defaultdict(dict)
    for atoms, energy in zip(frames, energies, strict=True):
        place = (atoms.info["config_type"], int(atoms.info["geometry"]))
        groups[place][state_of(atoms)] = float(energy)
    yield from groups.values()


def differences(frames: list[Atoms], energies: np.ndarray) -> dict[str, np.ndarray]:
    """Vertical differences of energies at one geometry, eV, by kind."""
    found: dict[str, list[float]] = defaultdict(list)
    for levels in by_geometry(frames, energies):
        for (charge, spin), (other, higher) in product(levels, repeat=2):
            difference = levels[other, higher] - levels[charge, spin]
            if other == charge and higher == spin + 2:
                found[f"gap, charge {charge:+d}"].append(difference)
            if other == charge + 1 and abs(higher - spin) == 1:
                name = "ionisation energy" if charge == 0 else "electron affinity"
                found[name].append(difference)
    return {name: np.array(values) for name, values in sorted(found.items())}


def errors(potential: mlff.Potential, frames: list[Atoms]) -> str:
    """Tables of mean absolute errors: states, molecules in states, differences.

    Of force components; the median is that of the means of labels: near crossings of
    states few have most of the sum.
    """
    found = mlff.predict(potential, frames)
    energy = np.array([o["energy"] for o in found])
    label = np.array([a.info["REF_energy"] for a in frames])
    wrong = 1e3 * np.abs(energy - label)
    forces = [
        1e3 * np.abs(o["forces"] - a.arrays["REF_forces"]).ravel()
        for o, a in zip(found, frames, strict=True)
    ]
    lines = ["", f"{'':20s}{'labels':>8s}{'E/meV':>9s}{'F/meV/Å':>9s}{'median':>9s}"]
    rows: dict[str, list[int]] = defaultdict(list)
    for index, atoms in enumerate(frames):
        charge, spin = state_of(atoms)
        rows["all"].append(index)
        rows[f"({charge:+d}, {spin})"].append(index)
        rows[f"{atoms.info['config_type']} ({charge:+d}, {spin})"].append(index)
    for name in sorted(rows, key=lambda n: (n != "all", n[0] != "(", n)):
        which = rows[name]
        lines.append(
            f"{name:20s}{len(which):8d}{wrong[which].mean():9.2f}"
            f"{np.concatenate([forces[k] for k in which]).mean():9.2f}"
            f"{np.median([forces[k].mean() for k in which]):9.2f}"
        )
    lines += ["", f"{'vertical difference':24s}{'n':>6s}{'MAE/meV':>9s}{'max':>9s}"]
    reference = differences(frames, label)
    for name, values in differences(frames, energy).items():
        off = 1e3 * np.abs(values - reference[name])
        lines.append(f"{name:24s}{len(off):6d}{off.mean():9.2f}{off.max():9.2f}")
    lines += ["", "largest errors of the energy"]
    for index in np.argsort(-wrong)[:5]:
        atoms = frames[index]
        furthest = atoms.get_distances(0, range(1, len(atoms))).max()
        lines.append(
            f"{wrong[index]:9.2f} meV  {atoms.info['config_type']} {state_of(atoms)}, "
            f"{furthest:.2f} Å from the first atom to the furthest"
        )
    return "\n".join(lines)


def contamination() -> str:
    """Labels whose ⟨S²⟩ is off by more than 0.1, by molecule and state."""
    frames = [a for p in (HERE / "states.xyz", LABELS) for a in read_frames(p)]
    groups: dict[str, list[Atoms]] = defaultdict(list)
    for atoms in frames:
        groups[f"{atoms.info['config_type']} {state_of(atoms)}"].append(atoms)
    spoiled = [a for a in frames if a.info["contaminated"]]
    singlets = sum(state_of(a)[1] == 1 for a in spoiled)
    lines = [f"{len(spoiled)} of {len(frames)} labels, {singlets} of them singlets"]
    for name, mine in groups.items():
        count = sum(bool(a.info["contaminated"]) for a in mine)
        median = np.median([a.info["s_squared"] for a in mine])
        if count:
            lines.append(f"{name:14s}{count:4d} of {len(mine):4d}, ⟨S²⟩ {median:.2f}")
    return "\n".join(lines)


def merged(potential: mlff.Potential, frames: list[Atoms]) -> str:
    """Pairs of states of one molecule to which a potential gives one energy.

    To one of them at the geometry, to the other there or at its image under inversion:
    what depends on the orientation may tell states apart that no invariant can.
    """
    pairs: dict[str, int] = defaultdict(int)
    total = 0
    for name in sorted({a.info["config_type"] for a in frames}):
        mine = [a for a in frames if a.info["config_type"] == name]
        images = [a.copy() for a in mine]
        for image in images:
            image.positions *= -1
        here, there = (
            by_geometry(mine, np.array([o["energy"] for o in out]))
            for out in (
                mlff.predict(potential, some, ("energy",)) for some in (mine, images)
            )
        )
        for levels, inverted in zip(here, there, strict=True):
            for a, b in combinations(sorted(levels), 2):
                total += 1
                apart = min(abs(levels[a] - other[b]) for other in (levels, inverted))
                if apart < SAME:
                    pairs[f"{name} ({a[0]:+d}, {a[1]}) = ({b[0]:+d}, {b[1]})"] += 1
    listed = "; ".join(sorted(pairs)) if pairs else "none"
    if sum(pairs.values()) == total:
        listed = "all"
    return f"{sum(pairs.values())} of {total} pairs of states merged: {listed}"


def rotation_spread(potential: mlff.Potential, frames: list[Atoms]) -> float:
    """Largest change of an energy under 20 rotations, meV, in float64."""
    exact, worst = potential.to(torch.float64), 0.0
    turns = Rotation.random(20, random_state=0)
    for atoms in frames[:: max(len(frames) // 40, 1)]:
        turned = []
        for turn in turns:
            copy = atoms.copy()
            copy.positions = turn.apply(atoms.positions)
            turned.append(copy)
        energy = [o["energy"] for o in mlff.predict(exact, turned, ("energy",))]
        worst = max(worst, 1e3 * float(np.ptp(energy)))
    return worst


def embeddings(arguments: argparse.Namespace) -> None:
    """Train the three embeddings alike and print what each can and cannot do."""
    base = mlff.TrainConfig.load(RECIPE)
    for name in ("internal", "cmret", "none"):
        out = arguments.out / f"{name}_{arguments.epochs}"
        config = replace(
            base,
            out=str(out),
            model={**base.model, "charge_spin": name},
            training=replace(base.training, epochs=arguments.epochs),
        )
        if not (out / "metrics.json").exists():
            mlff.fit(config)
        test = json.loads((out / "metrics.json").read_text())["test"]
        potential = mlff.load(out / "best.safetensors")
        frames = read_frames(LABELS)
        print(
            f"{name}: {test['all']['energy_mae_meV']:.2f} meV, "
            f"{test['all']['forces_mae_meV_per_A']:.2f} meV/Å; turned: "
            f"{rotation_spread(potential, frames):.2g} meV"
        )
        for state, row in test.items():
            print(f"   {state:32s}{row['energy_mae_meV']:10.2f} meV")
        print(f"   {merged(potential, frames)}", flush=True)


def committee(arguments: argparse.Namespace) -> None:
    """Train four networks and hold their errors against what they disagree on."""
    base = mlff.TrainConfig.load(RECIPE)
    config = replace(
        base,
        out=str(arguments.out / f"committee_{arguments.epochs}"),
        training=replace(base.training, epochs=arguments.epochs),
    )
    trained = mlff.fit_committee(config, 4).committee
    found = calibrate(trained, load_dataset(LABELS, trust_labels=True))
    print(calibration_table(found))
    plot_calibration(arguments.plot, found)


def main() -> None:
    """Print one of the reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("errors", "embeddings", "committee", "contamination")
    parser.add_argument("part", choices=parts)
    parser.add_argument("--model", default="states")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/embeddings"))
    parser.add_argument("--plot", type=Path, default=Path("docs/calibration.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "embeddings":
        embeddings(arguments)
    elif arguments.part == "committee":
        committee(arguments)
    elif arguments.part == "contamination":
        print(contamination())
    else:
        print(errors(mlff.load(arguments.model), read_frames(LABELS)))


if __name__ == "__main__":
    main()

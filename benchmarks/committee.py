"""A committee against one of its members, and against a plain loop over them.

python benchmarks/committee.py [--members 4] [--repeats 7]

Energies and forces on one thread, CPU time, as ratios to one member in one run: the
committee as it decides itself, all members at once (``torch.vmap``), one after the
other inside the committee, and a loop over separate potentials; with the size of the
shipped model and with the default size. Also how far the committee and the loop differ.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from speed import blob, methylene

import mlff
import mlff.nn.stacked
from mlff.neighbors import neighbor_list

INFO = mlff.TrainingInfo(elements=(1, 6, 8), states=((0, 1), (0, 3)))
MODELS = {
    "shipped size": mlff.load("ch2").config["model"],
    "default size": {"name": "cmret"},
}
SYSTEMS = {
    "1 x CH2": [methylene(3)],
    "64 x CH2": [methylene(k) for k in range(64)],
    "256 x CH2": [methylene(k) for k in range(256)],
    "1 x 21 atoms": [blob(21, 0)],
    "8 x 21 atoms": [blob(21, k) for k in range(8)],
    "64 x 21 atoms": [blob(21, k) for k in range(64)],
}


def member(model: dict[str, object], seed: int) -> mlff.Potential:
    torch.manual_seed(seed)
    return mlff.Potential.build(model, {}, INFO).eval().requires_grad_(False)


def milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def ratios(
    members: list[mlff.Potential], systems: list, repeats: int
) -> dict[str, float]:
    committee = mlff.Committee(members)
    batch = mlff.AtomsBatch.from_atoms(systems)
    edges = neighbor_list(batch, committee.cutoff)
    limit = mlff.nn.stacked.MANY_ATOMS

    def of_the_committee(many_atoms: int) -> None:
        mlff.nn.stacked.MANY_ATOMS = many_atoms
        committee(batch, edges)
        mlff.nn.stacked.MANY_ATOMS = limit

    ways: dict[str, Callable[[], object]] = {
        "one member": lambda: members[0](batch, edges),
        "committee": lambda: of_the_committee(limit),
        "at once": lambda: of_the_committee(10**9),
        "one by one": lambda: of_the_committee(0),
        "plain loop": lambda: [one(batch, edges) for one in members],
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, call in ways.items():
            taken = milliseconds(call)
            if repeat:  # the first call of a kind costs more
                spent[name].append(taken)
    single = float(np.median(spent.pop("one member")))
    out = {"one member, ms": round(single, 2)}
    out |= {name: round(float(np.median(v)) / single, 2) for name, v in spent.items()}
    return out


def difference(model: dict[str, object], systems: list) -> float:
    """Largest relative difference from a plain loop, float64."""
    members = [member(model, seed).double() for seed in range(3)]
    committee = mlff.Committee(members)
    batch = mlff.AtomsBatch.from_atoms(systems)
    edges = neighbor_list(batch, committee.cutoff)
    found = committee.members(batch, edges)
    each = [one(batch, edges) for one in members]
    worst = 0.0
    for name, values in found.items():
        expected = torch.stack([one[name] for one in each])
        error = (values - expected).abs().max() / expected.abs().max()
        worst = max(worst, float(error))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {
        "members": options.members,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    for size, model in MODELS.items():
        members = [member(model, seed) for seed in range(options.members)]
        report[size] = {
            name: ratios(members, systems, options.repeats)
            for name, systems in SYSTEMS.items()
        }
    report["largest relative difference, float64"] = {
        name: difference(MODELS["shipped size"], SYSTEMS[name])
        for name in ("1 x CH2", "256 x CH2", "8 x 21 atoms")
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

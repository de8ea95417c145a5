"""Verbs that show: ``demo`` and ``info``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlff.cli.learn import error_table
from mlff.cli.parsing import add_verb

if TYPE_CHECKING:
    from mlff.info import TrainingInfo
    from mlff.potential import Potential


def add_verbs(verbs: Any) -> None:
    """Declare them."""
    _add_demo(verbs)
    _add_info(verbs)


def _add_demo(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "demo",
        _demo,
        "relax, compare with DFT and run dynamics of singlet and triplet CH2",
        "mlff demo --out demo_output",
    )
    parser.add_argument("--out", default="demo_output", help="folder to write into")
    parser.add_argument(
        "--picoseconds", type=float, default=2.0, help="length of the dynamics"
    )


def _demo(arguments: argparse.Namespace) -> int:
    from mlff.demo import run_demo

    run_demo(arguments.out, picoseconds=arguments.picoseconds)
    return 0


def _add_info(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "info",
        _info,
        "show what a model is made for, how wrong it is and where it comes from",
        "mlff info              # names of the shipped models\n"
        "mlff info ch2\nmlff info runs/ch2/best.safetensors",
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="name of a shipped model, or a file; several, separated by commas, are "
        "a committee",
    )


def _info(arguments: argparse.Namespace) -> int:
    from mlff.potential import load, shipped

    models = shipped()
    if arguments.model is None:
        for name, path in models.items():
            print(f"{name:12s} {path}")
        return 0
    potential = load(arguments.model)
    whole = arguments.model in models or Path(arguments.model).exists()
    names = [arguments.model] if whole else arguments.model.split(",")
    files = [models.get(name, Path(name)) for name in names]
    print("\n".join(_description(potential, files)))
    return 0


def _description(potential: "Potential", files: list[Path]) -> list[str]:
    from ase.data import chemical_symbols

    from mlff.state import State
    from mlff.tensorfile import read_digest

    info = potential.info
    weights = sum(p.numel() for p in potential.parameters())
    elements = (chemical_symbols[z] for z in info.elements)
    lines = []
    for path in files:
        lines += [f"file        {path}", f"sha256      {read_digest(path)}"]
        if (card := path.with_suffix(".md")).exists():
            lines.append(f"card        {card}: what it is for, and its limits")
    members = potential.config.get("members", 1)
    network = f"{weights // members} weights, {potential.dtype}".replace("torch.", "")
    lines += [
        f"elements    {', '.join(elements)}",
        f"states      {'; '.join(str(State(*state)) for state in info.states)}",
        f"molecules   {', '.join(info.formulas) or 'not recorded'}",
        *_states_of_molecules(info),
        f"labels      {info.level_of_theory or 'level of theory not recorded'}",
        f"properties  {', '.join(potential.properties)}",
        f"network     {f'{members} members of ' if members > 1 else ''}{network}",
    ]
    lines += _region(info.region)
    lines += _tree({"model": potential.config["model"]})
    for name, metrics in info.metrics.items():
        lines += [f"errors      {name}", *error_table(metrics, indent="  ")]
    return lines + _tree({"provenance": info.provenance})


def _states_of_molecules(info: "TrainingInfo") -> list[str]:
    """States of each molecule, where there are several molecules."""
    if len(info.formula_states) < 2:
        return []
    return [
        f"{'':12s}{formula}: {', '.join(map(str, states))}"
        for formula, states in info.formula_states.items()
    ]


def _region(region: dict[str, tuple[float, float]]) -> list[str]:
    """Ranges seen in training: distances to the nearest neighbor, then angles."""
    if not region:
        return ["region      not recorded"]
    lines = []
    for dashes, title in ((1, "nearest neighbors, Å"), (2, "angles, degrees")):
        digits = 3 - dashes
        ranges = (
            f"{name} {low:.{digits}f} … {high:.{digits}f}"
            for name, (low, high) in region.items()
            if name.count("-") == dashes
        )
        lines.append(f"{'':12s}{title}: {', '.join(ranges)}")
    return [f"region{lines[0][6:]}", *lines[1:]]


def _tree(content: dict[str, Any], indent: str = "") -> list[str]:
    """Nested tables as indented lines."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_tree(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines

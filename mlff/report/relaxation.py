"""What relaxations of many systems amount to: table, CSV and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlff.report.drawing import COLORS, colored, finish, panels
from mlff.report.run import Array, Kind, by_kind
from mlff.report.tables import MAX_KINDS, aligned, cell, listing, write_csv

if TYPE_CHECKING:
    from mlff.relaxation.relaxed import Relaxed

_COLUMNS = (
    "system",
    "formula",
    "charge",
    "multiplicity",
    "n_atoms",
    "energy_eV",
    "above_lowest_eV",
    "fmax_eV_per_A",
    "steps",
    "converged",
    "reason",
)

_HEADING = (
    ("", "systems", "converged", "lowest", "spread", "force", "steps", "steps"),
    ("", "", "", "eV", "eV", "eV/Å, largest", "median", "most"),
)


def relaxation_table(results: Sequence["Relaxed"]) -> str:
    """Return a line for each kind of system, and why some have not converged.

    Columns: lowest energy, and how far above it the highest is; largest force that is
    left; steps.
    """
    groups = list(_groups(results).items())
    rows = [_row(str(kind), results, which) for kind, which in groups[:MAX_KINDS]]
    if len(groups) > MAX_KINDS:
        rows.append((f"… {len(groups) - MAX_KINDS} more kinds", *[""] * 7))
    failed: dict[str, list[int]] = {}
    for index, one in enumerate(results):
        if not one.converged:
            failed.setdefault(one.reason, []).append(index)
    lines = aligned([*_HEADING, *rows])
    lines += [f"not converged: {reason}: {listing(k)}" for reason, k in failed.items()]
    return "\n".join(lines)


def _groups(results: Sequence["Relaxed"]) -> dict[Kind, NDArray[np.int64]]:
    return by_kind([Kind.of(one.atoms) for one in results])


def _row(
    name: str, results: Sequence["Relaxed"], which: NDArray[np.int64]
) -> tuple[str, ...]:
    chosen = [results[k] for k in which]
    energies = np.array([one.energy for one in chosen])
    energies = energies[np.isfinite(energies)]
    forces = np.array([one.fmax for one in chosen])
    forces = forces[np.isfinite(forces)]
    steps = [one.n_steps for one in chosen]
    known = len(energies) > 0
    return (
        name,
        str(len(chosen)),
        str(sum(one.converged for one in chosen)),
        f"{energies.min():.4f}" if known else "-",
        f"{np.ptp(energies):.4f}" if known else "-",
        f"{forces.max():.2g}" if len(forces) else "-",
        f"{np.median(steps):g}",
        str(max(steps)),
    )


def relative_energies(results: Sequence["Relaxed"]) -> Array:
    """Return energies less the lowest of their kind, (n_systems,), eV.

    Not a number where there is no energy; what has not converged counts too.
    """
    energies = np.array([one.energy for one in results])
    out = np.full_like(energies, np.nan)
    for which in _groups(results).values():
        known = which[np.isfinite(energies[which])]
        if len(known):
            out[known] = energies[known] - energies[known].min()
    return out


def relaxation_csv(results: Sequence["Relaxed"], path: Path) -> None:
    """Write a line for each system, in order."""
    above = relative_energies(results)
    rows = [
        [
            index,
            *Kind.of(one.atoms),
            len(one.atoms),
            cell(one.energy),
            cell(above[index]),
            cell(one.fmax),
            one.n_steps,
            one.converged,
            one.reason,
        ]
        for index, one in enumerate(results)
    ]
    write_csv(path, _COLUMNS, rows)


def plot_relaxation(results: Sequence["Relaxed"], path: Path) -> None:
    """Draw energies above the lowest of each kind, and the numbers of steps.

    Energies are those of converged systems: how many lie at or below a height.
    """
    figure, (left, right) = panels(2)
    converged = np.array([one.converged for one in results])
    above = np.where(converged, 1000 * relative_energies(results), np.nan)
    for group in colored(_groups(results)):
        heights = np.sort(above[group.systems])
        heights = heights[np.isfinite(heights)]
        reached = np.arange(1, len(heights) + 1) / max(len(heights), 1)
        left.plot(
            heights,
            reached,
            ".-",
            drawstyle="steps-post",
            color=group.color,
            label=group.label,
        )
    left.set(
        xlabel="energy above the lowest of its kind, meV",
        ylabel="fraction of the converged at or below",
        ylim=(0, 1.3),
        title="Energies",
    )
    highest = max(1.0, left.get_xlim()[1])  # rounding is not worth a look
    left.set_xlim(-0.03 * highest, highest)
    steps = np.array([one.n_steps for one in results])
    parts = {"converged": converged, "not converged": ~converged}
    right.hist(
        [steps[which] for which in parts.values()],
        _bins(steps),
        stacked=True,
        color=[COLORS[0], COLORS[1]],
        label=[f"{name} ({which.sum()} ×)" for name, which in parts.items()],
    )
    right.set(xlabel="steps", ylabel="systems", title="Steps")
    finish(figure, path)


def _bins(steps: NDArray[np.int64]) -> list[float]:
    """Edges between whole numbers, about 40 intervals at most."""
    width = 1 + int(np.ptp(steps)) // 40
    first, last = int(steps.min()), int(steps.max())
    return [k - 0.5 for k in range(first, last + width + 1, width)]

"""Runs as text: a table of the kinds of systems, and a CSV line for each system."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlff.files import write_atomic
from mlff.report.run import Array, Run, mean_of

#: Kinds that a table lists, and those whose gaps are below it: a run of a thousand
#: molecules would fill the screen.
MAX_KINDS, MAX_GAPS = 20, 6

_COLUMNS = (
    "system",
    "formula",
    "charge",
    "multiplicity",
    "n_atoms",
    "mean_temperature_K",
    "drift_meV_per_atom_per_ps",
    "fluctuation_meV_per_atom",
    "last_energy_eV",
    "frozen_at_fs",
    "reason",
)

_HEADING = (
    ("", "systems", "temperature", "drift", "worst", "scatter", "frozen"),
    ("", "", "K", "meV/atom/ps", "", "meV/atom", ""),
)


def md_table(run: Run) -> str:
    """Return a line for each kind of system, and what was frozen for which reason.

    Columns: mean temperature ± standard error over the second half of the run; slope of
    the conserved energy, its mean ± standard error and that of the worst system; median
    scatter of the conserved energy about the slope. Then mean gaps ± standard error
    over the second half, where states were recorded.
    """
    groups = list(run.groups.items())
    rows = [_row(str(kind), run, which) for kind, which in groups[:MAX_KINDS]]
    if len(groups) > MAX_KINDS:
        rows.append((f"… {len(groups) - MAX_KINDS} more kinds", *[""] * 6))
    if len(groups) > 1:
        rows.append(_row("all", run, np.arange(run.n_systems)))
    stopped: dict[str, list[int]] = {}
    for index, (_, reason) in sorted(run.frozen.items()):
        stopped.setdefault(reason, []).append(index)
    lines = aligned([*_HEADING, *rows])
    lines += [f"frozen: {reason}: {listing(k)}" for reason, k in stopped.items()]
    for (one, other), gap in run.gaps().items():
        name = f"mean of E{one} − E{other}"
        for kind, which in groups[:MAX_GAPS]:
            mean, error = run.average(gap, which)
            found = f"{mean:+.4f}" + (f" ± {error:.1g}" if np.isfinite(error) else "")
            lines.append(f"{name} in {kind}: {found if np.isfinite(mean) else '-'} eV")
        if len(groups) > MAX_GAPS:
            lines.append(f"{name} in {len(groups) - MAX_GAPS} more kinds: summary.csv")
    return "\n".join(lines)


def _row(name: str, run: Run, systems: NDArray[np.int64]) -> tuple[str, ...]:
    mean, error = run.temperature_of(systems)
    drift, scatter = run.drift[systems], run.fluctuation[systems]
    known = np.isfinite(drift)
    slopes = ("-", "-", "-")
    if known.any():
        worst = drift[known][np.abs(drift[known]).argmax()]
        middle = np.median(scatter[known])
        slopes = (_drift(drift[known]), f"{worst:+.3g}", f"{middle:.3g}")
    frozen = sum(index in run.frozen for index in systems.tolist())
    return name, str(len(systems)), _with_error(mean, error), *slopes, str(frozen)


def _drift(slopes: Array) -> str:
    mean = slopes.mean()
    if len(slopes) < 2:
        return f"{mean:+.3g}"
    return f"{mean:+.3g} ± {slopes.std(ddof=1) / np.sqrt(len(slopes)):.2g}"


def _with_error(mean: float, error: float) -> str:
    """A mean with two digits of its error."""
    if not np.isfinite(mean):
        return "-"
    if not (np.isfinite(error) and error > 0):
        return f"{mean:.1f}"
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 3))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def listing(indices: Sequence[int], most: int = 10) -> str:
    """Return which systems, the first of them if they are many."""
    more = f", … ({len(indices)} in all)" if len(indices) > most else ""
    noun = "system" if len(indices) == 1 else "systems"
    return f"{noun} {', '.join(map(str, indices[:most]))}{more}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with columns of equal width: first left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (f"{c:>{w}s}" for c, w in zip(others, widths[1:], strict=True))
        lines.append("  ".join((f"{first:{widths[0]}s}", *cells)).rstrip())
    return lines


def md_csv(run: Run, path: Path) -> None:
    """Write a line for each system, in order; gaps are means over the second half."""
    gaps = run.gaps()
    names = [f"mean_gap_{_key(a)}_minus_{_key(b)}_eV" for a, b in gaps]
    means = [mean_of(gap, run.counted) for gap in gaps.values()]
    rows = []
    for k, kind in enumerate(run.kinds):
        numbers: list[Array] = [
            run.mean_temperature[k],
            run.drift[k],
            run.fluctuation[k],
            run.energy[-1, k],
        ]
        stopped = run.frozen.get(k, ("", ""))
        last = map(cell, (column[k] for column in means))
        rows.append([k, *kind, run.n_atoms[k], *map(cell, numbers), *stopped, *last])
    write_csv(path, (*_COLUMNS, *names), rows)


def _key(state: tuple[int, int]) -> str:
    return f"{state[0]}_{state[1]}"


def cell(value: Any) -> str:
    """Return a number with all its digits; nothing for what is not a number."""
    return repr(float(value)) if np.isfinite(value) else ""


def write_csv(
    path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]
) -> None:
    """Write a table: the file is whole at every moment."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())

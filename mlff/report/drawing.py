"""What all pictures of many systems share: colors of kinds, densities, margins."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlff.report.run import Array, Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colors of kinds; where there are more kinds, they are pooled.
COLORS = ("tab:blue", "tab:red", "tab:green", "tab:purple")

# Percentiles that axes show: one system that explodes must not hide the rest.
_SHOWN = (0.2, 99.8)


class Group(NamedTuple):
    """Systems that are drawn alike.

    Attributes:
        label: what they are.
        color: of their lines.
        systems: their indices.
    """

    label: str
    color: str
    systems: NDArray[np.int64]


def colored(kinds: Mapping[Kind, NDArray[np.int64]]) -> list[Group]:
    """Return each kind with a color of its own, or all as one if there are many."""
    if len(kinds) > len(COLORS):
        everything = np.sort(np.concatenate(list(kinds.values())))
        label = f"{len(everything)} systems of {len(kinds)} kinds"
        return [Group(label, COLORS[0], everything)]
    return [
        Group(f"{kind} ({len(which)} ×)", color, which)
        for color, (kind, which) in zip(COLORS, kinds.items(), strict=False)
    ]


def percentiles(values: Array, levels: tuple[float, ...]) -> Array:
    """Return percentiles of the finite values; not a number if there is none."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return np.full(len(levels), np.nan)
    return np.percentile(finite, levels)


def histogram(axes: "Axes", values: Array, label: str, color: str) -> None:
    """Draw the density of values; what lies outside the picture counts too."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    low, high = np.percentile(values, _SHOWN)
    if not high > low:
        axes.axvline(low, color=color, label=label)
        return
    bins = int(np.clip(len(values) ** (1 / 3) * 2, 8, 60))
    counts, edges = np.histogram(values, bins, (low, high))
    density = counts / (len(values) * (edges[1] - edges[0]))
    axes.stairs(density, edges, fill=True, color=color, alpha=0.3)
    axes.stairs(density, edges, color=color, label=label)


def fit(axes: "Axes", values: Array) -> None:
    """Let the axis show most of the values."""
    low, high = percentiles(values, _SHOWN)
    if high > low:
        size = high - low
        axes.set_ylim(low - 0.1 * size, high + 0.3 * size)  # room for the legend


def panels(columns: int, rows: int = 1) -> tuple["Figure", list["Axes"]]:
    """Return a picture and its panels, row by row."""
    from matplotlib.figure import Figure

    width, height = (10.5 if columns > 1 else 7.5), 4.2
    figure = Figure(figsize=(width, height * rows))
    # Fixed margins: a layout engine costs more than the drawing.
    figure.subplots_adjust(
        left=0.9 / width,
        right=1 - 0.15 / width,
        bottom=0.55 / (height * rows),
        top=1 - 0.4 / (height * rows),
        wspace=0.22,
        hspace=0.3,
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.ravel())


def finish(figure: "Figure", path: Path) -> None:
    """Add titles and legends and write a picture."""
    for axes in figure.axes:
        axes.title.set_fontsize("medium")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)

"""Pictures of scans: lines over one coordinate, contours over two, and gaps.

Energies are over the lowest of all states. Points that have not converged are crosses
that no line touches, what is outside the region seen in training is dotted or hatched,
and points of a reference lie over the model. Colors are those of Okabe and Ito, which
stay apart for people who see fewer.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlff.report.scans import Reference, axis_label, state_name
from mlff.scanning import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
#: Colors and lines of states, in order; from the eighth state on again from the first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))

# States whose legend has room inside a picture of lines.
_MANY = 3

# Contours show values up to this percentile.
_SHOWN_PERCENT = 92

# Size of a panel, inches, and panels in a row.
_PANEL, _COLUMNS = (4.6, 3.7), 3


def plot_surface(
    surface: Surface, path: Path, reference: Reference | None = None
) -> None:
    """Draw a scan of one or two axes.

    Args:
        surface: the scan.
        path: picture to write.
        reference: points to draw too.
    """
    figure = (_lines if len(surface.axes) == 1 else _maps)(surface, reference)
    figure.savefig(path, dpi=130)


def _title(surface: Surface) -> str:
    kind = "relaxed" if surface.relaxed else "rigid"
    return f"{surface.atoms.get_chemical_formula('hill')}, {kind} scan"


# One axis


def _lines(surface: Surface, reference: Reference | None) -> "Figure":
    from matplotlib.figure import Figure

    gaps = len(surface.states) > 1
    many = len(surface.states) > _MANY  # whose legend would cover them
    size = (9.0 if many else 7.2, 6.6 if gaps else 4.4)
    figure = Figure(figsize=size, layout="constrained")
    ratios = (3, 2)[: 1 + gaps]
    panels = figure.subplots(
        len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios
    )[:, 0]
    _draw_energies(panels[0], surface, reference)
    panels[0].set(title=_title(surface), ylabel="energy over the lowest, eV")
    if gaps:
        _draw_gaps(panels[1], surface, reference)
        for other in surface.states[1:]:
            for point in surface.crossings(surface.states[0], other):
                for panel in panels:
                    panel.axvline(
                        point.values[0], color="0.45", linewidth=0.8, linestyle=":"
                    )
    axis = surface.axes[0]
    panels[-1].set_xlabel(axis_label(axis, surface.atoms.get_chemical_symbols()))
    panels[-1].set_xlim(axis.values[:, 0].min(), axis.values[:, 0].max())
    for panel in panels:
        panel.margins(x=0)
        beside: dict[str, Any] = {}
        if many:
            beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        panel.legend(fontsize="small", framealpha=0.9, **beside)
    return figure


def _draw_energies(axes: "Axes", surface: Surface, reference: Reference | None) -> None:
    x, relative = surface.axes[0].values[:, 0], surface.relative()
    deviations = surface.deviations
    for k, state in enumerate(surface.states):
        outside = None if surface.outside is None else surface.outside[k]
        _line(axes, x, relative[k], outside, k, state_name(state))
        color = COLORS[k % len(COLORS)]
        if deviations is not None:
            _band(axes, x, relative[k], deviations[k], color)
        lost = ~surface.converged[k] & np.isfinite(surface.energies[k])
        if lost.any():
            zero = surface.lowest if surface.good.any() else np.nanmin(surface.energies)
            heights = surface.energies[k] - zero
            label = f"{state_name(state)}, not converged"
            axes.plot(x[lost], heights[lost], "x", color=color, label=label)
        if reference is not None:
            _points(axes, x, reference.shifted(surface)[k], k)
    if reference is not None and np.isfinite(reference.energies).any():
        axes.plot([], [], "o", color="0.3", fillstyle="none", label=_of(reference))
    if surface.outside is not None and surface.outside.any():
        axes.plot([], [], ":", color="0.3", label="outside the region seen in training")
    if deviations is not None:
        label = "± deviation of the committee"
        axes.fill_between([], [], [], color="0.5", alpha=0.3, linewidth=0, label=label)


def _line(
    axes: "Axes",
    x: Array,
    y: Array,
    outside: NDArray[np.bool_] | None,
    k: int,
    label: str,
) -> None:
    """Draw a curve, dotted where either end of a piece is outside."""
    style: dict[str, Any] = {
        "color": COLORS[k % len(COLORS)],
        "linestyle": LINES[k % len(LINES)],
        "label": label,
    }
    if outside is None or not outside.any():
        axes.plot(x, y, **style)
        return
    axes.plot(x, y, ":", color=style["color"])
    axes.plot(x, np.where(outside, np.nan, y), **style)


def _band(axes: "Axes", x: Array, y: Array, width: Array, color: str) -> None:
    axes.fill_between(x, y - width, y + width, color=color, alpha=0.2, linewidth=0)


def _points(axes: "Axes", x: Array, y: Array, k: int) -> None:
    known = np.isfinite(y)
    if known.any():
        axes.plot(
            x[known],
            y[known],
            "os^Dv"[k % 5],
            color=COLORS[k % len(COLORS)],
            fillstyle="none",
            markersize=5,
            clip_on=False,
        )


def _of(reference: Reference) -> str:
    return reference.name + ("" if reference.comparable else ", shifted")


def _draw_gaps(axes: "Axes", surface: Surface, reference: Reference | None) -> None:
    x, first = surface.axes[0].values[:, 0], surface.states[0]
    unit = "°" if surface.axes[0].unit == "degrees" else " Å"
    for k, other in enumerate(surface.states[1:], start=1):
        gap = surface.gap(first, other)
        out = surface.outside
        outside = None if out is None else out[0] | out[k]
        _line(axes, x, gap, outside, k, f"{state_name(first)} − {state_name(other)}")
        if reference is not None:
            _points(axes, x, reference.energies[0] - reference.energies[k], k)
        spread = surface.gap_deviation(first, other)
        if spread is not None:
            _band(axes, x, gap, spread, COLORS[k % len(COLORS)])
        crossings = surface.crossings(first, other)
        axes.plot(
            [p.values[0] for p in crossings],
            [0.0] * len(crossings),
            "o",
            color=COLORS[k % len(COLORS)],
        )
        for point in crossings if len(crossings) <= 6 else ():
            axes.annotate(
                f"{point.values[0]:.4g}{unit}",
                (point.values[0], 0.0),
                xytext=(6, 6),
                textcoords="offset points",
                fontsize="small",
            )
    axes.axhline(0.0, color="black", linewidth=0.6, zorder=0)
    axes.set_ylabel("gap, eV")


# Two axes


def _maps(surface: Surface, reference: Reference | None) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    n_panels = 2 * len(surface.states) - 1 + (surface.members is not None)
    columns = 2 if n_panels == 4 else min(_COLUMNS, n_panels)
    rows = -(-n_panels // columns)
    size = columns * _PANEL[0], rows * _PANEL[1] + 0.6
    layout = ConstrainedLayoutEngine(wspace=0.06, hspace=0.06)
    figure = Figure(figsize=size, layout=layout)
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    figure.suptitle(_title(surface), fontsize="medium")
    for k in range(len(surface.states)):
        _map_of_state(figure, panels.pop(0), surface, k, reference)
    for k in range(1, len(surface.states)):
        _map_of_gap(figure, panels.pop(0), surface, k, reference)
    deviations = surface.deviations
    if deviations is not None:
        axes = panels.pop(0)
        widest = 1000 * np.where(surface.good, deviations, np.nan).max(0)
        if np.isfinite(widest).any():
            drawn = _contours(axes, surface, widest, None, cmap="magma_r")
            figure.colorbar(drawn, ax=axes, label="meV")
        title = "committee: deviation, largest of all states"
        _finish(axes, surface, title, slice(None))
    for unused in panels:
        unused.set_axis_off()
    told = [axes.get_legend_handles_labels() for axes in figure.axes]
    legend = {
        n: h for handles, names in told for h, n in zip(handles, names, strict=True)
    }
    if legend:
        figure.legend(
            legend.values(),
            legend.keys(),
            loc="outside lower center",
            ncols=len(legend),
            fontsize="small",
            frameon=False,
        )
    return figure


def _levels(lowest: float, values: Array) -> Array:
    """Return round levels from 0 or, if ``lowest`` is negative, as far below as above.

    A wall must not hide a valley: the highest values lie above all levels.
    """
    from matplotlib.ticker import MaxNLocator

    top = max(float(np.percentile(np.abs(values), _SHOWN_PERCENT)), 1e-6)
    return np.array(MaxNLocator(16).tick_values(lowest * top, top))


def _map_of_state(
    figure: "Figure",
    axes: "Axes",
    surface: Surface,
    k: int,
    reference: Reference | None,
) -> None:
    relative = surface.relative()
    finite = relative[np.isfinite(relative)]
    state = surface.states[k]
    if len(finite):
        levels = _levels(0.0, finite)
        style: dict[str, Any] = {"cmap": "viridis", "extend": "max"}
        drawn = _contours(axes, surface, relative[k], levels, **style)
        figure.colorbar(drawn, ax=axes, label="eV over the lowest")
        if reference is not None:
            shifted = reference.shifted(surface)[k]
            _spots(axes, surface, shifted, drawn, _of(reference))
    if np.isfinite(relative[k]).any():
        place = surface.minimum(state).index
        axes.plot(
            *(axis.values[i, 0] for axis, i in zip(surface.axes, place, strict=True)),
            "*",
            color="white",
            markeredgecolor="black",
            markersize=12,
            clip_on=False,
            zorder=4,
            label="lowest point",
        )
    _finish(axes, surface, state_name(state), slice(k, k + 1))


def _map_of_gap(
    figure: "Figure",
    axes: "Axes",
    surface: Surface,
    k: int,
    reference: Reference | None,
) -> None:
    gap = surface.gap(surface.states[0], surface.states[k])
    finite = gap[np.isfinite(gap)]
    if len(finite):
        levels = _levels(-1.0, finite)
        style: dict[str, Any] = {"cmap": "PuOr", "extend": "both"}
        drawn = _contours(axes, surface, gap, levels, **style)
        figure.colorbar(drawn, ax=axes, label="eV")
        if finite.min() < 0 < finite.max():
            _contour_lines(axes, surface, gap, [0.0], colors="black", linewidths=1.8)
            axes.plot([], [], color="black", linewidth=1.8, label="no gap")
        if reference is not None:
            points = reference.energies[0] - reference.energies[k]
            _spots(axes, surface, points, drawn, _of(reference))
    first, other = surface.states[0], surface.states[k]
    title = f"{state_name(first)} − {state_name(other)}"
    _finish(axes, surface, title, [0, k])


def _contours(
    axes: "Axes", surface: Surface, values: Array, levels: Any, **style: Any
) -> Any:
    x, y = (axis.values[:, 0] for axis in surface.axes)
    masked = np.ma.masked_invalid(values.T)
    drawn = axes.contourf(x, y, masked, levels=levels, **style)
    _contour_lines(
        axes, surface, values, list(drawn.levels)[::4], colors="0.35", linewidths=0.4
    )
    return drawn


def _contour_lines(
    axes: "Axes", surface: Surface, values: Array, levels: Any, **style: Any
) -> None:
    """Draw lines at those levels that the values cross: others would be warned of."""
    x, y = (axis.values[:, 0] for axis in surface.axes)
    low, high = np.nanmin(values), np.nanmax(values)
    crossed = [level for level in levels if low < level < high]
    if crossed:
        axes.contour(x, y, np.ma.masked_invalid(values.T), levels=crossed, **style)


def _spots(axes: "Axes", surface: Surface, values: Array, like: Any, name: str) -> None:
    """Draw points in the colors of a map: those that vanish agree with it."""
    x, y = np.meshgrid(*(axis.values[:, 0] for axis in surface.axes), indexing="ij")
    known = np.isfinite(values)
    axes.scatter(
        x[known],
        y[known],
        c=values[known],
        cmap=like.get_cmap(),
        norm=like.norm,
        edgecolors="black",
        linewidths=0.8,
        s=28,
        zorder=3,
        clip_on=False,
        label=name,
    )


def _finish(axes: "Axes", surface: Surface, title: str, which: Any) -> None:
    """Mark what is outside or not converged, and write what is what.

    Args:
        axes: the panel.
        surface: the scan.
        title: of the panel.
        which: states that it is of.
    """
    x, y = (axis.values[:, 0] for axis in surface.axes)
    axes.set_facecolor("0.9")
    if surface.outside is not None and surface.outside[which].any():
        out = surface.outside[which].any(0).astype(float)
        area: dict[str, Any] = {"colors": "none", "hatches": ["///"]}
        hatched = axes.contourf(x, y, out.T, levels=[0.5, 1.5], **area)
        hatched.set_edgecolor((0.2, 0.2, 0.2, 0.45))
        hatched.set_linewidth(0.0)
        _contour_lines(axes, surface, out, [0.5], colors="0.2", linewidths=0.8)
        like: dict[str, Any] = {"facecolor": "none", "edgecolor": "0.4"}
        label = "outside the region seen in training"
        axes.fill_between([], [], hatch="///", label=label, **like)
    lost = np.argwhere(~surface.converged[which].all(0))
    if len(lost):
        label = "not converged" if surface.relaxed else "no result"
        axes.plot(x[lost[:, 0]], y[lost[:, 1]], "kx", markersize=4, label=label)
    symbols = surface.atoms.get_chemical_symbols()
    axes.set(
        title=title,
        xlabel=axis_label(surface.axes[0], symbols),
        ylabel=axis_label(surface.axes[1], symbols),
    )
    axes.title.set_fontsize("medium")

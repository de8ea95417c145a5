"""Pictures of a run that stay readable for one system and for ten thousand.

Few systems are drawn one by one; of many, the median and the band that holds 90 % of
them. Up to four kinds of systems have colors of their own, more are pooled.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import units
from scipy import special

from mlff.report.drawing import (
    COLORS,
    Group,
    colored,
    finish,
    fit,
    histogram,
    panels,
    percentiles,
)
from mlff.report.run import Array, Run, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Systems of a kind that are drawn one by one.
MAX_LINES = 5

# Points of a line: as many as a picture resolves.
_MAX_POINTS = 600

# Percentiles: a band, and the median in it.
_BAND = (5.0, 50.0, 95.0)


def plot_conserved(run: Run, path: Path) -> None:
    """Draw the conserved energy against time: flat if integration is good."""
    figure, (axes,) = panels(1)
    for group in colored(run.groups):
        _draw(axes, run, run.change, group, singles=3)
    axes.axhline(0.0, color="black", linewidth=0.5, zorder=0)
    drift = run.drift[np.isfinite(run.drift)]
    mean = f", mean drift {drift.mean():+.3g} meV/atom/ps" if len(drift) else ""
    axes.set(
        ylabel="conserved energy − that at the start, meV/atom",
        title=f"Conserved energy{mean}",
    )
    fit(axes, run.change[run.alive])
    finish(figure, path)


def plot_temperature(run: Run, path: Path) -> None:
    """Draw temperatures against time, and their distribution in the second half.

    With a thermostat the curve beside the distribution is the canonical one: the
    kinetic energy over k_B T has the Gamma distribution of shape N_f/2.
    """
    figure, (left, right) = panels(2)
    for group in colored(run.groups):
        _draw(left, run, run.temperature, group, middle="mean")
    if run.target_K is not None:
        left.plot(
            run.times_fs / 1000,
            run.target_K.mean(1),
            "k--",
            linewidth=1,
            label="set temperature",
        )
    left.set(ylabel="kinetic temperature, K", title="Temperature")
    fit(left, run.temperature[run.alive])
    left.set_ylim(bottom=0)
    if run.target_K is None or not (run.target_K > 0).any():
        _at_constant_energy(right, run)
    elif len({*run.dof.tolist()} - {0}) <= len(COLORS):
        _against_canonical(right, run)
    else:
        _ranks(right, run)
    finish(figure, path)


def _target(run: Run) -> Array:
    assert run.target_K is not None  # asked for with a thermostat only
    above_zero = np.where(run.target_K > 0, run.target_K, np.nan)
    return np.broadcast_to(above_zero, run.temperature.shape)


def _at_constant_energy(axes: "Axes", run: Run) -> None:
    for group in colored(run.groups):
        chosen = run.counted[:, group.systems]
        values = run.temperature[:, group.systems][chosen]
        histogram(axes, values, group.label, group.color)
    axes.set(
        xlabel="kinetic temperature, K",
        ylabel="probability density, 1/K",
        title="Distribution in the second half",
    )


def _against_canonical(axes: "Axes", run: Run) -> None:
    """One histogram and one curve for each number of degrees of freedom."""
    target = _target(run)
    constant = bool((target == target[0, 0]).all())
    scale = float(target[0, 0]) if constant else 1.0
    for color, dof in zip(COLORS, sorted({*run.dof.tolist()} - {0}), strict=False):
        which = np.flatnonzero(run.dof == dof)
        reduced = run.temperature[:, which] / target[:, which]
        values = scale * reduced[run.counted[:, which]]
        histogram(axes, values, f"run, $N_f$ = {dof:g}", color)
        kinetic, density = _canonical(dof)
        unit = 2 * scale / dof  # of K / k_B T in the unit of the axis
        label = f"canonical, $N_f$ = {dof:g}"
        axes.plot(unit * kinetic, density / unit, color=color, label=label)
    axes.set(
        xlabel="kinetic temperature" + (", K" if constant else " / set temperature"),
        ylabel="probability density" + (", 1/K" if constant else ""),
        title="Distribution in the second half",
    )


def _canonical(dof: float) -> tuple[Array, Array]:
    """K / k_B T, and its Gamma density of shape N_f/2."""
    shape = 0.5 * dof
    ends = special.gammaincinv(shape, (1e-4, 1 - 1e-4))
    kinetic = np.linspace(ends[0], ends[1], 300)
    density = special.xlogy(shape - 1, kinetic) - kinetic - special.gammaln(shape)
    return kinetic, np.exp(density)


def _ranks(axes: "Axes", run: Run) -> None:
    """Ranks in the canonical distribution: systems of any size in one histogram."""
    moving = run.dof > 0
    dof = run.dof[moving]
    reduced = run.kinetic[:, moving] / (units.kB * _target(run)[:, moving])
    rank = special.gammainc(0.5 * dof, reduced)[run.counted[:, moving]]
    histogram(axes, rank, f"run, $N_f$ = {dof.min():g} to {dof.max():g}", COLORS[0])
    axes.axhline(1.0, color="black", linewidth=1, label="canonical")
    axes.set(
        xlabel="rank of the kinetic energy in the canonical distribution",
        ylabel="probability density",
        title="Distribution in the second half",
        ylim=(0, None),
    )


def plot_gaps(run: Run, path: Path) -> None:
    """Draw the energy of the first state less those of others, same geometries.

    Against time, and their distribution over the second half; a row for each state.
    """
    gaps = run.gaps()
    figure, axes = panels(2, rows=len(gaps))
    for row, ((upper, lower), gap) in enumerate(gaps.items()):
        left, right = axes[2 * row : 2 * row + 2]
        name = f"E({_term(upper)}) − E({_term(lower)}), eV"
        for group in colored(run.groups):
            _draw(left, run, gap, group, singles=1)
            values = gap[:, group.systems][run.counted[:, group.systems]]
            label = (
                f"{values.mean():.3f} ± {values.std():.3f} eV" if len(values) else ""
            )
            histogram(right, values, label, group.color)
        fit(left, gap[run.alive])
        left.set(ylabel=name, title="Gap along the run: E(charge, multiplicity)")
        right.set(
            xlabel=name,
            ylabel="probability density, 1/eV",
            title="Distribution in the second half, mean ± deviation",
        )
    finish(figure, path)


def _term(state: tuple[int, int]) -> str:
    return f"{state[0]:+d}, {state[1]}"


def _draw(
    axes: "Axes",
    run: Run,
    values: Array,
    group: Group,
    *,
    middle: str = "median",
    singles: int = 0,
) -> None:
    """Draw one group against time: its systems, or middle, band and some of them."""
    axes.set_xlabel("time, ps")
    systems, color = group.systems, group.color
    rows = np.arange(0, len(values), max(1, len(values) // _MAX_POINTS))
    time = run.times_fs[rows] / 1000
    shown = np.where(run.alive[rows][:, systems], values[rows][:, systems], np.nan)
    if len(systems) <= MAX_LINES:
        lines = axes.plot(time, shown, color=color, linewidth=0.8, alpha=0.7)
        lines[0].set_label(group.label)
        return
    low, median, high = np.array([percentiles(row, _BAND) for row in shown]).T
    mean = mean_of(shown.T, np.isfinite(shown.T))
    axes.fill_between(time, low, high, color=color, alpha=0.2, linewidth=0)
    label = f"{group.label}: {middle}, 90 % band"
    axes.plot(time, median if middle == "median" else mean, color=color, label=label)
    # Those that drift least, most, and in between: the worst is always among three.
    order = np.argsort(-np.abs(run.drift[systems]))
    for place in np.linspace(0, len(order) - 1, singles).round().astype(int):
        axes.plot(time, shown[:, order[place]], color=color, linewidth=0.4, alpha=0.7)

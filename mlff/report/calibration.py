"""How well the deviations of a committee tell its errors: numbers, a table, a picture.

A committee is calibrated if errors are normal with its deviation σ: then the root mean
square error of all predictions with like σ is σ, and 68 and 95 % of the errors lie
within σ and 2σ. As σ comes from M members only, the best that can be are the shares of
Student's distribution with M − 1 degrees of freedom: 61 and 86 % with four. Members
that err alike give a σ that is too small; ``scale`` says by how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtr
from scipy.stats import rankdata

from mlff.committee import DEVIATIONS, Committee
from mlff.data import Dataset
from mlff.errors import DataError
from mlff.evaluation import in_words
from mlff.neighbors import neighbor_list
from mlff.properties import PROPERTIES
from mlff.report.drawing import finish, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

# Errors and deviations below this part of their root mean squares are zero by symmetry:
# forces across the plane of a planar molecule.
_ZERO = 1e-6

# Predictions of a bin at least, and bins at most.
_BIN, _BINS = 20, 12

_ATOMS_PER_CALL = 3000


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Errors of one property beside the deviations of a committee.

    Attributes:
        name: of the property.
        unit: of errors and deviations, in words.
        errors: prediction less label, (n,); forces by component, without those that
            are zero by symmetry.
        deviations: sample standard deviation over the members, (n,).
        n_members: of the committee.
    """

    name: str
    unit: str
    errors: Array
    deviations: Array
    n_members: int

    @property
    def rmse(self) -> float:
        """Root mean square error."""
        return _rms(self.errors)

    @property
    def mean_deviation(self) -> float:
        """Mean of the deviations."""
        return float(self.deviations.mean())

    @property
    def scale(self) -> float:
        """What deviations must be multiplied by to have the size of the errors.

        The ratio of root mean squares: unlike the mean of ``(error/σ)²`` it does not
        hang on the few predictions about which all members happen to agree.
        """
        size = _rms(self.deviations)
        return self.rmse / size if size > 0 else np.inf

    @property
    def correlation(self) -> float:
        """Rank correlation (Spearman) of deviations with absolute errors."""
        ranks = rankdata(self.deviations), rankdata(np.abs(self.errors))
        if any(np.ptp(values) == 0 for values in ranks):
            return np.nan
        return float(np.corrcoef(*ranks)[0, 1])

    def within(self, factor: float) -> float:
        """Return the share of the errors that lie within deviations times a factor."""
        own = self.deviations
        far = np.multiply(factor, own, out=np.zeros_like(own), where=own > 0)
        return float((np.abs(self.errors) <= far).mean())

    def bins(self) -> tuple[Array, Array, Array]:
        """Return root mean square deviation and error, and its own error, of each bin.

        Bins hold as many predictions each, by ascending deviation.
        """
        order = np.argsort(self.deviations, kind="stable")
        n_bins = int(np.clip(len(order) // _BIN, 1, _BINS))
        groups = np.array_split(order, n_bins)
        deviation = np.array([_rms(self.deviations[rows]) for rows in groups])
        error = np.array([_rms(self.errors[rows]) for rows in groups])
        sizes = np.array([len(rows) for rows in groups])
        return deviation, error, error / np.sqrt(2 * sizes)

    def to_json(self) -> dict[str, float | int | str | None]:
        """Return what the table says, JSON types."""
        numbers = {
            "rmse": self.rmse,
            "mean_absolute_error": float(np.abs(self.errors).mean()),
            "mean_deviation": self.mean_deviation,
            "correlation": self.correlation,
            "scale": self.scale,
            "within_1_sigma": self.within(1),
            "within_2_sigma": self.within(2),
            "within_1_sigma_scaled": self.within(self.scale),
            "within_2_sigma_scaled": self.within(2 * self.scale),
        }
        finite = {k: v if np.isfinite(v) else None for k, v in numbers.items()}
        return {"unit": self.unit, "n": len(self.errors), **finite}


def calibrate(committee: Committee, data: Dataset) -> list[Calibration]:
    """Compare the deviations of a committee with its errors.

    Args:
        committee: what predicts.
        data: labelled systems that no member was trained on; others flatter.

    Returns:
        One for each of energy and forces that there are labels of.

    Raises:
        DataError: neither energies nor forces among the labels.
    """
    names = [name for name in DEVIATIONS if DEVIATIONS[name] in data.labels]
    if not names:
        raise DataError("the data have neither energies nor forces to calibrate with")
    data = data.to(committee.device)
    size = max(_ATOMS_PER_CALL // max(data.batch.max_atoms, 1), 1)
    found: dict[str, list[Array]] = {name: [] for name in names}
    for start in range(0, len(data), size):
        part = data.select(range(start, min(start + size, len(data))))
        edges = neighbor_list(part.batch, committee.cutoff)
        asked = (*names, *(DEVIATIONS[name] for name in names))
        out = committee(part.batch, edges, asked)
        for name in names:
            of = DEVIATIONS[name]
            pair = torch.stack((out[of] - part.labels[of], out[name]))
            found[name].append(pair.flatten(1).cpu().numpy())
    return [_calibration(name, found[name], committee.n_members) for name in names]


def _calibration(name: str, parts: Sequence[Array], n_members: int) -> Calibration:
    known = PROPERTIES[DEVIATIONS[name]]
    errors, deviations = known.error_factor * np.concatenate(parts, axis=1)
    kept = np.abs(errors) > _ZERO * _rms(errors)
    kept |= deviations > _ZERO * _rms(deviations)
    return Calibration(
        name=known.name,
        unit=in_words(known.error_unit),
        errors=errors[kept],
        deviations=deviations[kept],
        n_members=n_members,
    )


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def expected_shares(n_members: int) -> tuple[float, float]:
    """Return the best shares within σ and 2σ, if σ is known from so many members."""
    one, two = (2 * float(stdtr(n_members - 1, k)) - 1 for k in (1.0, 2.0))
    return one, two


def calibration_table(calibrations: Sequence[Calibration]) -> str:
    """Return a line for each property, and what the columns mean."""
    titles = ("RMSE", "mean σ", "correlation", "within σ", "within 2σ", "scale")
    heading = f"{'':16s}" + "".join(f"{title:>13s}" for title in titles)
    lines = [f"{heading}{'scaled: σ':>13s}{'2σ':>8s}"]
    lines += [
        f"{one.name + ', ' + one.unit:16s}{one.rmse:13.3g}"
        f"{one.mean_deviation:13.3g}{one.correlation:13.2f}"
        f"{one.within(1):13.0%}{one.within(2):13.0%}{one.scale:13.2f}"
        f"{one.within(one.scale):13.0%}{one.within(2 * one.scale):8.0%}"
        for one in calibrations
    ]
    n_members = calibrations[0].n_members
    one_sigma, two_sigma = expected_shares(n_members)
    lines.append(
        f"normal errors: 68% and 95%; at best {one_sigma:.0%} and {two_sigma:.0%} "
        f"with σ from {n_members} members"
    )
    return "\n".join(lines)


def plot_calibration(path: str | Path, calibrations: Sequence[Calibration]) -> None:
    """Draw errors against deviations, all of them and binned, on log axes.

    Args:
        path: picture to write.
        calibrations: one panel each.
    """
    figure, axes = panels(len(calibrations))
    for one, panel in zip(calibrations, axes, strict=True):
        _draw(panel, one)
    finish(figure, Path(path))


def _draw(axes: "Axes", one: Calibration) -> None:
    name = "force component" if one.name == "forces" else one.name
    axes.set(
        xlabel=f"deviation of the {name}, {one.unit}",
        ylabel=f"error of the {name}, {one.unit}",
        title=f"{one.name}: RMSE {one.rmse:.3g} {one.unit}, rank correlation "
        f"{one.correlation:.2f}",
    )
    shown = (one.deviations > 0) & (one.errors != 0)
    if not shown.any():
        axes.text(0.5, 0.5, "all members agree", ha="center", transform=axes.transAxes)
        return
    x, y = one.deviations[shown], np.abs(one.errors[shown])
    deviation, error, uncertain = one.bins()
    low, high = np.percentile(x, (1, 99)) * (0.7, 1.4)
    dots: dict[str, Any] = {"color": "tab:gray", "alpha": 0.35, "linewidths": 0}
    axes.scatter(x, y, float(np.clip(8e3 / len(x), 3, 12)), **dots)
    axes.scatter([], [], 20, **dots, label="each prediction")
    line = np.array([low, high])
    axes.plot(line, line, "k-", linewidth=1, label="ideal: RMSE = deviation")
    axes.plot(line, one.scale * line, "k--", linewidth=1, label=_told(one, one.scale))
    axes.errorbar(deviation, error, uncertain, fmt="none", color="tab:red", capsize=2)
    label = f"RMSE of bins; {_told(one, 1)}"
    axes.plot(deviation, error, "o-", color="tab:red", markersize=5, label=label)
    best = "{:.0%} and {:.0%}".format(*expected_shares(one.n_members))
    axes.plot([], [], " ", label=f"normal errors: 68% and 95%, here at best {best}")
    bottom = min(float(np.percentile(y, 3)), low, error.min())
    top = max(float(y.max()), high * max(one.scale, 1))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, 12 * top))
    _plain_ticks(axes)


def _plain_ticks(axes: "Axes") -> None:
    """Write 1, 2 and 5 times powers of ten, as few as have room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis, (low, high) in (
        (axes.xaxis, axes.get_xlim()),
        (axes.yaxis, axes.get_ylim()),
    ):
        steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _told(one: Calibration, factor: float) -> str:
    scaled = "" if factor == 1 else f"deviation × {factor:.2f}; "
    shares = f"{one.within(factor):.0%} and {one.within(2 * factor):.0%}"
    return f"{scaled}{shares} within σ, 2σ"

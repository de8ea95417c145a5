"""What a scan amounts to: names of states and axes, a table, and energies beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlff.coordinates import Coordinate
from mlff.report.tables import aligned, cell, write_csv
from mlff.scanning import Axis, Point, Surface
from mlff.state import State

Array = NDArray[np.float64]
Pair = tuple[int, int]

#: Crossings and reasons that a table lists.
MAX_CROSSINGS, MAX_REASONS = 5, 5

_NAMES = ("singlet", "doublet", "triplet", "quartet", "quintet", "sextet", "septet")


class Reference(NamedTuple):
    """Energies from elsewhere at some points of a grid.

    Attributes:
        name: of the level of theory.
        energies: (n_states, *shape), eV; not a number where there is none.
        comparable: whether they have the zero of the model; if not, they are shifted
            to it at the lowest point that both have.
    """

    name: str
    energies: Array
    comparable: bool

    def shifted(self, surface: Surface) -> Array:
        """Return the energies over the zero of :meth:`Surface.relative`, eV."""
        if self.comparable:
            return self.energies - surface.lowest
        model = np.where(surface.good, surface.energies, np.nan)
        both = np.where(np.isfinite(self.energies), model, np.nan)
        if np.isnan(both).all():
            return np.full_like(self.energies, np.nan)
        at = np.unravel_index(np.nanargmin(both), both.shape)
        return self.energies - self.energies[at] + surface.relative()[at]


def state_name(state: Pair) -> str:
    """Return a state in words, like ``"triplet (0, 3)"`` or ``"doublet (+1, 2)"``."""
    spin = state[1]
    name = _NAMES[spin - 1] if spin <= len(_NAMES) else f"multiplicity {spin}"
    return f"{name} {State(*state).short}"


def axis_label(axis: Axis, symbols: Sequence[str]) -> str:
    """Return what an axis is, with elements and unit: ``"angle H1–C0–H2, degrees"``."""
    chains = [_chain(one, symbols) for one in axis.coordinates]
    first = axis.coordinates[0]
    if axis.together:
        plural = "s" if len(chains) > 1 else ""
        return f"{first.kind}{plural} {' and '.join(chains)}, {first.unit}"
    return f"{first.kind} {chains[0]}, {first.unit}, with {', '.join(chains[1:])}"


def _chain(one: Coordinate, symbols: Sequence[str]) -> str:
    return "–".join(f"{symbols[k]}{k}" for k in one.atoms)


def scan_table(surface: Surface, reference: Reference | None = None) -> str:
    """Return the lowest points of the states, their gaps and what to be wary of.

    Columns: points that count; energy of the lowest, how far that is over the lowest of
    all states, how far the highest is over it; where the lowest is on each axis.

    Args:
        surface: the scan.
        reference: energies to measure it against.
    """
    symbols = surface.atoms.get_chemical_symbols()
    kind = "relaxed" if surface.relaxed else "rigid"
    formula = surface.atoms.get_chemical_formula("hill")
    axes = [axis_label(axis, symbols).rpartition(", ") for axis in surface.axes]
    rows: list[tuple[str, ...]] = [
        ("", "good", "lowest", "over all", "up to", *(name for name, _, _ in axes)),
        ("", "points", "eV", "eV", "eV", *(unit for _, _, unit in axes)),
    ]
    rows += [_row(surface, k) for k in range(len(surface.states))]
    lines = [f"{kind} scan of {formula}", *aligned(rows)]
    for k, other in enumerate(surface.states):
        for lower in surface.states[:k]:
            lines += _gap(surface, lower, other)
    if reference is not None:
        lines += _errors(surface, reference)
    lines += _warnings(surface)
    n = surface.energies.size
    return "\n".join([*lines, f"{n:,} points and states in {surface.seconds:.1f} s"])


def _row(surface: Surface, k: int) -> tuple[str, ...]:
    state = surface.states[k]
    count = f"{surface.good[k].sum():,} of {surface.good[k].size:,}"
    if not surface.good[k].any():
        return (state_name(state), count, "-", "-", "-", *["-" for _ in surface.axes])
    point, relative = surface.minimum(state), surface.relative()[k]
    edge = any(i in (0, n - 1) for i, n in zip(point.index, surface.shape, strict=True))
    name = state_name(state) + (", at the edge" if edge else "")
    low, high = np.nanmin(relative), np.nanmax(relative)
    numbers = f"{point.energy:.4f}", f"{low:.4f}", f"{high:.4f}"
    return (name, count, *numbers, *_place(surface, point))


def _place(surface: Surface, point: Point) -> list[str]:
    """Where a point is on each axis, by the first coordinate of this."""
    out, start = [], 0
    for axis in surface.axes:
        digits = 3 if axis.unit == "Å" else 2
        out.append(f"{point.values[start]:.{digits}f}")
        start += len(axis.coordinates)
    return out


def _gap(surface: Surface, lower: Pair, upper: Pair) -> list[str]:
    gap = surface.gap(lower, upper)
    if np.isnan(gap).all():
        return []
    name = f"{state_name(lower)} − {state_name(upper)}"
    out = [f"gap {name}: {np.nanmin(gap):+.4f} … {np.nanmax(gap):+.4f} eV"]
    spread = surface.gap_deviation(lower, upper)
    if spread is not None:
        out[0] += f", deviation of the committee up to {np.nanmax(spread):.2g} eV"
    found = surface.crossings(lower, upper)
    seam = len(surface.axes) > 1
    what = "lowest crossing" if seam else "crossing"
    if surface.relaxed:
        what += " of the curves, each state relaxed on its own,"
    most = 1 if seam else MAX_CROSSINGS
    for point in found[:most]:
        at = ", ".join(
            f"{value} {axis.unit}"
            for value, axis in zip(_place(surface, point), surface.axes, strict=True)
        )
        out.append(
            f"  {what} at {at}: {point.energy - surface.lowest:.4f} eV over the lowest"
        )
    if len(found) > most and not seam:
        out.append(f"  … {len(found) - most} more")
    return out


def _errors(surface: Surface, reference: Reference) -> list[str]:
    errors = 1000 * (surface.relative() - reference.shifted(surface))
    how = "" if reference.comparable else ", its zero shifted to the model's"
    n = int(np.isfinite(errors).sum())
    out = [f"against {reference.name} at {n} points{how}:"]
    parts = {"": np.ones_like(surface.good)}
    if surface.outside is not None and surface.outside.any():
        parts = {
            ", in the region seen in training": ~surface.outside,
            ", outside": surface.outside,
        }
    for k, state in enumerate(surface.states):
        for where, part in parts.items():
            known = np.abs(errors[k][part[k] & np.isfinite(errors[k])])
            if len(known):
                told = f"MAE {known.mean():.2f} meV, largest {known.max():.2f} meV"
                out.append(f"  {state_name(state)}{where}, {len(known)} points: {told}")
    return out


def _warnings(surface: Surface) -> list[str]:
    out = list(surface.unseen)
    reasons: dict[str, int] = {}
    for remark in surface.remarks.ravel().tolist():
        if remark:
            reasons[remark] = reasons.get(remark, 0) + 1
    ranked = sorted(reasons.items(), key=lambda item: -item[1])
    for reason, count in ranked[:MAX_REASONS]:
        out.append(f"not counted, {count:,} points: {reason}")
    if len(ranked) > MAX_REASONS:
        rest = sum(count for _, count in ranked[MAX_REASONS:])
        out.append(f"not counted, {rest:,} more points: other reasons")
    if surface.outside is not None and surface.outside.any():
        out.append(
            f"{surface.outside.sum():,} of {surface.outside.size:,} are outside the "
            "region seen in training: energies there mean little"
        )
    return out


def reference_csv(surface: Surface, reference: Reference, path: Path) -> None:
    """Write a line for each energy of a reference, with that of the model beside it."""
    shifted = reference.shifted(surface) - surface.relative()
    rows = []
    for at in map(tuple, np.argwhere(np.isfinite(reference.energies))):
        values = map(cell, surface.values[at[1:]])
        energies = (surface.energies[at], reference.energies[at], -shifted[at])
        rows.append([*values, *surface.states[at[0]], *map(cell, energies)])
    columns = (*surface.columns, "charge", "multiplicity")
    energies = ("model_eV", "reference_eV", "model_minus_reference_eV")
    write_csv(path, (*columns, *energies), rows)

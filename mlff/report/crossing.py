"""What the search for a crossing found: a table, files, and a picture."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from mlff.coordinates import BOND_FACTOR, Coordinate, values
from mlff.report.drawing import finish, panels
from mlff.report.scans import state_name
from mlff.report.surfaces import COLORS
from mlff.report.tables import aligned
from mlff.runfolder import write_json

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes

    from mlff.crossing import Crossing

Array = NDArray[np.float64]

#: Internal coordinates that the table lists; files have every atom.
MOST_COORDINATES = 24


class ByDFT(NamedTuple):
    """What DFT says of the same two states.

    Attributes:
        level: of theory.
        check: both states at the very point that was found, if asked for.
        own: its own crossing, if asked for.
    """

    level: str
    check: "Crossing | None" = None
    own: "Crossing | None" = None


def report_crossing(
    crossing: "Crossing",
    folder: str | Path,
    profile: tuple[Array, Array] | None = None,
    reference: ByDFT | None = None,
) -> str:
    """Write the report of a search; what is there of an earlier one is replaced.

    Args:
        crossing: what was found.
        folder: to write into, which is there: ``crossing.txt``, ``crossing.xyz``,
            ``crossing.json``, ``crossing.png`` and, with its own crossing of DFT,
            ``crossing_dft.xyz``.
        profile: energies along a line through it, see :func:`mlff.crossing.profile`.
        reference: what DFT says.

    Returns:
        The table, which is in ``crossing.txt`` too.
    """
    folder = Path(folder)
    table = crossing_table(crossing, reference)
    (folder / "crossing.txt").write_text(table + "\n", encoding="utf-8")
    crossing.write(folder / "crossing.xyz")
    content = crossing.to_json()
    dft = folder / "crossing_dft.xyz"
    dft.unlink(missing_ok=True)
    if reference is not None:
        content["dft_level"] = reference.level
        for name, one in (("check", reference.check), ("crossing", reference.own)):
            if one is not None:
                content[f"dft_{name}"] = one.to_json()
        if reference.own is not None:
            reference.own.write(dft)
    write_json(folder / "crossing.json", _plain(content))
    plot_crossing(crossing, folder / "crossing.png", profile, reference)
    return table


def _plain(content: Any) -> Any:
    """Numbers that JSON has: nothing for what is not finite."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not np.isfinite(content):
        return None
    return content


def crossing_table(crossing: "Crossing", reference: ByDFT | None = None) -> str:
    """Return what was found, with bonds, angles and energies beside the minima."""
    names = [state_name((s.charge, s.multiplicity)) for s in crossing.states]
    columns: list[tuple[str, str, Atoms]] = [("", "this point", crossing.atoms)]
    columns += [
        ("minimum of", name, one.atoms)
        for name, one in zip(names, crossing.minima, strict=False)
    ]
    if reference is not None and reference.own is not None:
        columns.append(("crossing by", "DFT", reference.own.atoms))
    rows = [("", *(c[0] for c in columns)), ("", *(c[1] for c in columns))]
    listed = _coordinates(crossing)
    every = np.array([values(c[2].positions, listed) for c in columns])
    symbols = crossing.atoms.get_chemical_symbols()
    for one, found in zip(listed[:MOST_COORDINATES], every.T, strict=False):
        digits = 4 if one.kind == "bond" else 2
        chain = "–".join(f"{symbols[k]}{k}" for k in one.atoms)
        name = f"{one.kind} {chain}, {one.unit}"
        rows.append((name, *(f"{value:.{digits}f}" for value in found)))
    if len(listed) > MOST_COORDINATES:
        rows.append((f"… {len(listed) - MOST_COORDINATES} more", *[""] * len(columns)))
    lines = [str(crossing), "", *aligned(rows)]
    if reference is not None:
        lines += ["", *_of_reference(crossing, reference)]
    return "\n".join(lines)


def _of_reference(crossing: "Crossing", reference: ByDFT) -> Iterator[str]:
    yield f"DFT, {reference.level}"
    if reference.check is not None:
        yield (
            f"  at this point: gap {1000 * reference.check.gap:+.2f} meV, effective "
            f"gradient {reference.check.fmax:.2g} eV/Å"
        )
    own = reference.own
    if own is not None:
        kind = "its own crossing" if own.converged else "no crossing of its own"
        yield (
            f"  {kind}: gap {1000 * own.gap:+.2f} meV, effective gradient "
            f"{own.fmax:.2g} eV/Å, {own.n_calls} geometries"
        )
        listed = _coordinates(crossing)
        off = np.abs(
            values(crossing.atoms.positions, listed)
            - values(own.atoms.positions, listed)
        )
        for kind, unit in (("bond", "Å"), ("angle", "°")):
            chosen = [one.kind == kind for one in listed]
            if any(chosen):
                yield f"  {kind}s differ by up to {off[chosen].max():.2g} {unit}"
        if own.reason:
            yield f"  why: {own.reason}"


def _coordinates(crossing: "Crossing") -> list[Coordinate]:
    """Held coordinates, bonds, and angles between bonds, none of them twice.

    Atoms are bonded that are so at this point or where the search began.
    """
    atoms = crossing.atoms
    radii = covalent_radii[atoms.numbers]
    pairs = combinations(range(len(atoms)), 2)
    both = np.stack([atoms.positions, crossing.path[0].positions])
    distances = np.linalg.norm(both[:, :, None] - both[:, None], axis=3).min(0)
    bonds = [
        (i, j)
        for i, j in pairs
        if distances[i, j] < BOND_FACTOR * (radii[i] + radii[j])
    ]
    found = [one.coordinate for one in crossing.held]
    found += [Coordinate("bond", bond) for bond in bonds]
    for middle in range(len(atoms)):
        ends = [i + j - middle for i, j in bonds if middle in (i, j)]
        found += [Coordinate("angle", (a, middle, b)) for a, b in combinations(ends, 2)]
    return [
        one
        for index, one in enumerate(found)
        if not any(one.same_as(other) for other in found[:index])
    ]


def plot_crossing(
    crossing: "Crossing",
    path: Path,
    profile: tuple[Array, Array] | None = None,
    reference: ByDFT | None = None,
) -> None:
    """Draw both states along a line through the point, and how the search got there.

    Args:
        crossing: what was found.
        path: picture to write.
        profile: energies along the line; tangents at the point if not given.
        reference: what DFT says.
    """
    figure, (left, right) = panels(2)
    _draw_line(left, crossing, profile, reference)
    _draw_search(right, crossing)
    finish(figure, path)


def _draw_line(
    axes: "Axes",
    crossing: "Crossing",
    profile: tuple[Array, Array] | None,
    reference: ByDFT | None,
) -> None:
    zero = float(np.mean(crossing.energies))
    if profile is None:
        places = np.linspace(-0.1, 0.1, 2)
        steep = float(np.linalg.norm(crossing.difference))
        direction = crossing.difference / max(steep, 1e-300)
        slopes = [
            float((gradient * direction).sum())
            for gradient in (
                crossing.mean + 0.5 * crossing.difference,
                crossing.mean - 0.5 * crossing.difference,
            )
        ]
        energies = np.array(crossing.energies) + places[:, None] * np.array(slopes)
    else:
        places, energies = profile
    for state, column, color in zip(crossing.states, energies.T, COLORS, strict=False):
        name = state_name((state.charge, state.multiplicity))
        axes.plot(places, column - zero, color=color, label=name)
    axes.axhline(0.0, color="0.6", linewidth=0.6, zorder=0)
    axes.axvline(0.0, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
    gap = 1000 * crossing.gap
    kind = "crossing" if crossing.converged else "no crossing"
    axes.plot(
        [0.0, 0.0],
        np.array(crossing.energies) - zero,
        "o",
        color="black",
        markersize=5,
        label=f"{kind}, gap {gap:+.2f} meV",
    )
    title = "Energies along the gradient of the gap"
    axes.set(
        xlabel="displacement, Å",
        ylabel="energy − that of this point, eV",
        title=title if profile is not None else f"{title}: tangents",
    )
    axes.locator_params(axis="x", nbins=7)
    if reference is not None and reference.check is not None:
        off = np.array(reference.check.energies) - np.mean(reference.check.energies)
        axes.plot(
            [0.0, 0.0],
            off,
            "x",
            color="tab:red",
            markersize=8,
            label=f"DFT here, gap {1000 * reference.check.gap:+.2f} meV",
        )


def _draw_search(axes: "Axes", crossing: "Crossing") -> None:
    from matplotlib.ticker import MaxNLocator

    points: Sequence[Any] = crossing.path
    steps = np.arange(len(points))
    gaps = [abs(float(-np.diff(point.values.energies)[0])) for point in points]
    forces = [point.fmax for point in points]
    axes.semilogy(steps, np.maximum(gaps, 1e-7), "o-", color="black", label="gap, eV")
    axes.semilogy(
        steps,
        np.maximum(forces, 1e-7),
        "s--",
        color=COLORS[2],
        label="effective gradient, eV/Å",
    )
    axes.set(
        xlabel="step",
        ylabel="what is left, eV and eV/Å",
        title=f"Search: {crossing.n_calls} geometries in both states",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))

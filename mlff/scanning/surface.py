"""What a scan gives: energies of states over a grid, and what follows from them."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from mlff.errors import InputError
from mlff.files import write_atomic
from mlff.scanning.axes import Axis
from mlff.scanning.grid import targets
from mlff.state import set_state

Array = NDArray[np.float64]
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point on or between those of a grid.

    Attributes:
        values: of each coordinate, axis by axis, Å and degrees.
        energy: eV.
        index: place in the grid; empty for a point between.
    """

    values: tuple[float, ...]
    energy: float
    index: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Energies of electronic states over a grid of geometries.

    Attributes:
        atoms: the molecule that the scan began with.
        axes: of the grid, whose shape is their lengths.
        states: (charge, multiplicity 2S+1) of each surface.
        energies: (n_states, *shape), eV; not a number where there is none. Those that
            have not converged are among them: :attr:`good` says which count.
        positions: (n_states, *shape, n_atoms, 3), Å.
        converged: whether the geometry is what it should be, relaxed if it was to be,
            (n_states, *shape), bool.
        outside: whether it has left the region seen in training, likewise; ``None`` if
            the model records no region.
        remarks: why a point has no energy or has not converged, (n_states, *shape),
            texts; empty for the others.
        forces: (n_states, *shape, n_atoms, 3), eV/Å, if they were asked for.
        members: energies of each member of a committee, (n_states, *shape, n_members),
            eV; ``None`` for one potential.
        relaxed: whether all but the scanned coordinates is relaxed.
        unseen: what of the molecule and its states was not in training, in words;
            their energies are extrapolation everywhere.
        seconds: that the scan took.
    """

    atoms: Atoms
    axes: tuple[Axis, ...]
    states: tuple[Pair, ...]
    energies: Array
    positions: Array
    converged: NDArray[np.bool_]
    outside: NDArray[np.bool_] | None
    remarks: NDArray[np.object_]
    forces: Array | None
    members: Array | None
    relaxed: bool
    unseen: tuple[str, ...]
    seconds: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(map(len, self.axes))

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which points have an energy and have converged, (n_states, *shape)."""
        return self.converged & np.isfinite(self.energies)

    @property
    def values(self) -> Array:
        """Of all coordinates, axis by axis, (*shape, n_coordinates), Å and degrees."""
        return targets(self.axes).reshape(*self.shape, -1)

    @property
    def columns(self) -> list[str]:
        """Names of the coordinates in files, like ``angle_1_0_2_degrees``."""
        out = []
        for one in (one for axis in self.axes for one in axis.coordinates):
            unit = "A" if one.unit == "Å" else one.unit
            out.append("_".join((one.kind, *map(str, one.atoms), unit)))
        return out

    @property
    def lowest(self) -> float:
        """Lowest energy of all good points, eV; not a number if there is none."""
        return float(self.energies[self.good].min()) if self.good.any() else np.nan

    def energy(self, state: Pair) -> Array:
        """Return a surface, *shape, eV; not a number where it is not good."""
        which = self._which(state)
        return np.where(self.good[which], self.energies[which], np.nan)

    def relative(self) -> Array:
        """Return energies over the lowest of all, (n_states, *shape), eV.

        Not a number where a point is not good.
        """
        return np.where(self.good, self.energies, np.nan) - self.lowest

    def gap(self, first: Pair, second: Pair) -> Array:
        """Return E(first) − E(second), *shape, eV.

        In a rigid scan at the same geometry; in a relaxed one each state has its own.

        Args:
            first: (charge, multiplicity) of one state.
            second: of the one that is subtracted.
        """
        return self.energy(first) - self.energy(second)

    @property
    def deviations(self) -> Array | None:
        """Sample standard deviation of the energies over a committee, eV.

        (n_states, *shape); ``None`` for one potential.
        """
        return None if self.members is None else self.members.std(-1, ddof=1)

    def gap_deviation(self, first: Pair, second: Pair) -> Array | None:
        """Return that of a gap, *shape, eV: of the gaps that each member has.

        Errors of two states are correlated, so that this does not follow from
        :attr:`deviations`.

        Args:
            first: (charge, multiplicity) of one state.
            second: of the other.
        """
        if self.members is None:
            return None
        gaps = self.members[self._which(first)] - self.members[self._which(second)]
        return np.asarray(gaps.std(-1, ddof=1))

    def minimum(self, state: Pair) -> Point:
        """Return the lowest point of the grid on a surface.

        Raises:
            InputError: no point of the state is good.
        """
        energies = self.energy(state)
        if np.isnan(energies).all():
            raise InputError(f"no point of the state {state} has an energy")
        index = np.unravel_index(np.nanargmin(energies), self.shape)
        place = tuple(map(int, index))
        found = tuple(self.values[place].tolist())
        return Point(values=found, energy=float(energies[place]), index=place)

    def crossings(self, lower: Pair, upper: Pair) -> list[Point]:
        """Return where two states have the same energy, by ascending energy.

        Looked for between neighbors along each axis, with straight lines between.

        Args:
            lower: (charge, multiplicity) of one.
            upper: of the other.
        """
        gap, energies, values = self.gap(lower, upper), self.energy(lower), self.values
        found: dict[tuple[float, ...], float] = {}
        for axis, length in enumerate(self.shape):
            here, there = np.arange(length - 1), np.arange(1, length)
            a, b = gap.take(here, axis), gap.take(there, axis)
            with np.errstate(invalid="ignore"):
                share = np.where((a == 0) & (b == 0), 0.0, a / (a - b))
                crossed = (a * b <= 0) & np.isfinite(share)
            share = share[crossed]
            one, other = (energies.take(k, axis)[crossed] for k in (here, there))
            start, stop = (values.take(k, axis)[crossed] for k in (here, there))
            between = start + share[:, None] * (stop - start)
            heights = one + share * (other - one)
            # A point where both are equal lies on several lines.
            for place, height in zip(between.round(9), heights, strict=True):
                found[tuple(place.tolist())] = float(height)
        points = [Point(values=v, energy=e) for v, e in found.items()]
        return sorted(points, key=lambda point: point.energy)

    def frames(self) -> Iterator[Atoms]:
        """Yield all points with a geometry, state by state.

        Energies and forces are attached. ``info`` has charge and spin, the place in the
        grid as ``scan_point``, the value of each coordinate by the name of its column
        in the CSV file, ``converged``, and ``outside``, ``remark`` and
        ``energy_deviation`` where there are such.
        """
        columns, values = self.columns, self.values
        for which, state in enumerate(self.states):
            for place in np.ndindex(self.shape):
                if np.isfinite(self.positions[which][place]).all():
                    frame = self._frame(which, place)
                    set_state(frame, *state)
                    for key in ("initial_charges", "initial_magmoms"):
                        del frame.arrays[key]
                    frame.info["scan_point"] = " ".join(map(str, place))
                    frame.info.update(zip(columns, values[place].tolist(), strict=True))
                    yield frame

    def _frame(self, which: int, place: tuple[int, ...]) -> Atoms:
        at = (which, *place)
        out = Atoms(numbers=self.atoms.numbers, positions=self.positions[at])
        out.info["converged"] = bool(self.converged[at])
        if self.outside is not None:
            out.info["outside"] = bool(self.outside[at])
        if self.remarks[at]:
            out.info["remark"] = self.remarks[at]
        if self.members is not None:
            out.info["energy_deviation"] = float(self.members[at].std(ddof=1))
        if np.isfinite(self.energies[at]):
            results: dict[str, Any] = {"energy": float(self.energies[at])}
            if self.forces is not None:
                results["forces"] = self.forces[at]
            out.calc = SinglePointCalculator(out, **results)
        return out

    def write_csv(self, path: str | Path) -> None:
        """Write a line for each point, in C order; the file is whole at every moment.

        Columns: the coordinates; for each state its energy (eV, not converged ones
        too), with a committee its deviation, whether it is converged and outside, and
        the remark; the first state less each other one (eV), where both are good, and
        the deviations.
        """
        deviations = self.deviations
        keys = [f"{charge}_{spin}" for charge, spin in self.states]
        columns: dict[str, list[str]] = {}
        for name, column in zip(
            self.columns, targets(self.axes).T.round(10).tolist(), strict=True
        ):
            columns[name] = list(map(repr, column))
        for k, key in enumerate(keys):
            columns[f"energy_{key}_eV"] = _numbers(self.energies[k])
            if deviations is not None:
                columns[f"energy_deviation_{key}_eV"] = _numbers(deviations[k])
            columns[f"converged_{key}"] = list(map(str, self.converged[k].ravel()))
            if self.outside is not None:
                columns[f"outside_{key}"] = list(map(str, self.outside[k].ravel()))
            columns[f"remark_{key}"] = self.remarks[k].ravel().tolist()
        for state, key in zip(self.states[1:], keys[1:], strict=True):
            gap = self.gap(self.states[0], state)
            columns[f"gap_{keys[0]}_minus_{key}_eV"] = _numbers(gap)
            spread = self.gap_deviation(self.states[0], state)
            if spread is not None:
                columns[f"gap_deviation_{keys[0]}_minus_{key}_eV"] = _numbers(spread)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_atomic(Path(path), text.getvalue().encode())

    def _which(self, state: Any) -> int:
        pair = tuple(state) if isinstance(state, (tuple, list)) else state
        if pair not in self.states:
            raise InputError(f"`state` must be one of {list(self.states)}, got {state}")
        return self.states.index(pair)


def _numbers(values: Array) -> list[str]:
    """Return numbers with all their digits; nothing for what is not a number."""
    return [repr(x) if np.isfinite(x) else "" for x in values.ravel().tolist()]

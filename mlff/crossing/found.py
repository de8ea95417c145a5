"""A crossing of two states, as a search found it or failed to."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlff.crossing.descent import Point
from mlff.crossing.geometry import Array, Held
from mlff.files import write_atomic
from mlff.state import State


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The minimum of one state, relaxed from the crossing or from the start.

    Attributes:
        atoms: at its geometry, in its state, with energy and forces.
        energy: eV.
        converged: whether forces are below those asked for.
    """

    atoms: Atoms
    energy: float
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """The lowest point at which two states have one energy; or how near they came.

    Attributes:
        atoms: its geometry, in the first state.
        states: the two.
        energies: of both, eV.
        fmax: largest effective gradient on an atom, eV/Å: of the mean energy, without
            the parts along the gradient of the gap and along held coordinates.
        gap_slope: largest gradient of the gap on an atom, eV/Å; where it vanishes the
            gap is stationary.
        held: coordinates that kept a value.
        residuals: by how much these are missed, (n_held,), Å and degrees.
        difference: gradient of the first energy minus that of the second, (n_atoms, 3),
            eV/Å; zero along the seam.
        mean: gradient of the mean energy, (n_atoms, 3), eV/Å.
        minima: of both states, without held coordinates; empty if not asked for.
        path: points that the search went through.
        n_calls: geometries at which both states were evaluated to find it.
        converged: whether this is a crossing.
        reason: why not; empty if it is.
        outside: how the geometry has left the region that training has seen; empty if
            it has not, or if nothing is known of training.
        unseen: what of the molecule and its states was not in training, in words.
    """

    atoms: Atoms
    states: tuple[State, State]
    energies: tuple[float, float]
    fmax: float
    gap_slope: float
    held: tuple[Held, ...]
    residuals: Array
    difference: Array
    mean: Array
    minima: tuple[Minimum, ...]
    path: tuple[Point, ...]
    n_calls: int
    converged: bool
    reason: str
    outside: str
    unseen: tuple[str, ...]

    @property
    def gap(self) -> float:
        """First energy minus second, eV."""
        return self.energies[0] - self.energies[1]

    @property
    def smallest_gap(self) -> float:
        """Of all points that the search went through, eV, without its sign."""
        return min(abs(self.gap), *(abs(point.gap) for point in self.path))

    @property
    def heights(self) -> tuple[float, ...]:
        """Energy of each state here above its minimum, eV; empty without minima."""
        pairs = zip(self.energies, self.minima, strict=False)
        return tuple(energy - minimum.energy for energy, minimum in pairs)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by name, units in the names; JSON types."""
        minima = [
            {
                "energy_eV": minimum.energy,
                "crossing_above_it_eV": height,
                "converged": minimum.converged,
                "positions_A": minimum.atoms.positions.tolist(),
            }
            for minimum, height in zip(self.minima, self.heights, strict=True)
        ]
        held = [
            {"coordinate": str(one.coordinate), "value": one.value, "residual": off}
            for one, off in zip(self.held, self.residuals.tolist(), strict=True)
        ]
        return {
            "converged": self.converged,
            "reason": self.reason,
            "outside_training": self.outside,
            "unseen_in_training": list(self.unseen),
            "symbols": self.atoms.get_chemical_symbols(),
            "positions_A": self.atoms.positions.tolist(),
            "states": [[s.charge, s.multiplicity] for s in self.states],
            "energies_eV": list(self.energies),
            "gap_eV": self.gap,
            "smallest_gap_eV": self.smallest_gap,
            "fmax_eV_per_A": self.fmax,
            "gap_slope_eV_per_A": self.gap_slope,
            "held": held,
            "minima": minima,
            "gap_gradient_eV_per_A": self.difference.tolist(),
            "mean_gradient_eV_per_A": self.mean.tolist(),
            "n_steps": len(self.path) - 1,
            "n_calls": self.n_calls,
        }

    def write(self, path: str | Path) -> None:
        """Write the geometry, both gradients and the numbers as extended XYZ.

        Args:
            path: file to write or replace.
        """
        frame = self.atoms.copy()
        for key in ("initial_charges", "initial_magmoms"):
            frame.arrays.pop(key, None)
        frame.arrays["gap_gradient"] = self.difference
        frame.arrays["mean_gradient"] = self.mean
        first, second = self.states
        frame.info = {
            "charge": first.charge,
            "spin": first.multiplicity,
            "other_charge": second.charge,
            "other_spin": second.multiplicity,
            "converged": self.converged,
            "energy_eV": self.energies[0],
            "other_energy_eV": self.energies[1],
            "gap_eV": self.gap,
            "effective_gradient_eV_per_A": self.fmax,
        }
        if self.minima:
            frame.info["above_minimum_eV"], frame.info["above_other_minimum_eV"] = (
                self.heights
            )
        told = {"reason": self.reason, "outside": self.outside}
        told["unseen"] = "; ".join(self.unseen)
        frame.info |= {name: text for name, text in told.items() if text}
        text = io.StringIO()
        write(text, frame, format="extxyz")
        write_atomic(Path(path), text.getvalue().encode())

    def __str__(self) -> str:
        formula = self.atoms.get_chemical_formula("hill")
        kind = "crossing" if self.converged else "no crossing found"
        lines = [f"{formula}, two states: {kind}"]
        rows = [(str(state), energy) for state, energy in self._per_state()]
        width = max(len(name) for name, _ in rows)
        lines += [f"  {name:{width}s}  {text}" for name, text in rows]
        lines += [
            f"  gap {1000 * self.gap:+.3f} meV, its gradient {self.gap_slope:.3g} eV/Å",
            f"  effective gradient {self.fmax:.2g} eV/Å, {len(self.path) - 1} steps, "
            f"{self.n_calls} geometries evaluated in both states",
        ]
        for one, off in zip(self.held, self.residuals, strict=True):
            lines.append(f"  held {one}, missed by {abs(off):.1g}")
        if self.reason:
            lines.append(f"  why: {self.reason}")
        if self.outside:
            lines.append(f"  outside of training: {self.outside}; energies mean little")
        lines += [f"  {text}" for text in self.unseen]
        return "\n".join(lines)

    def _per_state(self) -> list[tuple[State, str]]:
        texts = [f"{energy:.4f} eV" for energy in self.energies]
        for k, minimum in enumerate(self.minima):
            about = "" if minimum.converged else ", which is not fully relaxed"
            texts[k] += f", {self.heights[k]:.4f} eV above its minimum{about}"
        return list(zip(self.states, texts, strict=True))


def with_results(atoms: Atoms, energy: float, gradient: Array) -> Atoms:
    """Attach an energy (eV) and a gradient (eV/Å) to atoms, which are returned."""
    atoms.calc = SinglePointCalculator(
        atoms, energy=energy, free_energy=energy, forces=-gradient
    )
    return atoms


def lowest(found: Sequence[Minimum]) -> Minimum:
    """Return the lowest of minima, of those that converged if any did."""
    good = [one for one in found if one.converged] or list(found)
    return min(good, key=lambda one: one.energy)

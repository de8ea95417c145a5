"""What a calculator check gets: how to make the calculator, systems, and tolerances."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from ase import Atoms
from ase.build import molecule

from mlff.errors import InputError
from mlff.state import State, read_state

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest deviation allowed.

    Attributes:
        step: displacement (Å) and strain of finite differences.
        difference: forces and stress against finite differences, eV/Å and eV/Å³ (P1).
        energy: between equivalent geometries, eV (P2–P4).
        force: likewise, eV/Å.
    """

    step: float
    difference: float
    energy: float
    force: float


#: By the precision in which a calculator computes.
TOLERANCES = {
    "float64": Tolerance(step=1e-5, difference=1e-6, energy=1e-9, force=1e-8),
    "float32": Tolerance(step=1e-3, difference=5e-3, energy=1e-5, force=1e-4),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is examined.

    Attributes:
        factory: makes a new calculator.
        systems: what it is asked about, at least two; their states in ``info`` only.
        tolerance: how exact it has to be.
    """

    factory: Callable[[], Any]
    systems: tuple[Atoms, ...]
    tolerance: Tolerance

    @classmethod
    def of(
        cls,
        factory: Callable[[], Any],
        systems: Sequence[Atoms] | None = None,
        precision: str = "float64",
    ) -> Self:
        """Prepare a calculator for the checks.

        Args:
            factory: makes a new calculator.
            systems: at least two systems that the calculator supports; rattled
                hydrocarbons in several states if not given. Not modified.
            precision: ``"float64"`` or ``"float32"``.
        """
        if precision not in TOLERANCES:
            raise InputError(
                f"`precision` must be one of {sorted(TOLERANCES)}, got {precision!r}"
            )
        chosen = sample_systems() if systems is None else list(systems)
        if len(chosen) < 2:
            raise InputError(f"`systems` must hold at least two, got {len(chosen)}")
        plain = tuple(_state_in_info_only(atoms) for atoms in chosen)
        return cls(factory=factory, systems=plain, tolerance=TOLERANCES[precision])

    def attached(self, atoms: Atoms) -> Atoms:
        """Return a copy of ``atoms`` with a new calculator."""
        out = atoms.copy()
        out.calc = self.factory()
        return out

    def expect_same(self, atoms: Atoms, reference: Atoms, what: str) -> None:
        """Raise unless two systems, calculators attached, have equal results."""
        self.expect_energy(atoms.get_potential_energy(), reference, what)
        self.expect_forces(raw_forces(atoms), raw_forces(reference), what)

    def expect_energy(self, found: float, reference: Atoms, what: str) -> None:
        """Raise unless an energy is that of a system."""
        error = abs(found - reference.get_potential_energy())
        limit = self.tolerance.energy
        assert error <= limit, f"{what}: energy is off by {error:.3g} eV ({limit:g})"

    def expect_forces(self, found: Array, expected: Array, what: str) -> None:
        """Raise unless two arrays of forces are equal."""
        error = float(np.abs(found - expected).max())
        limit = self.tolerance.force
        assert error <= limit, f"{what}: forces are off by {error:.3g} eV/Å ({limit:g})"


def sample_systems(seed: int = 0) -> list[Atoms]:
    """Return rattled hydrocarbons in several charges and multiplicities."""
    cases = (("CH2_s3B1d", 0, 3), ("C2H4", 1, 2), ("CH4", 0, 1), ("C2H2", -1, 2))
    systems = []
    for index, (name, charge, spin) in enumerate(cases):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=seed + index)
        for array in ("initial_charges", "initial_magmoms"):
            atoms.arrays.pop(array, None)
        atoms.info.update(charge=charge, spin=spin)
        systems.append(atoms)
    return systems


def _state_in_info_only(atoms: Atoms) -> Atoms:
    """Return a copy without the arrays that ASE itself compares."""
    state = read_state(atoms)
    out = atoms.copy()
    out.set_initial_charges(None)
    out.set_initial_magnetic_moments(None)
    put_state(out, state)
    return out


def put_state(atoms: Atoms, state: State) -> None:
    """Write a state into ``info``, where ASE does not look for changes."""
    atoms.info.update(charge=state.charge, spin=state.multiplicity)


def raw_forces(atoms: Atoms) -> Array:
    """Return forces without constraints."""
    return np.asarray(atoms.get_forces(apply_constraint=False))


#: A check: raises AssertionError saying what was found.
Check = Callable[[Subject], None]

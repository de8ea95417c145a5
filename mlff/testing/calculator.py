"""What every ASE calculator should hold to, as checks that anyone can run on their own.

:func:`check_calculator` takes a function that makes a calculator, of this package or of
any other, and runs :data:`CHECKS`; one that reads ``atoms.info["charge"]`` and
``["spin"]`` (multiplicity 2S+1) is also held to :data:`STATE_CHECKS`. Each check is a
small function of a :class:`Subject`, so that they can be parametrized in pytest::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_calculator(check):
        check(Subject.of(MyCalculator))

Knows ASE's protocol and physics that holds for every potential; knows no model. Units
are ASE's: eV, eV/Å, eV/Å³. Tolerances are goals P1–P4 of the reliability page.
"""

import copy
import pickle
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_properties
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.outputs import all_outputs

from mlff.errors import InputError
from mlff.testing.states import STATE_CHECKS
from mlff.testing.subject import Check, Subject, raw_forces

__all__ = ["CHECKS", "STATE_CHECKS", "Subject", "check_calculator"]


def _periodic(subject: Subject) -> list[Atoms]:
    return [atoms for atoms in subject.systems if atoms.pbc.all()]


@contextmanager
def _counted(calculator: Any) -> Iterator[list[int]]:
    """Record the calls of ``calculate``."""
    calls: list[int] = []
    original = calculator.calculate

    def calculate(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    calculator.calculate = calculate
    try:
        yield calls
    finally:
        del calculator.calculate


def energy_is_a_float(subject: Subject) -> None:
    """The energy is a finite Python float: arrays and float32 leak into files."""
    for atoms in map(subject.attached, subject.systems):
        energy = atoms.get_potential_energy()
        assert isinstance(energy, float), f"energy is a {type(energy).__name__}"
        assert np.isfinite(energy), f"energy is {energy}"


def free_energy_is_the_energy(subject: Subject) -> None:
    """The free energy is there, without it some of ASE's dynamics and filters stop."""
    for atoms in map(subject.attached, subject.systems):
        free = atoms.get_potential_energy(force_consistent=True)
        assert isinstance(free, float), f"free_energy is a {type(free).__name__}"
        subject.expect_energy(free, atoms, "free_energy")


def forces_are_a_float64_array(subject: Subject) -> None:
    """Forces are (n_atoms, 3), float64, contiguous, finite."""
    for atoms in map(subject.attached, subject.systems):
        atoms.get_forces()
        forces = atoms.calc.results["forces"]
        assert isinstance(forces, np.ndarray), f"forces are {type(forces).__name__}"
        assert forces.shape == (len(atoms), 3), f"forces have shape {forces.shape}"
        assert forces.dtype == np.float64, f"forces are {forces.dtype}"
        assert forces.flags["C_CONTIGUOUS"], "forces are not C-contiguous"
        assert np.isfinite(forces).all(), "forces are not finite"


def results_have_the_names_of_ase(subject: Subject) -> None:
    """No key outside ``ase.outputs.all_outputs``: ``get_properties`` stops at it."""
    for atoms in map(subject.attached, subject.systems):
        atoms.get_forces()
        extra = sorted(set(atoms.calc.results) - set(all_outputs))
        assert not extra, f"results hold names that ASE does not know: {extra}"
        found = atoms.get_properties(["energy", "forces"])
        subject.expect_energy(found["energy"], atoms, "get_properties")


def advertised_properties_are_delivered(subject: Subject) -> None:
    """What ``implemented_properties`` names arrives; other names are refused."""
    for atoms in map(subject.attached, subject.systems):
        advertised = atoms.calc.implemented_properties
        for name in all_properties:
            try:
                value = atoms.calc.get_property(name, atoms)
            except PropertyNotImplementedError:
                allowed = name == "stress" and not atoms.pbc.all()
                assert name not in advertised or allowed, f"{name} is not delivered"
            else:
                assert name in advertised, f"{name} is delivered but not advertised"
                assert value is not None, f"{name} is None"


def forces_are_minus_the_gradient(subject: Subject) -> None:
    """Forces equal central differences of the energy (P1)."""
    for atoms in map(subject.attached, subject.systems):
        forces = raw_forces(atoms)
        numeric = calculate_numerical_forces(atoms, eps=subject.tolerance.step)
        error, limit = np.abs(forces - numeric).max(), subject.tolerance.difference
        assert error <= limit, f"forces are off by {error:.3g} eV/Å ({limit:g})"


def stress_is_the_strain_derivative(subject: Subject) -> None:
    """Stress is Voigt, +dE/dε/V, eV/Å³; only asked of fully periodic systems."""
    for atoms in map(subject.attached, _periodic(subject)):
        if "stress" not in atoms.calc.implemented_properties:
            continue
        stress = atoms.calc.get_property("stress", atoms)
        assert stress.shape == (6,), f"stress has shape {stress.shape}, not (6,)"
        numeric = calculate_numerical_stress(atoms, eps=subject.tolerance.step)
        error, limit = np.abs(stress - numeric).max(), subject.tolerance.difference
        assert error <= limit, f"stress is off by {error:.3g} eV/Å³ ({limit:g})"


def translation_changes_nothing(subject: Subject) -> None:
    """Moved by 1,000 Å, or atoms by whole cells, a system stays what it is (P4)."""
    rng = np.random.default_rng(0)
    for atoms in map(subject.attached, subject.systems):
        moved = subject.attached(atoms)
        moved.positions += (1000.0, -500.0, 300.0)
        subject.expect_same(moved, atoms, "after a translation")
        cells = rng.integers(-5, 6, (len(atoms), 3)) * atoms.pbc
        moved.positions = atoms.positions + cells @ atoms.cell.array
        subject.expect_same(moved, atoms, "atoms in other cells")


def rotation_turns_forces(subject: Subject) -> None:
    """Turned, and for molecules mirrored, the energy stays and forces turn (P2)."""
    rng = np.random.default_rng(1)
    for atoms in map(subject.attached, subject.systems):
        for sign in (1, 1, 1) if atoms.pbc.any() else (1, 1, -1):
            matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
            matrix *= sign * np.sign(np.linalg.det(matrix))
            turned = subject.attached(atoms)
            turned.set_cell(atoms.cell.array @ matrix.T)
            turned.positions = atoms.positions @ matrix.T
            what = "after a rotation" if sign > 0 else "after a reflection"
            subject.expect_energy(turned.get_potential_energy(), atoms, what)
            subject.expect_forces(raw_forces(turned) @ matrix, raw_forces(atoms), what)


def permutation_permutes_forces(subject: Subject) -> None:
    """The order of the atoms does not matter (P3)."""
    rng = np.random.default_rng(2)
    for atoms in map(subject.attached, subject.systems):
        order = rng.permutation(len(atoms))
        mixed = subject.attached(atoms[order])
        subject.expect_energy(mixed.get_potential_energy(), atoms, "in another order")
        subject.expect_forces(
            raw_forces(mixed), raw_forces(atoms)[order], "in another order"
        )


def unchanged_atoms_are_evaluated_once(subject: Subject) -> None:
    """Energy and forces of one geometry are one evaluation, a copy of it is none."""
    for atoms in map(subject.attached, subject.systems):
        with _counted(atoms.calc) as calls:
            atoms.get_forces()
            atoms.get_potential_energy()
            atoms.get_potential_energy(force_consistent=True)
            atoms.info["note"] = np.zeros(4)
            atoms.get_forces()
            atoms.info["note"] = np.ones(4)
            atoms.calc.get_forces(atoms.copy())
        assert len(calls) == 1, f"{len(calls)} evaluations of one geometry"


def every_change_is_seen(subject: Subject) -> None:
    """Positions, cell, elements and number of atoms, changed in place, are noticed."""

    def move(atoms: Atoms) -> None:
        atoms.positions[0, 1] += 0.05

    def strain(atoms: Atoms) -> None:
        atoms.cell[0, 0] *= 1.02

    def exchange(atoms: Atoms) -> None:
        other = int(np.argmax(atoms.numbers != atoms.numbers[0]))
        atoms.numbers[[0, other]] = atoms.numbers[[other, 0]]

    def grow(atoms: Atoms) -> None:
        top = atoms.positions[atoms.positions[:, 2].argmax()]
        numbers = [atoms.numbers[-1]] * 2  # twice the same: parity stays
        above = top + np.array([[0, 0, 1.5], [0, 0.8, 2.3]])
        atoms.extend(Atoms(numbers, positions=above))

    def loosen(atoms: Atoms) -> None:
        atoms.pbc = [False, atoms.pbc[1], atoms.pbc[2]]

    for system in subject.systems:
        for change in (move, strain, exchange, grow, loosen):
            atoms = subject.attached(system)
            atoms.get_forces()
            change(atoms)
            fresh = subject.attached(atoms)
            subject.expect_same(atoms, fresh, f"after {change.__name__}")


def results_belong_to_the_caller(subject: Subject) -> None:
    """Writing into a result changes no later one, and a later step no earlier one."""
    for atoms in map(subject.attached, subject.systems):
        first = atoms.get_forces()
        kept = first.copy()
        first[:] = 0.0
        assert np.array_equal(atoms.get_forces(), kept), "the cache was overwritten"
        held = atoms.calc.results["forces"]
        atoms.positions[0] += 0.05
        atoms.get_forces()
        assert np.array_equal(held, kept), "a step overwrote the results of the last"


def atoms_are_not_modified(subject: Subject) -> None:
    """The system that is asked about stays as it is, ``info`` included."""
    for atoms in map(subject.attached, subject.systems):
        atoms.info["note"] = "kept"
        before, keys = atoms.copy(), list(atoms.info)
        atoms.get_forces()
        atoms.get_potential_energy()
        assert list(atoms.info) == keys, f"info became {list(atoms.info)}"
        for key in keys:
            assert atoms.info[key] is before.info[key], f"info[{key!r}] was replaced"
        names = set(atoms.arrays) ^ set(before.arrays)
        assert not names, f"arrays were added or removed: {sorted(names)}"
        for name, array in before.arrays.items():
            assert np.array_equal(atoms.arrays[name], array), f"{name} was modified"
        assert np.array_equal(atoms.cell.array, before.cell.array), "cell was modified"
        assert np.array_equal(atoms.pbc, before.pbc), "pbc was modified"


def copies_give_the_same(subject: Subject) -> None:
    """A calculator, fresh or used, can be pickled and deep-copied."""
    first, second = subject.systems[:2]
    used = subject.attached(first)
    used.get_forces()
    copies: list[Callable[[Any], Any]] = [
        lambda calculator: pickle.loads(pickle.dumps(calculator)),
        copy.deepcopy,
    ]
    for make in copies:
        for original in (subject.factory(), used.calc):
            for system in (first, second):
                other = system.copy()
                other.calc = make(original)
                subject.expect_same(other, subject.attached(system), "of a copy")


def errors_leave_nothing_behind(subject: Subject) -> None:
    """Positions that are not finite are an error, and the next answer is right."""
    for atoms in map(subject.attached, subject.systems):
        good = atoms.positions.copy()
        atoms.get_forces()
        for bad in (np.nan, np.inf):
            for ask in (atoms.get_potential_energy, atoms.get_forces):
                atoms.positions[0, 0] = bad
                try:
                    answer = ask()
                except Exception:  # of any type: this is about other packages too
                    pass
                else:
                    raise AssertionError(f"position {bad} gave {answer!r}, no error")
        atoms.positions = good
        subject.expect_same(atoms, subject.attached(atoms), "after an error")


def systems_do_not_mix(subject: Subject) -> None:
    """One calculator, asked about several systems in turn, answers as new ones do."""
    calculator = subject.factory()
    for system in (*subject.systems, *subject.systems[::-1]):
        atoms = system.copy()
        atoms.calc = calculator
        subject.expect_same(atoms, subject.attached(system), "after other systems")


#: What every calculator is held to.
CHECKS: tuple[Check, ...] = (
    energy_is_a_float,
    free_energy_is_the_energy,
    forces_are_a_float64_array,
    results_have_the_names_of_ase,
    advertised_properties_are_delivered,
    forces_are_minus_the_gradient,
    stress_is_the_strain_derivative,
    translation_changes_nothing,
    rotation_turns_forces,
    permutation_permutes_forces,
    unchanged_atoms_are_evaluated_once,
    every_change_is_seen,
    results_belong_to_the_caller,
    atoms_are_not_modified,
    copies_give_the_same,
    errors_leave_nothing_behind,
    systems_do_not_mix,
)


def check_calculator(
    factory: Callable[[], Any],
    systems: Sequence[Atoms] | None = None,
    *,
    precision: str = "float64",
    knows_state: bool = False,
    skip: Collection[str] = (),
) -> list[str]:
    """Hold any ASE calculator to the contract.

    For a network in single precision, on what it was trained for::

        check_calculator(make, systems=[...], precision="float32")

    Args:
        factory: makes a new calculator.
        systems: at least two systems that it supports, periodic ones to have the stress
            checked; rattled hydrocarbons if not given.
        precision: ``"float64"`` or ``"float32"``: how exact it has to be.
        knows_state: also run :data:`STATE_CHECKS`.
        skip: names of checks to leave out.

    Returns:
        The names of the checks that were run; all of them passed.

    Raises:
        AssertionError: naming each check that failed and what was found.
        InputError: a name in ``skip`` that is no check.
    """
    unknown = set(skip) - {check.__name__ for check in (*CHECKS, *STATE_CHECKS)}
    if unknown:
        raise InputError(f"`skip` names no check: {sorted(unknown)}")
    subject = Subject.of(factory, systems, precision)
    chosen = [*CHECKS, *STATE_CHECKS] if knows_state else [*CHECKS]
    chosen = [check for check in chosen if check.__name__ not in skip]
    failures = []
    for check in chosen:
        try:
            check(subject)
        except Exception as error:
            failures.append(f"{check.__name__}: {type(error).__name__}: {error}")
    if failures:
        listing = "\n  ".join(failures)
        raise AssertionError(f"{len(failures)} of {len(chosen)} failed:\n  {listing}")
    return [check.__name__ for check in chosen]

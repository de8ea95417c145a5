"""What a calculator that reads charge and multiplicity should hold to besides."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms

from mlff.state import State, read_state
from mlff.testing.subject import Check, Subject, put_state

# Two states count as told apart beyond this, eV (P9).
_RESOLUTION = 1e-6


def _other_states(atoms: Atoms) -> list[State]:
    """A state of other charge and one of other multiplicity that parity allows."""
    state = read_state(atoms)
    step = 1 if state.multiplicity == 1 else -1
    return [
        State(state.charge + 1, state.multiplicity + step),
        State(state.charge, state.multiplicity + 2),
    ]


def changes_of_state_are_seen(subject: Subject) -> None:
    """Another charge or multiplicity in ``info`` is another result, at once."""
    for system in subject.systems:
        for state in _other_states(system):
            atoms = subject.attached(system)
            before = atoms.get_potential_energy()
            put_state(atoms, state)
            after = atoms.get_potential_energy()
            subject.expect_same(atoms, subject.attached(atoms), f"after {state}")
            assert abs(after - before) > _RESOLUTION, f"{state} changes nothing"


def every_kind_of_integer_is_read(subject: Subject) -> None:
    """NumPy integers, integral floats and 0-d arrays are what files give."""
    kinds: list[Callable[[int], Any]] = [np.int64, np.float64, float, np.array]
    for system in subject.systems:
        state = read_state(system)
        for kind in kinds:
            atoms = subject.attached(system)
            atoms.info["charge"] = kind(state.charge)
            atoms.info["spin"] = kind(state.multiplicity)
            subject.expect_same(atoms, subject.attached(system), f"from {kind}")


def no_state_is_inherited(subject: Subject) -> None:
    """A system without ``info`` does not get the state of the one before."""
    ion, plain = subject.systems[0].copy(), subject.systems[-1].copy()
    for state in _other_states(ion):
        put_state(ion, state)
        used = subject.attached(ion)
        used.get_potential_energy()
        plain.info.clear()
        after, fresh = plain.copy(), subject.attached(plain)
        after.calc = used.calc
        assert _outcome(after) == _outcome(fresh), f"differs after {state}"


def _outcome(atoms: Atoms) -> str:
    """Energy to the digits that any precision has, or the kind of error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return f"{atoms.get_potential_energy():.4f} eV"
        except Exception as error:  # of any type: this is about other packages too
            return type(error).__name__


def _expect_refusal(subject: Subject, atoms: Atoms, what: str) -> None:
    outcome = _outcome(subject.attached(atoms))
    assert not outcome.endswith("eV"), f"{what} was accepted and gave {outcome}"


def impossible_states_are_refused(subject: Subject) -> None:
    """Wrong parity, half a charge, a multiplicity of zero: nobody has these."""
    for system in subject.systems:
        state = read_state(system)
        wrong = {
            "wrong parity": {"spin": state.multiplicity + 1},
            "half a charge": {"charge": state.charge + 0.5},
            "multiplicity 0": {"charge": state.charge + 1, "spin": 0},
        }
        for what, info in wrong.items():
            atoms = system.copy()
            atoms.info.update(info)
            _expect_refusal(subject, atoms, what)


def contradictions_are_refused(subject: Subject) -> None:
    """Two keys, or a key and an array, that disagree have no right answer."""
    for system in subject.systems:
        state = read_state(system)
        atoms = system.copy()
        atoms.info["spin_multiplicity"] = state.multiplicity + 2
        _expect_refusal(subject, atoms, "spin and spin_multiplicity that disagree")
        atoms = system.copy()
        atoms.set_initial_charges([state.charge + 1.0] + [0.0] * (len(atoms) - 1))
        _expect_refusal(subject, atoms, "charge and initial_charges that disagree")


def radicals_need_a_multiplicity(subject: Subject) -> None:
    """An odd number of electrons has no default multiplicity."""
    for system in subject.systems:
        atoms = system.copy()
        del atoms.info["spin"]
        atoms.info["charge"] = int(atoms.numbers.sum()) % 2 + 1
        _expect_refusal(subject, atoms, "an odd number of electrons without a spin")


def parameters_are_part_of_the_state(subject: Subject) -> None:
    """``calc.set(charge=..., spin=...)`` changes the next answer."""
    for system in subject.systems:
        bare = system.copy()
        bare.info.clear()
        atoms = subject.attached(bare)
        for state in (read_state(system), *_other_states(system)):
            atoms.calc.set(charge=state.charge, spin=state.multiplicity)
            expected = subject.attached(bare)
            put_state(expected, state)
            subject.expect_same(atoms, expected, f"after set() to {state}")


#: What a calculator that reads charge and multiplicity is held to besides.
STATE_CHECKS: tuple[Check, ...] = (
    changes_of_state_are_seen,
    every_kind_of_integer_is_read,
    no_state_is_inherited,
    impossible_states_are_refused,
    contradictions_are_refused,
    radicals_need_a_multiplicity,
    parameters_are_part_of_the_state,
)

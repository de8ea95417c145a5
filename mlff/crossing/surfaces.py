"""Energies and gradients of several electronic states at one geometry.

A potential answers for all states in one call; a calculator of ASE is asked for one
after the other, about atoms whose ``info`` holds the state.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from numpy.typing import NDArray

from mlff.batch import AtomsBatch
from mlff.errors import InputError, InputTypeError, MlffError
from mlff.forcefield import ForceField
from mlff.inference import check_batch, region_of, unseen
from mlff.potential import Potential
from mlff.start import check_contacts
from mlff.state import State, set_state

Array = NDArray[np.float64]

# Energies (eV) and gradients (eV/Å) that agree this well are the same but for rounding
# of a float32 network.
_SAME_ENERGY, _SAME_GRADIENT = 1e-5, 1e-4

# How much larger a molecule is made for a second look.
_SECOND_LOOK = 1.02

#: What a calculator may raise at a geometry that it cannot do.
FAILURES = (MlffError, RuntimeError, ValueError, ArithmeticError)


class Values(NamedTuple):
    """What states are like at one geometry.

    Attributes:
        energies: (n_states,), eV.
        gradients: (n_states, n_atoms, 3), eV/Å.
    """

    energies: Array
    gradients: Array

    @property
    def finite(self) -> bool:
        """Whether everything is a number."""
        return bool(
            np.isfinite(self.energies).all() and np.isfinite(self.gradients).all()
        )


class Surfaces:
    """Evaluates states of one molecule, whatever the energies come from.

    Attributes:
        atoms: the molecule in each of its states.
        n_calls: geometries evaluated so far.
        unseen: what of the molecule and its states was not in training, in words;
            empty where nothing is known of training.

    Args:
        source: a :class:`Potential`, or a calculator of ASE that reads charge and spin
            from ``atoms.info``.
        atoms: the molecule.
        states: what to evaluate.

    Raises:
        InputTypeError: neither a potential nor a calculator.
        InputError: what the potential is not made for.
        StateError: a state that the molecule cannot have.
    """

    def __init__(self, source: Any, atoms: Atoms, states: Sequence[State]) -> None:
        self.source = source
        self.atoms = [in_state(atoms, state) for state in states]
        self.n_calls = 0
        self._last: tuple[bytes, Values] | None = None
        self._forcefield: ForceField | None = None
        potential = getattr(source, "potential", source)  # that of a calculator
        self._potential = potential if isinstance(potential, Potential) else None
        batch = AtomsBatch.from_atoms(self.atoms)
        self.unseen = unseen(self._potential, batch) if self._potential else ()
        if isinstance(source, Potential):
            source.check_properties(("energy", "forces"), False)
            check_batch(source, batch)
            check_contacts(batch)
            self._batch = batch.to(source.device)
            self._forcefield = ForceField(source, self._batch)
        elif not callable(getattr(source, "get_property", None)):
            raise InputTypeError(
                "`potential` must be a Potential, for example mlff.load('ch2'), or a "
                f"calculator of ASE, got {type(source).__name__}"
            )

    def __call__(self, positions: Array) -> Values:
        """Evaluate all states at one geometry, (n_atoms, 3), Å.

        Raises:
            InputError: a calculator without forces, or what it refuses.
        """
        if self._last is not None and self._last[0] == positions.tobytes():
            return self._last[1]
        self.n_calls += 1
        values = self._evaluated(positions)
        self._last = positions.tobytes(), values
        return values

    def _evaluated(self, positions: Array) -> Values:
        if self._forcefield is None:
            return self._by_calculator(positions)
        every = np.tile(positions, (len(self.atoms), 1))
        moved = torch.from_numpy(every).to(self._batch.positions.device)
        out = self._forcefield(self._batch.replace(positions=moved))
        gradients = -out.forces.cpu().numpy().reshape(len(self.atoms), -1, 3)
        return Values(out.energy.cpu().numpy(), gradients)

    def _by_calculator(self, positions: Array) -> Values:
        energies, gradients = [], []
        for atoms in self.atoms:
            atoms.arrays["positions"] = positions.copy()
            try:  # forces first: what gives them gives the energy too
                gradients.append(-np.array(self.source.get_property("forces", atoms)))
                energies.append(float(self.source.get_property("energy", atoms)))
            except PropertyNotImplementedError as error:
                raise InputError(
                    f"`potential`: {type(self.source).__name__} gives no {error}, but "
                    "a search needs energies and forces"
                ) from error
        return Values(np.array(energies), np.stack(gradients))

    def check(self, positions: Array) -> None:
        """Refuse what cannot tell its states apart, or knows nothing of the start.

        Args:
            positions: of the start, (n_atoms, 3), Å.

        Raises:
            InputError: nothing finite at the start, or the same energies and gradients
                in all states at two geometries.
        """
        here = self(positions)
        if not here.finite:
            raise InputError(
                "`potential` gives energies or forces that are not finite at the "
                f"start: energies {here.energies.tolist()} eV; begin elsewhere"
            )
        center = positions.mean(0)
        if _alike(here) and _alike(self(center + _SECOND_LOOK * (positions - center))):
            raise InputError(
                f"`potential`: {type(self.source).__name__} gives the same energies "
                f"for {' and '.join(str(state_of(a)) for a in self.atoms)} at two "
                "geometries: it does not read atoms.info['charge'] and ['spin'], or "
                "does not use them. Take one whose energy depends on the state"
            )

    def outside(self, positions: Array) -> str:
        """Say how a geometry has left the region seen in training; empty if inside.

        Empty too where nothing is known of training.
        """
        region = region_of(self._potential) if self._potential else None
        if region is None:
            return ""
        atoms = self.atoms[0].copy()
        atoms.arrays["positions"] = positions.copy()
        return region.reasons(AtomsBatch.from_atoms([atoms]))[0]


def in_state(atoms: Atoms, state: State) -> Atoms:
    """Return a bare copy of a molecule, without results, in a state.

    Raises:
        StateError: a state that the molecule cannot have.
    """
    out = Atoms(atoms.numbers, atoms.positions)
    if atoms.has("masses"):
        out.set_masses(atoms.get_masses())
    return set_state(out, state.charge, state.multiplicity)


def state_of(atoms: Atoms) -> State:
    """Return the state that :func:`in_state` wrote."""
    return State(atoms.info["charge"], atoms.info["spin"])


def _alike(found: Values) -> bool:
    alike = np.ptp(found.energies) < _SAME_ENERGY
    return bool(alike and np.ptp(found.gradients, axis=0).max() < _SAME_GRADIENT)

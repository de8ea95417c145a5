"""What a potential may be asked, and asking it about many systems at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor

from mlff.batch import AtomsBatch, Edges
from mlff.committee import DEVIATIONS, check_committee
from mlff.device import exact
from mlff.errors import InputError, InputTypeError, warn_once
from mlff.forcefield.parts import Parts
from mlff.neighbors import check_distances
from mlff.potential import Potential, build_graph
from mlff.properties import PROPERTIES
from mlff.region import Region
from mlff.state import State

FormulaStates = dict[str, tuple[tuple[int, int], ...]]

#: A cell flatter than this has no stress, Å³: slabs and wires with a zero vector.
MIN_VOLUME = 1e-6

_NOT_A_POTENTIAL = (
    "`potential` must be a Potential, for example mlff.load('ch2'), got {}"
)


def check_batch(
    potential: Potential, batch: AtomsBatch, *, strict: bool = False
) -> None:
    """Refuse elements not in training; warn once of unseen states and compositions.

    Args:
        potential: what has been trained.
        batch: what is asked.
        strict: refuse unseen states too.

    Raises:
        InputTypeError: not a potential, for example the name of one.
        InputError: an element outside training, a periodic system for a model without
            periodic meaning, or, if strict, an unseen state.
    """
    if not isinstance(potential, Potential):
        raise InputTypeError(_NOT_A_POTENTIAL.format(type(potential).__name__))
    trained = potential.info.elements
    unknown = sorted(set(batch.numbers.unique().tolist()) - set(trained))
    if unknown:
        names = [chemical_symbols[z] for z in unknown]
        raise InputError(
            f"elements {names} were not in the training data; trained are "
            f"{[chemical_symbols[z] for z in trained]}"
        )
    if batch.periodic and not potential.model.supports_periodic:
        raise InputError(
            "this model's global attention has no periodic meaning (a supercell would "
            "not have the energy of its cells); train one with scope='local'"
        )
    asked = batch.formula_states()
    states = list(_unseen_states(potential, asked))
    if strict and states:
        raise InputError(states[0])
    for text in (*_unseen_compositions(potential, asked), *states):
        warn_once(text)


def unseen(
    potential: Potential, batch: AtomsBatch, states: Sequence[tuple[int, int]] = ()
) -> tuple[str, ...]:
    """Return what :func:`check_batch` warns of: compositions and states not trained.

    Args:
        potential: what has been trained.
        batch: what is asked.
        states: (charge, multiplicity 2S+1) that all systems are asked in too.
    """
    asked = {
        formula: tuple(dict.fromkeys((*own, *states)))
        for formula, own in batch.formula_states().items()
    }
    found = _unseen_states(potential, asked)
    return (*_unseen_compositions(potential, asked), *found)


def _unseen_compositions(potential: Potential, asked: FormulaStates) -> Iterator[str]:
    """Say of which molecules the like was not in training: energies mean little."""
    seen = potential.info.formulas
    missing = sorted(set(asked) - set(seen))
    if seen and missing:
        yield (
            f"{', '.join(missing)}: not in the training data (seen: "
            f"{', '.join(seen)}), energies there are extrapolation"
        )


def _unseen_states(potential: Potential, asked: FormulaStates) -> Iterator[str]:
    """Say which states were not in training at all, or not of that molecule."""
    info, told = potential.info, set()
    for formula, states in asked.items():
        known = info.formula_states.get(formula, info.states)
        for state in states:
            if state in known or state in told:
                continue
            subject = f"{formula}, {State(*state)},"
            if state not in info.states and formula not in info.formula_states:
                subject = str(State(*state))  # of no molecule; said once
                told.add(state)
            listed = ", ".join(State(*one).short for one in known)
            yield (
                f"{subject} was not in the training data (seen: {listed or 'none'}): "
                "energies there are extrapolation"
            )


def region_of(potential: Potential) -> Region | None:
    """Return the region that a potential has seen in training, if it records one."""
    recorded = potential.info.region
    return Region.from_json(recorded, potential.cutoff) if recorded else None


def predict(
    potential: Potential,
    systems: Sequence[Atoms],
    properties: Sequence[str] = ("energy", "forces"),
    *,
    charge: Any = None,
    spin: Any = None,
    max_atoms_per_call: int | None = None,
    members: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate many systems, batched.

    Args:
        potential: the potential.
        systems: ASE systems with their states in ``info``.
        properties: names from :attr:`Potential.properties`.
        charge: total charge, e: one for all or one per system.
        spin: multiplicity 2S+1, likewise.
        max_atoms_per_call: bound of the systems that share a call, besides the one by
            memory; a larger system goes alone.
        members: of a :class:`mlff.Committee`, return what each member says: the
            deviation of a difference is that of the differences of the members.

    Returns:
        One dict per system, in order: ``energy`` (float, eV), ``forces`` (n_atoms, 3),
        eV/Å, and so on, float64; with ``members``, arrays with a first axis of these.

    Raises:
        InputError: whatever is wrong with a system, its index named.
    """
    if not isinstance(potential, Potential):
        raise InputTypeError(_NOT_A_POTENTIAL.format(type(potential).__name__))
    if members:
        committee = check_committee(potential, "members")
    with exact(potential.device):
        whole = AtomsBatch.from_atoms(systems, charge, spin)
        check_batch(potential, whole)
        if "stress" in properties:
            _check_volumes(whole)
        batch = whole.to(potential.device)
        parts = Parts(potential, batch, properties, max_atoms=max_atoms_per_call)

        def call(part: AtomsBatch, edges: Edges) -> dict[str, Tensor]:
            check_distances(edges, build_graph(part, edges, torch.float64).distances)
            if not members:
                return potential(part, edges, properties)
            found = committee.members(part, edges, properties)
            return {name: value.transpose(0, 1) for name, value in found.items()}

        results = _by_system(parts.evaluate(batch, call), [len(a) for a in systems])
    if members:
        for result in results:
            for name in properties:
                if PROPERTIES[name].per == "atom":
                    result[name] = result[name].swapaxes(0, 1).copy()
    return results


def deviations(
    committee: Potential,
    systems: Sequence[Atoms],
    *,
    charge: Any = None,
    spin: Any = None,
    max_atoms_per_call: int | None = None,
) -> list[dict[str, Any]]:
    """Return how far the members of a committee disagree, batched.

    Args:
        committee: a :class:`mlff.Committee`.
        systems: ASE systems with their states in ``info``.
        charge: total charge, e: one for all or one per system.
        spin: multiplicity 2S+1, likewise.
        max_atoms_per_call: as for :func:`predict`.

    Returns:
        One dict per system, in order, of sample standard deviations over the members:
        ``energy`` (float, eV), ``forces`` (n_atoms, 3), eV/Å, by component.

    Raises:
        InputTypeError: one potential in the place of a committee.
        InputError: whatever is wrong with a system, its index named.
    """
    found = predict(
        check_committee(committee, "committee"),
        systems,
        tuple(DEVIATIONS),
        charge=charge,
        spin=spin,
        max_atoms_per_call=max_atoms_per_call,
    )
    return [{of: one[name] for name, of in DEVIATIONS.items()} for one in found]


def _by_system(out: dict[str, Tensor], sizes: list[int]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = [{} for _ in sizes]
    for name, value in out.items():
        array = value.cpu().numpy()
        per_atom = PROPERTIES[name].per == "atom"
        rows = np.split(array, np.cumsum(sizes)[:-1]) if per_atom else list(array)
        for result, row in zip(results, rows, strict=True):
            result[name] = float(row) if row.ndim == 0 else row.copy()
    return results


def _check_volumes(batch: AtomsBatch) -> None:
    flat = torch.linalg.det(batch.cell).abs() < MIN_VOLUME
    bad = torch.nonzero(flat | ~batch.pbc.any(1)).ravel().tolist()
    if bad:
        raise InputError(
            "`properties` asks for stress, which needs a periodic system whose cell "
            f"has a volume; not so for systems {bad[:5]}"
        )

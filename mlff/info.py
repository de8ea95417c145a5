"""What a model file says about its weights: what they have seen, how wrong they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from mlff.errors import InputError

#: Compositions that a file lists at most.
MAX_FORMULAS = 100


@dataclass(frozen=True, kw_only=True)
class TrainingInfo:
    """Where the weights come from and what they have seen.

    Attributes:
        elements: atomic numbers in the training data, ascending.
        states: (charge, multiplicity) pairs in the training data, ascending.
        formulas: compositions in the training data, Hill notation, ascending; empty
            if not recorded because there are more than :data:`MAX_FORMULAS`.
        formula_states: states of each of these compositions in the training data; empty
            if not recorded.
        region: distances (Å) and angles (degrees) in the training data, smallest and
            largest by elements, see :class:`mlff.region.Region`; empty if not recorded.
        level_of_theory: of the labels, e.g. ``"b3lyp5/cc-pvdz"``.
        provenance: data, split, settings and versions; JSON types.
        metrics: measured errors, units in their names; JSON types.
    """

    elements: tuple[int, ...]
    states: tuple[tuple[int, int], ...]
    formulas: tuple[str, ...] = ()
    formula_states: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    region: dict[str, tuple[float, float]] = field(default_factory=dict)
    level_of_theory: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.elements or not all(1 <= z <= 118 for z in self.elements):
            raise InputError(
                f"`elements` must be atomic numbers 1 … 118, got {self.elements}"
            )
        if not self.states:
            raise InputError("`states` must name at least one (charge, multiplicity)")

    @classmethod
    def shared(cls, infos: Sequence[Self]) -> Self:
        """Return what all of several have seen, of the same elements and states.

        Args:
            infos: at least one; a composition or range that one of them does not record
                is left out. Metrics are too: they are of each alone.
        """
        formulas = set(infos[0].formulas).intersection(*(one.formulas for one in infos))
        states = {
            formula: tuple(
                state
                for state in infos[0].formula_states[formula]
                if all(state in one.formula_states[formula] for one in infos)
            )
            for formula in sorted(formulas)
            if all(formula in one.formula_states for one in infos)
        }
        region = {}
        for name in infos[0].region:
            ranges = [one.region[name] for one in infos if name in one.region]
            low, high = max(a for a, _ in ranges), min(b for _, b in ranges)
            if len(ranges) == len(infos) and low <= high:
                region[name] = low, high
        return replace(
            infos[0],
            formulas=tuple(sorted(formulas)),
            formula_states=states,
            region=region,
            provenance={f"member {k}": one.provenance for k, one in enumerate(infos)},
            metrics={},
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what ``dataclasses.asdict`` wrote and JSON changed.

        Raises:
            InputError, KeyError, TypeError, ValueError: it is something else.
        """
        found = dict(content)
        found["elements"] = tuple(int(z) for z in found["elements"])
        found["states"] = tuple((int(q), int(m)) for q, m in found["states"])
        found["formulas"] = tuple(map(str, found.get("formulas", ())))
        found["formula_states"] = {
            str(formula): tuple((int(q), int(m)) for q, m in states)
            for formula, states in dict(found.get("formula_states", {})).items()
        }
        region = dict(found.get("region", {}))
        found["region"] = {k: (float(a), float(b)) for k, (a, b) in region.items()}
        return cls(**found)


def reference_table(references: Mapping[Any, Any]) -> Tensor:
    """Return the energy of each element by atomic number, (119,), float64, eV.

    Args:
        references: energies, eV, by atomic number; 0 for those that are missing.

    Raises:
        InputError: an atomic number outside 1 … 118, or an energy that is not finite.
    """
    table = torch.zeros(119, dtype=torch.float64)
    for number, energy in references.items():
        known = isinstance(number, int) and 1 <= number <= 118
        number_like = isinstance(energy, (int, float))
        if not (known and number_like and math.isfinite(energy)):
            raise InputError(
                "`references` must hold finite energies in eV by atomic number 1 … "
                f"118, got {number!r}: {energy!r}"
            )
        table[int(number)] = float(energy)
    return table

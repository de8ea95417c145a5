"""From files to a data set that can be trained on, or an error that says why not.

Knows under which names and in which units labels are stored. A label that is missing is
an error that names the keys found, never a zero.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from mlff.batch import AtomsBatch
from mlff.dataset import (
    Dataset,
    fit_references,
    geometry_groups,
    overlap,
    random_split,
    symmetry_split,
)
from mlff.errors import DataError, InputError
from mlff.frames import read_frames
from mlff.units import ENERGY_UNITS, LENGTH_UNITS
from mlff.vetting import vet

__all__ = [
    "KNOWN_KEYS",
    "Dataset",
    "LabelKeys",
    "fit_references",
    "geometry_groups",
    "load_dataset",
    "overlap",
    "random_split",
    "read_frames",
    "symmetry_split",
]

# Restricted and unrestricted references of one functional and basis are one level: the
# multiplicity decides between them.
_REFERENCE = re.compile(r"^(R|U|RO)(KS|HF)-")

_STRUCTURE = {"numbers", "positions", "initial_charges", "initial_magmoms"}


@dataclass(frozen=True, kw_only=True)
class LabelKeys:
    """Where labels are and in which units.

    Attributes:
        energy: key in ``info`` or in the results of an attached calculator.
        forces: key in ``arrays``, ``info`` or the results of an attached calculator.
        energy_unit: one of ``units.ENERGY_UNITS``.
        forces_unit: energy unit / length unit, e.g. ``"Hartree/Bohr"``. Positions are
            in Å always.
    """

    energy: str = "REF_energy"
    forces: str = "REF_forces"
    energy_unit: str = "eV"
    forces_unit: str = "eV/Ang"

    def __post_init__(self) -> None:
        if self.energy_unit not in ENERGY_UNITS:
            raise InputError(
                f"`energy_unit` must be one of {list(ENERGY_UNITS)}, got "
                f"{self.energy_unit!r}"
            )
        energy, _, length = self.forces_unit.rpartition("/")
        if energy not in ENERGY_UNITS or length not in LENGTH_UNITS:
            raise InputError(
                f"`forces_unit` must be one of {list(ENERGY_UNITS)} / one of "
                f"{list(LENGTH_UNITS)}, e.g. 'eV/Ang', got {self.forces_unit!r}"
            )

    @property
    def energy_factor(self) -> float:
        """From the declared unit to eV."""
        return ENERGY_UNITS[self.energy_unit]

    @property
    def forces_factor(self) -> float:
        """From the declared unit to eV/Å."""
        energy, _, length = self.forces_unit.rpartition("/")
        return ENERGY_UNITS[energy] / LENGTH_UNITS[length]


#: Pairs of keys that are tried, in this order, when none are given: those this package
#: writes, results of an ASE calculator, and those of the CMRET data sets. All in eV, Å.
KNOWN_KEYS = (
    LabelKeys(),
    LabelKeys(energy="energy", forces="forces"),
    LabelKeys(energy="E", forces="F"),
)


def load_dataset(
    paths: str | Path | Sequence[str | Path],
    keys: LabelKeys | None = None,
    *,
    level_of_theory: str = "",
    trust_labels: bool = False,
) -> Dataset:
    """Read labelled systems and refuse what would teach something wrong.

    Charge and multiplicity must be stated by every frame. Energies and forces are read
    without the constraints that a frame may carry.

    Args:
        paths: one file or several, see :func:`read_frames`.
        keys: where the labels are; the first of ``KNOWN_KEYS`` that occurs if not
            given.
        level_of_theory: of the labels; needed only where frames do not agree in
            ``info["level_of_theory"]``.
        trust_labels: skip the checks of units, sign and size, see :func:`vetting.vet`.

    Raises:
        DataError: no or one frame, missing, partial or misshapen labels, several levels
            of theory, labels that cannot be right.
        StateError: a frame without charge or multiplicity, or with an impossible one.

    Warns:
        MlffWarning: repeated frames, net forces, isolated atoms with several energies.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    frames, names = [], []
    for file in files:
        found = read_frames(file)
        frames += found
        names += [f"{file.name}, frame {k}" for k in range(len(found))]
    return label_dataset(
        frames,
        names,
        keys,
        level_of_theory=level_of_theory,
        trust_labels=trust_labels,
    )


def label_dataset(
    frames: Sequence[Atoms],
    names: Sequence[str] | None = None,
    keys: LabelKeys | None = None,
    *,
    level_of_theory: str = "",
    trust_labels: bool = False,
) -> Dataset:
    """Turn labelled frames in memory into a data set; see :func:`load_dataset`."""
    if names is None:
        names = [f"frame {k}" for k in range(len(frames))]
    if len(frames) < 2:
        raise DataError(
            f"{len(frames)} frames: training and evaluation need at least two"
        )
    keys = keys or _detect(frames)
    energy = _labels(frames, names, keys.energy)
    forces = _labels(frames, names, keys.forces)
    for name, atoms, e, f in zip(names, frames, energy, forces, strict=True):
        for key, label in ((keys.energy, e), (keys.forces, f)):
            if np.asarray(label).dtype.kind not in "iuf":
                raise DataError(f"{name}: `{key}` must be numbers, got {label!r}")
        if np.size(e) != 1 or np.shape(f) != (len(atoms), 3):
            raise DataError(
                f"{name}: `{keys.energy}` must be one number and `{keys.forces}` "
                f"{(len(atoms), 3)}, got shapes {np.shape(e)} and {np.shape(f)}"
            )
    dataset = Dataset(
        batch=_batch(frames, names),
        energy=torch.tensor(
            [float(np.ravel(e)[0]) for e in energy], dtype=torch.float64
        )
        * keys.energy_factor,
        forces=torch.from_numpy(np.concatenate(forces).astype(np.float64))
        * keys.forces_factor,
        names=tuple(names),
        level_of_theory=level_of_theory or _level(frames, names),
    )
    vet(dataset, trust_labels=trust_labels)
    return dataset


def _batch(frames: Sequence[Atoms], names: Sequence[str]) -> AtomsBatch:
    batches = []
    for name, atoms in zip(names, frames, strict=True):
        try:
            batches.append(AtomsBatch.from_atoms([atoms], strict=True))
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error
    return AtomsBatch.concat(batches)


def _stored(atoms: Atoms) -> dict[str, Any]:
    """Everything a frame carries by name; results as they are, not constrained."""
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    arrays = {k: v for k, v in atoms.arrays.items() if k not in _STRUCTURE}
    found = {**results, **atoms.info, **arrays}
    return {key: value for key, value in found.items() if value is not None}


def _detect(frames: Sequence[Atoms]) -> LabelKeys:
    found: set[str] = set()
    for atoms in frames:
        found |= set(_stored(atoms))
    for keys in KNOWN_KEYS:
        if keys.energy in found and keys.forces in found:
            return keys
    pairs = ", ".join(f"{k.energy} and {k.forces}" for k in KNOWN_KEYS)
    raise DataError(
        f"no energies with forces: looked for {pairs}; the keys found are "
        f"{sorted(found)}{_nearest('REF_forces', found)}. Name the keys with "
        "LabelKeys(energy=..., forces=...)"
    )


def _nearest(key: str, found: set[str]) -> str:
    by_case = {name.lower(): name for name in found}
    close = difflib.get_close_matches(key.lower(), by_case, n=1)
    return f" (the nearest to `{key}` is `{by_case[close[0]]}`)" if close else ""


def _labels(frames: Sequence[Atoms], names: Sequence[str], key: str) -> list[Any]:
    stored = [_stored(atoms) for atoms in frames]
    missing = [k for k, content in enumerate(stored) if key not in content]
    if missing:
        found = set().union(*stored)
        example = names[missing[0]]
        raise DataError(
            f"{len(missing)} of {len(frames)} frames have no `{key}` (first: "
            f"{example}); the keys found are {sorted(found)}"
            f"{_nearest(key, found - {key})}. "
            "Label these frames, remove them, or name the right key"
        )
    return [content[key] for content in stored]


def _level(frames: Sequence[Atoms], names: Sequence[str]) -> str:
    """The one level of theory that all frames state, or that none does."""
    seen: dict[str, str] = {}
    for name, atoms in zip(names, frames, strict=True):
        level = str(atoms.info.get("level_of_theory") or "")
        seen.setdefault(_REFERENCE.sub("", level), name)
    if len(seen) > 1:
        listing = ", ".join(
            f"{level or 'none'!r} ({name})" for level, name in seen.items()
        )
        raise DataError(
            f"the frames are of several levels of theory: {listing}. Train on one; "
            "level_of_theory=... states it for frames that do not"
        )
    return next(iter(seen))

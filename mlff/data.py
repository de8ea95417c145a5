"""From files to a data set that can be trained on, or an error that says why not.

Knows under which names and in which units labels are stored. A label that is missing is
an error that names the keys found, never a zero.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

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
from mlff.properties import PROPERTIES, TARGETS
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
        others: keys of other properties by their names, in the units of
            :data:`mlff.properties.PROPERTIES`; ``REF_dipole`` and so on if not given.
    """

    energy: str = "REF_energy"
    forces: str = "REF_forces"
    energy_unit: str = "eV"
    forces_unit: str = "eV/Ang"
    others: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.others) - set(TARGETS[2:]))
        if unknown:
            raise InputError(
                f"`others` must name properties among {TARGETS[2:]}, got {unknown}"
            )
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

    def of(self, name: str) -> str:
        """Return the key of a property."""
        known = {"energy": self.energy, "forces": self.forces, **self.others}
        return known.get(name) or str(PROPERTIES[name].label)

    def factor(self, name: str) -> float:
        """Return the factor from the declared unit of a property to ours."""
        if name == "energy":
            return ENERGY_UNITS[self.energy_unit]
        if name == "forces":
            energy, _, length = self.forces_unit.rpartition("/")
            return ENERGY_UNITS[energy] / LENGTH_UNITS[length]
        return 1.0


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
    properties: Sequence[str] = ("energy", "forces"),
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
        properties: names from :data:`mlff.properties.TARGETS`; every frame must have a
            label of each.
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
    frames, names = read_named(paths)
    return label_dataset(
        frames,
        names,
        keys,
        properties=properties,
        level_of_theory=level_of_theory,
        trust_labels=trust_labels,
    )


def read_named(
    paths: str | Path | Sequence[str | Path],
) -> tuple[list[Atoms], list[str]]:
    """Read the frames of one file or several, and where each comes from."""
    frames: list[Atoms] = []
    names: list[str] = []
    for file in [paths] if isinstance(paths, (str, Path)) else paths:
        found = read_frames(file)
        frames += found
        names += [f"{Path(file).name}, frame {k}" for k in range(len(found))]
    return frames, names


def label_dataset(
    frames: Sequence[Atoms],
    names: Sequence[str] | None = None,
    keys: LabelKeys | None = None,
    *,
    properties: Sequence[str] = ("energy", "forces"),
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
    keys = keys or _detect(frames, properties)
    batch = _batch(frames, names)
    if not level_of_theory:
        level_of_theory = _level(frames, names, batch.multiplicity.tolist())
    dataset = Dataset(
        batch=batch,
        labels={
            name: _tensor(frames, names, name, keys.of(name)) * keys.factor(name)
            for name in TARGETS
            if name in properties
        },
        names=tuple(names),
        level_of_theory=level_of_theory,
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


def _detect(frames: Sequence[Atoms], properties: Sequence[str]) -> LabelKeys:
    found: set[str] = set()
    for atoms in frames:
        found |= set(_stored(atoms))
    needed = [name for name in ("energy", "forces") if name in properties]
    for keys in KNOWN_KEYS:
        if all(keys.of(name) in found for name in needed):
            return keys
    tried = ", ".join(" and ".join(k.of(n) for n in needed) for k in KNOWN_KEYS)
    what = {"energy": "energies", "forces": "forces"}
    raise DataError(
        f"no {' with '.join(what[n] for n in needed)}: looked for {tried}; the keys "
        f"found are {sorted(found)}{_nearest(KNOWN_KEYS[0].of(needed[-1]), found)}. "
        "Name the keys with LabelKeys(energy=..., forces=...)"
    )


def labelled(frames: Sequence[Atoms], keys: LabelKeys | None = None) -> list[str]:
    """Return the properties of which any frame has a label.

    Args:
        frames: systems.
        keys: where the labels are; see :func:`load_dataset`.
    """
    found: set[str] = set().union(*(_stored(atoms) for atoms in frames))
    tried = (keys,) if keys else KNOWN_KEYS
    return [name for name in TARGETS if any(k.of(name) in found for k in tried)]


def _tensor(
    frames: Sequence[Atoms], names: Sequence[str], name: str, key: str
) -> Tensor:
    """Return the labels of one property, checked for type and shape."""
    known = PROPERTIES[name]
    rows = []
    labels = _labels(frames, names, key)
    for where, atoms, label in zip(names, frames, labels, strict=True):
        array = np.asarray(label)
        shape = (*((len(atoms),) if known.per == "atom" else ()), *known.shape)
        if array.dtype.kind not in "iuf":
            raise DataError(f"{where}: `{key}` must be numbers, got {label!r}")
        # A tensor may be written as its numbers in a row.
        flat = known.per == "system" and array.shape == (math.prod(shape),)
        fits = array.size == 1 if shape == () else flat or array.shape == shape
        if not fits:
            needed = "one number" if shape == () else f"of shape {shape}"
            raise DataError(
                f"{where}: `{key}` must be {needed}, got shape {array.shape}"
            )
        rows.append(array.astype(np.float64).reshape(-1, *known.shape))
    return torch.from_numpy(np.concatenate(rows))


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


def _level(
    frames: Sequence[Atoms], names: Sequence[str], multiplicities: Sequence[int]
) -> str:
    """The one level of theory that all frames state, or that none does.

    Open shells are unrestricted anyway; the kind of reference is part of the level
    where it is unusual, which is for singlets that are unrestricted.
    """
    seen: dict[str, str] = {}
    singlets: dict[str, str] = {}
    for name, atoms, spin in zip(names, frames, multiplicities, strict=True):
        level = str(atoms.info.get("level_of_theory") or "")
        seen.setdefault(_REFERENCE.sub("", level), name)
        if spin == 1:
            singlets.setdefault(level, name)
    for found in (seen, singlets):
        if len(found) > 1:
            listing = ", ".join(
                f"{level or 'none'!r} ({name})" for level, name in found.items()
            )
            raise DataError(
                f"the frames are of several levels of theory: {listing}. Train on one; "
                "level_of_theory=... states it for frames that do not"
            )
    of_singlets = next(iter(singlets), "")
    return of_singlets if of_singlets.startswith("U") else next(iter(seen))

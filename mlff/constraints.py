"""Atoms that may not move, as ASE systems say it."""

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch import Tensor

from mlff.errors import InputError


def mobile_atoms(systems: Sequence[Atoms]) -> Tensor:
    """Return which atoms of all systems may move, (n_atoms,), bool.

    Args:
        systems: their constraints must be ``FixAtoms``.

    Raises:
        InputError: any other constraint; the text names it and the system.
    """
    masks = [np.zeros(0, dtype=bool)]
    for index, atoms in enumerate(systems):
        mobile = np.ones(len(atoms), dtype=bool)
        for constraint in atoms.constraints:
            if not isinstance(constraint, FixAtoms):
                raise InputError(
                    f"system {index}: constraint {type(constraint).__name__} is not "
                    "supported in a batch, only FixAtoms is; run this system through "
                    "ASE with mlff.MLFFCalculator"
                )
            fixed = constraint.get_indices()
            if ((fixed < -len(atoms)) | (fixed >= len(atoms))).any():
                raise InputError(
                    f"system {index}: FixAtoms names atoms {fixed.tolist()[:5]}, but "
                    f"there are {len(atoms)}"
                )
            mobile[fixed] = False
        masks.append(mobile)
    return torch.from_numpy(np.concatenate(masks))

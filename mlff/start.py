"""What a run of many systems begins with, validated once.

All that is needed of ASE systems beside what :class:`mlff.batch.AtomsBatch` holds:
masses, momenta, and which atoms may move.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.constraints import mobile_atoms
from mlff.errors import InputError, StateError
from mlff.inference import check_batch
from mlff.neighbors import MIN_DISTANCE, neighbor_list
from mlff.potential import Potential, build_graph
from mlff.state import check_state


@dataclass(frozen=True, kw_only=True)
class Start:
    """Systems as they are before the first step, on the CPU.

    Attributes:
        batch: the systems.
        masses: (n_atoms,), float64, amu.
        momenta: (n_atoms, 3), float64, amu Å per ASE time.
        mobile: atoms that may move, (n_atoms,), bool.
    """

    batch: AtomsBatch
    masses: Tensor
    momenta: Tensor
    mobile: Tensor

    @classmethod
    def from_atoms(cls, systems: Sequence[Atoms], potential: Potential) -> Self:
        """Read systems and hold them against what a potential is for.

        Args:
            systems: ASE systems with charge and spin in ``info``.
            potential: that will move them.

        Raises:
            InputError: whatever is wrong with a system; its index is named.
        """
        batch = AtomsBatch.from_atoms(systems)
        if batch.n_systems == 0:
            raise InputError("`systems` is empty: there is nothing to move")
        check_batch(potential, batch)
        check_contacts(batch)
        masses = [atoms.get_masses() for atoms in systems]
        momenta = [atoms.get_momenta() for atoms in systems]
        for index, (mass, momentum) in enumerate(zip(masses, momenta, strict=True)):
            if not (np.isfinite(mass) & (mass > 0)).all():
                raise InputError(f"system {index}: masses must be positive and finite")
            if not np.isfinite(momentum).all():
                raise InputError(f"system {index}: momenta must be finite")
        return cls(
            batch=batch,
            masses=torch.from_numpy(np.concatenate(masses)).double(),
            momenta=torch.from_numpy(np.concatenate(momenta)).double(),
            mobile=mobile_atoms(systems),
        )

    def digest(self) -> str:
        """Return the SHA-256 of everything that a run depends on."""
        batch = self.batch
        return digest(
            batch.numbers,
            batch.system,
            batch.positions,
            batch.cell,
            batch.pbc,
            batch.charge,
            batch.multiplicity,
            self.masses,
            self.momenta,
            self.mobile,
        )


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of the values of tensors, in order."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def check_contacts(batch: AtomsBatch) -> None:
    """Raise if two atoms of a system coincide: no potential means anything there.

    Raises:
        InputError: names the system and the atoms, counted inside it.
    """
    edges = neighbor_list(batch, 1.0)
    distances = build_graph(batch, edges, torch.float64).distances
    close = (distances < MIN_DISTANCE).nonzero()[:, 0]
    if len(close):
        i, j = int(edges.i[close[0]]), int(edges.j[close[0]])
        raise InputError(
            f"system {int(batch.system[i])}: atoms {int(batch.slot[i])} and "
            f"{int(batch.slot[j])} are {float(distances[close[0]]):.2g} Å apart, at "
            f"least {MIN_DISTANCE:g} Å are needed; move or remove one of them"
        )


def check_states(
    potential: Potential, batch: AtomsBatch, states: Sequence[tuple[int, int]]
) -> None:
    """Raise unless every system can have every state; warn of those not trained.

    Args:
        potential: that will be asked.
        batch: the systems.
        states: (charge, multiplicity 2S+1) pairs.

    Raises:
        StateError: a state that the electrons of a system exclude; it is named.
        InputError: not pairs of integers.
    """
    numbers = batch.numbers.split(batch.counts().tolist())
    for state in states:
        charge, multiplicity = state_pair(state)
        for index, own in enumerate(numbers):
            try:
                check_state(own.numpy(), charge, multiplicity)
            except StateError as error:
                raise StateError(f"`states`, system {index}: {error}") from error
        asked = batch.replace(
            charge=torch.full_like(batch.charge, charge),
            multiplicity=torch.full_like(batch.multiplicity, multiplicity),
        )
        check_batch(potential, asked)


def state_pair(state: Any) -> tuple[int, int]:
    """Return (charge, multiplicity) as integers; :class:`InputError` if it is not."""
    pair = tuple(state) if isinstance(state, Iterable) else ()
    whole = [isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in pair]
    if len(pair) != 2 or not all(whole):
        raise InputError(
            f"`states` must hold (charge, multiplicity) as integers, got {state!r}"
        )
    return int(pair[0]), int(pair[1])

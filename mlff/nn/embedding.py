"""What enters a network: nuclei as electron configurations, charge and spin as vectors.

Both are shared by every model. Charge and multiplicity are embedded without parameters
into the initial vector features.
"""

import torch
from torch import Tensor, nn

from mlff.batch import AtomsBatch
from mlff.errors import InputError

# Sub-shells in Madelung order with their capacities; 22 in all.
_SUBSHELLS = (
    *(("1s", 2), ("2s", 2), ("2p", 6), ("3s", 2), ("3p", 6), ("4s", 2), ("3d", 10)),
    *(("4p", 6), ("5s", 2), ("4d", 10), ("5p", 6), ("6s", 2), ("4f", 14), ("5d", 10)),
    *(("6p", 6), ("7s", 2), ("5f", 14), ("6d", 10), ("7p", 6), ("6f", 14), ("7d", 10)),
    ("7f", 14),
)

#: Ways to embed charge and multiplicity.
CHARGE_SPIN = ("internal", "cmret", "none")


def electron_configurations() -> Tensor:
    """Occupation of 22 sub-shells for Z = 0 … 118, filled in Madelung order.

    Returns:
        (119, 22), float64. Row 0 is empty.
    """
    table = torch.zeros(119, len(_SUBSHELLS), dtype=torch.float64)
    for number in range(119):
        left = number
        for column, (_, capacity) in enumerate(_SUBSHELLS):
            table[number, column] = min(left, capacity)
            left -= min(left, capacity)
    return table


class NuclearEmbedding(nn.Module):
    """Electron configuration of each atom through one linear layer (CMRET eq. 1).

    Args:
        n_features: width F.
    """

    configurations: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        table = electron_configurations().to(torch.get_default_dtype())
        self.register_buffer("configurations", table, persistent=False)
        self.linear = nn.Linear(len(_SUBSHELLS), n_features)

    def forward(self, numbers: Tensor) -> Tensor:
        """Embed atomic numbers (n_atoms,): (n_atoms, F)."""
        return self.linear(self.configurations[numbers])


def internal_axes(charge_spin: str) -> int:
    """Components of a vector feature that rotations do not touch, for an embedding."""
    return 1 if charge_spin == "internal" else 0


def initial_vectors(
    batch: AtomsBatch, n_features: int, charge_spin: str, dtype: torch.dtype
) -> Tensor:
    """Embed total charge Q and spin S of each system into vector features.

    ``"internal"``: zero in space; a fourth component, which rotations do not touch,
    holds ``1 − Q/ΣZ`` on the first half of the channels and ``2S/ΣZ`` on the others.
    Exactly invariant, every (Q, S) distinct, the sign of Q kept.

    ``"cmret"``: CMRET eq. 9, every spatial component is ``−(Q − S)/ΣZ``. This plants
    a direction of the laboratory into the molecule: **energies are not rotation
    invariant as soon as Q ≠ S**, and only Q − S is seen. For comparison only.

    ``"none"``: zero; all states of a molecule have the same energy.

    Both normalise by the nuclear charge ΣZ of the whole system: a charge is spread over
    everything, so separated charged or open-shell fragments are not size consistent.

    Args:
        batch: the systems.
        n_features: width F, even.
        charge_spin: one of :data:`CHARGE_SPIN`.
        dtype: of the result.

    Returns:
        (n_atoms, 3 or 4, F).
    """
    shape = (batch.n_atoms, 3 + internal_axes(charge_spin), n_features)
    if charge_spin == "none":
        return torch.zeros(shape, dtype=dtype, device=batch.numbers.device)
    nuclear = torch.zeros_like(batch.charge).index_add(0, batch.system, batch.numbers)
    charge = (batch.charge / nuclear)[batch.system].to(dtype)
    unpaired = ((batch.multiplicity - 1) / nuclear)[batch.system].to(dtype)
    if charge_spin == "cmret":
        return (0.5 * unpaired - charge)[:, None, None].expand(shape)
    halves = torch.stack((1 - charge, unpaired), dim=1)
    internal = halves.repeat_interleave(n_features // 2, dim=1)
    return nn.functional.pad(internal[:, None, :], (0, 0, 3, 0))


def check_charge_spin(charge_spin: str, n_features: int) -> None:
    """Raise unless the embedding exists and fits the width.

    Raises:
        InputError: unknown name, or an odd width for ``"internal"``.
    """
    if not isinstance(charge_spin, str) or charge_spin not in CHARGE_SPIN:
        raise InputError(
            f"`charge_spin` must be one of {list(CHARGE_SPIN)}, got {charge_spin!r}"
        )
    if charge_spin == "internal" and n_features % 2:
        raise InputError(
            f"`n_features` must be even for charge_spin='internal', got {n_features}"
        )

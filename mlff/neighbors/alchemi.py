"""The pairs of many boxes in one library call: nvalchemi, optional, meant for a GPU.

Knows what the library may be given and what its answer means; edges are made of the
pairs in ``mlff.neighbors``. Three things would make it leave out pairs silently, and
none of them is ever passed on:

- a cell vector of zero, or parallel to another: every box gets three independent ones;
- an axis that is not periodic in a box hundreds of cutoffs long, along which the search
  may look at one bin of several: every axis is passed as periodic, and where it is not,
  the box is so much longer than its system that no image lies within the cutoff;
- more neighbors than there are places in a row: rows grow until all pairs fit.

The search is the one that runs the same code on a CPU, where it can be checked. It
divides every box into about as many bins as the average one, so that boxes of similar
size make the best batch.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata

import torch
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.errors import InputError

#: Places for neighbors, of all atoms together, beyond which a batch is refused; one
#: takes 16 bytes.
MAX_PLACES = 2**28

# Lists of older versions lack pairs, and nothing says so.
_OLDEST = (0, 5)

# Atoms per Å³ that the first length of a row allows for; diamond has 0.18.
_DENSITY = 0.2

# Å between a system and an image of it along an axis that is not periodic, beyond the
# cutoff: more than any rounding of a coordinate.
_MARGIN = 1.0

# Digits of a number that orders the images of one pair. Their shifts differ by less
# than 2**20 along an axis (``MAX_IMAGES``), so that no two get the same.
_ORDER = (2**42, 2**21, 1)


def installed() -> bool:
    """Whether a version of the library is there that can be trusted; loads nothing."""
    try:
        version = metadata.version("nvalchemi-toolkit-ops")
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2]) >= _OLDEST


@torch.no_grad()
def pairs_of_boxes(
    batch: AtomsBatch, cutoff: float, row_length: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs within the cutoff of every system, in one call of the library.

    Runs where the batch is. The first call in a process takes seconds, and the first
    on a machine compiles kernels into the cache of ``warp``. The order of the pairs
    does not depend on the order in which threads finish.

    Args:
        batch: any systems whose positions and cells have been checked.
        cutoff: largest distance of a pair, Å.
        row_length: neighbors per atom to make room for at first.

    Returns:
        Receiver, ascending, and sender (n_pairs,), int64; cell vectors to add to the
        sender (n_pairs, 3), float64 integers.

    Raises:
        InputError: more than ``MAX_PLACES`` would be needed, or the library does not
            load.
    """
    if batch.n_atoms == 0:
        return batch.system, batch.system, batch.positions
    search = _search()
    positions, boxes = _enclosed(batch, cutoff)
    everywhere = torch.ones_like(batch.pbc)
    system = batch.system.to(torch.int32)
    length = row_length or _expected_neighbors(cutoff)
    while True:
        _check_room(batch.n_atoms, length, cutoff)
        with _quiet():
            senders, counts, shifts = search(
                positions,
                cutoff,
                boxes,
                everywhere,
                system,
                max_neighbors=length,
                strategy="atom_centric",
            )
        most = int(counts.max())
        if most <= length:
            return _ordered(senders, counts, shifts)
        length = most  # counts go on where places end


def _search() -> Callable[..., tuple[Tensor, ...]]:
    try:
        with _quiet():
            from nvalchemiops.torch.neighbors import batch_cell_list
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            "`backend` 'nvalchemi' is installed but does not load "
            f"({type(error).__name__}: {error}); use 'vesin', or mend the installation "
            "of nvalchemi-toolkit-ops: it needs torch>=2.10 and a folder for compiled "
            "kernels, which the environment variable WARP_CACHE_PATH can name"
        ) from error
    return batch_cell_list


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warp from printing progress, and its level of printing as it was."""
    import warp

    level = warp.config.log_level
    warp.config.log_level = max(level, warp.LOG_WARNING)
    try:
        yield
    finally:
        # The library sets a level of its own when it is imported.
        warp.config.log_level = level


def _expected_neighbors(cutoff: float) -> int:
    return math.ceil(_DENSITY * 4 / 3 * math.pi * cutoff**3) + 16


def _check_room(n_atoms: int, length: int, cutoff: float) -> None:
    if n_atoms * length > MAX_PLACES:
        raise InputError(
            f"`batch` of {n_atoms} atoms, one of which may have {length} neighbors "
            f"within {cutoff:g} Å, needs {n_atoms * length:.1e} places, and at most "
            f"{MAX_PLACES:.1e} are allowed; check the unit of positions and cell, make "
            "smaller batches, or use `backend` 'vesin'"
        )


def _enclosed(batch: AtomsBatch, cutoff: float) -> tuple[Tensor, Tensor]:
    """Return positions (n_atoms, 3) and a box for each system (n_systems, 3, 3), Å.

    In place of vectors that are not periodic, a box has some at right angles to all
    others, and the system lies between their ends.
    """
    free = ~batch.pbc
    periodic = batch.cell.masked_fill(free[:, :, None], 0.0)
    # The first axes span the periodic vectors. Thousands of such small matrices are
    # as quick on the CPU.
    axes = torch.linalg.svd(periodic.cpu()).Vh.to(periodic.device)
    rank = batch.pbc.sum(dim=1, keepdim=True) + free.cumsum(dim=1) - 1
    rows = torch.where(free, rank, 0)[:, :, None].expand(-1, -1, 3)
    across = axes.gather(1, rows)
    heights = torch.einsum("ax,acx->ac", batch.positions, across[batch.system])
    low, high = (
        torch.zeros_like(batch.cell[:, 0]).scatter_reduce(
            0, batch.system[:, None].expand(-1, 3), heights, how, include_self=False
        )
        for how in ("amin", "amax")
    )
    length = high - low + cutoff + _MARGIN
    boxes = torch.where(free[:, :, None], across * length[:, :, None], periodic)
    start = torch.where(free, low - _MARGIN / 2, 0.0)
    origin = torch.einsum("sc,scx->sx", start, across)
    return batch.positions - origin[batch.system], boxes


def _ordered(
    senders: Tensor, counts: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the pairs out of the rows, in an order that depends on the pairs only."""
    n_atoms, length = senders.shape
    atoms = torch.arange(n_atoms, device=senders.device)
    filled = torch.arange(length, device=senders.device) < counts[:, None]
    i = atoms.repeat_interleave(counts)
    j = senders[filled].to(torch.int64)
    shift = shifts[filled].to(torch.int64)
    image = (shift * shift.new_tensor(_ORDER)).sum(dim=1)
    order = image.argsort(stable=True)
    order = order[(i * n_atoms + j)[order].argsort(stable=True)]
    return i[order], j[order], shift[order].to(torch.float64)

"""Which systems share a model call.

Systems are sorted by size and cut where padding to the largest would cost more than
another call, and where a call would need more memory than it may have. Small molecules
are padded: with the list of all pairs an atom has as many rows of edges as the largest
molecule of its part has other atoms. Larger and periodic systems have the edges that
they have.
"""

import math
import weakref
from collections.abc import Sequence
from itertools import groupby

import torch

from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.forcefield.memory import free_bytes, peak_bytes
from mlff.neighbors import ALL_PAIRS_ATOMS, neighbor_list
from mlff.potential import Potential

#: Part of the free memory that systems which share a call may take.
SHARE = 0.5

#: Memory that systems which share a call may take on a CPU. More gains nothing; with
#: less, calls cost more: on two threads 4,000 CH2 took 275 ms in parts of 64 MiB, 214
#: in parts of 192, 182 in parts of 384.
CPU_BYTES = 384 * 2**20

#: What a call costs besides its arithmetic, as a number of padded rows of edges. On a
#: CPU it was measured with the shipped model: 2.5 ms, and 15 to 20 µs a row. On a GPU
#: it is an estimate: a thousand kernels are launched in 10 ms, a row takes 0.1 µs.
CALL_ROWS = {"cpu": 150, "cuda": 100_000}

#: Memory that a process takes for a call, over the bytes counted: measured are 1.03
#: for one system of 3,000 atoms to 1.45 for 5,000 of 3, whose blocks leave gaps.
ROOM = 1.5

# What has been counted: bytes of one system, by what they depend on.
_Key = tuple[int, int, bool, torch.dtype, tuple[str, ...]]
_counted: weakref.WeakKeyDictionary[Potential, dict[_Key, int]] = (
    weakref.WeakKeyDictionary()
)


def has_all_pairs(n_atoms: int, periodic: bool) -> bool:
    """Return whether a system gets all pairs, which no move of an atom changes."""
    return n_atoms <= ALL_PAIRS_ATOMS and not periodic


def plan(
    potential: Potential,
    batch: AtomsBatch,
    properties: Sequence[str],
    cutoff: float,
    *,
    memory_bytes: int | None = None,
    max_atoms: int | None = None,
) -> list[list[int]]:
    """Return the systems of each part, by ascending size; all pairs first.

    Args:
        potential: what will be called.
        batch: the systems, on the device of the potential, in any order.
        properties: what will be asked.
        cutoff: of the neighbor lists, Å.
        memory_bytes: bound of one call. If not given, a system must fit into what is
            free, and systems share a call up to :data:`SHARE` of that or
            :data:`CPU_BYTES`.
        max_atoms: further bound of the systems that share a call, atoms.

    Raises:
        InputError: a system that does not fit.
    """
    device = batch.positions.device
    allowed = free_bytes(device) if memory_bytes is None else memory_bytes
    wanted = allowed
    if memory_bytes is None:
        # A power of two, so that runs in like circumstances are cut alike.
        wanted = 1 << max(int(SHARE * allowed).bit_length() - 1, 0)
        wanted = min(wanted, CPU_BYTES) if device.type == "cpu" else wanted
    sizes, periodic = batch.counts().tolist(), batch.pbc.any(1).tolist()
    padded = [has_all_pairs(n, p) for n, p in zip(sizes, periodic, strict=True)]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    groups = _by_size([k for k in order if padded[k]], sizes, CALL_ROWS[device.type])
    groups.append([k for k in order if not padded[k]])
    parts = []
    for group in filter(None, groups):
        largest = group[-1]
        one = batch.select([largest])
        need = bytes_of_one(potential, one, properties, cutoff)
        if need > allowed:
            raise InputError(too_large(one, largest, need, allowed))
        # The need grows at least as the size: that suffices for the smaller ones.
        atoms = wanted * sizes[largest] / need
        atoms = atoms if max_atoms is None else min(atoms, max_atoms)
        parts += _of_so_many(group, sizes, atoms)
    return parts


def _of_so_many(order: list[int], sizes: list[int], atoms: float) -> list[list[int]]:
    """Cut systems of ascending size by the atoms of a part, padding included."""
    parts, end = [], len(order)
    while end:
        start = max(end - max(int(atoms / sizes[order[end - 1]]), 1), 0)
        parts.append(order[start:end])
        end = start
    return parts[::-1]


def _by_size(order: list[int], sizes: list[int], call_rows: int) -> list[list[int]]:
    """Cut systems of ascending size where that costs least.

    A part costs ``call_rows`` and, padded to its largest size n, n rows for each atom.
    """
    runs = [list(run) for _, run in groupby(order, key=sizes.__getitem__)]
    # Of the first runs, up to each: least cost, and where its last part begins.
    best = [(0, 0)]
    for end in range(1, len(runs) + 1):
        largest, atoms, options = sizes[runs[end - 1][0]], 0, []
        for start in reversed(range(end)):
            atoms += len(runs[start]) * sizes[runs[start][0]]
            options.append((best[start][0] + call_rows + atoms * largest, start))
        best.append(min(options))
    groups, end = [], len(runs)
    while end:
        start = best[end][1]
        groups.append([k for run in runs[start:end] for k in run])
        end = start
    return groups[::-1]


def bytes_of_one(
    potential: Potential, batch: AtomsBatch, properties: Sequence[str], cutoff: float
) -> int:
    """Return the memory that a system adds to a call; counted once, then known.

    Args:
        potential: what will be called.
        batch: the one system.
        properties: what will be asked.
        cutoff: of the neighbor list, Å.
    """
    backend = "all_pairs" if has_all_pairs(batch.n_atoms, batch.periodic) else "auto"
    # So many that what a call has but once does not matter.
    several = batch.select([0] * max(1, 64 // batch.n_atoms))
    edges = neighbor_list(several, cutoff, backend)
    key = (
        *(batch.n_atoms, edges.n_edges, edges.shift is not None),
        *(potential.dtype, tuple(properties)),
    )
    known = _counted.setdefault(potential, {})
    if key not in known:
        peak = peak_bytes(potential, several, edges, properties)
        known[key] = math.ceil(ROOM * peak / several.n_systems)
    return known[key]


def too_large(one: AtomsBatch, index: int, need: int, allowed: int) -> str:
    """Say that a system needs more memory than it may have, and what helps."""
    return (
        f"`batch`: system {index} with {one.n_atoms} atoms needs about "
        f"{need / 2**30:.3g} GiB in one call, and {allowed / 2**30:.3g} GiB may be "
        f"used on {one.positions.device}; free memory, or take another device, a model "
        "with a shorter cutoff or fewer features, or a smaller system"
    )

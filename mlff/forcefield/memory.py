"""What a model call needs, what a device has, and how a device says that it is full.

The need is counted, not guessed: the call is run on torch's meta device, whose tensors
have shapes but no numbers, and the bytes of all tensors that are alive at once are
added up, those that the derivative needs among them. That takes no memory and no
arithmetic, whatever the size, and is the same for every device. Buffers inside an
operation and gaps between blocks of memory are not seen: leave room for them.
"""

import copy
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlff.batch import AtomsBatch, Edges
from mlff.potential import Potential

_FULL = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

# A control group without a limit, bytes.
_UNLIMITED = 2**62

# Of control groups version 2 and 1: the files with the limit and the use, and the line
# of memory.stat that says how much of the use are copies of files.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": (
        *("memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
}


class _AliveBytes(TorchDispatchMode):
    """Adds up the storages that operations return, while they are alive.

    Args:
        given: tensors that exist anyway; views of them take nothing.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._release, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _release(self, size: int) -> None:
        self.now -= size


def peak_bytes(
    potential: Potential, batch: AtomsBatch, edges: Edges, properties: Sequence[str]
) -> int:
    """Count the bytes that a call has in use at its peak, without making it.

    A model that cannot run on the meta device is run on its own.

    Args:
        potential: the potential.
        batch: the systems of the call.
        edges: their edges.
        properties: what is asked.
    """
    try:
        shape = copy.deepcopy(potential).to("meta")
        return _peak(shape, batch.to("meta"), edges.to("meta"), properties)
    except NotImplementedError:
        return _peak(potential, batch, edges, properties)


def _peak(
    potential: Potential, batch: AtomsBatch, edges: Edges, properties: Sequence[str]
) -> int:
    given = [*potential.parameters(), *potential.buffers()]
    with _AliveBytes(given) as alive:
        potential(batch, edges, properties)
    return alive.most


def free_bytes(device: torch.device) -> int:
    """Return the memory that this process may still take on a device, bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device)
        return int(free + unused - torch.cuda.memory_allocated(device))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = dict(line.split(":") for line in lines)
        free = int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: half of all there is
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(free, _left_in_group())


def _left_in_group(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what the control groups of a container or batch job still allow, bytes."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return _UNLIMITED
    left = _UNLIMITED
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in _GROUP_FILES:
            continue
        base = root / controllers
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(base):
                left = min(left, _left_in(group, *_GROUP_FILES[controllers]))
    return left


def _left_in(group: Path, limit: str, used: str, droppable: str) -> int:
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
        lines = (group / "memory.stat").read_text().splitlines()
        table = dict(line.split() for line in lines)
    except (OSError, ValueError):  # no such group here, or no limit: "max"
        return _UNLIMITED
    return max(most - now + int(table.get(droppable, 0)), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in _FULL)

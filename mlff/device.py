"""Devices and precisions that can be had; nothing is silently replaced by another."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mlff.errors import InputError

#: Precisions of a network, by name.
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def check_device(device: torch.device | str) -> torch.device:
    """Return a device that is there, never another one in its place.

    Raises:
        InputError: unknown or absent, with what is available.
    """
    available = ["cpu"]
    available += [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"`device`={device!r} is unknown; use {available}") from error
    absent = found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()
    if absent or found.type not in ("cpu", "cuda"):
        raise InputError(f"`device`={str(found)!r} is not here; available: {available}")
    return found


def check_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return float32, float64, or ``None`` for what the file says.

    Raises:
        InputError: any other precision; forces need at least float32.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if (dtype is not None and found is None) or (
        found is not None and found not in DTYPES.values()
    ):
        raise InputError(
            f"`dtype` must be float32 or float64, got {dtype}: lower precision does "
            "not resolve forces"
        )
    return found


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Undo what a caller may have switched on: inference mode and lower precision."""
    with (
        torch.inference_mode(mode=False),
        torch.autocast(device.type, enabled=False),
    ):
        yield

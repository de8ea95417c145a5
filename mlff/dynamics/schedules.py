"""Targets of thermostats and barostats: one value, one per system, or a schedule.

A target is a number, a sequence with one number for each system, or a function of the
time in fs that returns either. :class:`Ramp` is such a function that a run file and a
trajectory can hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlff.errors import InputError

#: A number, one per system, or a function of the time in fs that gives either.
Target = float | Sequence[float] | Callable[[float], float | Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Straight lines between points in time; constant before and after.

    Attributes:
        times_fs: ascending, fs.
        values: of the target at these times, in its unit.
    """

    times_fs: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        times, values = self.times_fs, self.values
        if len(times) != len(values) or len(times) == 0:
            raise InputError(
                f"`values` must be one for each of the {len(times)} `times_fs`, got "
                f"{len(values)}"
            )
        if not np.isfinite([*times, *values]).all():
            raise InputError("`times_fs` and `values` must be finite")
        if (np.diff(times) <= 0).any():
            raise InputError(f"`times_fs` must ascend, got {times}")

    def __call__(self, time_fs: float) -> float:
        """Return the value at a time."""
        return float(np.interp(time_fs, self.times_fs, self.values))


def at_time(target: Target, time_fs: float, device: torch.device) -> Tensor | float:
    """Return a target at a time: a number, or (n_systems,) float64 on the device."""
    value = target(time_fs) if callable(target) else target
    if np.ndim(value) == 0:
        return float(value)  # type: ignore[arg-type]
    return _on_device(tuple(np.asarray(value, float).tolist()), device)


@lru_cache(maxsize=32)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Kept, so that a step copies nothing from the host.
    return torch.tensor(values, dtype=torch.float64, device=device)


def check_target(
    target: Target, n_systems: int, name: str, *, lowest: float | None = 0.0
) -> None:
    """Raise unless a target has a usable value at the start for every system.

    Args:
        target: what to check, at time 0 if it is a function.
        n_systems: systems that need a value.
        name: of the argument, for the error.
        lowest: values must lie above; ``None`` allows any.

    Raises:
        InputError: not a number, not finite, too low, or the wrong count.
    """
    value = target(0.0) if callable(target) else target
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`{name}` must be a number, one per system or a function of the time in "
            f"fs, got {value!r}"
        ) from error
    if array.ndim > 1 or (array.ndim == 1 and len(array) != n_systems):
        raise InputError(
            f"`{name}` must be one value or one per system ({n_systems}), got shape "
            f"{array.shape}"
        )
    if not np.isfinite(array).all() or (lowest is not None and (array < lowest).any()):
        needed = "finite" if lowest is None else f"finite and at least {lowest:g}"
        raise InputError(f"`{name}` must be {needed}, got {value!r}")


# Where a function is looked at, fs: it has no other description.
_SAMPLED_FS = (0.0, *(10.0**k for k in range(7)))


def described(target: Any) -> Any:
    """Return a target as JSON types, so that a resumed run can be held against it.

    A function other than :class:`Ramp` is described by some of its values.
    """
    if isinstance(target, Ramp):
        return {"times_fs": list(target.times_fs), "values": list(target.values)}
    if callable(target):
        values = [np.asarray(target(t), float).tolist() for t in _SAMPLED_FS]
        return {"function": values}
    return np.asarray(target, float).tolist()

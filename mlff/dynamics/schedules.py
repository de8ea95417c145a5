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
        try:
            times, values = (
                tuple(float(x) for x in points)
                for points in (self.times_fs, self.values)
            )
        except (TypeError, ValueError) as error:
            raise InputError(
                "`times_fs` and `values` must be sequences of numbers, got "
                f"{self.times_fs!r} and {self.values!r}"
            ) from error
        # Floats of Python, which a trajectory can hold.
        object.__setattr__(self, "times_fs", times)
        object.__setattr__(self, "values", values)
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


def at_time(
    target: Target,
    time_fs: float,
    like: Tensor,
    name: str,
    *,
    lowest: float | None = 0.0,
) -> Tensor | float:
    """Return a target at a time: a number, or (n_systems,) float64 on the device.

    Args:
        target: checked by :func:`check_target`.
        time_fs: fs.
        like: anything (n_systems, …) on the device.
        name: of the argument, for the error.
        lowest: as there.

    Raises:
        InputError: a function returns what cannot be.
    """
    device = like.device
    value: Any = target
    if callable(target):
        value = target(time_fs)
        _check_value(value, len(like), f"{name}` at {time_fs:g} fs", lowest)
    if np.ndim(value) == 0:
        return float(value)
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
    _check_value(value, n_systems, f"{name}`", lowest)


def _check_value(value: Any, n_systems: int, name: str, lowest: float | None) -> None:
    wrong = InputError(
        f"`{name} must be a number, one per system or a function of the time in fs, "
        f"got {value!r}"
    )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise wrong from error
    if array.dtype.kind not in "iuf":
        raise wrong
    if array.ndim > 1 or (array.ndim == 1 and len(array) != n_systems):
        raise InputError(
            f"`{name} must be one value or one per system ({n_systems}), got shape "
            f"{array.shape}"
        )
    if not np.isfinite(array).all() or (lowest is not None and (array < lowest).any()):
        needed = "finite" if lowest is None else f"finite and at least {lowest:g}"
        raise InputError(f"`{name} must be {needed}, got {value!r}")


# Where a function is looked at, fs: it has no other description.
_SAMPLED_FS = (0.0, *(10.0**k for k in range(7)))


def _sample(function: Callable[[float], Any], time_fs: float) -> Any:
    # A function need not be defined where the run does not come; and what is no number
    # would not equal itself when the run is resumed.
    try:
        value = np.asarray(function(time_fs), float)
    except Exception:
        return None
    return value.tolist() if np.isfinite(value).all() else None


def described(target: Any) -> Any:
    """Return a target as JSON types, so that a resumed run can be held against it.

    A function other than :class:`Ramp` is described by some of its values.
    """
    if isinstance(target, Ramp):
        return {"times_fs": list(target.times_fs), "values": list(target.values)}
    if callable(target):
        return {"function": [_sample(target, time_fs) for time_fs in _SAMPLED_FS]}
    return np.asarray(target, float).tolist()

"""Trajectories in memory, and batches of starts and targets cut from them."""

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mlff.errors import DataError, InputError

_FORMAT = "mlff-nbody"
# What reading an archive raises that is another file or damaged.
_NO_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, KeyError),
    *(EOFError, OSError, RuntimeError),
)
_KEYS = ("positions", "velocities", "charges")

#: Name of the trivial answer that results are shown beside.
STRAIGHT = "best x + a v"

_Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Starts and targets, all particles of all systems behind one another.

    Attributes:
        positions: where particles start, (n, 3).
        velocities: how fast, (n, 3).
        charges: ±1, (n,).
        displacements: how far they come, (n, 3).
        accelerations: change of their velocities, (n, 3).
    """

    positions: Tensor
    velocities: Tensor
    charges: Tensor
    displacements: Tensor
    accelerations: Tensor

    def split(self, n_particles: int) -> Iterator[Self]:
        """Yield consecutive parts of so many particles."""
        parts = [getattr(self, f.name).split(n_particles) for f in fields(self)]
        for tensors in zip(*parts, strict=True):
            names = (f.name for f in fields(self))
            yield type(self)(**dict(zip(names, tensors, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Some trajectories at the frames that were kept.

    Attributes:
        positions: (n_systems, n_frames, n_particles, 3).
        velocities: (n_systems, n_frames, n_particles, 3).
        charges: (n_systems, n_particles), ±1.
        horizon: a target lies this many frames after its start.
    """

    positions: Tensor
    velocities: Tensor
    charges: Tensor
    horizon: int

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def n_starts(self) -> int:
        """Number of frames that have a target."""
        return self.positions.shape[1] - self.horizon

    @property
    def n_particles(self) -> int:
        """Particles of a system."""
        return self.positions.shape[2]

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Return these trajectories on a device, in a precision."""
        return type(self)(
            positions=self.positions.to(device, dtype),
            velocities=self.velocities.to(device, dtype),
            charges=self.charges.to(device, dtype),
            horizon=self.horizon,
        )

    def windows(self, systems: Tensor, starts: Tensor) -> Windows:
        """Cut one window out of each of some systems.

        Args:
            systems: which, (n,).
            starts: first frame of each window, (n,).
        """
        ends = starts + self.horizon
        x, v = self.positions[systems, starts], self.velocities[systems, starts]
        moved = self.positions[systems, ends] - x
        changed = self.velocities[systems, ends] - v
        return Windows(
            positions=x.flatten(0, 1),
            velocities=v.flatten(0, 1),
            charges=self.charges[systems].flatten(),
            displacements=moved.flatten(0, 1),
            accelerations=changed.flatten(0, 1),
        )

    def first_windows(self) -> Windows:
        """Return the first window of every system, in order."""
        systems = torch.arange(len(self), device=self.positions.device)
        return self.windows(systems, torch.zeros_like(systems))


@dataclass(frozen=True, kw_only=True)
class NBodyData:
    """A data file.

    Attributes:
        train: what to learn from.
        validation: what chooses the best weights; ``None`` if the variant has none.
        test: what is measured on.
        meta: what the file says about itself.
        sha256: of the file.
    """

    train: Trajectories
    validation: Trajectories | None
    test: Trajectories
    meta: dict[str, Any]
    sha256: str


def load_nbody(path: str | Path, variant: str) -> NBodyData:
    """Read a file that ``data_gen/nbody.py`` wrote.

    Args:
        path: the file.
        variant: which variant of the task it must hold.

    Raises:
        InputError: no such file.
        DataError: not such a file, an incomplete one, another variant, or numbers that
            are not finite.
    """
    make = f"make it with `python data_gen/nbody.py {variant} --out {path}`"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read `data`={path}: {error.strerror}; {make}"
        ) from error
    try:
        arrays, meta = _unpacked(content)
    except _NO_ARCHIVE as error:
        raise DataError(f"`data`={path} is not an N-body data file; {make}") from error
    for wrong in _complaints(arrays, meta):
        raise DataError(f"`data`={path}: {wrong}; {make}")
    if meta["variant"] != variant:
        raise DataError(
            f"`data`={path} holds variant {meta['variant']!r}, but `variant` is "
            f"{variant!r}; name the other file, or {make}"
        )
    parts = {
        name: Trajectories(
            **{key: torch.from_numpy(arrays[f"{name}_{key}"]) for key in _KEYS},
            horizon=meta["horizon"][name],
        )
        for name in _parts_of(arrays, meta)
    }
    return NBodyData(
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"],
        meta=meta,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _unpacked(content: bytes) -> tuple[_Arrays, dict[str, Any]]:
    """Return arrays and meta of a file.

    Raises:
        ValueError: another file, or one of several that reading an archive raises.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("no archive")
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise ValueError("another format")
    return arrays, meta


def _parts_of(arrays: _Arrays, meta: dict[str, Any]) -> list[str]:
    """Return the parts that a file must have, or has begun to have."""
    begun = {name.partition("_")[0] for name in (*arrays, *meta["horizon"])}
    return ["train", *({"validation"} & begun), "test"]


def _complaints(arrays: _Arrays, meta: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a file; what follows relies on what came before."""
    for key in ("variant", "horizon", "baselines"):
        if key not in meta:
            yield f"`{key}` is missing in its meta"
    for key in ("horizon", "baselines"):
        if not isinstance(meta[key], dict):
            yield f"`{key}` in its meta must be a table, got {meta[key]!r}"
    for key in {STRAIGHT: None, **meta["baselines"]}:
        value = meta["baselines"].get(key)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"`baselines` in its meta needs a number for {key!r}, got {value!r}"
    for name in _parts_of(arrays, meta):
        yield from _complaints_of_part(name, arrays, meta["horizon"].get(name))


def _complaints_of_part(name: str, arrays: _Arrays, horizon: Any) -> Iterator[str]:
    for key in _KEYS:
        array = arrays.get(f"{name}_{key}")
        if array is None:
            yield f"the array {name}_{key} is missing"
        elif array.dtype not in (np.float32, np.float64):
            yield f"{name}_{key} must be of float32 or float64, got {array.dtype}"
        elif not np.isfinite(array).all():
            yield f"{name} {key} are not all finite"
    x, v, charges = (arrays[f"{name}_{key}"] for key in _KEYS)
    shape = x.shape
    if len(shape) != 4 or shape[3] != 3 or shape[0] < 1 or shape[2] < 2:
        yield (
            f"{name}_positions must have the shape (systems ≥ 1, frames, particles ≥ 2,"
            f" 3), got {shape}"
        )
    for key, array, needed in (
        ("velocities", v, shape),
        ("charges", charges, (shape[0], shape[2])),
    ):
        if array.shape != needed:
            yield (
                f"{name}_{key} must have the shape {needed}, as {name}_positions "
                f"{shape} need, got {array.shape}"
            )
    whole = isinstance(horizon, int) and not isinstance(horizon, bool)
    if not whole or not 1 <= horizon < shape[1]:
        yield (
            f"`horizon` of {name} in its meta must be an integer from 1 to less than "
            f"the {shape[1]} frames, got {horizon!r}"
        )

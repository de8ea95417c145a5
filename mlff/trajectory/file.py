"""The HDF5 file of a trajectory: what lies where, and how it stays whole.

The number of frames is known before the first one, so that everything has its place
when the file is made. After that HDF5's own structures never change: a frame is bytes
put into their places, then its checksum. Whatever moment a process dies at, the file
opens, and a frame whose checksum does not fit was not written to its end.

| in the file | content |
|---|---|
| first 4096 bytes | name, version, SHA-256 of what follows; JSON: where everything is |
| ``/systems/…`` | :class:`mlff.trajectory.layout.Layout`; settings of the run as JSON |
| ``/frames/…`` | one row per :class:`mlff.trajectory.layout.Frame` |
| ``/frames/checksum`` | 2^32 + CRC-32 of index and rows; 0 where no frame is yet |

Any HDF5 program reads it (the first bytes are a "user block" to it). Here HDF5 only
makes the file: a library that may crash or hang when a disk is full or a bit has
flipped has no place in a run that must not end.
"""

import hashlib
import json
import math
import operator
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlff.errors import DataError, InputError, MlffWarning
from mlff.trajectory.guard import Writes, named
from mlff.trajectory.layout import (
    FRAMES,
    SYSTEMS,
    Array,
    Frame,
    Kind,
    Layout,
    check_header,
)

FORMAT, VERSION = "mlff-trajectory", 1

#: Bytes that are read or copied at a time.
BLOCK = 2**24

# Rows below this are read whole even where a part of them is wanted.
_SMALL_ROW = 2**16

_MARK = 1 << 32

# Bytes before HDF5's own, and how they begin.
_HEAD = 4096
_FIRST_LINE = re.compile(rb"mlff-trajectory ([0-9]{1,9}) ([0-9a-f]{64})\n")

# What reading raises if the first bytes are not what was written.
_BROKEN = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    OSError,
)

_ARRAYS = (*SYSTEMS, "ptr")


@dataclass(frozen=True)
class Column:
    """One quantity of all frames: equal rows, one after the other, in the file.

    Attributes:
        offset: where the first row begins, bytes.
        dtype: of its numbers.
        shape: of one row.
    """

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape)

    def write(self, file: int, row: int, values: Array) -> None:
        """Write consecutive rows, from index ``row`` on."""
        left = as_bytes(values)
        place = self.offset + row * self.row_bytes
        while left:
            done = os.pwrite(file, left, place)
            left, place = left[done:], place + done

    def read(self, file: int, start: int, stop: int) -> Array:
        """Return rows ``start`` … ``stop - 1``, (stop - start, *shape)."""
        out = np.empty((stop - start, *self.shape), self.dtype)
        _read(file, out, self.offset + start * self.row_bytes)
        return out

    def read_part(
        self, file: int, start: int, stop: int, first: int, last: int
    ) -> Array:
        """Return elements ``first`` … ``last - 1`` of these rows.

        Returns:
            (stop - start, last - first, *shape[1:]).
        """
        out = np.empty((stop - start, last - first, *self.shape[1:]), self.dtype)
        row_bytes = self.row_bytes
        if row_bytes > _SMALL_ROW:
            skip = self.offset + first * (row_bytes // self.shape[0])
            for row in range(start, stop):
                _read(file, out[row - start], skip + row * row_bytes)
        else:
            for a, b in blocks(start, stop, row_bytes):
                out[a - start : b - start] = self.read(file, a, b)[:, first:last]
        return out


def as_bytes(values: Array) -> memoryview:
    """Return the bytes of an array whose numbers lie in order; nothing is copied."""
    return values.reshape(-1).view(np.uint8).data


def _read(file: int, out: Array, place: int) -> None:
    left = as_bytes(out)
    while left:
        piece = os.pread(file, min(len(left), BLOCK), place)
        if not piece:
            raise DataError("a trajectory was cut while it was being read")
        left[: len(piece)] = piece
        left, place = left[len(piece) :], place + len(piece)


def blocks(
    start: int, stop: int, row_bytes: int, limit: int = BLOCK
) -> Iterator[tuple[int, int]]:
    """Yield ranges that cover start … stop, each of at most ``limit`` bytes or one."""
    size = max(1, limit // max(1, row_bytes))
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


@dataclass(frozen=True)
class Content:
    """All that a trajectory file holds beside the frames, and where these are.

    Attributes:
        layout: the systems.
        header: settings of the run.
        capacity: number of frames that the file has room for.
        columns: by name, those of :meth:`Layout.frame_shapes`.
        marks: the column of checksums.
    """

    layout: Layout
    header: dict[str, Any]
    capacity: int
    columns: dict[str, Column]
    marks: Column

    def frame(self, file: int, index: int) -> Frame:
        """Read a frame."""
        layout = self.layout
        content: dict[str, Any] = {
            "cell": layout.cell.copy(),
            "state_energies": np.zeros((layout.n_systems, 0)),
        }
        for name, column in self.columns.items():
            content[name] = column.read(file, index, index + 1)[0]
        return Frame(**{**content, "step": int(content["step"])})

    def traces(self, file: int, start: int) -> tuple[Array, Array]:
        """Return marks and steps from a frame on: zeros where none ever was."""
        start = min(start, self.capacity)
        step = self.columns["step"]
        return (
            self.marks.read(file, start, self.capacity),
            step.read(file, start, self.capacity),
        )

    def forget(self, file: int, start: int) -> None:
        """Take the traces of all frames from ``start`` on away."""
        marks, steps = self.traces(file, start)
        if marks.any() or steps.any():
            self.marks.write(file, start, np.zeros_like(marks))
            self.columns["step"].write(file, start, np.zeros_like(steps))
            os.fsync(file)

    def whole(self, file: int) -> Array:
        """Return which frames are whole, (capacity,), bool; reads all of them."""
        marks = self.marks.read(file, 0, self.capacity)
        found = np.zeros(self.capacity, bool)
        end = int(np.flatnonzero(marks)[-1]) + 1 if marks.any() else 0
        for start, stop in blocks(0, end, self.layout.frame_bytes):
            parts = (c.read(file, start, stop) for c in self.columns.values())
            rows = np.concatenate(
                [p.reshape(stop - start, -1).view(np.uint8) for p in parts], axis=1
            )
            for index, row in enumerate(rows, start):
                found[index] = marks[index] == checksum(index, [row.data])
        return found


def checksum(index: int, rows: Iterable[memoryview]) -> int:
    """Return what marks a frame as whole.

    Args:
        index: of the frame.
        rows: bytes of its rows, in the order of :meth:`Layout.frame_shapes`.
    """
    found = zlib.crc32(index.to_bytes(8, "little"))
    for row in rows:
        found = zlib.crc32(row, found)
    return _MARK | found


def count_whole(path: Path, content: Content, file: int) -> int:
    """Return the number of whole frames before the first that is not.

    Warns:
        MlffWarning: others come after it: the file was damaged, not just cut off.
    """
    whole = content.whole(file)
    count = content.capacity if whole.all() else int(np.argmin(whole))
    marks, steps = content.traces(file, count + 1)
    later = int(((marks != 0) | (steps != 0)).sum())
    if later:
        warnings.warn(
            f"{path} is damaged: frame {count} is not what was written; {count} whole "
            f"frames before it are kept, {later} after it are not used, and resuming "
            "the run makes them again",
            MlffWarning,
            stacklevel=3,
        )
    return count


def make_file(
    path: Path, layout: Layout, header: dict[str, Any], capacity: int
) -> None:
    """Make a file with room for frames and none in it; equal input, equal bytes.

    Raises:
        InputError: a header that JSON cannot hold.
        OSError: names the path.
    """
    try:
        text = json.dumps(header).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"`header` holds what JSON cannot: {error}") from error
    made = Writes()
    index, parts = _fill(made, layout, text, capacity)
    head = f"{FORMAT} {VERSION} {_digest(index, parts)}\n".encode() + index
    made.log.append((0, head.ljust(_HEAD - 1) + b"\n"))
    try:
        with path.open("wb") as file:
            for place, data in made.log:
                file.seek(place)
                file.write(data)
            file.truncate(made.size)
    except OSError as error:
        raise named(error, path) from error


def _fill(
    target: Writes, layout: Layout, header: bytes, capacity: int
) -> tuple[bytes, list[bytes]]:
    """Make the HDF5 file; return the index and the content of what it has checked."""
    shapes = {**layout.frame_shapes(), "checksum": (np.dtype("<u8"), ())}
    units = {name: kind.unit for name, kind in {**SYSTEMS, **FRAMES}.items()}
    systems = {name: getattr(layout, name) for name in _ARRAYS}
    systems["states"] = np.array(layout.states, "<i8").reshape(-1, 2)
    systems["names"] = np.bytes_(json.dumps(layout.names))
    systems["header"] = np.bytes_(header)
    # Room is taken at once and never filled: on most file systems it costs nothing
    # until a frame is there.
    reserved = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    reserved.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    reserved.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    index: dict[str, Any] = {"capacity": int(capacity), "systems": {}, "frames": {}}
    with h5py.File(
        target,
        "w",
        libver=("v110", "v110"),
        userblock_size=_HEAD,
        alignment_threshold=1,
        alignment_interval=8,
    ) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        for name, array in systems.items():
            made = file.create_dataset(f"systems/{name}", data=array, track_times=False)
            made.attrs["unit"] = units.get(name, "")
            index["systems"][name] = [made.id.get_offset() or 0, array.nbytes]
        for name, (dtype, shape) in shapes.items():
            made = file.create_dataset(
                f"frames/{name}",
                (capacity, *shape),
                dtype,
                dcpl=reserved.copy(),
                track_times=False,
            )
            made.attrs["unit"] = units.get(name, "")
            index["frames"][name] = made.id.get_offset()
    return json.dumps(index).encode(), [array.tobytes() for array in systems.values()]


def read_content(path: Path, file: int) -> Content:
    """Read what a file holds beside frames, verified.

    Args:
        path: what it is called in errors.
        file: descriptor of the file.

    Raises:
        DataError: damaged, foreign or too new.
    """
    size = os.fstat(file).st_size
    head = os.pread(file, _HEAD, 0)
    found = _FIRST_LINE.match(head)
    if found is None or len(head) < _HEAD:
        raise DataError(f"{path} is not a trajectory of mlff")
    if int(found[1]) != VERSION:
        raise DataError(
            f"{path} has version {int(found[1])} of the format, this mlff reads "
            f"{VERSION}: install a newer one"
        )
    try:
        text = head[found.end() :].rstrip()
        index = json.loads(text)
        places = index["systems"]
        if sum(count for _, count in places.values()) > size:
            raise ValueError("it is cut off")
        parts = {name: _bytes(file, *place) for name, place in places.items()}
        if _digest(text, list(parts.values())) != found[2].decode():
            raise ValueError("its SHA-256 differs from the one stored")
        content = _content(index, parts)
        if content.capacity < 1:
            raise ValueError("it has room for no frame")
        for column in (*content.columns.values(), content.marks):
            end = column.offset + content.capacity * column.row_bytes
            if not _HEAD <= column.offset <= end <= size:
                raise ValueError("it is cut off")
    except _BROKEN as error:
        raise DataError(
            f"{path} is damaged: {error}; copy it again from where it came"
        ) from error
    return content


def _content(index: dict[str, Any], parts: dict[str, bytes]) -> Content:
    arrays: dict[str, Any] = {}
    for name in _ARRAYS:
        kind = SYSTEMS.get(name, Kind("", (), "<i8"))
        array = np.frombuffer(parts[name], kind.dtype)
        arrays[name] = array.reshape(-1, *kind.tail)
    states = np.frombuffer(parts["states"], "<i8").reshape(-1, 2)
    layout = Layout(
        **arrays,
        names=json.loads(parts["names"]),
        states=tuple((int(q), int(m)) for q, m in states),
        variable_cell="cell" in index["frames"],
    )
    header = json.loads(parts["header"])
    check_header(header)
    offsets = index["frames"]
    shapes = {**layout.frame_shapes(), "checksum": (np.dtype("<u8"), ())}
    columns = {
        name: Column(operator.index(offsets[name]), *shape)
        for name, shape in shapes.items()
    }
    marks = columns.pop("checksum")
    return Content(layout, header, operator.index(index["capacity"]), columns, marks)


def _bytes(file: int, place: int, count: int) -> bytes:
    out = np.empty(count, np.uint8)
    _read(file, out, place)
    return out.tobytes()


def _digest(index: bytes, parts: list[bytes]) -> str:
    found = hashlib.sha256(index)
    for part in parts:
        found.update(part)
    return found.hexdigest()

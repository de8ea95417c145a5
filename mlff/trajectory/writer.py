"""Writing trajectories: one writer at a time, every frame whole or not there.

A frame is on its way to the disk when :meth:`TrajectoryWriter.append` returns: the
death of the process cannot take it back. Against the death of the machine the file is
synchronized every :data:`SYNC_SECONDS`.
"""

import contextlib
import fcntl
import os
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mlff.errors import DataError, InputError
from mlff.trajectory.file import (
    as_bytes,
    blocks,
    checksum,
    count_whole,
    make_file,
    read_content,
)
from mlff.trajectory.guard import (
    check_room,
    lock,
    named,
    replacing,
    temporary_path,
)
from mlff.trajectory.layout import FRAMES, Array, Frame, Layout, check_header, typed

#: Most time between two synchronizations with the disk while frames come, s.
SYNC_SECONDS = 2.0

# Of temporary files: under the lock there is only one, so that it can be found again.
_TAG = "new"


class TrajectoryWriter:
    """Writes the frames of a run; made by :meth:`create` or :meth:`resume`.

    Attributes:
        path: the file.
        layout: its systems.
        header: settings of the run.
        capacity: number of frames that the file has room for.
        n_frames: number of frames in it.
    """

    def __init__(self, path: Path, resources: contextlib.ExitStack) -> None:
        self.path = path
        self._file = _opened(path)
        resources.callback(os.close, self._file)
        self._content = read_content(path, self._file)
        # HDF5 programs that read take the same kind of lock, those that write another.
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self.n_frames = count_whole(path, self._content, self._file)
        # What follows is written again, and must not pass for whole before.
        self._content.forget(self._file, self.n_frames)
        check_room(path, (self.capacity - self.n_frames) * self.layout.frame_bytes)
        self._synchronized = time.monotonic()
        self._last_step = None if self.last is None else self.last.step
        self._close = weakref.finalize(self, resources.pop_all().close)

    @classmethod
    def create(
        cls,
        path: str | Path,
        layout: Layout,
        header: dict[str, Any],
        *,
        n_frames: int,
        force: bool = False,
    ) -> Self:
        """Make a file without frames.

        Args:
            path: file to write, suffix ``.h5`` by custom.
            layout: the systems.
            header: settings of the run, as JSON types; ``timestep_fs`` among them.
            n_frames: number of frames that will come.
            force: replace an existing file.

        Raises:
            InputError: the file exists, is in use, cannot be written, or an argument
                is wrong.
            OSError: the disk has no room for so many frames, or failed.
        """
        check_header(header)
        _check_count(n_frames)
        path = Path(path).resolve()
        with contextlib.ExitStack() as stack:
            lock(path, stack)
            freed = _check_target(path, force)
            check_room(path, n_frames * layout.frame_bytes - freed)
            with replacing(path, _TAG) as temporary:
                make_file(temporary, layout, header, n_frames)
            return cls(path, stack)

    @classmethod
    def resume(cls, path: str | Path, n_frames: int | None = None) -> Self:
        """Open a file to go on after its last whole frame.

        Args:
            path: what :meth:`create` made.
            n_frames: number of frames that it must have room for, those that it has
                included; with less, it is copied into a larger one first.

        Raises:
            DataError: no such file, or one that is damaged or foreign.
            InputError: it is in use or cannot be written.
            OSError: the disk has no room for so many frames, or failed.

        Warns:
            MlffWarning: a damaged frame is followed by whole ones.
        """
        path = Path(path).resolve()
        with contextlib.ExitStack() as stack:
            lock(path, stack)
            # What a process left that died while it made or copied the file.
            temporary_path(path, _TAG).unlink(missing_ok=True)
            if n_frames is not None:
                _check_count(n_frames)
                _extend(path, n_frames)
            return cls(path, stack)

    @property
    def layout(self) -> Layout:
        """The systems."""
        return self._content.layout

    @property
    def header(self) -> dict[str, Any]:
        """Settings of the run."""
        return self._content.header

    @property
    def capacity(self) -> int:
        """Number of frames that the file has room for."""
        return self._content.capacity

    @property
    def last(self) -> Frame | None:
        """The last frame, read from the file; ``None`` if there is none."""
        if self.n_frames == 0:
            return None
        return self._content.frame(self._file, self.n_frames - 1)

    def append(self, frame: Frame) -> None:
        """Write a frame.

        Args:
            frame: of the same systems, later than the one before.

        Raises:
            InputError: the file is full, or the frame does not fit.
            OSError: the disk is full or failed; what was written before is safe, and
                the call may be repeated.
        """
        rows = self._rows(frame)
        found = checksum(self.n_frames, map(as_bytes, rows.values()))
        mark = np.array([found], "<u8")
        try:
            for name, column in self._content.columns.items():
                column.write(self._file, self.n_frames, rows[name])
            # Last, and only then is the frame there.
            self._content.marks.write(self._file, self.n_frames, mark)
        except OSError as error:
            raise self._named(error) from error
        self.n_frames += 1
        self._last_step = frame.step
        if time.monotonic() - self._synchronized > SYNC_SECONDS:
            self.synchronize()

    def synchronize(self) -> None:
        """Wait until all frames are on the disk.

        Raises:
            OSError: the disk is full or failed.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._named(error) from error
        self._synchronized = time.monotonic()

    def close(self) -> None:
        """Synchronize, and let others write the file."""
        if self._close.alive:
            try:
                self.synchronize()
            finally:
                self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _rows(self, frame: Frame) -> dict[str, Array]:
        """Return what a frame puts into the columns, checked."""
        if not self._close.alive:
            raise InputError(f"{self.path} was closed; resume it to write more")
        if self.n_frames == self.capacity:
            raise InputError(
                f"{self.path} is full: it was made for {self.capacity} frames; go on "
                "with TrajectoryWriter.resume(path, n_frames=...)"
            )
        if self._last_step is not None and frame.step <= self._last_step:
            raise InputError(
                f"`frame.step` must rise: {frame.step} comes after {self._last_step}"
            )
        rows = {}
        for name, column in self._content.columns.items():
            row = typed(getattr(frame, name), FRAMES[name].dtype, f"frame.{name}")
            if row.shape != column.shape:
                raise InputError(
                    f"`frame.{name}` must have shape {column.shape}, got {row.shape}"
                )
            rows[name] = row
        return rows

    def _named(self, error: OSError) -> OSError:
        return named(
            error,
            self.path,
            f"; {self.n_frames} frames are in the file: make room and resume the run",
        )


def _check_count(n_frames: Any) -> None:
    if not isinstance(n_frames, (int, np.integer)) or n_frames < 1:
        raise InputError(f"`n_frames` must be an integer ≥ 1, got {n_frames!r}")


def _check_target(path: Path, force: bool) -> int:
    """Raise if a file must not be replaced; return the bytes that replacing frees."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if not path.exists():
        return 0
    if not force:
        raise InputError(
            f"{path} exists; resume the run in it, replace it (force), or write "
            "elsewhere"
        )
    return path.stat().st_blocks * 512


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file to resume") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _extend(path: Path, n_frames: int) -> None:
    """Replace a file by one with room for more frames, if it has too little."""
    with contextlib.ExitStack() as stack:
        source = _opened(path)
        stack.callback(os.close, source)
        old = read_content(path, source)
        if old.capacity >= n_frames:
            return
        count = count_whole(path, old, source)
        # The copy, and then the frames to come where the old file was.
        most = max(count, n_frames - count)
        check_room(path, most * old.layout.frame_bytes)
        with replacing(path, _TAG) as temporary:
            make_file(temporary, old.layout, old.header, n_frames)
            target = _opened(temporary)
            stack.callback(os.close, target)
            new = read_content(temporary, target)
            pairs = [(old.columns[name], c) for name, c in new.columns.items()]
            for before, after in (*pairs, (old.marks, new.marks)):
                for start, stop in blocks(0, count, before.row_bytes):
                    after.write(target, start, before.read(source, start, stop))

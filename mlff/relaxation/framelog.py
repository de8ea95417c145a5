"""An append-only file of finished frames that survives any kill.

Extended XYZ, as ASE writes it, so that other programs read it at any moment. Frames are
on the disk before :meth:`FrameLog.append` returns; one that a kill tore is cut off when
the file is opened again. Positions and forces have eight decimals.
"""

import contextlib
import fcntl
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

from mlff.errors import InputError, MlffWarning
from mlff.frames import read_frames

_SUFFIXES = (".xyz", ".extxyz")


class FrameLog:
    """A file of frames that grows.

    Opening takes an exclusive lock, which the system releases with the process.

    Args:
        path: extended XYZ, suffix ``.xyz`` or ``.extxyz``; created if missing.
        resume: keep the whole frames that are there, and go on behind them.
        overwrite: begin anew even if the file holds something.

    Attributes:
        frames: what was there.
        torn: how what follows them begins; :meth:`begin` cuts it off.

    Raises:
        InputError: another suffix, a file that cannot be written, that another process
            holds, that is not extended XYZ, or that holds something, unless told what
            to do with it.
    """

    def __init__(
        self, path: Path, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.path = path
        self.frames: list[Atoms] = []
        self.torn = b""
        if path.suffix.lower() not in _SUFFIXES:
            raise InputError(f"`out` must end in .xyz or .extxyz, got {str(path)!r}")
        try:
            # Unbuffered: after a failed write nothing is left to be written later.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        try:
            self._open(resume, overwrite)
        except BaseException:
            self._file.close()
            raise

    def _open(self, resume: bool, overwrite: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{self.path} is in use by another run; wait for it, or write elsewhere"
            ) from error
        self._size = 0
        if resume:
            self._file.seek(0)
            self._size = _whole(self.path, self._file)
        elif self.path.stat().st_size and not overwrite:
            raise InputError(
                f"{self.path} exists; resume it, overwrite it, or write elsewhere"
            )
        if self._size:
            with warnings.catch_warnings():
                # Of a torn frame, which is made again.
                warnings.simplefilter("ignore", MlffWarning)
                self.frames = read_frames(self.path, "extxyz")
        if resume:
            self.torn = os.pread(self._file.fileno(), 4096, self._size)

    def begin(self) -> None:
        """Cut off what no whole frame is, before the first that comes."""
        self._file.truncate(self._size)

    def append(self, frames: Sequence[Atoms]) -> None:
        """Write frames and wait until they are on the disk.

        Raises:
            OSError: the disk is full or failed; earlier frames are safe.
        """
        self.begin()
        content = memoryview(_formatted(frames))
        written = 0
        try:
            while written < len(content):
                written += self._file.write(content[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise type(error)(
                error.errno,
                f"{error.strerror}; what was finished before is safe, resume to go on",
                str(self.path),
            ) from error
        self._size += len(content)

    def __enter__(self) -> "FrameLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def check_frame(frame: Atoms, name: str) -> None:
    """Raise if a frame is one that extended XYZ cannot hold.

    Args:
        frame: with its charge and spin in ``info``.
        name: what it is called in the error.

    Raises:
        InputError: says why.
    """
    try:
        content = _formatted([frame]).decode()
        (back,) = read(io.StringIO(content), ":", format="extxyz")
        whole = content.count("\n") == len(frame) + 2
        if not (whole and np.array_equal(back.numbers, frame.numbers)):
            raise ValueError("it is not read back as it was written")
        for key in ("charge", "spin"):
            if back.info.get(key) != frame.info.get(key):
                raise ValueError(f"`{key}` is not read back as it was written")
    except Exception as error:  # ASE raises whatever its formatting steps raise
        raise InputError(
            f"{name}: extended XYZ cannot hold its `info` or arrays: {error}; "
            "remove what it names, or give no file"
        ) from error


def _formatted(frames: Sequence[Atoms]) -> bytes:
    text = io.StringIO()
    write(text, list(frames), format="extxyz")
    return text.getvalue().encode()


def _whole(path: Path, lines: Iterable[bytes]) -> int:
    """Return the length of all whole frames, bytes."""
    end = offset = left = 0
    for line in lines:
        if not line.endswith(b"\n"):
            break
        if left == 0:
            if not line.strip().isdigit():
                raise InputError(
                    f"{path} is not extended XYZ: a frame starts with its number of "
                    f"atoms, got {line[:40]!r}; write elsewhere"
                )
            left = int(line) + 2
        offset += len(line)
        left -= 1
        if left == 0:
            end = offset
    return end

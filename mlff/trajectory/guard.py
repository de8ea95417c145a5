"""Files that one process at a time writes and that are replaced whole."""

import contextlib
import errno
import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlff.errors import InputError

# What a file system says that knows no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(path: Path, stack: contextlib.ExitStack) -> None:
    """Hold the only right to write a file until the stack is closed.

    It is a lock on an empty file beside it. The system frees it with the process,
    however that ends; what remains of the file then hinders nobody.
    """
    beside = path.with_name(f".{path.name}.lock")
    held = None
    while held is None:
        held = _locked(beside, path)
    process = os.getpid()

    def release(file: int) -> None:
        if os.getpid() == process:  # not in a child that has only inherited it
            beside.unlink(missing_ok=True)
        os.close(file)

    stack.callback(release, held)


def _locked(beside: Path, path: Path) -> int | None:
    try:
        file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(file)
            raise InputError(
                f"{path} is in use by another run; wait for it, or write elsewhere"
            ) from error
    # The holder before may have removed it between opening and locking.
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file), os.stat(beside)):
            return file
    os.close(file)
    return None


@contextlib.contextmanager
def replacing(path: Path, tag: str) -> Iterator[Path]:
    """Give a temporary path whose file becomes ``path`` if all goes well.

    Args:
        path: file to write or replace; at every moment the old or the new one is whole.
        tag: tells the temporary file from those of others that write ``path``.

    Raises:
        OSError: names the path; the old file is intact.
    """
    temporary = temporary_path(path, tag)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def temporary_path(path: Path, tag: str) -> Path:
    """Return where :func:`replacing` lets write."""
    return path.with_name(f".{path.name}.{tag}.part")


def named(error: OSError, path: Path, hint: str = "") -> OSError:
    """Return an error of the same kind that names the file."""
    text = f"{error.strerror or error}{hint}"
    return type(error)(error.errno, text, str(path))


def check_room(path: Path, needed: int) -> None:
    """Raise before a run what the disk would say in its middle."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the frames need {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; "
            "record fewer, or write elsewhere",
            str(path),
        )


class Writes(io.RawIOBase):
    """A file in memory: a list of what was written where, and its size.

    HDF5 makes a trajectory in it, because HDF5 ends the process when a disk is full.
    Room for frames that nothing was written to takes no memory.

    Attributes:
        log: place and bytes of each write, in order.
        size: of the file, bytes.
    """

    def __init__(self) -> None:
        self.log: list[tuple[int, bytes]] = []
        self.size = self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place and return it."""
        self._at = offset + {0: 0, 1: self._at, 2: self.size}[whence]
        return self._at

    def write(self, data: Any) -> int:
        """Note bytes at this place."""
        self.log.append((self._at, bytes(data)))
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what was written last; with zeros elsewhere."""
        view = memoryview(buffer)
        view[:] = bytes(len(view))
        for place, data in self.log:
            first = max(place, self._at)
            last = min(place + len(data), self._at + len(view))
            if first < last:
                piece = data[first - place : last - place]
                view[first - self._at : last - self._at] = piece
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self.size = self._at if size is None else size
        return self.size

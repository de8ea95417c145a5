"""An append-only file of finished work that survives any kill.

One line per record: the first 16 digits of the SHA-256 of the body, a space, the body
as JSON. A line is on the disk before :meth:`Journal.append` returns; one that a kill
tore is cut off when the journal is opened again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from mlff.errors import InputError


class Journal:
    """Records keyed by the hash of what they are the result of.

    Opening takes an exclusive lock, which the system releases with the process, and
    removes a torn last line. Of several records with one hash the last counts.

    Args:
        path: created if missing.

    Attributes:
        path: the file.
        records: what it holds, by ``record["hash"]``.

    Raises:
        InputError: the file cannot be written, another process holds it, or a whole
            line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        try:
            # Unbuffered: after a failed write nothing is left to be written later.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except OSError as error:
            self._file.close()
            raise InputError(
                f"{path} is in use by another run; wait for it, or write elsewhere"
            ) from error
        except InputError:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        self._size = content.rfind(b"\n") + 1
        if self._size != len(content):
            self._file.truncate(self._size)
        for number, line in enumerate(content[: self._size].splitlines(), 1):
            checksum, _, body = line.partition(b" ")
            if _checksum(body) != checksum:
                raise InputError(
                    f"{self.path}, line {number}: damaged record (checksum differs); "
                    "remove that line to have its job done again"
                )
            record = json.loads(body)
            self.records[record["hash"]] = record

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and wait until it is on the disk.

        Raises:
            OSError: the disk is full or failed; earlier records are safe.
        """
        body = json.dumps(record).encode()
        line = memoryview(_checksum(body) + b" " + body + b"\n")
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise type(error)(
                error.errno,
                f"{error.strerror}; the {len(self.records)} finished jobs are safe, "
                "run again to continue",
                str(self.path),
            ) from error
        self._size += len(line)
        self.records[record["hash"]] = record

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()

"""Reading frames from files that may be torn, hostile or simply wrong.

Knows the file formats that are allowed and what a whole frame is; knows nothing of
labels. The format follows from the suffix or is given; it is never guessed from the
content. What is read back is exactly what was written whole: a torn last frame is
dropped and counted, a number that was cut is never returned.
"""

import io
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ase.db
import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.trajectory import TrajectoryReader

from mlff.errors import DataError, MlffWarning

#: Suffix → format; no other format is read.
FORMATS = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".traj": "traj",
    ".db": "db",
    ".json": "json",
}

#: Longest line of an extended XYZ file that is read, bytes.
MAX_LINE = 2**20

#: Most atoms that the first line of a frame may announce.
MAX_ATOMS = 10**6


def read_frames(path: str | Path, format: str | None = None) -> list[Atoms]:
    """Read every whole frame of a file.

    Args:
        path: extended XYZ, ASE trajectory or ASE database (``.db``, ``.json``).
        format: ``"extxyz"``, ``"traj"``, ``"db"`` or ``"json"``; from the suffix if
            not given.

    Returns:
        The frames in file order. Rows of a database carry their key-value pairs and
        their data in ``info``.

    Raises:
        DataError: no such file, a format outside the list, a damaged frame before the
            last one, or a frame that announces more than this reader accepts.

    Warns:
        MlffWarning: a torn last frame was dropped; the text has both counts.
    """
    path = Path(path)
    format = format or FORMATS.get(path.suffix.lower(), "")
    if format not in FORMATS.values():
        known = sorted(set(FORMATS.values()))
        raise DataError(
            f"{path}: `format` must be one of {known} or follow from a suffix among "
            f"{sorted(FORMATS)}"
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if format == "extxyz":
        frames, dropped = _read_extxyz(path)
    elif format == "traj":
        frames, dropped = _read_traj(path)
    else:
        frames, dropped = _read_database(path, format), 0
    if dropped:
        warnings.warn(
            f"{path} ends in a torn frame: {len(frames)} whole frames kept, "
            f"{dropped} dropped (in extended XYZ a whole frame ends with a newline)",
            MlffWarning,
            stacklevel=2,
        )
    return frames


def _read_extxyz(path: Path) -> tuple[list[Atoms], int]:
    frames: list[Atoms] = []
    for line, text in _texts(path):
        if text is None:
            return frames, 1
        try:
            frame: Any = read(io.StringIO(text), format="extxyz", index=0)
        except Exception as error:  # ASE raises whatever its parsing steps raise
            raise DataError(
                f"{path}, frame {len(frames)} (line {line}): {error}"
            ) from error
        frames.append(frame)
    return frames, 0


def _texts(path: Path) -> Iterator[tuple[int, str | None]]:
    """Yield line number and text of each frame; ``None`` for a torn last one."""
    with path.open("rb") as file:
        lines = _lines(path, file)
        for start, header in lines:
            if not header.strip():
                continue
            torn = not header.endswith(b"\n")
            frame = [header]
            for _ in range(0 if torn else _announced(path, start, header) + 1):
                line = next(lines, (0, b""))[1]
                frame.append(line)
                torn = not line.endswith(b"\n")
                if torn:
                    break
            try:
                yield start, None if torn else b"".join(frame).decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {start}: not text: {error}") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
        if len(line) == MAX_LINE:
            raise DataError(f"{path}, line {number}: longer than {MAX_LINE} bytes")
        yield number, line


def _announced(path: Path, number: int, header: bytes) -> int:
    text = header.strip()
    if not text.isdigit() or len(text) > 9 or int(text) > MAX_ATOMS:
        raise DataError(
            f"{path}, line {number}: a frame starts with its number of atoms, at most "
            f"{MAX_ATOMS}, got {text[:40].decode(errors='replace')!r}"
        )
    return int(text)


def _read_traj(path: Path) -> tuple[list[Atoms], int]:
    try:
        reader = TrajectoryReader(str(path))
        announced = len(reader)
    except Exception as error:  # the binary reader has no error type of its own
        raise DataError(f"{path} is not a whole ASE trajectory: {error}") from error
    frames: list[Atoms] = []
    with reader:
        for index in range(announced):
            try:
                frames.append(reader[index])
            except Exception:
                break
    return frames, announced - len(frames)


def _read_database(path: Path, format: str) -> list[Atoms]:
    frames = []
    try:
        for row in ase.db.connect(str(path), type=format).select():
            atoms = row.toatoms()
            for key, value in {**row.key_value_pairs, **row.data}.items():
                atoms.info[key] = _scalar(value)
            frames.append(atoms)
    except (OSError, ValueError, KeyError, sqlite3.Error) as error:
        raise DataError(f"{path} is not a whole ASE database: {error}") from error
    return frames


def _scalar(value: Any) -> Any:
    """Older data sets store a number as an array of one."""
    one = isinstance(value, np.ndarray) and value.size == 1
    return value.item() if one else value

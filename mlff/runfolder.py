"""The folder of a training run: one process at a time, one run, files whole."""

import csv
import fcntl
import io
import json
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlff.errors import InputError, MlffWarning
from mlff.files import write_atomic

#: File that says what a run is.
RUN = "run.json"


@contextmanager
def claimed(out: Path, outputs: Sequence[str]) -> Iterator[None]:
    """Hold the folder of a run; the lock goes with the process, however it ends.

    Args:
        out: the folder, made if missing.
        outputs: names of the files that a run writes, beside :data:`RUN`.

    Raises:
        InputError: it cannot be used, or another process does.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"`out`={out} cannot be used: {error.strerror}") from error
    try:
        if not os.access(out, os.W_OK):
            raise InputError(f"`out`={out} cannot be written to; choose another")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"`out`={out} is in use by another run") from error
        for name in (RUN, *outputs):
            for left_by_a_kill in out.glob(f".{name}.*.part"):
                left_by_a_kill.unlink()
        yield
    finally:
        os.close(handle)


def read_run(
    out: Path,
    outputs: Sequence[str],
    resume: bool,
    needed: Sequence[str] = ("config", "versions"),
) -> dict[str, Any] | None:
    """Return what :data:`RUN` says, ``None`` if the folder is free.

    Args:
        out: the folder.
        outputs: names of the files that a run writes, beside :data:`RUN`.
        resume: whether a run may be there.
        needed: tables that :data:`RUN` must have; ``"a.b"`` for key b of table a.

    Raises:
        InputError: files of something else, a run where none may be, or a
            :data:`RUN` that is damaged.
    """
    path = out / RUN
    if path.exists():
        if not resume:
            raise InputError(
                f"`out`={out} holds a run; choose another folder or resume it"
            )
        return _read_needed(path, needed)
    there = [name for name in outputs if (out / name).exists()]
    if there:
        raise InputError(
            f"`out`={out} holds {there} of something else; choose another folder"
        )
    return None


def _read_needed(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    cure = "restore it from a copy, or choose another folder"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); {cure}") from error
    if not isinstance(found, dict):
        raise InputError(
            f"{path} must hold a JSON object, got {type(found).__name__}; {cure}"
        )
    for name in needed:
        key, _, inner = name.partition(".")
        table = found.get(key)
        if not isinstance(table, dict) or (inner and inner not in table):
            raise InputError(f"{path} is damaged: `{name}` is missing; {cure}")
    return found


def check_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise unless a run was begun with the settings of now.

    Args:
        out: its folder.
        before: what was kept, JSON types.
        now: what it would be, of types that JSON can hold.

    Raises:
        InputError: naming what has changed.
    """
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    changed = [
        f"{key}: {old.get(key)!r} → {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise InputError(
            f"`out`={out} holds a run with other settings ({'; '.join(changed)}); "
            "choose another folder or restore them"
        )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        out.update({prefix + key: value} if inner is None else inner)
    return out


def versions() -> dict[str, str]:
    """Return what decides the last bits of a run."""
    import torch

    from mlff import __version__

    return {
        "mlff": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def warn_of_versions(out: Path, before: Any, now: dict[str, str]) -> None:
    """Warn if a run was begun with other versions than it goes on with."""
    if before != now:
        warnings.warn(
            f"{out} was begun with {before} and goes on with {now}: the last bits may "
            "differ",
            MlffWarning,
            stacklevel=4,
        )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole."""
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def write_log(
    out: Path, columns: Sequence[str], history: Sequence[dict[str, Any]]
) -> None:
    """Write ``log.csv``: a row for each validation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomic(out / "log.csv", text.getvalue().encode())

"""A TOML table into a frozen dataclass: known keys, right types, or an error.

Run files are dataclasses: their fields are the keys, their annotations the types, their
``__post_init__`` the ranges. Nothing else is ever read from a file.
"""

import contextlib
import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mlff.errors import InputError, InputTypeError

T = TypeVar("T")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: no such file, or not TOML; the text has the line.
    """
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def from_table(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from a table of its fields.

    Args:
        kind: a dataclass; its fields may be bool, int, float, str, ``dict``, a tuple
            of one length or any, another dataclass, or unions of these and ``None``.
        table: values by field name.
        where: name of the table, for errors.

    Raises:
        InputError: a key that is unknown (with the nearest known one) or missing.
        InputTypeError: a value of another type than the field's.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else "."
            raise InputError(
                f"unknown key `{where}{key}`{hint} Known are {sorted(fields)}"
            )
    hints = typing.get_type_hints(kind)
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if required and name not in table:
            raise InputError(f"the key `{where}{name}` is missing")
    values = {
        key: _converted(hints[key], value, where + key) for key, value in table.items()
    }
    return kind(**values)


def _converted(hint: Any, value: Any, name: str) -> Any:
    """The value as the type of a field; ``None`` is left out, not written."""
    if isinstance(hint, types.UnionType):
        hints = [h for h in typing.get_args(hint) if h is not types.NoneType]
        return _first_that_fits(hints, value, name)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_table(typing.cast(type[Any], hint), value, f"{name}.")
        raise InputTypeError(f"`{name}` must be a table, got {value!r}")
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        return _tuple(hint, value, name)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and hint is not bool):
        raise InputTypeError(
            f"`{name}` must be {origin.__name__}, got {value!r} "
            f"({type(value).__name__})"
        )
    return value


def _first_that_fits(hints: list[Any], value: Any, name: str) -> Any:
    if len(hints) == 1:
        return _converted(hints[0], value, name)
    for hint in hints:
        with contextlib.suppress(InputTypeError):
            return _converted(hint, value, name)
    kinds = " or ".join(_in_words(hint) for hint in hints)
    raise InputTypeError(f"`{name}` must be {kinds}, got {value!r}")


def _tuple(hint: Any, value: Any, name: str) -> tuple[Any, ...]:
    hints = typing.get_args(hint)
    wrong = InputTypeError(f"`{name}` must be {_in_words(hint)}, got {value!r}")
    if not isinstance(value, list):
        raise wrong
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise wrong
    try:
        pairs = zip(hints, value, strict=True)
        return tuple(_converted(kind, item, name) for kind, item in pairs)
    except InputTypeError as error:
        raise wrong from error


def _in_words(hint: Any) -> str:
    names = {str: "a string", int: "an integer", float: "a number"}
    if hint in names:
        return names[hint]
    kinds = [_in_words(h).split()[-1] for h in typing.get_args(hint) if h is not ...]
    if typing.get_args(hint)[-1] is not ...:
        return f"[{','.join(kinds)}]"
    return f"a list of {kinds[0]}" + ("" if kinds[0].endswith("]") else "s")

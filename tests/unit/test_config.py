"""TOML tables as dataclasses: what becomes of each type, and what is refused."""

from dataclasses import dataclass

import pytest

from mlff.config import from_table
from mlff.errors import InputError, InputTypeError


@dataclass(frozen=True)
class Inner:
    size: float = 1.0


@dataclass(frozen=True)
class Settings:
    course: float | tuple[tuple[float, float], ...] | None = None
    states: tuple[tuple[int, int], ...] = ()
    files: tuple[str, ...] = ()
    flag: bool = False
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ({"course": 3}, "course", 3.0),
        ({"course": [[0, 1], [2, 3.5]]}, "course", ((0.0, 1.0), (2.0, 3.5))),
        ({"course": []}, "course", ()),
        ({"states": [[0, 1], [-1, 2]]}, "states", ((0, 1), (-1, 2))),
        ({"files": ["a", "b"]}, "files", ("a", "b")),
        ({"inner": {"size": 2}}, "inner", Inner(2.0)),
        ({}, "course", None),
    ],
)
def test_a_value_becomes_what_the_field_is(table, name, value):
    found = getattr(from_table(Settings, table), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"course": "hot"}, "`course` must be a number or a list of [number,number]"),
        ({"course": True}, "must be a number or a list"),
        ({"course": [[0, 1], [2]]}, "must be a number or a list"),
        ({"states": [[0, 1.5]]}, "`states` must be a list of [integer,integer]"),
        ({"states": [0, 1]}, "must be a list of [integer,integer]"),
        ({"files": "a.xyz"}, "`files` must be a list of strings, got 'a.xyz'"),
        ({"files": ["a", 1]}, "must be a list of strings"),
        ({"flag": 1}, "`flag` must be bool"),
        ({"inner": 3}, "`inner` must be a table"),
        ({"inner": {"size": "big"}}, "`inner.size` must be float"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_was_needed(table, message):
    with pytest.raises(InputTypeError) as caught:
        from_table(Settings, table)
    assert message in str(caught.value)


def test_an_unknown_key_comes_with_the_nearest_known_one():
    with pytest.raises(InputError, match=r"`inner\.sise`; did you mean `size`"):
        from_table(Settings, {"inner": {"sise": 1.0}})

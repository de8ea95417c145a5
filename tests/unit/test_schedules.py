"""Targets: numbers, one per system, functions of time."""

import numpy as np
import pytest
import torch

from mlff.dynamics.schedules import Ramp, at_time, check_target, described
from mlff.errors import InputError

LIKE = torch.zeros(2)


def value_at(target, time_fs=0.0):
    return at_time(target, time_fs, LIKE, "temperature_K")


def test_a_number_stays_a_number():
    assert value_at(300, 5.0) == 300.0


def test_one_per_system_becomes_a_tensor():
    value = value_at(np.array([1.0, 2.0]))
    assert value.dtype == torch.float64
    assert value.tolist() == [1.0, 2.0]


def test_a_function_is_asked_at_the_time():
    assert value_at(lambda t: 2 * t, 5.0) == 10.0
    assert value_at(lambda t: [t, 2 * t], 5.0).tolist() == [5.0, 10.0]


def test_a_ramp_is_straight_inside_and_constant_outside():
    ramp = Ramp(times_fs=(10, 20), values=(100, 300))
    assert [ramp(t) for t in (0, 10, 15, 20, 99)] == [100, 100, 200, 300, 300]


@pytest.mark.parametrize(
    ("times", "values", "named"),
    [
        ((), (), "values"),
        ((1, 2), (1,), "values"),
        ((2, 1), (1, 2), "ascend"),
        ((1, 1), (1, 2), "ascend"),
        ((0, float("inf")), (1, 2), "finite"),
    ],
)
def test_a_ramp_that_cannot_be_is_refused(times, values, named):
    with pytest.raises(InputError, match=named):
        Ramp(times_fs=times, values=values)


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("warm", "number"),
        ([1.0, 2.0], "per system"),
        ([[1.0]], "per system"),
        (float("nan"), "finite"),
        (-1.0, "at least 0"),
        (lambda t: None, "must be a number"),
        (True, "must be a number"),
    ],
)
def test_targets_that_cannot_be_are_refused(target, named):
    with pytest.raises(InputError, match=named):
        check_target(target, 5, "temperature_K")


def test_negative_pressures_are_allowed_where_said():
    check_target(-1.0, 2, "pressure_GPa", lowest=None)


def test_descriptions_are_equal_exactly_for_equal_targets():
    assert described(300) == 300.0
    assert described([1, 2]) == [1.0, 2.0]
    ramp = Ramp(times_fs=(0, 9), values=(1, 2))
    assert described(ramp) == described(Ramp(times_fs=(0, 9), values=(1, 2)))
    assert described(lambda t: t) == described(lambda t: 1.0 * t)
    assert described(lambda t: t) != described(lambda t: 2 * t)


@pytest.mark.parametrize(
    "late",
    [-1.0, float("nan"), None, "hot", [300.0], [300.0] * 3, [[300.0, 300.0]]],
    ids=repr,
)
def test_what_a_function_returns_later_is_refused_as_well(late):
    def target(time_fs):
        return 300.0 if time_fs < 1 else late

    check_target(target, 2, "temperature_K")
    assert value_at(target) == 300.0
    with pytest.raises(InputError, match="temperature_K"):
        value_at(target, 2.0)


def test_a_function_is_described_where_it_is_defined():
    table = [300.0, 310.0]
    found = described(lambda t: table[int(t)])
    assert found == described(lambda t: table[int(t)])
    assert found["function"][0] == 300.0
    assert found["function"][-1] is None

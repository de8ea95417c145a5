"""Targets: numbers, one per system, functions of time."""

import numpy as np
import pytest
import torch

from mlff.dynamics.schedules import Ramp, at_time, check_target, described
from mlff.errors import InputError

CPU = torch.device("cpu")


def test_a_number_stays_a_number():
    assert at_time(300, 5.0, CPU) == 300.0


def test_one_per_system_becomes_a_tensor():
    value = at_time(np.array([1.0, 2.0]), 0.0, CPU)
    assert value.dtype == torch.float64
    assert value.tolist() == [1.0, 2.0]


def test_a_function_is_asked_at_the_time():
    assert at_time(lambda t: 2 * t, 5.0, CPU) == 10.0
    assert at_time(lambda t: [t, 2 * t], 5.0, CPU).tolist() == [5.0, 10.0]


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
        (lambda t: None, "finite"),
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

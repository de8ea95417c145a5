"""Limits: what freezes a system, and that the others do not notice."""

import pytest
import torch
from springs import started

from mlff.dynamics.integrators import VelocityVerlet
from mlff.dynamics.limits import Limits, Status, Watch
from mlff.errors import InputError

INTEGRATOR = VelocityVerlet(timestep_fs=0.5)


def pair():
    state, forcefield = started(INTEGRATOR, heat_K=300)
    return state, INTEGRATOR.step(state, forcefield)


def spoiled(state, system, **changes):
    first = int((state.batch.system == system).nonzero()[0])
    content = {}
    for name, value in changes.items():
        tensor = getattr(state, name).clone()
        tensor[first if name in ("forces", "momenta") else system] = value
        content[name] = tensor
    return state.replace(**content)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"forces": float("nan")}, Status.NOT_FINITE),
        ({"forces": float("inf")}, Status.NOT_FINITE),
        ({"energy": float("nan")}, Status.NOT_FINITE),
        ({"momenta": float("nan")}, Status.NOT_FINITE),
        ({"forces": 80.0}, Status.FORCE),
        ({"momenta": 300.0}, Status.TEMPERATURE),
    ],
)
def test_a_bad_system_is_put_back_and_the_others_go_on(changes, status):
    before, after = pair()
    bad = spoiled(after, 2, **changes)
    held, watch = Limits().hold(before, bad, Watch.start(5, torch.device("cpu")))
    assert watch.status.tolist() == [0, 0, status, 0, 0]
    assert watch.step.tolist() == [-1, -1, 0, -1, -1]
    mine = after.batch.system == 2
    for name in ("momenta", "forces"):
        assert torch.equal(getattr(held, name)[mine], getattr(before, name)[mine])
        assert torch.equal(getattr(held, name)[~mine], getattr(after, name)[~mine])
    assert torch.equal(held.batch.positions[mine], before.batch.positions[mine])
    assert torch.equal(held.batch.positions[~mine], after.batch.positions[~mine])
    assert float(held.energy[2]) == float(before.energy[2])


def test_the_bounds_are_those_asked_for():
    before, after = pair()
    watch = Watch.start(5, torch.device("cpu"))
    hot = Limits(max_temperature_K=1.0)
    assert set(hot.hold(before, after, watch)[1].status.tolist()) == {
        Status.TEMPERATURE
    }
    weak = Limits(max_force_eV_per_A=1e-9)
    assert set(weak.hold(before, after, watch)[1].status.tolist()) == {Status.FORCE}


def test_leaving_the_region_freezes_only_if_asked():
    before, after = pair()
    left = after.replace(outside=torch.tensor([False, True, False, False, True]))
    watch = Watch.start(5, torch.device("cpu"))
    _, found = Limits(region="freeze").hold(before, left, watch)
    assert found.status.tolist() == [0, Status.REGION, 0, 0, Status.REGION]
    _, found = Limits().hold(before, left, watch)
    assert found.status.tolist() == [0] * 5


def test_a_frozen_system_stays_where_its_last_good_step_left_it():
    state, forcefield = started(INTEGRATOR, heat_K=300)
    limits, watch = Limits(), Watch.start(5, torch.device("cpu"))
    kept = None
    for step in range(6):
        after = INTEGRATOR.step(state, forcefield)
        if step == 2:
            after = spoiled(after, 1, forces=float("nan"))
            kept = state.batch.positions[state.batch.system == 1].clone()
        state, watch = limits.hold(state, after, watch)
    assert watch.status.tolist() == [0, Status.NOT_FINITE, 0, 0, 0]
    assert watch.step.tolist() == [-1, 2, -1, -1, -1]
    assert torch.equal(state.batch.positions[state.batch.system == 1], kept)
    assert torch.isfinite(state.forces).all()


def test_every_status_has_words():
    assert len({status.reason for status in Status}) == len(Status)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_force_eV_per_A": 0}, "max_force_eV_per_A"),
        ({"max_temperature_K": float("nan")}, "max_temperature_K"),
        ({"max_temperature_K": "hot"}, "max_temperature_K"),
        ({"region": "stop"}, "region"),
        ({"margin_A": -1}, "margin_A"),
    ],
)
def test_bounds_that_cannot_be_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        Limits(**options)

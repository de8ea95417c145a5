"""Fixtures of the unit tests."""

import pytest
from calculator_cases import build

from mlff import errors


@pytest.fixture(scope="session")
def molecular():
    """A potential with global attention, as the shipped models have."""
    return build(cutoff=5.0)


@pytest.fixture(scope="session")
def local():
    """A potential with attention inside a short cutoff: additive, any periodicity."""
    return build(cutoff=3.0, scope="local")


@pytest.fixture
def forget_warnings(monkeypatch):
    """Let a warning that is given once per process be given once per test."""
    monkeypatch.setattr(errors, "_said", set())

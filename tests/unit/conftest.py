"""Fixtures of the unit tests."""

import pytest
from calculator_cases import build


@pytest.fixture(scope="session")
def molecular():
    """A potential with global attention, as the shipped models have."""
    return build(cutoff=5.0)


@pytest.fixture(scope="session")
def local():
    """A potential with attention inside a short cutoff: additive, any periodicity."""
    return build(cutoff=3.0, scope="local")

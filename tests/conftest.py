"""Fixtures of all tests."""

import pytest

from mlff import errors


@pytest.fixture
def forget_warnings(monkeypatch):
    """Let a warning that is given once per process be given once per test."""
    monkeypatch.setattr(errors, "_said", set())

"""Dynamics that are killed at any moment lose nothing and go on to the same end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlff
from mlff.frames import read_frames


@pytest.mark.slow
def test_killed_runs_lose_no_frame_and_end_with_the_same_bytes(tmp_path):
    # MLFF_KILLS=40 is a longer run of the same test.
    wanted = int(os.environ.get("MLFF_KILLS", "20"))
    script = Path(__file__).with_name("killed_dynamics.py")
    out = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(wanted)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert out.returncode == 0, out.stderr
    kills, resumed, runs = map(int, out.stdout.split())
    assert kills == wanted
    assert resumed >= wanted // 3
    expected = (tmp_path / "whole.h5").read_bytes()
    for run in range(runs):
        assert (tmp_path / f"killed_{run}.h5").read_bytes() == expected
    # Nothing is left that would hinder or puzzle the next run.
    assert len(list(tmp_path.iterdir())) == runs + 1
    written = mlff.Trajectory(tmp_path / "killed_0.h5").export(
        tmp_path / "xyz", "extxyz", progress=False
    )
    assert len(written) == 5
    assert all(len(read_frames(path)) == 76 for path in written)

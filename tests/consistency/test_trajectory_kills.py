"""Writers of trajectories killed at random moments, against one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# One process that has imported everything forks a writer, kills it, forks the next. A
# writer makes, appends, and extends again and again; it says which frames it has
# appended through a pipe, which outlives it.
FORKING = """
import json, os, random, signal, sys, time, traceback, warnings
from pathlib import Path
import h5py
import numpy as np
from mlff.trajectory import Frame, Layout, Trajectory, TrajectoryWriter

warnings.simplefilter("error")
folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(7)
N, M, FRAMES, MORE = 4_000, 1_000, 24, 7

layout = Layout(
    numbers=np.ones(N, int), ptr=np.arange(0, N + 1, 4), masses=np.ones(N),
    mobile=np.ones(N, bool), cell=np.zeros((M, 3, 3)), pbc=np.zeros((M, 3), bool),
    charge=np.zeros(M, int), multiplicity=np.ones(M, int), dof=np.full(M, 9.0),
    seed=np.arange(M), names=map(str, range(M)),
)

def make_frame(k):
    rng = np.random.default_rng(k)
    return Frame(
        step=k, positions=rng.random((N, 3)), momenta=rng.random((N, 3)),
        cell=layout.cell, energy=rng.random(M), kinetic=rng.random(M),
        heat=rng.random(M), status=np.zeros(M, np.int8), status_step=np.full(M, -1),
        state_energies=np.zeros((M, 0)),
    )

frames = [make_frame(k) for k in range(FRAMES)]

def slowly(file, data, place, write=os.pwrite):
    # As a system may: less than it was given. More kills meet half a frame.
    time.sleep(1e-4)
    return write(file, data[: 2**14], place)

def run(path, pipe):
    os.pwrite = slowly
    there = Trajectory(path).n_frames if path.exists() else 0
    while True:
        room = min(there + MORE, FRAMES)
        if path.exists():
            writer = TrajectoryWriter.resume(path, room)
        else:
            writer = TrajectoryWriter.create(
                path, layout, {"timestep_fs": 1.0}, n_frames=room
            )
        with writer:
            for k in range(writer.n_frames, writer.capacity):
                writer.append(frames[k])
                os.write(pipe, bytes([k]))
            there = writer.n_frames
        if there == FRAMES:
            return

def start(path):
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(out)
            run(path, into)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(into)
    return pid, out

def check(path, said):
    if not path.exists():
        assert not said
        return 0
    found = Trajectory(path)
    assert found.n_frames >= max(said, default=-1) + 1, (found.n_frames, said)
    for k in range(found.n_frames):
        frame = found.frame(k)
        for name, value in vars(frame).items():
            assert np.array_equal(value, getattr(frames[k], name)), (k, name)
    return found.n_frames

def is_torn(path, there):
    # A step is what a frame begins with.
    if not path.exists():
        return False
    with h5py.File(path) as file:
        steps = file["frames/step"]
        return there < len(steps) and steps[there] != 0

begun = time.monotonic()
assert os.waitpid(start(folder / "whole.h5")[0], 0)[1] == 0
duration = time.monotonic() - begun

kills = chain = acknowledged = torn = copies = 0
while kills < wanted:
    chain, finished = chain + 1, False
    path = folder / f"chain{chain}.h5"
    while not finished:
        pid, out = start(path)
        time.sleep(draw.uniform(0, 0.6 * duration))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        with os.fdopen(out, "rb") as pipe:
            said = pipe.read()
        finished = not os.WIFSIGNALED(status)
        assert not finished or os.WEXITSTATUS(status) == 0
        kills += not finished
        acknowledged += len(said)
        copies += (folder / f".{path.name}.new.part").exists()
        there = check(path, said)
        torn += is_torn(path, there)
    assert path.read_bytes() == (folder / "whole.h5").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == [path.name, "whole.h5"]
    path.unlink()
print(json.dumps(dict(
    kills=int(kills), chains=chain, acknowledged=acknowledged, torn=int(torn),
    copies=int(copies), duration=duration,
)))
"""


def kill(folder: Path, wanted: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, folder, str(wanted)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_writers_lose_no_frame_and_end_with_the_same_file(tmp_path):
    # What each kill must leave is checked after each, by the process that killed.
    counts = kill(tmp_path, 20)
    assert counts["kills"] >= 20
    assert counts["acknowledged"] >= counts["chains"] * 12


@pytest.mark.slow
def test_many_kills_meet_frames_and_copies_half_written(tmp_path):
    counts = kill(tmp_path, 60)
    assert counts["kills"] >= 60
    assert counts["torn"] > 0
    assert counts["copies"] > 0

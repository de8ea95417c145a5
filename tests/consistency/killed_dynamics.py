"""Run dynamics in children that are killed at random moments; run by test_md_kills.py.

    python killed_dynamics.py folder 20

The first child runs undisturbed. The others are killed, and their runs resumed, until
there were enough kills; whenever one finishes before its kill, the next begins a new
run. Every run ends complete. Children are forked from a process that has imported but
never computed.

Prints the number of kills, of kills after which frames were there to go on from, and of
runs; exits with an error if a kill took a frame that had been seen.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401
import torch._dynamo  # noqa: F401
from moving import molecules, random_potential

import mlff
from mlff.errors import MlffError
from mlff.md import MDOptions, run_md


def start(path: Path) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run_md(
                molecules(5),
                random_potential(),
                mlff.Langevin(timestep_fs=0.5, temperature_K=300, seed=3),
                n_steps=150,
                every=2,
                trajectory=path,
                resume=True,
                options=MDOptions(progress=False),
            )
            status = 0
        finally:
            os._exit(status)
    return child


def frames(path: Path) -> int:
    """Whole frames in a file, also while it is being written; 0 before it is there."""
    try:
        return mlff.Trajectory(path).n_frames
    except MlffError:
        return 0


def finish(child: int) -> bool:
    """Wait for a child; return whether it was killed."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if status:
        sys.exit(f"dynamics failed with status {status}")
    return False


def main() -> None:
    folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
    delays = random.Random(0)
    begin = time.monotonic()
    finish(start(folder / "whole.h5"))
    whole = time.monotonic() - begin
    kills = resumed = run = 0
    while True:
        path = folder / f"killed_{run}.h5"
        before = frames(path)
        child = start(path)
        if kills < wanted:
            time.sleep(delays.uniform(0.0, 0.6) * whole)
            before = max(before, frames(path))
            os.kill(child, signal.SIGKILL)
        if finish(child):
            kills += 1
            after = frames(path)
            resumed += after > 0
            if after < before:
                sys.exit(f"{path}: of {before} whole frames a kill left {after}")
        elif kills < wanted:
            run += 1
        else:
            break
    print(kills, resumed, run + 1)


if __name__ == "__main__":
    main()

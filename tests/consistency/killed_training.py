"""Train with children that are killed at random moments; run by test_training.py.

    python killed_training.py run.toml 20

The first child trains undisturbed. The others are killed until there were enough
kills; whenever one finishes before its kill, the next begins in a new folder. Every
folder ends complete. Children are forked from a process that has imported but never
computed.
"""

import dataclasses
import os
import random
import signal
import sys
import time
from pathlib import Path

# Imported once, not in every child.
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch._dynamo  # noqa: F401  (every optimizer does)

from mlff.train import TrainConfig, fit


def start(config: TrainConfig) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fit(config, progress=False)
            status = 0
        finally:
            os._exit(status)
    return child


def finish(child: int) -> bool:
    """Wait for a child; return whether it was killed."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if status:
        sys.exit(f"training failed with status {status}")
    return False


def main() -> None:
    base, wanted = TrainConfig.load(sys.argv[1]), int(sys.argv[2])
    delays = random.Random(0)
    begin = time.monotonic()
    finish(start(base))
    whole = time.monotonic() - begin
    kills = resumed = folder = 0
    while True:
        config = dataclasses.replace(base, out=f"{base.out}_{folder}")
        child = start(config)
        if kills < wanted:
            time.sleep(delays.uniform(0.0, 0.7) * whole)
            os.kill(child, signal.SIGKILL)
        if finish(child):
            kills += 1
            resumed += (Path(config.out) / "last.safetensors").exists()
        elif kills < wanted:
            folder += 1
        else:
            break
    print(kills, resumed, folder + 1)


if __name__ == "__main__":
    main()

"""A map of CH2 in two states: 50 × 50 rigid points, and a relaxed line.

python benchmarks/scan.py

Seconds of the clock and of the processor, all threads together; where other jobs run,
the second is the fair figure. The scan of the CLI is that of a process of its own, with
imports, files and picture.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mlff
from mlff.demo import methylene
from mlff.scanning.axes import read_axes
from mlff.scanning.grid import geometries

ANGLE, BONDS = "angle 1 0 2 90 180 50", "bond 0 1 + bond 0 2 0.9 1.4 50"
STATES = [(0, 1), (0, 3)]
THREADS = (1, 2)
MAIN = "import sys; from mlff.cli import main; sys.exit(main())"


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Clock and processor of the second call: the first prepares."""
    function()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }


def command(folder: Path) -> dict[str, float]:
    """``mlff scan`` of the same map, from nothing."""
    start = folder / "ch2.xyz"
    methylene(1.1, 110, 1).write(start, format="extxyz")
    run = [sys.executable, "-c", MAIN, "scan", str(start), "--model", "ch2"]
    run += ["--coordinate", ANGLE, "--coordinate", BONDS, "--states", "0,1 0,3"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    run += ["--quiet", "--out", str(folder / "out")]
    subprocess.run(run, check=True, capture_output=True)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}


def main() -> None:
    atoms, potential = methylene(1.1, 110, 1), mlff.load("ch2")
    quiet = mlff.ScanOptions(progress=False)
    report: dict[str, Any] = {"points": 2500, "states": 2}
    axes = read_axes([ANGLE, BONDS], atoms)
    before = torch.get_num_threads()
    for n in THREADS:
        torch.set_num_threads(n)
        report[f"{n} thread(s)"] = {
            "geometries": timed(lambda: geometries(atoms, axes)),
            "rigid map": timed(
                lambda: mlff.scan(
                    atoms, potential, [ANGLE, BONDS], STATES, options=quiet
                )
            ),
            "relaxed line of 46": timed(
                lambda: mlff.scan(
                    atoms,
                    potential,
                    ["angle 1 0 2 90 180 46"],
                    STATES,
                    relax=True,
                    options=quiet,
                )
            ),
        }
    torch.set_num_threads(before)
    with tempfile.TemporaryDirectory() as folder:
        report["command, with imports, files and picture"] = command(Path(folder))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

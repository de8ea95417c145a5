"""Labelling runs killed at random moments and resumed, against one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest

pytest.importorskip("pyscf")
pytestmark = [pytest.mark.pyscf, pytest.mark.slow]

# One process that has imported everything forks a run, kills it, forks the next: a
# kill costs milliseconds. The threads of the run die with it, as worker processes do.
FORKING = """
import json, os, random, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from ase import Atoms
from mlff.dft import DFTSettings, check_input
from mlff.labels import label_frames

folder, random_state = Path(sys.argv[1]), random.Random(11)
frames = [
    Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.5 + 0.01 * k]],
          info={"charge": 0, "spin": 1, "k": k})
    for k in range(40)
]
settings = DFTSettings(basis="sto-3g")
check_input(frames[0], settings)  # imports PySCF, once for all

def spring(frame, settings):
    r = frame.positions[1, 2]
    time.sleep(2e-3)
    out = frame.copy()
    out.info.update(REF_energy=float(np.sqrt(r)), code="spring")
    out.set_array("REF_forces", np.outer([1, -1], [0, 0, r]))
    return out

def start(out):
    pid = os.fork()
    if pid:
        return pid
    with ThreadPoolExecutor(2) as pool:
        label_frames(frames, out, settings, workers=pool, task=spring, progress=False)
    os._exit(0)

begun = time.monotonic()
os.waitpid(start(folder / "whole.xyz"), 0)
duration = time.monotonic() - begun
kills, chain = 0, 0
while kills < 40:
    chain, finished = chain + 1, False
    while not finished:
        pid = start(folder / f"chain{chain}.xyz")
        time.sleep(random_state.uniform(0, 0.6 * duration))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        kills += os.WIFSIGNALED(status)
        finished = not os.WIFSIGNALED(status)
        assert finished is False or os.WEXITSTATUS(status) == 0
print(json.dumps({"kills": kills, "chains": chain}))
"""

# The real thing: worker processes and PySCF. While a file says so, the jobs from a
# certain one on wait to be killed.
LABELLING = """
import sys, time
from pathlib import Path
from ase import Atoms
from mlff.dft import DFTSettings, label
from mlff.labels import label_frames

def held(frame, settings):
    hold = Path(sys.argv[1]).with_name("hold")
    while hold.exists() and frame.info["k"] >= int(hold.read_text()):
        time.sleep(0.01)
    return label(frame, settings)

if __name__ == "__main__":
    frames = [
        Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.92 + 0.03 * k]],
              info={"charge": 0, "spin": 2, "k": k})
        for k in range(10)
    ]
    settings = DFTSettings(basis="sto-3g", grid_level=1, stability=False)
    label_frames(
        frames, sys.argv[1], settings, workers=2, progress=False, task=held
    )
"""


def test_forty_kills_leave_the_file_of_an_uninterrupted_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= 40
    whole = (tmp_path / "whole.xyz").read_bytes()
    for chain in range(1, counts["chains"] + 1):
        assert (tmp_path / f"chain{chain}.xyz").read_bytes() == whole
        journal = tmp_path / f"chain{chain}.xyz.journal.jsonl"
        hashes = [
            json.loads(line.partition(b" ")[2])["hash"]
            for line in journal.read_bytes().splitlines()
        ]
        assert len(hashes) == len(set(hashes)) == 40


class Run:
    """A labelling process in a session of its own, with a temporary folder."""

    def __init__(self, folder: Path, out: Path) -> None:
        script = folder / "labelling.py"
        script.write_text(LABELLING)
        self.scratch, self.errors = folder / "scratch", folder / "errors"
        self.scratch.mkdir(exist_ok=True)
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, script, out],
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(self.scratch)},
                stderr=errors,
                # A suite that runs in the background ignores Ctrl-C, and so would this.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def members(self) -> list[int]:
        """Processes of the session, however deep."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.02)


def records(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert Run(folder, folder / "whole.xyz").process.wait() == 0
    return (folder / "whole.xyz").read_bytes()


def interrupt(folder: Path, out: Path, least: int, kind: signal.Signals) -> Run:
    """Start or resume a run, interrupt it after ``least`` jobs are recorded."""
    journal = out.with_name(out.name + ".journal.jsonl")
    hold = out.with_name("hold")
    hold.write_text(str(least))
    run = Run(folder, out)
    wait_until(lambda: records(journal) >= least)
    # As a terminal does: Ctrl-C reaches every process of the session.
    to = os.killpg if kind == signal.SIGINT else os.kill
    to(run.process.pid, kind)
    hold.unlink()  # after Ctrl-C jobs at work are awaited
    assert run.process.wait(timeout=60) != 0
    wait_until(lambda: not run.members())
    assert least <= records(journal) < 10
    assert not out.exists()
    assert not list(run.scratch.glob("tmp*"))
    return run


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("kind", "moments"),
    [(signal.SIGKILL, (1, 4)), (signal.SIGINT, (2,))],
    ids=["SIGKILL", "Ctrl-C"],
)
def test_an_interrupted_pool_leaves_no_worker_and_resumes(
    tmp_path, kind, moments, uninterrupted
):
    out = tmp_path / "a.xyz"
    for least in moments:
        run = interrupt(tmp_path, out, least, kind)
        errors = run.errors.read_text()
        # No worker adds its own.
        assert errors.count("Traceback") == (kind == signal.SIGINT)
    assert Run(tmp_path, out).process.wait() == 0
    assert records(out.with_name("a.xyz.journal.jsonl")) == 10
    assert out.read_bytes() == uninterrupted
    energies = [frame.info["REF_energy"] for frame in ase.io.read(out, ":")]
    assert np.argmin(energies) not in (0, 9)

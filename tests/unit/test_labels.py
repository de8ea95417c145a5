"""Labelling runs: the journal, the pool, and what a run leaves behind."""

import json
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from mlff.dft import DFTSettings, NotConverged
from mlff.errors import InputError, MlffError
from mlff.journal import Journal
from mlff.labels import label_frames
from mlff.state import set_state
from mlff.workers import WorkerPool, run_jobs

pytest.importorskip("pyscf")
pytestmark = pytest.mark.pyscf

SETTINGS = DFTSettings(basis="sto-3g", grid_level=0, stability=False)

# Workers import it by name, so it lies in a module of its own.
TASKS = '''
import os, signal, sys
import numpy as np

def spring(frame, settings):
    out = frame.copy()
    r = frame.positions[1, 2] - frame.positions[0, 2]
    if frame.info.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if frame.info.get("odd"):
        raise Odd("one", "two")
    out.info.update(REF_energy=(r - 0.7) ** 2, code="spring", level_of_theory="none")
    out.set_array("REF_forces", np.outer([1, -1], [0, 0, 2 * (r - 0.7)]))
    return out

class Odd(Exception):
    """Cannot be unpickled: its constructor wants two arguments, it stores one."""

    def __init__(self, first, second):
        super().__init__(first)
'''


def hydrogens(n: int, start: float = 0.6) -> list[Atoms]:
    frames = []
    for k in range(n):
        atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, start + 0.01 * k]])
        atoms.info["config_type"] = f"number {k}"
        frames.append(set_state(atoms, 0, 1))
    return frames


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    (tmp_path / "spring_task.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    import spring_task

    yield spring_task
    del sys.modules["spring_task"]


def never(frame, settings):
    raise AssertionError("computed what it should not have")


def run(frames, out, task, **options):
    with ThreadPoolExecutor(2) as executor:
        return label_frames(
            frames,
            out,
            SETTINGS,
            workers=executor,
            task=task,
            progress=False,
            **options,
        )


# What a run leaves


def test_the_file_holds_the_labels_in_the_order_of_the_input(tmp_path):
    frames = hydrogens(4) + hydrogens(2, start=2.0)
    out = tmp_path / "labels.xyz"
    report = label_frames(frames, out, SETTINGS, workers=2, progress=False)
    found = ase.io.read(out, ":")
    assert [f.info["config_type"] for f in found] == [
        f.info["config_type"] for f in frames
    ]
    assert report.computed == len(report.labelled) == 6
    for frame, read in zip(report.labelled, found, strict=True):
        assert read.info["REF_energy"] == frame.info["REF_energy"]
        assert read.info["charge"] == 0
        assert read.info["spin"] == 1
        assert read.info["level_of_theory"] == "RKS-b3lyp5/sto-3g"
        np.testing.assert_allclose(
            read.arrays["REF_forces"], frame.arrays["REF_forces"], atol=1e-8
        )
    assert not list(tmp_path.glob(".*"))


def test_provenance_tells_how_the_labels_were_made(tmp_path, tasks):
    out = tmp_path / "labels.xyz"
    frames = hydrogens(4)
    frames[2].info["odd"] = True
    run([*frames, frames[0]], out, tasks.spring)
    found = json.loads((tmp_path / "labels.xyz.provenance.json").read_text())
    assert found["settings"]["basis"] == "sto-3g"
    assert found["functional"]["libxc"]["7"] == pytest.approx(0.19)
    assert found["code"] == ["spring"]
    assert found["failed"] == [{"frame": 2, "reason": "Odd: one"}]
    assert found["duplicates"] == 1
    assert found["units"]["energy"] == "eV"


def test_repeated_inputs_are_labelled_once(tmp_path, tasks):
    frames = hydrogens(4)
    report = run(frames + hydrogens(4), tmp_path / "a.xyz", tasks.spring)
    assert report.duplicates == 4
    assert report.computed == len(report.labelled) == 4


def test_a_second_run_computes_nothing_and_leaves_the_same_file(tmp_path, tasks):
    out = tmp_path / "a.xyz"
    run(hydrogens(5), out, tasks.spring)
    first = out.read_bytes()
    report = run(hydrogens(5), out, never)
    assert report.computed == 0
    assert out.read_bytes() == first


def test_a_longer_list_computes_only_what_is_new(tmp_path, tasks):
    out = tmp_path / "a.xyz"
    run(hydrogens(5), out, tasks.spring)
    report = run(hydrogens(8), out, tasks.spring)
    assert report.computed == 3
    assert len(ase.io.read(out, ":")) == 8


def test_the_list_of_jobs_is_read_no_further_ahead_than_needed(tasks):
    taken = []

    def source():
        for frame in hydrogens(40):
            taken.append(frame)
            yield frame

    with ThreadPoolExecutor(2) as executor:
        jobs = run_jobs(source(), SETTINGS, executor, task=tasks.spring, in_flight=6)
        next(jobs)
        assert len(taken) <= 6
        assert len(list(jobs)) == 39


# Failures


@pytest.mark.slow
def test_47_of_a_hundred_forced_failures_none_is_data(tmp_path):
    rng = np.random.default_rng(5)
    frames = []
    for _ in range(100):
        atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, rng.uniform(0.9, 1.3)]])
        frames.append(set_state(atoms, 0, 2))
    out = tmp_path / "a.xyz"
    with ThreadPoolExecutor(1) as executor:
        report = label_frames(
            frames,
            out,
            DFTSettings(basis="sto-3g", grid_level=0, max_cycles=1),
            workers=executor,
            progress=False,
        )
    assert len(report.failed) == 100
    assert all("NotConverged" in reason for _, reason in report.failed)
    assert report.labelled == []
    assert not out.exists()


def test_failures_keep_their_reason_and_are_retried_only_on_request(tmp_path, tasks):
    out = tmp_path / "a.xyz"
    frames = hydrogens(5)

    def fails(frame, settings):
        if frame.info["config_type"] == "number 3":
            raise NotConverged("no rung held")
        return tasks.spring(frame, settings)

    assert run(frames, out, fails).failed == [(3, "NotConverged: no rung held")]
    assert len(ase.io.read(out, ":")) == 4
    assert run(frames, out, never).failed == [(3, "NotConverged: no rung held")]
    report = run(frames, out, tasks.spring, retry_failed=True)
    assert report.failed == []
    assert report.computed == 1
    assert len(ase.io.read(out, ":")) == 5
    # The journal holds both outcomes; the later one counts.
    assert len(run(frames, out, never).labelled) == 5


@pytest.mark.slow
def test_a_job_that_kills_its_worker_is_recorded_and_the_others_are_labelled(
    tmp_path, tasks
):
    frames = hydrogens(7)
    frames[2].info["kill"] = True
    frames[4].info["odd"] = True
    out = tmp_path / "a.xyz"
    report = label_frames(
        frames, out, SETTINGS, workers=2, progress=False, task=tasks.spring
    )
    reasons = dict(report.failed)
    assert reasons.keys() == {2, 4}
    assert "worker process died" in reasons[2]
    # An error that cannot travel between processes is a reason like any other.
    assert reasons[4] == "Odd: one"
    assert len(ase.io.read(out, ":")) == 5


def test_workers_that_cannot_start_are_not_blamed_on_the_jobs(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from ase import Atoms\n"
        "from mlff.labels import label_frames\n"
        "frame = Atoms('H', info={'charge': 0, 'spin': 2})\n"
        f"label_frames([frame], {str(tmp_path / 'a.xyz')!r}, progress=False)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert 'under if __name__ == "__main__"' in done.stderr.splitlines()[-1]
    assert (tmp_path / "a.xyz.journal.jsonl").read_text() == ""


@pytest.mark.parametrize("workers", [0, -1])
def test_a_pool_without_workers_is_refused(workers):
    with pytest.raises(InputError, match="`workers` must be at least 1"):
        WorkerPool(workers)


# Refused before any work


def test_an_impossible_frame_is_refused_with_its_number(tmp_path):
    frames = hydrogens(4)
    frames[2].info["spin"] = 2
    frames[2].set_initial_magnetic_moments(None)
    with pytest.raises(InputError, match=r"^frame 2: .*2 electrons"):
        run(frames, tmp_path / "a.xyz", never)
    with pytest.raises(InputError, match="empty"):
        run([], tmp_path / "a.xyz", never)


def test_info_that_no_file_can_hold_is_refused(tmp_path):
    frames = hydrogens(4)
    frames[1].info["calculator"] = object()
    with pytest.raises(InputError, match=r"^frame 1: `atoms.info` holds"):
        run(frames, tmp_path / "a.xyz", never)


def test_62_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"folder .*missing does not exist"):
        run(hydrogens(2), tmp_path / "missing" / "a.xyz", never)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        run(hydrogens(2), tmp_path / "folder", never)
    (tmp_path / "a.xyz.journal.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*a.xyz.journal.jsonl"):
        run(hydrogens(2), tmp_path / "a.xyz", never)


def test_63_a_file_that_is_not_from_this_run_is_not_overwritten(tmp_path, tasks):
    out = tmp_path / "a.xyz"
    out.write_text("mine")
    for _ in range(2):  # a refused run must not make the next one bolder
        with pytest.raises(InputError, match="--force"):
            run(hydrogens(4), out, never)
    run(hydrogens(4), out, tasks.spring, force=True)
    whole = out.read_bytes()
    with pytest.raises(InputError, match="--force"):
        run(hydrogens(4, start=1.5), out, never)
    assert out.read_bytes() == whole
    run(hydrogens(2, start=1.5), out, tasks.spring, force=True)
    assert len(ase.io.read(out, ":")) == 2


def test_54_two_runs_into_one_file_are_refused(tmp_path):
    out = tmp_path / "a.xyz"
    refused = []

    def second(frame, settings):
        with pytest.raises(InputError, match="in use by another run") as error:
            run(hydrogens(2), out, never)
        refused.append(error)
        return frame

    run(hydrogens(1), out, second)
    assert len(refused) == 1


# The journal


def journal_of(path: Path, n: int) -> list[bytes]:
    with Journal(path) as journal:
        for k in range(n):
            journal.append({"hash": f"{k:032x}", "atoms": f"Å{k}" * 30})
    return path.read_bytes().splitlines(keepends=True)


def test_53_a_record_torn_at_any_byte_is_cut_off_and_the_rest_kept(tmp_path):
    path = tmp_path / "journal"
    lines = journal_of(path, 4)
    whole, last = b"".join(lines), lines[-1]
    for torn in range(len(last)):
        path.write_bytes(whole[: len(whole) - len(last) + torn])
        with Journal(path) as journal:
            assert len(journal.records) == 3
            journal.append({"hash": f"{3:032x}", "atoms": "Å3" * 30})
        assert path.read_bytes() == whole


def test_53_a_run_continues_from_a_journal_torn_anywhere(tmp_path, tasks):
    out = tmp_path / "a.xyz"
    journal = tmp_path / "a.xyz.journal.jsonl"
    run(hydrogens(5), out, tasks.spring)
    expected, content = out.read_bytes(), journal.read_bytes()
    for size in range(0, len(content), 97):
        journal.write_bytes(content[:size])
        out.unlink()
        report = run(hydrogens(5), out, tasks.spring)
        assert report.computed == 5 - content[:size].count(b"\n")
        assert out.read_bytes() == expected


def test_a_damaged_record_is_an_error_that_names_its_line(tmp_path):
    path = tmp_path / "journal"
    lines = journal_of(path, 4)
    start = len(lines[0])
    whole = bytearray(b"".join(lines))
    for position in range(start, start + len(lines[1])):
        whole[position] ^= 4
        path.write_bytes(whole)
        with pytest.raises(InputError, match=f"{path.name}, line 2: damaged"):
            Journal(path)
        whole[position] ^= 4
    path.write_bytes(whole)
    with Journal(path) as journal:
        assert len(journal.records) == 4


def test_57_a_full_disk_loses_nothing_and_the_run_continues(tmp_path, tasks):
    run(hydrogens(6), tmp_path / "whole.xyz", tasks.spring)
    expected = (tmp_path / "whole.xyz").read_bytes()
    size = (tmp_path / "whole.xyz.journal.jsonl").stat().st_size
    out = tmp_path / "a.xyz"
    journal = tmp_path / "a.xyz.journal.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in np.linspace(1, size - 1, 20).astype(int):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
            with pytest.raises(OSError, match="finished jobs are safe") as error:
                run(hydrogens(6), out, tasks.spring)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert error.value.filename == str(journal)
        left = journal.read_bytes()
        assert not left or left.endswith(b"\n")
        report = run(hydrogens(6), out, tasks.spring)
        assert report.computed == 6 - left.count(b"\n")
        assert out.read_bytes() == expected
        out.unlink()
        journal.unlink()


def test_57_a_full_disk_leaves_the_old_file_whole(tmp_path, tasks):
    out = tmp_path / "a.xyz"
    run(hydrogens(4), out, tasks.spring)
    before = out.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, hard))
        with pytest.raises(OSError, match=r"a\.xyz"):
            run(hydrogens(4), out, never)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_every_error_of_a_run_is_of_the_family(tmp_path):
    with pytest.raises(MlffError):
        run([], tmp_path / "a.xyz", never)

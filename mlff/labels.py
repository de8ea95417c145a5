"""Many DFT labels: worker processes, a journal that survives any kill, one file.

The journal is the truth for resuming: one record per finished job, keyed by the hash of
its input, on the disk as the job lands. The labelled file is written from the journal
in the order of the input, atomically, so that a run killed and resumed leaves the same
file as one that was not.
"""

import hashlib
import io
import json
import platform
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import write
from ase.io.jsonio import decode, encode
from tqdm import tqdm

from mlff.dft import DFTSettings, canonical, check_input, functional, input_hash, label
from mlff.errors import InputError, MlffError
from mlff.files import write_atomic
from mlff.journal import Journal
from mlff.state import State
from mlff.workers import Task, WorkerPool, check_start, run_jobs

# Jobs given to a foreign executor ahead of time; it may have many workers.
_HANDED_OUT = 256

_WORKER_DIED = "the worker process died: out of memory, or a crash inside PySCF"


@dataclass(frozen=True)
class LabelReport:
    """What a labelling run did.

    Attributes:
        labelled: frames with labels, in the order of the input.
        failed: ``(index in the input, reason)`` of each job without a label.
        computed: jobs done in this run, the others were in the journal.
        duplicates: inputs that repeat an earlier one (same hash), labelled once.
    """

    labelled: list[Atoms]
    failed: list[tuple[int, str]]
    computed: int
    duplicates: int

    def __str__(self) -> str:
        return (
            f"{summarise(self.labelled)}; {len(self.failed)} failed, "
            f"{self.duplicates} duplicates, {self.computed} computed in this run"
        )


def label_frames(
    frames: Sequence[Atoms],
    out: str | Path,
    settings: DFTSettings | None = None,
    *,
    workers: int | Executor = 1,
    force: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
    task: Task = label,
) -> LabelReport:
    """Label molecules with DFT into one extended XYZ file; resumable at any moment.

    Args:
        frames: molecules, each with its charge and multiplicity in ``info``; ``info``
            and per-atom arrays are kept, a cell and constraints are not.
        out: extended XYZ file to write. Beside it go ``<out>.journal.jsonl`` (the
            finished jobs; a rerun continues from it) and ``<out>.provenance.json``.
        settings: level of theory.
        workers: number of single-threaded processes on this machine, or an executor
            (that of a cluster engine, for example) to run on.
        force: overwrite ``out`` though it holds other labels than those of this run.
        retry_failed: do again the jobs that the journal records as failed.
        progress: show a bar with the time left.
        task: what labels one frame; must be importable by the workers.

    Returns:
        What was labelled and what was not, with reasons.

    Raises:
        InputError: a frame that cannot be labelled (nothing is computed then), an
            ``out`` that is in the way or cannot be written, or a journal in use.
        OSError: the disk is full; what was finished is safe.
    """
    settings = settings or DFTSettings()
    out = Path(out)
    journal_path = out.with_name(out.name + ".journal.jsonl")
    _check_out(out, journal_path, force)
    hashes = _check_all(frames, settings)
    with Journal(journal_path) as journal:
        done = {key for key in hashes if key in journal.records}
        if out.exists() and not done and not force:
            raise _in_the_way(out)
        if retry_failed:
            done = {key for key in done if "reason" not in journal.records[key]}
        todo = {
            key: canonical(frame)
            for key, frame in zip(hashes, frames, strict=True)
            if key not in done
        }
        computed = len(todo)
        with tqdm(
            desc="labels",
            unit="job",
            total=len(set(hashes)),
            initial=len(done),
            disable=not progress,
        ) as bar:
            jobs = _Jobs(todo, settings, task, journal, bar)
            if isinstance(workers, int):
                jobs.run_locally(workers)
            else:
                jobs.run(workers, _HANDED_OUT)
        report = _collect(journal, hashes, computed)
        _write(out, settings, report)
    return report


def _check_out(out: Path, journal: Path, force: bool) -> None:
    if not out.parent.is_dir():
        raise InputError(f"`out`={out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise InputError(f"`out`={out} is a folder, needed is the name of a file")
    if out.exists() and not journal.exists() and not force:
        raise _in_the_way(out)


def _in_the_way(out: Path) -> InputError:
    return InputError(
        f"{out} exists and is not the result of these jobs; choose another `out`, or "
        "overwrite it with `force` (--force)"
    )


def _check_all(frames: Sequence[Atoms], settings: DFTSettings) -> list[str]:
    if not frames:
        raise InputError("`frames` is empty: there is nothing to label")
    functional(settings.xc)  # a wrong name is no fault of frame 0
    hashes = []
    for index, frame in enumerate(frames):
        try:
            state = check_input(frame, settings)
            frame = canonical(frame)
            _to_json(frame)
        except MlffError as error:
            raise InputError(f"frame {index}: {error}") from error
        except TypeError as error:
            raise InputError(
                f"frame {index}: `atoms.info` holds what no file can: {error}"
            ) from error
        hashes.append(input_hash(frame, state, settings))
    return hashes


@dataclass
class _Jobs:
    """The jobs that are left, by the hash of their input; they go as they land."""

    todo: dict[str, Atoms]
    settings: DFTSettings
    task: Task
    journal: Journal
    bar: Any

    def run(self, executor: Executor, in_flight: int) -> None:
        """Run what is left on a pool, journalling each job as it lands."""
        self._run(list(self.todo), executor, in_flight)

    def run_locally(self, workers: int) -> None:
        """Run what is left on worker processes, whatever happens to these.

        A job that kills its worker breaks the pool for all. The jobs that were handed
        out then run one by one, each on a pool of its own, and one that breaks that
        is recorded as failed.
        """
        in_flight = 2 * workers
        while self.todo:
            try:
                with WorkerPool(min(workers, len(self.todo))) as pool:
                    check_start(pool)
                    self.run(pool, in_flight)
            except BrokenExecutor:
                for key in list(self.todo)[:in_flight]:
                    self._run_alone(key)

    def _run_alone(self, key: str) -> None:
        try:
            with WorkerPool(1) as pool:
                self._run([key], pool, 1)
        except BrokenExecutor:
            self._record(key, _WORKER_DIED)

    def _run(self, keys: list[str], executor: Executor, in_flight: int) -> None:
        frames = [self.todo[key] for key in keys]
        key_of = {id(frame): key for frame, key in zip(frames, keys, strict=True)}
        for frame, outcome in run_jobs(
            frames, self.settings, executor, task=self.task, in_flight=in_flight
        ):
            self._record(key_of[id(frame)], outcome)

    def _record(self, key: str, outcome: Atoms | str) -> None:
        if isinstance(outcome, str):
            self.journal.append({"hash": key, "reason": outcome})
        else:
            self.journal.append({"hash": key, "atoms": _to_json(outcome)})
        del self.todo[key]
        self.bar.update()


def _to_json(atoms: Atoms) -> str:
    return str(
        encode({"numbers": atoms.numbers, "info": atoms.info, "arrays": atoms.arrays})
    )


def _from_json(text: str) -> Atoms:
    content = decode(text)
    atoms = Atoms(numbers=content["numbers"], info=content["info"])
    for name, array in content["arrays"].items():
        atoms.set_array(name, array)
    return atoms


def _collect(journal: Journal, hashes: list[str], computed: int) -> LabelReport:
    labelled, failed, seen = [], [], set()
    for index, key in enumerate(hashes):
        record = journal.records[key]
        if key in seen:
            continue
        seen.add(key)
        if "reason" in record:
            failed.append((index, record["reason"]))
        else:
            labelled.append(_from_json(record["atoms"]))
    return LabelReport(labelled, failed, computed, len(hashes) - len(seen))


def _write(out: Path, settings: DFTSettings, report: LabelReport) -> None:
    """Write the labelled file, or none if there is no label, and its provenance."""
    digest = None
    if report.labelled:
        text = io.StringIO()
        write(text, report.labelled, format="extxyz")
        whole = text.getvalue().encode()
        digest = hashlib.sha256(whole).hexdigest()
        write_atomic(out, whole)
    else:
        out.unlink(missing_ok=True)
    content = {
        "settings": settings.identity(),
        "functional": functional(settings.xc),
        "units": {
            "energy": "eV",
            "length": "Ang",
            "dipole": "e*Ang",
            "spatial_extent": "Ang^2",
            "polarizability": "Ang^3",
        },
        "code": sorted({str(f.info.get("code")) for f in report.labelled}),
        "python": platform.python_version(),
        "summary": summarise(report.labelled),
        "duplicates": report.duplicates,
        "failed": [{"frame": index, "reason": why} for index, why in report.failed],
        "sha256": digest,
    }
    path = out.with_name(out.name + ".provenance.json")
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def summarise(frames: Sequence[Atoms]) -> str:
    """Return one line on a set of labels: states, instabilities, contamination."""
    states: dict[str, int] = {}
    for frame in frames:
        key = str(State(int(frame.info["charge"]), int(frame.info["spin"])))
        states[key] = states.get(key, 0) + 1
    unstable = sum(not f.info.get("stable", True) for f in frames)
    broken = sum(not f.info.get("stable_uks", True) for f in frames)
    spoiled = sum(bool(f.info.get("contaminated")) for f in frames)
    return (
        f"{len(frames)} labels ({'; '.join(f'{n} × {s}' for s, n in states.items())}); "
        f"{unstable} internally unstable, {broken} unstable towards unrestricted, "
        f"{spoiled} spin-contaminated"
    )

"""Worker processes for DFT: single-threaded, and gone when they are not wanted."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from multiprocessing import connection, get_context, parent_process
from types import TracebackType
from typing import Any

from ase import Atoms

from mlff.dft import DFTSettings, label
from mlff.errors import InputError, MlffError

#: What a worker runs: frame and settings in, labelled frame out.
Task = Callable[[Atoms, DFTSettings], Atoms]


def start_worker(lifeline: connection.Connection | None = None) -> None:
    """Make this process a worker: one thread (fastest for small molecules, measured).

    It leaves as soon as its parent is gone, however that was killed.

    Args:
        lifeline: reading end of a pipe; the worker also leaves when that is closed.
    """
    import threadpoolctl
    from pyscf import lib

    threadpoolctl.threadpool_limits(1)
    lib.num_threads(1)
    parent = parent_process()
    ends = [end for end in (parent and parent.sentinel, lifeline) if end is not None]
    if ends:
        threading.Thread(target=_leave_with, args=(ends,), daemon=True).start()


def _leave_with(ends: list[Any]) -> None:
    connection.wait(ends)
    os._exit(1)


class WorkerPool(ProcessPoolExecutor):
    """Single-threaded worker processes that are stopped at once by an exception.

    Used as a context manager, it waits for its jobs on a normal exit; an exception,
    Ctrl-C among them, ends the workers in the middle of what they do. Ctrl-C itself
    reaches this process only.

    Args:
        workers: number of processes.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise InputError(f"`workers` must be at least 1, got {workers}")
        context = get_context("spawn")
        self._far_end, self._lifeline = context.Pipe(duplex=False)
        super().__init__(
            workers,
            mp_context=context,
            initializer=start_worker,
            initargs=(self._far_end,),
        )

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand out a job, and start a worker for it if one is missing."""
        # A worker inherits the mask, so that Ctrl-C never reaches it; for this process
        # the signal only waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if kind is not None:
            self._lifeline.close()
        try:
            return super().__exit__(kind, value, traceback)
        finally:
            self._lifeline.close()
            self._far_end.close()


def run_jobs(
    frames: Iterable[Atoms],
    settings: DFTSettings,
    executor: Executor,
    *,
    task: Task = label,
    in_flight: int = 8,
) -> Iterator[tuple[Atoms, Atoms | str]]:
    """Run one job per frame on a pool.

    Args:
        frames: molecules with their states.
        settings: level of theory.
        executor: any ``concurrent.futures.Executor``, a :class:`WorkerPool` or one of
            a cluster engine.
        task: what runs on the pool; must be importable by its workers.
        in_flight: jobs handed out ahead, so that a long list costs no memory.

    Yields:
        ``(frame, labelled)`` or ``(frame, reason why not)``, in the order they finish.

    Raises:
        BrokenExecutor: a worker died; what had finished has been yielded.
    """
    waiting: dict[Future[Atoms | str], Atoms] = {}
    source = iter(frames)
    exhausted = False
    while waiting or not exhausted:
        while not exhausted and len(waiting) < in_flight:
            frame = next(source, None)
            if frame is None:
                exhausted = True
            else:
                waiting[executor.submit(_attempt, task, frame, settings)] = frame
        broken: BrokenExecutor | None = None
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            frame, error = waiting.pop(future), future.exception()
            if isinstance(error, BrokenExecutor):
                broken = error
            else:
                yield frame, future.result() if error is None else _reason(error)
        if broken is not None:
            raise broken


def _attempt(task: Task, frame: Atoms, settings: DFTSettings) -> Atoms | str:
    """Run a task where it fails: the reason travels as text, not every error can."""
    try:
        return task(frame, settings)
    except Exception as error:
        return _reason(error)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def check_start(pool: Executor) -> None:
    """Raise if no worker comes up, so that no job is blamed for it."""
    try:
        pool.submit(os.getpid).result()
    except BrokenExecutor as error:
        raise MlffError(
            "the worker processes do not start; a script that labels must do so under "
            'if __name__ == "__main__": because every worker imports it'
        ) from error

"""Executors: the same tasks in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from hpcenc.cluster.granted import memory_bytes, n_cores
from hpcenc.cluster.threads import THREAD_VARIABLES, limited_threads
from hpcenc.storage.study import Cluster
from hpcenc.tasks.records import Deadline, Task, TaskRecord, one_line

IN_FLIGHT_PER_WORKER = 2
"""Tasks that a worker holds: two at work in two slots, or one at work and one to begin at once after it."""

KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_ARENA_MAX": "1",
}
"""Undoes Dask's own setting, by which glibc gives every freed activation back to the kernel: the page
faults of getting it again made extraction a third slower. Threads share one arena, for a thread's own holds
nothing larger than 64 MB: larger arrays of a block would come from the kernel each time."""

LostBy = Literal["", "error", "storage", "crash"]


@dataclass(frozen=True)
class Outcome:
    """What became of one try of a task.

    Attributes
    ----------
    record : TaskRecord or None
        None if the try failed.
    lost_by : {"", "error", "storage", "crash"}
        ``error``: the task raised; trying again would raise again. ``storage``: a read or write
        failed, which may pass. ``crash``: the worker died.
    message : str
        Why it failed, in one line, and the traceback below.
    """

    task: Task
    record: TaskRecord | None = None
    lost_by: LostBy = ""
    message: str = ""


class Executor(Protocol):
    """Runs the tasks of one stage after another."""

    name: str
    n_workers: int
    n_threads: int

    def run(
        self, tasks: Sequence[Task], store: Path, deadline: Deadline | None, slots: int = 1
    ) -> Iterator[Outcome]:
        """Run tasks, each once, and yield what became of them as it is known.

        Parameters
        ----------
        tasks : sequence of Task
        store : Path
        deadline : Deadline or None
            When the job that this runs in ends.
        slots : int
            Tasks that a worker process has at a time; no more, and possibly fewer.
        """


def run_task(task: Task, store: Path, deadline: Deadline | None) -> Outcome:
    """Run one task in this process; whatever it raises becomes its outcome."""
    from hpcenc.storage.store import Store

    try:
        return Outcome(task, task.run(Store(store), deadline))
    except Exception as error:
        lost_by: LostBy = "storage" if isinstance(error, OSError) else "error"
        return Outcome(task, None, lost_by, f"{one_line(error)}\n{traceback.format_exc()}")


class SerialExecutor:
    """One task after the other in this process, to the same bytes as worker processes would write.

    Parameters
    ----------
    n_threads : int
        Threads of the numerical libraries.
    """

    name = "serial"
    n_workers = 1

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def run(
        self, tasks: Sequence[Task], store: Path, deadline: Deadline | None, slots: int = 1
    ) -> Iterator[Outcome]:
        """Run tasks in their order, one at a time whatever the slots."""
        with limited_threads(self.n_threads):
            for task in tasks:
                yield run_task(task, store, deadline)


class LocalExecutor:
    """Worker processes on this machine, by a Dask LocalCluster that lives as long as a stage.

    Parameters
    ----------
    n_workers, n_threads : int
        Processes, and BLAS threads of each. The slots of a process share them, for they compute in turns.
    """

    name = "local"

    def __init__(self, n_workers: int, n_threads: int) -> None:
        self.n_workers = n_workers
        self.n_threads = n_threads

    def run(
        self, tasks: Sequence[Task], store: Path, deadline: Deadline | None, slots: int = 1
    ) -> Iterator[Outcome]:
        """Run tasks with a bounded number in flight, so that a lost worker costs little."""
        import dask
        from distributed import Client, LocalCluster

        environment = {**dict.fromkeys(THREAD_VARIABLES, str(self.n_threads)), **KEEP_FREED_MEMORY}
        settings = {
            **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in environment.items()},
            "distributed.scheduler.allowed-failures": 0,  # attempts are counted by the controller
            "distributed.admin.low-level-log-length": 10,  # a log of messages keeps the tasks in them
            "distributed.worker.memory.terminate": False,  # mapped files alone would trip these
            "distributed.worker.memory.pause": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.target": False,
        }
        n_workers = min(self.n_workers, len(tasks))
        with (
            dask.config.set(settings),
            _quiet(),
            LocalCluster(
                n_workers=n_workers,
                threads_per_worker=slots,
                processes=True,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield from _bounded(client, tasks, store, deadline, max(IN_FLIGHT_PER_WORKER, slots) * n_workers)


def _run_there(task: Task, store: Path, deadline: Deadline | None) -> tuple[TaskRecord | None, LostBy, str]:
    """What `run_task` gives but the task, which is known where this goes."""
    outcome = run_task(task, store, deadline)
    return outcome.record, outcome.lost_by, outcome.message


def _bounded(
    client: Any, tasks: Sequence[Task], store: Path, deadline: Deadline | None, limit: int
) -> Iterator[Outcome]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    waiting = iter(tasks)
    running: dict[Any, Task] = {}

    def start_one() -> Any | None:
        task = next(waiting, None)
        if task is None:
            return None
        future = client.submit(_run_there, task, store, deadline, pure=False)
        running[future] = task
        return future

    first = [future for _ in range(limit) if (future := start_one()) is not None]
    # With results: asking for each would be a way to the scheduler and back.
    completed = as_completed(first, with_results=True, raise_errors=False)
    for future, result in completed:
        task = running.pop(future)
        if future.status != "error":
            outcome = Outcome(task, *result)
        else:
            _, error, _ = result
            lost_by: LostBy = "crash" if isinstance(error, KilledWorker) else "error"
            outcome = Outcome(task, None, lost_by, one_line(error))
        future.release()
        if (another := start_one()) is not None:
            completed.add(another)
        yield outcome


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own log lines off the terminal: outcomes say what went wrong."""
    import logging

    loggers = [logging.getLogger(name) for name in ("distributed", "tornado")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def make_executor(profile: str, settings: Cluster, worker_bytes: int) -> Executor:
    """Executor of a profile, ``serial`` or ``local``, for workers that need so much memory."""
    n_workers, n_threads = workers_and_threads(profile, settings, n_cores(), memory_bytes(), worker_bytes)
    return SerialExecutor(n_threads) if profile == "serial" else LocalExecutor(n_workers, n_threads)


def workers_and_threads(
    profile: str, settings: Cluster, cores: int, memory: int, worker_bytes: int = 1
) -> tuple[int, int]:
    """How worker processes share the cores that were granted.

    Parameters
    ----------
    profile : str
        ``serial`` has one process.
    settings : Cluster
        What the study says is taken as it is.
    cores, memory : int
        What was granted, as `n_cores` and `memory_bytes` tell; memory in bytes.
    worker_bytes : int
        Memory that one worker needs; as good as none as long as there is no plan that says it.

    Returns
    -------
    n_workers : int
        By default one for every core that memory allows, for single threads waste nothing.
    n_threads : int
        Threads of the numerical libraries in each: by default its share of the cores.
    """
    n_workers = 1 if profile == "serial" else settings.n_workers
    if n_workers is None:
        allowed = min(cores // (settings.threads_per_worker or 1), memory // worker_bytes)
        n_workers = max(1, allowed)
    return n_workers, settings.threads_per_worker or max(1, cores // n_workers)

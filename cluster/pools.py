"""Pools: where the worker processes of a stage come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from hpcenc.cluster.attempts import LostBy
from hpcenc.cluster.threads import THREAD_VARIABLES, environment

KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_ARENA_MAX": "1",
}
"""Undoes Dask's own setting, by which glibc gives every freed activation back to the kernel: the page
faults of getting it again made extraction a third slower. Threads share one arena, for a thread's own holds
nothing larger than 64 MB: larger arrays of a block would come from the kernel each time."""

DASK_SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 0,  # attempts are counted by `Attempts`
    "distributed.admin.low-level-log-length": 10,  # a log of messages keeps the tasks in them
    "distributed.worker.memory.terminate": False,  # mapped files alone would trip these
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
}
"""Of scheduler and workers. Memory is priced by the plan, and enforced by whoever grants it."""


class CrewError(RuntimeError):
    """No worker can be had: SLURM refuses their jobs, or none of them comes to work."""


class Crew(Protocol):
    """The workers of an open pool, by names that are never used again.

    Attributes
    ----------
    n_workers : int
        Workers that it may come to have.
    replaces : bool
        Whether a worker that is dismissed, or lost, is replaced as long as workers are wanted.
    """

    n_workers: int
    replaces: bool

    def want(self, n_workers: int) -> None:
        """Say how many workers have something to do; the pool may have fewer."""

    def workers(self) -> set[str]:
        """Workers that may be given tasks now."""

    def submit(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on a worker that may be given tasks, and no other; gives its future."""

    def dismiss(self, worker: str) -> None:
        """Let an idle worker go."""

    def ends(self, worker: str) -> float | None:
        """When a worker's job will end, in seconds since the epoch; None if it has none of its own."""

    def name_of(self, worker: str) -> str:
        """What its user knows a worker by: a job and a node; empty where that says nothing."""

    def how_lost(self, worker: str) -> tuple[LostBy, str] | None:
        """Why a worker is gone, and in words; None as long as nobody knows."""


class Pool(Protocol):
    """Makes crews, one for each stage."""

    name: str
    n_workers: int
    n_threads: int

    def open(self, worker: Literal["cpu", "gpu"], slots: int, n_tasks: int) -> AbstractContextManager[Crew]:
        """A crew for tasks that want one kind of worker, each with so many task slots."""


class LocalPool:
    """Worker processes on this machine, by a Dask LocalCluster.

    They talk by TLS, with keys in their memory alone: to a plain port of a login node any of its users could
    send code. It takes 0.04 to 0.2 s more to open, and about 1 ms a task.

    Parameters
    ----------
    n_workers, n_threads : int
        Processes, and BLAS threads of each. The slots of a process share them, for they compute in turns.
    """

    name = "local"

    def __init__(self, n_workers: int, n_threads: int) -> None:
        self.n_workers = n_workers
        self.n_threads = n_threads

    @contextlib.contextmanager
    def open(self, worker: Literal["cpu", "gpu"], slots: int, n_tasks: int) -> Iterator[Crew]:
        """A crew of all workers, but not more than there are tasks."""
        import dask
        from distributed import Client, LocalCluster, Security

        variables = {**dict.fromkeys(THREAD_VARIABLES, str(self.n_threads)), **KEEP_FREED_MEMORY}
        settings = {
            **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in variables.items()},
            **DASK_SETTINGS,
        }
        security = Security.temporary()
        with (
            dask.config.set(settings),
            environment(variables),  # what a user has exported comes before Dask's settings
            quiet(),
            LocalCluster(
                n_workers=min(self.n_workers, n_tasks),
                threads_per_worker=slots,
                processes=True,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
                security=security,
                protocol="tls://",
            ) as cluster,
            Client(cluster, security=security) as client,
        ):
            yield _LocalCrew(cluster, client)


class _LocalCrew:
    """The workers of a LocalCluster, by their addresses: its nannies start one again that died, at
    another."""

    replaces = False

    def __init__(self, cluster: Any, client: Any) -> None:
        self._cluster, self._client = cluster, client
        self.n_workers = len(cluster.workers)

    def want(self, n_workers: int) -> None:
        """Nothing: there are as many as there are."""

    def workers(self) -> set[str]:
        return set(self._cluster.scheduler_info["workers"])

    def submit(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._client.submit(
            function, *arguments, pure=False, workers=[worker], allow_other_workers=False
        )

    def dismiss(self, worker: str) -> None:
        """Nothing: they end with the stage."""

    def ends(self, worker: str) -> float | None:
        return None

    def name_of(self, worker: str) -> str:
        return ""

    def how_lost(self, worker: str) -> tuple[LostBy, str]:
        return "crash", "its worker process died"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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

"""A pool of workers in SLURM jobs: scheduler, keys, and what is left to cancel at the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal

from dask_jobqueue import SLURMCluster
from dask_jobqueue.core import Job as JobQueueJob
from distributed.deploy.spec import ProcessInterface

from hpcenc.cluster.credentials import make_credentials, remove_credentials
from hpcenc.cluster.pools import DASK_SETTINGS, Crew, quiet
from hpcenc.cluster.ports import free_port
from hpcenc.cluster.recruiting import Recruiter
from hpcenc.cluster.run_folder import Event
from hpcenc.cluster.slurm_crew import SlurmCrew
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import cancel_jobs, end_jobs
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.slurm.scripts import worker_name

CLOSE_S = 20
"""Seconds that Dask has to close."""


class WorkerJob(JobQueueJob):  # type: ignore[misc]
    """A worker's job, as dask-jobqueue knows it: it never raises, for that would end the whole cluster.

    Attributes
    ----------
    error : SlurmError or None
        Why there is no job.
    """

    config_name = "slurm"

    def __init__(self, scheduler: str, name: str, recruiter: Recruiter, **ours: object) -> None:
        # Not that of dask-jobqueue's own job, which reads its settings from files and quotes nothing.
        ProcessInterface.__init__(self)
        self.scheduler, self.name, self._recruiter = scheduler, name, recruiter
        self.job_id: str | None = None
        self.error: SlurmError | None = None
        self.worker_processes = 1

    async def start(self) -> None:
        """Submit the job."""
        try:
            self.job_id = await asyncio.to_thread(self._recruiter.submit, self.scheduler, self.name)
        except SlurmError as error:
            self.error = error
        await ProcessInterface.start(self)

    async def close(self) -> None:
        """Cancel the job, if it is there and SLURM too; what this misses is cancelled by name at the end."""
        if self.job_id is not None:
            with contextlib.suppress(SlurmError):
                await asyncio.to_thread(cancel_jobs, ids=[self.job_id], patience_s=0)
        await ProcessInterface.close(self)


class UniqueNames(SLURMCluster):  # type: ignore[misc]
    """A cluster whose workers have names that do not come again: Dask gives that of one that is gone to the
    next."""

    _numbers = count()

    def _new_worker_name(self, worker_number: int) -> str:
        return f"worker-{next(self._numbers)}"

    def _get_worker_security(self, security: Any) -> None:
        """Write no keys: those that the script of a worker's job names are there."""


class SlurmPool:
    """Workers in SLURM jobs.

    Parameters
    ----------
    name : str
        Of the profile.
    profile : SlurmProfile
    run_id : str
    run_folder : Path
        Keys are in its ``private``, logs in its ``logs``.
    backend : str
        Of the fits: workers of the GPU kind must have it working.
    emit : callable
        Is told what becomes of jobs, event by event.
    check_lock : callable
        Raises `LockError` if another controller has the run by now: jobs and keys are that one's then.
    """

    def __init__(
        self,
        name: str,
        profile: SlurmProfile,
        run_id: str,
        run_folder: Path,
        backend: str,
        emit: Callable[[Event], None],
        check_lock: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self._profile, self._run_id, self._folder = name, profile, run_id, run_folder
        self._backend, self._emit, self._check_lock = backend, emit, check_lock
        self._excluded: set[str] = set()  # nodes, for all stages
        workers = profile.workers("gpu")
        self.n_workers, self.n_threads = workers.max_jobs, workers.cores

    @contextlib.contextmanager
    def open(self, worker: Literal["cpu", "gpu"], slots: int, n_tasks: int) -> Iterator[Crew]:
        """A crew without workers yet; all its jobs are cancelled at the end.

        Raises
        ------
        LockError
            If another controller has the run.
        """
        import dask
        from distributed import Client

        self._check_lock()
        workers = self._profile.workers(worker)
        recruiter = Recruiter(self._profile, workers, self._run_id, self._folder, slots, self._excluded)
        (self._folder / "logs").mkdir(exist_ok=True)
        settings = {**DASK_SETTINGS, "distributed.deploy.lost-worker-timeout": "1 hour"}
        network, private = self._profile.network, self._folder / "private"
        scheduler: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "protocol": "tls://"}
        if network.ports is not None:  # Dask's scheduler takes no range, as its workers do
            scheduler["port"] = free_port("", network.ports)
        security = make_credentials(private)
        try:
            with (
                dask.config.set(settings),
                quiet(),
                contextlib.ExitStack() as stack,
            ):
                cluster = UniqueNames(
                    job_cls=WorkerJob,
                    recruiter=recruiter,
                    security=security,
                    protocol="tls://",
                    interface=network.interface,
                    scheduler_options=scheduler,
                    silence_logs=50,
                )
                stack.callback(close_in_time, cluster)
                client = Client(cluster, security=security)
                stack.callback(close_in_time, client)
                # Dask's own link has the scheduler's address, or whatever a user's settings make of it.
                link = f"http://127.0.0.1:{cluster.scheduler_info['services']['dashboard']}/status"
                self._emit({"event": "cluster", "host": socket.gethostname(), "dashboard": link})
                backend = self._backend if worker == "gpu" else ""
                yield SlurmCrew(cluster, client, recruiter, backend, self._emit, self._check_lock)
        finally:
            self._check_lock()
            end_jobs(worker_name(self._run_id))
            remove_credentials(private)


def close_in_time(part: Any) -> None:
    """Close a cluster or a client, for which Dask may wait without end.

    A controller whose job ends soon has no time for that: jobs that are left are cancelled by name next.
    """
    with contextlib.suppress(TimeoutError):
        part.close(timeout=CLOSE_S)

"""Workers in SLURM jobs, one job each, as many as there is work for.

dask-jobqueue keeps the scheduler and the list of jobs. What is asked of SLURM, and when, is decided here: a
job that ends is replaced as long as it is wanted, and one that is not wanted is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dask_jobqueue.core import Job as JobQueueJob
from distributed.deploy.spec import ProcessInterface

from hpcenc.cluster.attempts import LostBy
from hpcenc.cluster.credentials import make_credentials, remove_credentials
from hpcenc.cluster.enlistment import Enlistment, code_digest, enlist
from hpcenc.cluster.pools import DASK_SETTINGS, Crew, CrewError, quiet
from hpcenc.cluster.recruiting import MARGIN_S, Recruiter
from hpcenc.cluster.run_folder import Event
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import Ending, cancel_jobs, end_jobs, how_it_ended, job_states
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.slurm.scripts import worker_name

SETTLE_S = 20.0
"""How long SLURM may take to say how a job ended whose worker is gone; after that the worker hangs."""

QUEUE_S = 15.0
"""How often squeue is asked for the jobs of a run, by one call."""

MAX_FAILED_STARTS = 3
"""Jobs in a row that end, or are refused, before a worker of theirs gets to work."""

CLOSE_S = 20
"""Seconds that Dask has to close."""

_LOST_BY: dict[Ending, LostBy] = {
    "preempted": "preempted",
    "node_fail": "node_fail",
    "timeout": "timeout",
    "cancelled": "cancelled",
    "running": "hung",
}


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
    """

    def __init__(
        self,
        name: str,
        profile: SlurmProfile,
        run_id: str,
        run_folder: Path,
        backend: str,
        emit: Callable[[Event], None],
    ) -> None:
        self.name, self._profile, self._run_id, self._folder = name, profile, run_id, run_folder
        self._backend, self._emit = backend, emit
        workers = profile.workers("gpu")
        self.n_workers, self.n_threads = workers.max_jobs, workers.cores

    @contextlib.contextmanager
    def open(self, worker: Literal["cpu", "gpu"], slots: int, n_tasks: int) -> Iterator[Crew]:
        """A crew without workers yet; all its jobs are cancelled at the end."""
        import dask
        from dask_jobqueue import SLURMCluster
        from distributed import Client

        workers = self._profile.workers(worker)
        recruiter = Recruiter(self._profile, workers, self._run_id, self._folder, slots)
        (self._folder / "logs").mkdir(exist_ok=True)
        settings = {**DASK_SETTINGS, "distributed.deploy.lost-worker-timeout": "1 hour"}
        network, private = self._profile.network, self._folder / "private"
        scheduler: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "protocol": "tls://"}
        if network.ports is not None:
            scheduler["port"] = network.ports[0]  # workers take the ports from here on, each its own
        security = make_credentials(private)
        try:
            with (
                dask.config.set(settings),
                quiet(),
                contextlib.ExitStack() as stack,
            ):
                cluster = SLURMCluster(
                    job_cls=WorkerJob,
                    recruiter=recruiter,
                    security=security,
                    protocol="tls://",
                    interface=network.interface,
                    scheduler_options=scheduler,
                    shared_temp_directory=str(private),
                    silence_logs=50,
                )
                stack.callback(close_in_time, cluster)
                client = Client(cluster, security=security)
                stack.callback(close_in_time, client)
                where = {"host": socket.gethostname(), "dashboard": cluster.dashboard_link}
                self._emit({"event": "cluster", **where})
                backend = self._backend if worker == "gpu" else ""
                yield SlurmCrew(cluster, client, recruiter, backend, self._emit)
        finally:
            end_workers(self._run_id)
            remove_credentials(private)


def close_in_time(part: Any) -> None:
    """Close a cluster or a client, for which Dask may wait without end.

    A controller whose job ends soon has no time for that: jobs that are left are cancelled by name next.
    """
    with contextlib.suppress(TimeoutError):
        part.close(timeout=CLOSE_S)


def end_workers(run_id: str) -> None:
    """Cancel all worker jobs of a run, and wait until none of them can write any more."""
    end_jobs(worker_name(run_id))


@dataclass
class _Member:
    """A worker that has joined.

    Attributes
    ----------
    enlisting : distributed.Future
        Of its enlistment.
    lost : tuple, optional
        How its job ended, once that was asked.
    """

    name: str
    job_id: str
    enlisting: Any
    enlistment: Enlistment | None = None
    lost: tuple[LostBy, str] | None = None

    @cached_property
    def label(self) -> str:
        """Its job and node, for users."""
        node = self.enlistment.node if self.enlistment else "?"
        return f"job {self.job_id} on {node}"


class SlurmCrew:
    """Workers of one stage. All methods are called by one thread."""

    replaces = True

    def __init__(
        self, cluster: Any, client: Any, recruiter: Recruiter, backend: str, emit: Callable[[Event], None]
    ) -> None:
        self.client = client
        self.n_workers = recruiter.workers.max_jobs
        self._cluster, self._recruiter, self._backend, self._emit = cluster, recruiter, backend, emit
        self._members: dict[str, _Member] = {}
        self._wanted = 0
        self._failed_starts = 0
        self._asked_s = time.monotonic()
        self._retry_s = 0.0
        self._told: dict[str, int] = {}

    def want(self, n_workers: int) -> None:
        """Say how many workers have something to do."""
        self._wanted = min(n_workers, self._recruiter.workers.max_jobs)

    def workers(self) -> set[str]:
        """Workers that have enlisted; looks after all jobs on the way.

        Raises
        ------
        CrewError
            If SLURM refuses the jobs, or several in a row came to nothing.
        """
        joined = dict(self._cluster.scheduler_info["workers"])
        self._take_in(joined)
        for address, member in list(self._members.items()):
            if address not in joined:
                self._bury(address, member)
        self._look_at_submissions()
        if time.monotonic() - self._asked_s > QUEUE_S:
            self._ask_queue({info["name"] for info in joined.values()})
        self._scale(len(joined))
        return {address for address in joined if self._may_work(address)}

    def dismiss(self, address: str) -> None:
        """Let an idle worker go."""
        if (member := self._members.pop(address, None)) is not None:
            self._drop(member.name)

    def ends(self, address: str) -> float | None:
        """When its job ends, less a margin."""
        enlistment = self._members[address].enlistment
        assert enlistment is not None
        return None if enlistment.end_s is None else enlistment.end_s - MARGIN_S

    def name_of(self, address: str) -> str:
        """Its job and node."""
        return self._members[address].label if address in self._members else ""

    def how_lost(self, address: str) -> tuple[LostBy, str]:
        """How its job ended; waits for SLURM to say so, unless it cannot be reached: then nobody is
        charged."""
        member = self._members.get(address)
        if member is None:
            return "cancelled", "its worker was dismissed"
        if member.lost is None:
            member.lost = self._ask_ending(member)
            self._emit(
                {"event": "worker lost", "job": member.job_id, "by": member.lost[0], "why": member.lost[1]}
            )
            self._drop(member.name)
        return member.lost

    def _ask_ending(self, member: _Member) -> tuple[LostBy, str]:
        end = time.monotonic() + SETTLE_S
        ending: Ending = "unknown"
        try:
            # Without patience: while SLURM is away, workers that are left must get their tasks.
            while (
                ending := how_it_ended(member.job_id, patience_s=0)
            ) == "running" and time.monotonic() < end:
                time.sleep(0.5)
        except SlurmError as error:
            return "cancelled", f"{member.label} is gone, and SLURM cannot say how it ended ({error})"
        if ending == "running":
            return "hung", f"{member.label} no longer answers, though its job runs"
        lost_by = _LOST_BY.get(ending, "crash")
        log = f"logs/{worker_name(self._recruiter.run_id)}-{member.job_id}.log"
        return lost_by, f"{member.label} ended: {ending}; its log is {log}"

    def _take_in(self, joined: dict[str, Any]) -> None:
        for address, info in joined.items():
            job = self._cluster.workers.get(info["name"])
            if address in self._members or job is None:  # without a job it was dropped
                continue
            enlisting = self.client.submit(
                enlist,
                code_digest(),
                self._backend,
                pure=False,
                workers=[address],
                allow_other_workers=False,
            )
            self._members[address] = _Member(info["name"], job.job_id or "", enlisting)

    def _may_work(self, address: str) -> bool:
        member = self._members.get(address)
        if member is None or member.lost is not None:
            return False
        if member.enlistment is None and member.enlisting.done():
            self._enlist(address, member)
        return member.enlistment is not None and not member.enlistment.refusal

    def _enlist(self, address: str, member: _Member) -> None:
        if member.enlisting.status != "finished":
            return  # it is gone, or cannot import hpcenc; the queue will tell
        member.enlistment = member.enlisting.result()
        refusal = member.enlistment.refusal
        facts = {"job": member.job_id, "node": member.enlistment.node, "gpu": member.enlistment.gpu}
        self._emit({"event": "worker refused" if refusal else "worker", **facts, "why": refusal})
        if not refusal:
            self._failed_starts = 0
            return
        self._recruiter.excluded.add(member.enlistment.node)
        self.dismiss(address)
        self._count_failed_start(refusal)

    def _bury(self, address: str, member: _Member) -> None:
        """A worker that is gone: say how, once, and forget it when its tasks had word of that."""
        had_enlisted = member.enlistment is not None
        self.how_lost(address)
        if not had_enlisted and member.lost is not None and member.lost[0] in ("crash", "hung"):
            self._members.pop(address)
            self._count_failed_start(member.lost[1])

    def _look_at_submissions(self) -> None:
        for name, job in list(self._cluster.workers.items()):
            error = getattr(job, "error", None)
            if error is None:
                continue
            self._drop(name)
            if not error.transient:
                raise CrewError(f"SLURM refuses a worker's job: {error}")
            self._retry_s = time.monotonic() + QUEUE_S
            self._emit({"event": "slurm away", "why": str(error)})

    def _ask_queue(self, joined: set[str]) -> None:
        """What squeue says of jobs that no worker of has joined."""
        self._asked_s = time.monotonic()
        try:
            states = {
                job.job_id: job for job in job_states(name=worker_name(self._recruiter.run_id), patience_s=0)
            }
        except SlurmError as error:
            self._emit({"event": "slurm away", "why": str(error)})
            return
        waiting: dict[str, int] = {}
        for name, job in list(self._cluster.workers.items()):
            if name in joined or job.job_id is None:
                continue
            state = states.get(job.job_id)
            if state is not None and state.state == "PENDING":
                waiting[state.reason] = waiting.get(state.reason, 0) + 1
            elif (state is None or state.ending != "running") and not self._has_member(name):
                self._drop(name)
                ended = state.state if state else "forgotten by SLURM"
                log = f"logs/{worker_name(self._recruiter.run_id)}-{job.job_id}.log"
                why = f"job {job.job_id} ended ({ended}) before its worker came to work; its log is {log}"
                self._emit({"event": "worker lost", "job": job.job_id, "by": "start", "why": why})
                if state is None or state.ending in ("failed", "out_of_memory", "completed", "timeout"):
                    self._count_failed_start(why)
        if waiting != self._told:
            self._told = waiting
            self._emit({"event": "queue", "pending": waiting})

    def _has_member(self, name: str) -> bool:
        return any(member.name == name for member in self._members.values())

    def _scale(self, n_joined: int) -> None:
        n_jobs = len(self._cluster.worker_spec)
        target = max(self._wanted, min(n_joined, n_jobs))
        if target != n_jobs and (target < n_jobs or time.monotonic() > self._retry_s):
            self._cluster.scale(jobs=target)

    def _drop(self, name: str) -> None:
        """Forget a worker's job, and cancel it."""
        self._cluster.sync(self._cluster.scale_down, [name])

    def _count_failed_start(self, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise CrewError(f"no worker comes to work; {self._failed_starts} in a row, the last: {why}")

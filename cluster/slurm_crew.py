"""Workers in SLURM jobs, one job each, as many as there is work for.

dask-jobqueue keeps the scheduler and the list of jobs. What is asked of SLURM, and when, is decided here: a
job that ends is replaced as long as it is wanted, and one that is not wanted is cancelled. Workers go by the
names of their jobs, for a new one may have the address of one that is gone.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpcenc.cluster.attempts import LostBy
from hpcenc.cluster.enlistment import Enlistment, code_digest, enlist
from hpcenc.cluster.pools import CrewError
from hpcenc.cluster.recruiting import MARGIN_S, Recruiter
from hpcenc.cluster.run_folder import Event
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import Ending, JobState, cancel_jobs, job_states
from hpcenc.slurm.scripts import worker_name
from hpcenc.tasks.records import one_line

HUNG_S = 360.0
"""How long SLURM may take to say how a job ended whose worker is gone; after that the worker hangs. It sees
only after 5 minutes, by default, that a node has failed."""

ENLIST_S = 600.0
"""How long a worker may take to say whether it can work; starting CUDA on a busy node takes a while."""

QUEUE_S = 15.0
"""How often squeue is asked for the jobs of a run, by one call; more often only in the first minute after a
worker was lost."""

REFUSED_S = 300.0
"""When SLURM is asked again for workers that it refused while others are at work; jobs that end before they
come to work are asked for again after a pause that doubles up to this."""

RESULT_S = 60.0
"""How long the answer of a worker may be on its way."""

MAX_FAILED_STARTS = 3
"""Jobs in a row that end, or are refused, before a worker of theirs gets to work, while none is at work."""

MAX_FAILED_ON_NODE = 2
"""Jobs that end on one node before their worker gets to work, after which it is given no other."""

_LOST_BY: dict[Ending, LostBy] = {
    "preempted": "preempted",
    "node_fail": "node_fail",
    "timeout": "timeout",
    "cancelled": "cancelled",
}


@dataclass
class _Member:
    """A worker that has joined.

    Attributes
    ----------
    enlisting : distributed.Future
        Of its enlistment.
    joined_s : float
        When it joined, on the monotonic clock.
    node : str
        Empty as long as it is not known.
    gone_s : float, optional
        When it was missed first.
    lost : tuple, optional
        How its job ended, once that is known.
    """

    job_id: str
    address: str
    enlisting: Any
    joined_s: float
    enlistment: Enlistment | None = None
    node: str = ""
    gone_s: float | None = None
    lost: tuple[LostBy, str] | None = None

    @property
    def label(self) -> str:
        """Its job and node, for users."""
        return f"job {self.job_id} on {self.node or '?'}"


class SlurmCrew:
    """Workers of one stage, by the names of their jobs. All methods are called by one thread."""

    replaces = True

    def __init__(
        self,
        cluster: Any,
        client: Any,
        recruiter: Recruiter,
        backend: str,
        emit: Callable[[Event], None],
        check_lock: Callable[[], None] = lambda: None,
    ) -> None:
        self.n_workers = recruiter.workers.max_jobs
        self._cluster, self._client, self._recruiter = cluster, client, recruiter
        self._backend, self._emit, self._check_lock = backend, emit, check_lock
        self._members: dict[str, _Member] = {}
        self._wanted = 0
        self._failed_starts = 0
        self._last_failure = ""
        self._failed_on: Counter[str] = Counter()
        self._asked_s = self._looked_s = time.monotonic()
        self._states: dict[str, JobState] = {}
        self._retry_s = self._pause_s = 0.0
        self._told: Mapping[str, int] = {}
        self._strays: set[str] = set()
        self._outdated: set[str] = set()  # jobs that were asked for before a node was excluded

    def want(self, n_workers: int) -> None:
        """Say how many workers have something to do."""
        self._wanted = min(n_workers, self._recruiter.workers.max_jobs)

    def workers(self) -> set[str]:
        """Workers that have enlisted; looks after all jobs on the way.

        Raises
        ------
        CrewError
            If SLURM refuses the jobs, or several in a row came to nothing, and no worker is at work.
        LockError
            If another controller has the run.
        """
        known = dict(self._cluster.scheduler_info["workers"])
        joined = {info["name"]: address for address, info in known.items()}
        self._take_in(joined)
        gone = [(name, member) for name, member in self._members.items() if name not in joined]
        for _, member in gone:  # so that one answer of squeue is of all of them
            member.gone_s = member.gone_s or time.monotonic()
        for name, member in gone:
            self._bury(name, member)
        able = {name for name in joined if self._may_work(name)}
        self._look_at_submissions()
        if time.monotonic() - self._looked_s > QUEUE_S:
            self._look_at_queue(set(joined))
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise CrewError(
                f"no worker comes to work; {self._failed_starts} in a row, the last: {self._last_failure}"
            )
        self._scale()
        return able

    def submit(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on a worker; gives its future."""
        return self._submit(self._members[worker].address, function, *arguments)

    def dismiss(self, worker: str) -> None:
        """Let an idle worker go."""
        if (member := self._members.pop(worker, None)) is not None:
            self._emit({"event": "worker left", "job": member.job_id})
            self._drop(worker)

    def ends(self, worker: str) -> float | None:
        """When its job ends, less a margin."""
        enlistment = self._members[worker].enlistment
        assert enlistment is not None
        return None if enlistment.end_s is None else enlistment.end_s - MARGIN_S

    def name_of(self, worker: str) -> str:
        """Its job and node."""
        return self._members[worker].label if worker in self._members else ""

    def how_lost(self, worker: str) -> tuple[LostBy, str] | None:
        """How its job ended; None as long as SLURM does not say so. If SLURM cannot be reached nobody is
        charged."""
        member = self._members.get(worker)
        if member is None:
            return "cancelled", "its worker was dismissed"
        member.gone_s = member.gone_s or time.monotonic()
        if member.lost is None and (lost := self._ask_ending(member, member.gone_s)) is not None:
            member.lost = lost
            self._emit({"event": "worker lost", "job": member.job_id, "by": lost[0], "why": lost[1]})
            self._drop(worker)
        return member.lost

    def _ask_ending(self, member: _Member, gone_s: float) -> tuple[LostBy, str] | None:
        gone_for_s = time.monotonic() - gone_s
        if self._asked_s < gone_s or time.monotonic() - self._asked_s > min(QUEUE_S, 1 + gone_for_s / 4):
            try:
                self._ask_queue()
            except SlurmError as error:
                return "cancelled", f"{member.label} is gone, and SLURM cannot say how it ended ({error})"
        found = self._states.get(member.job_id)
        ending = found.ending if found else "unknown"
        member.node = member.node or (found.node if found else "")
        if ending != "running":
            why = f"{member.label} ended: {ending}; its log is {self._log_of(member.job_id)}"
            if ending == "out_of_memory":
                why += f"; it had {self._recruiter.workers.memory_bytes / 1e9:.1f} GB, the profile's `memory`"
            return _LOST_BY.get(ending, "crash"), why
        if gone_for_s < HUNG_S:
            return None
        if found is not None and found.state == "COMPLETING":
            return "cancelled", f"{member.label} is gone, and SLURM does not come to the end of its job"
        return "hung", f"{member.label} no longer answers, though its job runs"

    def _ask_queue(self) -> None:
        """Ask squeue for all jobs of the run.

        Without patience: while SLURM is away, workers that are left must get their tasks.
        """
        self._asked_s = time.monotonic()
        found = job_states(name=worker_name(self._recruiter.run_id), patience_s=0)
        self._states = {job.job_id: job for job in found}

    def _log_of(self, job_id: str) -> str:
        return f"logs/{worker_name(self._recruiter.run_id)}-{job_id}.log"

    def _submit(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._client.submit(
            function, *arguments, pure=False, workers=[address], allow_other_workers=False
        )

    def _take_in(self, joined: Mapping[str, str]) -> None:
        for name, address in joined.items():
            job = self._cluster.workers.get(name)
            if name in self._members or job is None:  # without a job it was dropped
                continue
            enlisting = self._submit(address, enlist, code_digest(), self._backend)
            self._members[name] = _Member(job.job_id or "", address, enlisting, time.monotonic())

    def _may_work(self, name: str) -> bool:
        member = self._members.get(name)
        if member is not None and member.lost is None and member.enlistment is None:
            self._enlist(name, member)
            member = self._members.get(name)
        return member is not None and member.lost is None and member.enlistment is not None

    def _enlist(self, name: str, member: _Member) -> None:
        """Hear what a worker says of itself; one that cannot work is let go."""
        if not member.enlisting.done():
            if time.monotonic() - member.joined_s > ENLIST_S:
                self._refuse(name, member, f"it did not say in {ENLIST_S:g} s whether it can work")
            return
        if member.enlisting.status != "finished":
            from distributed.scheduler import KilledWorker

            error = member.enlisting.exception() if member.enlisting.status == "error" else None
            if error is not None and not isinstance(error, KilledWorker):  # else it is gone
                self._refuse(name, member, one_line(error))
            return
        try:
            found: Enlistment = member.enlisting.result(timeout=RESULT_S)
        except TimeoutError:
            return  # it went away with the answer
        member.node = found.node
        if found.refusal:
            self._refuse(name, member, found.refusal, found.gpu)
            return
        member.enlistment = found
        self._failed_starts, self._pause_s = 0, 0.0
        facts = {"job": member.job_id, "node": found.node, "kind": found.kind, "gpu": found.gpu}
        self._emit({"event": "worker", **facts, "why": ""})
        if found.backend:
            self._emit({"event": "backend", "job": member.job_id, "backend": self._backend, **found.backend})

    def _refuse(self, name: str, member: _Member, why: str, gpu: str = "") -> None:
        """Let a worker go that cannot work, and give its node no other."""
        if not member.node:
            with contextlib.suppress(SlurmError):
                self._ask_queue()
            member.node = self._states[member.job_id].node if member.job_id in self._states else ""
            why = f"{member.label}: {why}"
        facts = {"job": member.job_id, "node": member.node, "gpu": gpu}
        self._emit({"event": "worker refused", **facts, "why": why})
        self._members.pop(name)
        self._drop(name)
        self._count_failure(member.node, why)
        self._exclude(member.node)
        if not member.node:  # or the next one may come there, too
            self._wait_longer()

    def _bury(self, name: str, member: _Member) -> None:
        """A worker that is gone: say how, once that is known."""
        if self.how_lost(name) is None or member.enlistment is not None:
            return
        assert member.lost is not None
        self._members.pop(name)
        if member.lost[0] in ("crash", "hung"):
            self._fail_on(member.node, member.lost[1])
        self._wait_longer()

    def _look_at_submissions(self) -> None:
        """Forget jobs that there are none of: SLURM is away, or refuses them, for which a run with workers
        waits."""
        errors = []
        for name, job in list(self._cluster.workers.items()):
            if (error := getattr(job, "error", None)) is not None:
                errors.append(error)
                self._drop(name)
        if not errors:
            return
        refused = next((error for error in errors if not error.transient), None)
        if refused is not None and not any(job.job_id for job in self._cluster.workers.values()):
            before = f" (before it: {self._last_failure})" if self._failed_starts else ""
            raise CrewError(f"SLURM refuses a worker's job: {refused}{before}")
        pause_s = QUEUE_S if refused is None else REFUSED_S
        self._retry_s = max(self._retry_s, time.monotonic() + pause_s)
        self._emit(
            {"event": "slurm away" if refused is None else "slurm refuses", "why": str(refused or errors[0])}
        )

    def _look_at_queue(self, joined: set[str]) -> None:
        """What squeue says of jobs that no worker of has joined."""
        self._check_lock()  # or jobs of another controller of this run would be taken for strays
        self._looked_s = time.monotonic()
        # As of before the question: of what is submitted meanwhile the answer need not know.
        jobs = {name: job.job_id for name, job in list(self._cluster.workers.items()) if job.job_id}
        try:
            self._ask_queue()
        except SlurmError as error:
            self._emit({"event": "slurm away", "why": str(error)})
            return
        waiting: Counter[str] = Counter()
        for name, job_id in jobs.items():
            state = self._states.get(job_id)
            if name in joined or name in self._members:
                continue
            if state is not None and state.state == "PENDING":
                if name in self._outdated:
                    self._drop(name)
                else:
                    waiting[state.reason] += 1
            elif state is None or state.ending != "running":
                self._give_up(name, job_id, state)
        if waiting != self._told:
            self._told = waiting
            self._emit({"event": "queue", "pending": dict(waiting)})
        self._cancel_strays()

    def _give_up(self, name: str, job_id: str, state: JobState | None) -> None:
        """Forget a job that ended before its worker joined."""
        self._drop(name)
        ended = state.state if state else "forgotten by SLURM"
        why = (
            f"job {job_id} ended ({ended}) before its worker came to work; its log is {self._log_of(job_id)}"
        )
        self._emit({"event": "worker lost", "job": job_id, "by": "start", "why": why})
        if state is None or state.ending in ("failed", "out_of_memory", "completed", "timeout"):
            self._fail_on(state.node if state else "", why)
        self._wait_longer()

    def _cancel_strays(self) -> None:
        """Cancel jobs that nobody knows any more, for the answer to a submission or to its end was lost."""
        if set(self._cluster.worker_spec) - set(self._cluster.workers):  # some are being submitted
            self._strays = set()
            return
        known = {job.job_id for job in list(self._cluster.workers.values())}
        known |= {member.job_id for member in self._members.values() if member.lost is None}
        alive = {job_id for job_id, job in self._states.items() if job.state in ("PENDING", "RUNNING")}
        before, self._strays = self._strays, alive - known
        if twice := sorted(before & self._strays):
            try:
                cancel_jobs(ids=twice, patience_s=0)
            except SlurmError as error:
                self._emit({"event": "slurm away", "why": str(error)})

    def _scale(self) -> None:
        """Have as many jobs as are wanted.

        Workers that have joined are dismissed by who gives them tasks, and of one that is gone SLURM is still
        to say how: only jobs that nobody came of are too many.
        """
        names = list(self._cluster.worker_spec)
        n_missing = self._wanted - len(names)
        if n_missing > 0 and time.monotonic() > self._retry_s:
            self._cluster.scale(jobs=self._wanted)
        elif n_missing < 0:
            spare = [name for name in names if name not in self._members]
            self._drop(*spare[n_missing:])

    def _drop(self, *names: str) -> None:
        """Forget workers' jobs, and cancel them."""
        if names:
            self._outdated.difference_update(names)
            self._cluster.sync(self._cluster.scale_down, list(names))

    def _fail_on(self, node: str, why: str) -> None:
        """Count a job that ended before its worker got to work, against its node too."""
        self._count_failure(node, why)
        self._failed_on[node] += 1
        if self._failed_on[node] >= MAX_FAILED_ON_NODE:
            self._exclude(node)

    def _exclude(self, node: str) -> None:
        """Ask for no more jobs on a node; those that wait were asked for when it was not excluded yet."""
        if node and node not in self._recruiter.excluded:
            self._recruiter.excluded.add(node)
            self._outdated |= set(self._cluster.worker_spec) - set(self._members)

    def _count_failure(self, node: str, why: str) -> None:
        """Count a worker that did not come to work, while none is; several on a node that is excluded by now
        are one failure."""
        self._last_failure = why
        at_work = any(each.enlistment is not None and each.lost is None for each in self._members.values())
        if not at_work and node not in self._recruiter.excluded:
            self._failed_starts += 1

    def _wait_longer(self) -> None:
        """Ask for the next job after a pause that doubles until a worker comes to work."""
        self._pause_s = min(REFUSED_S, max(QUEUE_S, 2 * self._pause_s))
        self._retry_s = max(self._retry_s, time.monotonic() + self._pause_s)

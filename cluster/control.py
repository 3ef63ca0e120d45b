"""The controller of a run on SLURM: the process that places tasks, in a job of its own or in a terminal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpcenc.cluster.ending import end_leftovers
from hpcenc.cluster.executors import DaskExecutor, Drain
from hpcenc.cluster.liveness import is_gone, lock_owner
from hpcenc.cluster.recruiting import drain_seconds
from hpcenc.cluster.run_folder import Event, RunFolder, last_words, reasons_of
from hpcenc.cluster.runs import submitted_job
from hpcenc.cluster.slurm_pool import SlurmPool
from hpcenc.cluster.submit import EXIT_FAILED, EXIT_INTERRUPTED, Result, prepare_study, run
from hpcenc.slurm.jobs import requeue_job, this_job
from hpcenc.slurm.profiles import MergedProfile, SlurmProfile
from hpcenc.storage.errors import FullError, LockError, StudyError, is_full
from hpcenc.storage.files import created_with
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import LockOwner, acquire, hand_over, holds, job_of, read_lock, release

LAST_S = 60
"""Before the end of its walltime a controller waits for no task any more."""


def control(path: Path, listen: Callable[[Event], None] = lambda _: None, digest: str = "") -> Result:
    """Take a run from its folder to its end, or as far as this job's walltime goes.

    Parameters
    ----------
    path : Path
        The run folder. What the study file says by now does not count.
    listen : callable
        Is told what happens, event by event.
    digest : str, optional
        Of ``run.json`` at the submit.

    Returns
    -------
    Result
        With exit status 3 if something is left; SLURM was asked then to start the job again, unless it or
        its user ended the job by SIGTERM.

    Raises
    ------
    LockError
        If another run holds the store, or another controller has taken this run over.
    StudyError
        If the study's files changed so that they no longer fit, or ``run.json`` did.
    """
    folder = RunFolder(path, digest=digest)
    try:
        facts = folder.read("run")
    except StudyError as error:
        _tell_failure(folder.emitter(listen), error.problems)
        raise
    profile = MergedProfile(facts["profile"], facts["site"]).checked()
    with created_with(profile.umask):
        return _control(folder, profile, listen)


def _control(folder: RunFolder, profile: SlurmProfile, listen: Callable[[Event], None]) -> Result:
    facts, study = folder.read("run"), folder.study()
    store, run_id, job = study.store_path, facts["run_id"], this_job()
    # Not a job that the controller was started in by hand: that is its user's, to whom it is left.
    own_job = job if job is not None and job.job_id == submitted_job(folder) else None
    owner = take_lock(store, run_id)
    seconds = drain_seconds(profile)
    drain = Drain(job.end_s if job else None, seconds, min(LAST_S, seconds / 4))
    goes_on, emit = False, folder.emitter(listen)
    try:
        folder.log(
            {"event": "controller", **({"job": job.job_id, "restart": job.restart_count} if job else {})}
        )
        end_leftovers(store, run_id)
        prepared = prepare_study(
            study, facts["models"], facts["layers"], facts["profile"], profile, deep=True
        )

        def check_lock() -> None:
            if not holds(lock_path(store), owner):
                raise LockError(
                    f"run {run_id}: another controller has taken it over, or the lock was removed; this one "
                    f"(process {owner.pid} on {owner.host}) ends, and leaves jobs and keys as they are"
                )

        backend = prepared.backend.name
        pool = SlurmPool(facts["profile"], profile, run_id, folder.path, backend, emit, check_lock)
        description = {"backend": prepared.backend.name, "devices": "those of the workers"}
        with _draining(drain):
            result = run(prepared, DaskExecutor(pool, drain), folder, description, listen)
        if result.exit_status == EXIT_INTERRUPTED and own_job is not None and holds(lock_path(store), owner):
            # Also after SIGTERM: of a job that was cancelled squeue says that it is gone, but it may have
            # been preempted, and SLURM start it again.
            goes_on = True
            hand_over(lock_path(store), job_of(run_id, own_job.job_id, owner.cluster))
            if drain.has_begun() and not result.stopped:
                emit({"event": "requeued"})
                requeue_job(own_job.job_id)
        return result
    except Exception as error:  # or `status` would say for ever that it was killed
        if not (goes_on or holds(lock_path(store), owner)):
            raise  # the run is another controller's, who tells how it ends
        _tell_failure(emit, reasons_of(error, store))
        if is_full(error):
            raise FullError(store) from error
        raise
    finally:
        if not goes_on:
            release(lock_path(store), owner)


def _tell_failure(emit: Callable[[Event], None], reasons: Sequence[str]) -> None:
    """Tell why a run cannot go on: its files may not be what they were at the submit; of the node nothing is
    known."""
    told = {"event": "set aside", "task": "", "details": ""}
    ends = {"event": "end", "status": EXIT_FAILED}
    last_words(emit, *({**told, "reason": reason} for reason in reasons), ends)


def take_lock(store: Path, run_id: str) -> LockOwner:
    """Hold a store, which may be held for this run already.

    Raises
    ------
    LockError
        If another run holds it.
    """
    owner = lock_owner(run_id)
    holder = read_lock(lock_path(store))
    if holder is not None and holder.run_id == run_id:
        hand_over(lock_path(store), owner)
    else:
        acquire(lock_path(store), owner, is_gone)
    return owner


@contextlib.contextmanager
def _draining(drain: Drain) -> Iterator[None]:
    """Let SIGUSR1, SLURM's word that this job will end soon, begin the drain."""

    def begin(signum: int, frame: object) -> None:
        drain.begin()

    before = signal.signal(signal.SIGUSR1, begin)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)

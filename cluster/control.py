"""The controller of a run on SLURM: the process that places tasks, in a job of its own or in a terminal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcenc.cluster.batch import drain_seconds
from hpcenc.cluster.credentials import remove_credentials
from hpcenc.cluster.executors import DaskExecutor, Drain
from hpcenc.cluster.liveness import is_gone
from hpcenc.cluster.run_folder import Event, RunFolder
from hpcenc.cluster.slurm_pool import SlurmPool, end_workers
from hpcenc.cluster.submit import EXIT_INTERRUPTED, Result, prepare_study, run
from hpcenc.slurm.jobs import requeue_job, this_job
from hpcenc.slurm.profiles import MergedProfile
from hpcenc.storage.layout import lock_path, runs_folder
from hpcenc.storage.lock import acquire, hand_over, job_of, read_lock, release, this_process
from hpcenc.storage.study import Study

LAST_S = 60
"""Before the end of its walltime a controller waits for no task any more."""


def control(path: Path, listen: Callable[[Event], None] = lambda _: None) -> Result:
    """Take a run from its folder to its end, or as far as this job's walltime goes.

    Parameters
    ----------
    path : Path
        The run folder. What the study file says by now does not count.
    listen : callable
        Is told what happens, event by event.

    Returns
    -------
    Result
        With exit status 3 if something is left; SLURM was asked then to start the job again.

    Raises
    ------
    LockError
        If another run holds the store.
    StudyError
        If the study's files changed so that they no longer fit.
    """
    folder = RunFolder(path)
    facts = folder.read("run")
    study = Study.model_validate(facts["study"]).model_copy(update={"folder": Path(facts["study_folder"])})
    profile = MergedProfile(facts["profile"], facts["site"]).checked()
    store, run_id, job = study.store_path, facts["run_id"], this_job()
    owner = this_process(run_id, job.job_id if job else "", job.restart_count if job else 0)
    holder = read_lock(lock_path(store))
    if holder is not None and holder.run_id == run_id:
        hand_over(lock_path(store), owner)
    else:
        acquire(lock_path(store), owner, is_gone)
    seconds = drain_seconds(profile)
    drain = Drain(job.end_s if job else None, seconds, min(LAST_S, seconds / 4))
    goes_on = False
    try:
        folder.log(
            {"event": "controller", **({"job": job.job_id, "restart": job.restart_count} if job else {})}
        )
        _end_leftovers(store)
        prepared = prepare_study(study, facts["models"], facts["layers"], facts["profile"], deep=True)

        def emit(event: Event) -> None:
            folder.log(event)
            listen(event)

        pool = SlurmPool(facts["profile"], profile, run_id, path, prepared.backend.name, emit)
        description = {"backend": prepared.backend.name, "devices": "those of the workers"}
        with _draining(drain):
            result = run(prepared, DaskExecutor(pool, drain), folder, description, listen)
        goes_on = result.exit_status == EXIT_INTERRUPTED and drain.has_begun() and job is not None
        if goes_on:
            hand_over(lock_path(store), job_of(run_id, job.job_id))  # type: ignore[union-attr]
            emit({"event": "requeued"})
            requeue_job(job.job_id)  # type: ignore[union-attr]
        return result
    finally:
        if not goes_on:
            release(lock_path(store), owner)


def _end_leftovers(store: Path) -> None:
    """End the workers of runs whose controllers died: they would write beside ours, or wait in the queue."""
    for path in runs_folder(store).glob("*"):
        try:
            run_id = RunFolder(path).read("run")["run_id"]
        except (OSError, ValueError, KeyError):
            continue
        if (path / "private").exists():  # a run that ended well has removed it
            end_workers(run_id)
            remove_credentials(path / "private")


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

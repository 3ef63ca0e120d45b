"""What a user does with a run that was submitted to SLURM: wait for it, read its logs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from hpcenc.cluster.liveness import is_gone
from hpcenc.cluster.run_folder import RunFolder, job_in
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import job_states
from hpcenc.slurm.scripts import controller_name
from hpcenc.storage.errors import StudyError
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import read_lock
from hpcenc.storage.study import Study

EXIT_INTERRUPTED = 3

POLL_S = 1.0
"""How often the events are read while waiting."""

QUEUE_S = 15.0
"""How often SLURM is asked meanwhile whether the controller's job still is there."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    exit_status: int
    why: str


def wait_for_end(study: Study) -> Ended:
    """Wait until the latest run has ended, or its controller's job has, however long SLURM is away.

    Raises
    ------
    SlurmError
        If there is no SLURM here.
    StudyError
        If nothing was ever submitted.
    """
    folder = latest_run(study)
    asked_s = 0.0
    while True:
        status = ended_with(folder)
        if status in (0, 1):
            return Ended(status, f"run {folder.path.name} ended with exit status {status}")
        if time.monotonic() - asked_s > QUEUE_S:
            # Interrupted is not ended where SLURM starts the controller's job again.
            asked_s = time.monotonic()
            if _controller_is_gone(study, folder) and ended_with(folder) in (None, EXIT_INTERRUPTED):
                return Ended(
                    EXIT_INTERRUPTED, f"run {folder.path.name} was interrupted; the same submit resumes"
                )
        time.sleep(POLL_S)


def log_files(study: Study, job_id: str = "", task: str = "") -> list[Path]:
    """Logs of the latest run's jobs, in the order of their ids.

    Parameters
    ----------
    study : Study
    job_id : str
        Of one job only.
    task : str
        Of the jobs only that tried a task, or did a unit, of this name.

    Raises
    ------
    StudyError
        If there is none.
    """
    folder = latest_run(study)
    found = {path.stem.rpartition("-")[2]: path for path in (folder.path / "logs").glob("*.log")}
    if task and not (tried := _jobs_of(folder, task)):
        raise StudyError(
            f"{folder.path}: no job has told of task {task!r} yet. `hpcenc status` names those that failed, "
            f"{folder.path / 'events.jsonl'} all"
        )
    if job_id or task:
        wanted_jobs = {job_id} if job_id else tried
        found = {name: path for name, path in found.items() if name in wanted_jobs}
    if not found:
        wanted = f" of job {job_id}" if job_id else f" of task {task}" if task else ""
        raise StudyError(f"{folder.path / 'logs'}: no log{wanted} yet")
    return [found[name] for name in sorted(found, key=lambda name: (len(name), name))]


def _jobs_of(folder: RunFolder, task: str) -> set[str]:
    """Jobs that tried a task, or a unit."""
    told = (event for event in folder.events() if task in (event.get("task"), event.get("unit")))
    return {job for event in told if (job := job_in(event.get("where", "")))}


def latest_run(study: Study) -> RunFolder:
    """The folder of the run that began last.

    Raises
    ------
    StudyError
        If nothing was ever submitted.
    """
    folder = RunFolder.latest(study.store_path)
    if folder is None:
        raise StudyError(f"{study.store_path}: nothing was submitted yet. `hpcenc submit` begins.")
    return folder


def submitted_job(folder: RunFolder) -> str:
    """The job in which a run was submitted; empty if its controller runs in a terminal."""
    return next((str(event["job"]) for event in folder.events() if event["event"] == "submitted"), "")


def ended_with(folder: RunFolder) -> int | None:
    """Exit status of a run that has ended; None if it has not, or was requeued to go on."""
    status = None
    for event in folder.events():
        if event["event"] == "end":
            status = int(event["status"])
        elif event["event"] in ("requeued", "controller"):
            status = None
        elif event["event"] == "cancelled":
            status = EXIT_INTERRUPTED
    return status


def _controller_is_gone(study: Study, folder: RunFolder) -> bool:
    """Whether neither a job of the controller waits or runs, nor a process of it elsewhere."""
    run_id = folder.read("run")["run_id"]
    holder = read_lock(lock_path(study.store_path))
    if holder is not None and holder.run_id == run_id and not is_gone(holder):
        return False
    try:
        states = job_states(name=controller_name(run_id), patience_s=0)
    except SlurmError as error:
        if error.transient:  # nobody knows, and there is time
            return False
        raise
    return all(job.ending != "running" for job in states)

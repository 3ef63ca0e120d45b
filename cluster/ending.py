"""Ending runs on SLURM: the latest one by its user, and what those left that died."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hpcenc.cluster.chain import SHARES
from hpcenc.cluster.credentials import remove_credentials
from hpcenc.cluster.liveness import is_gone
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.runs import ended_with, latest_run, submitted_job
from hpcenc.slurm.commands import ON_LOGIN_S
from hpcenc.slurm.jobs import end_jobs, job_states
from hpcenc.slurm.scripts import job_names, worker_name
from hpcenc.storage.errors import LockError, StudyError
from hpcenc.storage.layout import lock_path, runs_folder
from hpcenc.storage.lock import read_lock, release, user_name
from hpcenc.storage.study import Study


def cancel_run(study: Study) -> str:
    """End the latest run and all its jobs; what is done stays done.

    Returns
    -------
    str
        What was done, for the user.

    Raises
    ------
    LockError
        If the run is another user's, or some of its jobs do not end: it keeps its store and its keys then.
    SlurmError
        If SLURM cannot be reached.
    StudyError
        If nothing was ever submitted, or the run's controller is not in a job of SLURM's.
    """
    folder, lock = latest_run(study), lock_path(study.store_path)
    facts = folder.read("run")
    if "site" not in facts:
        raise StudyError(f"{folder.path}: not a run on SLURM; end it by Ctrl-C where it runs")
    run_id = facts["run_id"]
    holder = read_lock(lock)
    if holder is not None and holder.run_id == run_id:
        if holder.user != user_name():
            raise LockError(f"run {run_id} is that of {holder.user}, who alone may cancel it")
        if submitted_job(folder) == "" and not is_gone(holder):
            raise StudyError(
                f"run {run_id}: its controller is process {holder.pid} on {holder.host}, which would ask for "
                f"new workers; end it there by Ctrl-C or `kill {holder.pid}`. If that machine is gone for "
                f"good, remove {lock} first"
            )
    names = job_names(run_id)
    jobs = [job for name in names for job in job_states(name=name, patience_s=ON_LOGIN_S)]
    alive = [job.job_id for job in jobs if job.ending == "running"]
    # The controller first: it ends its workers itself, and asks for no more of them.
    ended = [end_jobs(name) for name in names]
    if not all(ended):
        raise LockError(
            f"run {run_id}: SLURM has not come to the end of its jobs (squeue --name={','.join(names)}), "
            "and it keeps its store. Cancel again later: a job of a node that went away ends when SLURM "
            "gives the node up, and only its user may end another user's"
        )
    remove_credentials(folder.path / "private")
    holder = read_lock(lock)  # which its job may have taken meanwhile
    if holder is not None and holder.run_id == run_id:
        # Its controller would have ended them first. What is another user's the next submit tells.
        with contextlib.suppress(LockError):
            end_leftovers(study.store_path, run_id)
        release(lock, holder)
    if not alive:
        return f"run {run_id}: no job of it waits or runs"
    if (status := ended_with(folder)) in (0, 1):  # its job was about to end when it was cancelled
        return f"run {run_id}: had ended with exit status {status}"
    folder.log({"event": "cancelled", "jobs": alive})
    return f"run {run_id}: cancelled {', '.join(alive)}"


def end_leftovers(store: Path, own: str) -> None:
    """End the jobs of a store's runs that died; call it under the lock.

    Parameters
    ----------
    store : Path
    own : str
        Id of the run that calls this. Its controller is at work, and if it is a chain its arrays wait: only
        workers that an earlier start of its controller left are ended.

    Raises
    ------
    LockError
        If they are another user's and do not end.
    """
    for path in runs_folder(store).glob("*"):
        folder = RunFolder(path)
        try:
            run_id = folder.read("run")["run_id"]
        except (OSError, ValueError):
            continue
        has_keys = (path / "private").exists()  # which a run that ended well has removed
        is_dead_chain = run_id != own and (path / SHARES).exists() and ended_with(folder) is None
        if not (has_keys or is_dead_chain):
            continue
        names = [worker_name(run_id)] if run_id == own else job_names(run_id)
        ended = [end_jobs(name) for name in names]
        if not all(ended) and (user := path.stat().st_uid) != os.getuid():
            raise LockError(
                f"{store}: run {run_id} died, and jobs of it are still there. Only its user, "
                f"of id {user}, may end them: scancel --name={','.join(names)}"
            )
        if has_keys:
            remove_credentials(path / "private")

"""Who owns a lock, and whether that owner is certainly gone."""

from __future__ import annotations

import os

from hpcenc.slurm.jobs import cluster_name, runs_on, this_job
from hpcenc.slurm.jobs import is_gone as job_is_gone
from hpcenc.storage.lock import LockOwner, process_start, this_host, this_process, user_name


def lock_owner(run_id: str) -> LockOwner:
    """This process, with the job that it runs in, as the owner of a lock."""
    if (job := this_job()) is None:
        return this_process(run_id)
    return this_process(run_id, job.job_id, job.restart_count, cluster_name())


def is_gone(owner: LockOwner) -> bool:
    """Whether a run's process is no more; False when in doubt.

    From elsewhere, a job is gone when its own cluster's squeue says so. On the machine that it runs on,
    its process tells: a job goes on after a command in it was killed, and this process may be in that job,
    started anew. But another job that waits, or was started anew, takes its run up again. Without a job, a
    machine that was started anew has ended the process; any other is in doubt.
    """
    host, boot_id = this_host()
    if owner.host == host and owner.boot_id and owner.boot_id == boot_id:
        if not _has_ended(owner):
            return False
        job = this_job()
        in_our_job = job is not None and job.job_id == owner.job_id
        if not owner.job_id or in_our_job or runs_on(owner.job_id, owner.restart_count):
            return True
    if owner.job_id:
        its_own = owner.cluster in ("", cluster_name())
        return its_own and job_is_gone(owner.job_id, ours=owner.user == user_name())
    return owner.host == host and bool(owner.boot_id) and bool(boot_id)


def _has_ended(owner: LockOwner) -> bool:
    """Whether a process of this machine has ended, or its id belongs to another one by now."""
    try:
        os.kill(owner.pid, 0)
        is_visible = True
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, whose start the machine may hide
        is_visible = False
    start = process_start(owner.pid)
    return start != owner.process_start and (is_visible or bool(start))

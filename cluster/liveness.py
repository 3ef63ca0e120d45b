"""Whether the owner of a lock is certainly gone."""

from __future__ import annotations

import os

from hpcenc.slurm.jobs import is_gone as job_is_gone
from hpcenc.storage.lock import LockOwner, process_start, this_host


def is_gone(owner: LockOwner) -> bool:
    """Whether a run's process is no more; False when in doubt.

    A job is gone when squeue says so, whatever host it ran on. Without a job, only the owner's own
    machine can tell: after a restart, or when its process id is free or another process has it.
    """
    if owner.job_id:
        return job_is_gone(owner.job_id)
    host, boot_id = this_host()
    if owner.host != host or not owner.boot_id:
        return False
    if owner.boot_id != boot_id:
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return process_start(owner.pid) != owner.process_start

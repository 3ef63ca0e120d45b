"""SLURM jobs: which one this process runs in, and whether another one is gone.

The only module that calls SLURM's commands. They read their defaults from the environment
(``SQUEUE_STATES=PENDING`` in a login shell would hide running jobs), so they are called without it.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

TIMEOUT_S = 30


@dataclass(frozen=True)
class Job:
    """The job that a process runs in.

    Attributes
    ----------
    end_s : float or None
        When its walltime ends, in seconds since the epoch.
    """

    job_id: str
    restart_count: int
    end_s: float | None


def this_job() -> Job | None:
    """The job of this process; None outside SLURM."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME")
    return Job(job_id, int(os.environ.get("SLURM_RESTART_COUNT", "0")), float(end) if end else None)


def is_gone(job_id: str) -> bool:
    """Whether squeue answered that a job is neither waiting nor running; in doubt it is not gone."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SQUEUE_", "SACCT_", "SBATCH_", "SLURM_"))
    }
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--format=%T", "--jobs", job_id],
            env={**kept, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    if answer.returncode:
        return "Invalid job id specified" in answer.stderr
    return not answer.stdout.strip()

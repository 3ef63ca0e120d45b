"""Jobs of SLURM: which one this process runs in, how others are, and how to submit and end them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hpcenc.slurm.commands import ON_LOGIN_S, PATIENCE_S, SlurmError, run_command

SQUEUE = ("squeue", "--noheader", "--all")
"""Jobs of hidden partitions, too: they are not gone."""

UNKNOWN_JOB = "invalid job id specified"
"""What SLURM says of a job that it has forgotten."""

Ending = Literal[
    "running",
    "completed",
    "failed",
    "out_of_memory",
    "timeout",
    "cancelled",
    "preempted",
    "node_fail",
    "unknown",
]

_ENDINGS: dict[str, Ending] = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "LAUNCH_FAILED": "failed",
    "BOOT_FAIL": "node_fail",
    "NODE_FAIL": "node_fail",
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "PREEMPTED": "preempted",
}

_FIELDS = ("%i", "%j", "%T", "%r", "%N", "%V", "%S", "%e", "%k")
_SEPARATOR = "|"


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


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job.

    Attributes
    ----------
    job_id : str
        Of a member of an array: ``12_3``.
    state : str
        SLURM's own word, such as ``PENDING``.
    reason : str
        Why it waits, or how it ended: SLURM's own word; empty if it gives none.
    node : str
        Empty as long as it has none.
    submitted_s, start_s, end_s : float or None
        In seconds since the epoch; of a job that waits SLURM's guess of its start, if it has one.
    """

    job_id: str
    name: str
    state: str
    reason: str
    node: str
    submitted_s: float | None
    start_s: float | None
    end_s: float | None

    @property
    def ending(self) -> Ending:
        """How it ended; ``running`` as long as it has not, also while it waits or is about to end."""
        return _ENDINGS.get(self.state, "running")


def this_job() -> Job | None:
    """The job of this process; None outside SLURM."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME")
    return Job(job_id, int(os.environ.get("SLURM_RESTART_COUNT", "0")), float(end) if end else None)


def cluster_name() -> str:
    """Name of the SLURM cluster that is spoken to from here; empty if it cannot be told."""
    if name := os.environ.get("SLURM_CLUSTER_NAME"):
        return name
    return _setting("ClusterName")


def is_gone(job_id: str, ours: bool = True) -> bool:
    """Whether squeue answered that a job is neither waiting nor running; in doubt it is not gone.

    Parameters
    ----------
    job_id : str
    ours : bool
        Whether it is a job of this user. Where sites keep jobs private, SLURM denies living ones of others.
    """
    try:
        if run_command([*SQUEUE, "--format=%T", "--jobs", job_id], patience_s=0).strip():
            return False
    except SlurmError as error:
        if UNKNOWN_JOB not in error.stderr.lower():
            return False
    return ours or (bool(private := _setting("PrivateData")) and "jobs" not in private.split(","))


def runs_on(job_id: str, restart_count: int) -> bool:
    """Whether squeue answered that a job runs, and was not started again since that count of restarts."""
    command = [*SQUEUE, "--Format=State:20,RestartCnt:20", "--jobs", job_id]
    try:
        return run_command(command, patience_s=0).split() == ["RUNNING", str(restart_count)]
    except SlurmError:
        return False


def submit_job(script: str, options: Sequence[str], patience_s: float = PATIENCE_S) -> str:
    """Submit a batch job, once also if SLURM's answer is lost.

    Parameters
    ----------
    script : str
    options : sequence of str
        Arguments of sbatch; ``--comment`` among them is replaced.
    patience_s : float
        How long to try again while SLURM cannot be reached.

    Returns
    -------
    str
        The job's id.

    Raises
    ------
    SlurmError
        With sbatch's own words.
    """
    token = f"hpcenc-{secrets.token_hex(8)}"
    command = ["sbatch", "--parsable", *options, f"--comment={token}"]
    try:
        answer = run_command(command, stdin=script, patience_s=0)
    except SlurmError as error:
        if not error.transient:
            raise
        # The request may have come through and only the answer not: the token tells, when SLURM is back.
        if found := _ids_by_comment(token, patience_s):
            return found[0]
        job_id = _parse_id(run_command(command, stdin=script, patience_s=patience_s), command)
        with contextlib.suppress(SlurmError):  # the first request may have waited for as long
            cancel_jobs(ids=[other for other in _ids_by_comment(token, 0) if other != job_id], patience_s=0)
        return job_id
    return _parse_id(answer, command)


def check_job(script: str, options: Sequence[str]) -> str:
    """Ask sbatch whether it would take a job, and when that might start; nothing is submitted.

    Raises
    ------
    SlurmError
        With sbatch's own words, if it would not.
    """
    command = ["sbatch", "--test-only", *options]
    return run_command([*command], stdin=script, patience_s=ON_LOGIN_S).strip()


def job_states(
    *, name: str | None = None, ids: Sequence[str] = (), patience_s: float = PATIENCE_S
) -> list[JobState]:
    """Jobs of a name, or of some ids, waiting, running or ended, as far as SLURM remembers them.

    One call of squeue, whatever the number of jobs. SLURM forgets a job some minutes after its end.

    Raises
    ------
    SlurmError
        If SLURM cannot be reached.
    """
    chosen = [f"--name={name}"] if name is not None else [f"--jobs={','.join(ids)}"]
    separated = _SEPARATOR.join(_FIELDS)
    command = [*SQUEUE, "--array", "--states=all", *chosen, f"--format={separated}"]
    try:
        text = run_command(command, patience_s=patience_s)
    except SlurmError as error:
        if UNKNOWN_JOB not in error.stderr.lower():
            raise
        return []
    # The comment, which may hold anything, is last.
    lines = (line.split(_SEPARATOR, len(_FIELDS) - 1) for line in text.splitlines())
    return [_parse_state(line) for line in lines if len(line) == len(_FIELDS)]


def how_it_ended(job_id: str, patience_s: float = PATIENCE_S) -> Ending:
    """How a job ended, in the words that decide whose fault a lost task is.

    ``unknown`` if SLURM has forgotten it, ``running`` if it has not ended.

    Raises
    ------
    SlurmError
        If SLURM cannot be reached.
    """
    found = job_states(ids=[job_id], patience_s=patience_s)
    return found[0].ending if found else "unknown"


def cancel_jobs(*, name: str | None = None, ids: Sequence[str] = (), patience_s: float = PATIENCE_S) -> None:
    """Cancel this user's jobs of a name, or of some ids; those that have ended are left alone.

    Raises
    ------
    SlurmError
        If SLURM cannot be reached, or a job is another user's.
    """
    if name is None and not ids:
        return
    chosen = [f"--name={name}", "--me"] if name is not None else list(ids)
    try:
        run_command(["scancel", "--quiet", *chosen], patience_s=patience_s)
    except SlurmError as error:
        if UNKNOWN_JOB not in error.stderr.lower():
            raise


def end_jobs(name: str, seconds: float = 60.0) -> bool:
    """Cancel all of this user's jobs of a name, and wait until all jobs of it have ended.

    Returns
    -------
    bool
        Whether they have: those of a node that went away, or of another user, take longer.

    Raises
    ------
    SlurmError
        If SLURM cannot be reached for long.
    """
    cancel_jobs(name=name)
    end = time.monotonic() + seconds
    while alive := [job for job in job_states(name=name) if job.ending == "running"]:
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
        if any(job.state != "COMPLETING" for job in alive):
            cancel_jobs(name=name)  # one was submitted, or SLURM started it again, since the last time
    return True


def release_job(job_id: str, patience_s: float = PATIENCE_S) -> None:
    """Let a job that was submitted on hold start.

    Raises
    ------
    SlurmError
        If SLURM refuses, or cannot be reached.
    """
    run_command(["scontrol", "release", job_id], patience_s=patience_s)


def requeue_job(job_id: str) -> None:
    """End a job, and let it wait for its next start under the same id.

    Raises
    ------
    SlurmError
        If SLURM refuses, or cannot be reached.
    """
    run_command(["scontrol", "requeue", job_id])


def _setting(key: str) -> str:
    """What SLURM's configuration says; empty if it cannot be told."""
    try:
        config = run_command(["scontrol", "show", "config"], patience_s=0)
    except SlurmError:
        return ""
    found = re.search(rf"^{key}\s*=\s*(\S+)", config, re.MULTILINE)
    return found[1] if found else ""


def _ids_by_comment(token: str, patience_s: float) -> list[str]:
    command = [*SQUEUE, "--me", "--states=all", "--format=%F|%k"]  # of an array its one id
    lines = run_command(command, patience_s=patience_s).splitlines()
    pairs = (line.split(_SEPARATOR, 1) for line in lines if _SEPARATOR in line)
    return list(dict.fromkeys(job_id for job_id, comment in pairs if comment.strip() == token))


def _parse_id(answer: str, command: Sequence[str]) -> str:
    """The id in ``12`` or ``12;cluster``; sites print more lines before it."""
    last = answer.strip().rpartition("\n")[2]
    if (match := re.fullmatch(r"(\d+)(;\S+)?", last)) is None:
        raise SlurmError(command, 0, f"expected a job id, found {answer.strip()!r}", transient=False)
    return match[1]


def _parse_state(fields: Sequence[str]) -> JobState:
    job_id, name, state, reason, node, submitted, start, end, _ = fields
    times = (float(text) if text.isdecimal() else None for text in (submitted, start, end))
    return JobState(job_id, name, state, "" if reason == "None" else reason, node, *times)

"""The one door to SLURM's commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from time import monotonic, sleep

TIMEOUT_S = 30
"""Of one call."""

PATIENCE_S = 600
"""How long a controller tries again while SLURM cannot be reached: it is restarted, or overloaded."""

ON_LOGIN_S = 20
"""The same where a user waits for the answer."""

PREFIXES = ("SQUEUE_", "SACCT_", "SBATCH_", "SLURM_", "SCANCEL_", "SINFO_", "SALLOC_", "SRUN_")
"""Variables that SLURM's commands take defaults from: ``SQUEUE_STATES=PENDING`` in a login shell would hide
running jobs, and those of a job would become the requests of the jobs that it submits."""

TRANSIENT = (
    "socket timed out",
    "unable to contact slurm controller",
    "unable to connect",
    "connection refused",
    "connection reset",
    "communication connection failure",
    "transport endpoint",
    "zero bytes were transmitted or received",
    "resource temporarily unavailable",
    "slurm temporarily unable to accept job",
    "slurm controller not responding",
    "temporarily unavailable",
    "try again",
    "message receive failure",
    "munge encode failed",
)
"""What SLURM says when the same call may work a moment later."""


class SlurmError(RuntimeError):
    """A command of SLURM failed.

    Attributes
    ----------
    command : tuple of str
    exit_status : int or None
        None if it did not end in time, or is not installed.
    stderr : str
        SLURM's own words.
    transient : bool
        Whether the same call may work later.
    """

    def __init__(self, command: Sequence[str], exit_status: int | None, stderr: str, transient: bool) -> None:
        self.command, self.exit_status = tuple(command), exit_status
        self.stderr, self.transient = stderr.strip(), transient
        words = " ".join(self.stderr.split()) or f"exit status {exit_status}"
        way_out = "SLURM could not be reached; try again later." if transient else ""
        super().__init__(" ".join(filter(None, [f"{command[0]}: {words}", way_out])))


def run_command(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    patience_s: float = PATIENCE_S,
) -> str:
    """Call a command of SLURM, again as long as SLURM cannot be reached, and give what it prints.

    Parameters
    ----------
    command : sequence of str
    stdin : str, optional
    patience_s : float
        How long to try again.

    Raises
    ------
    SlurmError
        With SLURM's own words.
    """
    end, pause_s = monotonic() + patience_s, 1.0
    while True:
        try:
            return _call(command, stdin)
        except SlurmError as error:
            if not error.transient or monotonic() + pause_s > end:
                raise
        sleep(pause_s)
        pause_s = min(2 * pause_s, 30.0)


def clean_environment() -> dict[str, str]:
    """Environment of this process without what would turn the answers of SLURM's commands."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(PREFIXES)
    }
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}


def _call(command: Sequence[str], stdin: str | None) -> str:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env=clean_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        words = "not found on PATH. Is this a login node of a SLURM cluster?"
        raise SlurmError(command, None, words, transient=False) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(command, None, f"no answer in {TIMEOUT_S} s", transient=True) from None
    if done.returncode:
        is_transient = any(words in done.stderr.lower() for words in TRANSIENT)
        raise SlurmError(command, done.returncode, done.stderr, is_transient)
    return done.stdout

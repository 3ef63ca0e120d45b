"""Only squeue is replaced: by a script on PATH that says what a real one said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcenc.slurm import jobs
from hpcenc.slurm.jobs import Job, is_gone, this_job

Squeue = Callable[..., Path]

CONTROLLER_DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
UNKNOWN_JOB = "slurm_load_jobs error: Invalid job id specified\n"


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """Put an squeue on PATH that answers so; gives the file with the arguments and environment it saw."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def answer(stdout: str = "", stderr: str = "", status: int = 0, sleep_s: float = 0) -> Path:
        seen = tmp_path / "seen.json"
        script = folder / "squeue"
        script.write_text(
            "#!/usr/bin/env python3\n"
            "import json, os, sys, time\n"
            f"json.dump([sys.argv[1:], dict(os.environ)], open({str(seen)!r}, 'w'))\n"
            f"time.sleep({sleep_s})\n"
            f"sys.stdout.write({stdout!r}); sys.stderr.write({stderr!r}); sys.exit({status})\n"
        )
        script.chmod(0o755)
        return seen

    return answer


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "CONFIGURING"]
)
def test_a_job_that_squeue_lists_is_not_gone(squeue: Squeue, state: str) -> None:
    squeue(stdout=f"{state}\n")
    assert not is_gone("4711")


def test_a_job_that_squeue_no_longer_lists_is_gone(squeue: Squeue) -> None:
    squeue()
    assert is_gone("4711")


def test_a_job_that_the_controller_has_forgotten_is_gone(squeue: Squeue) -> None:
    squeue(stderr=UNKNOWN_JOB, status=1)
    assert is_gone("4711")


@pytest.mark.parametrize(
    ("stderr", "status"),
    [
        (CONTROLLER_DOWN, 1),
        ("slurm_load_jobs error: Socket timed out on send/recv operation\n", 1),
        ("squeue: error: Munge encode failed\n", 1),
        ("", 137),
    ],
)
def test_a_failing_squeue_leaves_a_job_in_doubt(squeue: Squeue, stderr: str, status: int) -> None:
    squeue(stderr=stderr, status=status)
    assert not is_gone("4711")


def test_a_machine_without_squeue_leaves_a_job_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_gone("4711")


def test_an_squeue_that_hangs_leaves_a_job_in_doubt(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue(sleep_s=60)
    monkeypatch.setattr(jobs, "TIMEOUT_S", 0.3)
    assert not is_gone("4711")


def test_squeue_is_asked_for_the_job_without_the_users_defaults(
    squeue: Squeue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SLURM_CLUSTERS", "SLURM_JOB_ID", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LAB_SETTING", "kept")
    seen = squeue(stdout="RUNNING\n")
    is_gone("4711_3")
    arguments, environment = json.loads(seen.read_text())
    assert arguments == ["--noheader", "--format=%T", "--jobs", "4711_3"]
    left = {name for name in environment if name.startswith(("SQUEUE_", "SLURM_", "SBATCH_", "SACCT_"))}
    assert left == {"SLURM_CONF"}
    assert environment["LC_ALL"] == "C"
    assert environment["LAB_SETTING"] == "kept"


def test_a_process_knows_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert this_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert this_job() == Job("4711", 0, None)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1795000000")
    assert this_job() == Job("4711", 2, 1_795_000_000.0)

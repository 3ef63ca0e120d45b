"""Only squeue is replaced: by a script on PATH that says what a real one said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcenc.slurm import commands, jobs
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import (
    Job,
    cancel_jobs,
    end_jobs,
    how_it_ended,
    is_gone,
    job_states,
    runs_on,
    submit_job,
    this_job,
)

Squeue = Callable[..., Path]
Fake = Callable[..., Callable[[], list[list[str]]]]

CONTROLLER_DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
UNKNOWN_JOB = "slurm_load_jobs error: Invalid job id specified\n"


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """Put an squeue on PATH that answers so; gives the file with the arguments and environment it saw."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
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


@pytest.mark.parametrize("answer", [("", "", 0), ("", UNKNOWN_JOB, 1)])
@pytest.mark.parametrize(
    ("config", "gone"),
    [
        ("PrivateData             = none\n", True),
        ("PrivateData             = usage,users\n", True),
        ("PrivateData             = jobs,usage\n", False),
        ("", False),
    ],
)
def test_another_users_job_is_gone_only_where_it_would_be_seen(
    fake: Fake, answer: tuple[str, str, int], config: str, gone: bool
) -> None:
    fake("squeue", answer)
    fake("scontrol", (f"Configuration data\nPriorityType = x\n{config}", "", 0))
    assert is_gone("4711", ours=False) == gone
    assert is_gone("4711")


def test_a_job_runs_on_if_it_was_not_started_again(fake: Fake) -> None:
    fake("squeue", ("RUNNING             2                   \n", "", 0))
    assert runs_on("4711", 2)
    assert not runs_on("4711", 1)
    for answer in (("PENDING             2\n", "", 0), ("", "", 0), ("", CONTROLLER_DOWN, 1)):
        fake("squeue", answer)
        assert not runs_on("4711", 2)


def test_jobs_of_hidden_partitions_are_looked_at(fake: Fake, no_pause: list[float]) -> None:
    calls = fake("squeue", ("", "", 0))
    fake("sbatch", ("", TIMED_OUT, 1), ("4712\n", "", 0))
    is_gone("4711")
    runs_on("4711", 0)
    job_states(name="w")
    job_states(ids=["4711"])
    submit_job("#!/bin/sh\n", [])  # looks for a job whose answer was lost
    assert len(calls()) >= 5
    assert all("--all" in call for call in calls())


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
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.3)
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
    assert arguments == ["--noheader", "--all", "--format=%T", "--jobs", "4711_3"]
    left = {name for name in environment if name.startswith(("SQUEUE_", "SLURM_", "SBATCH_", "SACCT_"))}
    assert left == {"SLURM_CONF", "SLURM_TIME_FORMAT"}
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


TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"


def test_a_submission_gives_the_id_of_the_job(fake: Fake) -> None:
    calls = fake("sbatch", ("a site's greeting\n4711;cluster\n", "", 0))
    assert submit_job("#!/bin/sh\n", ["--time=5"]) == "4711"
    ((parsable, time, comment),) = calls()
    assert (parsable, time) == ("--parsable", "--time=5")
    assert comment.startswith("--comment=hpcenc-")


def test_an_answer_that_is_no_id_is_an_error(fake: Fake) -> None:
    fake("sbatch", ("submitted, probably\n", "", 0))
    with pytest.raises(SlurmError, match="expected a job id, found 'submitted, probably'"):
        submit_job("#!/bin/sh\n", [])


def test_a_job_whose_answer_was_lost_is_not_submitted_twice(
    fake: Fake, no_pause: list[float], tmp_path: Path
) -> None:
    calls = fake("sbatch", ("", TIMED_OUT, 1), ("4712\n", "", 0))
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f'#!/bin/sh\necho "17|another"; echo "4711|$(cat {tmp_path}/sbatch.calls.token)"\n')
    squeue.chmod(0o755)
    assert submit_job("#!/bin/sh\n", []) == "4711"
    assert len(calls()) == 1


def test_a_job_that_never_arrived_is_submitted_again(fake: Fake, no_pause: list[float]) -> None:
    calls = fake("sbatch", ("", TIMED_OUT, 1), ("4712\n", "", 0))
    fake("squeue", ("17|another\n", "", 0))
    assert submit_job("#!/bin/sh\n", []) == "4712"
    assert len(calls()) == 2


def test_a_job_that_arrived_late_and_twice_is_cancelled_once(
    fake: Fake, no_pause: list[float], tmp_path: Path
) -> None:
    fake("sbatch", ("", TIMED_OUT, 1), ("4712\n", "", 0))
    cancelled = fake("scancel", ("", "", 0))
    squeue, asked = tmp_path / "bin" / "squeue", tmp_path / "asked"
    token = f"$(cat {tmp_path}/sbatch.calls.token)"
    squeue.write_text(
        f'#!/bin/sh\n[ -e {asked} ] && printf "4711|{token}\\n4712|{token}\\n"; touch {asked}\n'
    )
    squeue.chmod(0o755)
    assert submit_job("#!/bin/sh\n", []) == "4712"
    assert cancelled() == [["--quiet", "4711"]]


def test_jobs_that_do_not_end_are_told(fake: Fake) -> None:
    fake("scancel", ("", "", 0))
    fake("squeue", ("12|w|COMPLETING|None|n1|1795000000|1795000010|1795003610|\n", "", 0))
    assert not end_jobs("w", seconds=0)
    fake("squeue", ("12|w|CANCELLED|None|n1|1795000000|1795000010|1795003610|\n", "", 0))
    assert end_jobs("w", seconds=0)


def test_a_job_that_comes_back_while_its_end_is_waited_for_is_cancelled_again(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    line = "12|w|{}|None|n1|1795000000|1795000010|1795003610|\n"
    cancelled = fake("scancel", ("", "", 0))
    states = ("COMPLETING", "COMPLETING", "PENDING", "CANCELLED")
    fake("squeue", *((line.format(state), "", 0) for state in states))
    assert end_jobs("w")
    assert len(cancelled()) == 2


def test_states_are_parsed(fake: Fake) -> None:
    fake(
        "squeue",
        (
            "12_3|w|RUNNING|None|n1|1795000000|1795000010|1795003610|a | b\n"
            "13|w|PENDING|Resources||1795000000|N/A|N/A|\n"
            "14|w|OUT_OF_MEMORY|OutOfMemory|n2|1795000000|1795000010|1795000020|\n"
            "slurm says something else\n",
            "",
            0,
        ),
    )
    running, pending, ended = job_states(name="w")
    assert (running.job_id, running.node, running.reason, running.ending) == ("12_3", "n1", "", "running")
    assert (running.submitted_s, running.start_s, running.end_s) == (1795000000, 1795000010, 1795003610)
    assert (pending.reason, pending.start_s, pending.ending) == ("Resources", None, "running")
    assert ended.ending == "out_of_memory"


def test_a_forgotten_job_has_no_state(fake: Fake) -> None:
    fake("squeue", ("", UNKNOWN_JOB, 1))
    assert job_states(ids=["4711"]) == []
    assert how_it_ended("4711") == "unknown"


def test_nothing_is_cancelled_where_nothing_is_named(fake: Fake) -> None:
    calls = fake("scancel", ("", "", 0))
    cancel_jobs(ids=[])
    assert calls() == []
    cancel_jobs(ids=["4711", "4712"])
    cancel_jobs(name="hpcenc-w-a1b2c3d4")
    assert calls() == [["--quiet", "4711", "4712"], ["--quiet", "--name=hpcenc-w-a1b2c3d4", "--me"]]

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hpcenc.cluster.liveness import is_gone
from hpcenc.storage.lock import LockOwner, process_start, this_process


@pytest.fixture(autouse=True)
def squeue_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file whose text squeue prints; without it squeue fails."""
    answer = tmp_path / "answer"
    script = tmp_path / "squeue"
    script.write_text(f"#!/bin/sh\ncat {answer}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return answer


@pytest.fixture
def ours() -> LockOwner:
    owner = this_process("run-1")
    if not owner.boot_id:
        pytest.skip("needs /proc/sys/kernel/random/boot_id")
    return owner


def ended_pid() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_process_that_runs_is_not_gone(ours: LockOwner) -> None:
    assert not is_gone(ours)


def test_a_process_that_has_ended_is_gone(ours: LockOwner) -> None:
    assert is_gone(replace(ours, pid=ended_pid()))


def test_a_process_that_was_killed_and_not_waited_for_is_gone(ours: LockOwner) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        owner = replace(ours, pid=child.pid, process_start=process_start(child.pid))
        assert not is_gone(owner)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}").exists()
        assert is_gone(owner)


def test_a_number_that_belongs_to_another_process_by_now_is_gone(ours: LockOwner) -> None:
    assert is_gone(replace(ours, process_start=str(int(ours.process_start) - 1)))


def test_another_users_process_is_told_by_its_start(ours: LockOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    assert not is_gone(ours)
    assert is_gone(replace(ours, process_start="1"))
    # Where /proc hides other users' processes, nothing can be told.
    assert not is_gone(replace(ours, pid=ended_pid()))


def test_a_process_of_before_a_restart_is_gone(ours: LockOwner) -> None:
    assert is_gone(replace(ours, boot_id="the boot before"))


def test_a_process_of_another_machine_is_in_doubt(ours: LockOwner) -> None:
    assert not is_gone(replace(ours, host="elsewhere", pid=ended_pid()))
    assert not is_gone(replace(ours, host="elsewhere", boot_id="another", pid=ended_pid()))


def test_a_machine_without_a_boot_identity_is_in_doubt(ours: LockOwner) -> None:
    assert not is_gone(replace(ours, boot_id="", process_start="", pid=ended_pid()))


def test_a_job_elsewhere_is_gone_when_squeue_says_so(ours: LockOwner, squeue_says: Path) -> None:
    owner = replace(ours, host="node07", boot_id="another", job_id="4711")
    assert not is_gone(owner)  # squeue fails
    squeue_says.write_text("RUNNING\n")
    assert not is_gone(owner)
    squeue_says.write_text("")
    assert is_gone(owner)


def test_a_job_of_another_cluster_is_in_doubt(
    ours: LockOwner, squeue_says: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue_says.write_text("")
    owner = replace(ours, host="node07", boot_id="another", job_id="4711", cluster="alpha")
    for cluster, gone in (("beta", False), ("alpha", True)):
        monkeypatch.setenv("SLURM_CLUSTER_NAME", cluster)
        assert is_gone(owner) == gone
    monkeypatch.delenv("SLURM_CLUSTER_NAME")
    scontrol = squeue_says.parent / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'ClusterName             = alpha'\n")
    scontrol.chmod(0o755)
    assert is_gone(owner)
    scontrol.write_text("#!/bin/sh\nexit 1\n")
    assert not is_gone(owner)


def test_a_killed_command_is_gone_though_its_job_goes_on(ours: LockOwner, squeue_says: Path) -> None:
    squeue_says.write_text("RUNNING             0\n")
    assert is_gone(replace(ours, job_id="4711", pid=ended_pid()))


def test_a_job_that_slurm_starts_again_keeps_its_store_on_its_first_machine_too(
    ours: LockOwner, squeue_says: Path
) -> None:
    owner = replace(ours, job_id="4711", pid=ended_pid())
    assert not is_gone(owner)  # squeue fails
    for answer in ("PENDING             1\n", "COMPLETING          0\n", "RUNNING             1\n"):
        squeue_says.write_text(answer)
        assert not is_gone(owner)
    squeue_says.write_text("")
    assert is_gone(owner)


def test_a_job_that_was_started_anew_takes_the_store_of_its_process_of_before(
    ours: LockOwner, squeue_says: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue_says.write_text("RUNNING             1\n")
    owner = replace(ours, job_id="4711", pid=ended_pid())
    assert not is_gone(owner)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert is_gone(owner)
    assert not is_gone(replace(owner, pid=os.getpid()))


def test_another_users_job_that_squeue_denies_is_in_doubt_where_jobs_are_private(
    ours: LockOwner, squeue_says: Path
) -> None:
    squeue_says.write_text("")
    owner = replace(ours, host="node07", boot_id="another", job_id="4711", user="ana")
    scontrol = squeue_says.parent / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'PrivateData             = jobs'\n")
    scontrol.chmod(0o755)
    assert not is_gone(owner)
    assert is_gone(replace(owner, user=ours.user))
    scontrol.write_text("#!/bin/sh\necho 'PrivateData             = none'\n")
    assert is_gone(owner)


def test_a_command_that_runs_is_not_gone_whatever_squeue_says(ours: LockOwner, squeue_says: Path) -> None:
    squeue_says.write_text("")
    assert not is_gone(replace(ours, job_id="4711"))

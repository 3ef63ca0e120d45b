"""That the sandbox is what the other tests take it for."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import Sandbox, SandboxError, wait_for


def submit(sandbox: Sandbox, folder: Path, script: str, *options: str) -> str:
    return sandbox.run("sbatch", "--parsable", *options, input=f"#!/bin/sh\n{script}\n", cwd=folder).strip()


def test_a_job_has_a_fake_gpu_of_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    job = submit(
        sandbox,
        tmp_path,
        'echo "$CUDA_VISIBLE_DEVICES $SLURMD_NODENAME"',
        "-p",
        "gpu",
        "--gres=gpu:1",
        "-oout",
    )
    wait_for(lambda: sandbox.state(job) == "COMPLETED", 20, "the job")
    assert (tmp_path / "out").read_text().split() == ["0", "n1"]


def test_a_higher_partition_preempts(sandbox: Sandbox, tmp_path: Path) -> None:
    everything = ("-p", "gpu", "--nodes=3", "--ntasks-per-node=8", "--no-requeue")
    job = submit(sandbox, tmp_path, "sleep 600", *everything)
    wait_for(lambda: sandbox.state(job) == "RUNNING", 20, "the job")
    other = submit(sandbox, tmp_path, "true", "-p", "high")
    wait_for(lambda: sandbox.state(job) == "PREEMPTED", 30, "its preemption")
    wait_for(lambda: sandbox.state(other) == "COMPLETED", 30, "the other one")


def test_a_node_that_goes_down_ends_its_jobs(sandbox: Sandbox, tmp_path: Path) -> None:
    job = submit(sandbox, tmp_path, "sleep 600", "-p", "gpu", "-w", "n2", "--no-requeue")
    wait_for(lambda: sandbox.state(job) == "RUNNING", 20, "the job")
    sandbox.node_state("n2", "down")
    wait_for(lambda: sandbox.state(job) == "NODE_FAIL", 20, "its end")


def test_a_job_runs_on_without_the_head_of_the_cluster(sandbox: Sandbox, tmp_path: Path) -> None:
    job = submit(sandbox, tmp_path, "until [ -e go ]; do sleep 0.1; done", "-p", "cpu")
    wait_for(lambda: sandbox.state(job) == "RUNNING", 20, "the job")
    sandbox.stop_controller()
    sandbox.start_controller()
    assert sandbox.state(job) == "RUNNING"
    (tmp_path / "go").touch()
    wait_for(lambda: sandbox.state(job) == "COMPLETED", 20, "its end")


def test_a_living_cluster_is_not_started_again(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="slurmctld, munged still run"):
        sandbox.start()

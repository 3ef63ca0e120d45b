"""The door to SLURM against a real one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox import Sandbox, wait_for

from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import (
    cancel_jobs,
    check_job,
    how_it_ended,
    is_gone,
    job_states,
    requeue_job,
    runs_on,
    submit_job,
)
from hpcenc.slurm.scripts import JobRequest, render_script, sbatch_options, worker_name


@pytest.fixture
def request_(sandbox: Sandbox, tmp_path: Path) -> JobRequest:
    folder = tmp_path / 'a run\'s; $(touch hurt) 100%j "folder"'
    (folder / "logs").mkdir(parents=True)
    # A name of its own: SLURM remembers the jobs of the tests before.
    return JobRequest(
        worker_name(secrets.token_hex(4)), folder, walltime_min=5, cores=1, memory_mb=200, partition="gpu"
    )


def start(request: JobRequest, *command: str) -> str:
    return submit_job(render_script(command, walltime_min=5), sbatch_options(request))


def gated(folder: Path) -> tuple[str, ...]:
    """A command that waits for a file."""
    return ("bash", "-c", 'until [ -e "$0" ]; do sleep 0.1; done', str(folder / "go"))


def test_hostile_folders_and_arguments_come_through_a_real_job(request_: JobRequest) -> None:
    show = "import json, os, sys; json.dump([sys.argv[1:], os.getcwd()], open('seen.json', 'w'))"
    job = start(request_, sys.executable, "-c", show, "; touch hurt", "$(touch hurt)", "100%j")
    wait_for(lambda: how_it_ended(job) == "completed", 20, "the job")
    arguments, folder = json.loads((request_.folder / "seen.json").read_text())
    assert arguments == ["; touch hurt", "$(touch hurt)", "100%j"]
    assert folder == str(request_.folder)
    assert [path.name for path in (request_.folder / "logs").iterdir()] == [f"{request_.name}-{job}.log"]
    assert not list(request_.folder.rglob("hurt"))


def test_jobs_are_told_and_cancelled_by_name(request_: JobRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [start(request_, *gated(request_.folder)) for _ in range(2)]
    other = start(replace(request_, name="hpcenc-other"), *gated(request_.folder))
    wait_for(lambda: {job.state for job in job_states(name=request_.name)} == {"RUNNING"}, 20, "the jobs")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    found = job_states(ids=jobs)
    assert {job.job_id for job in found} == set(jobs)
    assert all(job.node.startswith("n") and job.start_s and job.ending == "running" for job in found)
    assert not is_gone(jobs[0])
    assert runs_on(jobs[0], 0)
    assert not runs_on(jobs[0], 1)
    cancel_jobs(name=request_.name)
    wait_for(lambda: all(is_gone(job) for job in jobs), 20, "their ends")
    assert [how_it_ended(job) for job in jobs] == ["cancelled", "cancelled"]
    assert not is_gone(other)
    cancel_jobs(ids=[other, *jobs])


def test_the_scratch_folder_of_a_job_goes_with_it_also_if_it_is_cancelled(
    request_: JobRequest, tmp_path: Path
) -> None:
    script = render_script(gated(request_.folder), walltime_min=5, scratch=str(tmp_path / "scratch"))
    cancelled, ended = (submit_job(script, sbatch_options(request_)) for _ in range(2))
    made = tmp_path / "scratch" / f"hpcenc-{os.getuid()}-{cancelled}"
    wait_for(made.exists, 20, "the folder")
    cancel_jobs(ids=[cancelled])
    wait_for(lambda: not made.exists(), 20, "the folder's end")
    (request_.folder / "go").touch()
    wait_for(lambda: how_it_ended(ended) == "completed", 20, "the job")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_impossible_request_gives_sbatchs_words_at_once_and_submits_nothing(
    sandbox: Sandbox, request_: JobRequest
) -> None:
    impossible = replace(request_, gpu_request="--gres=gpu:99")
    for ask in (check_job, submit_job):
        with pytest.raises(SlurmError, match="Requested node configuration is not available"):
            ask(render_script(["true"], walltime_min=5), sbatch_options(impossible))
    with pytest.raises(SlurmError, match="invalid partition specified: nowhere"):
        check_job(
            render_script(["true"], walltime_min=5), sbatch_options(replace(request_, partition="nowhere"))
        )
    assert sandbox.jobs(ended=False) == []


def test_endings_of_a_real_slurm(sandbox: Sandbox, request_: JobRequest) -> None:
    failed = start(request_, "false")
    wait_for(lambda: how_it_ended(failed) == "failed", 20, "the failure")
    down = start(replace(request_, extra=("--nodelist=n2",)), *gated(request_.folder))
    wait_for(lambda: sandbox.state(down) == "RUNNING", 20, "a job on n2")
    sandbox.node_state("n2", "down")
    wait_for(lambda: how_it_ended(down) == "node_fail", 20, "the node's end")
    victim = start(replace(request_, cores=8, extra=("--nodelist=n3",)), *gated(request_.folder))
    wait_for(lambda: sandbox.state(victim) == "RUNNING", 20, "a job on n3")
    strong = replace(request_, partition="high", cores=8, extra=("--nodelist=n3",), name="strong")
    start(strong, "true")
    wait_for(lambda: how_it_ended(victim) == "preempted", 30, "the preemption")
    assert how_it_ended("999999") == "unknown"


def test_a_job_is_requeued_under_its_id(sandbox: Sandbox, request_: JobRequest) -> None:
    job = start(replace(request_, requeue=True), *gated(request_.folder))
    wait_for(lambda: sandbox.state(job) == "RUNNING", 20, "the job")
    requeue_job(job)
    wait_for(lambda: sandbox.state(job) == "PENDING", 30, "the requeue")
    sandbox.hurry(job)
    (request_.folder / "go").touch()
    wait_for(lambda: how_it_ended(job) == "completed", 30, "its end")


def test_a_submission_waits_for_a_controller_that_is_away(sandbox: Sandbox, request_: JobRequest) -> None:
    sandbox.stop_controller()
    with pytest.raises(SlurmError, match="could not be reached"):
        submit_job(render_script(["true"], walltime_min=5), sbatch_options(request_), patience_s=0)
    sandbox.start_controller()
    job = start(request_, "true")
    wait_for(lambda: how_it_ended(job) == "completed", 20, "the job")
    assert len(job_states(name=request_.name)) >= 1


def test_an_array_whose_answer_was_lost_goes_by_its_one_id(
    request_: JobRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    shim.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" > /dev/null\necho "{lost}" >&2\nexit 1\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    options = [*sbatch_options(request_), "--array=0-3", "--hold"]
    job = submit_job(render_script(["true"], walltime_min=5), options)
    assert {state.job_id for state in job_states(name=request_.name)} == {
        f"{job}_{place}" for place in range(4)
    }
    cancel_jobs(ids=[job])
    assert {state.ending for state in job_states(name=request_.name)} == {"cancelled"}

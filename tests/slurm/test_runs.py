"""hpcenc's own commands on a real SLURM, from submit to the report, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sandbox import Sandbox, wait_for
from small_study import write_small_study

PROFILE = """\
scratch = "/tmp"
prologue = ["until [ -e {gate} ]; do sleep 0.1; done"]

[controller]
partition = "cpu"
walltime = 30
memory = "1G"

[cpu]
partition = "gpu"
walltime = 10
cores = 1
memory = "1G"
max_jobs = 2

[gpu]
partition = "gpu"
walltime = 10
cores = 1
memory = "1G"
max_jobs = 2
gpu_request = "--gres=gpu:1"

[network]
interface = "lo"
"""


@dataclass
class Site:
    """A study in a folder with a blank and other traps in its name, and the site's profile.

    Attributes
    ----------
    gate : Path
        Jobs wait for this file before they do anything.
    """

    sandbox: Sandbox
    study: Path
    gate: Path
    profiles: Path

    @property
    def results(self) -> Path:
        return self.study.parent / "results"

    @property
    def run_folder(self) -> Path:
        return max((self.results / "study.runs").iterdir())

    def hpcenc(self, command: str, *options: str, status: int = 0) -> str:
        """What a command prints; it must end with that exit status."""
        done = self.start(command, *options).communicate(timeout=120)
        assert self.last.returncode == status, done
        assert "Traceback" not in done[1], done[1]
        self.errors = done[1]
        return done[0]

    def start(self, command: str, *options: str) -> subprocess.Popen[str]:
        """Begin a command."""
        self.last = subprocess.Popen(
            [sys.executable, "-m", "hpcenc.cli.app", command, str(self.study), *options],
            env={**os.environ, "HPCENC_PROFILES": str(self.profiles), "SQUEUE_STATES": "PENDING"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.last

    def submit(self, *options: str) -> str:
        """Submit, and give the controller's job id."""
        return str(json.loads(self.hpcenc("submit", "--json", *options))["job"])

    def open(self) -> None:
        """Let jobs begin."""
        self.gate.touch()

    def events(self) -> list[dict[str, Any]]:
        """Events of the latest run."""
        log = self.run_folder / "events.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def await_event(self, name: str, times: int = 1) -> None:
        """Wait until something was told so many times."""
        wait_for(lambda: sum(event["event"] == name for event in self.events()) >= times, 60, f"event {name}")

    def await_state(self, job: str, state: str) -> None:
        wait_for(lambda: self.sandbox.state(job) == state, 60, f"job {job} to be {state}")

    def worker_jobs(self) -> list[str]:
        """Jobs of workers that wait or run."""
        return [job.job_id for job in self.sandbox.jobs(ended=False) if job.name.startswith("hpcenc-w-")]


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def site(sandbox: Sandbox, tmp_path: Path, small_study: Path) -> Site:
    folder = tmp_path / "my study; $(touch hurt) 100%j"
    shutil.copytree(small_study.parent, folder)  # with the files' times, which identify BOLD
    study = folder / small_study.name
    study.write_text(study.read_text().replace("[cluster]\n", '[cluster]\nprofile = "site"\n'))
    gate, profiles = tmp_path / "gate", tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "site.toml").write_text(PROFILE.format(gate=gate))
    return Site(sandbox, study, gate, profiles)


@pytest.fixture(scope="session")
def undisturbed(small_study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Chunks that one process without SLURM writes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    shutil.copytree(small_study.parent, folder)
    study = folder / small_study.name
    command = [sys.executable, "-m", "hpcenc.cli.app", "submit", str(study), "--profile", "serial"]
    subprocess.run(command, check=True, capture_output=True)
    return chunks(folder / "results" / "study.zarr")


def chunks(store: Path) -> dict[str, bytes]:
    """Everything in a store but metadata, which name the backend's device."""
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "zarr.json")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


@pytest.fixture
def check_done(site: Site, undisturbed: dict[str, bytes], tmp_path: Path) -> Callable[[], None]:
    """That a run has ended well: the same bytes, a report, no lock, no keys, nothing run that should not."""

    def check() -> None:
        assert chunks(site.results / "study.zarr") == undisturbed
        assert list(site.results.rglob("*.html"))
        assert not list(tmp_path.rglob("hurt"))

    return check


def test_a_study_goes_from_submit_to_report(site: Site, check_done: Callable[[], None]) -> None:
    site.open()
    said = site.hpcenc("submit")
    job = said.split()[1]
    assert said.splitlines()[0] == f"job      {job}"
    site.hpcenc("wait")
    site.await_state(job, "COMPLETED")
    check_done()
    assert f"hpcenc-{site.run_folder.name.rpartition('-')[2]}-{job}.log" in site.hpcenc("logs", "--job", job)
    status = json.loads(site.hpcenc("status", "--json"))
    assert status["ended"] == 0
    assert status["stages"]["fit"] == [4, 4]
    assert status["account"]["worker_hours"] > 0
    assert status["jobs"] == []


def test_a_run_that_waits_says_why_and_since_when(site: Site) -> None:
    job = site.submit("--sbatch-arg=--begin=now+1hour")
    wait_for(lambda: "BeginTime" in site.hpcenc("status"), 30, "SLURM's reason")
    said = site.hpcenc("status")
    assert f"waiting for its controller, job {job}" in said
    assert f"job {job} (hpcenc-{site.run_folder.name.rpartition('-')[2]}) waits since 20" in said
    site.hpcenc("cancel")
    assert "no job of it waits or runs" in site.hpcenc("cancel")


def test_a_second_run_is_refused_and_told_the_first_ones_job(
    site: Site, check_done: Callable[[], None]
) -> None:
    job = site.submit()
    site.hpcenc("submit", status=2)
    assert f"(job {job}, which waits) holds this store" in site.errors
    site.open()
    site.hpcenc("wait")
    site.await_state(job, "COMPLETED")
    check_done()


def test_what_slurm_would_refuse_is_refused_at_once_and_changes_nothing(site: Site) -> None:
    text = site.study.read_text()
    site.study.write_text(text + '[cluster.slurm.gpu]\ngpu_request = "--gres=gpu:99"\n')
    before = sorted(site.study.parent.rglob("*"))
    site.hpcenc("submit", status=2)
    assert "Requested node configuration is not available" in site.errors
    assert [path for path in site.study.parent.rglob("*") if path not in before and path.is_file()] == []
    assert site.sandbox.jobs(ended=False) == []


def test_a_cancelled_run_leaves_no_job_and_goes_on_by_the_same_submit(
    site: Site, check_done: Callable[[], None]
) -> None:
    job = site.submit()
    site.await_state(job, "RUNNING")
    assert job in site.hpcenc("cancel")
    assert site.sandbox.jobs(ended=False) == []
    site.open()
    site.submit()
    site.hpcenc("wait")
    wait_for(lambda: not site.sandbox.jobs(ended=False), 30, "the controller's end")
    check_done()


def test_a_cancelled_run_takes_its_workers_along(site: Site, check_done: Callable[[], None]) -> None:
    site.open()
    hold_workers(site)
    site.submit()
    wait_for(site.worker_jobs, 60, "workers")
    site.hpcenc("cancel")
    assert site.sandbox.jobs(ended=False) == []
    release_workers(site)
    site.submit()
    site.hpcenc("wait")
    wait_for(lambda: not site.sandbox.jobs(ended=False), 30, "the controller's end")
    check_done()


@pytest.mark.parametrize("how", ["killed", "requeued", "told that its walltime ends"])
def test_a_controller_that_ends_early_loses_nothing(
    how: str, site: Site, check_done: Callable[[], None]
) -> None:
    site.open()
    hold_workers(site)
    job = site.submit()
    wait_for(site.worker_jobs, 60, "workers")
    before = site.worker_jobs()
    if how == "killed":
        site.sandbox.run("scancel", "--signal=KILL", "--full", job)
        wait_for(lambda: site.sandbox.state(job) not in ("RUNNING", "COMPLETING"), 60, "the controller's end")
    elif how == "requeued":
        site.sandbox.run("scontrol", "requeue", job)
    else:
        site.sandbox.run("scancel", "--signal=USR1", "--batch", job)
        site.await_event("requeued")
    release_workers(site)
    if how == "killed":
        site.submit()
    else:
        site.await_state(job, "PENDING")
        site.sandbox.hurry(job)
    site.hpcenc("wait")
    wait_for(lambda: not site.sandbox.jobs(ended=False), 60, "the end of all jobs")
    check_done()
    assert len(list((site.results / "study.runs").iterdir())) == (2 if how == "killed" else 1)
    assert not {site.sandbox.state(each) for each in before} & {"PENDING", "RUNNING", "COMPLETED"}


def test_the_controller_may_run_in_the_foreground(site: Site, check_done: Callable[[], None]) -> None:
    site.open()
    said = json.loads(site.hpcenc("submit", "--controller", "here", "--json"))
    assert said["exit_status"] == 0
    assert said["units_done"] >= 4
    check_done()


def hold_workers(site: Site) -> None:
    """Workers' jobs, and no controllers', wait until they are released."""
    text = PROFILE.format(gate=site.gate)
    wait = f"until [ -e {site.gate}.workers ]; do sleep 0.1; done"
    held = f'case \\"$SLURM_JOB_NAME\\" in hpcenc-w-*) {wait};; esac'
    (site.profiles / "site.toml").write_text(text.replace("prologue = [", f'prologue = ["{held}", '))


def release_workers(site: Site) -> None:
    site.gate.with_name(site.gate.name + ".workers").touch()

"""A study in a folder with traps in its name, at a site whose SLURM is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import Sandbox, wait_for

from hpcenc.cluster.run_folder import RunFolder
from hpcenc.slurm.jobs import JobState

PROFILE = """\
scratch = "{gate}.scratch"
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
        return list(RunFolder(self.run_folder).events())

    def await_event(self, name: str, times: int = 1) -> None:
        """Wait until something was told so many times."""
        wait_for(lambda: sum(event["event"] == name for event in self.events()) >= times, 60, f"event {name}")

    def await_state(self, job: str, state: str) -> None:
        wait_for(lambda: self.sandbox.state(job) == state, 60, f"job {job} to be {state}")

    def worker_states(self) -> list[JobState]:
        """Jobs of workers that wait or run."""
        return [job for job in self.sandbox.jobs(ended=False) if job.name.startswith("hpcenc-w-")]

    def worker_jobs(self) -> list[str]:
        """Their ids."""
        return [job.job_id for job in self.worker_states()]

    def hold_workers(self) -> None:
        """Workers' jobs, and no controllers', wait until they are released."""
        text = PROFILE.format(gate=self.gate)
        wait = f"until [ -e {self.gate}.workers ]; do sleep 0.1; done"
        held = f'case \\"$SLURM_JOB_NAME\\" in hpcenc-w-*) {wait};; esac'
        (self.profiles / "site.toml").write_text(text.replace("prologue = [", f'prologue = ["{held}", '))

    def release_workers(self) -> None:
        """Let them begin."""
        self.gate.with_name(self.gate.name + ".workers").touch()

    def await_no_jobs(self) -> None:
        """Wait until no job waits or runs."""
        wait_for(lambda: not self.sandbox.jobs(ended=False), 60, "the end of all jobs")


def chunks(store: Path) -> dict[str, bytes]:
    """Everything in a store but metadata, which name the backend's device."""
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "zarr.json")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}

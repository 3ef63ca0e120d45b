"""A study in a folder with traps in its name, at a site whose SLURM is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox import Sandbox, wait_for

from hpcenc.cluster.run_folder import RunFolder
from hpcenc.slurm.jobs import JobState

PROFILE = """\
scratch = "{gate}.scratch"
prologue = ["until [ -e {gate} ]; do sleep 0.1; done", "export HOME={gate}.home"]

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

WORKERS = "hpcenc-w-*"
"""Names of their jobs, as a pattern of the shell."""
CONTROLLER = "hpcenc-????????"

HELD = """\
import os, time
from pathlib import Path

gate, told, fsync = Path({gate!r}), Path({told!r}), os.fsync


def held(descriptor):
    if "/fits/" in os.readlink(f"/proc/self/fd/{{descriptor}}") and not gate.exists():
        with told.open("a") as file:
            file.write(os.environ["SLURM_JOB_ID"] + "\\n")
        while not gate.exists():
            time.sleep(0.05)
    fsync(descriptor)


os.fsync = held
"""
"""Holds a fit when its first values are written and no mark says so."""


@dataclass
class Site:
    """A study in a folder with a blank and other traps in its name, and the site's profile.

    Attributes
    ----------
    gate : Path
        Jobs wait for this file before they do anything.
    given : set of Path
        Files of the study before the first command, but for results.
    """

    sandbox: Sandbox
    study: Path
    gate: Path
    profiles: Path
    given: set[Path] = field(default_factory=set)

    @property
    def home(self) -> Path:
        """The user's home, as jobs see it."""
        return self.gate.with_name(self.gate.name + ".home")

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
        self.given = self.given or self.files()
        self.last = subprocess.Popen(
            [sys.executable, "-m", "hpcenc.cli.app", command, str(self.study), *options],
            env={**os.environ, "HPCENC_PROFILES": str(self.profiles), "SQUEUE_STATES": "PENDING"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.last

    def files(self) -> set[Path]:
        """Files of the study, but for results."""
        found = self.study.parent.rglob("*")
        return {path for path in found if self.results not in (path, *path.parents)}

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
        wait_for(lambda: len(self.told(name)) >= times, 60, f"event {name}")

    def await_state(self, job: str, state: str) -> None:
        wait_for(lambda: self.sandbox.state(job) == state, 60, f"job {job} to be {state}")

    def worker_states(self) -> list[JobState]:
        """Jobs of workers that wait or run."""
        return [job for job in self.sandbox.jobs(ended=False) if job.name.startswith("hpcenc-w-")]

    def worker_jobs(self) -> list[str]:
        """Their ids."""
        return [job.job_id for job in self.worker_states()]

    def prologue(self, line: str, of: str = "*") -> None:
        """One more line of the jobs whose names match a pattern of the shell."""
        path = self.profiles / "site.toml"
        shown = json.dumps(f'case "$SLURM_JOB_NAME" in {of}) {line};; esac')
        path.write_text(path.read_text().replace("prologue = [", f"prologue = [{shown}, ", 1))

    def hold_workers(self) -> None:
        """Workers' jobs, and no controllers', wait until they are released."""
        self.prologue(f"until [ -e {self.gate}.workers ]; do sleep 0.1; done", WORKERS)

    def release_workers(self) -> None:
        """Let them begin."""
        self.gate.with_name(self.gate.name + ".workers").touch()

    def patch(self, code: str, of: str = WORKERS) -> None:
        """Code that Python runs as it starts in the jobs whose names match a pattern of the shell."""
        folder = Path(tempfile.mkdtemp(prefix="patch", dir=self.gate.parent))
        (folder / "sitecustomize.py").write_text(code)
        self.prologue(f'export PYTHONPATH="{folder}${{PYTHONPATH:+:$PYTHONPATH}}"', of)

    def hold_fits(self) -> None:
        """Workers that have written a part of a fit wait with it until they are released."""
        gate, told = self.gate.with_name("go on"), self.gate.with_name("at work")
        self.patch(HELD.format(gate=str(gate), told=str(told)))

    def release_fits(self) -> None:
        """Let them go on."""
        self.gate.with_name("go on").touch()

    def at_work(self) -> list[str]:
        """Jobs of fits that are held, one for each, also of those that are gone by now."""
        path = self.gate.with_name("at work")
        return path.read_text().split() if path.exists() else []

    def await_fits(self, n_fits: int) -> list[str]:
        """Jobs of fits that are held, once there are so many of them."""
        return wait_for(  # type: ignore[no-any-return]
            lambda: found if len(found := self.at_work()) >= n_fits else None, 60, f"{n_fits} fits"
        )

    def told(self, name: str) -> list[dict[str, Any]]:
        """Events of one kind of the latest run."""
        return [event for event in self.events() if event["event"] == name]

    def await_no_jobs(self) -> None:
        """Wait until no job waits or runs."""
        wait_for(lambda: not self.sandbox.jobs(ended=False), 60, "the end of all jobs")


def chunks(store: Path) -> dict[str, bytes]:
    """Everything in a store but metadata, which name the backend's device."""
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "zarr.json")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}

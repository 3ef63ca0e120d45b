"""Tasks on workers in jobs of a real SLURM, and what becomes of them when the jobs end."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, Security
from sandbox import Sandbox, processes_of, wait_for

from hpcenc.cluster.controller import Progress, run_plan
from hpcenc.cluster.executors import DaskExecutor
from hpcenc.cluster.pools import CrewError
from hpcenc.cluster.slurm_pool import SlurmPool
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.store import Store
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Task, Unit, run_units

KEY, N_UNITS = "a" * 64, 8
MakeTask = Callable[..., Task]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})
    arrays = {"values": ArraySpec((N_UNITS,), (1,), "int64", ("x",))}
    made.ensure_group(GroupSpec("numbers", KEY, arrays, N_UNITS, {}))
    return made.path


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """A task that says where it runs, and waits for a file before each unit; it may kill its worker."""

    @dataclass(frozen=True)
    class Toy:
        key: str
        units: tuple[Unit, ...]
        folder: Path

        def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
            return ()

        def run(self, store: Any, deadline: Any) -> Any:
            import os as os_there
            import time

            with (self.folder / f"{self.key} began").open("a") as file:
                file.write(f"{os_there.environ['SLURM_JOB_ID']} {os_there.environ['CUDA_VISIBLE_DEVICES']}\n")

            def work(unit: Unit) -> dict[str, Any]:
                while not (self.folder / "go").exists():
                    time.sleep(0.05)
                return {}

            return run_units(self, store, deadline, work)

    def make(key: str, *units: int) -> Task:
        return Toy(key, tuple(Unit("numbers", index, KEY) for index in units), tmp_path)

    return make


@dataclass
class Run:
    """A run in a thread, and what it has told so far."""

    folder: Path
    progress: Progress
    events: list[dict[str, Any]]
    thread: threading.Thread
    errors: list[BaseException]

    def began(self, key: str, times: int = 1) -> list[str]:
        """Jobs in which a task began, so many times at least."""
        path = self.folder / f"{key} began"

        def lines() -> list[str]:
            found = path.read_text().splitlines() if path.exists() else []
            return found if len(found) >= times else []

        wait_for(lambda: lines() or not self.thread.is_alive(), 60, f"try {times} of {key}")
        assert lines(), (self.errors, self.events)
        return [line.split()[0] for line in lines()]

    def end(self) -> Progress:
        """Let all tasks end, and wait."""
        (self.folder / "go").touch()
        self.thread.join(120)
        assert not self.thread.is_alive()
        if self.errors:
            raise self.errors[0]
        return self.progress

    def told(self, event: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [each for each in self.events if each["event"] == event]


@pytest.fixture
def start(
    sandbox: Sandbox, profile: SlurmProfile, store: Path, tmp_path: Path
) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*tasks: Task, profile: SlurmProfile = profile) -> Run:
        progress, events, errors = Progress(), [], []  # type: ignore[var-annotated]
        pool = SlurmPool("site", profile, os.urandom(4).hex(), tmp_path, "numpy", events.append)
        plan = Plan((Stage("fit", "gpu", tuple(tasks), True),), (), ())

        def go() -> None:
            try:
                run_plan(plan, store, DaskExecutor(pool), None, events.append, progress)
            except BaseException as error:
                errors.append(error)

        run = Run(tmp_path, progress, events, threading.Thread(target=go), errors)
        run.thread.start()
        runs.append(run)
        return run

    yield begin
    (tmp_path / "go").touch()
    for run in runs:
        run.thread.join(120)


def test_tasks_run_in_jobs_with_a_gpu_each(
    start: Callable[..., Run], make_task: MakeTask, sandbox: Sandbox
) -> None:
    run = start(make_task("a", 0), make_task("b", 1), make_task("c", 2))
    jobs = {*run.began("a"), *run.began("b")}
    assert len(jobs) == 2
    assert {job.state for job in sandbox.jobs() if job.job_id in jobs} == {"RUNNING"}
    progress = run.end()
    assert (progress.units_done, progress.units_left, progress.set_aside) == (3, 0, [])
    assert {event["gpu"] for event in run.told("worker")} == {"0", "1"}
    assert all(event["where"].startswith("job ") for event in run.told("unit"))
    assert not (run.folder / "private").exists()
    for folder in ("logs", "scripts"):
        assert {path.stem.rpartition("-")[2] for path in (run.folder / folder).iterdir()} >= jobs
    assert {event["kind"] for event in run.told("worker")} == {"gpu"}


def test_nobody_without_the_key_can_send_code_to_a_run(
    start: Callable[..., Run], make_task: MakeTask, sandbox: Sandbox
) -> None:
    run = start(make_task("a", 0))
    (job,) = run.began("a")
    (worker,) = processes_of(job, "dask_worker")
    arguments = Path(f"/proc/{worker}/cmdline").read_text().split("\0")
    (scheduler,) = (text for text in arguments if "://" in text)
    assert scheduler.startswith("tls://")
    plain = scheduler.replace("tls://", "tcp://")
    for tried, security in ((scheduler, Security.temporary()), (plain, None)):
        with pytest.raises(OSError, match=r"(?i)timed out|certificate|closed"):
            Client(tried, security=security, timeout=1)
    run.end()


def hold(run: Run, seconds: float) -> None:
    """Let the first unit last so long."""
    run.began("a")
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, seconds + 1, "the first unit's time")
    (run.folder / "go").touch()


def ending_in(profile: SlurmProfile, seconds: int) -> SlurmProfile:
    """Jobs that believe to end so soon; of that, 30 s are kept free."""
    prologue = (f"export SLURM_JOB_END_TIME=$(($(date +%s) + {seconds}))",)
    return profile.model_copy(update={"prologue": prologue})


def test_a_unit_that_fits_no_job_is_set_aside(
    start: Callable[..., Run], make_task: MakeTask, profile: SlurmProfile
) -> None:
    run = start(make_task("a", 0, 1), profile=ending_in(profile, 35))
    hold(run, 5)
    progress = run.end()
    assert progress.units_done == 1
    assert progress.set_aside == ["a: no unit fitted before the end of 3 jobs: a longer walltime is needed"]


def test_a_request_that_slurm_refuses_ends_the_run_with_its_words(
    start: Callable[..., Run], make_task: MakeTask, profile: SlurmProfile
) -> None:
    assert profile.gpu is not None
    impossible = profile.gpu.model_copy(update={"gpu_request": "--gres=gpu:99"})
    run = start(make_task("a", 0), profile=profile.model_copy(update={"gpu": impossible}))
    with pytest.raises(CrewError, match="Requested node configuration is not available"):
        run.end()


def test_workers_that_never_come_to_work_end_the_run_with_their_log(
    start: Callable[..., Run], make_task: MakeTask, profile: SlurmProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcenc.cluster.slurm_crew.QUEUE_S", 1.0)
    broken = profile.model_copy(update={"prologue": ("echo no such module >&2; exit 1",)})
    run = start(make_task("a", 0), profile=broken)
    with pytest.raises(CrewError, match=r"3 in a row, the last: job \d+ ended \(FAILED\).*its log is logs/"):
        run.end()
    log = max((run.folder / "logs").iterdir())
    assert "no such module" in log.read_text()


def test_workers_of_another_version_get_no_task(
    start: Callable[..., Run], make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcenc.cluster.slurm_crew.code_digest", lambda: "another")
    run = start(make_task("a", 0))
    with pytest.raises((CrewError, SlurmError), match=r"code differs|node configuration is not available"):
        run.end()
    assert not (run.folder / "a began").exists()
    assert "code differs from the controller's" in run.told("worker refused")[0]["why"]


def test_a_worker_that_cannot_say_whether_it_works_gets_no_task(
    start: Callable[..., Run], make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enlist(code: str, backend: str) -> None:
        raise OSError("the code cannot be read here")

    monkeypatch.setattr("hpcenc.cluster.slurm_crew.enlist", enlist)
    run = start(make_task("a", 0))
    with pytest.raises((CrewError, SlurmError), match=r"code cannot be read|configuration is not available"):
        run.end()
    assert not (run.folder / "a began").exists()
    refused = run.told("worker refused")
    assert len({event["node"] for event in refused}) == len(refused)
    assert refused[0]["why"].endswith("OSError: the code cannot be read here")


def three_ports() -> tuple[int, int]:
    """A range of ports that nobody listens on: for the controller, for a test, and for one worker."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = stack.enter_context(socket.create_server(("", 0))).getsockname()[1]
            for port in (first + 1, first + 2):
                stack.enter_context(socket.create_server(("", port)))
            return first, first + 2


def test_a_worker_at_the_port_of_one_that_is_gone_gets_to_work(
    start: Callable[..., Run], make_task: MakeTask, profile: SlurmProfile, sandbox: Sandbox
) -> None:
    ports = three_ports()
    network = profile.network.model_copy(update={"ports": ports})
    with socket.create_server(("", ports[0])):  # another run's controller
        run = start(make_task("a", 0), profile=profile.model_copy(update={"network": network}))
        sandbox.run("scancel", *run.began("a"))
        assert len(set(run.began("a", 2))) == 2
        assert run.end().units_done == 1

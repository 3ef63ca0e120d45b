"""What a controller leaves behind when it cannot go on; the rest of it is in tests/slurm."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_study import write_small_study

from hpcenc.cluster.attempts import Outcome
from hpcenc.cluster.control import control, take_lock
from hpcenc.cluster.executors import Drain
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.runs import ended_with
from hpcenc.cluster.slurm_pool import SlurmPool
from hpcenc.cluster.submit import prepare
from hpcenc.storage.errors import LockError, StudyError
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import LockOwner, acquire, job_of, read_lock
from hpcenc.tasks.records import Task, TaskRecord

WORKERS = {"partition": "any", "walltime": 10, "cores": 1, "memory": "2G"}
SITE = {
    "scratch": "/tmp",
    "umask": "007",
    "controller": {"partition": "any", "walltime": 30},
    "cpu": WORKERS,
}


class Signalled:
    """An executor whose run is told to end while a task is at work."""

    name, n_workers, n_threads = "site", 1, 1

    def __init__(self, drain: Drain, *signals: signal.Signals) -> None:
        self._drain, self._signals = drain, signals

    def run(self, tasks: Sequence[Task], *others: Any) -> Iterator[Outcome]:
        for each in self._signals:
            os.kill(os.getpid(), each)
        assert self._drain.has_begun() == (signal.SIGUSR1 in self._signals)
        for task in tasks:
            yield Outcome(task, TaskRecord(task.key, left=tuple(str(unit) for unit in task.units)))


@pytest.fixture
def submitted(
    tmp_path: Path, begin_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> RunFolder:
    """The folder of a run whose controller this process is, in job 77 of cluster alpha."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alpha")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    folder = begin_run(prepare(write_small_study(tmp_path), profile="serial"), SITE)
    folder.log({"event": "submitted", "job": "77"})
    return folder


@pytest.mark.parametrize(
    ("signals", "requeued"),
    [
        ([signal.SIGUSR1], True),
        ([signal.SIGUSR1, signal.SIGTERM], False),
        ([signal.SIGTERM], False),
    ],
)
def test_a_controller_asks_for_another_start_if_its_walltime_ended_it_and_not_if_it_was_cancelled(
    signals: list[signal.Signals],
    requeued: bool,
    submitted: RunFolder,
    queue: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = submitted
    waiting, lock = job_of("abcdefgh", "77", "alpha"), lock_path(folder.study().store_path)
    acquire(lock, waiting, lambda _: False)
    monkeypatch.setattr("hpcenc.cluster.control.DaskExecutor", lambda pool, drain: Signalled(drain, *signals))
    assert control(folder.path).exit_status == 3
    assert queue.calls("scontrol") == (["requeue 77"] if requeued else [])
    assert [event["event"] for event in folder.events()][-1] == ("requeued" if requeued else "end")
    # No other run may begin as long as SLURM may start the job again, which squeue says.
    assert read_lock(lock) == waiting


@pytest.mark.parametrize("found", ["by its look at the queue", "at its walltime"])
def test_a_controller_whose_run_another_one_has_taken_over_leaves_it_all_to_that_one(
    found: str,
    submitted: RunFolder,
    queue: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = submitted
    lock = lock_path(folder.study().store_path)
    acquire(lock, job_of("abcdefgh", "77", "alpha"), lambda _: False)
    second: list[LockOwner] = []

    def make_executor(pool: SlurmPool, drain: Drain) -> Signalled:
        # The job was started again on another node, though this process lives.
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        second.append(take_lock(folder.study().store_path, "abcdefgh"))
        queue.add("78", "hpcenc-w-abcdefgh")
        (folder.path / "private").mkdir()
        if found == "at its walltime":
            return Signalled(drain, signal.SIGUSR1)
        with pool.open("cpu", 1, 1):
            raise AssertionError("it has no workers any more")

    monkeypatch.setattr("hpcenc.cluster.control.DaskExecutor", make_executor)
    if found == "at its walltime":
        control(folder.path)
    else:
        with pytest.raises(LockError, match="run abcdefgh: another controller has taken it over"):
            control(folder.path)
        assert [event["event"] for event in folder.events()] == ["submitted", "controller"]
    assert read_lock(lock) == second[0]
    assert queue.states() == {"78": "RUNNING"}
    assert queue.calls("scontrol") == []
    assert (folder.path / "private").exists()


def test_a_controller_runs_nothing_of_a_run_json_that_was_changed(
    tmp_path: Path, begin_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    prepared = prepare(write_small_study(tmp_path), profile="serial")
    folder = begin_run(prepared, SITE)
    path = folder.path / "run.json"
    path.write_text(path.read_text().replace('"scratch"', '"prologue": ["touch hurt"], "scratch"'))
    with pytest.raises(StudyError, match=r"run.json: expected what was submitted, found another text"):
        control(folder.path, digest=folder.digest)
    assert ended_with(folder) == 1
    assert [event["event"] for event in folder.events()] == ["set aside", "end"]
    assert read_lock(lock_path(prepared.study.store_path)) is None


def test_a_controller_that_ends_by_any_error_says_so_and_gives_the_store_back(
    tmp_path: Path, begin_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    prepared = prepare(write_small_study(tmp_path), profile="serial")
    folder = begin_run(prepared, SITE)

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("Cluster failed to start")

    monkeypatch.setattr("hpcenc.cluster.control.prepare_study", fail)
    before = os.umask(0o077)
    try:
        with pytest.raises(RuntimeError, match="Cluster failed to start"):
            control(folder.path)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert ended_with(folder) == 1
    events = list(folder.events())
    assert [event["event"] for event in events] == ["controller", "set aside", "end"]
    assert events[1]["reason"] == "RuntimeError: Cluster failed to start"
    assert not lock_path(prepared.study.store_path).exists()
    # The group reads what a controller in a terminal writes, whatever its user's umask is.
    (log,) = folder.path.glob("events*.jsonl")
    assert log.stat().st_mode & 0o040

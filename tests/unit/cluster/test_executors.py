from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, Security
from distributed.scheduler import KilledWorker

from hpcenc.cluster.attempts import MAX_TRIES, Attempts, run_task
from hpcenc.cluster.executors import (
    DaskExecutor,
    Drain,
    SerialExecutor,
    _Drive,
    ignore,
    make_executor,
    workers_and_threads,
)
from hpcenc.cluster.pools import LocalPool
from hpcenc.cluster.threads import THREAD_VARIABLES
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.store import Store
from hpcenc.storage.study import Cluster
from hpcenc.tasks.records import Deadline, Task, TaskRecord, Unit, UnitRecord, run_units


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)}).path


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """A task that tells where it ran, or fails; a local class, for workers cannot import this module."""

    @dataclass(frozen=True)
    class Toy:
        key: str
        raises: str = ""
        units: tuple[Any, ...] = ()

        def needs_of(self, unit: Any) -> tuple[Any, ...]:
            return ()

        def run(self, store: Any, deadline: Any) -> TaskRecord:
            if self.raises:
                raise {"error": ValueError, "storage": OSError}[self.raises](f"{self.key} went wrong")
            threads = {name: os.environ.get(name, "") for name in THREAD_VARIABLES}
            return TaskRecord(self.key, (UnitRecord(self.key, 0.0, {"pid": os.getpid(), **threads}),))

    return Toy


def test_errors_become_outcomes(make_task: Callable[..., Task], store: Path) -> None:
    outcome = run_task(make_task("a", "error"), store, None)
    assert (outcome.record, outcome.lost_by) == (None, "error")
    first, _, rest = outcome.message.partition("\n")
    assert first == "ValueError: a went wrong"
    assert "Traceback" in rest
    assert run_task(make_task("a", "storage"), store, None).lost_by == "storage"


def test_a_store_that_is_gone_becomes_an_outcome(make_task: Callable[..., Task], tmp_path: Path) -> None:
    assert "no store here" in run_task(make_task("a"), tmp_path / "gone", None).message


def test_serial_runs_in_this_process_in_order(make_task: Callable[..., Task], store: Path) -> None:
    tasks = [make_task(f"t{index}", "error" if index == 1 else "") for index in range(3)]
    outcomes = list(SerialExecutor(3).run(tasks, store, None))
    assert [outcome.task.key for outcome in outcomes] == ["t0", "t1", "t2"]
    assert [outcome.lost_by for outcome in outcomes] == ["", "error", ""]
    assert outcomes[0].record is not None
    facts = outcomes[0].record.done[0].facts
    assert facts["pid"] == os.getpid()
    assert {facts[name] for name in THREAD_VARIABLES} == {"3"}


def test_a_serial_run_tells_each_task_how_long_units_took_before(store: Path) -> None:
    """A task begins no unit that would not fit, its first one too."""
    told = []

    @dataclass(frozen=True)
    class Slow:
        key: str
        seconds: float
        units: tuple[Any, ...] = ()

        def needs_of(self, unit: Any) -> tuple[Any, ...]:
            return ()

        def run(self, store: Any, deadline: Deadline) -> TaskRecord:
            told.append(deadline.allows(0.0))
            return TaskRecord(self.key, (UnitRecord(self.key, self.seconds),))

    tasks = [Slow("a", 60.0), Slow("b", 600.0), Slow("c", 1.0)]
    list(SerialExecutor(1).run(tasks, store, Deadline(time.time() + 800)))
    assert told == [True, True, False]


def test_threads_are_as_before_after_a_serial_run(make_task: Callable[..., Task], store: Path) -> None:
    before = dict(os.environ)
    list(SerialExecutor(3).run([make_task("a")], store, None))
    assert dict(os.environ) == before


def test_local_runs_every_task_once_on_worker_processes(
    make_task: Callable[..., Task], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # a user's: the bytes of a product depend on its threads
    tasks = [make_task(f"t{index}", "storage" if index == 5 else "") for index in range(12)]
    outcomes = {
        outcome.task.key: outcome for outcome in DaskExecutor(LocalPool(2, 1)).run(tasks, store, None)
    }
    assert set(outcomes) == {task.key for task in tasks}
    assert outcomes["t5"].lost_by == "storage"
    records = [outcome.record for outcome in outcomes.values() if outcome.record is not None]
    assert len(records) == 11
    facts = [record.done[0].facts for record in records]
    assert os.getpid() not in {each["pid"] for each in facts}
    assert {each[name] for each in facts for name in THREAD_VARIABLES} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.fixture
def make_writer(store: Path) -> Callable[..., Task]:
    """A task that writes some blocks of its own group, one each 0.3 s, and says when it began."""
    arrays = {"values": ArraySpec((8,), (1,), "float32", ("x",))}

    @dataclass(frozen=True)
    class Writer:
        key: str
        units: tuple[Unit, ...]

        def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
            return ()

        def run(self, store: Any, deadline: Any) -> TaskRecord:
            (store.path.parent / f"{self.key} began").write_text(f"{os.getpid()} {time.time()}")

            def work(unit: Unit) -> dict[str, Any]:
                part = slice(unit.index, unit.index + 1)
                store.write(f"{unit.group}/values", (part,), np.ones(1, np.float32))
                time.sleep(0.3)
                return {}

            return run_units(self, store, deadline, work)

    def make(name: str, n_units: int) -> Task:
        Store(store).ensure_group(GroupSpec(name, "a" * 64, arrays, 8, {}))
        return Writer(name, tuple(Unit(name, index, "a" * 64) for index in range(n_units)))

    return make


def test_nobody_without_the_key_can_send_code_to_workers_on_this_machine() -> None:
    with LocalPool(1, 1).open("cpu", 1, 1) as crew:
        (worker,) = crew.workers()
        scheduler = crew._cluster.scheduler_address  # type: ignore[attr-defined]
        for address in (worker, scheduler):
            assert address.startswith("tls://127.0.0.1:")
        plain = scheduler.replace("tls://", "tcp://")
        for tried, security in ((scheduler, Security.temporary()), (plain, None)):
            with pytest.raises(OSError, match=r"(?i)timed out|certificate|closed"):
                Client(tried, security=security, timeout=1)
        assert crew.submit(worker, int, 7).result() == 7


def test_tasks_in_two_slots_of_a_worker_overlap_and_are_at_most_two(
    make_writer: Callable[..., Task], store: Path
) -> None:
    tasks = [make_writer(name, 2) for name in "abcd"]
    begins = []
    for outcome in DaskExecutor(LocalPool(1, 1)).run(tasks, store, None, slots=2):
        assert outcome.record is not None
        assert len(outcome.record.done) == 2
        assert any(outcome.task is task for task in tasks), "the task does not travel back"
        assert all(unit.done(store) for unit in outcome.task.units), "a task ends after its own marks"
    for task in tasks:
        pid, began = (store.parent / f"{task.key} began").read_text().split()
        begins.append((float(began), pid))
    assert len({pid for _, pid in begins}) == 1
    times = sorted(began for began, _ in begins)
    assert times[1] - times[0] < 0.6 <= times[2] - times[0]


def test_a_writer_that_fails_fails_its_own_task_at_once_and_its_neighbour_goes_on(
    make_writer: Callable[..., Task], store: Path
) -> None:
    failing, neighbour = make_writer("failing", 1), make_writer("neighbour", 8)
    (store / "failing" / "values" / "0").mkdir()  # where the chunk belongs
    outcomes = []
    for outcome in DaskExecutor(LocalPool(1, 1)).run([neighbour, failing], store, None, slots=2):
        outcomes.append((outcome, time.time()))
    (first, known), *_, last = outcomes
    assert (first.task.key, first.lost_by, first.again) == ("failing", "storage", True)
    assert "failing/values/0" in first.message
    began = float((store.parent / "failing began").read_text().split()[1])
    assert known - began < 1
    assert not failing.units[0].done(store)
    assert [outcome.again for outcome, _ in outcomes if outcome.task is failing] == [True, True, False]
    assert last[0].record is not None
    assert len(last[0].record.done) == 8
    np.testing.assert_array_equal(Store(store).read("neighbour/values"), 1)


def test_profiles_name_executors() -> None:
    serial = make_executor("serial", Cluster(threads_per_worker=2), 10**9)
    assert (serial.name, serial.n_workers, serial.n_threads) == ("serial", 1, 2)
    local = make_executor("local", Cluster(n_workers=7, threads_per_worker=1), 10**9)
    assert (local.name, local.n_workers, local.n_threads) == ("local", 7, 1)


@pytest.mark.parametrize(
    ("profile", "settings", "memory_gb", "expected"),
    [
        ("local", {}, 64, (8, 1)),
        ("local", {}, 7, (2, 4)),  # memory for two: the cores are theirs all the same
        ("local", {}, 1, (1, 8)),
        ("local", {"threads_per_worker": 3}, 64, (2, 3)),
        ("local", {"threads_per_worker": 10_000}, 64, (1, 10_000)),
        ("local", {"n_workers": 3}, 64, (3, 2)),
        ("local", {"n_workers": 20}, 1, (20, 1)),
        ("local", {"n_workers": 2, "threads_per_worker": 1}, 64, (2, 1)),
        ("serial", {}, 1, (1, 8)),
        ("serial", {"n_workers": 4, "threads_per_worker": 2}, 64, (1, 2)),
    ],
)
def test_workers_share_eight_cores_as_far_as_memory_goes(
    profile: str, settings: dict[str, int], memory_gb: int, expected: tuple[int, int]
) -> None:
    found = workers_and_threads(profile, Cluster(**settings), 8, memory_gb * 10**9, 3 * 10**9)
    assert found == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, (1, 8)), ({"threads_per_worker": 2}, (1, 2)), ({"n_workers": 2}, (2, 4))],
)
def test_a_gpu_of_this_machine_has_one_worker_unless_told_otherwise(
    settings: dict[str, int], expected: tuple[int, int]
) -> None:
    found = workers_and_threads("local", Cluster(**settings), 8, 64 * 10**9, 3 * 10**9, on_device=True)
    assert found == expected


def test_a_job_of_one_core_has_one_worker_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    for profile in ("local", "serial"):
        executor = make_executor(profile, Cluster(), 3 * 10**9)
        assert (executor.n_workers, executor.n_threads) == (1, 1)


class Promise(Future[Any]):
    """A future as Dask has them."""

    @property
    def status(self) -> str:
        return "pending" if not self.done() else "error" if self.exception() else "finished"

    def release(self) -> None: ...


@dataclass
class OwnCrew:
    """Workers `a` and `b` that are replaced; what runs there never ends by itself."""

    alive: set[str]
    n_workers: int = 2
    replaces: bool = True

    def __post_init__(self) -> None:
        self.known, self.lost = set(self.alive), None

    def want(self, n_workers: int) -> None: ...

    def workers(self) -> set[str]:
        return set(self.alive)

    def submit(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Promise:
        assert worker in self.known
        return Promise()

    def dismiss(self, worker: str) -> None:
        self.known.discard(worker)

    def ends(self, worker: str) -> float | None:
        assert worker in self.known
        return None

    def name_of(self, worker: str) -> str:
        return worker

    def how_lost(self, worker: str) -> Any:
        return self.lost


def test_a_task_that_comes_back_is_not_given_to_a_worker_that_was_let_go(
    make_task: Callable[..., Task], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcenc.cluster.executors.LOST_S", 0.0)
    crew = OwnCrew({"a", "b"})
    crew.lost = ("preempted", "it was preempted")
    drive = _Drive(crew, Attempts([make_task("one"), make_task("two")]), store, None, 1, Drain(), ignore)
    drive._look_after()
    drive._place()
    of_a = next(future for future, worker in drive._where.items() if worker == "a")
    crew.alive = {"a"}
    drive._look_after()  # b is gone
    of_a.set_result((TaskRecord("one"), "", ""))
    assert len(list(drive._collect())) == 1
    (again,) = drive._lose(drive._look_after())
    assert again.again
    drive._place()  # a is dismissed: nobody is there for it
    assert drive._where == {}


def test_a_worker_that_has_no_time_for_a_task_gets_no_other_though_its_last_one_ends_well(
    make_task: Callable[..., Task], store: Path
) -> None:
    crew = OwnCrew({"a"})
    tasks = [make_task(name) for name in ("one", "two", "three")]
    drive = _Drive(crew, Attempts(tasks), store, None, 2, Drain(), ignore)
    drive._look_after()
    drive._place()
    (first, second) = drive._where
    first.set_result((TaskRecord("one", left=("one#0",)), "", ""))
    list(drive._collect())
    second.set_result((TaskRecord("two"), "", ""))
    list(drive._collect())
    drive._place()
    assert drive._where == {}
    drive._look_after()
    assert crew.known == set()  # it is let go, for another to come


@pytest.mark.parametrize("is_over", [False, True])
def test_a_drain_leaves_what_has_not_begun_and_waits_for_what_has_until_it_is_over(
    is_over: bool, make_task: Callable[..., Task], store: Path
) -> None:
    names = ["one", "two", "three", "four"]
    drain = Drain(time.time() + 1000, seconds=2000, last_s=2000) if is_over else Drain()
    tasks = [make_task(name, units=(Unit(name, 0, "a" * 64),)) for name in names]
    drive = _Drive(OwnCrew({"a"}), Attempts(tasks), store, None, 1, drain, ignore)
    drive._look_after()
    drive._place()
    at_work = [drive._hands["a"].running[future].key for future in drive._where]
    assert 0 < len(at_work) < len(names)
    if not is_over:
        drain.begin()
        for future, key in zip(drive._where, at_work, strict=True):
            future.set_result((TaskRecord(key), "", ""))
    found = {outcome.task.key: outcome.record for outcome in drive.outcomes()}
    assert found.keys() == set(names)
    left = {key for key, record in found.items() if record is not None and record.left}
    assert left == (set(names) if is_over else set(names) - set(at_work))


def test_a_try_is_judged_when_it_is_known_how_its_worker_was_lost_and_with_all_that_died_with_it(
    make_task: Callable[..., Task], store: Path
) -> None:
    crew = OwnCrew({"a"})
    tasks = [make_task("one"), make_task("two")]
    attempts = Attempts(tasks)
    attempts._tries.update({"one": MAX_TRIES - 1, "two": MAX_TRIES - 1})
    drive = _Drive(crew, attempts, store, None, 2, Drain(), ignore)
    drive._look_after()
    drive._place()
    crew.alive = set()
    for future in drive._where:
        future.set_exception(KilledWorker("one", None, 0))
    assert list(drive._collect()) == []
    assert len(drive._where) == 2
    assert list(drive._explain()) == []
    crew.lost = ("crash", "its process died")
    outcomes = list(drive._explain())
    assert [outcome.again for outcome in outcomes] == [True, True], "neither was alone"
    assert drive._where == {}

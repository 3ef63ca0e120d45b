"""Attempts, and what is set aside: on tasks that fail, whose disk fails, and whose worker dies."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcenc.cluster.accounting import unit_states
from hpcenc.cluster.attempts import MAX_TRIES
from hpcenc.cluster.controller import Progress, run_plan
from hpcenc.cluster.executors import DaskExecutor, Executor, SerialExecutor
from hpcenc.cluster.pools import LocalPool
from hpcenc.storage.errors import FullError
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.store import Store
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Deadline, Task, TaskRecord, Unit, run_units

KEY = "a" * 64
N_UNITS = 8


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})
    arrays = {"values": ArraySpec((N_UNITS,), (1,), "int64", ("x",))}
    made.ensure_group(GroupSpec("numbers", KEY, arrays, N_UNITS, {}))
    return made.path


def unit(index: int) -> Unit:
    return Unit("numbers", index, KEY)


MakeTask = Callable[..., Task]


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """A task that does some units, after a first step that may fail; it counts its tries in a file."""

    # A local class goes to workers by value: they cannot import a test module.
    @dataclass(frozen=True)
    class Toy:
        key: str
        units: tuple[Unit, ...]
        needs: tuple[Unit, ...]
        tries: Path
        fails: str
        n_failures: int
        seconds: float

        def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
            # A task with several units needs one for each, one with a single unit needs all.
            return self.needs if len(self.units) == 1 else (self.needs[self.units.index(unit) :][:1])

        def run(self, store: Any, deadline: Any) -> Any:
            with self.tries.open("a") as file:
                file.write("x")
            if self.tries.stat().st_size <= self.n_failures:
                if self.fails == "crash":
                    os._exit(1)
                if self.fails == "full":
                    raise OSError(errno.EDQUOT, "Disk quota exceeded")
                raise {"error": ValueError, "storage": OSError}[self.fails]("went wrong\nin two lines")

            def work(unit: Unit) -> dict[str, Any]:
                time.sleep(self.seconds)
                return {}

            return run_units(self, store, deadline, work)

    def make(
        key: str,
        units: Sequence[int],
        needs: Sequence[int] = (),
        fails: str = "error",
        n_failures: int = 0,
        seconds: float = 0.0,
    ) -> Task:
        some, needed = (tuple(unit(index) for index in each) for each in (units, needs))
        return Toy(key, some, needed, tmp_path / f"tries-{key}", fails, n_failures, seconds)

    return make


def run(
    stages: Sequence[Sequence[Task]],
    store: Path,
    executor: Executor | None = None,
    deadline: Deadline | None = None,
    slots: int = 1,
) -> tuple[Progress, list[dict[str, Any]]]:
    progress, events = Progress(), []
    plan = Plan(
        tuple(
            Stage(f"stage {place}", "cpu", tuple(tasks), True, slots) for place, tasks in enumerate(stages)
        ),
        (),
        (),
    )
    run_plan(plan, store, executor or SerialExecutor(1), deadline, events.append, progress)
    return progress, events


def n_tries(folder: Path, key: str) -> int:
    path = folder / f"tries-{key}"
    return path.stat().st_size if path.exists() else 0


def test_all_units_are_done_and_told(make_task: MakeTask, store: Path) -> None:
    progress, events = run([[make_task("a", [0, 1])], [make_task("b", [2], needs=[0, 1])]], store)
    assert (progress.units_done, progress.units_left, progress.set_aside) == (3, 0, [])
    assert [event["event"] for event in events] == [
        *("stage", "began", "unit", "unit", "stage end"),
        *("stage", "began", "unit", "stage end"),
    ]
    assert events[0] == {"event": "stage", "stage": "stage 0", "tasks": 1, "units": 2}
    assert [event["unit"] for event in events if event["event"] == "unit"] == [
        "numbers#0",
        "numbers#1",
        "numbers#2",
    ]


def test_a_stage_with_nothing_left_is_not_begun(make_task: MakeTask, store: Path) -> None:
    Store(store).mark("numbers", 0, KEY)
    _, events = run([[make_task("a", [0])], [make_task("b", [1], needs=[0])]], store)
    assert [event["stage"] for event in events if event["event"] == "stage"] == ["stage 1"]


def test_an_error_sets_the_task_aside_with_what_needs_it_and_the_others_go_on(
    make_task: MakeTask, store: Path, tmp_path: Path
) -> None:
    stages = [
        [make_task("bad", [0], n_failures=9), make_task("good", [1])],
        [make_task("after bad", [2], needs=[0]), make_task("after good", [3], needs=[1])],
        [make_task("after both", [4], needs=[2, 3])],
    ]
    progress, events = run(stages, store)
    assert progress.units_done == 2
    assert progress.set_aside == [
        "bad: ValueError: went wrong in two lines",
        "after bad: needs numbers#0, which was not made",
        "after both: needs numbers#2, which was not made",
    ]
    assert n_tries(tmp_path, "bad") == 1, "what raises would raise again"
    assert n_tries(tmp_path, "after bad") == 0
    told = next(event for event in events if event["event"] == "set aside")
    assert told["reason"] == "ValueError: went wrong in two lines"
    assert "Traceback" in told["details"]


def test_what_is_set_aside_is_told_with_the_job_that_tried_it(make_task: MakeTask, store: Path) -> None:
    class OnSlurm(SerialExecutor):
        def run(self, *settings: Any) -> Any:
            return (replace(outcome, where="job 7 on n1") for outcome in super().run(*settings))

    stages = [[make_task("bad", [0], n_failures=9)], [make_task("after bad", [1], needs=[0])]]
    _, events = run(stages, store, OnSlurm(1))
    told = [(event["task"], event.get("where")) for event in events if event["event"] == "set aside"]
    assert told == [("bad", "job 7 on n1"), ("after bad", None)]


@pytest.mark.parametrize(
    "executor", [SerialExecutor(1), DaskExecutor(LocalPool(1, 1))], ids=["serial", "dask"]
)
def test_every_try_is_told_as_it_begins_and_no_unit_is_left_running(
    executor: Executor, make_task: MakeTask, store: Path
) -> None:
    stages = [
        [make_task("good", [0, 1]), make_task("bad", [2, 3], n_failures=9)],
        [make_task("after bad", [4], needs=[2])],
    ]
    _, events = run(stages, store, executor)
    assert {(event["task"], *event["units"]) for event in events if event["event"] == "began"} == {
        ("good", "numbers#0", "numbers#1"),
        ("bad", "numbers#2", "numbers#3"),
    }
    aside = dict.fromkeys(("numbers#2", "numbers#3", "numbers#4"), "set aside")
    assert unit_states(events) == aside


def test_a_failure_of_the_disk_is_tried_again(make_task: MakeTask, store: Path, tmp_path: Path) -> None:
    stages = [
        [
            make_task("passing", [0], fails="storage", n_failures=MAX_TRIES - 1),
            make_task("lasting", [1], fails="storage", n_failures=MAX_TRIES),
        ]
    ]
    progress, events = run(stages, store)
    assert progress.units_done == 1
    assert progress.set_aside == ["lasting: OSError: went wrong in two lines"]
    assert (n_tries(tmp_path, "passing"), n_tries(tmp_path, "lasting")) == (MAX_TRIES, MAX_TRIES)
    lost = [(event["task"], event["by"]) for event in events if event["event"] == "lost"]
    assert sorted(lost) == [("lasting", "storage")] * 2 + [("passing", "storage")] * 2


def test_a_store_without_space_ends_the_run_and_what_is_done_stays(
    make_task: MakeTask, store: Path, tmp_path: Path
) -> None:
    stages = [
        [
            make_task("first", [0]),
            make_task("passing", [1], fails="full", n_failures=MAX_TRIES - 1),  # it was that of the node
            make_task("lasting", [2], fails="full", n_failures=MAX_TRIES),
            make_task("never", [3]),
        ]
    ]
    with pytest.raises(FullError, match="no space is left there, or your quota is used up"):
        run(stages, store)
    assert [unit(index).done(store) for index in range(4)] == [True, True, False, False]
    assert n_tries(tmp_path, "never") == 0, "all others would fail too"
    progress, _ = run(stages, store)
    assert progress.units_done == 2


@pytest.mark.parametrize("slots", [1, 2])
def test_a_task_that_kills_its_workers_is_set_aside_and_its_neighbours_are_not(
    slots: int, make_task: MakeTask, store: Path, tmp_path: Path
) -> None:
    stages = [
        [
            make_task("deadly", [0], fails="crash", n_failures=MAX_TRIES),
            make_task("beside it", [1], seconds=0.1),
            make_task("crashes once", [2], fails="crash", n_failures=1),
        ]
    ]
    progress, events = run(stages, store, DaskExecutor(LocalPool(n_workers=1, n_threads=1)), slots=slots)
    assert [reason.partition(":")[0] for reason in progress.set_aside] == ["deadly"]
    assert progress.units_done == 2
    assert n_tries(tmp_path, "deadly") == MAX_TRIES
    assert n_tries(tmp_path, "crashes once") == 2
    assert {event["by"] for event in events if event["event"] == "lost"} == {"crash"}


def test_a_deadline_leaves_units_and_what_needs_them_is_not_set_aside(
    make_task: MakeTask, store: Path, tmp_path: Path
) -> None:
    stages = [[make_task("slow", [0, 1, 2], seconds=0.3)], [make_task("after", [3], needs=[0, 1, 2])]]
    progress, events = run(stages, store, deadline=Deadline(time.time() + 0.6))
    assert (progress.units_done, progress.units_left) == (1, 2)
    assert progress.set_aside == []
    assert n_tries(tmp_path, "after") == 0
    assert {"event": "yielded", "task": "slow", "left": ["numbers#1", "numbers#2"]} in events
    progress, _ = run(stages, store)
    assert (progress.units_done, progress.units_left) == (3, 0)


def test_progress_is_right_after_an_interruption(make_task: MakeTask, store: Path) -> None:
    class Interrupted(SerialExecutor):
        def run(self, tasks: Sequence[Task], *settings: Any) -> Any:
            yield from super().run(tasks[:2], *settings)
            raise KeyboardInterrupt

    progress = Progress()
    stage = Stage("only", "cpu", tuple(make_task(f"t{index}", [index]) for index in range(4)), True)
    with pytest.raises(KeyboardInterrupt):
        run_plan(Plan((stage,), (), ()), store, Interrupted(1), None, lambda _: None, progress)
    assert progress.units_done == 2


def test_records_are_small(make_task: MakeTask, store: Path) -> None:
    (outcome,) = SerialExecutor(1).run([make_task("a", [0])], store, None)
    assert isinstance(outcome.record, TaskRecord)
    assert outcome.record.done[0].unit == "numbers#0"


def test_units_of_a_try_that_could_not_tell_of_them_count_as_done(store: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Stumbling:
        key: str = "stumbling"
        units: tuple[Unit, ...] = (unit(0), unit(1))

        def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
            return ()

        def run(self, store: Any, deadline: Any) -> Any:
            def work(unit: Unit) -> dict[str, Any]:
                if unit.index == 1 and not (tmp_path / "stumbled").exists():
                    (tmp_path / "stumbled").touch()
                    raise OSError("the disk went away for a moment")
                return {}

            return run_units(self, store, deadline, work)

    progress, events = run([[Stumbling()]], store)
    assert [event["event"] for event in events] == ["stage", "began", "lost", "began", "unit", "stage end"]
    assert (progress.units_done, progress.set_aside) == (2, [])

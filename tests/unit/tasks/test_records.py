from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from hpcenc.storage.digests import digest
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.store import Store
from hpcenc.tasks.records import Deadline, Fact, TaskRecord, Unit, UnitTask, look_again, run_units

KEY = digest({"of": "the tests"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})
    made.ensure_group(GroupSpec("numbers", KEY, {"values": ArraySpec((4,), (1,), "int64", ("x",))}, 4, {}))
    return made


@pytest.fixture
def write(store: Store) -> Callable[[Unit], dict[str, Fact]]:
    def work(unit: Unit) -> dict[str, Fact]:
        store.write("numbers/values", (slice(unit.index, unit.index + 1),), np.array([unit.index + 10]))
        return {"index": unit.index}

    return work


UNITS = tuple(Unit("numbers", index, KEY) for index in range(4))


@dataclass(frozen=True)
class FourUnits:
    """A task whose units need what the test says."""

    needs: Mapping[int, Unit] = field(default_factory=dict)
    key: str = "task"
    units: tuple[Unit, ...] = UNITS

    def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
        return (self.needs[unit.index],) if unit.index in self.needs else ()

    def run(self, store: Store, deadline: Deadline | None) -> TaskRecord:
        raise AssertionError("the tests call run_units")


TASK = FourUnits()


def test_every_unit_is_done_and_marked(store: Store, write: Callable[[Unit], dict[str, Fact]]) -> None:
    record = run_units(TASK, store, None, write)
    assert [done.unit for done in record.done] == ["numbers#0", "numbers#1", "numbers#2", "numbers#3"]
    assert [done.facts for done in record.done] == [{"index": index} for index in range(4)]
    assert (record.key, record.skipped, record.left) == ("task", 0, ())
    assert all(unit.done(store.path) for unit in UNITS)


def test_marked_units_are_skipped(store: Store, write: Callable[[Unit], dict[str, Fact]]) -> None:
    store.mark("numbers", 1, KEY)
    record = run_units(TASK, store, None, write)
    assert [done.unit for done in record.done] == ["numbers#0", "numbers#2", "numbers#3"]
    assert record.skipped == 1


def test_a_unit_that_fails_has_no_mark_and_the_others_are_done(store: Store) -> None:
    def fail_at_2(unit: Unit) -> dict[str, Fact]:
        if unit.index == 2:
            raise RuntimeError("broken\nfor good")
        return {}

    record = run_units(TASK, store, None, fail_at_2)
    assert [unit.done(store.path) for unit in UNITS] == [True, True, False, True]
    (failure,) = record.failed
    assert (failure.unit, failure.reason) == ("numbers#2", "RuntimeError: broken for good")
    assert "Traceback" in failure.details
    assert len(record.done) == 3


def test_a_unit_without_what_it_needs_fails_alone(
    store: Store, write: Callable[[Unit], dict[str, Fact]]
) -> None:
    record = run_units(FourUnits({1: Unit("numbers", 3, "ab" * 32)}), store, None, write)
    assert [done.unit for done in record.done] == ["numbers#0", "numbers#2", "numbers#3"]
    assert [failure.reason for failure in record.failed] == ["needs numbers#3, which was not made"]


def test_failed_reading_or_writing_ends_the_task_with_what_is_done_kept(store: Store) -> None:
    def fail_at_2(unit: Unit) -> dict[str, Fact]:
        if unit.index == 2:
            raise OSError("the disk is full")
        return {}

    with pytest.raises(OSError, match="the disk is full"):
        run_units(TASK, store, None, fail_at_2)
    assert [unit.done(store.path) for unit in UNITS] == [True, True, False, False]


def test_the_mark_comes_after_the_work(store: Store) -> None:
    def look(unit: Unit) -> dict[str, Fact]:
        assert not unit.done(store.path)
        return {}

    run_units(TASK, store, None, look)


def test_units_that_no_longer_fit_are_left(store: Store, write: Callable[[Unit], dict[str, Fact]]) -> None:
    store.mark("numbers", 3, KEY)

    def slow(unit: Unit) -> dict[str, Fact]:
        time.sleep(0.4)
        return write(unit)

    # The first takes 0.4 s; half as much again no longer fits into the 0.3 s that remain.
    record = run_units(TASK, store, Deadline(time.time() + 0.7), slow)
    assert len(record.done) == 1
    assert record.left == ("numbers#1", "numbers#2")


def test_nothing_begins_after_the_deadline(store: Store, write: Callable[[Unit], dict[str, Fact]]) -> None:
    record = run_units(TASK, store, Deadline(time.time() - 1), write)
    assert (record.done, len(record.left)) == ((), 4)


def test_a_mark_of_other_inputs_is_no_mark(store: Store) -> None:
    store.mark("numbers", 0, digest({"of": "something else"}))
    assert not UNITS[0].done(store.path)


def test_what_other_nodes_made_is_looked_for_where_it_lies(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing a folder lets the client of a network file system see what was not there before."""
    listed: list[str] = []
    monkeypatch.setattr("os.listdir", lambda path: listed.append(str(path)) or [])
    kept = Unit("operators", 0, "ab" * 32, cached=tmp_path / "cache" / "one")
    look_again([*TASK.units, kept, kept], store.path)
    assert listed == [f"{store.path}/numbers/done", f"{store.path}/operators/done", f"{tmp_path}/cache"]


def test_a_unit_is_done_only_while_its_cached_folder_is_there(store: Store, tmp_path: Path) -> None:
    unit = Unit("numbers", 0, KEY, cached=tmp_path / "cache")
    store.mark("numbers", 0, KEY)
    assert not unit.done(store.path)
    unit.cached.mkdir()
    assert unit.done(store.path)


def test_a_task_of_one_unit_is_named_by_what_it_does(store: Store) -> None:
    class Count(UnitTask):
        verb = "count"

        def work(self, store: Store) -> dict[str, Fact]:
            return {"n": 7}

    task = Count(unit=UNITS[2])
    assert task.key == "count numbers#2"
    (done,) = task.run(store, None).done
    assert done.facts == {"n": 7}
    assert task.run(store, None).skipped == 1

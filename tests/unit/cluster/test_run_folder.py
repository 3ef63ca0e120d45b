from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from hpcenc.cluster.run_folder import RunFolder, new_run_id, package_versions, versions_of_fits
from hpcenc.storage.marks import write_mark
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Fact, Unit, UnitTask


class Nothing(UnitTask):
    verb = "do"

    def work(self, store: object) -> dict[str, Fact]:
        return {}


PLAN = Plan(
    (
        Stage("passing", "cpu", (Nothing(unit=Unit("p", 0, "1" * 64)),), lasting=False),
        Stage("lasting", "gpu", (Nothing(unit=Unit("q", 3, "2" * 64)),), lasting=True),
    ),
    (),
    ("subject s9: damaged",),
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "results" / "study.zarr"


def test_a_run_tells_what_it_was(store: Path) -> None:
    folder = RunFolder.create(store, "abcdefgh", PLAN, {"profile": "serial"})
    run = folder.read("run")
    assert (run["run_id"], run["profile"], run["store"]) == ("abcdefgh", "serial", str(store))
    assert run["started"].endswith("+00:00"), "times are UTC"
    assert set(run["versions"]) >= {"hpcenc", "numpy", "torch"}


def test_the_plan_holds_the_units_that_last(store: Path) -> None:
    plan = RunFolder.create(store, "abcdefgh", PLAN, {}).read("plan")
    assert plan == {"stages": {"lasting": [["q", 3, "2" * 64]]}, "set_aside": ["subject s9: damaged"]}


def test_the_latest_run_is_the_one_that_began_last(store: Path) -> None:
    assert RunFolder.latest(store) is None
    for run_id in ("zzzzzzzz", "mmmmmmmm", "aaaaaaaa"):
        folder = RunFolder.create(store, run_id, PLAN, {})
        latest = RunFolder.latest(store)
        assert latest is not None
        assert latest.path == folder.path


def test_a_folder_without_its_plan_is_no_run_yet(store: Path) -> None:
    folder = RunFolder.create(store, "abcdefgh", PLAN, {})
    (folder.path.parent / "9999-12-31T000000-killed").mkdir()
    latest = RunFolder.latest(store)
    assert latest is not None
    assert latest.path == folder.path


def test_events_are_read_in_their_order_with_their_times(store: Path) -> None:
    folder = RunFolder.create(store, "abcdefgh", PLAN, {})
    assert list(folder.events()) == []
    for number in range(3):
        folder.log({"event": "unit", "number": number, "text": "two\nlines"})
    events = list(folder.events())
    assert [event["number"] for event in events] == [0, 1, 2]
    assert events[0]["text"] == "two\nlines"
    assert events[0]["time"] <= events[2]["time"]


def test_lines_of_several_writers_stay_whole(store: Path) -> None:
    folder = RunFolder.create(store, "abcdefgh", PLAN, {})

    def write(writer: int) -> None:
        for number in range(50):
            folder.log({"event": "unit", "writer": writer, "number": number, "filling": "x" * 5_000})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (folder.path / "events.jsonl").read_text().splitlines()
    found = {(event["writer"], event["number"]) for event in map(json.loads, lines)}
    assert len(lines) == len(found) == 200


def test_a_line_that_a_full_disk_cut_off_hides_no_other(store: Path) -> None:
    folder = RunFolder.create(store, "abcdefgh", PLAN, {})
    folder.log({"event": "first"})
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-01-01T00:00:00", "event": "cut')
    folder.log({"event": "last"})
    assert [event["event"] for event in folder.events()] == ["first", "last"]


def test_run_ids_differ_and_go_into_names() -> None:
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(run_id) == 8 and run_id.isalnum() and run_id == run_id.lower() for run_id in ids)


def test_versions_of_absent_packages_are_told_too() -> None:
    assert all(package_versions().values())


def test_versions_of_fits_are_those_of_the_runs_that_made_what_is_there(store: Path) -> None:
    def ran(version: str, *done: tuple[int, str]) -> None:
        """A run of these versions that made some blocks, by place and digest."""
        tasks = tuple(Nothing(unit=Unit("fits/lab/s1", index, digest)) for index, digest in done)
        plan = Plan((Stage("fit", "cpu", tasks, lasting=True),), (), ())
        folder = RunFolder.create(store, new_run_id(), plan, {})
        run = folder.read("run") | {"versions": {"numpy": version}}
        (folder.path / "run.json").write_text(json.dumps(run))
        for index, digest in done:
            folder.log({"event": "unit", "unit": f"fits/lab/s1#{index}"})
            write_mark(store, "fits/lab/s1", index, digest)

    (store / "fits" / "lab" / "s1" / "done").mkdir(parents=True)
    assert versions_of_fits(store) == []
    ran("1", (0, "1" * 64), (1, "1" * 64))
    ran("2", (1, "2" * 64))
    ran("3")
    assert versions_of_fits(store) == [{"numpy": "1"}, {"numpy": "2"}]
    ran("4", (0, "3" * 64))
    assert versions_of_fits(store) == [{"numpy": "2"}, {"numpy": "4"}], "the first made nothing that is left"
    for folder in store.with_name("study.runs").iterdir():
        (folder / "plan.json").write_text("{")
    assert versions_of_fits(store) == []

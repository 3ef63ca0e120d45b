from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcenc.cluster.run_folder import RunFolder, SetAside
from hpcenc.cluster.status import Units, read_status
from hpcenc.storage.errors import StudyError
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import acquire, this_process
from hpcenc.storage.marks import write_mark
from hpcenc.storage.study import Study, parse_study
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Fact, Unit, UnitTask

KEY = "3" * 64


class Nothing(UnitTask):
    verb = "do"

    def work(self, store: object) -> dict[str, Fact]:
        return {}


def stage(name: str, *groups: str) -> Stage:
    units = [Unit(group, index, KEY) for group in groups for index in range(2)]
    return Stage(name, "cpu", tuple(Nothing(unit=unit) for unit in units), lasting=True)


PLAN = Plan((stage("extract", "features/clip/main/a"), stage("fit", "fits/clip/s1", "fits/clip/s2")), (), ())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return parse_study(
        {
            "name": "x",
            "tr_s": 1.0,
            "runs": [{"name": "A", "n_trs": 40}],
            "subjects": {"ids": ["s1", "s2"]},
            "bold": {"path": "{subject}/{run}.npy"},
        },
        tmp_path,
    )


def mark(study: Study, group: str, index: int) -> None:
    (study.store_path / group / "done").mkdir(parents=True, exist_ok=True)
    write_mark(study.store_path, group, index, KEY)


def test_nothing_was_submitted(study: Study) -> None:
    with pytest.raises(StudyError, match="nothing was submitted yet"):
        read_status(study)


def test_marks_are_counted_by_stage_and_fit(study: Study) -> None:
    RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    for group, index in (("features/clip/main/a", 0), ("features/clip/main/a", 1), ("fits/clip/s2", 1)):
        mark(study, group, index)
    found = read_status(study)
    assert found.stages == {"extract": Units(2, done=2), "fit": Units(4, done=1)}
    assert found.fits == {"fits/clip/s1": Units(2), "fits/clip/s2": Units(2, done=1)}
    assert (found.ended, found.set_aside, found.holder) == (None, (), None)


def test_events_of_all_parts_are_put_in_their_order(study: Study) -> None:
    whole = RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    parts = [RunFolder(whole.path, "fit-0"), RunFolder(whole.path, "fit-1")]
    for place in range(4):
        parts[place % 2].log({"event": "unit", "place": place, "time": f"2026-01-01T00:00:0{place}"})
    assert [event["place"] for event in whole.events()] == [0, 1, 2, 3]


def test_marks_of_other_inputs_do_not_count(study: Study) -> None:
    RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    mark(study, "fits/clip/s1", 0)
    write_mark(study.store_path, "fits/clip/s1", 0, "4" * 64)
    assert read_status(study).stages["fit"] == Units(4)


def test_units_that_are_not_done_are_counted_by_what_was_told_of_them(study: Study) -> None:
    folder = RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    units = [f"fits/clip/{subject}#{block}" for subject in ("s1", "s2") for block in range(2)]
    folder.log({"event": "began", "task": "fit s1", "units": units[:2]})
    folder.log({"event": "lost", "task": "fit s2", "units": units[2:], "by": "preempted"})
    folder.log({"event": "set aside", "task": units[3], "units": units[3:], "reason": "", "details": ""})
    mark(study, "fits/clip/s1", 0)  # nobody has told so yet
    assert read_status(study).fits["fits/clip/s1"] == Units(2, done=1)  # for nobody is at work
    acquire(lock_path(study.store_path), this_process("abcdefgh"), lambda _: False)
    found = read_status(study)
    assert found.fits == {
        "fits/clip/s1": Units(2, done=1, running=1),
        "fits/clip/s2": Units(2, lost=1, set_aside=1),
    }
    assert found.stages["fit"] == Units(4, done=1, running=1, lost=1, set_aside=1)


def test_the_end_and_what_was_set_aside_are_those_of_the_latest_run(study: Study) -> None:
    first = RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    for _ in range(2):  # told again by a run that went on
        first.log({"event": "set aside", "task": "t", "reason": "broken", "details": "Traceback"})
    first.log({"event": "end", "status": 1})
    found = read_status(study)
    assert (found.ended, found.set_aside) == (1, (SetAside("t", "broken", "Traceback"),))
    RunFolder.create(study.store_path, "aaaaaaaa", PLAN, {})
    found = read_status(study)
    assert (found.run["run_id"], found.ended, found.set_aside) == ("aaaaaaaa", None, ())


def test_a_living_run_holds_the_store_and_a_dead_one_does_not(study: Study) -> None:
    RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    path = lock_path(study.store_path)
    acquire(path, this_process("abcdefgh"), lambda _: False)
    holder = read_status(study).holder
    assert holder is not None
    assert (holder.run_id, holder.pid) == ("abcdefgh", os.getpid())
    path.unlink()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    acquire(path, replace(this_process("abcdefgh"), pid=ended.pid), lambda _: False)
    assert read_status(study).holder is None


@pytest.mark.parametrize(
    ("last", "ended"), [({"event": "end", "status": 3}, 3), ({"event": "end", "status": 1}, 1)]
)
def test_an_interrupted_run_whose_controller_waits_to_be_started_again_is_going_on(
    study: Study, queue: Any, last: dict[str, Any], ended: int
) -> None:
    folder = RunFolder.create(study.store_path, "abcdefgh", PLAN, {"site": {}})
    folder.log(last)
    found = read_status(study)
    assert (found.ended, found.is_going_on) == (ended, False)
    queue.add("78", "hpcenc-w-abcdefgh", "PENDING")
    assert read_status(study).ended == ended
    queue.add("77", "hpcenc-abcdefgh", "PENDING")
    found = read_status(study)
    assert found.is_going_on == (ended == 3)
    assert found.ended == (None if ended == 3 else ended)


def test_workers_of_a_run_that_died_are_counted_to_its_last_word(study: Study) -> None:
    folder = RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    lines = [
        {"time": "2026-01-01T00:00:00+00:00", "event": "worker", "job": "7", "kind": "gpu"},
        {"time": "2026-01-01T02:00:00+00:00", "event": "queue", "pending": {}},
    ]
    (folder.path / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert read_status(study).account.workers["gpu"].hours == pytest.approx(2)


def test_a_status_is_plain_values(study: Study) -> None:
    RunFolder.create(study.store_path, "abcdefgh", PLAN, {})
    nothing = {"units": 2, "done": 0, "running": 0, "failed": 0, "lost": 0, "set_aside": 0}
    assert read_status(study).as_dict()["fits"] == {"fits/clip/s1": nothing, "fits/clip/s2": nothing}

from __future__ import annotations

from typing import Any

import pytest

from hpcenc.cluster import runs
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.runs import ended_with, latest_run, log_files, wait_for_end
from hpcenc.slurm import commands
from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import Study
from hpcenc.tasks.plan import Plan


@pytest.fixture
def folder(study: Study) -> RunFolder:
    return RunFolder.create(study.store_path, "a1b2c3d4", Plan((), (), ()), {})


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], None),
        (["controller", 0], 0),
        (["controller", 1], 1),
        (["controller", 3], 3),
        (["controller", 3, "requeued"], None),
        (["controller", 3, "requeued", "controller", 0], 0),
        (["controller", "cancelled"], 3),
    ],
)
def test_a_run_has_ended_unless_it_goes_on(
    folder: RunFolder, events: list[Any], expected: int | None
) -> None:
    for event in events:
        folder.log({"event": "end", "status": event} if isinstance(event, int) else {"event": event})
    assert ended_with(folder) == expected


def test_nothing_submitted_is_told(study: Study) -> None:
    with pytest.raises(StudyError, match="nothing was submitted yet"):
        latest_run(study)


def test_waiting_outlasts_a_slurm_that_is_away(
    study: Study, folder: RunFolder, queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "QUEUE_S", 0.0)
    monkeypatch.setattr(runs, "POLL_S", 0.01)
    monkeypatch.setattr(commands, "sleep", lambda seconds: None)
    queue.goes_away(times=8)  # which is longer than the patience of commands on a login node
    assert wait_for_end(study).exit_status == 3
    assert len(queue.calls("squeue")) == 9
    folder.log({"event": "end", "status": 0})
    assert wait_for_end(study).exit_status == 0


def test_logs_come_in_the_order_of_their_jobs(study: Study, folder: RunFolder) -> None:
    with pytest.raises(StudyError, match="no log yet"):
        log_files(study)
    (folder.path / "logs").mkdir()
    for name in ("hpcenc-w-a1b2c3d4-12", "hpcenc-w-a1b2c3d4-9", "hpcenc-a1b2c3d4-8"):
        (folder.path / "logs" / f"{name}.log").touch()
    assert [path.stem.rpartition("-")[2] for path in log_files(study)] == ["8", "9", "12"]
    assert [path.stem for path in log_files(study, "9")] == ["hpcenc-w-a1b2c3d4-9"]
    with pytest.raises(StudyError, match="no log of job 7 yet"):
        log_files(study, "7")


def test_logs_of_a_task_are_those_of_the_jobs_that_tried_it(study: Study, folder: RunFolder) -> None:
    (folder.path / "logs").mkdir()
    for job in ("9", "10", "12_1", "12_10"):
        (folder.path / "logs" / f"hpcenc-w-a1b2c3d4-{job}.log").touch()
    folder.log({"event": "lost", "task": "fit s1 block 0", "by": "crash", "why": "", "where": "job 9 on n1"})
    folder.log({"event": "unit", "task": "fit s1 block 0", "unit": "fits/x#0", "where": "job 10 on n1"})
    folder.log({"event": "set aside", "task": "fit s2 block 0", "reason": "", "where": "12_1"})
    folder.log({"event": "set aside", "task": "never tried", "reason": ""})

    def jobs(task: str) -> list[str]:
        return [path.stem.rpartition("-")[2] for path in log_files(study, task=task)]

    assert jobs("fit s1 block 0") == ["9", "10"]
    assert jobs("fits/x#0") == ["10"]
    assert jobs("fit s2 block 0") == ["12_1"]
    for task in ("never tried", "fit s1 block", "nosuch"):
        with pytest.raises(StudyError, match=f"no job has told of task '{task}' yet"):
            jobs(task)

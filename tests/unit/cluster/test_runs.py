from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.runs import cancel_run, ended_with, latest_run, log_files
from hpcenc.storage.errors import StudyError
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import acquire, this_process
from hpcenc.storage.study import Study, parse_study
from hpcenc.tasks.plan import Plan


@pytest.fixture
def study(tmp_path: Path) -> Study:
    data = {
        "name": "x",
        "tr_s": 1.0,
        "runs": [{"name": run, "n_trs": 40} for run in "ABC"],
        "subjects": {"ids": ["s1"]},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {"mylab": {"path": "{run}.npy"}},
    }
    return parse_study(data, tmp_path)


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


def test_a_run_on_this_machine_is_not_cancelled_from_elsewhere(study: Study, folder: RunFolder) -> None:
    with pytest.raises(StudyError, match="not a run on SLURM; end it by Ctrl-C"):
        cancel_run(study)


def test_a_controller_in_a_terminal_is_not_cancelled_from_elsewhere(study: Study) -> None:
    folder = RunFolder.create(study.store_path, "a1b2c3d4", Plan((), (), ()), {"site": {}})
    acquire(lock_path(study.store_path), this_process("a1b2c3d4"), lambda _: False)
    before = list(folder.path.iterdir())
    with pytest.raises(StudyError, match=f"its controller is process {os.getpid()} on .*end it there"):
        cancel_run(study)
    assert list(folder.path.iterdir()) == before


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

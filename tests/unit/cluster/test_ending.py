"""What `cancel` ends and gives back, and what it leaves."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import Any

import pytest

from hpcenc.cluster import ending
from hpcenc.cluster.chain import SHARES
from hpcenc.cluster.ending import cancel_run, end_leftovers
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.runs import ended_with
from hpcenc.slurm.jobs import end_jobs
from hpcenc.storage.errors import LockError, StudyError
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import acquire, job_of, read_lock, this_process
from hpcenc.storage.study import Study
from hpcenc.tasks.plan import Plan

RUN, CONTROLLER, WORKER = "a1b2c3d4", "hpcenc-a1b2c3d4", "hpcenc-w-a1b2c3d4"
OWNER = job_of(RUN, "77")


@pytest.fixture
def folder(study: Study) -> RunFolder:
    """A run that was submitted in job 77, which has its store; its keys are there."""
    folder = begin(study, RUN)
    folder.log({"event": "submitted", "job": "77"})
    acquire(lock_path(study.store_path), OWNER, lambda _: False)
    return folder


def begin(study: Study, run_id: str) -> RunFolder:
    folder = RunFolder.create(study.store_path, run_id, Plan((), (), ()), {"site": {}})
    (folder.path / "private").mkdir(mode=0o700)
    (folder.path / "private" / "key.pem").touch()
    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "end_jobs", functools.partial(end_jobs, seconds=0))


def test_a_run_that_is_cancelled_leaves_nothing(study: Study, folder: RunFolder, queue: Any) -> None:
    queue.add("77", CONTROLLER)
    queue.add("78", WORKER, "PENDING")
    assert cancel_run(study) == f"run {RUN}: cancelled 77, 78"
    assert set(queue.states().values()) == {"CANCELLED"}
    assert read_lock(lock_path(study.store_path)) is None
    assert not (folder.path / "private").exists()
    assert ended_with(folder) == 3


def test_a_run_whose_jobs_do_not_end_keeps_its_store_and_its_keys(
    study: Study, folder: RunFolder, queue: Any
) -> None:
    queue.add("77", CONTROLLER)
    queue.add("78", WORKER, user="another")
    with pytest.raises(
        LockError, match=rf"run {RUN}: SLURM has not come to the end of its jobs .*again later"
    ):
        cancel_run(study)
    assert queue.states() == {"77": "CANCELLED", "78": "RUNNING"}
    assert read_lock(lock_path(study.store_path)) == OWNER
    assert (folder.path / "private" / "key.pem").exists()
    assert ended_with(folder) is None


def test_another_users_run_is_refused_by_name_at_once(study: Study, queue: Any) -> None:
    folder = begin(study, RUN)
    folder.log({"event": "submitted", "job": "77"})
    owner = replace(OWNER, user="ana", host="n9")
    acquire(lock_path(study.store_path), owner, lambda _: False)
    queue.add("77", CONTROLLER, user="ana")
    with pytest.raises(LockError, match=f"run {RUN} is that of ana, who alone may cancel it"):
        cancel_run(study)
    assert queue.calls("scancel") == []
    assert read_lock(lock_path(study.store_path)) == owner
    assert (folder.path / "private" / "key.pem").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_that_has_ended_stays_so_though_its_job_is_still_there(
    status: int, study: Study, folder: RunFolder, queue: Any
) -> None:
    folder.log({"event": "end", "status": status})
    queue.add("77", CONTROLLER, "COMPLETING")
    assert cancel_run(study) == f"run {RUN}: had ended with exit status {status}"
    assert ended_with(folder) == status


def test_a_run_that_is_cancelled_before_it_begins_takes_along_what_an_earlier_one_left(
    study: Study, queue: Any
) -> None:
    earlier = begin(study, "earlier0")
    chain = begin(study, "chain000")
    (chain.path / SHARES).touch()
    done = begin(study, "done0000")
    (done.path / "private" / "key.pem").unlink()
    (done.path / "private").rmdir()
    folder = begin(study, RUN)
    folder.log({"event": "submitted", "job": "77"})
    acquire(lock_path(study.store_path), OWNER, lambda _: False)
    queue.add("11", "hpcenc-w-earlier0", "PENDING")
    queue.add("21", "hpcenc-chain000", "PENDING")
    queue.add("22", "hpcenc-w-chain000", "PENDING")
    queue.add("31", "hpcenc-done0000")
    queue.add("77", CONTROLLER, "PENDING")
    cancel_run(study)
    assert {job for job, state in queue.states().items() if state != "CANCELLED"} == {"31"}
    assert not (earlier.path / "private").exists()


def test_what_other_runs_left_is_theirs_while_another_run_has_the_store(study: Study, queue: Any) -> None:
    begin(study, "earlier0")
    folder = begin(study, RUN)
    folder.log({"event": "submitted", "job": "77"})
    other = job_of("earlier0", "11")
    acquire(lock_path(study.store_path), other, lambda _: False)
    queue.add("12", "hpcenc-w-earlier0")
    assert cancel_run(study) == f"run {RUN}: no job of it waits or runs"
    assert queue.states() == {"12": "RUNNING"}
    assert read_lock(lock_path(study.store_path)) == other


def test_a_chain_that_died_leaves_neither_its_first_nor_its_last_job(study: Study, queue: Any) -> None:
    for run_id in ("chain000", "chain111"):
        chain = begin(study, run_id)
        (chain.path / SHARES).touch()
        (chain.path / "private" / "key.pem").unlink()
        (chain.path / "private").rmdir()
        queue.add(f"{run_id} end", f"hpcenc-{run_id}", "PENDING")
        queue.add(f"{run_id} fit", f"hpcenc-w-{run_id}", "PENDING")
    end_leftovers(study.store_path, "chain111")
    assert {job for job, state in queue.states().items() if state == "CANCELLED"} == {
        "chain000 end",
        "chain000 fit",
    }


def test_the_controller_of_a_run_is_no_leftover_of_itself(
    study: Study, folder: RunFolder, queue: Any
) -> None:
    queue.add("77", CONTROLLER)
    queue.add("78", WORKER)
    end_leftovers(study.store_path, RUN)
    assert queue.states() == {"77": "RUNNING", "78": "CANCELLED"}
    assert not (folder.path / "private").exists()


def test_a_run_on_this_machine_is_not_cancelled_from_elsewhere(study: Study) -> None:
    RunFolder.create(study.store_path, RUN, Plan((), (), ()), {})
    with pytest.raises(StudyError, match="not a run on SLURM; end it by Ctrl-C"):
        cancel_run(study)


def test_a_controller_in_a_terminal_is_not_cancelled_from_elsewhere(study: Study) -> None:
    folder = RunFolder.create(study.store_path, "a1b2c3d4", Plan((), (), ()), {"site": {}})
    acquire(lock_path(study.store_path), this_process("a1b2c3d4"), lambda _: False)
    before = list(folder.path.iterdir())
    with pytest.raises(StudyError, match=f"its controller is process {os.getpid()} on .*end it there"):
        cancel_run(study)
    assert list(folder.path.iterdir()) == before

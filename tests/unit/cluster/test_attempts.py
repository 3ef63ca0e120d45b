from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from hpcenc.cluster.attempts import MAX_LOSSES, MAX_TRIES, NOBODYS_FAULT, Attempts, LostBy, Outcome
from hpcenc.tasks.records import TaskRecord, UnitRecord


@dataclass(frozen=True)
class Named:
    key: str


def lost(task: Any, by: LostBy) -> Outcome:
    return Outcome(task, None, by, "why")


@pytest.fixture
def task() -> Any:
    return Named("a")


@pytest.mark.parametrize("by", NOBODYS_FAULT)
def test_what_the_scheduler_does_to_a_job_is_forgiven_often_but_not_for_ever(task: Any, by: LostBy) -> None:
    attempts = Attempts([task])
    for _ in range(MAX_LOSSES - 1):
        assert attempts.next() == (task, False)
        assert attempts.judge(lost(task, by)).again
    attempts.next()
    last = attempts.judge(lost(task, by))
    assert not last.again
    assert last.message == f"lost its worker {MAX_LOSSES} times, last: why"


def test_only_a_task_that_was_alone_is_set_aside_for_a_crash(task: Any) -> None:
    other: Any = Named("b")
    attempts = Attempts([task, other])
    attempts.next()
    attempts.next()
    for each in (task, other):
        assert attempts.judge(lost(each, "crash"), alone=False).again
    assert attempts.next(alone=False) is None, "a suspect waits for a worker of its own"
    assert attempts.next() == (task, True)
    assert attempts.judge(lost(task, "crash")).again
    assert attempts.next() == (other, True)
    for _ in range(MAX_TRIES):
        assert attempts.judge(lost(other, "crash"), alone=False).again
    attempts.take_rest()
    assert not attempts.judge(lost(task, "crash")).again


def test_what_raised_is_not_tried_again(task: Any) -> None:
    attempts = Attempts([])
    assert not attempts.judge(lost(task, "error")).again
    assert len(attempts) == 0


def test_units_that_are_left_go_on_in_another_job_if_there_is_one(task: Any) -> None:
    attempts = Attempts([])
    outcome = Outcome(task, TaskRecord("a", (UnitRecord("u", 1.0),), left=("v",)))
    assert not attempts.judge(outcome).again
    assert attempts.judge(outcome, replaces=True).again
    assert attempts.next() == (task, False)


def test_a_task_that_gets_nowhere_in_whole_jobs_is_set_aside(task: Any) -> None:
    attempts = Attempts([])
    nothing = Outcome(task, TaskRecord("a", left=("v",)))
    for _ in range(10):  # at the ends of jobs that did other work
        assert attempts.judge(nothing, replaces=True, fresh=False).again
    judged = [attempts.judge(nothing, replaces=True, fresh=True) for _ in range(MAX_TRIES)]
    assert [each.again for each in judged] == [True] * (MAX_TRIES - 1) + [False]
    assert "a longer walltime is needed" in judged[-1].message

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpcenc.cluster.accounting import WorkerTime, account, unit_states

START = datetime(2026, 1, 1, 22, tzinfo=UTC)


def at(minutes: float, event: str, **facts: Any) -> dict[str, Any]:
    return {"time": (START + timedelta(minutes=minutes)).isoformat(), "event": event, **facts}


def unit(minutes: float, seconds: float, **facts: float) -> dict[str, Any]:
    return at(minutes, "unit", seconds=seconds, facts=facts, where="job 1 on n1")


def worker(minutes: float, job: str, kind: str = "gpu") -> dict[str, Any]:
    return at(minutes, "worker", job=job, kind=kind)


def test_nothing_has_no_pace_and_no_price() -> None:
    found = account([], START)
    assert (found.stage, found.units_per_min, found.minutes_left) == ("", None, None)
    assert (found.workers, found.lost) == ({}, {})


def test_pace_and_time_left_are_those_of_the_stage_at_work() -> None:
    events = [
        worker(0, "1"),
        *(at(0, "stage", stage="extract", units=100), unit(1, 1), at(1, "stage end", stage="extract")),
        *(at(10, "stage", stage="fit", units=12), unit(11, 1), unit(12, 1)),
    ]
    found = account(events, START + timedelta(minutes=14))
    assert (found.stage, found.units_left) == ("fit", 10)
    assert found.units_per_min == pytest.approx(2 / 4)
    assert found.minutes_left == pytest.approx(20)


def test_members_of_an_array_share_a_stage_and_leave_one_by_one() -> None:
    events = [
        *(worker(0, "7_0"), at(0, "stage", stage="fit", units=2, where="7_0")),
        *(worker(1, "7_1"), at(1, "stage", stage="fit", units=3, where="7_1")),
        *({**unit(minutes, 1), "where": where} for minutes, where in ((2, "7_0"), (3, "7_0"))),
        *(at(3, "worker left", job="7_0", units_left=0), {**unit(5, 1), "where": "7_1"}),
    ]
    found = account(events, START + timedelta(minutes=6))
    assert (found.stage, found.units_left, found.workers["gpu"].n_now) == ("fit", 2, 1)
    assert found.units_per_min == pytest.approx(3 / 6)
    assert found.workers["gpu"].hours == pytest.approx((3 + 5) / 60)


def test_who_is_started_again_counts_what_is_left_anew() -> None:
    member = [
        *(worker(0, "7_0"), at(0, "stage", stage="fit", units=4, where="7_0")),
        *({**unit(1, 1), "where": "7_0"}, at(2, "worker left", job="7_0", units_left=3)),
        *(worker(5, "7_0"), at(5, "stage", stage="fit", units=3, where="7_0")),
    ]
    found = account(member, START + timedelta(minutes=6))
    assert (found.units_left, found.workers["gpu"].n_now) == (3, 1)
    assert found.workers["gpu"].hours == pytest.approx((2 + 1) / 60)
    controller = [
        *(at(0, "controller"), at(0, "stage", stage="fit", units=4), worker(0, "1"), unit(1, 1)),
        *(at(5, "controller"), at(5, "stage", stage="fit", units=3), unit(6, 1)),
    ]
    found = account(controller, START + timedelta(minutes=7))
    assert (found.units_left, found.workers["gpu"].n_now) == (2, 0)
    assert found.units_per_min == pytest.approx(1 / 2)


def test_workers_cost_what_their_jobs_were_there_for() -> None:
    events = [
        at(0, "stage", stage="fit", units=4),
        worker(0, "1"),
        worker(0, "2"),
        unit(20, 900.0, solve_seconds=600.0),  # the other slot had the device meanwhile
        unit(20, 600.0),
        at(30, "worker lost", job="2"),
        at(30, "lost", task="t", by="preempted"),
    ]
    found = account(events, START + timedelta(minutes=60))
    assert found.lost == {"preempted": 1}
    assert found.workers == {"gpu": WorkerTime(1, pytest.approx(1.5), pytest.approx(1200 / (1.5 * 3600)))}
    ended = account([*events, at(45, "stage end", stage="fit")], START + timedelta(days=9))
    assert (ended.workers["gpu"].n_now, ended.stage) == (0, "")
    assert ended.workers["gpu"].hours == pytest.approx(1.25)


def test_units_of_local_workers_cost_no_job() -> None:
    event = unit(1, 60.0)
    del event["where"]
    found = account([at(0, "stage", stage="fit", units=1), event], START + timedelta(minutes=2))
    assert found.workers == {}


def test_hours_with_a_gpu_are_told_apart_from_those_without() -> None:
    events = [
        *(worker(0, "1", kind="cpu"), at(0, "stage", stage="operators", units=1), unit(10, 300.0)),
        *(at(20, "stage end", stage="operators"), worker(20, "2"), at(20, "stage", stage="fit", units=1)),
        *({**unit(30, 600.0), "where": "job 2 on n1"}, at(50, "end", status=0)),
    ]
    found = account(events, START + timedelta(days=1))
    assert found.workers == {
        "gpu": WorkerTime(0, pytest.approx(0.5), pytest.approx(1 / 3)),
        "cpu": WorkerTime(0, pytest.approx(1 / 3), pytest.approx(1 / 4)),
    }


def test_events_of_older_versions_are_understood() -> None:
    events = [
        *(at(0, "worker", job="1", gpu="0"), at(0, "worker", job="2", gpu="")),
        *(at(0, "lost", task="t", by="crash"), at(0, "set aside", task="t", reason="broken")),
    ]
    found = account(events, START + timedelta(hours=1))
    assert {kind: time.hours for kind, time in found.workers.items()} == {"gpu": 1, "cpu": 1}
    assert unit_states(events) == {}


def began(*units: str) -> dict[str, Any]:
    return at(0, "began", task="t", units=list(units))


@pytest.mark.parametrize(
    ("then", "states"),
    [
        ([], {"a": "running", "b": "running"}),
        ([{**unit(1, 1), "unit": "a"}], {"b": "running"}),
        ([at(1, "lost", by="preempted", units=["a", "b"])], {"a": "lost", "b": "lost"}),
        ([at(1, "lost", by="crash", units=["a", "b"])], {"a": "failed", "b": "failed"}),
        ([at(1, "lost", by="crash", units=["a", "b"]), began("a", "b")], {"a": "running", "b": "running"}),
        ([at(1, "yielded", left=["b"])], {"a": "running"}),
        ([at(1, "set aside", task="a", units=["a"])], {"a": "set aside", "b": "running"}),
        ([at(1, "set aside", task="", reason="a subject without BOLD")], {"a": "running", "b": "running"}),
        ([at(1, "set aside", task="a", units=["a"]), at(2, "end", status=3)], {"a": "set aside"}),
        ([at(1, "lost", by="timeout", units=["a", "b"]), at(2, "controller")], {"a": "lost", "b": "lost"}),
        ([at(1, "controller")], {}),
        ([at(1, "cancelled")], {}),
    ],
)
def test_a_unit_that_is_not_done_has_the_state_that_was_told_last(
    then: list[dict[str, Any]], states: dict[str, str]
) -> None:
    assert unit_states([began("a", "b"), *then]) == states

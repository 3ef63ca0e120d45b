"""What a run's events say of its pace and of what its workers cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Account:
    """Pace and price of a run.

    Attributes
    ----------
    stage : str
        The stage that is at work; empty if none is.
    units_left : int
        Of it.
    units_per_min : float or None
        Of it, since it began; None before its first unit has ended.
    minutes_left : float or None
        Of it, at that pace.
    n_workers : int
        At work now.
    worker_hours : float
        That workers in jobs were there for; of those with a GPU, GPU-hours.
    busy_share : float or None
        Of that time, what units took; None without any.
    lost : mapping of str to int
        Tries of tasks that came to nothing and were repeated, by what they were lost to.
    """

    stage: str
    units_left: int
    units_per_min: float | None
    minutes_left: float | None
    n_workers: int
    worker_hours: float
    busy_share: float | None
    lost: Mapping[str, int]


def account(events: Iterable[Mapping[str, Any]], now: datetime) -> Account:
    """Account of a run.

    Parameters
    ----------
    events : iterable of mapping
        In their order, as the run folder keeps them.
    now : datetime
        With its time zone: until then those who are at work are counted.
    """
    stage, begun, done = "", now, 0
    left: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    since: dict[str, datetime] = {}
    worker_s, busy_s = 0.0, 0.0
    for event in events:
        time, kind = datetime.fromisoformat(event["time"]), event["event"]
        if kind == "stage":
            # Each member of an array tells of its own share, again when it is started again.
            member = event.get("where", "")
            if event["stage"] != stage or not member:
                stage, begun, done = event["stage"], time, 0
                left.clear()
            left[member] = event["units"]
        elif kind == "unit":
            member = event.get("where", "")
            left[member if member in left else ""] -= 1
            done += 1
            # Two slots of a worker take turns at its device, and only that time is not counted twice.
            busy_s += event["facts"].get("solve_seconds", event["seconds"]) if event.get("where") else 0.0
        elif kind == "lost":
            lost[event["by"]] += 1
        elif kind == "worker":
            since[event["job"]] = time
        elif kind in ("worker lost", "worker left"):
            worker_s += _seconds(since.pop(event["job"], time), time)
        elif kind in ("stage end", "end", "cancelled", "controller"):
            # A controller ends the workers of the one before it.
            stage = ""
            worker_s += sum(_seconds(start, time) for start in since.values())
            since.clear()
    worker_s += sum(_seconds(start, now) for start in since.values())
    n_left = sum(left.values()) if stage else 0
    pace = done / (_seconds(begun, now) / 60) if stage and done and now > begun else None
    return Account(
        stage=stage,
        units_left=n_left,
        units_per_min=pace,
        minutes_left=n_left / pace if pace else None,
        n_workers=len(since),
        worker_hours=worker_s / 3600,
        busy_share=busy_s / worker_s if worker_s else None,
        lost=dict(lost),
    )


def _seconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()

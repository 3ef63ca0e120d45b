"""What a run's events say of its pace, of what its workers cost, and of units that are not done."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from hpcenc.cluster.attempts import NOBODYS_FAULT
from hpcenc.cluster.run_folder import job_in

UnitState = Literal["running", "failed", "lost", "set aside"]
"""Of a unit that is not done; without any it waits for its first try. ``running``: a worker has its task.
``failed``: its task failed, and ``lost``: its worker was taken away, and it waits to be tried again."""


@dataclass(frozen=True)
class WorkerTime:
    """Workers of one kind: those in jobs with a GPU, or those without.

    Attributes
    ----------
    n_now : int
        At work now.
    hours : float
        That they were there for, each counted: GPU-hours of those with a GPU.
    busy_share : float or None
        Of that time, what units took; None without any.
    """

    n_now: int
    hours: float
    busy_share: float | None


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
    workers : mapping of str to WorkerTime
        By their kind, ``gpu`` or ``cpu``; those in jobs only.
    lost : mapping of str to int
        Tries of tasks that came to nothing and were repeated, by what they were lost to.
    """

    stage: str
    units_left: int
    units_per_min: float | None
    minutes_left: float | None
    workers: Mapping[str, WorkerTime]
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
    kinds: dict[str, str] = {}  # of the jobs of all workers
    worker_s: defaultdict[str, float] = defaultdict(float)
    busy_s: defaultdict[str, float] = defaultdict(float)
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
            seconds = event["facts"].get("solve_seconds", event["seconds"])
            busy_s[kinds.get(job_in(member), "")] += seconds
        elif kind == "lost":
            lost[event["by"]] += 1
        elif kind == "worker":
            kinds[event["job"]] = event.get("kind") or ("gpu" if event.get("gpu") else "cpu")
            since[event["job"]] = time
        elif kind in ("worker lost", "worker left"):
            if (start := since.pop(event["job"], None)) is not None:
                worker_s[kinds[event["job"]]] += _seconds(start, time)
        elif kind in ("stage end", "end", "cancelled", "controller"):
            # A controller ends the workers of the one before it.
            stage = ""
            for job, start in since.items():
                worker_s[kinds[job]] += _seconds(start, time)
            since.clear()
    for job, start in since.items():
        worker_s[kinds[job]] += _seconds(start, now)
    n_left = sum(left.values()) if stage else 0
    pace = done / (_seconds(begun, now) / 60) if stage and done and now > begun else None
    at_work = Counter(kinds[job] for job in since)
    return Account(
        stage=stage,
        units_left=n_left,
        units_per_min=pace,
        minutes_left=n_left / pace if pace else None,
        workers={
            kind: WorkerTime(
                n_now=at_work[kind],
                hours=worker_s[kind] / 3600,
                busy_share=busy_s[kind] / worker_s[kind] if worker_s[kind] else None,
            )
            for kind in sorted(set(kinds.values()), reverse=True)
        },
        lost=dict(lost),
    )


def _seconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()


def unit_states(events: Iterable[Mapping[str, Any]]) -> dict[str, UnitState]:
    """States of units by their names, as the events tell; runs of older versions tell less.

    Of a unit that a task found done nobody tells: its mark comes before what is said here.
    """
    states: dict[str, UnitState] = {}
    for event in events:
        kind = event["event"]
        if kind == "began":
            states.update(dict.fromkeys(event["units"], "running"))
        elif kind == "unit":
            states.pop(event["unit"], None)
        elif kind == "yielded":
            for unit in event["left"]:
                states.pop(unit, None)
        elif kind == "lost":
            state: UnitState = "lost" if event["by"] in NOBODYS_FAULT else "failed"
            states.update(dict.fromkeys(event.get("units", ()), state))
        elif kind == "set aside":
            states.update(dict.fromkeys(event.get("units", ()), "set aside"))
        elif kind in ("end", "cancelled", "controller"):
            states = {unit: state for unit, state in states.items() if state != "running"}
    return states

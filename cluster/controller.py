"""The controller: takes a plan through its stages, counts attempts, sets aside what cannot be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from hpcenc.cluster.executors import Executor, Outcome
from hpcenc.cluster.run_folder import Event
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Deadline, Task

MAX_TRIES = 3
"""Tries of a task whose worker died, or whose reading or writing failed."""

Emit = Callable[[Event], None]


@dataclass
class Progress:
    """What a run has done so far."""

    units_done: int = 0
    units_left: int = 0
    set_aside: list[str] = field(default_factory=list)


def run_plan(
    plan: Plan, store: Path, executor: Executor, deadline: Deadline | None, emit: Emit, progress: Progress
) -> None:
    """Run what is left of a plan.

    Parameters
    ----------
    plan : Plan
        Its groups exist in the store.
    store : Path
    executor : Executor
    deadline : Deadline or None
        When the job that this runs in ends.
    emit : callable
        Is told what happens, event by event.
    progress : Progress
        Is kept up to date, so that it is right after an interruption too. A task that fails is set
        aside with its reason, and so is what needs it; the rest goes on. A stage that leaves units
        for the next job is the last: what needs them is not wrong, only not due yet.
    """
    for stage in plan.pending(store):
        if stage.tasks:
            _run_stage(stage, store, executor, deadline, emit, progress)
        if progress.units_left:
            return


def _run_stage(
    stage: Stage,
    store: Path,
    executor: Executor,
    deadline: Deadline | None,
    emit: Emit,
    progress: Progress,
) -> None:
    ready, blocked = _split_ready(stage.tasks, store)
    for task, missing in blocked:
        _set_aside(task, f"needs {missing}, which was not made", emit, progress)
    n_units = sum(not unit.done(store) for task in ready for unit in task.units)
    emit({"event": "stage", "stage": stage.name, "tasks": len(ready), "units": n_units})
    tries: Counter[str] = Counter()
    batches = [ready] if ready else []
    while batches:
        again: list[Task] = []
        for outcome in chain.from_iterable(executor.run(batch, store, deadline) for batch in batches):
            tries[outcome.task.key] += 1
            if outcome.record is not None:
                _note(outcome, stage, emit, progress)
            elif outcome.lost_by != "error" and tries[outcome.task.key] < MAX_TRIES:
                emit({"event": "lost", "task": outcome.task.key, "by": outcome.lost_by})
                again.append(outcome.task)
            else:
                _set_aside(outcome.task, outcome.message, emit, progress)
        # A worker that dies takes the task that waits beside it along: alone, only the guilty one fails.
        batches = [[task] for task in again]
    emit({"event": "stage end", "stage": stage.name})


def _split_ready(tasks: Sequence[Task], store: Path) -> tuple[list[Task], list[tuple[Task, str]]]:
    ready: list[Task] = []
    blocked: list[tuple[Task, str]] = []
    known: dict[object, bool] = {}
    for task in tasks:
        missing = ""
        for unit in task.needs:
            if unit not in known:
                known[unit] = unit.done(store)
            if not known[unit]:
                missing = str(unit)
                break
        if missing:
            blocked.append((task, missing))
        else:
            ready.append(task)
    return ready, blocked


def _note(outcome: Outcome, stage: Stage, emit: Emit, progress: Progress) -> None:
    record = outcome.record
    assert record is not None
    progress.units_done += len(record.done)
    progress.units_left += len(record.left)
    for unit in record.done:
        emit(
            {
                "event": "unit",
                "stage": stage.name,
                "task": record.key,
                "unit": unit.unit,
                "seconds": round(unit.seconds, 3),
                "facts": dict(unit.facts),
            }
        )
    if record.left:
        emit({"event": "yielded", "task": record.key, "left": list(record.left)})


def _set_aside(task: Task, message: str, emit: Emit, progress: Progress) -> None:
    first_line, _, details = message.partition("\n")
    progress.set_aside.append(f"{task.key}: {first_line}")
    emit({"event": "set aside", "task": task.key, "reason": first_line, "details": details})

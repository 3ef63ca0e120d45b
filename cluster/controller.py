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
from hpcenc.tasks.records import Deadline, Task, missing_need

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
    ready = _ready(stage.tasks, store, emit, progress)
    n_units = sum(not unit.done(store) for task in ready for unit in task.units)
    emit({"event": "stage", "stage": stage.name, "tasks": len(ready), "units": n_units})
    tries: Counter[str] = Counter()
    batches = [ready] if ready else []
    while batches:
        again: list[Task] = []
        outcomes = (executor.run(batch, store, deadline, stage.slots) for batch in batches)
        for outcome in chain.from_iterable(outcomes):
            tries[outcome.task.key] += 1
            if outcome.record is not None:
                _note(outcome, stage, emit, progress)
            elif outcome.lost_by != "error" and tries[outcome.task.key] < MAX_TRIES:
                emit({"event": "lost", "task": outcome.task.key, "by": outcome.lost_by})
                again.append(outcome.task)
            else:
                reason, _, details = outcome.message.partition("\n")
                _set_aside(outcome.task.key, reason, details, emit, progress)
        # A worker that dies takes the task beside it along: alone, only the guilty one fails.
        batches = [[task] for task in again]
    emit({"event": "stage end", "stage": stage.name})


def _ready(tasks: Sequence[Task], store: Path, emit: Emit, progress: Progress) -> list[Task]:
    """Tasks with a unit that can be made; the others are set aside."""
    ready = []
    for task in tasks:
        missing = [missing_need(task, unit, store) for unit in task.units if not unit.done(store)]
        if missing and all(need is not None for need in missing):
            _set_aside(task.key, f"needs {missing[0]}, which was not made", "", emit, progress)
        else:
            ready.append(task)
    return ready


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
    for failure in record.failed:
        _set_aside(failure.unit, failure.reason, failure.details, emit, progress)
    if record.left:
        emit({"event": "yielded", "task": record.key, "left": list(record.left)})


def _set_aside(what: str, reason: str, details: str, emit: Emit, progress: Progress) -> None:
    progress.set_aside.append(f"{what}: {reason}")
    emit({"event": "set aside", "task": what, "reason": reason, "details": details})

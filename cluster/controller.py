"""The controller: takes a plan through its stages, and sets aside what cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from hpcenc.cluster.attempts import Outcome
from hpcenc.cluster.executors import Executor
from hpcenc.cluster.run_folder import Event
from hpcenc.storage.errors import FullError
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Deadline, Task, TaskRecord, look_again, missing_need

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

    Raises
    ------
    FullError
        If there is no space left for the store.
    """
    for stage in plan.pending(store):
        if stage.tasks:
            run_stage(stage, store, executor, deadline, emit, progress)
        if progress.units_left:
            return


def run_stage(
    stage: Stage,
    store: Path,
    executor: Executor,
    deadline: Deadline | None,
    emit: Emit,
    progress: Progress,
) -> None:
    """Run the tasks of one stage; parameters are those of `run_plan`."""
    ready = _ready(stage.tasks, store, emit, progress)
    left = [unit for task in ready for unit in task.units if not unit.done(store)]
    emit({"event": "stage", "stage": stage.name, "tasks": len(ready), "units": len(left)})
    done_before = progress.units_done

    def began(task: Task, where: str) -> None:
        emit({"event": "began", "task": task.key, "units": _names(task), **_place(where)})

    if ready:
        # Closed at once if this ends early, so that no worker goes on.
        with closing(executor.run(ready, store, deadline, stage.slots, stage.worker, began)) as outcomes:
            for outcome in outcomes:
                if outcome.lost_by == "full" and not outcome.again:
                    raise FullError(store)
                _note(outcome, stage, emit, progress)
    # Of some nobody told: they were done by tries whose workers were lost.
    progress.units_done = max(progress.units_done, done_before + sum(unit.done(store) for unit in left))
    emit({"event": "stage end", "stage": stage.name})


def _ready(tasks: Sequence[Task], store: Path, emit: Emit, progress: Progress) -> list[Task]:
    """Tasks with a unit that can be made; the others are set aside."""
    look_again((need for task in tasks for unit in task.units for need in task.needs_of(unit)), store)
    ready = []
    for task in tasks:
        missing = [missing_need(task, unit, store) for unit in task.units if not unit.done(store)]
        if missing and all(need is not None for need in missing):
            _set_aside(task.key, _names(task), f"needs {missing[0]}, which was not made", "", emit, progress)
        else:
            ready.append(task)
    return ready


def _note(outcome: Outcome, stage: Stage, emit: Emit, progress: Progress) -> None:
    record, key = outcome.record, outcome.task.key
    reason, _, details = outcome.message.partition("\n")
    if record is None and outcome.again:
        lost = {"task": key, "units": _names(outcome.task), "by": outcome.lost_by, "why": reason}
        emit({"event": "lost", **lost, "where": outcome.where})
    elif record is None:
        _set_aside(key, _names(outcome.task), reason, details, emit, progress, outcome.where)
    else:
        _note_record(record, outcome, stage, emit, progress)


def _note_record(record: TaskRecord, outcome: Outcome, stage: Stage, emit: Emit, progress: Progress) -> None:
    progress.units_done += len(record.done)
    for unit in record.done:
        emit(
            {
                "event": "unit",
                "stage": stage.name,
                "task": record.key,
                "unit": unit.unit,
                "seconds": round(unit.seconds, 3),
                "facts": dict(unit.facts),
                **_place(outcome.where),
            }
        )
    for failure in record.failed:
        what, details = [failure.unit], failure.details
        _set_aside(failure.unit, what, failure.reason, details, emit, progress, outcome.where)
    if record.left:
        emit({"event": "yielded", "task": record.key, "left": list(record.left)})
        progress.units_left += 0 if outcome.again else len(record.left)


def _set_aside(
    what: str, units: list[str], reason: str, details: str, emit: Emit, progress: Progress, where: str = ""
) -> None:
    progress.set_aside.append(f"{what}: {reason}")
    told = {"task": what, "units": units, "reason": reason, "details": details}
    emit({"event": "set aside", **told, **_place(where)})


def _names(task: Task) -> list[str]:
    return [str(unit) for unit in task.units]


def _place(where: str) -> dict[str, str]:
    return {"where": where} if where else {}

"""Attempts: one try of a task, what became of it, and whether the task is tried again."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpcenc.storage.errors import is_full
from hpcenc.tasks.records import Deadline, Task, TaskRecord, one_line

MAX_TRIES = 3
"""Tries of a task whose worker died under it, or whose reading or writing failed."""

MAX_LOSSES = 20
"""Tries of a task that lost its worker without any fault of its own, such as to preemption."""

LostBy = Literal[
    "", "error", "storage", "full", "crash", "preempted", "node_fail", "timeout", "cancelled", "hung"
]
"""Why a try came to nothing. ``error``: the task raised; trying again would raise again. ``storage``: a read
or write failed, which may pass. ``full``: no space was left, be it the store's or that of one node.
``crash``: the worker's process died. ``hung``: the worker no longer answered. The others are what the
scheduler did to the worker's job."""

NOBODYS_FAULT = ("preempted", "node_fail", "timeout", "cancelled")


@dataclass(frozen=True)
class Outcome:
    """What became of one try of a task.

    Attributes
    ----------
    record : TaskRecord or None
        None if the try failed.
    lost_by : LostBy
        Empty if it did not.
    message : str
        Why it failed, in one line, and the traceback below.
    again : bool
        Whether the task is tried again, so that this is not the last word on it.
    where : str
        The worker, where that helps to find its log.
    """

    task: Task
    record: TaskRecord | None = None
    lost_by: LostBy = ""
    message: str = ""
    again: bool = False
    where: str = ""


class Attempts:
    """Tasks that wait for a worker, and how often each was tried.

    A worker that dies takes the tasks beside the guilty one along. Whoever was there is tried alone from
    then on, and only a task that was alone is ever set aside for it.

    Parameters
    ----------
    tasks : iterable of Task
        In the order in which they are tried.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._waiting = deque(tasks)
        self._suspects: deque[Task] = deque()
        self._tries: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._barren: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    def next(self, alone: bool = True) -> tuple[Task, bool] | None:
        """The task that is tried next, and whether it must have its worker for itself.

        Parameters
        ----------
        alone : bool
            Whether the worker has nothing else to do: without that no suspect is given.
        """
        if self._waiting:
            return self._waiting.popleft(), False
        return (self._suspects.popleft(), True) if alone and self._suspects else None

    def take_rest(self) -> list[Task]:
        """All that still wait; they are not tried any more."""
        rest = [*self._waiting, *self._suspects]
        self._waiting.clear()
        self._suspects.clear()
        return rest

    def judge(
        self, outcome: Outcome, alone: bool = True, replaces: bool = False, fresh: bool = False
    ) -> Outcome:
        """Decide whether a task is tried again, and let it wait if so.

        Parameters
        ----------
        outcome : Outcome
        alone : bool
            Whether its worker had no other task.
        replaces : bool
            Whether a worker whose job ends soon is replaced by another one, which goes on with the units
            that are left.
        fresh : bool
            Whether its worker had done nothing before, so that the task had a whole job for itself.
        """
        task, key = outcome.task, outcome.task.key
        if outcome.record is not None:
            return self._yielded(outcome, fresh) if outcome.record.left and replaces else outcome
        if outcome.lost_by == "error":
            return outcome
        if outcome.lost_by in NOBODYS_FAULT:
            self._losses[key] += 1
            if self._losses[key] >= MAX_LOSSES:
                return replace(
                    outcome, message=f"lost its worker {MAX_LOSSES} times, last: {outcome.message}"
                )
            self._waiting.append(task)
            return replace(outcome, again=True)
        self._tries[key] += 1
        is_storage = outcome.lost_by in ("storage", "full")
        if self._tries[key] >= MAX_TRIES and (alone or is_storage):
            return outcome
        if outcome.lost_by == "full":  # soon, for if it is the store's, all others will fail too
            self._waiting.appendleft(task)
            return replace(outcome, again=True)
        (self._waiting if is_storage else self._suspects).append(task)
        return replace(outcome, again=True)

    def _yielded(self, outcome: Outcome, fresh: bool) -> Outcome:
        """Go on elsewhere with the units that are left, unless not even one fits a whole job."""
        task, record = outcome.task, outcome.record
        assert record is not None
        self._barren[task.key] += fresh and not record.done
        if self._barren[task.key] >= MAX_TRIES:
            reason = f"no unit fitted before the end of {MAX_TRIES} jobs: a longer walltime is needed"
            return Outcome(task, None, "timeout", reason)
        self._waiting.append(task)
        return replace(outcome, again=True)


def run_task(task: Task, store: Path, deadline: Deadline | None) -> Outcome:
    """Run one task in this process; whatever it raises becomes its outcome."""
    from hpcenc.storage.store import Store

    try:
        return Outcome(task, task.run(Store(store), deadline))
    except Exception as error:
        lost_by: LostBy = "full" if is_full(error) else "storage" if isinstance(error, OSError) else "error"
        return Outcome(task, None, lost_by, f"{one_line(error)}\n{traceback.format_exc()}")

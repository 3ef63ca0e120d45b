"""Units of work, the marks that say they are done, and the records tasks return."""

from __future__ import annotations

import os
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from hpcenc.storage.marks import MARKS, is_done

if TYPE_CHECKING:
    from hpcenc.storage.store import Store

Fact = str | int | float


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of work that is done or not: one mark of one group.

    Attributes
    ----------
    group : str
        Group of the store that the unit fills a part of.
    index : int
        Place of its mark in the group's ``done`` array.
    digest : str
        Of everything that decides the group's content.
    cached : Path or None
        A folder outside the store that the unit also made and that must still be there.
    cached_bytes : int
        What that folder takes on the disk, at most.
    """

    group: str
    index: int
    digest: str
    cached: Path | None = None
    cached_bytes: int = 0

    def done(self, store: Path) -> bool:
        """Whether the unit is complete."""
        return is_done(store, self.group, self.index, self.digest) and (
            self.cached is None or self.cached.exists()
        )

    def __str__(self) -> str:
        return f"{self.group}#{self.index}"


def look_again(units: Iterable[Unit], store: Path) -> None:
    """Let this node see which of these units were completed on others.

    The client of a network file system remembers for up to a minute that a mark was not there; it asks the
    server when the mark's folder is opened.
    """
    folders: dict[Path, None] = {}
    for unit in units:
        folders[store / unit.group / MARKS] = None
        if unit.cached is not None:
            folders[unit.cached.parent] = None
    for folder in folders:
        with suppress(OSError):
            os.listdir(folder)


@dataclass(frozen=True)
class Deadline:
    """When the job that a task runs in will end, on this machine's clock.

    Attributes
    ----------
    end_s : float
        Seconds since the epoch.
    longest_s : float
        Duration of the longest unit of its kind so far, in seconds.
    """

    end_s: float
    longest_s: float = 0.0

    def after(self, record: TaskRecord | None) -> Deadline:
        """The same, knowing how long the units of one more task took."""
        done = () if record is None else record.done
        return replace(self, longest_s=max([self.longest_s, *(unit.seconds for unit in done)]))

    def allows(self, estimate_s: float) -> bool:
        """Whether a unit of this estimate, or as long as the longest, fits with half of it to spare."""
        return time.time() + 1.5 * max(estimate_s, self.longest_s) < self.end_s


@dataclass(frozen=True)
class UnitRecord:
    """What became of one unit."""

    unit: str
    seconds: float
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class FailedUnit:
    """A unit that could not be made, why in one line, and the traceback."""

    unit: str
    reason: str
    details: str = ""


@dataclass(frozen=True)
class TaskRecord:
    """What became of one task: small, plain values only.

    Attributes
    ----------
    key : str
    done : tuple of UnitRecord
        Units done by this call.
    skipped : int
        Units that were done before.
    left : tuple of str
        Units that no longer fitted before the deadline.
    failed : tuple of FailedUnit
        Units that would fail again.
    """

    key: str
    done: tuple[UnitRecord, ...] = ()
    skipped: int = 0
    left: tuple[str, ...] = ()
    failed: tuple[FailedUnit, ...] = ()


class Task(Protocol):
    """A piece of work for one worker: keys in, a record out, arrays through the store."""

    @property
    def key(self) -> str:
        """Name of the task, unique in the plan."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """What it does, in order."""

    def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
        """Units of earlier stages that must be done before one of its own."""

    def run(self, store: Store, deadline: Deadline | None) -> TaskRecord:
        """Do the units that are not done and fit before the deadline."""


def missing_need(task: Task, unit: Unit, store: Path) -> Unit | None:
    """The first unit that one of a task's units needs and that is not done."""
    return next((need for need in task.needs_of(unit) if not need.done(store)), None)


def run_units(
    task: Task,
    store: Store,
    deadline: Deadline | None,
    work: Callable[[Unit], Mapping[str, Fact]],
) -> TaskRecord:
    """Do a task's units one after the other, each followed by its mark.

    Parameters
    ----------
    task : Task
    store : Store
    deadline : Deadline or None
        None where nothing ends the process from outside.
    work : callable
        Computes and writes one unit, data on the disk when it returns; gives facts for the record.

    Returns
    -------
    TaskRecord
        The duration of the longest unit so far is the estimate for the next. A unit that cannot be
        made, or lacks what it needs, is recorded as failed, and the next one is tried.

    Raises
    ------
    OSError
        If reading or writing fails, which may pass: what is done stays done.
    """
    done: list[UnitRecord] = []
    failed: list[FailedUnit] = []
    skipped = 0
    for place, unit in enumerate(task.units):
        if unit.done(store.path):
            skipped += 1
            continue
        estimate = max((record.seconds for record in done), default=0.0)
        if deadline is not None and not deadline.allows(estimate):
            left = tuple(str(other) for other in task.units[place:] if not other.done(store.path))
            return TaskRecord(task.key, tuple(done), skipped, left, tuple(failed))
        if (need := missing_need(task, unit, store.path)) is not None:
            failed.append(FailedUnit(str(unit), f"needs {need}, which was not made"))
            continue
        start = time.perf_counter()
        try:
            facts = work(unit)
        except OSError:
            raise
        except Exception as error:
            failed.append(FailedUnit(str(unit), one_line(error), traceback.format_exc()))
            continue
        store.mark(unit.group, unit.index, unit.digest)
        done.append(UnitRecord(str(unit), time.perf_counter() - start, dict(facts)))
    return TaskRecord(task.key, tuple(done), skipped, failed=tuple(failed))


def one_line(error: BaseException) -> str:
    """An error's kind and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(frozen=True, kw_only=True)
class UnitTask(ABC):
    """A task of one unit.

    Attributes
    ----------
    unit : Unit
    needs : tuple of Unit
        Units of earlier stages that must be done before.
    """

    verb: ClassVar[str]
    """What it does, in its name."""

    unit: Unit
    needs: tuple[Unit, ...] = ()

    @property
    def key(self) -> str:
        """Name of the task, unique in the plan."""
        return f"{self.verb} {self.unit}"

    @property
    def units(self) -> tuple[Unit, ...]:
        """Its one unit."""
        return (self.unit,)

    def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
        """What its one unit needs."""
        return self.needs

    def run(self, store: Store, deadline: Deadline | None) -> TaskRecord:
        """Do the unit, unless it is done or does not fit before the deadline."""
        return run_units(self, store, deadline, lambda _: self.work(store))

    @abstractmethod
    def work(self, store: Store) -> Mapping[str, Fact]:
        """Compute and write the unit, data on the disk when it returns; gives facts for the record."""

"""Executors: the same tasks in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol

from hpcenc.cluster.attempts import Attempts, LostBy, Outcome, run_task
from hpcenc.cluster.granted import memory_bytes, n_cores
from hpcenc.cluster.pools import Crew, LocalPool, Pool
from hpcenc.cluster.threads import limited_threads
from hpcenc.storage.study import Cluster
from hpcenc.tasks.records import Deadline, Task, TaskRecord, one_line

IN_FLIGHT_PER_WORKER = 2
"""Tasks that a worker holds: two at work in two slots, or one at work and one to begin at once after it."""

TICK_S = 0.5
"""How often workers are looked after while no task ends."""

RESULT_S = 60.0
"""How long the record of a task may be on its way."""

LOST_S = 30.0
"""How long a task may wait for word of a worker that is gone before it counts as lost with it."""


Began = Callable[[Task, str], None]


def ignore(task: Task, where: str) -> None:
    """Listen to nothing."""


class Executor(Protocol):
    """Runs the tasks of one stage after another."""

    name: str
    n_workers: int
    n_threads: int

    def run(
        self,
        tasks: Sequence[Task],
        store: Path,
        deadline: Deadline | None,
        slots: int = 1,
        worker: Literal["cpu", "gpu"] = "cpu",
        began: Began = ignore,
    ) -> Generator[Outcome, None, None]:
        """Run tasks until each has had its last word, and yield what becomes of every try as it is known.

        Parameters
        ----------
        tasks : sequence of Task
        store : Path
        deadline : Deadline or None
            When the job that this runs in ends.
        slots : int
            Tasks that a worker process has at a time; no more, and possibly fewer.
        worker : {"cpu", "gpu"}
            Kind of worker that they want.
        began : callable
            Is told of every try as it begins: the task, and the worker by `Crew.name_of`.
        """


class SerialExecutor:
    """One task after the other in this process, to the same bytes as worker processes would write.

    Parameters
    ----------
    n_threads : int
        Threads of the numerical libraries.
    """

    name = "serial"
    n_workers = 1

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def run(
        self,
        tasks: Sequence[Task],
        store: Path,
        deadline: Deadline | None,
        slots: int = 1,
        worker: Literal["cpu", "gpu"] = "cpu",
        began: Began = ignore,
    ) -> Generator[Outcome, None, None]:
        """Run tasks in their order, one at a time whatever the slots."""
        attempts = Attempts(tasks)
        with limited_threads(self.n_threads):
            while (found := attempts.next()) is not None:
                began(found[0], "")
                outcome = run_task(found[0], store, deadline)
                deadline = deadline and deadline.after(outcome.record)
                yield attempts.judge(outcome)


class DaskExecutor:
    """Worker processes of a Dask cluster, which lives as long as a stage.

    Parameters
    ----------
    pool : Pool
        Where workers come from.
    drain : Drain, optional
        Says when no more tasks are to begin: what still waits is left for the next run.
    """

    def __init__(self, pool: Pool, drain: Drain | None = None) -> None:
        self._pool = pool
        self._drain = drain or Drain()
        self.name, self.n_workers, self.n_threads = pool.name, pool.n_workers, pool.n_threads

    def run(
        self,
        tasks: Sequence[Task],
        store: Path,
        deadline: Deadline | None,
        slots: int = 1,
        worker: Literal["cpu", "gpu"] = "cpu",
        began: Began = ignore,
    ) -> Generator[Outcome, None, None]:
        """Run tasks with a bounded number in flight, so that a lost worker costs little."""
        with self._pool.open(worker, slots, len(tasks)) as crew:
            drive = _Drive(crew, Attempts(tasks), store, deadline, slots, self._drain, began)
            yield from drive.outcomes()


class Drain:
    """Whether a run is to end before it is done, because the job that it runs in will."""

    def __init__(self, end_s: float | None = None, seconds: float = 0.0, last_s: float = 0.0) -> None:
        """Begin so many seconds before an end, and wait for tasks at work until `last_s` before it."""
        self._begin_s = None if end_s is None else end_s - seconds
        self._over_s = None if end_s is None else end_s - last_s

    def begin(self) -> None:
        """Begin now."""
        self._begin_s = 0.0

    def has_begun(self) -> bool:
        """Whether no more tasks are to begin."""
        return self._begin_s is not None and time.time() >= self._begin_s

    def is_over(self) -> bool:
        """Whether tasks at work are not waited for any more."""
        return self._over_s is not None and time.time() >= self._over_s


@dataclass(eq=False)
class _Hand:
    """A worker process as this side sees it: its tasks in flight, and how many ended there."""

    running: dict[Any, Task] = field(default_factory=dict)
    n_ended: int = 0
    n_at_loss: int = 0
    """Tasks that it had when it was lost."""
    suspect: bool = False
    """Whether the task it has must have it for itself."""
    yielded: bool = False
    gone_since: float | None = None


@dataclass
class _Drive:
    """Tasks of one stage on their way through the workers of a crew."""

    crew: Crew
    attempts: Attempts
    store: Path
    deadline: Deadline | None
    slots: int
    drain: Drain
    began: Began

    def __post_init__(self) -> None:
        self._hands: dict[str, _Hand] = {}
        self._where: dict[Any, str] = {}
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._unexplained: dict[Any, Any] = {}  # results of tasks whose workers were lost, nobody knows how
        self._longest_s = 0.0

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes of tries as they are known, until nothing is left to try."""
        while True:
            if self.drain.has_begun():
                yield from map(self._leave, self.attempts.take_rest())
            if self.drain.is_over():
                yield from map(self._leave, self._abandon())
            if not len(self.attempts) and not self._where:
                return
            self.crew.want(-(-(len(self.attempts) + len(self._where)) // self.slots))
            yield from self._lose(self._look_after())
            yield from self._explain()
            self._place()
            yield from self._collect()

    def _leave(self, task: Task) -> Outcome:
        """A task that is left for the next run."""
        left = tuple(str(unit) for unit in task.units if not unit.done(self.store))
        return Outcome(task, TaskRecord(task.key, left=left))

    def _abandon(self) -> list[Task]:
        """Tasks at work, whose ends are not waited for any more."""
        tasks = [task for hand in self._hands.values() for task in hand.running.values()]
        self._where.clear()
        self._hands.clear()
        self._unexplained.clear()
        return tasks

    def _look_after(self) -> list[Any]:
        """Take in new workers, let go of those that are done; futures of workers that are long gone."""
        alive = self.crew.workers()
        for worker in alive:
            self._hands.setdefault(worker, _Hand())
        lost: list[Any] = []
        for worker, hand in list(self._hands.items()):
            if worker in alive:
                hand.gone_since = None
                if not hand.running and (hand.yielded or not len(self.attempts)):
                    self.crew.dismiss(worker)
                    del self._hands[worker]
            elif not hand.running:
                del self._hands[worker]
            else:
                hand.gone_since = hand.gone_since or time.monotonic()
                if time.monotonic() - hand.gone_since > LOST_S:
                    lost += [future for future in hand.running if future not in self._unexplained]
        return lost

    def _lose(self, futures: Sequence[Any]) -> Iterator[Outcome]:
        """A task that was on its way to a worker when that went never hears of it: Dask lets it wait."""
        for future in futures:
            future.cancel()
            yield from self._end(future, None)

    def _explain(self) -> Iterator[Outcome]:
        """Tasks of lost workers, of which it may be known by now how."""
        for future, result in list(self._unexplained.items()):
            yield from self._end(future, result)

    def _place(self) -> None:
        """Give every worker a first task before any gets a second one.

        None has one in store, to begin at once after the last, unless there are enough for workers that are
        still to come, too: it would wait behind a long one while others idle.
        """
        while free := [hand for hand in self._hands.items() if self._may_take(hand[1], self._limit())]:
            placed = False
            for worker, hand in sorted(free, key=lambda pair: len(pair[1].running)):
                if (found := self.attempts.next(alone=not hand.running)) is None:
                    continue
                task, hand.suspect = found
                self._start(task, worker, hand)
                placed = True
            if not placed:
                return

    def _limit(self) -> int:
        many = len(self.attempts) > self.crew.n_workers * self.slots
        return max(IN_FLIGHT_PER_WORKER, self.slots) if many else self.slots

    def _may_take(self, hand: _Hand, limit: int) -> bool:
        return (
            hand.gone_since is None
            and not hand.yielded
            and not (hand.suspect and hand.running)
            and len(hand.running) < limit
        )

    def _start(self, task: Task, worker: str, hand: _Hand) -> None:
        ends = self.crew.ends(worker) or (self.deadline and self.deadline.end_s)
        deadline = Deadline(ends, self._longest_s) if ends else None
        future = self.crew.submit(worker, _run_there, task, self.store, deadline)
        hand.running[future] = task
        self._where[future] = worker
        self.began(task, self.crew.name_of(worker))
        future.add_done_callback(self._ended.put)

    def _collect(self) -> Iterator[Outcome]:
        """What ended, all of it; waits a moment if nothing did."""
        wait = True
        while True:
            try:
                future = self._ended.get(timeout=TICK_S if wait and self._where else 0.05 if wait else None)
            except Empty:
                return
            yield from self._end(future, future)
            if self._ended.empty():
                return
            wait = False

    def _end(self, future: Any, result: Any | None) -> Iterator[Outcome]:
        """What became of a try; nothing if it has ended before, or as long as nobody can say how its worker
        was lost."""
        if (worker := self._where.get(future)) is None:
            return
        hand = self._hands[worker]
        outcome = self._outcome(hand.running[future], worker, result)
        if outcome is None:
            self._unexplained[future] = result
            return
        self._unexplained.pop(future, None)
        alone = (hand.n_at_loss or len(hand.running)) == 1
        del self._where[future], hand.running[future]
        fresh = hand.n_ended == 0
        if outcome.record is not None:
            hand.n_ended += 1
            hand.yielded |= self.crew.replaces and bool(outcome.record.left)
            self._longest_s = max([self._longest_s, *(unit.seconds for unit in outcome.record.done)])
        future.release()
        yield self.attempts.judge(outcome, alone, self.crew.replaces, fresh)

    def _outcome(self, task: Task, worker: str, future: Any | None) -> Outcome | None:
        if future is not None and future.status == "finished":
            with contextlib.suppress(TimeoutError):  # else it went away with its worker
                record, lost_by, message = future.result(timeout=RESULT_S)
                return Outcome(task, record, lost_by, message, where=self.crew.name_of(worker))
        from distributed.scheduler import KilledWorker

        error = None if future is None or future.status != "error" else future.exception()
        if error is not None and not isinstance(error, KilledWorker | CancelledError):
            return Outcome(task, None, "error", one_line(error), where=self.crew.name_of(worker))
        hand = self._hands[worker]
        hand.n_at_loss = hand.n_at_loss or len(hand.running)
        if (lost := self.crew.how_lost(worker)) is None:
            return None
        return Outcome(task, None, *lost, where=self.crew.name_of(worker))


def _run_there(task: Task, store: Path, deadline: Deadline | None) -> tuple[TaskRecord | None, LostBy, str]:
    """What `run_task` gives but the task, which is known where this goes."""
    outcome = run_task(task, store, deadline)
    return outcome.record, outcome.lost_by, outcome.message


def make_executor(profile: str, settings: Cluster, worker_bytes: int, on_device: bool = False) -> Executor:
    """Executor of a profile, ``serial`` or ``local``; see `workers_and_threads`."""
    n_workers, n_threads = workers_and_threads(
        profile, settings, n_cores(), memory_bytes(), worker_bytes, on_device
    )
    return SerialExecutor(n_threads) if profile == "serial" else DaskExecutor(LocalPool(n_workers, n_threads))


def workers_and_threads(
    profile: str,
    settings: Cluster,
    cores: int,
    memory: int,
    worker_bytes: int = 1,
    on_device: bool = False,
) -> tuple[int, int]:
    """How worker processes share the cores that were granted.

    Parameters
    ----------
    profile : str
        ``serial`` has one process.
    settings : Cluster
        What the study says is taken as it is.
    cores, memory : int
        What was granted, as `n_cores` and `memory_bytes` tell; memory in bytes.
    worker_bytes : int
        Memory that one worker needs; as good as none as long as there is no plan that says it.
    on_device : bool
        Whether the fits are on this machine's GPU.

    Returns
    -------
    n_workers : int
        By default one for every core that memory allows, for single threads waste nothing; one where the fits
        are on a GPU, which has neither memory nor time for a process of each core.
    n_threads : int
        Threads of the numerical libraries in each: by default its share of the cores.
    """
    n_workers = 1 if profile == "serial" else settings.n_workers
    if n_workers is None:
        allowed = min(cores // (settings.threads_per_worker or 1), memory // worker_bytes)
        n_workers = 1 if on_device else max(1, allowed)
    return n_workers, settings.threads_per_worker or max(1, cores // n_workers)

"""What is done within tasks: they tell of their units only at their own end, and marks tell it before."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcenc.cluster.run_folder import Event
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.records import Unit

LOOK_S = 5.0
"""How often marks are looked at."""

Listener = Callable[[Event], None]


@contextmanager
def watched(plan: Plan, store: Path, listen: Listener) -> Iterator[Listener]:
    """Tell a listener, beside what happens, how many units of the stage at work are done by now.

    Parameters
    ----------
    plan : Plan
    store : Path
    listen : callable
        Is told ``{"event": "progress", "done": ...}`` too, when more are done than at the last look.

    Yields
    ------
    callable
        To be told what happens.
    """
    watch = _Watch(plan, store, listen)
    thread = threading.Thread(target=watch.look_again_and_again, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join()


class _Watch:
    def __init__(self, plan: Plan, store: Path, listen: Listener) -> None:
        self._plan, self._store, self._listen = plan, store, listen
        self._lock = threading.Lock()
        self._left: list[Unit] = []
        self._n_done = 0
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event["event"] == "stage":
                stages = (stage for stage in self._plan.stages if stage.name == event["stage"])
                units = [unit for stage in stages for task in stage.tasks for unit in task.units]
                self._left, self._n_done = [unit for unit in units if not unit.done(self._store)], 0
            elif event["event"] == "stage end":
                self._left = []
            self._listen(event)

    def look_again_and_again(self) -> None:
        """Until the run has ended, and no more than a twentieth of the time."""
        pause_s = LOOK_S
        while not self.ended.wait(pause_s):
            began, before = time.monotonic(), self._left
            with contextlib.suppress(OSError):  # a file system that fails is told by who works on it
                left = [unit for unit in before if not unit.done(self._store)]
                with self._lock:
                    if self._left is before and len(left) < len(before):
                        self._n_done += len(before) - len(left)
                        self._left = left
                        self._listen({"event": "progress", "done": self._n_done})
            pause_s = max(LOOK_S, 20 * (time.monotonic() - began))

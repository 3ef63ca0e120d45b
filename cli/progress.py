"""Progress of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hpcenc.cli.wording import dashboard_line

LINE_EVERY_S = 10.0
"""Seconds between plain progress lines."""

Event = dict[str, Any]
Listener = Callable[[Event], None]


@contextmanager
def listener(quiet: bool = False) -> Iterator[Listener]:
    """A function that shows the events of a run on stderr while the context lasts."""
    console = Console(stderr=True)
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with Progress(
            TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TextColumn("units"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console,
        ) as bars:  # fmt: skip
            yield _Bars(bars)
    else:
        yield _Lines()


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._current: Any = None
        self._done = 0

    def __call__(self, event: Event) -> None:
        if event["event"] == "stage":
            self._current = self._bars.add_task(event["stage"], total=event["units"])
            self._done = 0
        elif event["event"] == "unit":
            self._done += 1
            self._show(self._done)
        elif event["event"] == "progress":
            self._show(event["done"])
        elif event["event"] == "set aside":
            self._bars.console.print(f"set aside: {event['task']} {event['reason']}", markup=False)
        elif event["event"] == "cluster":
            self._bars.console.print(dashboard_line(event), markup=False)

    def _show(self, n_done: int) -> None:
        """So many units are done; marks are seen before their tasks tell of them."""
        shown = self._bars.tasks[self._current].completed
        self._bars.update(self._current, completed=max(shown, n_done))


class _Lines:
    def __init__(self) -> None:
        self._stage = ""
        self._done = self._told = self._total = 0
        self._said = 0.0

    def __call__(self, event: Event) -> None:
        if event["event"] == "stage":
            self._stage, self._total = event["stage"], event["units"]
            self._done = self._told = 0
            self._say(f"{self._stage}: {self._total} units")
        elif event["event"] == "unit":
            self._done += 1
            self._show(self._done)
        elif event["event"] == "progress":
            self._show(event["done"])
        elif event["event"] == "set aside":
            self._say(f"set aside: {event['task']} {event['reason']}")
        elif event["event"] == "cluster":
            self._say(dashboard_line(event))

    def _show(self, n_done: int) -> None:
        """So many units are done; marks are seen before their tasks tell of them."""
        if n_done > self._told and (time.monotonic() - self._said > LINE_EVERY_S or n_done == self._total):
            self._told = n_done
            self._say(f"{self._stage}: {n_done} of {self._total} units done")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(text, file=sys.stderr, flush=True)

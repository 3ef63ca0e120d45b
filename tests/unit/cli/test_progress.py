from __future__ import annotations

import io
import re
from typing import Any

import pytest

from hpcenc.cli import progress
from hpcenc.cli.progress import listener

EVENTS: list[dict[str, Any]] = [
    {"event": "stage", "stage": "fit", "tasks": 2, "units": 3},
    {"event": "cluster", "host": "n7", "dashboard": "http://127.0.0.1:8787/status"},
    {"event": "unit", "stage": "fit", "unit": "a#0", "seconds": 1.0},
    {"event": "unit", "stage": "fit", "unit": "a#1", "seconds": 1.0},
    {"event": "lost", "task": "t", "by": "crash"},
    {"event": "set aside", "task": "fit s1 block 0", "reason": "it [broke]", "details": "Traceback"},
    {"event": "unit", "stage": "fit", "unit": "a#2", "seconds": 1.0},
    {"event": "stage end", "stage": "fit"},
    {"event": "end", "status": 1},
]
DASHBOARD = "ssh -L 8787:127.0.0.1:8787 n7, then http://127.0.0.1:8787/status"


def tell(quiet: bool = False) -> None:
    with listener(quiet) as listen:
        for event in EVENTS:
            listen(event)


def test_plain_lines_go_to_stderr_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "fit: 3 units",
        f"dashboard: {DASHBOARD}",
        "set aside: fit s1 block 0 it [broke]",
        "fit: 3 of 3 units done",
    ]


def test_plain_lines_come_in_between_when_units_take_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    tell()
    assert "fit: 1 of 3 units done" in capsys.readouterr().err


def test_nothing_is_said_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    tell(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_bars_are_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tell()
    drawn = screen.getvalue()
    assert "\x1b[" in drawn
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "3/3 units" in text
    assert "set aside: fit s1 block 0 it [broke]" in text
    assert DASHBOARD in text.replace("\n", " ")


def test_units_that_marks_show_are_told_before_their_task_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    with listener() as listen:
        listen(EVENTS[0])
        listen({"event": "progress", "done": 2})
        listen(EVENTS[2])  # one of those
        listen({"event": "progress", "done": 3})
    assert capsys.readouterr().err.splitlines() == [
        "fit: 3 units",
        "fit: 2 of 3 units done",
        "fit: 3 of 3 units done",
    ]

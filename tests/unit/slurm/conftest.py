"""SLURM's commands as scripts on PATH that say what real ones said, where those cannot be told to say it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], list[list[str]]]]:
    """Put a command on PATH that gives its answers one after the other, the last one for ever.

    An answer is what goes to stdout and stderr, and the exit status; status 124 hangs. Gives a function that
    tells the arguments of all calls so far.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def answer(name: str, *answers: tuple[str, str, int]) -> Callable[[], list[list[str]]]:
        calls = tmp_path / f"{name}.calls"
        script = folder / name
        script.write_text(
            f"#!{sys.executable}\n"
            "import json, pathlib, sys, time\n"
            f"calls, answers = pathlib.Path({str(calls)!r}), {list(answers)!r}\n"
            "place = len(calls.read_text().splitlines()) if calls.exists() else 0\n"
            "with calls.open('a') as file: print(json.dumps(sys.argv[1:]), file=file)\n"
            "out, err, status = answers[min(place, len(answers) - 1)]\n"
            "if status == 124: time.sleep(60)\n"
            "token = [a for a in sys.argv if a.startswith('--comment=')]\n"
            "if token: pathlib.Path(str(calls) + '.token').write_text(token[0].partition('=')[2])\n"
            "sys.stdout.write(out); sys.stderr.write(err); sys.exit(status)\n"
        )
        script.chmod(0o755)

        def told() -> list[list[str]]:
            return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

        return told

    return answer


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries are noted, not made."""
    from hpcenc.slurm import commands

    pauses: list[float] = []
    monkeypatch.setattr(commands, "sleep", pauses.append)
    return pauses

"""The run folder: what was planned and what happened, in files that anyone can read at any time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

from hpcenc.storage.errors import FullError, StudyError, is_full
from hpcenc.storage.files import write_atomically
from hpcenc.storage.layout import runs_folder
from hpcenc.storage.marks import is_done
from hpcenc.storage.study import Study
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.records import one_line

VERSIONED = (
    "hpcenc",
    "numpy",
    "scipy",
    "torch",
    "open_clip_torch",
    "timm",
    "speechbrain",
    "av",
    "zarr",
    "dask",
)
"""Packages whose versions a run records."""

Event = dict[str, Any]


@dataclass(frozen=True)
class SetAside:
    """Something that could not be done.

    Attributes
    ----------
    task : str
        A task, a unit or a part of the run; empty for what the plan itself leaves out.
    reason : str
        In one line.
    details : str
        The traceback, if there is one.
    """

    task: str
    reason: str
    details: str

    def __str__(self) -> str:
        return f"{self.task}: {self.reason}" if self.task else self.reason


def job_in(where: str) -> str:
    """The job in what an event says of a place; that of a chain is a member of an array, such as ``12_3``."""
    found = re.search(r"\d+(_\d+)?", where)
    return found[0] if found else ""


def reasons_of(error: Exception, store: Path) -> tuple[str, ...]:
    """Why a run cannot go on, one line each."""
    if is_full(error):
        return (str(FullError(store)),)
    return error.problems if isinstance(error, StudyError) else (one_line(error),)


def last_words(emit: Callable[[Event], None], *events: Event) -> None:
    """Tell how a run ends; each line that a full disk takes is left out, for the next may be shorter."""
    for event in events:
        with contextlib.suppress(OSError):
            emit(event)


def set_aside_in(events: Iterable[Event]) -> tuple[SetAside, ...]:
    """What was set aside, each once: a run that goes on after an interruption may tell it again."""
    told = (event for event in events if event["event"] == "set aside")
    return tuple(
        dict.fromkeys(SetAside(event["task"], event["reason"], event.get("details", "")) for event in told)
    )


def new_run_id() -> str:
    """A name for a run: eight of ``[a-z0-9]``."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def utc_now() -> str:
    """Now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class RunFolder:
    """One run's folder: ``run.json``, ``plan.json`` and ``events.jsonl``.

    Parameters
    ----------
    path : Path
    part : str, optional
        Of a run whose parts are jobs on several nodes, which one this is: it keeps its events in a file of
        its own, for appending to one file from several nodes is not safe on network file systems.
    digest : str, optional
        Of ``run.json`` as it was submitted. Who runs what it says needs this, for it names commands, and
        the group may write the folder.
    """

    def __init__(self, path: Path, part: str = "", digest: str = "") -> None:
        self.path, self.digest = path, digest
        self._log = path / (f"events-{part}.jsonl" if part else "events.jsonl")

    @classmethod
    def create(cls, store: Path, run_id: str, plan: Plan, settings: Mapping[str, Any]) -> RunFolder:
        """Make the folder of a run that begins now."""
        started = utc_now()
        # To the millisecond: `latest` goes by the name, and a finished study is submitted in a moment.
        path = runs_folder(store) / f"{started[:23].replace(':', '')}-{run_id}"
        path.mkdir(parents=True)
        try:
            return cls._filled(path, store, run_id, started, plan, settings)
        except BaseException:  # a full disk, above all
            shutil.rmtree(path)
            raise

    @classmethod
    def _filled(
        cls, path: Path, store: Path, run_id: str, started: str, plan: Plan, settings: Mapping[str, Any]
    ) -> RunFolder:
        facts = {
            "run_id": run_id,
            "started": started,
            "store": str(store),
            "python": sys.version.split()[0],
            "versions": package_versions(),
            **settings,
        }
        content = json.dumps(facts, indent=2).encode()
        write_atomically(path / "run.json", content)
        stages = {
            stage.name: [[unit.group, unit.index, unit.digest] for task in stage.tasks for unit in task.units]
            for stage in plan.stages
            if stage.lasting
        }
        planned = {"stages": stages, "set_aside": plan.set_aside}
        write_atomically(path / "plan.json", json.dumps(planned).encode())
        return cls(path, digest=_digest(content))

    @classmethod
    def latest(cls, store: Path) -> RunFolder | None:
        """The folder of the run that began last."""
        folders = sorted(path for path in runs_folder(store).glob("*") if (path / "plan.json").exists())
        return cls(folders[-1]) if folders else None

    def log(self, event: Event) -> None:
        """Append one event; a line is written whole, also beside other writers."""
        line = json.dumps({"time": utc_now(), **event}) + "\n"
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(descriptor, line.encode()) < len(line):  # of ASCII
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._log))
        finally:
            os.close(descriptor)

    def emitter(self, listen: Callable[[Event], None]) -> Callable[[Event], None]:
        """A function that tells an event and then logs it: a full disk takes the line, not the message."""

        def emit(event: Event) -> None:
            listen(event)
            self.log(event)

        return emit

    def read(self, name: str) -> dict[str, Any]:
        """``run`` or ``plan``, as written at the start.

        Raises
        ------
        StudyError
            If ``run.json`` is not what was submitted.
        """
        path = self.path / f"{name}.json"
        content = path.read_bytes()
        if name == "run" and self.digest and _digest(content) != self.digest:
            raise StudyError(
                f"{path}: expected what was submitted, found another text; nothing of it is run. Ask who may "
                "write there, and submit again"
            )
        found: dict[str, Any] = json.loads(content)
        return found

    def study(self) -> Study:
        """The study as it was when the run began: what its file says by now does not count."""
        facts = self.read("run")
        found = Study.model_validate(facts["study"])
        return found.model_copy(update={"folder": Path(facts["study_folder"])})

    def events(self) -> Iterator[Event]:
        """Events so far of all parts, in their order."""
        logs = [list(_events_of(path)) for path in sorted(self.path.glob("events*.jsonl"))]
        # One log is in its order already, also where the clock was set back.
        yield from logs[0] if len(logs) == 1 else sorted(chain(*logs), key=lambda event: str(event["time"]))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _events_of(path: Path) -> Iterator[Event]:
    """Events of a log. A line that a full disk cut off is left out; the next one follows on the same line."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line[line.rindex('{"time": ') :])


def versions_of_fits(store: Path) -> list[dict[str, str]]:
    """Versions of packages that the fits in a store were made with, each set once.

    Of every block the run that made it says so: the latest run may have found all of them done. A run whose
    folder is gone or damaged says nothing.
    """
    made: dict[tuple[str, int, str], dict[str, str]] = {}
    for path in sorted(runs_folder(store).glob("*")):
        folder = RunFolder(path)
        with contextlib.suppress(OSError, ValueError, KeyError):
            versions, plan = folder.read("run")["versions"], folder.read("plan")["stages"]
            done = {event["unit"] for event in folder.events() if event["event"] == "unit"}
            for group, index, digest in chain(*plan.values()):
                if group.startswith("fits/") and f"{group}#{index}" in done:
                    made[group, index, digest] = versions
    found: list[dict[str, str]] = []
    for unit, versions in made.items():
        if versions not in found and is_done(store, *unit):
            found.append(versions)
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found

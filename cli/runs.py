"""Commands that look after a run that was submitted: they read files, and ask SLURM."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer

from hpcenc.cli.arguments import STUDY_NAME, JsonOption, StudyFile
from hpcenc.cli.refusal import clear_errors, refuse, say

if TYPE_CHECKING:
    from hpcenc.cluster.batch import Submitted


WATCH_S = 5.0
"""How often `status --watch` looks again."""


def status(
    study: StudyFile = STUDY_NAME,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, to the end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What of the latest submit is done, at what pace, and what waits for what. For all who can read it."""
    from hpcenc.cli.wording import status_lines
    from hpcenc.cluster.status import read_status
    from hpcenc.storage.study import load_study

    if watch and as_json:
        refuse("--watch: for people; leave out --json")
    with clear_errors():
        loaded = load_study(study)
        found = read_status(loaded)
        while watch and found.is_going_on:
            if sys.stdout.isatty():
                click.clear()
            print("\n".join(status_lines(found)), flush=True)
            time.sleep(WATCH_S)
            found = read_status(loaded)
    print(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(status_lines(found)))


def wait(study: StudyFile = STUDY_NAME) -> None:
    """Wait for the end of the latest submit. Its exit status is that of the run, 3 after Ctrl-C."""
    await_end(study, print)


def await_end(study: Path, tell: Callable[[str], None]) -> NoReturn:
    """Wait for the end of a run, tell how it ended, and end with its exit status."""
    from hpcenc.cluster.runs import EXIT_INTERRUPTED, wait_for_end
    from hpcenc.storage.study import load_study

    try:
        with clear_errors():
            ended = wait_for_end(load_study(study))
    except KeyboardInterrupt:
        path = shlex.quote(str(study))
        say(f"the run goes on. `hpcenc wait {path}` waits again, `hpcenc cancel {path}` ends it")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    tell(ended.why)
    raise typer.Exit(ended.exit_status)


def cancel(study: StudyFile = STUDY_NAME) -> None:
    """End the latest submit with all its jobs. What is done stays done; submit again goes on from there."""
    from hpcenc.cluster.ending import cancel_run
    from hpcenc.storage.study import load_study

    with clear_errors():
        print(cancel_run(load_study(study)))


def logs(
    study: StudyFile = STUDY_NAME,
    job: Annotated[str, typer.Option("--job", help="One job's; all of the latest submit if left out.")] = "",
    task: Annotated[
        str,
        typer.Option(
            "--task", help="Of the jobs that tried a task, or a unit, by its name in `hpcenc status`."
        ),
    ] = "",
) -> None:
    """Print what the jobs of the latest submit wrote, each under its name."""
    from hpcenc.cluster.runs import log_files
    from hpcenc.storage.study import load_study

    if job and task:
        refuse("--job, --task: expected one of them")
    with clear_errors():
        for path in log_files(load_study(study), job, task):
            print(f"==> {path} <==")
            print(path.read_text(errors="replace"))


def control(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    part: Annotated[
        str, typer.Option("--part", help="Of a chain of job arrays; the whole if left out.")
    ] = "",
    digest: Annotated[
        str, typer.Option("--digest", help="SHA-256 that its run.json must have; any if left out.")
    ] = "",
) -> None:
    """Run what a run folder says: what jobs call."""

    def tell(event: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a full disk takes the line from the job's log, and no more
            print(json.dumps(event), flush=True)

    with clear_errors():
        if part:
            from hpcenc.cluster.chain_parts import run_part

            status = run_part(folder, part, tell, digest)
        else:
            from hpcenc.cluster.control import control as take

            status = take(folder, tell, digest).exit_status
    raise typer.Exit(status)


def tell_submitted(submitted: Submitted, study: Path, as_json: bool, idle_sweeps: Sequence[str]) -> None:
    """Print what was submitted, and what to do next."""
    facts = {"job": submitted.job_id, "run": submitted.run_id, "folder": str(submitted.folder)}
    if as_json:
        print(json.dumps({**facts, "idle_sweeps": idle_sweeps}, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:8} {value}")
    path = shlex.quote(str(study))
    say(f"next: hpcenc status {path}, hpcenc wait {path}, hpcenc cancel {path}")

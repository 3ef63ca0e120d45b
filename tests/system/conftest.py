"""A study of feature files that runs from end to end in a second, and the command line in this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from small_study import write_small_study
from typer.testing import CliRunner

from hpcenc.cli.app import app


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """Study file of a fresh small study; BOLD of a third subject lies beside that of its two."""
    return write_small_study(tmp_path)


@pytest.fixture
def edit(study_file: Path) -> Callable[[str, str], None]:
    """Replace a part of the study file."""

    def replace(old: str, new: str) -> None:
        text = study_file.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the study file"
        study_file.write_text(text.replace(old, new))

    return replace


@pytest.fixture
def hpcenc(study_file: Path) -> Callable[..., Result]:
    """Run a command on the small study; whatever escapes it but an exit status is a failure."""

    def run(command: str, *options: str) -> Result:
        result = CliRunner().invoke(app, [command, str(study_file), *options])
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, with its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture(scope="session")
def units_run() -> Callable[[Path], list[list[str]]]:
    """Units that each run of a store did, from its events, run after run."""

    def read(results: Path) -> list[list[str]]:
        runs = []
        for folder in sorted((results / "study.runs").iterdir()):
            log = folder / "events.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            events: list[dict[str, Any]] = [json.loads(line) for line in lines]
            runs.append([event["unit"] for event in events if event["event"] == "unit"])
        return runs

    return read


@pytest.fixture(scope="session")
def killed_submit() -> Iterator[Callable[..., int]]:
    """Submit a study in a process that is killed: ``killed_submit(study_file, pattern=, nth=, how=)``.

    The kill comes when a path like the pattern is touched for the n-th time, at once or in mid-file
    (``how`` is ``kill`` or ``half``); without a pattern, as the report begins. Gives the exit status.
    """
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed_submits.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None

        def run(study_file: Path, models: str = "all", **job: Any) -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            job |= {"study": str(study_file), "models": models}
            print(json.dumps(job), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.fixture(scope="session")
def fill_undisturbed(
    killed_submit: Callable[..., int], tree: Callable[[Path], dict[str, bytes]]
) -> Callable[..., tuple[dict[str, bytes], int]]:
    """Fill a store in one go: its files, and how many times the run touched paths like the pattern until its
    last mark was about to be in place."""

    def fill(study_file: Path, pattern: str = "", models: str = "all") -> tuple[dict[str, bytes], int]:
        study = with_results(study_file, "undisturbed")
        count = study_file.with_name("count")
        status = killed_submit(study, models, pattern=pattern, count=str(count))
        assert status == -signal.SIGKILL  # as it begins the report
        return tree(study_file.parent / "undisturbed" / "study.zarr"), int(count.read_text())

    return fill


@pytest.fixture(scope="session")
def check_resumes(
    killed_submit: Callable[..., int],
    tree: Callable[[Path], dict[str, bytes]],
    units_run: Callable[[Path], list[list[str]]],
) -> Callable[..., None]:
    """Kill a run, start it again, and compare with the undisturbed one of the same study file."""

    def check(
        study_file: Path, name: str, wanted: dict[str, bytes], models: str = "all", **kill: Any
    ) -> None:
        study, results = with_results(study_file, name), study_file.parent / name
        store = results / "study.zarr"
        status = killed_submit(study, models, **kill)
        assert status == (-signal.SIGXFSZ if kill["how"] == "half" else -signal.SIGKILL)
        done_before = marked(store)
        assert len(done_before) < len(marked(study_file.parent / "undisturbed" / "study.zarr")), (
            "killed too late"
        )
        n_runs = len(list((results / "study.runs").glob("*")))
        assert killed_submit(study, models) == -signal.SIGKILL  # as it begins the report: arrays are complete
        assert tree(store) == wanted
        redone = set(units_run(results)[n_runs])
        assert not redone & done_before
        assert redone | done_before == marked(store)
        leftovers = [
            path for path in results.rglob("*") if path.name.startswith(".") or path.suffix == ".partial"
        ]
        assert not leftovers
        shutil.rmtree(results)

    return check


def with_results(study_file: Path, name: str) -> Path:
    """The same study with another place for its results."""
    path = study_file.with_name(f"{name}.toml")
    path.write_text(f'store = "{name}/study.zarr"\n{study_file.read_text()}')
    return path


def marked(store: Path) -> set[str]:
    """Units that have a mark."""
    marks = store.glob("*/**/done/*")
    return {f"{mark.parent.parent.relative_to(store)}#{mark.name}" for mark in marks if mark.name.isdigit()}

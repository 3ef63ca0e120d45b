"""What can be stopped is stopped, and the same command again gives the same bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from small_study import swept

from hpcenc.cluster.submit import prepare, submit
from hpcenc.storage.errors import StoreError
from hpcenc.storage.results import read_scores
from hpcenc.storage.store import Store

Tree = Callable[[Path], dict[str, bytes]]
UnitsRun = Callable[[Path], list[list[str]]]
KilledSubmit = Callable[..., int]
Filled = tuple[dict[str, bytes], int]

N_MOMENTS = 20
MOMENT_SEED = 20
PARTIAL = r"\.[0-9a-f]{32}"

NAMED_POINTS = {
    "the store is made": (rf"/\.study\.zarr{PARTIAL}/vertex/", 1, "kill"),
    "a group's arrays are made": (rf"/\.study\.zarr{PARTIAL}/weights/", 2, "kill"),
    "groups are made, metadata not gathered": (rf"/study\.zarr/zarr{PARTIAL}", 1, "kill"),
    "features are written, not marked": (r"/features/mylab/files/b/done/0\.", 1, "kill"),
    "operators are cached, not marked": (r"/operators/[0-9a-f]{16}/done/0\.", 1, "kill"),
    "a fit is written, not marked": (r"/fits/mylab/s1/done/0\.", 1, "kill"),
    "between two shards of a block": (r"/fits/mylab/s1/weights/0\.0\.0\..*partial", 3, "kill"),
    "half of a shard is written": (r"/fits/mylab/s1/weights/0\.0\.0\..*partial", 3, "half"),
    "half of the operators are written": (rf"/cache/operators/\.[0-9a-f]+{PARTIAL}/", 2, "half"),
}
"""Where a run is killed: when it touches a path like this for the n-th time, at once or in mid-file."""


@pytest.fixture
def undisturbed(study_file: Path, fill_undisturbed: Callable[..., Filled]) -> Filled:
    """The small study's store, filled in one go."""
    return fill_undisturbed(study_file)


@pytest.mark.parametrize("point", NAMED_POINTS)
def test_a_run_killed_at_a_named_point_resumes_to_the_same_bytes(
    point: str, study_file: Path, undisturbed: Filled, check_resumes: Callable[..., None]
) -> None:
    pattern, nth, how = NAMED_POINTS[point]
    check_resumes(study_file, "killed", undisturbed[0], pattern=pattern, nth=nth, how=how)


def test_a_run_killed_at_seeded_moments_resumes_to_the_same_bytes(
    study_file: Path, undisturbed: Filled, check_resumes: Callable[..., None]
) -> None:
    wanted, n_touches = undisturbed
    rng = np.random.default_rng(MOMENT_SEED)
    moments = rng.choice(n_touches, N_MOMENTS, replace=False)
    for moment in moments.tolist():
        check_resumes(study_file, f"moment-{moment}", wanted, pattern="", nth=moment + 1, how="kill")


def test_every_analysis_killed_at_seeded_moments_resumes_to_the_same_bytes(
    study_file: Path,
    fill_undisturbed: Callable[..., Filled],
    check_resumes: Callable[..., None],
) -> None:
    study_file.write_text(swept(study_file.read_text()))
    models = "mylab,mylab+other"
    wanted, n_touches = fill_undisturbed(study_file, models=models)
    groups = (
        "bold/average",
        "alphas/delays/mylab/average",
        "ceilings/average",
        "delays/mylab-and-other/s1",
        "bands/mylab-and-other/s2",
    )
    assert {f"{group}/done/0" for group in groups} <= wanted.keys()
    rng = np.random.default_rng(MOMENT_SEED)
    moments = rng.choice(n_touches, N_MOMENTS // 2, replace=False)
    for moment in moments.tolist():
        check_resumes(
            study_file, f"moment-{moment}", wanted, models=models, pattern="", nth=moment + 1, how="kill"
        )


@pytest.mark.slow
def test_a_run_killed_at_any_of_many_moments_resumes_to_the_same_bytes(
    study_file: Path, undisturbed: Filled, check_resumes: Callable[..., None]
) -> None:
    wanted, n_touches = undisturbed
    for moment in range(0, n_touches, max(1, n_touches // 100)):
        check_resumes(study_file, f"moment-{moment}", wanted, pattern="", nth=moment + 1, how="kill")


def test_a_run_killed_again_and_again_ends(
    killed_submit: KilledSubmit,
    study_file: Path,
    undisturbed: Filled,
    tree: Tree,
    hpcenc: Callable[..., Result],
    units_run: UnitsRun,
) -> None:
    for _ in range(3):
        assert killed_submit(study_file, pattern=r"/done/\d", nth=4, how="kill") == -signal.SIGKILL
    result = hpcenc("submit", "--profile", "serial")
    assert result.exit_code == 0
    assert tree(study_file.parent / "results" / "study.zarr") == undisturbed[0]
    done = [unit for units in units_run(study_file.parent / "results") for unit in units]
    assert len(done) == len(set(done))


def test_workers_killed_and_interrupted_leave_the_bytes_of_a_serial_run(
    study_file: Path, undisturbed: Filled, tree: Tree
) -> None:
    command = [sys.executable, "-c", "from hpcenc.cli.app import main; main()", "submit", str(study_file)]
    command += ["--profile", "local"]
    store = study_file.parent / "results" / "study.zarr"

    def start_until(line: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        for said in process.stderr:
            if said.startswith(line):
                return process
        raise AssertionError(f"the run ended without {line!r}")

    killed = start_until("operators:")
    time.sleep(0.5)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert (store.parent / "study.zarr.lock").exists()

    ended = start_until("fit:")
    ended.terminate()
    assert ended.wait(timeout=60) == 3
    assert not (store.parent / "study.zarr.lock").exists()

    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert tree(store) == undisturbed[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_the_lock_given_back(
    number: signal.Signals,
    study_file: Path,
    units_run: UnitsRun,
    hpcenc: Callable[..., Result],
    request: pytest.FixtureRequest,
) -> None:
    # A shell's background job ignores SIGINT, and so would the tests that it runs.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "unit" and event["stage"] == "fit":
            os.kill(os.getpid(), number)

    result = submit(prepare(study_file), "serial", (), interrupt)
    assert result.exit_status == 3
    assert result.units_done > 0
    assert not (study_file.parent / "results" / "study.zarr.lock").exists()
    assert "interrupted" in hpcenc("status").stdout
    again = submit(prepare(study_file), "serial")
    assert again.exit_status == 0
    first, second = units_run(study_file.parent / "results")
    assert not set(first) & set(second)
    assert again.units_done == len(second)


def test_a_second_submit_is_refused_and_told_who_holds_the_store(study_file: Path) -> None:
    command = [sys.executable, "-c", "from hpcenc.cli.app import main; main()", "submit", str(study_file)]
    refused: list[subprocess.CompletedProcess[str]] = []

    def submit_again(event: dict[str, Any]) -> None:
        if event["event"] == "stage" and event["stage"] == "extract":
            refused.append(subprocess.run(command, capture_output=True, text=True, check=False))
            raise KeyboardInterrupt

    first = submit(prepare(study_file), "serial", (), submit_again)
    (second,) = refused
    assert second.returncode == 2
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert first.run_folder is not None
    run_id = first.run_folder.name.rpartition("-")[2]
    for said in (f"run {run_id}", socket.gethostname(), f"process {os.getpid()}"):
        assert said in second.stderr
    assert len(list((study_file.parent / "results" / "study.runs").iterdir())) == 1


def test_additions_do_only_what_is_new(
    study_file: Path, edit: Callable[[str, str], None], tree: Tree, units_run: UnitsRun
) -> None:
    store = study_file.parent / "results" / "study.zarr"
    submit(prepare(study_file), "serial", (), stop_before_report)
    before = arrays(tree(store))

    edit('ids = ["s1", "s2"]', 'ids = ["s1", "s2", "s3"]')
    submit(prepare(study_file), "serial", (), stop_before_report)
    with_subject = arrays(tree(store))
    assert before.items() <= with_subject.items()

    edit("[fit]\n", '[feature_files.other]\npath = "mylab_{run}.npy"\n[fit]\n')
    submit(prepare(study_file), "serial", (), stop_before_report)
    assert with_subject.items() <= arrays(tree(store)).items()

    submit(prepare(study_file), "serial", (), stop_before_report)
    _, subject, feature_set, nothing = units_run(store.parent)
    assert subject == ["fits/mylab/s3#0", "fits/mylab/s3#1"]
    # The same features under another name: their operators are there already.
    assert {unit.split("#")[0] for unit in feature_set} == {
        *(f"features/other/files/{run}" for run in "abc"),
        *(f"fits/other/{subject}" for subject in ("s1", "s2", "s3")),
    }
    assert nothing == []


def stop_before_report(event: dict[str, Any]) -> None:
    if event.get("stage") == "report":
        raise KeyboardInterrupt


def arrays(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the root's metadata, which consolidation writes anew."""
    return {name: data for name, data in files.items() if name != "zarr.json"}


def test_what_changed_comes_back_from_beside_the_store(
    study_file: Path, edit: Callable[[str, str], None], units_run: UnitsRun
) -> None:
    for old, new in (("", ""), ("n_alphas = 5", "n_alphas = 6"), ("n_alphas = 6", "n_alphas = 5")):
        if old:
            edit(old, new)
        submit(prepare(study_file), "serial", (), stop_before_report)
    first, changed, back = units_run(study_file.parent / "results")
    assert len(first) == 3 + len(changed)
    assert back == []


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_one_damaged_chunk_of_each_array_is_an_error(
    damage: str, killed_submit: KilledSubmit, study_file: Path, tmp_path: Path
) -> None:
    killed_submit(study_file)
    path = tmp_path / "results" / "study.zarr"
    looked_at = []
    for metadata in sorted(path.rglob("zarr.json")):
        name = str(metadata.parent.relative_to(path))
        if json.loads(metadata.read_bytes())["node_type"] != "array" or metadata.parent.name == "done":
            continue
        chunk = next(
            file for file in sorted(metadata.parent.rglob("*")) if file.is_file() and file != metadata
        )
        content = chunk.read_bytes()
        Store(path).read(name)
        if damage == "deleted":
            chunk.unlink()
        else:
            chunk.write_bytes(content[: len(content) // 2])
        with pytest.raises(StoreError, match=re.escape(str(metadata.parent))):
            Store(path).read(name, wait_s=0)
        if name == "fits/mylab/s1/scores":
            with pytest.raises(StoreError):
                read_scores(Store(path), "fits/mylab/s1")
        chunk.write_bytes(content)
        looked_at.append(metadata.parent.name)
    assert set(looked_at) >= {
        "structure",
        "vertex",
        "ijk",
        "values",
        "role",
        "alphas",
        "scores",
        "weights",
    }


def test_a_report_of_a_damaged_store_is_refused(
    killed_submit: KilledSubmit, study_file: Path, hpcenc: Callable[..., Result]
) -> None:
    killed_submit(study_file)
    fit = study_file.parent / "results" / "study.zarr" / "fits" / "mylab" / "s1"
    next((fit / "scores").glob("0.*")).unlink()
    result = hpcenc("report")
    assert result.exit_code == 2
    assert "missing" in result.stderr

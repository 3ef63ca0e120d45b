"""Submits that end before their job begins, without SLURM; the rest of it is in tests/slurm."""

from __future__ import annotations

import grp
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_study import write_small_study

from hpcenc.cluster.batch import Way, submit_batch
from hpcenc.cluster.submit import Prepared, prepare
from hpcenc.slurm.commands import SlurmError
from hpcenc.storage.errors import LockError, StudyError
from hpcenc.storage.layout import lock_path, runs_folder
from hpcenc.storage.lock import acquire, this_process

PROFILE = """\
scratch = "/tmp"
controller = { partition = "any", walltime = 30 }
cpu = { partition = "any", walltime = 600, cores = 1, memory = "2G" }
"""


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    (tmp_path / "site.toml").write_text(PROFILE)
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path))
    monkeypatch.setattr("hpcenc.cluster.batch.check_job", lambda *arguments: "")
    monkeypatch.setattr("hpcenc.cluster.batch.cluster_name", lambda: "")
    return prepare(write_small_study(tmp_path), profile="site")


def give_up(*arguments: Any, **options: Any) -> Any:
    raise SlurmError(["sbatch"], None, "no answer in 30 s", transient=True)


def interrupt(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def test_what_slurm_or_the_system_would_refuse_leaves_no_folder(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = prepared.study.store_path.parent
    (tmp_path / "site.toml").write_text('group = "nosuchgroup"\n' + PROFILE)
    with pytest.raises(StudyError, match="there is no such group"):
        submit_batch(prepared)
    assert not results.exists()
    (tmp_path / "site.toml").write_text(f'group = "{grp.getgrall()[-1].gr_name}"\n' + PROFILE)
    monkeypatch.setattr("os.chown", lambda *_: (_ for _ in ()).throw(PermissionError("not yours")))
    with pytest.raises(StudyError, match="of the profile: not yours"):
        submit_batch(prepared)
    assert not results.exists()
    monkeypatch.setattr("hpcenc.cluster.batch.check_job", give_up)
    (tmp_path / "site.toml").write_text(PROFILE)
    with pytest.raises(SlurmError):
        submit_batch(prepared)
    assert not results.exists()
    acquire(lock_path(prepared.study.store_path), this_process("other"), lambda _: True)
    with pytest.raises(LockError, match="run other of"):  # before SLURM is asked anything
        submit_batch(prepared)


@pytest.mark.parametrize("way", ["job", "array"])
@pytest.mark.parametrize("where", ["submit_job", "release_job"])
@pytest.mark.parametrize("fail", [give_up, interrupt])
def test_a_job_whose_submission_was_not_heard_of_is_cancelled_by_its_name(
    fail: Any, where: str, way: Way, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []
    place = "hpcenc.cluster.chain" if (way, where) == ("array", "submit_job") else "hpcenc.cluster.batch"
    for module in ("batch", "chain"):
        monkeypatch.setattr(f"hpcenc.cluster.{module}.submit_job", lambda *arguments: "7")
    monkeypatch.setattr(f"{place}.{where}", fail)
    monkeypatch.setattr(
        "hpcenc.cluster.batch.cancel_jobs", lambda *, name, patience_s: cancelled.append(name)
    )
    with pytest.raises((SlurmError, KeyboardInterrupt)) as caught:
        submit_batch(prepared, way=way)
    controller, workers = cancelled
    assert workers == controller.replace("hpcenc-", "hpcenc-w-")
    assert getattr(caught.value, "__notes__", []) == []


@pytest.mark.parametrize("way", ["job", "array"])
def test_the_run_folder_keeps_what_every_job_runs_and_was_asked_for(
    way: Way, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: dict[str, tuple[str, Sequence[str]]] = {}

    def submit_job(script: str, options: Sequence[str], patience_s: float) -> str:
        job_id = str(len(submitted) + 1)
        submitted[job_id] = script, options
        return job_id

    for module in ("batch", "chain"):
        monkeypatch.setattr(f"hpcenc.cluster.{module}.submit_job", submit_job)
    monkeypatch.setattr("hpcenc.cluster.batch.release_job", lambda *arguments: None)
    folder = submit_batch(prepared, extra=["--comment=a; b"], way=way).folder
    kept = {path.stem.rpartition("-")[2]: path for path in (folder / "scripts").iterdir()}
    assert kept.keys() == submitted.keys()
    assert len(kept) == {"job": 1, "array": 5}[way]
    for job_id, (script, options) in submitted.items():
        first, asked, *rest = kept[job_id].read_text().splitlines()
        assert [first, *rest] == script.splitlines()
        assert shlex.split(asked, comments=False) == ["#", "sbatch", *options]
        assert f"--job-name={kept[job_id].stem.rpartition('-')[0]}" in options


@pytest.mark.parametrize("fail", [give_up, interrupt])
def test_a_job_that_cannot_be_cancelled_either_is_told_with_the_command_for_it(
    fail: Any, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcenc.cluster.batch.submit_job", fail)
    monkeypatch.setattr("hpcenc.cluster.batch.cancel_jobs", give_up)
    with pytest.raises((SlurmError, KeyboardInterrupt)) as caught:
        submit_batch(prepared)
    (note,) = caught.value.__notes__
    assert "when SLURM is back: scancel --me --name=hpcenc-" in note
    store = prepared.study.store_path
    assert list(runs_folder(store).iterdir()) == []
    assert not lock_path(store).exists()

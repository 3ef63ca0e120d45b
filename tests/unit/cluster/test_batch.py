"""Submits that end before their job begins, without SLURM; the rest of it is in tests/slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_study import write_small_study

from hpcenc.cluster.batch import Way, submit_batch
from hpcenc.cluster.submit import Prepared, prepare
from hpcenc.slurm.commands import SlurmError
from hpcenc.storage.layout import lock_path, runs_folder

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

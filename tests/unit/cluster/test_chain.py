"""Job arrays in place of a controller: who does what, and what becomes of a member that yields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_study import write_small_study

from hpcenc.cluster import chain_parts
from hpcenc.cluster.chain import SHARES, share_out
from hpcenc.cluster.chain_parts import run_part
from hpcenc.cluster.controller import Progress
from hpcenc.cluster.recruiting import KIND_VARIABLE
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.submit import Prepared, prepare, submit
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.storage.errors import StudyError
from hpcenc.tasks.backends import BackendError

WORKERS = {"partition": "any", "walltime": 10, "cores": 1, "memory": "2G", "max_jobs": 3}
SITE = {"scratch": "/tmp", "controller": {"partition": "any", "walltime": 30}, "cpu": WORKERS}
PROFILE = SlurmProfile.model_validate(SITE)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(write_small_study(tmp_path), profile="serial")


def test_every_task_that_is_left_has_one_member(prepared: Prepared) -> None:
    store = prepared.study.store_path
    shares = share_out(prepared.plan, store, PROFILE)
    assert list(shares) == [stage.name for stage in prepared.plan.stages if stage.tasks]
    for stage in (stage for stage in prepared.plan.stages if stage.tasks):
        keys = [task.key for task in stage.tasks]
        assert sorted(key for share in shares[stage.name] for key in share) == sorted(keys)
        sizes = [len(share) for share in shares[stage.name]]
        assert len(sizes) == min(3, len(keys))
        assert max(sizes) - min(sizes) <= 1
    submit(prepared)
    assert share_out(prepared.plan, store, PROFILE) == {}


@pytest.fixture
def member(
    prepared: Prepared, begin_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> RunFolder:
    """The folder of a run of which this process is member 1 of the array of fits, in job 12."""
    folder = begin_run(prepared, SITE)
    shares = share_out(prepared.plan, prepared.study.store_path, PROFILE)
    (folder.path / SHARES).write_text(json.dumps(shares))
    numbers = {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1"}
    for name, value in {**numbers, KIND_VARIABLE: "cpu"}.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.mark.parametrize(("n_done", "n_left", "status"), [(2, 0, 0), (1, 1, 3), (0, 2, 1)])
def test_a_member_that_yields_asks_for_another_job_unless_that_would_not_help(
    n_done: int, n_left: int, status: int, member: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeued: list[str] = []
    keys = member.read("shares")["fit"][1]

    def run_stage(stage: Any, *others: Any) -> None:
        assert [task.key for task in stage.tasks] == keys
        progress = others[-1]
        assert progress == Progress()
        progress.units_done, progress.units_left = n_done, n_left

    monkeypatch.setattr(chain_parts, "run_stage", run_stage)
    monkeypatch.setattr(chain_parts, "requeue_job", requeued.append)
    assert run_part(member.path, "fit") == status
    assert requeued == (["14"] if status == 3 else [])
    told = [event["event"] for event in member.events()]
    assert told == ["worker", "worker left", *(["set aside"] if status == 1 else [])]
    assert all(event["job"] == "12_1" for event in member.events() if "worker" in event["event"])


def test_a_member_without_a_working_device_sets_nothing_of_its_share_aside(
    member: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe_backend(name: str) -> None:
        raise BackendError(f"{name} does not work")

    monkeypatch.setattr(chain_parts, "ON_DEVICES", ("numpy",))
    monkeypatch.setattr(chain_parts, "describe_backend", describe_backend)
    with pytest.raises(BackendError):
        run_part(member.path, "fit")
    assert [event["task"] for event in member.events() if event["event"] == "set aside"] == ["fit"]


def test_what_a_member_finds_its_device_to_be_is_on_record(
    member: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_parts, "ON_DEVICES", ("numpy",))
    monkeypatch.setattr(chain_parts, "describe_backend", lambda name: {"device": "NVIDIA A100"})
    monkeypatch.setattr(chain_parts, "run_stage", lambda *arguments: None)
    run_part(member.path, "fit")
    (event,) = (event for event in member.events() if event["event"] == "backend")
    assert (event["job"], event["backend"], event["device"]) == ("12_1", "numpy", "NVIDIA A100")


def test_what_a_member_sets_aside_is_told_with_its_job(
    member: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_stage(stage: Any, store: Any, executor: Any, deadline: Any, emit: Any, progress: Any) -> None:
        emit({"event": "set aside", "task": "fit s1 block 0", "reason": "", "details": ""})

    monkeypatch.setattr(chain_parts, "run_stage", run_stage)
    run_part(member.path, "fit")
    assert [event["where"] for event in member.events() if event["event"] == "set aside"] == ["12_1"]


@pytest.mark.parametrize("part", ["begin", "fit", "end"])
def test_no_part_runs_anything_of_a_run_json_that_was_changed(part: str, member: RunFolder) -> None:
    path = member.path / "run.json"
    path.write_text(path.read_text().replace('"scratch"', '"prologue": ["touch hurt"], "scratch"'))
    with pytest.raises(StudyError, match=r"run.json: expected what was submitted, found another text"):
        run_part(member.path, part, digest=member.digest)
    told = [event["event"] for event in member.events()]
    before, after = {"begin": ([], []), "fit": (["worker"], []), "end": ([], ["end"])}[part]
    assert told == [*before, "set aside", *after]


def test_a_part_that_cannot_be_done_says_why(member: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_stage(*arguments: Any) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(chain_parts, "run_stage", run_stage)
    with pytest.raises(RuntimeError, match="no device"):
        run_part(member.path, "fit")
    (event,) = (event for event in member.events() if event["event"] == "set aside")
    assert (event["part"], event["reason"]) == ("fit", "RuntimeError: no device")
    assert "Traceback" in event["details"]

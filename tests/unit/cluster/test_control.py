"""What a controller leaves behind when it cannot go on; the rest of it is in tests/slurm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_study import write_small_study

from hpcenc.cluster.control import control
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.runs import ended_with
from hpcenc.cluster.submit import prepare
from hpcenc.storage.layout import lock_path

WORKERS = {"partition": "any", "walltime": 10, "cores": 1, "memory": "2G"}
SITE = {
    "scratch": "/tmp",
    "umask": "007",
    "controller": {"partition": "any", "walltime": 30},
    "cpu": WORKERS,
}


def test_a_controller_that_ends_by_any_error_says_so_and_gives_the_store_back(
    tmp_path: Path, begin_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    prepared = prepare(write_small_study(tmp_path), profile="serial")
    folder = begin_run(prepared, SITE)

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("Cluster failed to start")

    monkeypatch.setattr("hpcenc.cluster.control.prepare_study", fail)
    before = os.umask(0o077)
    try:
        with pytest.raises(RuntimeError, match="Cluster failed to start"):
            control(folder.path)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert ended_with(folder) == 1
    events = list(folder.events())
    assert [event["event"] for event in events] == ["controller", "set aside", "end"]
    assert events[1]["reason"] == "RuntimeError: Cluster failed to start"
    assert not lock_path(prepared.study.store_path).exists()
    # The group reads what a controller in a terminal writes, whatever its user's umask is.
    (log,) = folder.path.glob("events*.jsonl")
    assert log.stat().st_mode & 0o040

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpcenc.cluster.run_folder import Event
from hpcenc.cluster.watching import watched
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.store import Store
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Unit


def test_what_is_done_within_a_task_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcenc.cluster.watching.LOOK_S", 0.01)
    digest = "a" * 64
    store = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})
    store.ensure_group(GroupSpec("numbers", digest, {"x": ArraySpec((4,), (1,), "int64", ("x",))}, 4, {}))
    units = tuple(Unit("numbers", index, digest) for index in range(4))
    store.mark("numbers", 0, digest)  # before this run
    task: Any = SimpleNamespace(key="one", units=units)
    told: list[Event] = []
    with watched(Plan((Stage("fit", "cpu", (task,), True, 1),), (), ()), store.path, told.append) as listen:
        listen({"event": "stage", "stage": "fit", "units": 3})
        for n_done in (1, 2):
            store.mark("numbers", n_done, digest)
            end = time.monotonic() + 20
            while told[-1] != {"event": "progress", "done": n_done}:
                assert time.monotonic() < end
        listen({"event": "stage end", "stage": "fit"})
        store.mark("numbers", 3, digest)
    assert [event["event"] for event in told] == ["stage", "progress", "progress", "stage end"]

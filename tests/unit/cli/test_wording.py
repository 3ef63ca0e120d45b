from __future__ import annotations

from typing import Any

import pytest

from hpcenc.cli.wording import model_lines, model_table, plan_lines, status_lines
from hpcenc.cluster.status import Status
from hpcenc.storage.lock import LockOwner

PRICED: dict[str, Any] = {
    "store": "/data/study.zarr",
    "backend": "numpy",
    "backend_choice": "auto: numpy 102 GFLOP/s, torch 88 GFLOP/s",
    "stages": {"extract": {"units": 12, "to_do": 3}, "fit": {"units": 24, "to_do": 24}},
    "new": ["a", "b", "c", "d", "e", "f"],
    "reused": [],
    "recomputed": ["g"],
    "left_over": [],
    "files_to_write": 28_166,
    "bytes_to_write": 2_340_000_000,
    "set_aside": ["subject s2: broken"],
}
HOLDER = LockOwner("abcdefgh", "node7", "boot", 12, "me", "1")


def status(ended: int | None, holder: LockOwner | None = None) -> str:
    found = Status(
        run={"run_id": "abcdefgh", "started": "2026-01-01T00:00:00"},
        folder="/data/runs/x",
        stages={"extract": (3, 3), "fit": (1, 4)},
        fits={"fits/clip/s1": (2, 2), "fits/clip/s2": (1, 2)},
        set_aside=("fit s2 block 1: broken",),
        ended=ended,
        holder=holder,
    )
    return "\n".join(status_lines(found))


def test_a_plan_tells_what_is_left_of_every_stage() -> None:
    text = "\n".join(plan_lines(PRICED))
    assert "store /data/study.zarr, fits on numpy (auto: numpy 102 GFLOP/s, torch 88 GFLOP/s)" in text
    assert "extract         3 of 12 units to do" in text
    assert "6 groups: a, b, c, d and 2 more" in text
    assert "reused          0 groups\n" in text
    assert "at most 28,166 files, 2.34 GB to write to the store" in text
    assert "set aside: subject s2: broken" in text


@pytest.mark.parametrize(
    ("ended", "holder", "said"),
    [
        (0, None, ": done\n"),
        (1, None, "done, something was set aside"),
        (3, None, "interrupted"),
        (None, HOLDER, "running; run abcdefgh on node7 holds the store"),
        (None, None, "killed; `hpcenc submit` resumes"),
    ],
)
def test_a_status_tells_how_the_run_stands(ended: int | None, holder: LockOwner | None, said: str) -> None:
    assert said in status(ended, holder)


def test_a_status_counts_stages_and_names_what_is_not_whole() -> None:
    text = status(1)
    assert "extract         3 of 3 units done" in text
    assert "fits/clip/s2: 1 of 2 blocks done" in text
    assert "fits/clip/s1" not in text
    assert "set aside: fit s2 block 1: broken" in text


def test_models_are_told_with_their_layers_and_files() -> None:
    table = {row["model"]: row for row in model_table()}
    assert {model: row["default_layer"] for model, row in table.items()} == {
        "beats": "12",
        "clip": "embedding",
        "cavmae": "mean",
    }
    assert all(row["checkpoints"] and row["default_layer"] in row["layers"] for row in table.values())
    text = "\n".join(model_lines())
    for row in table.values():
        for file in row["checkpoints"]:
            assert f"{file['file']} ({file['megabytes']} MB)" in text

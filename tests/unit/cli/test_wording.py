from __future__ import annotations

from typing import Any

import pytest

from hpcenc.cli.wording import model_lines, model_table, plan_lines, status_lines
from hpcenc.cluster.accounting import Account, WorkerTime
from hpcenc.cluster.run_folder import SetAside
from hpcenc.cluster.status import Status, Units
from hpcenc.slurm.jobs import JobState
from hpcenc.storage.lock import LockOwner, job_of

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
    "idle_sweeps": ["sweeps.bands: no sum"],
    "compute": {
        "flop": {"operators": 2e12, "fit": 11e15, "weights": 0.8e15},
        "hours": {"extract": 3.3, "operators": 0.2, "fit": 18.04},
        "extraction": "estimated for CPUs",
        "gflops_per_worker": 98.2,
        "rate": "measured",
        "n_workers": 2,
        "n_threads": 1,
    },
    "memory": {
        "worker_bytes": 2_340_000_000,
        "task": "fit s1 block 0",
        "n_workers": 2,
        "granted_bytes": 24e9,
    },
    "disk": {"bytes_to_read": 170_000_000_000, "free_bytes": 2e12, "free_bytes_of": "the file system"},
    "dual_weights": {"saves_bytes": 1.22e12, "saves_flop": 0.8e15, "n_primal": 704, "n_weights": 1056},
}
HOLDER = LockOwner("abcdefgh", "node7", "boot", 12, "me", "1")


IDLE = Account("", 0, None, None, {}, {})


def status(ended: int | None, holder: LockOwner | None = None, **settings: Any) -> str:
    found = Status(
        run={"run_id": "abcdefgh", "started": "2026-01-01T00:00:00"},
        folder="/data/runs/x",
        stages={"extract": Units(3, done=3), "fit": Units(9, done=3, running=3, failed=1, lost=1)},
        fits={"fits/clip/s1": Units(2, done=2), "fits/clip/s2": Units(7, 1, 3, 1, 1, 1)},
        set_aside=(
            SetAside("fit s2 block 1", "broken", "Traceback\n  line"),
            SetAside("fit s2 block 2", "broken", "Traceback\n  line"),
        ),
        ended=ended,
        holder=holder,
        **{"account": IDLE, **settings},
    )
    return "\n".join(status_lines(found))


def test_a_status_tells_pace_price_and_losses() -> None:
    workers = {"gpu": WorkerTime(2, 1.25, 0.8), "cpu": WorkerTime(0, 0.5, None)}
    at_work = Account("fit", 10, 0.5, 20.0, workers, {"preempted": 3, "node_fail": 1})
    text = status(None, HOLDER, account=at_work)
    assert "at work: fit, 0.5 units a minute, about 20 min left of it" in text
    assert "  GPU workers: 2 now, 1.25 hours so far, 80% of that at work on units\n" in text
    assert "  CPU workers: 0 now, 0.50 hours so far\n" in text
    assert "lost and tried again: 3 by preempted" in text
    assert "lost and tried again: 1 by node fail" in text


def test_a_status_tells_what_became_of_units_that_are_not_done() -> None:
    text = status(None, HOLDER)
    assert "extract         3 of 3 units done\n" in text
    assert "fit             3 of 9 units done, 3 running, 1 failed, to be tried again, 1 lost, to" in text
    assert "fits/clip/s1" not in text
    tried = "3 running, 1 failed, to be tried again, 1 lost, to be tried again, 1 set aside"
    assert f"fits/clip/s2: 1 of 7 blocks done, {tried}\n" in text


def test_a_status_tells_how_to_see_the_dashboard_while_there_is_one() -> None:
    where = {"host": "n7", "dashboard": "http://127.0.0.1:8787/status"}
    line = "dashboard: ssh -L 8787:127.0.0.1:8787 n7, then http://127.0.0.1:8787/status"
    assert line in status(None, HOLDER, dashboard=where)
    assert "dashboard" not in status(0, None, dashboard=where)


def test_a_controller_that_slurm_starts_again_is_waited_for_whoever_has_the_store() -> None:
    waits = JobState("7", "hpcenc-abcdefgh", "PENDING", "BeginTime", "", 1_795_000_000.0, None, None)
    for holder in (None, HOLDER, job_of("abcdefgh", "7")):
        first = status(None, holder, jobs=(waits,)).splitlines()[0]
        assert first.endswith(": waiting for its controller, job 7")
    assert "killed" in status(None)


def test_a_status_tells_why_jobs_wait_and_where_they_run() -> None:
    waits = JobState("7", "hpcenc-abcdefgh", "PENDING", "Priority", "", 1_795_000_000.0, None, None)
    runs = JobState("8", "hpcenc-w-abcdefgh", "RUNNING", "", "n2", 1_795_000_000.0, None, None)
    text = status(None, job_of("abcdefgh", "7"), jobs=(waits, runs))
    assert "waiting for its controller, job 7" in text
    assert "job 7 (hpcenc-abcdefgh) waits since 2026-11-18 11:06 UTC: Priority" in text
    assert "job 8 (hpcenc-w-abcdefgh) running on n2" in text
    assert "jobs: squeue: no answer" in status(None, jobs_unknown="squeue: no answer")


def test_a_plan_tells_what_is_left_of_every_stage() -> None:
    text = "\n".join(plan_lines(PRICED))
    assert "store /data/study.zarr, fits on numpy (auto: numpy 102 GFLOP/s, torch 88 GFLOP/s)" in text
    assert "extract         3 of 12 units to do" in text
    assert "6 groups: a, b, c, d and 2 more" in text
    assert "reused          0 groups\n" in text
    assert "at most 28,166 files, 2.34 GB to write to the store" in text
    assert "set aside: subject s2: broken" in text
    assert "note: sweeps.bands: no sum" in text


def test_a_plan_tells_its_price_in_a_line_each() -> None:
    lines = list(plan_lines(PRICED))
    assert (
        "  compute    about 11,802.0 TFLOP: extract 3.3 h, operators 12 min, fit 18.0 h on 2 workers at "
        "98 GFLOP/s (measured); extraction is estimated for CPUs" in lines
    )
    assert "  memory     about 2.3 GB a worker (fit s1 block 0), 2 workers; 24.0 GB granted" in lines
    assert (
        "  disk       at most 28,166 files, 2.34 GB to write to the store, 170.00 GB to read; 2000.0 GB free "
        "(the file system)" in lines
    )
    assert (
        '  weights    primal in 704 of 1,056 fits; as "dual" (fit.weights) they would save 1220.00 GB and '
        "800.0 TFLOP" in lines
    )


def test_a_plan_says_so_where_extraction_is_not_asked_for_and_times_are_short() -> None:
    compute = {
        **PRICED["compute"],
        "hours": {"extract": 0.0, "operators": 0.001, "fit": 0.02},
        "extraction": "",
    }
    text = "\n".join(plan_lines({**PRICED, "compute": compute}))
    assert "TFLOP: operators under 1 min, fit 1 min on 2 workers at 98 GFLOP/s (measured)\n" in text


def test_a_plan_tells_where_dual_weights_would_take_more() -> None:
    few_columns = {
        **PRICED,
        "dual_weights": PRICED["dual_weights"] | {"saves_bytes": -2e9, "saves_flop": 1e12},
    }
    assert "take 2.00 GB more and save 1.0 TFLOP" in "\n".join(plan_lines(few_columns))
    no_weights = {**PRICED, "dual_weights": dict.fromkeys(PRICED["dual_weights"], 0)}
    assert "dual" not in "\n".join(plan_lines(no_weights))


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
    assert "fits/clip/s2: 1 of 7 blocks done" in text
    assert "fits/clip/s1" not in text
    assert (
        "  set aside: fit s2 block 1: broken\n      Traceback\n        line\n  set aside: fit s2 block 2"
        in text
    )
    assert text.count("Traceback") == 1


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

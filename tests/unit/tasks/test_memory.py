"""Predicted peaks of memory against those of tasks that run in processes of their own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from hpcenc.cluster.pools import KEEP_FREED_MEMORY
from hpcenc.cluster.threads import THREAD_VARIABLES
from hpcenc.storage.digests import FileDigests
from hpcenc.storage.marks import write_mark
from hpcenc.storage.store import Store
from hpcenc.storage.study import parse_study
from hpcenc.tasks.at_hand import BUDGET_BYTES
from hpcenc.tasks.inspection import inspect
from hpcenc.tasks.memory import (
    INTERPRETER_BYTES,
    LIBRARY_BYTES,
    WorkerPeak,
    fit_peak,
    operators_peak,
    worker_peak,
)
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.records import Task
from hpcenc.tasks.selection import select_feature_sets
from hpcenc.tasks.sizes import FitSizes, FoldSizes

RUNS = ("A", "B", "C", "D", "E")
RUN_TRS = 330
SUBJECTS = ("s1", "s2", "s3")
N_VOXELS = 10_000
COLUMNS = {768: (768, (3,)), 7_680: (768, tuple(range(1, 11))), 15_360: (1536, tuple(range(1, 11)))}
"""Features and delays."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature files of both widths, and BOLD that follows some of them; one vertex is constant."""
    path = tmp_path_factory.mktemp("memory")
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((768, N_VOXELS), dtype=np.float32) / 20
    for run in RUNS:
        features = lfilter([1], [1, -0.8], rng.standard_normal((RUN_TRS, 1536)), axis=0).astype(np.float32)
        features *= np.arange(1, 1537, dtype=np.float32) ** -0.6
        np.save(path / f"wide_{run}.npy", features)
        np.save(path / f"narrow_{run}.npy", features[:, :768])
        for subject in SUBJECTS:
            bold = features[:, :768] @ mix + rng.standard_normal((RUN_TRS, N_VOXELS), dtype=np.float32)
            bold[:, 7] = 3
            (path / subject).mkdir(exist_ok=True)
            np.save(path / subject / f"{run}.npy", bold)
    return path


@dataclass(frozen=True)
class Made:
    plan: Plan
    store: Store

    def operators(self) -> dict[str, FoldSizes]:
        return {task.units[0].group: FoldSizes.of(task) for task in self.plan.stages[2].tasks}  # type: ignore[arg-type]

    def fits(self) -> Sequence[Task]:
        return self.plan.stages[3].tasks

    def predicted(self, n_slots: int = 1) -> int:
        return fit_peak(FitSizes.of(self.fits()[0], self.operators()), n_slots)  # type: ignore[arg-type]


def make(folder: Path, results: Path, n_columns: int, **settings: Any) -> Made:
    """Plan the study, and import its features."""
    n_features, delays = COLUMNS[n_columns]
    name = "narrow" if n_features == 768 else "wide"
    data = {
        "name": "memory",
        "tr_s": 1.0,
        "store": str(results / "study.zarr"),
        "runs": [{"name": run, "n_trs": RUN_TRS} for run in RUNS],
        "subjects": {"ids": list(SUBJECTS)},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {name: {"path": f"{name}_{{run}}.npy"}},
        "fit": {"delays": list(delays), "backend": "numpy", **settings},
    }
    study = parse_study(data, folder)
    sets = select_feature_sets(study, name, "default")
    facts = inspect(study, sets, SUBJECTS, FileDigests(results / "digests.json"))
    assert facts.voxels is not None
    plan = make_plan(study, sets, facts, "numpy")
    path = study.store_path
    store = Store(path) if path.exists() else Store.create(path, {}, facts.voxels.to_arrays()[0])
    for spec in plan.groups:
        store.ensure_group(spec)
    for task in plan.stages[1].tasks:
        task.run(store, None)
    return Made(plan, store)


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., int]:
    """Peak of some tasks in a process of their own, as a worker is set up."""

    def run(store: Store, tasks: Sequence[Task], n_slots: int = 1) -> int:
        pickled = tmp_path / "tasks.pickle"
        pickled.write_bytes(pickle.dumps(list(tasks)))
        script = Path(__file__).with_name("measured_memory.py")
        done = subprocess.run(
            [sys.executable, str(script), str(pickled), str(store.path), str(n_slots)],
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), **KEEP_FREED_MEMORY},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exact", "fast"])
@pytest.mark.parametrize("n_columns", list(COLUMNS))
def test_peaks_are_within_a_quarter_of_the_predicted_ones(
    n_columns: int, solver: str, folder: Path, tmp_path: Path, measured: Callable[..., int]
) -> None:
    for block in (2_500, 10_000):
        made = make(folder, tmp_path, n_columns, solver=solver, block=block)
        if block == 2_500:
            (sizes,) = made.operators().values()
            peak = measured(made.store, made.plan.stages[2].tasks)
            assert operators_peak(sizes) == pytest.approx(peak, rel=0.25)
        peak = measured(made.store, made.fits()[:1])
        assert made.predicted() == pytest.approx(peak, rel=0.25), f"block {block}"


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["dual", "none"])
def test_peaks_of_other_weights_are_within_a_quarter(
    weights: str, folder: Path, tmp_path: Path, measured: Callable[..., int]
) -> None:
    made = make(folder, tmp_path, 7_680, solver="fast", weights=weights)
    measured(made.store, made.plan.stages[2].tasks)
    peak = measured(made.store, made.fits()[:1])
    assert made.predicted() == pytest.approx(peak, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_two_slots_stay_below_what_is_predicted_for_two(
    solver: str, folder: Path, tmp_path: Path, measured: Callable[..., int]
) -> None:
    """How far two tasks overlap is a matter of time: the prediction is for the worst of it."""
    made = make(folder, tmp_path, 7_680, solver=solver)
    measured(made.store, made.plan.stages[2].tasks)
    peak = measured(made.store, made.fits(), n_slots=2)
    assert made.predicted() < 1.25 * peak
    assert 0.6 * made.predicted(2) < peak < 1.05 * made.predicted(2)


def test_a_smaller_block_and_smaller_weights_need_less(folder: Path, tmp_path: Path) -> None:
    whole = make(folder, tmp_path / "whole", 7_680, solver="fast").predicted()
    assert make(folder, tmp_path / "block", 7_680, solver="fast", block=2_500).predicted() < whole
    assert make(folder, tmp_path / "dual", 7_680, solver="fast", weights="dual").predicted() < whole
    assert make(folder, tmp_path / "exact", 7_680, solver="exact").predicted() < whole


def test_a_worker_needs_what_its_largest_task_needs_beside_its_interpreter(
    folder: Path, tmp_path: Path
) -> None:
    made = make(folder, tmp_path, 7_680, solver="fast")
    overlapping = worker_peak(made.plan, made.store.path, overlaps=True)
    assert overlapping == WorkerPeak(INTERPRETER_BYTES + made.predicted(2), "fit", "fit s1 block 0")
    alone = worker_peak(made.plan, made.store.path, overlaps=False)
    assert alone.n_bytes == INTERPRETER_BYTES + made.predicted() < overlapping.n_bytes


def test_another_array_library_costs_itself_and_the_copies_it_makes(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "numpy", 7_680)
    fits = tuple(replace(task, backend="torch") for task in made.fits())  # type: ignore[type-var]
    with_torch = replace(made.plan, stages=(*made.plan.stages[:3], replace(made.plan.stages[3], tasks=fits)))
    numpy = worker_peak(made.plan, made.store.path, overlaps=False)
    torch = worker_peak(with_torch, made.store.path, overlaps=False)
    assert torch.n_bytes >= numpy.n_bytes + LIBRARY_BYTES


def test_a_plan_that_is_done_needs_nothing(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path, 768)
    for task in made.fits():
        for unit in task.units:
            write_mark(made.store.path, unit.group, unit.index, unit.digest)
    assert worker_peak(made.plan, made.store.path, overlaps=True).task == ""


def test_operators_of_many_feature_sets_are_kept_up_to_a_budget(folder: Path, tmp_path: Path) -> None:
    (small,) = make(folder, tmp_path, 7_680, solver="fast").operators().values()
    fold = replace(small, operator_bytes=1_000_000_000)

    def peak(n_sets: int) -> int:
        units = (("none", (fold,), ()),) * n_sets
        return fit_peak(FitSizes(N_VOXELS, fold.n_trs, RUN_TRS, copies=False, units=units))  # type: ignore[arg-type]

    assert peak(2) == peak(1) + 1_000_000_000
    assert peak(4) == peak(3) == peak(1) - 1_000_000_000 + BUDGET_BYTES

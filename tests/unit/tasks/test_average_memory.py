"""The average of subjects is taken in a stream: its memory does not grow with their number."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcenc.cluster.pools import KEEP_FREED_MEMORY
from hpcenc.cluster.threads import THREAD_VARIABLES
from hpcenc.storage.digests import FileDigests
from hpcenc.storage.store import Store
from hpcenc.storage.study import parse_study
from hpcenc.tasks.inspection import inspect
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.selection import select_feature_sets

N_TRS = {"A": 150, "B": 140, "C": 160}
N_VOXELS = 5_000
SUBJECTS = tuple(f"s{number}" for number in range(1, 21))


@pytest.fixture(params=["volume by volume", "course by course"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Features, and BOLD of twenty subjects in files of their own, in either order of storage: a dense time
    series has its courses in one piece."""
    path = tmp_path / "files"
    path.mkdir()
    as_stored = np.ascontiguousarray if request.param == "volume by volume" else np.asfortranarray
    rng = np.random.default_rng(0)
    for run, n_trs in N_TRS.items():
        np.save(path / f"lab_{run}.npy", rng.standard_normal((n_trs, 3)).astype(np.float32))
        bold = rng.standard_normal((n_trs, N_VOXELS), dtype=np.float32)
        for place, subject in enumerate(SUBJECTS):
            np.save(path / f"{subject}_{run}.npy", as_stored(bold + place))
    return path


def peak_bytes(folder: Path, results: Path, n_subjects: int) -> int:
    """Most memory that averaging so many subjects took, in a process of its own."""
    data = {
        "name": "average",
        "tr_s": 1.0,
        "store": str(results / "study.zarr"),
        "runs": [{"name": run, "n_trs": n_trs} for run, n_trs in N_TRS.items()],
        "subjects": {"ids": list(SUBJECTS[:n_subjects])},
        "bold": {"path": "{subject}_{run}.npy"},
        "feature_files": {"lab": {"path": "lab_{run}.npy"}},
        "fit": {"delays": [1, 2], "block": 5000, "backend": "numpy"},
        "average": {},
    }
    study = parse_study(data, folder)
    chosen = select_feature_sets(study, "lab")
    facts = inspect(study, chosen, study.subjects.ids, FileDigests(results / "digests.json"))
    assert facts.voxels is not None
    plan = make_plan(study, chosen, facts, "numpy")
    store = Store.create(study.store_path, {}, facts.voxels.to_arrays()[0])
    store.ensure_group(next(spec for spec in plan.groups if spec.group == "bold/average"))
    (stage,) = (stage for stage in plan.stages if stage.name == "average")
    assert len(stage.tasks) == 1
    tasks = results / "tasks.pickle"
    tasks.write_bytes(pickle.dumps(list(stage.tasks)))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("measured_memory.py"), tasks, store.path, "1"],
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), **KEEP_FREED_MEMORY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(store.read("bold/average/n_subjects").min()) == n_subjects
    return int(done.stdout)


def test_twenty_subjects_are_averaged_in_the_memory_of_two(folder: Path, tmp_path: Path) -> None:
    peaks = {}
    for n_subjects in (2, 20):
        results = tmp_path / str(n_subjects)
        results.mkdir()
        peaks[n_subjects] = peak_bytes(folder, results, n_subjects)
    # How what is freed lies in memory is worth a tenth; eighteen blocks of float32 more would double it.
    assert peaks[20] == pytest.approx(peaks[2], rel=0.15)
    assert 18 * 4 * max(N_TRS.values()) * N_VOXELS > peaks[2]

"""Single features of a space against BOLD."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.results import fit_groups, read_singles
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store
from hpcenc.tasks.folds import RowPolicy, RunRows
from hpcenc.tasks.operator_task import Rows
from hpcenc.tasks.records import Unit
from hpcenc.tasks.singles import SINGLE_SCORES, SinglesUnit, choose_features, singles_arrays

N_TRS = (80, 70, 90)
N_FEATURES, N_VOXELS, DELAY = 6, 30, 3
ROWS = Rows(
    tuple(RunRows(name, n_trs, rest=((0, 5),)) for name, n_trs in zip("ABC", N_TRS, strict=True)),
    longest_delay=4,
    policy=RowPolicy(),
    outer="rotate",
    test_runs=(),
)


def test_the_feature_of_the_largest_correlation_of_either_sign_is_chosen() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 4))
    X[:, 2] = 7.0
    Y = np.stack([X[:, 1], -X[:, 3] + 0.1 * rng.standard_normal(50), np.full(50, 2.0)], axis=1).astype(
        np.float32
    )
    feature, r = choose_features(X, Y)
    assert feature[:2].tolist() == [1, 3]
    assert r[0] == pytest.approx(1, abs=1e-6)
    assert r[1] == pytest.approx(np.corrcoef(X[:, 3], Y[:, 1])[0, 1], abs=1e-6)
    assert np.isnan(r[2])
    assert np.isnan(choose_features(np.ones((50, 3)), Y)[1]).all()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(N_VOXELS)})
    rng = np.random.default_rng(1)
    for run, n_trs in zip("abc", N_TRS, strict=True):
        values = rng.random((n_trs, N_FEATURES)).astype(np.float32)
        array = ArraySpec(values.shape, values.shape, "float32", ("tr", "feature"))
        made.ensure_group(GroupSpec(f"features/x/{run}", "f" * 64, {"tags": array}, 1, {}))
        made.write(f"features/x/{run}/tags", (slice(None), slice(None)), values)
    spec = GroupSpec(
        "singles/x/s1", "d" * 64, singles_arrays(3, N_VOXELS, 2500), 1, {"block": 2500, "subject": "s1"}
    )
    made.ensure_group(spec)
    return made


def test_a_feature_is_chosen_on_training_rows_and_scored_on_test_rows(store: Store) -> None:
    features = np.concatenate([store.read(f"features/x/{run}/tags") for run in "abc"]).astype(float)
    onsets, rng = ROWS.onsets, np.random.default_rng(2)
    row = np.concatenate([np.arange(n_trs) for n_trs in N_TRS])
    rolled = np.roll(features, DELAY, axis=0)
    means = [features[fold.train].mean(axis=0) for fold in ROWS.folds()]
    by_fold = [np.where((row >= DELAY)[:, None], rolled, mean) for mean in means]
    planted = np.arange(N_VOXELS) % N_FEATURES
    bold = rng.standard_normal((sum(N_TRS), N_VOXELS)).astype(np.float32)
    bold[:, :20] -= (3 * rolled[:, planted[:20]]).astype(np.float32)
    bold[:, 29] = 1.0
    space = SpaceSource("x/tags", tuple((f"features/x/{run}/tags",) for run in "abc"), "single", N_FEATURES)
    unit = SinglesUnit(Unit("singles/x/s1", 0, "d" * 64), space, ROWS, DELAY, "run", ())
    unit.work(store, bold, slice(0, N_VOXELS))
    store.mark("singles/x/s1", 0, "d" * 64)
    (found,) = (read_singles(store, group) for group in fit_groups(store, "singles"))
    assert tuple(found.scores) == SINGLE_SCORES
    assert (found.scores["feature"][:, :20] == planted[:20]).all()
    for place, fold in enumerate(ROWS.folds()):
        test, shifted = np.flatnonzero(fold.test), by_fold[place]
        for voxel in (0, 7, 25):
            feature, sign = (
                int(found.scores["feature"][place, voxel]),
                np.sign(found.scores["r_train"][place, voxel]),
            )
            expected = np.corrcoef(sign * shifted[test, feature], bold[test, voxel])[0, 1]
            assert found.scores["r"][place, voxel] == pytest.approx(expected, abs=1e-5)
            train = np.flatnonzero(fold.train)
            scored = bold[train, voxel].astype(float)
            for onset, n_trs in zip(onsets, N_TRS, strict=True):
                of_run = (train >= onset) & (train < onset + n_trs)
                if of_run.any():
                    scored[of_run] = (scored[of_run] - scored[of_run].mean()) / scored[of_run].std()
            all_r = [np.corrcoef(shifted[train, place_of], scored)[0, 1] for place_of in range(N_FEATURES)]
            assert feature == int(np.argmax(np.abs(all_r)))
            assert found.scores["r_train"][place, voxel] == pytest.approx(all_r[feature], abs=1e-5)
    assert (found.scores["r"][:, :20].mean(axis=0) > 0.4).all()
    assert np.isnan(found.scores["r"][:, 29]).all()


def test_bold_is_scaled_as_that_of_the_fits(store: Store) -> None:
    """A run of another level decides nothing where runs are z-scored, and all where the movie is."""
    features = np.concatenate([store.read(f"features/x/{run}/tags") for run in "abc"]).astype(float)
    fold = ROWS.folds()[0]
    bold = np.random.default_rng(2).standard_normal((sum(N_TRS), N_VOXELS)).astype(np.float32)
    bold[ROWS.onsets[1] :] += 20
    space = SpaceSource("x/tags", tuple((f"features/x/{run}/tags",) for run in "abc"), "single", N_FEATURES)
    unit = SinglesUnit(Unit("singles/x/s1", 0, "d" * 64), space, ROWS, DELAY, "movie", ())
    unit.work(store, bold, slice(0, N_VOXELS))
    store.mark("singles/x/s1", 0, "d" * 64)
    (found,) = (read_singles(store, group) for group in fit_groups(store, "singles"))
    shifted = np.roll(features, DELAY, axis=0)[fold.train]
    feature = int(found.scores["feature"][0, 3])
    expected = np.corrcoef(shifted[:, feature], bold[fold.train, 3])[0, 1]
    assert found.scores["r_train"][0, 3] == pytest.approx(expected, abs=0.02)


def test_the_onset_of_runs_is_no_course_of_a_feature(store: Store) -> None:
    """Features that are mostly on would step from nothing to their level in the same rows of every run."""
    rows = dataclasses.replace(ROWS, policy=RowPolicy(rest="keep"))
    for run, n_trs in zip("abc", N_TRS, strict=True):
        values = 0.9 + 0.1 * np.random.default_rng(n_trs).random((n_trs, N_FEATURES))
        store.write(f"features/x/{run}/tags", (slice(None), slice(None)), values.astype(np.float32))
    bold = np.random.default_rng(3).standard_normal((sum(N_TRS), N_VOXELS)).astype(np.float32)
    for onset in rows.onsets:
        bold[onset : onset + DELAY] += 5
    space = SpaceSource("x/tags", tuple((f"features/x/{run}/tags",) for run in "abc"), "single", N_FEATURES)
    SinglesUnit(Unit("singles/x/s1", 0, "d" * 64), space, rows, DELAY, "run", ()).work(
        store, bold, slice(0, N_VOXELS)
    )
    store.mark("singles/x/s1", 0, "d" * 64)
    (found,) = (read_singles(store, group) for group in fit_groups(store, "singles"))
    assert abs(found.scores["r"].mean()) < 0.1


def test_units_are_frozen_and_move_between_blocks() -> None:
    space = SpaceSource("x/tags", (("a",),), "single", 2)
    unit = SinglesUnit(Unit("singles/x/s1", 0, "d"), space, ROWS, DELAY, "run", ())
    assert dataclasses.replace(unit, unit=dataclasses.replace(unit.unit, index=3)).unit.index == 3

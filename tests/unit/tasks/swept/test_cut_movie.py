"""A movie cut in two and one alpha for all vertices, as in the reference study, by plain computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from run_here import run_plan
from sklearn.linear_model import Ridge
from swept_study import N_TRS, N_VOXELS, SINGLE, WINDOW, study_of

from hpcenc.storage.results import read_scores, read_voxels
from hpcenc.storage.study import Study
from hpcenc.tasks import at_hand
from hpcenc.tasks.folds import RowPolicy, RunRows, outer_folds
from hpcenc.tasks.operators import make_operators
from hpcenc.tasks.report.courses import make_courses
from hpcenc.tasks.scores import pearson_r
from hpcenc.tasks.shared_alpha import mean_errors
from hpcenc.tasks.zscoring import standardise


def paper_like(folder: Path, results: Path, **fit: Any) -> Study:
    """One subject, no row cut, the last 100 of 285 rows tested: part of run C trains."""
    runs = [{"name": run, "n_trs": n_trs} for run, n_trs in N_TRS.items()]
    settings = {"delays": [1, 2, 3], "n_alphas": 8, "block": 5000, "backend": "numpy", "weights": "none"}
    settings |= {"split_s": 185.0, "min_fold_trs": 56, "zscore_bold": "movie", "zscore_features": "movie"}
    return study_of(
        folder,
        results,
        runs=runs,
        subjects={"ids": ["s1"]},
        average=None,
        sweeps={"delays": list(SINGLE)},
        fit=settings | fit,
    )


def by_hand(folder: Path, delays: tuple[int, ...]) -> dict[str, Any]:
    """The same by scikit-learn: z-scored over the movie; runs A and B with the head of C leave each other
    out."""
    run = np.repeat(range(4), list(N_TRS.values()))
    row = np.concatenate([np.arange(n_trs) for n_trs in N_TRS.values()])
    train = np.arange(len(run)) < 185
    X, Y = (
        np.concatenate([np.load(folder / f"{name}{one}.npy") for one in N_TRS]).astype(float)
        for name in ("first_", "s1/")
    )
    X, Y = ((values - values.mean(0)) / values.std(0) for values in (X, Y))
    shifted = [np.where((row >= delay)[:, None], np.roll(X, delay, axis=0), 0) for delay in delays]
    design = np.concatenate(shifted, axis=1)
    centred = design[train] - design[train].mean(0)
    alphas = 10 ** np.linspace(-2, 5, 8) * (centred**2).sum() / (train.sum() - 1)
    folds = [train & (run == 0), train & (run > 0)]  # 55 rows of C are too few for a fold of their own
    errors = np.zeros((8, N_VOXELS))
    for held_out in folds:
        inner = train & ~held_out
        for place, alpha in enumerate(alphas):
            predicted = Ridge(alpha).fit(design[inner], Y[inner]).predict(design[held_out])
            errors[place] += ((Y[held_out] - predicted) ** 2).mean(0) / 2
    return {"train": train, "design": design, "Y": Y, "alphas": alphas, "errors": errors}


def r_of(plain: dict[str, Any], alpha: Any) -> NDArray[np.float64]:
    ridge = Ridge(alpha, solver="cholesky").fit(plain["design"][plain["train"]], plain["Y"][plain["train"]])
    return np.asarray(pearson_r(ridge.predict(plain["design"][~plain["train"]]), plain["Y"][~plain["train"]]))


def r_of_run(plain: dict[str, Any], found: Any, voxel: int) -> float:
    """r of one vertex over the part of run C that tests."""
    alpha = float(found.alpha[0, 0, voxel])
    ridge = Ridge(alpha).fit(plain["design"][plain["train"]], plain["Y"][plain["train"], voxel])
    return float(np.corrcoef(ridge.predict(plain["design"][185:210]), plain["Y"][185:210, voxel])[0, 1])


def test_a_movie_cut_in_two_is_fitted_as_the_definition_says(folder: Path, tmp_path: Path) -> None:
    store, _ = run_plan(paper_like(folder, tmp_path), "first")
    plain = by_hand(folder, WINDOW)
    found = read_scores(store, "fits/first/s1")
    chosen = plain["errors"].argmin(0)
    np.testing.assert_allclose(found.alpha[0, 0], plain["alphas"][chosen], rtol=1e-5)
    np.testing.assert_allclose(found.r[0, 0], r_of(plain, plain["alphas"][chosen]), atol=1e-5)
    assert found.attributes["folds"] == ["last 100 TRs"]
    (course,), missing = make_courses(store, [found], read_voxels(store), paper_like(folder, tmp_path))
    assert missing == ()
    assert course.r == pytest.approx(r_of_run(plain, found, course.voxel), abs=1e-4)
    assert course.used.tolist() == [False] * 55 + [True] * 25


@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_a_shared_alpha_is_that_of_the_least_mean_error(folder: Path, tmp_path: Path, solver: str) -> None:
    store, plan = run_plan(paper_like(folder, tmp_path, alpha="shared", solver=solver), "first")
    assert [stage.name for stage in plan.stages] == ["decode", "extract", "operators", "alphas", "fit"]
    for group, place, delays in [("fits", 0, WINDOW), ("delays", 0, (0,)), ("delays", 1, (2,))]:
        plain = by_hand(folder, delays)
        mean = plain["errors"].mean(axis=1)
        found = read_scores(store, f"{group}/first/s1")
        errors = store.read(f"alphas/{group}/first/s1/errors")[0, place]
        np.testing.assert_allclose(errors, mean - mean[-1], atol=1e-5)
        alpha = plain["alphas"][mean.argmin()]
        np.testing.assert_allclose(found.alpha[0, place], alpha, rtol=1e-5)
        np.testing.assert_allclose(found.r[0, place], r_of(plain, alpha), atol=1e-5)
        if group == "delays":
            folds = plain["errors"][mean.argmin()]
            null = np.zeros(N_VOXELS)
            for held_out in (plain["train"] & (np.arange(285) < 70), plain["train"] & (np.arange(285) >= 70)):
                others = plain["train"] & ~held_out
                null += ((plain["Y"][held_out] - plain["Y"][others].mean(0)) ** 2).mean(0) / 2
            np.testing.assert_allclose(found.more["cv"][0, place], 1 - folds / null, atol=2e-5)


def test_the_variants_of_a_sweep_share_bold_that_is_z_scored_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return standardise(*args, **options)

    for module in ("ridge", "zscoring"):  # where the main fit has it from, and the sweep
        monkeypatch.setattr(f"hpcenc.tasks.{module}.standardise", counted)
    run_plan(paper_like(folder, tmp_path), "first")
    assert len(calls) == 2  # of the main fit, and of all single delays


def test_a_sweep_that_is_fitted_in_parts_is_that_of_the_whole_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place, size in (("whole", None), ("parts", N_VOXELS // 3)):
        monkeypatch.setattr(at_hand.device("numpy"), "voxels_at_once", size)
        (tmp_path / place).mkdir()
        store, _ = run_plan(paper_like(folder, tmp_path / place), "first")
        found.append(read_scores(store, "delays/first/s1"))
    np.testing.assert_allclose(found[0].r, found[1].r, atol=1e-6)
    np.testing.assert_allclose(found[0].more["cv"], found[1].more["cv"], atol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_no_voxel_has_no_say_in_a_shared_alpha(solver: Any) -> None:
    (fold,) = outer_folds([RunRows(name, 30) for name in "ABC"], (1,), RowPolicy())
    design = np.random.default_rng(0).standard_normal((90, 40))
    operators = make_operators(design @ design.T, fold, np.linspace(-2, 5, 9), solver=solver)
    assert mean_errors(np.zeros((60, 0), np.float32), operators).tolist() == [0.0] * 9


def test_an_alpha_that_is_given_is_taken(folder: Path, tmp_path: Path) -> None:
    store, _ = run_plan(paper_like(folder, tmp_path, alpha=300.0), "first")
    found = read_scores(store, "fits/first/s1")
    np.testing.assert_allclose(found.alpha, 300.0)
    np.testing.assert_allclose(found.r[0, 0], r_of(by_hand(folder, WINDOW), 300.0), atol=1e-5)

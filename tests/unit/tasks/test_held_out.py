"""Scores of the inner folds against scikit-learn's ridge on the explicit design, fold by fold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from hpcenc.storage.design import delayed_design, standardise
from hpcenc.tasks.folds import RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.operators import from_arrays, make_operators, to_arrays
from hpcenc.tasks.ridge import fit_block
from hpcenc.tasks.zscoring import zscore_runs

RUNS = (
    RunRows("a", 120, rest=((0, 8),), repeats=(("clip", 100, 115),)),
    RunRows("b", 90, rest=((0, 8),)),
    RunRows("c", 110, rest=((0, 8),)),
    RunRows("d", 100, repeats=(("clip", 70, 85),)),
)
ONSETS = run_onsets(RUNS)
DELAYS = (1, 2, 3)
N_VOXELS = 60
EXPONENTS = np.linspace(-2, 5, 12)


@pytest.fixture(scope="module", params=[150, 40], ids=["more columns than rows", "fewer columns than rows"])
def study(request):
    rng = np.random.default_rng(0)
    (fold,) = outer_folds(RUNS, DELAYS, RowPolicy())
    n_trs = sum(run.n_trs for run in RUNS)
    courses = lfilter([1], [1, -0.8], rng.standard_normal((n_trs, request.param)), axis=0)
    features = standardise(courses, fold.train)[0]
    design = delayed_design(features, DELAYS, ONSETS)
    signal = design @ rng.standard_normal((design.shape[1], N_VOXELS))
    strength = np.linspace(0, 2, N_VOXELS)
    bold = strength * signal / signal.std(axis=0) + rng.standard_normal(signal.shape)
    kernel = window_gram(base_gram(features), DELAYS, ONSETS)
    return fold, design, kernel, bold.astype(np.float32)


def by_definition(fold, design, bold, alphas):
    """1 - error / null error, with scikit-learn and a plain loop over inner folds."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    lengths = [
        int(fold.train[start : start + run.n_trs].sum()) for start, run in zip(ONSETS, RUNS, strict=True)
    ]
    scored = np.zeros(bold.shape)
    scored[fold.train] = zscore_runs(bold[fold.train], [n for n in lengths if n])[0]
    errors, null = np.zeros(bold.shape[1]), np.zeros(bold.shape[1])
    for validation in fold.inner:
        training = fold.train & ~validation
        ridge = linear_model.Ridge(alpha=alphas, solver="cholesky").fit(design[training], scored[training])
        errors += ((scored[validation] - ridge.predict(design[validation])) ** 2).mean(axis=0)
        null += ((scored[validation] - scored[training].mean(axis=0)) ** 2).mean(axis=0)
    return 1 - errors / null


@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_the_score_of_the_inner_folds_is_that_of_ridge_without_their_rows(study, solver) -> None:
    fold, design, kernel, bold = study
    ops = make_operators(kernel, fold, EXPONENTS, solver=solver, nested=True)
    ops = from_arrays(to_arrays(ops))
    fit = fit_block(bold, ops, ONSETS, nested=True)
    np.testing.assert_allclose(fit.cv, by_definition(fold, design, bold, fit.alpha), atol=2e-5)


@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_the_inner_folds_are_scored_only_where_asked(study, solver) -> None:
    fold, _, kernel, bold = study
    ops = make_operators(kernel, fold, EXPONENTS, solver=solver)
    assert "fast-held_out" not in to_arrays(ops)
    assert np.isnan(fit_block(bold, ops, ONSETS).cv).all()


def test_test_rows_of_the_repeated_clip_have_a_score_of_their_own(study) -> None:
    fold, _, kernel, bold = study
    ops = make_operators(kernel, fold, EXPONENTS)
    rows = np.arange(ONSETS[3] + 73, ONSETS[3] + 85)
    whole = fit_block(bold, ops, ONSETS, want_dual=True, repeat_rows=rows)
    test_rows = np.flatnonzero(fold.test)
    centred = kernel[:, fold.train] @ whole.dual  # the dual coefficients sum to zero
    again = [np.corrcoef(centred[rows, voxel], bold[rows, voxel])[0, 1] for voxel in range(N_VOXELS)]
    assert set(rows) <= set(test_rows)
    np.testing.assert_allclose(whole.r_repeat, again, atol=1e-4)
    assert np.isnan(fit_block(bold, ops, ONSETS).r_repeat).all()

"""The ridge fit against himalaya, closed forms and plain loops."""

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from array_api_compat import array_namespace, device
from himalaya.kernel_ridge import KernelRidgeCV
from scipy.signal import lfilter
from sklearn.model_selection import PredefinedSplit

from hpcenc.storage.design import delayed_design, standardise
from hpcenc.storage.lagged import primal_from_dual
from hpcenc.tasks import cv_choice, ridge
from hpcenc.tasks.folds import OuterFold, RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.operators import make_operators, ops_to_device, restrict_to_alpha
from hpcenc.tasks.ridge import choose_alphas, cross_validate, fit_block, refit, refit_by_alpha
from hpcenc.tasks.scores import pearson_r
from hpcenc.tasks.zscoring import run_lengths, zscore_runs

RUNS = (
    RunRows("a", 120, rest=((0, 8),), repeats=(("clip", 100, 115),)),
    RunRows("b", 90, rest=((0, 8),)),
    RunRows("c", 110, rest=((0, 8), (50, 55)), repeats=(("clip", 90, 105),)),
    RunRows("d", 100, rest=((0, 8),)),
)
ONSETS = run_onsets(RUNS)
N_TRS = sum(run.n_trs for run in RUNS)
EXPONENTS = np.linspace(-2, 5, 20)
R_PRECISION = 5e-6
WEIGHT_PRECISION = 1e-5  # relative


@dataclass
class Study:
    """Two feature spaces, raw BOLD of half signal and half noise, and the rows to use."""

    delays: tuple[int, ...]
    fold: OuterFold
    spaces: list[np.ndarray]
    kernel: np.ndarray
    design: np.ndarray
    bold: np.ndarray

    def operators(self, **options):
        return make_operators(self.kernel, self.fold, EXPONENTS, **options)

    def zscored(self):
        """BOLD z-scored by a plain loop over runs, NaN in unused rows; float64."""
        scored = np.full(self.bold.shape, np.nan)
        run_of_row = np.repeat(range(len(RUNS)), [run.n_trs for run in RUNS])
        for run in range(len(RUNS)):
            rows = (run_of_row == run) & (self.fold.train | self.fold.test)
            values = self.bold[rows].astype(np.float64)
            scored[rows] = (values - values.mean(axis=0)) / values.std(axis=0)
        return scored


def smooth_noise(rng, n_courses):
    """Autoregressive courses, as slow as features of a movie."""
    return lfilter([1], [1, -0.8], rng.standard_normal((N_TRS, n_courses)), axis=0)


def make_study(dims, delays, n_voxels, seed):
    rng = np.random.default_rng(seed)
    (fold,) = outer_folds(RUNS, delays, RowPolicy())
    spaces = [standardise(smooth_noise(rng, dim).astype(np.float32), fold.train)[0] for dim in dims]
    kernel = window_gram(sum(base_gram(space) for space in spaces), delays, ONSETS)
    design = np.concatenate(
        [delayed_design(space.astype(np.float64), delays, ONSETS) for space in spaces], axis=1
    )
    signal = design @ rng.standard_normal((design.shape[1], n_voxels))
    signal *= (np.arange(n_voxels) < n_voxels / 2) / signal.std(axis=0)
    bold = 10_000 + 100 * (signal + 2 * rng.standard_normal(signal.shape))
    return Study(delays, fold, spaces, kernel, design, bold.astype(np.float32))


@pytest.fixture(scope="module")
def wide():
    """More windowed features (700) than training rows."""
    return make_study((40, 30), tuple(range(1, 11)), 2000, seed=11)


@pytest.fixture(scope="module")
def thin():
    """Fewer windowed features (33) than training rows."""
    return make_study((6, 5), (1, 2, 3), 2000, seed=12)


@pytest.fixture(params=["exact", "fast"])
def solver(request):
    return request.param


@pytest.fixture(params=["wide", "thin"])
def study(request):
    return request.getfixturevalue(request.param)


@dataclass
class Reference:
    alpha_index: np.ndarray
    r: np.ndarray
    r2: np.ndarray
    weights: np.ndarray


def himalaya_fit(study, alphas):
    """himalaya on the explicit FIR design in float64: nothing of hpcenc but rows and alphas."""
    fold, Y = study.fold, study.zscored()
    inner_fold = np.argmax(fold.inner, axis=0)[fold.train]
    model = KernelRidgeCV(alphas=alphas, kernel="linear", cv=PredefinedSplit(inner_fold), fit_intercept=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises its primal solver where p < n
        model.fit(study.design[fold.train], Y[fold.train])
    predicted, measured = model.predict(study.design[fold.test]), Y[fold.test]
    r = np.array([np.corrcoef(p, y)[0, 1] for p, y in zip(predicted.T, measured.T, strict=True)])
    r2 = 1 - ((measured - predicted) ** 2).sum(axis=0) / (len(measured) * measured.var(axis=0))
    alpha_index = np.argmin(np.abs(np.log(alphas[:, None] / model.best_alphas_)), axis=0)
    return Reference(alpha_index, r, r2, model.get_primal_coef())


@pytest.fixture(scope="module")
def references(wide, thin):
    return {id(study): himalaya_fit(study, study.operators().alphas) for study in (wide, thin)}


def test_alphas_scores_and_weights_are_those_of_himalaya(study, references, library, solver):
    expected = references[id(study)]
    ops = study.operators(solver=solver)
    on_device = ops_to_device(ops, library.to_device)
    fit = fit_block(library.to_device(study.bold), on_device, ONSETS, want_dual=True)
    same = library.to_host(fit.alpha_index) == expected.alpha_index
    assert same.mean() >= 0.999
    np.testing.assert_array_equal(library.to_host(fit.alpha), ops.alphas[library.to_host(fit.alpha_index)])
    assert np.abs(library.to_host(fit.r) - expected.r)[same].max() <= 1e-5
    assert np.abs(library.to_host(fit.r2) - expected.r2)[same].max() <= 1e-5

    dual = library.to_host(fit.dual)
    by_space = [
        primal_from_dual(space, dual, study.delays, ONSETS, study.fold.train) for space in study.spaces
    ]
    error = np.linalg.norm(np.concatenate(by_space) - expected.weights, axis=0)
    error /= np.linalg.norm(expected.weights, axis=0)
    assert error[same].max() <= 1e-4

    assert len(np.unique(expected.alpha_index)) > 10  # the grid is in use, not only its edge
    assert np.median(expected.r[:1000]) > 0.1


def test_a_finer_basis_in_double_precision_chooses_every_alpha_of_himalaya(study, references):
    ops = study.operators(basis_tolerance=1e-6, dtype=np.float64)
    chosen, _ = choose_alphas(study.zscored()[study.fold.train], ops)
    np.testing.assert_array_equal(chosen, references[id(study)].alpha_index)


def test_scores_are_those_of_the_block_formula_on_one_eigendecomposition(study):
    """Held-out residuals of fold J are inv(H_JJ) H_J y, H = sum of u u' / (s + alpha), constants left out."""
    ops = study.operators(basis_tolerance=1e-13, dtype=np.float64)
    Y = study.zscored()[study.fold.train][:, :50]
    n_train = len(Y)
    centring = np.eye(n_train) - 1 / n_train
    design = centring @ study.design[study.fold.train]
    kernel = design @ design.T
    for index in (0, 7, 13, 19):
        H = centring @ np.linalg.inv(kernel + ops.alphas[index] * np.eye(n_train)) @ centring
        scores = []
        for first, last in ops.inner_rows:
            J = np.arange(first, last)
            residual = np.linalg.solve(H[np.ix_(J, J)], H[J] @ Y)
            scores.append(-np.mean(residual**2, axis=0))
        np.testing.assert_allclose(cross_validate(Y, ops)[:, index], np.mean(scores, axis=0), rtol=1e-9)


def test_weights_in_double_precision_solve_the_primal_problem(study):
    ops = study.operators(dtype=np.float64)
    fit = fit_block(study.bold[:, :20].astype(np.float64), ops, ONSETS, want_dual=True)
    by_space = [
        primal_from_dual(space.astype(np.float64), fit.dual, study.delays, ONSETS, study.fold.train)
        for space in study.spaces
    ]
    weights = np.concatenate(by_space)
    Y, train = study.zscored(), study.fold.train
    centred = study.design - study.design[train].mean(axis=0)
    covariance = centred[train].T @ centred[train]
    for voxel, alpha in enumerate(fit.alpha):
        penalised = covariance + alpha * np.eye(len(covariance))
        solved = np.linalg.solve(penalised, centred[train].T @ Y[train, voxel])
        assert np.linalg.norm(weights[:, voxel] - solved) <= 1e-7 * np.linalg.norm(solved)
        r = np.corrcoef(centred[study.fold.test] @ solved, Y[study.fold.test, voxel])[0, 1]
        assert fit.r[voxel] == pytest.approx(r, abs=1e-9)
    np.testing.assert_allclose(fit.dual.sum(axis=0), 0, atol=1e-10)


def test_a_hundred_alphas_are_chosen_as_by_fitting_each(study):
    ops = make_operators(study.kernel, study.fold, np.linspace(-2, 5, 100), basis_tolerance=1e-6)
    Y = study.zscored()[study.fold.train][:, :200]
    Y[slice(*ops.inner_rows[0])] += 1  # each inner fold then has an intercept of its own
    design = study.design[study.fold.train]
    scores = np.zeros((200, 100))
    for first, last in ops.inner_rows:
        val = np.isin(np.arange(len(Y)), np.arange(first, last))
        X_mean, Y_mean = design[~val].mean(axis=0), Y[~val].mean(axis=0)
        X, X_val = design[~val] - X_mean, design[val] - X_mean
        kernel, cross = X @ X.T, X_val @ X.T
        for index, alpha in enumerate(ops.alphas):
            dual = np.linalg.solve(kernel + alpha * np.eye(len(X)), Y[~val] - Y_mean)
            scores[:, index] -= np.mean((Y[val] - Y_mean - cross @ dual) ** 2, axis=0) / 3
    chosen, _ = choose_alphas(Y.astype(np.float32), ops)
    # Neighbours of a grid this fine differ by less than float32 resolves in a few voxels.
    assert np.mean(chosen == scores.argmax(axis=1)) >= 0.98
    lost = scores.max(axis=1) - scores[np.arange(200), chosen]
    assert lost.max() < 1e-6


@pytest.mark.parametrize("alpha", [None, 7])
def test_scores_in_the_coordinates_of_features_are_those_of_the_general_way(study, alpha):
    Y = study.zscored()[study.fold.train][:, :100]
    Y[: len(Y) // 4] += 1  # inner folds have intercepts of their own
    scores = []
    for thin in (True, False):
        ops = study.operators(basis_tolerance=1e-13, dtype=np.float64, thin=thin)
        assert bool(ops.thin) == thin
        scores.append(cross_validate(Y, ops if alpha is None else restrict_to_alpha(ops, alpha)))
    np.testing.assert_allclose(*scores, rtol=1e-9)


def test_one_alpha_of_many_has_the_operators_of_one_that_is_given(thin):
    many = thin.operators(dtype=np.float64)
    given = make_operators(thin.kernel, thin.fold, (0.0,), dtype=np.float64, alpha=many.alphas[7], thin=True)
    for one, other in zip(restrict_to_alpha(many, 7).thin, given.thin, strict=True):
        np.testing.assert_allclose(one.predictions, other.predictions, atol=1e-12)
    assert restrict_to_alpha(given, 0).thin == given.thin


def test_equal_scores_choose_the_larger_alpha(thin):
    ops = thin.operators()
    silent = np.zeros((int(thin.fold.train.sum()), 3), dtype=np.float32)
    assert choose_alphas(silent, ops)[0].tolist() == [19, 19, 19]


def test_every_library_gives_the_fit_of_numpy_on_its_own_device(study, library, solver):
    bold = study.bold[:, :60].copy()
    bold[3, 5] = np.nan
    ops = study.operators(solver=solver)
    options = {"want_dual": True, "sub_block": 25, "n_check": 20, "seed": 4}
    expected = fit_block(bold, ops, ONSETS, **options)
    given = library.to_device(bold)
    fit = fit_block(given, ops_to_device(ops, library.to_device), ONSETS, **options)
    assert fit.n_shifts == expected.n_shifts
    for name in ("r", "r2", "alpha", "alpha_index", "chance", "agrees", "dual"):
        found, wanted = getattr(fit, name), getattr(expected, name)
        assert array_namespace(found) is array_namespace(given)
        assert device(found) == device(given)
        on_host = library.to_host(found)
        assert on_host.dtype == wanted.dtype, name
        np.testing.assert_allclose(on_host, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


def test_dual_coefficients_of_each_alpha_are_those_in_double_precision(study):
    fast, wide = study.operators(solver="fast"), study.operators(dtype=np.float64)
    Y, measured = (study.zscored()[rows][:, :60] for rows in (study.fold.train, study.fold.test))
    design = study.design[study.fold.train]
    design = design - design.mean(axis=0)
    for alpha in range(len(EXPONENTS)):
        chosen = np.full(Y.shape[1], alpha)
        predicted, dual = refit_by_alpha(Y.astype(np.float32), fast, chosen)
        expected_predicted, expected_dual = refit(Y, wide, chosen, want_dual=True)
        r, expected_r = pearson_r(predicted, measured), pearson_r(expected_predicted, measured)
        assert np.abs(r - expected_r).max() <= R_PRECISION
        weights, expected = design.T @ dual.astype(np.float64), design.T @ expected_dual
        off = np.linalg.norm(weights - expected, axis=0)
        assert (off <= WEIGHT_PRECISION * np.linalg.norm(expected, axis=0)).all()
        assert np.abs(dual.sum(axis=0)).max() <= 2e-5 * np.abs(dual).max()


@pytest.mark.parametrize("grid", ["mixed", "none small", "all small"])
def test_voxels_are_refitted_by_alpha_in_any_mixture(wide, library, grid):
    exponents = {"mixed": EXPONENTS, "none small": EXPONENTS + 4, "all small": EXPONENTS / 7 - 8}[grid]
    ops = make_operators(wide.kernel, wide.fold, exponents, solver="fast")
    n_direct = {"none small": [20], "all small": [0]}.get(grid, range(15, 20))
    assert len(ops.fast.duals) in n_direct
    Y = wide.zscored()[wide.fold.train][:, :40].astype(np.float32)
    chosen = np.random.default_rng(5).integers(0, 20, 40)
    chosen[chosen == 7] = 8  # an alpha that nobody chose
    expected = refit(Y, ops, chosen, want_dual=True)
    on_device = ops_to_device(ops, library.to_device)
    found = refit_by_alpha(library.to_device(Y), on_device, library.to_device(chosen))
    for values, wanted in zip(found, expected, strict=True):
        on_host = library.to_host(values)
        assert on_host.dtype == np.float32
        assert on_host.shape == wanted.shape
    found_predicted, found_dual = map(library.to_host, found)
    np.testing.assert_allclose(found_predicted, expected[0], atol=1e-4)
    kernel = (ops.eigenvectors * ops.eigenvalues) @ ops.eigenvectors.T
    np.testing.assert_allclose(kernel @ found_dual, kernel @ expected[1], atol=1e-3)


def with_blind_forms(ops):
    """Operators whose coarse scores are nonsense, and believed."""
    forms = replace(ops.fast.forms, coarse=ops.fast.forms.coarse[::-1].copy(), margin=np.array(0.0))
    return replace(ops, fast=replace(ops.fast, forms=forms))


def test_checked_voxels_agree_and_the_others_are_not_compared(study):
    bold = study.bold[:, :300].copy()
    bold[:, 7] = 10_000
    ops = study.operators(solver="fast")
    unchecked = fit_block(bold, ops, ONSETS)
    assert np.isnan(unchecked.agrees).all()
    fit = fit_block(bold, ops, ONSETS, n_check=50, seed=1)
    assert np.isfinite(fit.agrees).sum() == 50
    assert (fit.agrees[np.isfinite(fit.agrees)] == 1).all()
    np.testing.assert_array_equal(fit.alpha_index, unchecked.alpha_index)
    everywhere = fit_block(bold, ops, ONSETS, n_check=10_000)
    assert np.flatnonzero(np.isnan(everywhere.agrees)).tolist() == [7]
    assert np.isnan(fit_block(bold, study.operators(), ONSETS, n_check=50).agrees).all()


def test_the_seed_draws_the_checked_voxels(study):
    ops = study.operators(solver="fast")
    first, again, other = (
        np.isfinite(fit_block(study.bold[:, :200], ops, ONSETS, n_check=40, seed=seed).agrees)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.sum() == other.sum() == 40
    assert np.flatnonzero(first).max() > 100  # from the whole block


def test_a_block_whose_sample_disagrees_is_given_the_alphas_of_exact_scores(wide, library):
    bold, ops = wide.bold[:, :200], wide.operators(solver="fast")
    right = fit_block(bold, ops, ONSETS, n_check=200)
    assert (right.agrees == 1).all()
    blind = ops_to_device(with_blind_forms(ops), library.to_device)
    wrong = library.to_host(fit_block(library.to_device(bold), blind, ONSETS).alpha_index)
    assert (wrong != right.alpha_index).mean() > 0.3

    saved = fit_block(library.to_device(bold), blind, ONSETS, n_check=50, seed=1)
    np.testing.assert_array_equal(library.to_host(saved.alpha_index), right.alpha_index)
    np.testing.assert_allclose(library.to_host(saved.r), right.r, atol=1e-5)
    agrees = library.to_host(saved.agrees)
    compared = np.isfinite(agrees)
    assert compared.sum() == 50
    np.testing.assert_array_equal(agrees[compared], (wrong == right.alpha_index)[compared])
    assert (agrees == 0).any()


def test_a_sample_that_disagrees_in_less_than_the_limit_changes_nothing(study, monkeypatch):
    bold, blind = study.bold[:, :200], with_blind_forms(study.operators(solver="fast"))
    monkeypatch.setattr("hpcenc.tasks.ridge.MAX_DISAGREEMENT", 1.0)
    fit = fit_block(bold, blind, ONSETS, n_check=50)
    np.testing.assert_array_equal(fit.alpha_index, fit_block(bold, blind, ONSETS).alpha_index)
    assert (fit.agrees == 0).any()


def test_only_products_that_need_few_digits_are_made_with_few(study, solver, monkeypatch):
    ops = study.operators(solver=solver)
    few_digits, made_with = [], []

    @contextmanager
    def coarsely():
        few_digits.append(True)
        yield
        few_digits.pop()

    def watch(module, name):
        function = getattr(module, name)

        def call(*args, **options):
            coarse = ops.fast is not None and any(arg is ops.fast.forms.coarse for arg in args)
            made_with.append(("coarse forms" if coarse else name, bool(few_digits)))
            return function(*args, **options)

        monkeypatch.setattr(module, name, call)

    for name in ("cross_validate", "refit", "refit_by_alpha", "pearson_r"):
        watch(ridge, name)
    watch(cv_choice, "quadratic_forms")
    fit_block(study.bold, ops, ONSETS, n_check=64, coarsely=coarsely)
    with_few = {name for name, few in made_with if few}
    assert with_few == {"cross_validate" if solver == "exact" else "coarse forms"}
    in_full = {name for name, few in made_with if not few}
    assert {"pearson_r", "refit" if solver == "exact" else "quadratic_forms"} <= in_full


def test_undefined_voxels_are_nan_and_leave_their_neighbours_alone(study, solver):
    ops = study.operators(solver=solver)
    clean = study.bold[:, :40]
    dirty = clean.copy()
    dirty[200, 3] = np.nan  # rows 200 and 350 are a training and a test row
    dirty[350, 8] = np.inf
    dirty[:, 12] = 10_000.1
    dirty[130:210, 20] = 5  # constant in one training run
    dirty[320:, 21] = 5  # constant in the test run
    dirty[350, 33] = 3e38
    bad = [3, 8, 12, 20, 21, 33]
    with np.errstate(over="ignore"):
        fit, expected = (fit_block(bold, ops, ONSETS, want_dual=True) for bold in (dirty, clean))
    for name in ("r", "r2", "alpha", "chance"):
        assert np.flatnonzero(np.isnan(getattr(fit, name))).tolist() == bad, name
    assert np.flatnonzero(fit.alpha_index == -1).tolist() == bad
    assert np.isnan(fit.dual[:, bad]).all()
    good = np.setdiff1d(range(40), bad)
    np.testing.assert_array_equal(fit.alpha_index[good], expected.alpha_index[good])
    np.testing.assert_allclose(fit.r[good], expected.r[good], atol=1e-6)
    np.testing.assert_allclose(fit.dual[:, good], expected.dual[:, good], atol=1e-6)


def test_rows_left_out_change_nothing(study, solver):
    ops = study.operators(solver=solver)
    bold = study.bold[:, :50].copy()
    before = fit_block(bold, ops, ONSETS, want_dual=True)
    bold[~(study.fold.train | study.fold.test)] = np.nan
    after = fit_block(bold, ops, ONSETS, want_dual=True)
    for name in ("r", "r2", "alpha", "chance", "dual"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_the_unit_and_layout_of_bold_do_not_matter(study, solver):
    ops = study.operators(solver=solver)
    bold = study.bold[:, :50]
    raw = fit_block(bold, ops, ONSETS)
    other = fit_block(np.asfortranarray((bold - 9_000) / 64), ops, ONSETS, sub_block=7)
    assert np.mean(raw.alpha_index == other.alpha_index) >= 0.98
    same = raw.alpha_index == other.alpha_index
    np.testing.assert_allclose(raw.r[same], other.r[same], atol=1e-5)
    assert raw.dual is None


def test_chance_comes_from_shifts_within_each_test_run(study):
    (fold,) = outer_folds(RUNS, study.delays, RowPolicy(), test_runs=("b", "d"))
    ops = make_operators(study.kernel, fold, EXPONENTS)
    lengths = run_lengths(ops.test_rows, ONSETS)
    assert lengths == (int(fold.test[120:210].sum()), int(fold.test[320:].sum()))
    fit = fit_block(study.bold[:, :20], ops, ONSETS)
    assert fit.n_shifts == min(lengths) - 59
    assert (np.abs(fit.chance) < 1).all()


def test_bold_is_zscored_run_by_run():
    Y = np.random.default_rng(13).standard_normal((30, 4)).astype(np.float32) * 3 + 10_000
    Z, valid = zscore_runs(Y, (12, 18))
    assert valid.all()
    for run in (slice(0, 12), slice(12, 30)):
        wide = Y[run].astype(np.float64)
        np.testing.assert_allclose(Z[run], (wide - wide.mean(axis=0)) / wide.std(axis=0), atol=1e-5)


def test_bold_that_cannot_be_zscored_becomes_zeros_in_every_run():
    Y = np.random.default_rng(14).standard_normal((30, 6)).astype(np.float32) + 10_000
    Y[4, 0] = np.nan
    Y[:12, 1] = 10_000
    Y[:12, 2] = 10_000
    Y[3, 2] = np.nextafter(np.float32(10_000), np.float32(2e4))  # one unit in the last place is not a signal
    Y[4, 3] = 3e38
    with np.errstate(over="ignore"):
        Z, valid = zscore_runs(Y, (12, 18))
    assert valid.tolist() == [False, False, False, False, True, True]
    assert not Z[:, :4].any()
    assert Z[:, 4:].all()

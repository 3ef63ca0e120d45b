"""Error forms against ridge fits of every fold, solved row by row in float64."""

import numpy as np
import pytest

from hpcenc.tasks.cv_errors import Smoothers, error_form, solved_errors

SPANS = ((0, 20), (20, 55), (55, 58), (58, 90))  # unequal, one of the fewest rows that a run may have
N_TRAIN = 90
RELATIVE_ALPHAS = (1e-7, 1e-4, 1e-3, 4e-3, 0.1, 1.01, 10, 1e4, 1e9)  # to the largest eigenvalue


@pytest.fixture(scope="module", params=[12, 200])
def features(request):
    """Features of falling variance, fewer and more than rows; their means differ from fold to fold."""
    n_features = request.param
    rng = np.random.default_rng(n_features)
    X = rng.standard_normal((N_TRAIN, n_features)) * np.arange(1, n_features + 1) ** -0.6
    return X + np.repeat(rng.standard_normal((4, n_features)) / 4, [20, 35, 3, 32], axis=0)


def spectrum(X):
    centred = X - X.mean(axis=0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    kept = values > 1e-10 * values[-1]
    return vectors[:, kept], values[kept]


def explicit_form(X, alpha):
    """Error form from the predictor of each fold, which a solve gives on the explicit centred kernel.

    A held-out residual is that of the null model less what the features predict; the square of the first
    part drops out on paper, so nothing cancels.
    """
    form = np.zeros((N_TRAIN, N_TRAIN))
    for start, stop in SPANS:
        val = np.arange(start, stop)
        others = np.setdiff1d(np.arange(N_TRAIN), val)
        centred = X - X[others].mean(axis=0)
        penalised = centred[others] @ centred[others].T + alpha * np.eye(len(others))
        predictor = np.zeros((len(val), N_TRAIN))
        predictor[:, others] = np.linalg.solve(penalised, centred[others] @ centred[val].T).T
        predictor[:, others] -= predictor[:, others].mean(axis=1, keepdims=True)
        null = np.zeros((len(val), N_TRAIN))
        null[:, val] = np.eye(len(val))
        null[:, others] = -1 / len(others)
        mixed = null.T @ predictor
        form += (predictor.T @ predictor - mixed - mixed.T) / (len(SPANS) * len(val))
    return form


def both_forms(X, relative_alpha):
    vectors, values = spectrum(X)
    alpha = relative_alpha * values[-1]
    upper = np.triu(error_form(Smoothers(vectors, values).at(alpha), SPANS).astype(np.float64))
    return upper + np.triu(upper, 1).T, explicit_form(X, alpha)


@pytest.mark.parametrize("relative_alpha", RELATIVE_ALPHAS)
def test_the_form_is_that_of_fitting_each_fold_even_where_it_almost_vanishes(features, relative_alpha):
    form, explicit = both_forms(features, relative_alpha)
    # float32 resolves 1e-7 of the form, however little it differs from the null model.
    assert np.linalg.norm(form - explicit) <= 5e-6 * np.linalg.norm(explicit)
    if relative_alpha == 1e9:
        assert 0 < np.linalg.norm(form, 2) < 1e-10


@pytest.mark.parametrize("relative_alpha", RELATIVE_ALPHAS)
def test_constant_bold_has_no_error(features, relative_alpha):
    form, _ = both_forms(features, relative_alpha)
    constant = np.full(N_TRAIN, N_TRAIN**-0.5)
    assert np.linalg.norm(form @ constant) <= 5e-6 * np.linalg.norm(form)


def test_the_form_gives_the_squared_error_of_plain_fits(features):
    alpha = 0.05 * spectrum(features)[1][-1]
    form, _ = both_forms(features, 0.05)
    y = features[:, 0] + np.random.default_rng(3).standard_normal(N_TRAIN)
    error = 0.0
    for start, stop in SPANS:
        others = np.r_[:start, stop:N_TRAIN]
        X_mean, y_mean = features[others].mean(axis=0), y[others].mean()
        X = features[others] - X_mean
        weights = np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ (y[others] - y_mean))
        residual = y[start:stop] - y_mean - (features[start:stop] - X_mean) @ weights
        error += (np.mean(residual**2) - np.mean((y[start:stop] - y_mean) ** 2)) / len(SPANS)
    assert y @ form @ y == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("relative_alpha", RELATIVE_ALPHAS)
def test_solving_each_fold_gives_the_errors_of_the_explicit_form(features, relative_alpha):
    Y = np.random.default_rng(4).standard_normal((5, N_TRAIN))
    centred = features - features.mean(axis=0)
    alpha = relative_alpha * spectrum(features)[1][-1]
    explicit = np.einsum("ij,jk,ik->i", Y, explicit_form(features, alpha), Y)
    solved = solved_errors(centred @ centred.T, alpha, SPANS, Y)
    np.testing.assert_allclose(solved, explicit, rtol=1e-6)


def test_the_smoother_predicts_training_rows_from_themselves(features):
    vectors, values = spectrum(features)
    centred = features - features.mean(axis=0)
    smoothers = Smoothers(vectors, values)
    for relative_alpha in RELATIVE_ALPHAS:
        alpha = relative_alpha * values[-1]
        explicit = np.linalg.solve(centred @ centred.T + alpha * np.eye(N_TRAIN), centred @ centred.T)
        smoother = smoothers.at(alpha)
        np.testing.assert_allclose(smoother, explicit, atol=2e-7 * np.abs(explicit).max())
        np.testing.assert_array_equal(smoother, smoother.T)

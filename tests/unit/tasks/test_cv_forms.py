"""Forms of cross-validation against the scores of plain fits, and what they say of their own precision."""

from dataclasses import fields

import numpy as np
import pytest

from hpcenc.tasks.cv_forms import CvForms, from_steps, head_and_tail, make_cv_forms, score_deviation
from hpcenc.tasks.forms import quadratic_forms

N_TRAIN = 240
SPANS = ((0, 70), (70, 120), (120, 240))
EXPONENTS = np.linspace(-2, 5, 20)


@pytest.fixture(scope="module")
def spectrum():
    """Eigenvectors and eigenvalues of a kernel whose variance falls as 1 / k."""
    features = np.random.default_rng(21).standard_normal((N_TRAIN, 2 * N_TRAIN))
    features *= np.arange(1, 2 * N_TRAIN + 1) ** -0.5
    features -= features.mean(axis=0)
    values, vectors = np.linalg.eigh(features @ features.T)
    return vectors[:, 1:], values[1:]


@pytest.fixture(scope="module")
def alphas(spectrum):
    return 10.0**EXPONENTS * spectrum[1].sum() / (N_TRAIN - 1)


@pytest.fixture(scope="module")
def forms(spectrum, alphas):
    return make_cv_forms(*spectrum, alphas, SPANS)


@pytest.fixture(scope="module")
def bold(spectrum):
    """Half signal of some leading components, half noise."""
    vectors, values = spectrum
    rng = np.random.default_rng(22)
    coordinates = rng.standard_normal((300, len(values))) * np.sqrt(values)
    coordinates *= np.arange(len(values)) >= len(values) - rng.integers(1, len(values), (300, 1))
    signal = coordinates @ vectors.T
    Y = rng.standard_normal((300, N_TRAIN)) + (np.arange(300) % 2)[:, None] * signal
    Y -= Y.mean(axis=1, keepdims=True)
    return (Y / Y.std(axis=1, keepdims=True)).astype(np.float32)


def plain_costs(spectrum, alphas, Y):
    """Squared error of every alpha by eigendecomposing the kernel of each fold, float64."""
    kernel = (spectrum[0] * spectrum[1]) @ spectrum[0].T
    costs = np.zeros((len(Y), len(alphas)))
    for start, stop in SPANS:
        others = np.r_[:start, stop:N_TRAIN]
        centring = np.eye(len(others)) - 1 / len(others)
        cross = (kernel[start:stop, others] - kernel[np.ix_(others, others)].mean(axis=0)) @ centring
        values, vectors = np.linalg.eigh(centring @ kernel[np.ix_(others, others)] @ centring)
        rotated = Y[:, others].astype(np.float64) @ vectors
        intercept = Y[:, others].mean(axis=1, keepdims=True, dtype=np.float64)
        for place, alpha in enumerate(alphas):
            predicted = rotated / (values + alpha) @ (cross @ vectors).T + intercept
            costs[:, place] += np.mean((Y[:, start:stop] - predicted) ** 2, axis=1) / len(SPANS)
    return costs


def coarse_and_exact_costs(Y, forms):
    """Costs less that of the last alpha, by the coarse forms and by the exact ones."""
    small, _, _ = head_and_tail(Y, forms.head, forms.head_steps, forms.tail_steps)
    coarse = quadratic_forms(Y, forms.coarse) @ forms.coarse_weights.T
    exact = from_steps(np.concatenate([quadratic_forms(Y, step) for step in forms.steps], axis=1))
    return small + coarse, small + exact


def test_costs_are_those_of_plain_fits_and_differences_of_neighbours_are_precise(
    spectrum, alphas, forms, bold
):
    expected = plain_costs(spectrum, alphas, bold)
    _, exact = coarse_and_exact_costs(bold, forms)
    np.testing.assert_allclose(exact, expected - expected[:, -1:], atol=2e-6)
    steps, expected_steps = -np.diff(exact, axis=1), -np.diff(expected, axis=1)
    largest = np.abs(expected_steps).max(axis=0)  # from 0.3 down to 4e-4
    assert (np.abs(steps - expected_steps).max(axis=0) <= 2e-5 * largest).all()
    assert largest.min() < 1e-3


def test_the_coarse_forms_are_few_and_close(forms, bold):
    coarse, exact = coarse_and_exact_costs(bold, forms)
    assert forms.coarse_weights.shape[1] <= 6
    off = coarse - exact - (coarse - exact)[:, -1:]
    assert np.median(np.abs(off)) < 0.1 * np.median(np.ptp(exact, axis=1))


def test_the_deviation_is_that_of_the_coarse_scores_of_noise(forms):
    Y = np.random.default_rng(23).standard_normal((4000, N_TRAIN)).astype(np.float32)
    Y -= Y.mean(axis=1, keepdims=True)
    coarse, exact = coarse_and_exact_costs(Y, forms)
    _, head_squares, tail_energy = head_and_tail(Y, forms.head, forms.head_steps, forms.tail_steps)
    for alpha in (0, 7, 19):
        against = np.full(len(Y), alpha)
        deviation = score_deviation(head_squares, tail_energy, forms.cross_grams, forms.tail_gram, against)
        off = coarse - exact - (coarse - exact)[:, alpha, None]
        others = np.setdiff1d(range(20), alpha)
        spread = (off[:, others] / deviation[:, others]).std(axis=0)
        np.testing.assert_allclose(spread, 1, atol=0.1)
        np.testing.assert_allclose(deviation[:, alpha], 0, atol=1e-12)


def test_the_deviation_is_positive_however_little_the_coarse_forms_leave_over(spectrum):
    # 100 alphas are nearly mixtures of a few forms. Where rounding swallowed the rest, a coarse score would
    # pass for an exact one.
    alphas = 10.0 ** np.linspace(-2, 5, 100) * spectrum[1].sum() / (N_TRAIN - 1)
    forms = make_cv_forms(*spectrum, alphas, SPANS)
    Y = np.random.default_rng(24).standard_normal((50, N_TRAIN)).astype(np.float32)
    _, head_squares, tail_energy = head_and_tail(Y, forms.head, forms.head_steps, forms.tail_steps)
    against = np.full(len(Y), 40)
    deviation = score_deviation(head_squares, tail_energy, forms.cross_grams, forms.tail_gram, against)
    assert (np.delete(deviation, 40, axis=1) > 0).all()


def test_many_voxels_have_the_deviations_of_few(forms, bold, library, monkeypatch):
    _, head_squares, tail_energy = head_and_tail(bold, forms.head, forms.head_steps, forms.tail_steps)
    against = np.arange(len(bold)) % 20
    arrays = head_squares, tail_energy, forms.cross_grams, forms.tail_gram, against
    expected = score_deviation(*arrays)
    monkeypatch.setattr("hpcenc.tasks.cv_forms.VOXELS_AT_ONCE", 70)
    found = library.to_host(score_deviation(*map(library.to_device, arrays)))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_cheap_part_holds_the_squares_of_bold(forms, bold):
    _, head_squares, tail_energy = head_and_tail(bold, forms.head, forms.head_steps, forms.tail_steps)
    n_head = forms.head.shape[1]
    total = head_squares.sum(axis=1) + tail_energy * (N_TRAIN - 1 - n_head)
    np.testing.assert_allclose(total, (bold.astype(np.float64) ** 2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(forms.head.T @ forms.head, np.eye(n_head), atol=1e-5)


def test_costs_are_sums_of_steps_from_the_right(library):
    steps = np.array([[1.0, -2.0, 4.0], [0.5, 0.0, 0.0]])
    found = library.to_host(from_steps(library.to_device(steps)))
    np.testing.assert_array_equal(found, [[3, 2, 4, 0], [0.5, 0, 0, 0]])
    assert library.to_host(from_steps(library.to_device(steps[:, :0]))).tolist() == [[0], [0]]


def test_forms_depend_on_the_seed_alone(spectrum, alphas, forms):
    again, other = (make_cv_forms(*spectrum, alphas, SPANS, seed=seed) for seed in (0, 1))
    for name in (field.name for field in fields(CvForms)):
        np.testing.assert_array_equal(getattr(again, name), getattr(forms, name), err_msg=name)
    assert other.coarse.shape != forms.coarse.shape or (other.coarse != forms.coarse).any()
    np.testing.assert_array_equal(other.steps, forms.steps)


def test_every_smoother_is_shown_once_in_the_order_of_alphas(spectrum, alphas):
    seen = []
    make_cv_forms(*spectrum, alphas[::5], SPANS, lambda *shown: seen.append(shown))
    assert [(place, smoother.shape) for place, smoother in seen] == [
        (place, (N_TRAIN, N_TRAIN)) for place in range(4)
    ]

"""Chosen alphas against those of plain fits of every fold and alpha in float64."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from array_api_compat import array_namespace, device
from scipy.signal import lfilter

from hpcenc.tasks.cv_choice import choose_by_forms, exact_choice, last_argmin
from hpcenc.tasks.cv_forms import CvForms, make_cv_forms

EXPONENTS = np.linspace(-2, 5, 20)
FEW, PURE, NOISE = 3, 4, 5  # of every six voxels


@dataclass
class Problem:
    kernel: np.ndarray
    spans: list[tuple[int, int]]
    alphas: np.ndarray
    forms: CvForms
    bold: np.ndarray

    @property
    def costs(self):
        """Squared error of every alpha, (n_voxels, n_alphas), from the kernel of each fold."""
        Y, n_train = self.bold.astype(np.float64), len(self.kernel)
        costs = np.zeros((len(Y), len(self.alphas)))
        for start, stop in self.spans:
            others = np.r_[:start, stop:n_train]
            centring = np.eye(len(others)) - 1 / len(others)
            inside = self.kernel[np.ix_(others, others)]
            cross = (self.kernel[start:stop, others] - inside.mean(axis=0)) @ centring
            values, vectors = np.linalg.eigh(centring @ inside @ centring)
            rotated, intercept = Y[:, others] @ vectors, Y[:, others].mean(axis=1, keepdims=True)
            for place, alpha in enumerate(self.alphas):
                predicted = rotated / (np.maximum(values, 0) + alpha) @ (cross @ vectors).T + intercept
                costs[:, place] += np.mean((Y[:, start:stop] - predicted) ** 2, axis=1)
        return costs / len(self.spans)


def slow_noise(rng, n_courses, n_rows, slowest):
    """Autoregressive courses from white to slow, of unit variance."""
    courses = [
        lfilter([1], [1, -rng.uniform(0, slowest)], rng.standard_normal(n_rows)) for _ in range(n_courses)
    ]
    return np.array([course / course.std() for course in courses])


def simulated_bold(rng, vectors, values, n_voxels):
    """Signal of few to all components in noise, weak to strong; a sixth each has 1 to 3 components, no noise,
    or no signal."""
    n_rows, rank = vectors.shape
    noise = slow_noise(rng, n_voxels, n_rows, 0.95)
    signal = np.zeros_like(noise)
    for voxel in range(n_voxels):
        few, many = int(rng.integers(1, 4)), int(np.exp(rng.uniform(0, np.log(rank + 1))))
        n_components = min(rank, few if voxel % 6 == FEW else many)
        leading = slice(rank - n_components, rank)
        course = vectors[:, leading] @ (np.sqrt(values[leading]) * rng.standard_normal(n_components))
        strength = {PURE: 1e4, NOISE: 0}.get(voxel % 6, 10 ** rng.uniform(-1, 1))
        signal[voxel] = strength * course / course.std()
    return signal + noise


def make_problem(n_train, slope, exponents=EXPONENTS, n_features=None, n_voxels=600, cuts=(0.2, 0.5, 0.8)):
    """Variance of the features falls as ``k ** -slope``; unequal folds; BOLD z-scored per fold."""
    rng = np.random.default_rng([n_train, len(exponents), n_voxels])
    n_features = n_features or 2 * n_train
    features = rng.standard_normal((n_train, n_features)) * np.arange(1, n_features + 1) ** (-slope / 2)
    features -= features.mean(axis=0)
    kernel = features @ features.T
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    vectors = vectors - vectors.mean(axis=0)
    edges = [0, *(int(cut * n_train) for cut in cuts), n_train]
    spans = list(pairwise(edges))
    alphas = 10.0 ** np.asarray(exponents) * np.trace(kernel) / (n_train - 1)
    bold = simulated_bold(rng, vectors, values, n_voxels)
    for start, stop in spans:
        run = bold[:, start:stop]
        run -= run.mean(axis=1, keepdims=True)
        run /= run.std(axis=1, keepdims=True)
    forms = make_cv_forms(vectors, values, alphas, spans)
    return Problem(kernel, spans, alphas, forms, bold.astype(np.float32))


@pytest.fixture(scope="module")
def problem():
    return make_problem(150, 1.0, n_voxels=240)


PROBLEMS = {
    "flat": (300, 0.0),
    "gentle": (300, 0.6),
    "falling": (300, 1.2),
    "steep": (300, 3.0),
    "few rows": (60, 0.6),
    "many rows": (900, 1.2),
    "2 alphas": (200, 1.2, (0.0, 2.0)),
    "3 alphas": (200, 1.2, (0.0, 1.0, 2.0)),
    "60 alphas": (300, 1.2, np.linspace(-2, 5, 60)),
    "100 alphas": (300, 0.6, np.linspace(-2, 5, 100)),
    "small alphas": (200, 2.0, np.linspace(-8, -3, 20)),
    "large alphas": (200, 0.6, np.linspace(4, 11, 20)),
    "1 feature": (300, 0.0, EXPONENTS, 1),
    "2 features": (300, 0.0, EXPONENTS, 2),
    "5 features": (300, 0.0, EXPONENTS, 5),
    "30 features": (300, 0.6, EXPONENTS, 30),
    "fold of 3 rows": (300, 0.6, EXPONENTS, None, 600, (0.01, 0.5)),
    "2 folds": (300, 0.6, EXPONENTS, None, 600, (0.4,)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_chosen_alphas_are_those_of_plain_fits(name):
    problem = make_problem(*PROBLEMS[name])
    found = choose_by_forms(problem.bold, problem.forms)
    exact = exact_choice(problem.bold, problem.forms)
    costs = problem.costs
    best, voxels = last_argmin(costs), np.arange(len(costs))

    # Exact scores mix up only what float32 does not tell apart, of BOLD with unit variance.
    assert np.mean(exact == best) >= 0.995
    assert (costs[voxels, exact] - costs[voxels, best]).max() < 2e-6

    # The margin covers every voxel with noise; of those without, coarse scores may mix up a few neighbours.
    np.testing.assert_array_equal(found.alpha_index[voxels % 6 != PURE], exact[voxels % 6 != PURE])
    assert np.mean(found.alpha_index == exact) >= 0.998
    assert (costs[voxels, found.alpha_index] - costs[voxels, best]).max() < 1e-4

    if problem.alphas[0] < problem.kernel.diagonal().mean() < problem.alphas[-1]:
        assert len(np.unique(best)) >= min(6, len(problem.alphas))  # the grid is in use, not only its edge


def test_one_alpha_is_chosen_without_any_form():
    problem = make_problem(60, 1.2, (1.0,), n_voxels=12)
    found = choose_by_forms(problem.bold, problem.forms)
    assert found.alpha_index.tolist() == exact_choice(problem.bold, problem.forms).tolist() == [0] * 12
    assert found.n_exact == 0


def test_every_library_chooses_the_alphas_of_numpy_on_its_own_device(problem, library):
    arrays = {name: library.to_device(values) for name, values in vars(problem.forms).items()}
    forms, given = CvForms(**arrays), library.to_device(problem.bold)
    found = choose_by_forms(given, forms)
    expected = choose_by_forms(problem.bold, problem.forms)
    for chosen in (found.alpha_index, exact_choice(given, forms)):
        assert array_namespace(chosen) is array_namespace(given)
        assert device(chosen) == device(given)
        on_host = library.to_host(chosen)
        assert on_host.dtype == np.int64
        np.testing.assert_array_equal(on_host, expected.alpha_index)
    assert found.n_exact == pytest.approx(expected.n_exact, abs=0.02)


def test_a_block_of_one_voxel_is_chosen_as_among_others(problem):
    together = choose_by_forms(problem.bold, problem.forms).alpha_index
    alone = [choose_by_forms(problem.bold[[voxel]], problem.forms).alpha_index[0] for voxel in range(60)]
    assert alone == together[:60].tolist()


def test_the_margin_says_how_much_is_decided_by_exact_forms(problem):
    exact = exact_choice(problem.bold, problem.forms)
    blind = replace(problem.forms, coarse=problem.forms.coarse[::-1].copy())
    trusting, doubting = (replace(blind, margin=np.array(margin)) for margin in (0.0, 1e9))
    hasty = choose_by_forms(problem.bold, trusting)
    assert hasty.n_exact == 0
    assert (hasty.alpha_index != exact).mean() > 0.3
    careful = choose_by_forms(problem.bold, doubting)
    assert careful.n_exact == len(problem.alphas) - 1
    np.testing.assert_array_equal(careful.alpha_index, exact)
    assert 0 < choose_by_forms(problem.bold, problem.forms).n_exact < 3


def test_equal_scores_choose_the_larger_alpha(problem):
    silent = np.zeros((3, 150), np.float32)
    assert choose_by_forms(silent, problem.forms).alpha_index.tolist() == [19] * 3
    assert exact_choice(silent, problem.forms).tolist() == [19] * 3


def test_features_that_vary_in_one_fold_only_leave_all_scores_equal():
    # Who leaves that fold out learns nothing; who keeps it predicts nothing elsewhere.
    course = np.zeros(90)
    course[30:60] = np.sin(np.arange(30)) - np.sin(np.arange(30)).mean()
    vectors = (course / np.linalg.norm(course))[:, None]
    forms = make_cv_forms(vectors, np.array([5.0]), 10.0**EXPONENTS, [(0, 30), (30, 60), (60, 90)])
    Y = np.random.default_rng(31).standard_normal((20, 90)).astype(np.float32)
    Y -= Y.mean(axis=1, keepdims=True)
    assert all(np.isfinite(values).all() for values in vars(forms).values())
    assert np.abs(forms.steps).max() < 1e-6
    assert choose_by_forms(Y, forms).alpha_index.shape == (20,)


def test_the_last_of_equal_values_is_the_smallest(library):
    values = library.to_device(np.array([[3.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]]))
    assert library.to_host(last_argmin(values)).tolist() == [2, 3, 0]

import numpy as np
import pytest

from hpcenc.tasks.scores import circular_shift_chance, pearson_r, r2


@pytest.fixture
def courses():
    """Predicted and measured courses of 9 voxels, correlated to different degrees, smooth in time."""
    rng = np.random.default_rng(5)
    shared = np.cumsum(rng.standard_normal((163, 9)), axis=0)
    measured = shared * np.linspace(0, 1, 9) + np.cumsum(rng.standard_normal((163, 9)), axis=0)
    return (shared + 3).astype(np.float32), (measured - 40).astype(np.float32)


def test_r_is_that_of_numpy(courses, library):
    predicted, measured = courses
    expected = [np.corrcoef(predicted[:, v], measured[:, v])[0, 1] for v in range(9)]
    r = pearson_r(*map(library.to_device, courses))
    np.testing.assert_allclose(library.to_host(r), expected, rtol=1e-10)


def test_r2_is_one_minus_the_share_of_squared_errors(courses, library):
    predicted, measured = (course.astype(np.float64) for course in courses)
    errors = [np.sum((measured[:, v] - predicted[:, v]) ** 2) for v in range(9)]
    expected = 1 - np.array(errors) / (163 * measured.var(axis=0))
    np.testing.assert_allclose(library.to_host(r2(*map(library.to_device, courses))), expected, rtol=1e-10)


def test_constant_and_missing_courses_score_nan(courses, library):
    predicted, measured = (course.astype(np.float64) for course in courses)
    predicted[:, 0] = 0.1  # no binary fraction: its mean over the rows is not exactly itself
    measured[:, 1] = 0.1
    measured[4, 2] = np.nan
    given = library.to_device(predicted), library.to_device(measured)
    with np.errstate(invalid="raise"):
        r, squared = library.to_host(pearson_r(*given)), library.to_host(r2(*given))
    assert np.flatnonzero(np.isnan(r)).tolist() == [0, 1, 2]
    assert np.flatnonzero(np.isnan(squared)).tolist() == [1, 2]


@pytest.mark.parametrize("lengths", [(163,), (90, 73), (61, 102)])
def test_chance_is_the_quantile_over_a_plain_loop_of_shifts(courses, library, lengths):
    predicted, measured = courses
    edges = np.cumsum(lengths)[:-1]
    shifted_r = []
    for shift in range(30, min(lengths) - 30 + 1):
        shifted = np.concatenate([np.roll(run, shift, axis=0) for run in np.split(predicted, edges)])
        shifted_r.append([np.corrcoef(shifted[:, v], measured[:, v])[0, 1] for v in range(9)])
    for quantile in (0.999, 0.5, 1.0):
        chance, n_shifts = circular_shift_chance(*map(library.to_device, courses), lengths, quantile=quantile)
        assert n_shifts == len(shifted_r)
        np.testing.assert_allclose(
            library.to_host(chance), np.quantile(shifted_r, quantile, axis=0), atol=1e-6
        )


def test_chance_in_double_precision_is_exact(courses):
    predicted, measured = (course.astype(np.float64) for course in courses)
    chance, _ = circular_shift_chance(predicted, measured, (163,), quantile=1.0)
    shifted = [np.roll(predicted[:, 3], shift) for shift in range(30, 134)]
    assert chance[3] == pytest.approx(max(np.corrcoef(s, measured[:, 3])[0, 1] for s in shifted), abs=1e-13)


def test_short_test_runs_have_no_chance_level(courses, library):
    chance, n_shifts = circular_shift_chance(*map(library.to_device, courses), (103, 60))
    assert n_shifts == 0
    assert np.isnan(library.to_host(chance)).all()


def test_noise_beats_its_chance_level_at_the_nominal_rate():
    rng = np.random.default_rng(6)
    predicted, measured = rng.standard_normal((2, 400, 4000)).astype(np.float32)
    chance, _ = circular_shift_chance(predicted, measured, (400,), quantile=0.9)
    share = np.mean(pearson_r(predicted, measured) > chance)
    assert share == pytest.approx(0.1, abs=0.02)

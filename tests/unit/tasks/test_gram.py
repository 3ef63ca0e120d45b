import numpy as np
import pytest

from hpcenc.storage.design import delayed_design
from hpcenc.tasks.gram import base_gram, centre, window_gram

ONSETS = (0, 40, 75)
N_TRS = 120


@pytest.fixture
def features():
    return np.random.default_rng(3).standard_normal((N_TRS, 17))


@pytest.mark.parametrize("delays", [tuple(range(1, 11)), (0,), (5,), (0, 3, 34)])
def test_the_lagged_gram_is_the_gram_of_the_delayed_design(features, delays):
    design = delayed_design(features, delays, ONSETS)
    windowed = window_gram(base_gram(features), delays, ONSETS)
    np.testing.assert_allclose(windowed, design @ design.T, rtol=0, atol=1e-12 * np.trace(windowed) / N_TRS)


def test_windows_do_not_reach_into_the_run_before(features):
    delays = (1, 2, 3)
    before = window_gram(base_gram(features), delays, ONSETS)
    features[:40] += 10
    after = window_gram(base_gram(features), delays, ONSETS)
    np.testing.assert_array_equal(after[40:, 40:], before[40:, 40:])
    assert not after[40, :].any()  # the first row of a run has no stimulus behind it


def test_concatenated_feature_spaces_add_their_grams(features):
    left, right = features[:, :5], features[:, 5:]
    np.testing.assert_allclose(base_gram(left) + base_gram(right), base_gram(features), atol=1e-12)


def test_a_gram_of_float32_features_has_no_rounding_noise_of_its_own(features):
    thin = features[:, :4].astype(np.float32)
    assert base_gram(thin).dtype == np.float64
    values = np.linalg.eigvalsh(base_gram(thin))
    assert values[-5] < 1e-13 * values[-1]


@pytest.mark.parametrize("delays", [(-1,), (35,)])
def test_delays_that_fit_no_run_are_refused(features, delays):
    with pytest.raises(ValueError, match="delay"):
        window_gram(base_gram(features), delays, ONSETS)


def test_the_centred_kernel_is_that_of_centred_features(features):
    features = features + 50  # a large mean, which the correction has to cancel
    train = np.random.default_rng(4).random(N_TRS) < 0.6
    centred_features = features - features[train].mean(axis=0)
    expected = centred_features @ centred_features[train].T
    error = np.abs(centre(features @ features.T, train) - expected).max()
    assert error < 1e-10 * np.abs(expected).max()

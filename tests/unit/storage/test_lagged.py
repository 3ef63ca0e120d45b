"""Weights of delayed features against the design that is never formed."""

import numpy as np
import pytest

from hpcenc.storage.design import delayed_design
from hpcenc.storage.lagged import lag_features, primal_from_dual

ONSETS = (0, 7, 12)
N_TRS = 21

LONG_ONSETS = (0, 90, 105)
N_LONG = 200


@pytest.fixture
def features():
    return np.random.default_rng(1).standard_normal((N_TRS, 3)) * [1, 5, 0.1] + [0, 100, -2]


@pytest.mark.parametrize(
    "delays",
    [tuple(range(1, 11)), tuple(range(14)), (0, 1, 2, 3, 4), (2, 3, 5, 6, 7, 9, 10, 11, 12)],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_transform_gives_the_design_times_the_dual(delays, dtype):
    rng = np.random.default_rng(3)
    onsets = (0, 90, 90 + max(delays) + 1)  # the second run is one row longer than the longest delay
    Z = rng.standard_normal((N_LONG, 200)).astype(dtype)
    rows = rng.random(N_LONG) < 0.8
    dual = rng.standard_normal((int(rows.sum()), 700)).astype(dtype)
    assert lag_features(Z, delays, onsets, rows).to_products.shape[1] > 1  # it is cut into pieces
    expected = delayed_design(Z.astype("f8"), delays, onsets)[rows].T @ dual.astype("f8")
    given = primal_from_dual(Z, dual, delays, onsets, rows)
    assert given.dtype == dtype
    error = np.abs(given - expected).max() / np.abs(expected).max()
    assert error <= {"f4": 1e-6, "f8": 1e-14}[dtype]


def test_float32_weights_are_as_precise_as_one_product_per_delay():
    rng = np.random.default_rng(4)
    delays = tuple(range(1, 11))
    Z = rng.standard_normal((N_LONG, 50)).astype("f4")
    dual = rng.standard_normal((N_LONG, 80)).astype("f4")
    exact = delayed_design(Z.astype("f8"), delays, LONG_ONSETS).T @ dual.astype("f8")
    by_delay = delayed_design(Z, delays, LONG_ONSETS).T @ dual
    transformed = primal_from_dual(Z, dual, delays, LONG_ONSETS)
    assert np.linalg.norm(transformed - exact) <= 2 * np.linalg.norm(by_delay - exact)


def test_few_or_distant_delays_and_short_runs_use_the_design_itself(features):
    assert lag_features(features, (1,), ONSETS).products.shape == (1, 3, N_TRS)
    assert lag_features(features, (1, 2, 4), ONSETS).products.shape == (1, 9, N_TRS)


@pytest.mark.parametrize("delays", [(), (-1, 2), (1, 1), (1, 5)])
def test_delays_that_fit_no_run_are_refused(features, delays):
    with pytest.raises(ValueError, match="delay"):
        lag_features(features, delays, ONSETS)


def test_primal_weights_are_the_design_times_the_dual(features):
    rng = np.random.default_rng(2)
    train = rng.random(N_TRS) < 0.7
    dual = rng.standard_normal((int(train.sum()), 4))
    expected = delayed_design(features, (1, 2, 4), ONSETS)[train].T @ dual
    given = primal_from_dual(features, dual, (1, 2, 4), ONSETS, train)
    np.testing.assert_allclose(given, expected, rtol=1e-12, atol=1e-12)
    everywhere = np.zeros((N_TRS, 4))
    everywhere[train] = dual
    np.testing.assert_allclose(
        primal_from_dual(features, everywhere, (1, 2, 4), ONSETS), expected, rtol=1e-12, atol=1e-12
    )


def test_a_voxel_without_a_fit_has_no_weights(features):
    dual = np.ones((N_TRS, 2), dtype=np.float32)
    dual[:, 1] = np.nan
    weights = primal_from_dual(features.astype(np.float32), dual, (1,), ONSETS)
    assert weights.dtype == np.float32
    assert np.isfinite(weights[:, 0]).all()
    assert np.isnan(weights[:, 1]).all()

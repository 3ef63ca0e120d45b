import numpy as np
import pytest

from hpcenc.storage.design import (
    delayed_design,
    run_spans,
    shift_within_runs,
    standardise,
)

ONSETS = (0, 7, 12)
N_TRS = 21


@pytest.fixture
def features():
    return np.random.default_rng(1).standard_normal((N_TRS, 3)) * [1, 5, 0.1] + [0, 100, -2]


def test_statistics_come_from_the_rows_alone(features):
    rows = np.arange(N_TRS) < 12
    Z, mean, scale = standardise(features, rows)
    np.testing.assert_allclose(Z[rows].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(Z[rows].std(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(Z * scale + mean, features, rtol=1e-12)
    assert np.abs(Z[~rows].mean(axis=0)).max() > 1e-3


@pytest.mark.parametrize(("given", "found"), [("f8", "f8"), ("f4", "f4"), ("f2", "f4"), ("i4", "f4")])
def test_features_keep_double_precision_and_else_become_float32(features, given, found):
    assert standardise(features.astype(given), np.arange(N_TRS))[0].dtype == found


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_constant_column_becomes_zeros_and_scale_zero(features, dtype):
    X = np.column_stack([features, np.full(N_TRS, 0.1), np.zeros(N_TRS)]).astype(dtype)
    X[3, 3] = np.nextafter(X[3, 3], X.dtype.type(1))  # the flicker of one unit in the last place
    X[-1, 4] = 7  # varies outside the rows only
    Z, _, scale = standardise(X, np.arange(N_TRS) < 12)
    assert np.flatnonzero(scale == 0).tolist() == [3, 4]
    assert not Z[:, 3:].any()
    assert Z[:, :3].all(axis=0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_value_that_is_not_finite_is_named(features, bad):
    features[[4, 9], [2, 0]] = bad
    with pytest.raises(ValueError, match=r"row 4, column 2 \(2 of 63"):
        standardise(features, np.arange(N_TRS))


@pytest.mark.parametrize("onsets", [(1, 7), (0, 7, 7), (0, 30)])
def test_onsets_that_do_not_rise_from_zero_are_refused(onsets):
    with pytest.raises(ValueError, match="expected rising rows"):
        run_spans(onsets, N_TRS)


def test_delays_do_not_cross_run_edges(features):
    run_of_row = np.searchsorted(ONSETS, np.arange(N_TRS), side="right")
    for delay in range(5):
        shifted = shift_within_runs(features, delay, ONSETS)
        for row in range(N_TRS):
            same_run = row >= delay and run_of_row[row - delay] == run_of_row[row]
            expected = features[row - delay] if same_run else np.zeros(3)
            np.testing.assert_array_equal(shifted[row], expected)


def test_a_delay_as_long_as_the_run_leaves_zeros(features):
    assert not shift_within_runs(features, 9, ONSETS).any()


def test_columns_of_the_design_are_delay_major(features):
    design = delayed_design(features, (0, 3), ONSETS)
    assert design.shape == (N_TRS, 6)
    np.testing.assert_array_equal(design[:, :3], features)
    np.testing.assert_array_equal(design[10, 3:], features[7])
    assert not design[7:10, 3:].any()


@pytest.mark.parametrize("delays", [(), (-1, 2), (1, 1), (1, 5)])
def test_delays_that_fit_no_run_are_refused(features, delays):
    with pytest.raises(ValueError, match="delay"):
        delayed_design(features, delays, ONSETS)

from __future__ import annotations

import math

import numpy as np

from hpcenc.tasks.report.alphas import alpha_positions, alpha_row, alpha_warnings

N_VOXELS = 200


def _fit_with_alphas(make_fit, n_low, n_high, r):
    """A fit whose first vertices are on the low edge, the last ones on the high edge, in both folds."""
    alpha = np.full((2, N_VOXELS), 100.0)
    alpha[:, :n_low] = 1.0
    alpha[:, N_VOXELS - n_high :] = 1e4
    return make_fit(N_VOXELS, alpha=alpha, r=np.broadcast_to(r, (2, N_VOXELS)))


def test_alphas_are_found_on_their_own_folds_grid(make_fit):
    grid = np.array([[1.0, 10, 100], [3.0, 30, 300]])
    alpha = np.array([[1, 100, np.nan, 10], [3, 300, 30, np.nan]], np.float32)
    positions = alpha_positions(make_fit(4, alpha=alpha, alpha_grid=grid))
    np.testing.assert_array_equal(positions, [[0, 2, -1, 1], [0, 2, 1, -1]])


def test_rounded_alphas_find_their_grid_value(make_fit):
    grid = np.tile(np.logspace(-2, 5, 20) * 813.7, (2, 1))
    picks = np.tile(np.arange(20), (2, 1))
    fit = make_fit(20, alpha=np.take_along_axis(grid, picks, 1).astype(np.float32), alpha_grid=grid)
    np.testing.assert_array_equal(alpha_positions(fit), picks)


def test_noise_on_the_high_edge_is_no_warning(make_fit):
    row = alpha_row(_fit_with_alphas(make_fit, 0, 150, np.zeros(N_VOXELS)))
    assert row.n_chosen_over_0_1 == 0
    assert math.isnan(row.share_high_edge_over_0_1)
    assert alpha_warnings([row]) == ()


def test_high_edge_counts_predicted_vertices_only(make_fit):
    r = np.zeros(N_VOXELS)
    r[-100:] = 0.2
    row = alpha_row(_fit_with_alphas(make_fit, 0, 11, r))
    assert row.share_high_edge_over_0_1 == 0.11
    (warning,) = alpha_warnings([row])
    assert "up to 11.0 % of vertices with r > 0.1 chose the largest alpha, 1e+04" in warning
    assert warning.endswith("Extend the alpha grid upwards: raise the second of fit.alpha_exponents.")
    assert alpha_warnings([alpha_row(_fit_with_alphas(make_fit, 0, 10, r))]) == ()


def test_low_edge_warns_beyond_one_percent(make_fit):
    r = np.full(N_VOXELS, 0.2)
    (warning,) = alpha_warnings([alpha_row(_fit_with_alphas(make_fit, 3, 0, r))])
    assert "up to 1.5 % of vertices chose the smallest alpha, 1," in warning
    assert warning.endswith("Extend the alpha grid downwards: lower the first of fit.alpha_exponents.")
    assert alpha_warnings([alpha_row(_fit_with_alphas(make_fit, 2, 0, r))]) == ()


def test_a_grid_of_one_alpha_has_no_edges(make_fit):
    fit = make_fit(4, alpha=np.ones((2, 4)), alpha_grid=np.ones((2, 1)))
    assert math.isnan(alpha_row(fit).share_low_edge)
    assert alpha_warnings([alpha_row(fit)]) == ()

from __future__ import annotations

import numpy as np
import pytest

from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.data import ReportData, mean_over_subjects


def test_mean_r_is_nan_where_any_fold_is_undefined(make_fit):
    r = np.array([[0.1, np.nan, np.nan], [0.3, 0.5, np.nan]])
    fit = make_fit(3, r=r)
    np.testing.assert_allclose(fit.mean_r, [0.2, np.nan, np.nan])


def test_mean_over_subjects_skips_only_undefined_subjects(make_fit):
    first = make_fit(3, r=np.array([[0.1, np.nan, np.nan]] * 2))
    second = make_fit(3, r=np.array([[0.3, 0.5, np.nan]] * 2))
    np.testing.assert_allclose(mean_over_subjects([first, second]), [0.2, 0.5, np.nan])


def test_arrays_of_other_shapes_are_refused(make_fit):
    with pytest.raises(ValueError, match=r"alpha has shape \(2, 4\), expected .* \(2, 3\)"):
        make_fit(3, alpha=np.ones((2, 4)))
    with pytest.raises(ValueError, match="alpha_grid has shape"):
        make_fit(3, alpha_grid=np.ones((3, 5)))


def test_variants_are_named_only_where_a_feature_set_has_several(make_fit):
    fits = (
        make_fit(feature_set="clip", variant="clip/1"),
        make_fit(feature_set="clip", variant="clip/2"),
        make_fit(feature_set="beats", variant="beats/12"),
    )
    assert ReportData("s", fits, VoxelAxis.from_count(300)).labels == ("clip clip/1", "clip clip/2", "beats")

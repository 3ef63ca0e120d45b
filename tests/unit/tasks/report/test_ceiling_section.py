"""Noise ceilings in the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from hpcenc.storage.geometry import grayordinates_axis
from hpcenc.storage.results import Ceilings
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.ceiling_section import ceiling_rows, ceiling_section, normalised_row
from hpcenc.tasks.report.data import FitScores, ReportData

NAN = np.nan
SHARE = np.array([0.64, 0.16, -0.1, NAN])
LOW = np.array([0.5, -0.05, -0.4, NAN])


def ceilings_of(clips=("clip",), n_rows=73) -> Ceilings:
    one = {
        "share": SHARE,
        "share_low": LOW,
        "share_high": np.array([0.7, 0.3, 0.1, NAN]),
        "ceiling": np.sqrt(np.where(SHARE > 0, SHARE, NAN)),
    }
    values = {name: np.tile(row, (len(clips), 1)) for name, row in one.items()}
    attributes = {"subject": "S1", "showings": showings_of(clips, n_rows), "bold": "files"}
    return Ceilings(attributes, clips, values)


def showings_of(clips=("clip",), n_rows=73):
    return [{"group": clip, "n_showings": 4, "n_rows": n_rows} for clip in clips]


@pytest.fixture
def make_fit(make_fit) -> Callable[..., FitScores]:
    """Of the BOLD and rows of `ceilings_of`."""
    return partial(make_fit, bold="files", showings=showings_of())


def test_vertices_are_counted_by_what_is_known_of_them():
    (row,) = ceiling_rows(ceilings_of())
    assert (row.n_showings, row.n_rows) == (4, 73)
    assert (row.n_valid, row.n_reliable, row.n_without) == (3, 1, 1)
    assert row.median_share == pytest.approx(0.16)
    assert row.median_ceiling_reliable == pytest.approx(0.8)


def test_r_is_divided_on_the_same_rows_and_never_capped(make_fit):
    r = np.array([[0.9, 0.1, 0.2, 0.3], [0.9, 0.3, 0.2, 0.1]])
    fit = make_fit(4, r=np.zeros((2, 4)), more={"r_repeat": r})
    row = normalised_row(fit, ceilings_of())
    assert (row.n_reliable, row.n_above) == (1, 1)
    assert row.ratio_of_means == pytest.approx(0.9 / 0.8)
    assert row.median_ratio == pytest.approx(0.9 / 0.8)
    assert normalised_row(make_fit(4), ceilings_of()) is None
    assert normalised_row(fit, ceilings_of(("clip", "other"))) is None


def test_folds_that_do_not_test_the_clip_have_no_part(make_fit):
    r = np.array([[NAN] * 4, [0.4, 0.3, 0.2, 0.1]])
    row = normalised_row(make_fit(4, more={"r_repeat": r}), ceilings_of())
    assert (row.n_reliable, row.mean_r) == (1, pytest.approx(0.4))
    assert normalised_row(make_fit(4, more={"r_repeat": np.full((2, 4), NAN)}), ceilings_of()) is None


def test_a_clip_that_training_has_too_is_not_held_against_its_ceiling(make_fit):
    fit = make_fit(4, more={"r_repeat": np.full((2, 4), 0.4)}, clips_on_both_sides=("clip",))
    assert normalised_row(fit, ceilings_of()) is None
    section = ceiling_section(ReportData("x", (fit,), VoxelAxis.from_count(4)), {"S1": ceilings_of()})
    assert [table.name for table in section.tables] == ["ceilings"]
    assert any("where it stands in training as well" in text for text in section.paragraphs)


@pytest.mark.parametrize("change", [{"bold": "older files"}, {"showings": showings_of(n_rows=70)}])
def test_a_fit_of_other_bold_or_rows_than_the_ceiling_is_not_held_against_it(make_fit, change):
    fit = make_fit(4, more={"r_repeat": np.full((2, 4), 0.4)})
    earlier = replace(fit, feature_set="beats", **change)
    assert normalised_row(earlier, ceilings_of()) is None
    data = ReportData("x", (fit, earlier), VoxelAxis.from_count(4))
    section = ceiling_section(data, {"S1": ceilings_of()})
    assert [row.feature_set for row in section.tables[1].rows] == [fit.feature_set]
    (said,) = (text for text in section.paragraphs if "Not held against a ceiling" in text)
    assert "beats of S1. Submit them again" in said
    assert fit.feature_set not in said
    seen = replace(earlier, clips_on_both_sides=("clip",))  # which a new submit would not change
    section = ceiling_section(replace(data, scores=(fit, seen)), {"S1": ceilings_of()})
    assert not any("Not held against a ceiling" in text for text in section.paragraphs)


def test_why_no_r_is_held_against_several_ceilings_is_said(make_fit):
    fit = make_fit(4, more={"r_repeat": np.full((2, 4), 0.4)})
    data = ReportData("x", (fit,), VoxelAxis.from_count(4))
    section = ceiling_section(data, {"S1": ceilings_of(("clip", "other"))})
    assert any("over all clips that repeat, clip, other" in text for text in section.paragraphs)
    assert not any("too high a ceiling" in text for text in section.paragraphs)
    one = ceiling_section(data, {"S1": ceilings_of()})
    assert any("too high a ceiling" in text for text in one.paragraphs)
    assert not any("over all clips" in text for text in one.paragraphs)


def test_the_section_names_estimator_repeats_and_what_has_no_ceiling(make_fit):
    fit = make_fit(4, more={"r_repeat": np.full((2, 4), 0.4)})
    data = ReportData("x", (fit,), VoxelAxis.from_count(4))
    section = ceiling_section(data, {"S1": ceilings_of()}, ["short: 3 rows are left"])
    assert [table.name for table in section.tables] == ["ceilings", "over_ceiling"]
    assert "mean covariance between the showings" in section.paragraphs[0]
    assert section.paragraphs[-1] == "No ceiling of short: 3 rows are left."
    assert section.figures == ()
    assert "Intervals of 95 % are expanded percentiles" in section.paragraphs[0]
    assert not any("too narrow" in paragraph for paragraph in section.paragraphs)


def test_a_map_names_its_clip_and_counts_the_vertices_of_the_cortex_that_it_shows(make_fit):
    axis = grayordinates_axis()
    n_cortex = axis.positions("cortex").size
    found = ceilings_of()
    values = {name: np.full((1, axis.n_voxels), 0.4) for name in found.values}
    data = ReportData("x", (make_fit(axis.n_voxels),), axis)
    (figure,) = ceiling_section(data, {"S1": replace(found, values=values)}).figures
    assert "Noise ceiling · clip · S1" in figure.picture.svg.decode()
    assert n_cortex < axis.n_voxels
    assert f"n = {n_cortex:,} vertices whose explainable share is above 0" in figure.caption


def test_showings_of_few_blocks_are_said_to_pass_too_many_vertices():
    data = ReportData("x", (), VoxelAxis.from_count(4))
    for n_rows, is_short in ((15, True), (39, True), (40, False)):
        section = ceiling_section(data, {"S1": ceilings_of(n_rows=n_rows)})
        said = [paragraph for paragraph in section.paragraphs if "too narrow" in paragraph]
        assert bool(said) == is_short
        assert all(
            f"A showing of clip has only {n_rows} TRs, less than 4 blocks of 10" in text for text in said
        )

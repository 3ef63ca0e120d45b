"""Regions in the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from hpcenc.storage.regions import RegionSet
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.data import ReportData, unlike_means
from hpcenc.tasks.report.region_section import draw_bars, region_rows, region_section
from hpcenc.tasks.report.style import line_style

N_VOXELS = 12


def data_of(make_fit, subjects, **changes):
    fits = tuple(
        make_fit(
            N_VOXELS, seed=seed, subject=subject, feature_set=feature_set, variant=feature_set, **changes
        )
        for seed, (subject, feature_set) in enumerate((s, f) for s in subjects for f in ("clip", "beats"))
    )
    return ReportData("x", fits, VoxelAxis.from_count(N_VOXELS))


@pytest.fixture
def regions():
    left = np.arange(N_VOXELS) < 6
    return RegionSet("halves", {"left": left, "right": ~left, "nowhere": np.zeros(N_VOXELS, bool)}, "a test")


def test_rows_are_means_over_the_valid_vertices_of_each_region(make_fit, regions):
    r = np.arange(2 * N_VOXELS, dtype=float).reshape(2, -1) / 100
    r[0, 1] = np.nan
    fit = make_fit(N_VOXELS, r=r, chance=np.repeat([[0.03], [0.5]], N_VOXELS, axis=1))
    rows = region_rows(ReportData("x", (fit,), VoxelAxis.from_count(N_VOXELS)), [regions])
    assert [(row.regions, row.region, row.n_valid) for row in rows] == [
        ("halves", "left", 5),
        ("halves", "right", 6),
        ("halves", "nowhere", 0),
    ]
    expected = r[:, [0, 2, 3, 4, 5]].mean(axis=0)
    assert rows[0].mean_r == pytest.approx(expected.mean())
    assert rows[0].max_r == pytest.approx(expected.max())
    assert rows[0].mean_best_tenth == pytest.approx(expected.max())
    assert rows[0].share_over_0_1 == pytest.approx((expected > 0.1).mean())
    # Above their chance level are, in the left half, two of five in the first fold and none in the second.
    assert rows[0].share_over_chance == pytest.approx(0.2)
    assert np.isnan([rows[2].mean_r, rows[2].max_r, rows[0].sd_r]).all()


def test_means_over_subjects_have_their_spread_and_leave_the_average_out(make_fit, regions):
    rows = region_rows(data_of(make_fit, ("S1", "S2", "average")), [regions])
    mean = rows[0]
    own = [
        row.mean_r
        for row in rows
        if (row.region, row.feature_set) == ("left", "clip") and row.n_subjects == 1
    ]
    assert (mean.subject, mean.n_subjects, len(own)) == ("mean of 2 subjects", 2, 3)
    assert mean.mean_r == pytest.approx(np.mean(own[:2]))
    assert mean.sd_r == pytest.approx(np.std(own[:2], ddof=1))


def test_a_region_that_a_subject_has_no_valid_vertex_of_has_the_mean_of_the_others(make_fit, regions):
    data = data_of(make_fit, ("S1", "S2", "S3"))
    dropped = [replace(fit, r=np.where(regions.masks["left"], np.nan, fit.r)) for fit in data.scores[4:]]
    data = replace(data, scores=(*data.scores[:4], *dropped))
    rows = region_rows(data, [regions])
    left = next(row for row in rows if (row.region, row.feature_set) == ("left", "clip"))
    others = [fit.mean_r[regions.masks["left"]].mean() for fit in data.scores[:4:2]]
    assert (left.subject, left.n_subjects, left.n_defined, left.n_valid) == ("mean of 3 subjects", 3, 2, 6)
    assert (left.mean_r, left.sd_r) == pytest.approx((np.mean(others), np.std(others, ddof=1)))
    nowhere = next(row for row in rows if row.region == "nowhere")
    assert (nowhere.n_defined, nowhere.n_valid) == (0, 0)
    assert np.isnan([nowhere.mean_r, nowhere.sd_r]).all()
    caption = region_section(data, [regions]).figures[0].caption
    assert caption.endswith("Means of only those subjects who have a valid vertex there: left.")


def test_the_page_has_the_first_set_of_whoever_stands_for_all_and_the_file_has_everything(make_fit, regions):
    other = RegionSet("other", {"all": np.ones(N_VOXELS, bool)}, "another")
    section = region_section(data_of(make_fit, ("S1", "S2", "average")), [regions, other], "simulated BOLD")
    (table,) = section.tables
    assert {row.regions for row in table.rows} == {"halves"}
    assert {row.subject for row in table.rows} == {"mean of 2 subjects", "average"}
    assert {row.regions for row in table.in_file} == {"halves", "other"}
    assert {row.subject for row in table.in_file} == {"mean of 2 subjects", "S1", "S2", "average"}
    assert [figure.name for figure in section.figures] == [
        f"regions {name} {subject}"
        for name in ("halves", "other")
        for subject in ("mean of 2 subjects", "average")
    ]
    assert "a test" in section.paragraphs[0]
    alone = region_section(data_of(make_fit, ("S1",)), [regions])
    assert {row.subject for row in alone.tables[0].rows} == {"S1"}


def test_bars_have_the_colours_that_the_report_gives_to_feature_sets(make_fit, regions):
    rows = [row for row in region_rows(data_of(make_fit, ("S1",)), [regions]) if row.feature_set == "beats"]
    figure = draw_bars(rows, list(regions.masks), title="x", order=("clip", "beats"))
    assert figure.axes[0].patches[0].get_facecolor() == to_rgba(line_style(1)["color"])


def test_means_over_other_subjects_warn_and_sets_without_bars_are_named(make_fit, regions):
    data = data_of(make_fit, ("S1", "S2", "S3"))
    whole = region_section(data, [regions])
    assert "Without bars" not in whole.figures[0].caption
    assert list(unlike_means(data)) == []
    without = replace(data, scores=data.scores[:-1])  # beats of S3
    section = region_section(without, [regions])
    assert section.figures[0].name == "regions halves mean of 3 subjects"
    assert section.figures[0].caption.endswith("Without bars here: beats.")
    (warning,) = unlike_means(without)
    assert "not of the same ones" in warning
    assert "clip: S1, S2, S3; beats: S1, S2" in warning


def test_a_mean_has_a_dot_for_each_of_its_subjects(make_fit, regions):
    rows = region_rows(data_of(make_fit, ("S1", "S2", "average")), [regions])
    mean = [row for row in rows if row.n_subjects > 1]
    own = [row for row in rows if row.subject in ("S1", "S2")]
    (axes,) = draw_bars(mean, list(regions.masks), own, title="x").axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(dots) == 2  # of two feature sets
    for line, feature_set in zip(dots, ("clip", "beats"), strict=True):
        wanted = [row.mean_r for row in own if row.feature_set == feature_set]
        np.testing.assert_allclose(line.get_xdata(), wanted)


def test_bars_tell_the_fewest_and_the_most_vertices_of_the_sets(make_fit, regions):
    r = np.full((2, N_VOXELS), 0.2)
    fewer = r.copy()
    fewer[:, :2] = np.nan
    fits = (make_fit(N_VOXELS, r=r, feature_set="clip"), make_fit(N_VOXELS, r=fewer, feature_set="beats"))
    rows = region_rows(ReportData("x", fits, VoxelAxis.from_count(N_VOXELS)), [regions])
    (axes,) = draw_bars(rows, list(regions.masks), title="x").axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "left (4 to 6)",
        "right (6)",
        "nowhere (0)",
    ]


def test_sets_of_too_many_regions_for_bars_are_named(make_fit):
    many = RegionSet("many", {f"area {place}": np.ones(N_VOXELS, bool) for place in range(41)}, "a test")
    section = region_section(data_of(make_fit, ("S1",)), [many])
    assert section.figures == ()
    assert "many has 41 regions, too many for bars" in section.paragraphs[1]

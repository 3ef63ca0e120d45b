"""Pairs of feature sets in the report."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hpcenc.storage.geometry import grayordinates_axis
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.comparison_section import (
    MAX_PAIRS,
    comparison_section,
    draw_planes,
    pair_rows,
    shown_maps,
)
from hpcenc.tasks.report.data import ReportData
from hpcenc.tasks.report.style import new_figure

NAN = np.nan


def test_pairs_are_compared_where_both_are_defined():
    maps = {
        "a": np.array([0.4, 0.2, NAN, 0.1]),
        "b": np.array([0.2, 0.3, 0.5, 0.0]),
        "c": np.array([NAN, NAN, NAN, NAN]),
    }
    rows = pair_rows("S1", maps)
    assert [(row.first, row.second, row.n_valid) for row in rows] == [
        ("a", "b", 3),
        ("a", "c", 0),
        ("b", "c", 0),
    ]
    assert rows[0].mean_difference == pytest.approx(0.2 / 3)
    assert rows[0].share_first_better == pytest.approx(2 / 3)
    assert rows[0].correlation_of_maps == pytest.approx(np.corrcoef([0.4, 0.2, 0.1], [0.2, 0.3, 0.0])[0, 1])
    assert np.isnan([rows[1].mean_difference, rows[1].correlation_of_maps]).all()


def test_the_average_stands_for_all_then_the_mean_over_subjects(make_fit):
    def fits(*subjects):
        return tuple(
            make_fit(20, seed=seed, subject=subject, feature_set=name, variant=name)
            for seed, (subject, name) in enumerate((s, f) for s in subjects for f in ("clip", "beats"))
        )

    axis = VoxelAxis.from_count(20)
    assert shown_maps(ReportData("x", fits("S1", "S2", "average"), axis))[0] == "average"
    subject, maps = shown_maps(ReportData("x", fits("S1", "S2"), axis))
    assert subject == "mean of 2 subjects"
    both = [fit.mean_r for fit in fits("S1", "S2") if fit.feature_set == "clip"]
    np.testing.assert_allclose(maps["clip"], np.mean(both, axis=0))
    assert shown_maps(ReportData("x", fits("S1"), axis))[0] == "S1"


def data_of(make_fit, subjects_of):
    """Fits of some feature sets, each in subjects of its own."""
    fits = tuple(
        make_fit(20, seed=seed, subject=subject, feature_set=name, variant=name)
        for seed, (name, subject) in enumerate(
            (f, s) for f, subjects in subjects_of.items() for s in subjects
        )
    )
    return ReportData("x", fits, VoxelAxis.from_count(20))


def test_means_that_are_compared_are_over_the_same_subjects(make_fit):
    data = data_of(make_fit, {"clip": ("S1", "S2", "S3"), "beats": ("S1", "S3"), "cavmae": ("S2",)})
    subject, maps = shown_maps(data)
    assert subject == "mean of 2 subjects"
    assert list(maps) == ["clip", "beats"]
    for name, mean in maps.items():
        r = [fit.mean_r for fit in data.scores if fit.feature_set == name and fit.subject != "S2"]
        np.testing.assert_allclose(mean, np.mean(r, axis=0))
    (paragraph,) = comparison_section(data).paragraphs
    assert "over the subjects who have all of these sets" in paragraph
    assert "Not compared, without an r here: cavmae." in paragraph


def test_sets_without_two_subjects_in_common_are_compared_in_the_subject_with_most(make_fit):
    data = data_of(make_fit, {"clip": ("S1", "S2"), "beats": ("S2",)})
    subject, maps = shown_maps(data)
    assert (subject, list(maps)) == ("S2", ["clip", "beats"])
    assert comparison_section(data).tables[0].rows[0].n_valid == 20


def test_sets_that_no_subject_has_both_of_are_not_compared(make_fit):
    section = comparison_section(data_of(make_fit, {"clip": ("S1",), "beats": ("S2",)}))
    assert "No subject has two feature sets" in section.paragraphs[0]
    assert section.figures == section.tables == ()


def test_maps_of_differences_and_of_the_best_hundredth_are_painted_on_the_cortex(cortex, make_fit):
    rng = np.random.default_rng(0)
    r = rng.normal(0.1, 0.1, (2, cortex.n_voxels))
    fits = tuple(
        make_fit(cortex.n_voxels, r=r + shift, feature_set=name, variant=name)
        for name, shift in (("clip", 0.0), ("beats", 0.05))
    )
    section = comparison_section(ReportData("x", fits, cortex), "simulated BOLD")
    assert [figure.name for figure in section.figures] == [
        "r against r S1",
        "maps side by side S1",
        "difference clip beats S1",
        "best hundredth clip S1",
        "best hundredth beats S1",
    ]
    assert "in the same colours, 0.00 to 0.4" in section.figures[1].caption
    drawn = section.figures[1].picture.svg.decode()
    assert drawn.count("n = 59,412 vertices") == 2
    assert "n = 59,412 vertices" in section.figures[2].caption
    assert "n = 595 of 59,412" in section.figures[3].caption
    assert [view.name for view in section.maps] == [
        "clip less beats · S1",
        "best 1 % · clip · S1",
        "best 1 % · beats · S1",
    ]
    assert [view.whole_faces for view in section.maps] == [True, False, False]
    (table,) = section.tables
    assert table.rows[0].mean_difference == pytest.approx(-0.05)


def test_one_bar_of_colours_holds_for_all_planes():
    rng = np.random.default_rng(0)
    maps = {"a": rng.normal(size=4000), "b": rng.normal(size=4000), "c": np.full(4000, NAN)}
    maps["c"][:50] = 0.1
    figure = draw_planes(maps, [("a", "b"), ("a", "c"), ("b", "c")], title="x")
    meshes = [mesh for panel in figure.axes for mesh in panel.collections if hasattr(mesh, "norm")]
    limits = {(mesh.norm.vmin, mesh.norm.vmax) for mesh in meshes[:3]}
    assert len(limits) == 1
    assert limits.pop()[1] == max(mesh.get_array().max() for mesh in meshes[:3])


@pytest.mark.parametrize("n_pairs", [1, 2, 3, 6])
def test_names_of_planes_lie_beside_them_and_within_the_figure(n_pairs):
    labels = ("beats[untrained, seed 0]", "beats+clip[untrained, seed 0]", "cavmae[untrained, seed 0]", "lab")
    rng = np.random.default_rng(0)
    maps = {label: rng.normal(0.2, 0.25, 2000).clip(-0.4, 0.97) for label in labels}
    figure = draw_planes(maps, list(combinations(labels, 2))[:n_pairs], title="x")
    figure.draw_without_rendering()
    planes = [panel for panel in figure.axes if panel.get_visible() and panel.get_xlabel()]
    assert len(planes) == n_pairs
    assert planes[0].get_window_extent().x0 < figure.bbox.width / 6, "the first one is at the left"
    names = [name.get_window_extent() for panel in planes for name in (panel.xaxis.label, panel.yaxis.label)]
    for name in names:
        assert figure.bbox.x0 <= name.x0
        assert figure.bbox.y0 <= name.y0
        assert name.x1 <= figure.bbox.x1
        assert not any(name.overlaps(panel.get_window_extent()) for panel in planes)


@pytest.fixture
def painted(monkeypatch):
    """Maps that would have been painted, which takes seconds each: values, and options by name."""
    maps = []

    def paint(values, axis, **options):
        maps.append((values, options))
        return new_figure(1)

    monkeypatch.setattr("hpcenc.tasks.report.comparison_section.paint_cortex", paint)
    monkeypatch.setattr(
        "hpcenc.tasks.report.comparison_section.paint_rows", lambda *a, **options: new_figure(1)
    )
    return maps


def test_labels_keep_what_tells_them_apart(cortex, make_fit, painted):
    fits = tuple(
        make_fit(cortex.n_voxels, seed=seed, feature_set=name, variant=name)
        for seed, name in enumerate(("clip", "clip[untrained, seed 0]"))
    )
    section = comparison_section(ReportData("x", fits, cortex))
    assert "[untrained, seed 0]" in section.figures[0].picture.svg.decode()
    assert painted[0][1]["title"] == "clip less clip[untrained, seed 0] · S1"
    assert section.maps[0].name == "clip less clip[untrained, seed 0] · S1"


def test_the_best_hundredth_is_of_the_cortex_that_the_map_shows(make_fit, painted):
    axis = grayordinates_axis()
    r = np.full((2, axis.n_voxels), 0.1)
    cortex = axis.positions("cortex")
    r[:, cortex] += np.linspace(0, 0.1, len(cortex))
    r[:, len(cortex) :] = 0.9
    fits = tuple(make_fit(axis.n_voxels, r=r, feature_set=name, variant=name) for name in ("clip", "beats"))
    section = comparison_section(ReportData("x", fits, axis))
    assert f"n = {len(cortex):,} vertices" in section.figures[2].caption
    assert f"n = 595 of {len(cortex):,}" in section.figures[3].caption
    values, options = painted[1]
    assert np.isfinite(values[cortex]).sum() == 595
    assert options["limits"][1] == pytest.approx(0.2)


def test_maps_that_are_left_out_are_said_to_be(cortex, make_fit, painted):
    names = [f"lab{place}" for place in range(MAX_PAIRS + 1)]
    fits = tuple(make_fit(cortex.n_voxels, feature_set=name, variant=name) for name in names)
    (paragraph,) = comparison_section(ReportData("x", fits, cortex)).paragraphs
    assert "Maps of r and of the best hundredth are of the first 6 of 7 feature sets" in paragraph
    assert len(painted) == 2 * MAX_PAIRS

"""Sections on sweeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.analyses import audio_windows
from hpcenc.tasks.report.band_table import band_row
from hpcenc.tasks.report.sections import style_places
from hpcenc.tasks.report.style import line_style
from hpcenc.tasks.report.sweep_figures import draw_choices, draw_curves
from hpcenc.tasks.report.sweep_sections import sweep_section
from hpcenc.tasks.report.sweeps import ALL_VERTICES, Sweep
from hpcenc.tasks.report.weight_norms import NormRow, draw_weight_norms, norm_rows

N_VOXELS = 40


def sweep_of(kind="delays", subject="S1", feature_set="clip", best=None, **changes):
    rng = np.random.default_rng(0)
    values = {"delays": (0.0, 3.0, 6.0), "layers": (1.0, 2.0, 3.0), "bands": (10.0, 1.0, 0.1)}[kind]
    curve = np.array([0.1, 0.3, 0.2])
    nested = np.full(N_VOXELS, 0.4)
    made = Sweep(
        kind=kind,
        feature_set=feature_set,
        layer="",
        several=False,
        subject=subject,
        labels=tuple(f"{kind} {value:g}" for value in values),
        values=values,
        folds=("A",),
        operators=("operators/a",),
        curves={ALL_VERTICES: curve, "left": curve / 2},
        n_valid={ALL_VERTICES: N_VOXELS, "left": 12},
        n_with_chance=N_VOXELS,
        best=rng.integers(-1, 3, N_VOXELS) if best is None else best,
        nested_r=nested,
        band_r={"beats/12": 0.25 * nested, "clip/12": 0.75 * nested} if kind == "bands" else {},
        fixed=1,
        fixed_r=np.full(N_VOXELS, 0.3),
        blocks_done=1,
        blocks=1,
    )
    return replace(made, **changes)


@pytest.mark.parametrize("kind", ["delays", "layers", "bands"])
def test_a_section_has_curves_choices_and_what_they_score(kind, make_fit):
    feature_set = "beats+clip" if kind == "bands" else "clip"
    sweeps = [sweep_of(kind, subject, feature_set) for subject in ("S1", "S2", "average")]
    fits = [make_fit(N_VOXELS, r=np.full((2, N_VOXELS), 0.35), subject="S1", feature_set=feature_set)]
    section = sweep_section(kind, sweeps, fits, VoxelAxis.from_count(N_VOXELS), remark="simulated BOLD")
    tables = {table.name: table for table in section.tables}
    choices = tables[f"{kind}_choices"].rows
    assert [row.subject for row in choices] == ["S1", "S2", "average"]
    assert choices[0].window_mean_r == pytest.approx(0.35)
    assert choices[0].nested_mean_r == pytest.approx(0.4)
    assert np.isnan(choices[1].window_mean_r)
    curves = tables[f"{kind}_curves"]
    assert [row.subject for row in curves.rows] == 3 * ["average"]
    assert len(curves.in_file) == 3 * 3 * 2
    assert [figure.name for figure in section.figures] == [f"{kind} curves", f"{kind} chosen average"]
    assert "n = 2" in section.figures[0].caption


def test_maps_are_of_the_vertices_that_have_a_best_variant(cortex):
    best = np.full(cortex.n_voxels, -1)
    best[:100] = 1
    flat = np.full(cortex.n_voxels, 0.4)
    one = sweep_of(best=best, nested_r=flat, fixed_r=flat)
    none = replace(one, feature_set="beats", best=np.full(cortex.n_voxels, -1))
    section = sweep_section("delays", [one, none], [], cortex)
    (painted,) = [figure for figure in section.figures if "map" in figure.name]
    assert painted.name == "delays map clip S1"
    assert "n = 100 vertices" in painted.caption
    assert "median 3" in painted.alternative


def test_bands_stand_beside_each_set_alone_and_their_sum():
    label = "beats+clip[untrained, seed 0]"
    main = {
        ("beats[untrained, seed 0]", "beats/12", "S1"): np.full(N_VOXELS, 0.1),
        ("clip[untrained, seed 0]", "clip/12", "S1"): np.full(N_VOXELS, 0.38),
        ("clip[untrained, seed 0]", "clip/6", "S1"): np.full(N_VOXELS, 0.2),
        (label, "beats/12+clip/12", "S1"): np.full(N_VOXELS, 0.33),
    }
    main[label, "beats/12+clip/12", "S1"][0] = np.nan
    row = band_row(sweep_of("bands", feature_set=label, layer="beats/12+clip/12"), main)
    assert (row.n_valid, row.first, row.second) == (N_VOXELS - 1, "beats/12", "clip/12")
    found = (
        row.first_alone,
        row.second_alone,
        row.one_penalty,
        row.two_penalties,
        row.first_adds,
        row.second_adds,
    )
    assert found == pytest.approx((0.1, 0.38, 0.33, 0.4, 0.1, 0.3))
    assert np.isnan(band_row(sweep_of("bands", feature_set="beats+clip"), main).first_alone)
    other = band_row(sweep_of("bands", feature_set=label, layer="beats/6+clip/6", several=True), main)
    assert (other.feature_set, other.first, other.second) == (f"{label} beats/6+clip/6", "beats/6", "clip/6")
    assert other.second_alone == pytest.approx(0.2)
    assert np.isnan([other.first_alone, other.one_penalty]).all()


def test_feature_files_stand_alone_under_their_plain_name_in_a_sum_with_an_untrained_model():
    label = "lab+clip[untrained, seed 0]"
    main = {
        ("lab", "lab/values", "S1"): np.full(N_VOXELS, 0.1),
        ("clip[untrained, seed 0]", "clip/12", "S1"): np.full(N_VOXELS, 0.38),
    }
    row = band_row(sweep_of("bands", feature_set=label, layer="lab/values+clip/12"), main)
    assert (row.first_alone, row.second_alone) == pytest.approx((0.1, 0.38))


def test_norms_are_means_over_vertices_above_chance_in_the_last_fold_that_has_them(make_fit):
    r = np.array([[0.5, 0.0, 0.5], [0.5, 0.0, 0.5]])
    norms = {
        "weight_norm:1": np.array([[9.0, 9.0, 9.0], [1.0, 5.0, 3.0]]),
        "weight_norm:4": np.array([[np.nan] * 3, [2.0, 5.0, 4.0]]),
    }
    rows = norm_rows([make_fit(3, r=r, more=norms)], {"right": np.array([False, False, True])})
    assert [(row.region, row.delay, row.n_above) for row in rows] == [
        (ALL_VERTICES, 1, 2),
        (ALL_VERTICES, 4, 2),
        ("right", 1, 1),
        ("right", 4, 1),
    ]
    np.testing.assert_allclose([row.mean_norm for row in rows], [2, 3, 3, 4])
    np.testing.assert_allclose([row.share for row in rows], [2 / 5, 3 / 5, 3 / 7, 4 / 7])


def test_norms_are_drawn_where_they_were_kept(make_fit):
    norms = {f"weight_norm:{delay}": np.full((2, N_VOXELS), float(delay)) for delay in (1, 2)}
    fit = make_fit(N_VOXELS, r=np.full((2, N_VOXELS), 0.5), feature_set="clip", more=norms)
    section = sweep_section("delays", [sweep_of()], [fit], VoxelAxis.from_count(N_VOXELS))
    assert section.figures[-1].name == "weight norms S1"
    assert "2 TRs" in section.figures[-1].alternative
    assert section.tables[-1].name == "weight_norms"
    without = sweep_section("delays", [sweep_of()], [replace(fit, more={})], VoxelAxis.from_count(N_VOXELS))
    assert any(text.startswith("No norms of the weights by delay") for text in without.paragraphs)
    assert all(figure.name != "weight norms S1" for figure in without.figures)
    other = replace(fit, variant="clip/6", more={"weight_norm:1": norms["weight_norm:2"]})
    section = sweep_section("delays", [sweep_of()], [fit, other], VoxelAxis.from_count(N_VOXELS))
    assert "clip clip/embedding: 2 TRs; clip clip/6: 1 TRs" in section.figures[-1].alternative


def test_norms_are_drawn_for_each_region_with_its_vertices(make_fit):
    norms = {f"weight_norm:{delay}": np.full((2, N_VOXELS), float(delay)) for delay in (1, 2)}
    fit = make_fit(N_VOXELS, r=np.full((2, N_VOXELS), 0.5), feature_set="clip", more=norms)
    regions = {"left": np.arange(N_VOXELS) < 12}
    section = sweep_section("delays", [sweep_of()], [fit], VoxelAxis.from_count(N_VOXELS), regions=regions)
    svg = section.figures[-1].picture.svg.decode()
    assert f"{ALL_VERTICES} (n = {N_VOXELS} vertices)" in svg
    assert "left (n = 12 vertices)" in svg
    assert {row.region for row in section.tables[-1].in_file} == {ALL_VERTICES, "left"}


def test_more_regions_than_a_figure_can_hold_are_in_the_files_and_said_to_be():
    curve = np.array([0.1, 0.3, 0.2])
    regions = [ALL_VERTICES, *(f"region {place}" for place in range(40))]
    sweep = sweep_of(curves=dict.fromkeys(regions, curve), n_valid=dict.fromkeys(regions, 9))
    section = sweep_section("delays", [sweep], [], VoxelAxis.from_count(N_VOXELS))
    svg = section.figures[0].picture.svg.decode()
    assert "region 10 (n = 9 vertices)" in svg
    assert "region 11 (" not in svg
    assert "of all vertices and of the first 11 of 40 regions" in section.paragraphs[-1]


def test_regions_without_a_valid_vertex_have_no_panel_and_are_named(make_fit):
    curve = np.array([0.1, 0.3, 0.2])
    curves = {ALL_VERTICES: curve, "left": np.full(3, np.nan), "right": curve}
    sweep = sweep_of(curves=curves, n_valid={ALL_VERTICES: 9, "left": 0, "right": 9})
    norms = {f"weight_norm:{delay}": np.full((2, N_VOXELS), float(delay)) for delay in (1, 2)}
    fit = make_fit(N_VOXELS, r=np.full((2, N_VOXELS), 0.5), feature_set="clip", more=norms)
    regions = {"left": np.zeros(N_VOXELS, bool), "right": np.ones(N_VOXELS, bool)}
    section = sweep_section("delays", [sweep], [fit], VoxelAxis.from_count(N_VOXELS), regions=regions)
    for figure in (section.figures[0], section.figures[-1]):
        svg = figure.picture.svg.decode()
        assert "right (n =" in svg
        assert "left (n =" not in svg
    assert "Without a valid vertex, and so without a curve: left." in section.paragraphs


def test_regions_whose_mean_is_of_some_subjects_only_are_named():
    curve, none = np.array([0.1, 0.2, 0.3]), np.full(3, np.nan)
    sweeps = [
        sweep_of(
            subject=subject,
            curves={ALL_VERTICES: curve, "left": left, "right": curve},
            n_valid={ALL_VERTICES: 9, "left": 3 * bool(np.isfinite(left).any()), "right": 6},
        )
        for subject, left in (("S1", curve), ("S2", none), ("S3", curve + 0.2))
    ]
    section = sweep_section("delays", sweeps, [], VoxelAxis.from_count(N_VOXELS))
    assert "Means of only those subjects who have a valid vertex there: left." in section.figures[0].caption
    (_, left, *_) = draw_curves({"clip": sweeps}, [ALL_VERTICES, "left"], title="x").axes
    (line,) = (line for line in left.lines if line.get_marker() == "o")
    np.testing.assert_allclose(line.get_ydata(), curve + 0.1)


def test_curves_say_how_the_audio_windows_lie_and_what_their_bands_are(make_fit):
    sweeps = [sweep_of(subject=subject) for subject in ("S1", "S2")]
    window = "Audio windows are causal, pooled over the TR."
    section = sweep_section("delays", sweeps, [], VoxelAxis.from_count(N_VOXELS), window=window)
    assert window in section.figures[0].caption
    assert "mean over subjects and standard deviation between them (n = 2" in section.figures[0].caption
    (panel, _) = draw_curves({"clip": sweeps}, [ALL_VERTICES, "left"], title="x").axes
    assert len(panel.collections) == 1  # the band


def test_a_vertex_without_r_in_the_main_fit_is_left_out_of_what_is_compared(make_fit):
    r = np.full((2, N_VOXELS), 0.35)
    r[0, 3] = np.nan
    fit = make_fit(N_VOXELS, r=r, subject="S1", feature_set="clip")
    row = sweep_section("delays", [sweep_of()], [fit], VoxelAxis.from_count(N_VOXELS)).tables[0].rows[0]
    assert row.n_valid == N_VOXELS - 1
    assert row.window_mean_r == pytest.approx(0.35)


def test_norms_that_no_vertex_has_are_largest_nowhere(make_fit):
    norms = {f"weight_norm:{delay}": np.full((2, N_VOXELS), float(delay)) for delay in (1, 2)}
    fit = make_fit(N_VOXELS, chance=np.full((2, N_VOXELS), np.nan), feature_set="clip", more=norms)
    section = sweep_section("delays", [sweep_of()], [fit], VoxelAxis.from_count(N_VOXELS))
    assert "largest over all vertices: none" in section.figures[-1].alternative


def test_without_a_chance_level_no_vertex_is_said_to_be_above_it():
    sweep = sweep_of(best=np.full(N_VOXELS, -1), n_with_chance=0)
    section = sweep_section("delays", [sweep], [], VoxelAxis.from_count(N_VOXELS))
    assert "clip: no chance level" in section.figures[1].alternative
    assert np.isnan(section.tables[0].rows[0].share_with_best)


def test_peaks_are_those_of_the_subject_who_is_named():
    peak_of = {"average": np.array([0.3, 0.2, 0.1]), "S1": np.array([0.1, 0.2, 0.3])}
    sweeps = [
        sweep_of(subject=subject, curves={ALL_VERTICES: curve}, n_valid={ALL_VERTICES: 9})
        for subject, curve in peak_of.items()
    ]
    section = sweep_section("delays", sweeps, [], VoxelAxis.from_count(N_VOXELS))
    assert "(average): clip: delays 0." in section.figures[0].alternative


def test_a_sweep_stands_beside_the_main_fit_of_its_own_layer(make_fit):
    fits = [
        make_fit(N_VOXELS, r=np.full((2, N_VOXELS), r), feature_set="clip", variant=layer)
        for layer, r in (("clip/6", 0.1), ("clip/12", 0.2))
    ]
    delays = [sweep_of(layer=layer, several=True) for layer in ("clip/6", "clip/12", "clip/9")]
    axis = VoxelAxis.from_count(N_VOXELS)
    section = sweep_section("delays", delays, fits, axis)
    rows = section.tables[0].rows
    assert [row.feature_set for row in rows] == ["clip clip/6", "clip clip/12", "clip clip/9"]
    assert [row.window_mean_r for row in rows] == pytest.approx([0.1, 0.2, np.nan], nan_ok=True)
    assert len({label.split(": ")[0] for label in section.figures[0].alternative.split("; ")}) == 3
    layers = [sweep_of("layers")]
    assert np.isnan(sweep_section("layers", layers, fits, axis).tables[0].rows[0].window_mean_r)
    (row,) = sweep_section("layers", layers, fits[1:], axis).tables[0].rows
    assert row.window_mean_r == pytest.approx(0.2)


@pytest.mark.parametrize("values", [(0.0, 6.0), (1.0, 4.0, 8.0)])
def test_subjects_with_other_variants_have_no_part_in_a_mean_and_are_named(values):
    n = len(values)
    other = sweep_of(
        subject="S2",
        labels=tuple(f"delays {value:g}" for value in values),
        values=values,
        curves={ALL_VERTICES: np.full(n, 0.9), "left": np.full(n, 0.9)},
        best=np.zeros(N_VOXELS, dtype=int),
    )
    same = [sweep_of(subject=subject) for subject in ("S1", "S3")]
    section = sweep_section("delays", [other, *same], [], VoxelAxis.from_count(N_VOXELS))
    caption = section.figures[0].caption
    assert "(n = 2, complete ones). Not drawn, for their variants are others" in caption
    assert "clip of S2." in caption
    assert {row.subject for row in section.tables[1].in_file} == {"S1", "S2", "S3"}
    figure = draw_curves({"clip": [other, *same]}, [ALL_VERTICES], title="x")
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label().startswith("clip")]
    np.testing.assert_allclose(line.get_xdata(), same[0].values)
    np.testing.assert_allclose(line.get_ydata(), same[0].curves[ALL_VERTICES])


def test_captions_of_curves_name_the_lines_that_are_there():
    def caption(*sweeps):
        return sweep_section("delays", sweeps, [], VoxelAxis.from_count(N_VOXELS)).figures[0].caption

    average = caption(sweep_of(subject="average"))
    assert average.endswith("single delay. Dashed: the average's BOLD.")
    one = caption(sweep_of(), sweep_of(subject="average"))
    assert one.endswith("Lines: the one subject whose sweep is complete; dashed: the average's BOLD.")
    none = caption(sweep_of(blocks_done=0))
    assert none.endswith("No line: no subject's sweep is complete.")
    several = caption(sweep_of(), sweep_of(subject="S2"), sweep_of(feature_set="beats"))
    assert "n = 1 to 2, complete ones" in several


def test_a_ratio_is_of_scalings_and_says_which_is_the_smaller_penalty(cortex):
    best = np.zeros(cortex.n_voxels, dtype=int)
    flat = np.full(cortex.n_voxels, 0.4)
    sweep = sweep_of(
        "bands",
        feature_set="beats+clip",
        best=best,
        nested_r=flat,
        fixed_r=flat,
        band_r={"beats/12": flat / 2, "clip/12": flat / 2},
    )
    section = sweep_section("bands", [sweep], [], cortex)
    texts = [*section.paragraphs, section.maps[0].name, section.maps[0].unit]
    texts += [table.title for table in section.tables]
    texts += [text for figure in section.figures for text in (figure.caption, figure.alternative)]
    assert not any("ratio of penalties" in text for text in texts)
    assert "a larger scaling is a smaller penalty" in section.paragraphs[0]
    assert len(section.figures) == 3
    captions = [figure.caption for figure in section.figures]
    titles = [table.title for table in section.tables if table.name != "bands_compared"]
    for text in (*captions, *titles):
        assert "ratio of scalings (first : second; a larger scaling is a smaller penalty)" in text
    assert section.maps[0].unit == "log10 of the best ratio of scalings (first : second)"
    assert section.maps[0].values[0] == 1


def test_captions_say_what_the_axes_show(make_fit):
    norms = {f"weight_norm:{delay}": np.full((2, N_VOXELS), float(delay)) for delay in (1, 2)}
    fit = make_fit(N_VOXELS, r=np.full((2, N_VOXELS), 0.5), feature_set="clip", more=norms)
    section = sweep_section("delays", [sweep_of()], [fit], VoxelAxis.from_count(N_VOXELS))
    _, choices, weights = section.figures
    assert choices.caption.startswith("Share (%) of the vertices of S1")
    assert "Weights are those of z-scored BOLD on z-scored features" in weights.caption


def test_choices_rise_along_their_axis_as_the_curves_do():
    best = np.zeros(N_VOXELS, dtype=int)  # the first ratio, which is the largest
    (panel,) = draw_choices({"clip": sweep_of("bands", best=best)}, title="x").axes
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0.1", "1", "10"]
    assert [bar.get_height() for bar in panel.patches] == [0, 0, 100]


def test_a_feature_set_has_the_same_colour_in_every_figure():
    order = ("beats", "clip clip/6", "clip clip/12", "beats+clip")
    for labels in (("beats+clip",), ("clip clip/12", "beats"), ("clip",), ("other", "beats+clip", "another")):
        sweeps = {label: sweep_of(feature_set=label, best=np.zeros(N_VOXELS, dtype=int)) for label in labels}
        norms = [
            NormRow(label, "S1", ALL_VERTICES, delay, 9, 1.0, 0.5) for label in labels for delay in (1, 2)
        ]
        wanted = [line_style(place)["color"] for place in style_places(labels, order).values()]
        curves = draw_curves(
            {label: [each] for label, each in sweeps.items()}, ["left"], title="x", order=order
        )
        choices = draw_choices(sweeps, title="x", order=order)
        weights = draw_weight_norms(norms, title="x", order=order)
        assert [line.get_color() for line in curves.axes[0].get_lines()[1:]] == wanted
        bars = [panel.patches[0].get_facecolor() for panel in choices.axes if panel.patches]
        assert bars == [to_rgba(color) for color in wanted]
        assert [line.get_color() for line in weights.axes[0].get_lines()] == wanted
    assert style_places(("beats+clip", "clip", "other"), order) == {"beats+clip": 3, "clip": 1, "other": 4}
    assert style_places(("other", "beats", "another"), order) == {"other": 4, "beats": 0, "another": 5}


def test_the_colours_of_a_section_are_those_of_the_report(make_fit):
    norms = {f"weight_norm:{delay}": np.full((2, N_VOXELS), float(delay)) for delay in (1, 2)}
    fit = make_fit(N_VOXELS, r=np.full((2, N_VOXELS), 0.5), feature_set="clip", more=norms)
    axis = VoxelAxis.from_count(N_VOXELS)
    for figure in sweep_section("delays", [sweep_of()], [fit], axis, order=("beats", "clip")).figures:
        svg = figure.picture.svg.decode().lower()
        assert line_style(1)["color"].lower() in svg
        assert line_style(0)["color"].lower() not in svg


def test_a_main_fit_on_other_rows_is_said_to_be_no_measure_of_the_sweep(make_fit):
    axis = VoxelAxis.from_count(N_VOXELS)
    sweeps = [sweep_of(subject=subject) for subject in ("S1", "S2")]
    fits = [make_fit(N_VOXELS, feature_set="clip")]
    same, other = (sweep_section("delays", sweeps, fits, axis, other_rows=rows) for rows in ((), sweeps))
    assert same.paragraphs[-1] == "The main fits are scored on the same rows."
    assert "scored on other rows than the sweep in clip of S1, S2: its window reaches" in other.paragraphs[-1]
    layers = sweep_section("layers", [sweep_of("layers")], fits, axis, other_rows=[sweep_of("layers")])
    assert "window reaches" not in layers.paragraphs[-1]
    assert "same rows." not in sweep_section("layers", [sweep_of("layers")], [], axis).paragraphs[-1]


def test_audio_windows_are_those_of_the_features_that_were_fitted(tmp_path):
    store = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(N_VOXELS)})

    def add(group, **attributes):
        store.ensure_group(GroupSpec(group, "f" * 64, {}, 1, attributes))

    add("features/beats/main/a", spec={"model": "beats", "align": "centred", "pool": "tr"})
    add("features/clip/main/a", spec={"model": "clip"})
    add("features/cavmae/main/a", spec={"model": "cavmae", "align": "causal", "pool": "window"})
    add("features/lab/files/a")
    for name, arrays in {
        "beats": ["beats/main/a/12"],
        "clip": ["clip/main/a/12"],
        "cavmae": ["cavmae/main/a/audio", "cavmae/main/a/visual"],
        "cavmae-visual": ["cavmae/main/a/visual"],
        "lab": ["lab/files/a/values"],
    }.items():
        space = {"arrays": [[f"features/{array}" for array in arrays]]}
        add(f"delays/{name}/s1", variants=[{"spaces": [space]}])
    assert audio_windows(store, [f"delays/{name}/s1" for name in ("clip", "cavmae-visual", "lab")]) == ""
    assert audio_windows(store, ["delays/cavmae/s1"]) == "Audio windows are causal, pooled over the window."
    said = audio_windows(store, ["delays/beats/s1", "delays/clip/s1"])
    assert said == "Audio windows are centred, pooled over the TR."

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image

from hpcenc.tasks.report.figures import (
    draw_alpha_histograms,
    draw_fold_scores,
    draw_r_histograms,
    draw_time_course,
)
from hpcenc.tasks.report.style import png_bytes


def _ink(figure):
    """Share of pixels that are not white."""
    pixels = np.asarray(Image.open(io.BytesIO(png_bytes(figure))).convert("L"))
    return (pixels < 250).mean()


def _texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def _drawn_numbers(axes):
    """Boxes of the numbers along an x axis, without those of ticks beyond its ends."""
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    return [text.get_window_extent() for place, text in ticks if low <= place <= high]


def _line(axes, label):
    return next(line for line in axes.get_lines() if line.get_label() == label)


def test_a_set_keeps_its_colour_where_a_subject_lacks_another(make_fit):
    fits = {label: make_fit(4, feature_set=label) for label in ("beats", "clip")}
    order = ("beats", "clip")
    whole = draw_r_histograms(fits, title="whole", order=order)
    alone = draw_r_histograms({"clip": fits["clip"]}, title="alone", order=order)
    colours = [
        {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
        | {patch.get_label(): patch.get_edgecolor() for patch in figure.axes[0].patches}
        for figure in (whole, alone)
    ]
    (label,) = [label for label in colours[1] if label.startswith("clip")]
    assert colours[0][label] == colours[1][label]


def test_r_histogram_counts_every_valid_vertex(make_fit):
    r = np.random.default_rng(0).normal(0.1, 0.2, (2, 500))
    r[:, :20] = np.nan
    figure = draw_r_histograms({"clip": make_fit(500, r=r)}, title="accuracy")
    (steps,) = figure.axes[0].patches
    counts = steps.get_data().values
    assert counts[counts >= 1].sum() == 480
    assert "n = 480" in _texts(figure)
    assert "mean over 2 folds" in figure.axes[0].get_xlabel()


def test_many_feature_sets_are_spread_over_panels(make_fit):
    fits = {f"set {index}": make_fit(seed=index, feature_set=f"set {index}") for index in range(8)}
    figure = draw_r_histograms(fits, title="accuracy")
    assert [len(axes.patches) for axes in figure.axes] == [6, 2]
    assert len([axes for axes in draw_alpha_histograms(fits, title="alphas").axes if axes.get_visible()]) == 8


def test_time_course_has_gaps_where_rows_are_left_out(make_course):
    course = make_course()
    axes = draw_time_course(course, title="best vertex").axes[0]
    for label, values in (("measured", course.measured), ("predicted", course.predicted)):
        drawn = np.asarray(_line(axes, label).get_ydata())
        np.testing.assert_array_equal(drawn, np.where(course.used, values, np.nan))
    grey = [patch for patch in axes.patches if patch.get_width() > 0]
    assert [(patch.get_x(), patch.get_width()) for patch in grey] == [(0, 12), (45, 15)]
    assert "left cortex, vertex 1234 · r = 0.50 over 42 TRs" in _texts(axes.figure)


def test_alpha_panel_states_the_edge_shares(make_fit):
    alpha = np.full((2, 100), 100.0)
    alpha[:, :5] = 1
    alpha[:, 60:] = 1e4
    figure = draw_alpha_histograms(
        {"clip": make_fit(100, alpha=alpha, r=np.full((2, 100), 0.2))}, title="alphas"
    )
    assert "low edge 5.0 %, high edge 40.0 % of r > 0.1" in _texts(figure)
    shares = figure.axes[0].patches[0].get_data().values
    np.testing.assert_allclose(shares, [5, 0, 55, 0, 40])
    assert figure.axes[0].get_xlabel() == "alpha (grid value; geometric mean over folds)"


def test_a_grid_of_one_fold_is_no_mean(make_fit):
    fit = make_fit()
    one = {name: getattr(fit, name)[:1] for name in ("folds", "r", "r2", "alpha", "chance", "alpha_grid")}
    figure = draw_alpha_histograms({"clip": make_fit(**one)}, title="alphas")
    assert figure.axes[0].get_xlabel() == "alpha (grid value)"


def test_an_alpha_axis_has_numbers_however_wide_its_grid_is_and_no_ticks_beyond_need(make_fit):
    def axis(grid):
        fit = make_fit(alpha_grid=np.tile(grid, (2, 1)), alpha=np.full((2, 300), grid[0]))
        figure = draw_alpha_histograms({"clip": fit}, title="alphas")
        figure.draw_without_rendering()
        return figure.axes[0].xaxis

    def numbers(ticks):
        return [text for text in (tick.label1.get_text() for tick in ticks) if text]

    wide, narrow = axis(np.logspace(0, 8, 9)), axis(np.array([300.0]))
    assert len(numbers(wide.get_major_ticks())) >= 4
    assert wide.get_minorticklocs().size == 0
    assert numbers(narrow.get_minor_ticks())  # no power of ten is on this axis


def test_numbers_on_neighbouring_alpha_axes_lie_clear_of_each_other(make_fit):
    grid = np.tile(77 * np.logspace(0, 7, 20), (2, 1))
    fits = {f"set {index}": make_fit(alpha_grid=grid, alpha=grid[:, :1].repeat(300, 1)) for index in range(4)}
    figure = draw_alpha_histograms(fits, title="alphas")
    figure.canvas.draw()
    for pair in (figure.axes[:2], figure.axes[2:4]):
        left, right = (_drawn_numbers(axes) for axes in pair)
        assert max(box.x1 for box in left) + 20 < min(box.x0 for box in right)


def test_fold_scores_show_each_subject_in_each_fold(make_fit):
    fits = [make_fit(seed=seed, subject=f"S{seed}") for seed in range(3)]
    axes = draw_fold_scores({"clip": fits}, title="folds").axes[0]
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [len(line.get_ydata()) for line in dots] == [3, 3]
    best = np.sort(fits[0].r[0])[-30:].mean()
    assert np.isclose(dots[0].get_ydata()[0], best)


def test_the_average_of_subjects_is_a_square_and_no_dot_among_them(make_fit):
    fits = [make_fit(seed=seed, subject=subject) for seed, subject in enumerate(("average", "S1", "S2"))]
    figure = draw_fold_scores({"clip": fits}, title="folds")
    lines = figure.axes[0].get_lines()
    assert [len(line.get_ydata()) for line in lines if line.get_marker() == "o"] == [2, 2]
    squares = [line.get_ydata() for line in lines if line.get_marker() == "s"]
    expected = [np.sort(of_fold)[-30:].mean() for of_fold in fits[0].r]
    np.testing.assert_allclose(np.concatenate(squares), expected)
    assert "the average of the subjects' BOLD" in _texts(figure)
    assert "average" not in _texts(draw_fold_scores({"clip": fits[1:]}, title="folds"))


def test_fold_means_take_complete_fits_with_valid_vertices_only(make_fit):
    fits = [make_fit(seed=seed, subject=f"S{seed}") for seed in range(3)]
    dead = make_fit(subject="dead", r=np.vstack([fits[0].r[0], np.full(300, np.nan)]))
    unfinished = make_fit(seed=4, subject="unfinished", blocks_done=1)
    bars = []
    for subjects in (fits, [*fits, dead, unfinished]):
        axes = draw_fold_scores({"clip": subjects}, title="folds").axes[0]
        bars.append([line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() == "None"])
    assert len(bars[0]) == 2
    np.testing.assert_allclose(bars[1], bars[0])


def test_titles_say_what_is_simulated_and_untrained(make_fit):
    fits = {"clip[untrained, seed 0]": make_fit()}
    for draw in (draw_r_histograms, draw_alpha_histograms):
        text = _texts(draw(fits, title="S1", remark="simulated BOLD"))
        assert "simulated BOLD" in text
        assert "clip[untrained, seed 0]" in text


def test_figures_are_drawn_of_undefined_scores_and_hostile_names(make_fit, make_course):
    name = r"$\bad{$ <b>&"
    empty = np.full((2, 300), np.nan)
    fit = make_fit(r=empty, r2=empty, alpha=empty, chance=empty, feature_set=name, folds=("$a", "b$"))
    assert _ink(draw_r_histograms({name: fit}, title=name)) > 0.01
    assert _ink(draw_alpha_histograms({name: fit}, title=name)) > 0.01
    assert _ink(draw_fold_scores({name: [fit]}, title=name)) > 0.01
    assert _ink(draw_time_course(make_course(place=name, fold=name), title=name)) > 0.01


def test_drawing_leaves_pyplot_alone(make_fit):
    draw_r_histograms({"clip": make_fit()}, title="accuracy")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()

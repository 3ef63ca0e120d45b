from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import Normalize
from PIL import Image
from scipy.ndimage import binary_fill_holes

from hpcenc.storage.geometry import sulcal_depth, surface
from hpcenc.storage.voxels import CORTEX_LEFT, CORTEX_RIGHT, VoxelAxis
from hpcenc.tasks.report.style import png_bytes
from hpcenc.tasks.report.surface_map import (
    face_colors,
    face_values,
    has_categories,
    has_cortical_map,
    paint_cortex,
    view,
)

LIMITS = {"limits": (0.0, 0.5), "unit": "r", "title": "a map"}


def _pixels(figure):
    return np.asarray(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")).astype(float)


def _is_colored(pixels):
    """Pixels that are not grey."""
    return np.ptp(pixels, axis=-1) > 30


@pytest.mark.parametrize(("hemisphere", "side"), [("left", "lateral"), ("right", "medial")])
def test_nearer_faces_are_painted_last(hemisphere, side):
    seen = view(hemisphere, side)
    vertices, _ = surface(hemisphere)
    depth = vertices[seen.faces][:, :, 0].mean(axis=1)
    from_the_left = (hemisphere, side) in (("left", "lateral"), ("right", "medial"))
    assert (np.diff(-depth if from_the_left else depth) >= 0).all()


def test_the_two_sides_share_no_face():
    lateral, medial = (view("left", side).faces for side in ("lateral", "medial"))
    _, faces = surface("left")
    assert not {tuple(face) for face in lateral} & {tuple(face) for face in medial}
    assert len(lateral) + len(medial) <= len(faces)


def test_lateral_views_have_the_front_on_the_outer_side():
    # The frontal pole is the vertex farthest forward; the left lateral view shows it at its left edge.
    for hemisphere, edge in (("left", np.min), ("right", np.max)):
        vertices, _ = surface(hemisphere)
        seen = view(hemisphere, "lateral")
        forward = vertices[seen.faces][:, :, 1].mean(axis=1)
        _, columns = np.nonzero(seen.pixels >= 0)
        shown = forward[seen.pixels[seen.pixels >= 0]]
        assert abs(columns[np.argmax(shown)] - edge(columns)) <= 5


def test_a_pixel_shows_the_nearest_face_that_covers_it():
    seen = view("right", "medial")
    corners = surface("right")[0][seen.faces].astype(np.float64)
    plane, nearness = corners[:, :, 1:] * (-1, 1), -corners[:, :, 0].mean(axis=1)  # seen from the left
    low, high = plane.min(axis=(0, 1)), plane.max(axis=(0, 1))
    rows, columns = np.nonzero(seen.pixels >= 0)
    for place in np.random.default_rng(0).choice(len(rows), 300, replace=False):
        row, column = rows[place], columns[place]
        share = (column + 0.5) / seen.pixels.shape[1], 1 - (row + 0.5) / seen.pixels.shape[0]
        point = low + share * (high - low)
        sides, to_point = np.roll(plane, -1, axis=1) - plane, point - plane
        turns = sides[..., 0] * to_point[..., 1] - sides[..., 1] * to_point[..., 0]
        covering = (turns >= 0).all(axis=1) | (turns <= 0).all(axis=1)
        shown = seen.pixels[row, column]  # at the edges of faces, of a few pixels each, it may be a neighbour
        assert np.linalg.norm(plane[shown].mean(axis=0) - point) < 3
        assert nearness[shown] > nearness[covering].max(initial=-np.inf) - 3


@pytest.mark.parametrize("side", ["lateral", "medial"])
def test_no_seam_is_left_between_faces(side):
    covered = view("left", side).pixels >= 0
    np.testing.assert_array_equal(covered, binary_fill_holes(covered))


def test_medial_wall_stays_grey(cortex):
    values = cortex.surface(np.full(cortex.n_voxels, 0.5), CORTEX_LEFT)
    seen = view("left", "medial")
    rgb = face_colors(values, seen, Normalize(0, 0.5, clip=True))[:, :3]
    on_wall = np.isnan(sulcal_depth("left"))[seen.faces].any(axis=1)
    assert on_wall.any()
    np.testing.assert_allclose(np.ptp(rgb[on_wall], axis=1), 0, atol=1e-6)
    assert (np.ptp(rgb[~on_wall], axis=1) > 0.2).all()


def test_a_face_has_a_value_where_two_corners_have_one():
    values = np.array([1.0, np.nan, 4.0, np.nan, 7.0])
    faces = np.array([[0, 2, 4], [1, 2, 4], [1, 3, 4], [0, 1, 2]])
    on_wall = np.array([False, False, False, True])
    np.testing.assert_array_equal(face_values(values, faces, on_wall), [4, 5.5, np.nan, np.nan])
    one_is_enough = face_values(values, faces, on_wall, whole_faces=False)
    np.testing.assert_array_equal(one_is_enough, [4, 5.5, 7, 2.5])


def test_categories_are_never_averaged():
    values = np.array([1.0, 4.0, 4.0, 2.0, np.nan, np.nan])
    faces = np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0], [0, 1, 3], [4, 0, 1], [4, 1, 2], [4, 5, 0]])
    of_face = face_values(values, faces, np.zeros(len(faces), dtype=bool), categories=True)
    np.testing.assert_array_equal(of_face, [4, 4, 4, 1, 1, 4, np.nan])


def test_few_values_that_many_vertices_share_are_categories():
    rng = np.random.default_rng(0)
    layers = np.where(rng.random(1000) < 0.5, rng.integers(1, 13, 1000), np.nan)
    assert has_categories(layers)
    assert has_categories(np.log10(10.0 ** (layers / 3)))
    assert not has_categories(rng.normal(size=1000))
    assert not has_categories(np.array([0.1, 0.2, np.nan]))


def test_half_of_the_vertices_color_half_of_the_faces():
    seen = view("left", "lateral")
    rng = np.random.default_rng(0)
    values = np.where(rng.random(32_492) < 0.52, rng.random(32_492), np.nan)
    rgb = face_colors(values, seen, Normalize(0, 1))[~seen.on_wall, :3]
    assert (np.ptp(rgb, axis=1) > 0.01).mean() == pytest.approx(0.52, abs=0.03)


def test_a_map_of_layers_has_the_colors_and_the_ticks_of_layers_only(cortex):
    layers = np.random.default_rng(0).choice([1.0, 4.0], cortex.n_voxels)
    figure = paint_cortex(layers, cortex, limits=(1.0, 4.0), unit="best layer", title="layers")
    seen = view("left", "lateral")
    covered = seen.pixels >= 0
    painted = np.asarray(figure.axes[0].images[0].get_array())[covered]
    colors = Normalize(1, 4)
    of_layer = [face_colors(np.full(32_492, layer), seen, colors)[seen.pixels[covered]] for layer in (1, 4)]
    is_one = [np.isclose(painted, 255 * each, atol=0.51).all(axis=1) for each in of_layer]
    assert np.logical_or(*is_one).all()
    assert all(each.any() for each in is_one)
    ticks = figure.axes[-1].get_yticks()
    np.testing.assert_array_equal(ticks[(ticks >= 1) & (ticks <= 4)], [1, 2, 3, 4])


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-0.1125, 0.1125)])
def test_the_color_bars_label_lies_on_the_figure_and_clear_of_all_else(cortex, limits):
    values = np.random.default_rng(0).normal(0, 0.1, cortex.n_voxels)
    figure = paint_cortex(values, cortex, limits=limits, unit="r of cavmae less r of beats+clip", title="x")
    figure.canvas.draw()
    bar = figure.axes[-1]
    label = bar.yaxis.label.get_window_extent()
    numbers = [text.get_window_extent() for text in bar.get_yticklabels() if text.get_text()]
    for box in (label, *numbers):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    others = [*numbers, bar.get_window_extent(), *(axes.get_window_extent() for axes in figure.axes[:-1])]
    assert not any(label.overlaps(box) for box in others)


def test_colors_follow_the_values_and_not_the_sulci():
    seen = view("left", "lateral")
    colors = Normalize(0, 0.5, clip=True)
    low, high = (face_colors(np.full(32_492, value), seen, colors) for value in (0.0, 0.5))
    assert np.array_equal(face_colors(np.full(32_492, 0.9), seen, colors), high), "beyond the end: its colour"
    assert np.abs(high[:, :3] - low[:, :3]).max(axis=1).min() > 0.5


def test_map_has_colors_only_where_the_values_are(cortex):
    everywhere = _is_colored(_pixels(paint_cortex(np.full(cortex.n_voxels, 0.4), cortex, **LIMITS)))
    left_only = np.where(cortex.structure == 0, 0.4, np.nan)
    left = _is_colored(_pixels(paint_cortex(left_only, cortex, **LIMITS)))
    n_columns = everywhere.shape[1]
    left_half, right_half = (
        slice(0, int(0.43 * n_columns)),
        slice(int(0.45 * n_columns), int(0.87 * n_columns)),
    )
    assert everywhere[:, left_half].mean() > 0.3
    assert everywhere[:, right_half].mean() > 0.3
    assert left[:, left_half].mean() > 0.3
    assert left[:, right_half].sum() == 0


def test_the_same_map_gives_the_same_bytes(cortex):
    values = np.random.default_rng(0).normal(size=cortex.n_voxels)
    first, second = (png_bytes(paint_cortex(values, cortex, **LIMITS)) for _ in range(2))
    assert first == second


def test_other_axes_have_no_map(cortex):
    finer = replace(cortex, n_vertices={CORTEX_LEFT: 59_292, CORTEX_RIGHT: 59_292})
    for axis in (VoxelAxis.from_count(10), finer):
        assert not has_cortical_map(axis)
        with pytest.raises(ValueError, match="expected cortex of 32492 vertices"):
            paint_cortex(np.zeros(axis.n_voxels), axis, **LIMITS)


def test_one_hemisphere_is_enough(cortex):
    left = cortex.take(np.flatnonzero(cortex.structure == 0))
    assert has_cortical_map(left)
    assert _is_colored(_pixels(paint_cortex(np.full(left.n_voxels, 0.4), left, **LIMITS))).any()

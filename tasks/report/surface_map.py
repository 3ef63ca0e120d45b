"""Cortical maps: both hemispheres of the inflated fs_LR 32k surface, lateral and medial, painted headless.

A painter's algorithm in two dimensions: the faces turned to the viewer, sorted by depth. Which face each
pixel shows is found out once; a map is then its faces' colours at the pixels. It needs no display and no 3-D
library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hpcenc.storage.geometry import STRUCTURES, Hemisphere, sulcal_depth, surface
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.style import (
    FIGURE_WIDTH_IN,
    MUTED_COLOR,
    SURFACE_COLORS,
    escape,
    new_figure,
    set_title,
)

Side = Literal["lateral", "medial"]

N_VERTICES = 32_492
"""Vertices of one hemisphere's fs_LR 32k surface, the only one there are faces for."""

SIDES: tuple[tuple[Hemisphere, Side], ...] = (
    ("left", "lateral"),
    ("left", "medial"),
    ("right", "medial"),
    ("right", "lateral"),
)
"""Views of a row of several maps, left to right."""

ROW_HEIGHT_IN = 1.35
"""Height of such a row."""

VEIL = 0.14
"""White that gyral crowns have over their colour; small, so that values can be read off the colour bar."""

SULCAL_RANGE = (-1.0, 0.5)
"""Sulcal depths, in the units of HCP's file, that are darkest and brightest."""

BARE_CORTEX = 0.85
"""Grey of gyral crowns without a value."""

PIXELS_PER_MM = 5.0
"""Of a view, more than a figure prints of it: matplotlib brings it to the figure's pixels, without steps."""

MAX_CATEGORIES = 64
"""Different values at most in a map of categories."""


@dataclass(frozen=True, eq=False)
class View:
    """One hemisphere from one side, ready to be coloured: its faces in the order of painting."""

    faces: NDArray[np.int32]
    """Vertices of each face turned to the viewer, farthest first, ``(n_faces, 3)``."""
    pixels: NDArray[np.int32]
    """Face that each pixel shows, -1 where none, ``(height, width)``, from the top."""
    shade: NDArray[np.float32]
    """Brightness of each face between 0 and 1: light from the viewer, less of it in sulci, ``(n_faces,)``."""
    on_wall: NDArray[np.bool_]
    """Which faces touch the medial wall, ``(n_faces,)``."""


def has_cortical_map(axis: VoxelAxis) -> bool:
    """Whether an axis lies on a fs_LR 32k surface, so that a map of it can be painted."""
    sizes = {axis.n_vertices[name] for name in STRUCTURES.values() if name in axis.n_vertices}
    return sizes == {N_VERTICES}


def paint_cortex(
    values: NDArray[np.floating[Any]],
    axis: VoxelAxis,
    *,
    limits: tuple[float, float],
    unit: str,
    title: str,
    remark: str = "",
    color_map: Colormap = SURFACE_COLORS,
    whole_faces: bool = True,
) -> Figure:
    """Paint values on the inflated cortex: left and right hemisphere, lateral above medial.

    Parameters
    ----------
    values : array of shape (n_voxels,)
        NaN is shown as bare cortex, grey, like the medial wall and a hemisphere without data. Where
        `has_categories` holds, no values are averaged.
    axis : VoxelAxis
        An axis for which `has_cortical_map` holds.
    limits : (float, float)
        Values of the two ends of the colour map; what lies beyond has the colour of the end.
    unit : str
        Label of the colour bar: what is shown and its unit.
    title, remark : str
        Title, and a remark in small type beside it. How many vertices have a value is in the lower corner.
    color_map : Colormap
        Perceptually uniform; a diverging one for differences.
    whole_faces : bool
        Whether a face is coloured by `face_values`'s rule of two corners, or where any corner has a value:
        so that single vertices among others without a value are seen.

    Raises
    ------
    ValueError
        If the axis has no fs_LR 32k surface.
    """
    if not has_cortical_map(axis):
        raise ValueError(
            f"the voxel axis has surfaces {axis.n_vertices}; expected cortex of {N_VERTICES} vertices. "
            "Use a .dscalar.nii and the data's own surfaces in wb_view"
        )
    figure = new_figure(width_in=FIGURE_WIDTH_IN, height_in=5.1)
    colors = Normalize(*limits, clip=True)
    categories = has_categories(values)
    for column, hemisphere in enumerate(cast(tuple[Hemisphere, ...], ("left", "right"))):
        whole = _on_surface(values, axis, hemisphere)
        for row, side in enumerate(cast(tuple[Side, ...], ("lateral", "medial"))):
            axes = figure.add_axes((0.01 + 0.435 * column, 0.51 - 0.45 * row, 0.42, 0.4))
            _paint_view(axes, view(hemisphere, side), whole, colors, color_map, whole_faces, categories)
            axes.set_title(f"{hemisphere} {side}", y=-0.09, fontsize=8.5, color=MUTED_COLOR)
    on_cortex = values[axis.positions("cortex")]
    bar = _add_color_bar(figure, on_cortex, colors, unit, color_map)
    if categories and are_whole(values, limits):
        bar.locator = MaxNLocator("auto", integer=True)
        bar.update_ticks()
    n_shown = np.count_nonzero(np.isfinite(on_cortex))
    figure.text(0.988, 0.015, f"n = {n_shown:,} vertices", ha="right", fontsize=8.5, color=MUTED_COLOR)
    set_title(figure, title, remark)
    return figure


def paint_rows(
    maps: Mapping[str, NDArray[np.floating[Any]]],
    axis: VoxelAxis,
    *,
    limits: tuple[float, float],
    unit: str,
    title: str,
    remark: str = "",
) -> Figure:
    """Paint several maps of one kind, a row for each, from all four sides and in the same colours.

    Parameters
    ----------
    maps : mapping of str to array of shape (n_voxels,)
        By their labels; NaN is bare cortex.
    axis, limits, unit, title, remark
        As for `paint_cortex`.
    """
    height_in = 0.45 + ROW_HEIGHT_IN * len(maps)
    figure = new_figure(width_in=FIGURE_WIDTH_IN, height_in=height_in)
    colors = Normalize(*limits, clip=True)
    for row, (label, values) in enumerate(maps.items()):
        bottom = (len(maps) - 1 - row) * ROW_HEIGHT_IN / height_in
        for column, (hemisphere, side) in enumerate(SIDES):
            size = (0.215, (ROW_HEIGHT_IN - 0.32) / height_in)
            axes = figure.add_axes((0.005 + 0.217 * column, bottom + 0.06 / height_in, *size))
            whole = _on_surface(values, axis, hemisphere)
            _paint_view(axes, view(hemisphere, side), whole, colors, SURFACE_COLORS, True, False)
        n_shown = np.count_nonzero(np.isfinite(values[axis.positions("cortex")]))
        top = bottom + (ROW_HEIGHT_IN - 0.22) / height_in
        figure.text(0.012, top, escape(label), fontsize=9)
        figure.text(0.87, top, f"n = {n_shown:,} vertices", ha="right", fontsize=8, color=MUTED_COLOR)
    on_cortex = np.concatenate([values[axis.positions("cortex")] for values in maps.values()])
    _add_color_bar(figure, on_cortex, colors, unit, SURFACE_COLORS)
    set_title(figure, title, remark)
    return figure


def _on_surface(
    values: NDArray[np.floating[Any]], axis: VoxelAxis, hemisphere: Hemisphere
) -> NDArray[np.floating[Any]]:
    """Values of all vertices of a hemisphere; NaN where the axis has none."""
    structure = STRUCTURES[hemisphere]
    return axis.surface(values, structure) if structure in axis.n_vertices else np.full(N_VERTICES, np.nan)


def has_categories(values: NDArray[np.floating[Any]]) -> bool:
    """Whether a map's values are few that many vertices share, such as layers.

    Their mean would be a value that no vertex has: they are never averaged.
    """
    finite = values[np.isfinite(values)]
    n_values = np.unique(finite).size
    return n_values <= MAX_CATEGORIES and 2 * n_values <= finite.size


def are_whole(values: NDArray[np.floating[Any]], limits: tuple[float, float]) -> bool:
    """Whether a map's values and the ends of its colours are whole numbers."""
    numbers = np.concatenate([values[np.isfinite(values)], limits])
    return bool((numbers == np.round(numbers)).all())


def touches_wall(hemisphere: Hemisphere, faces: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which faces have a corner on the medial wall, ``(n_faces,)``."""
    wall: NDArray[np.bool_] = np.isnan(sulcal_depth(hemisphere))[faces]
    return np.asarray(wall.any(axis=1))


def face_values(
    values: NDArray[np.floating[Any]],
    faces: NDArray[np.int32],
    on_wall: NDArray[np.bool_],
    *,
    categories: bool = False,
    whole_faces: bool = True,
) -> NDArray[np.floating[Any]]:
    """One value for every face; ``faceValues`` in surface.html.j2 follows the same rule.

    Of scattered vertices two corners paint as large a share of the faces as of the vertices have a value, at
    about a half; all three would paint far less. A colour never reaches into the medial wall.

    Parameters
    ----------
    values : array of shape (n_vertices,)
        NaN where undefined.
    faces : array of shape (n_faces, 3)
    on_wall : array of shape (n_faces,)
        Which faces need all three corners.
    categories : bool
        A face has the value that two of its corners share, else that of its first defined corner; the mean
        of the defined corners if False.
    whole_faces : bool
        One defined corner is enough if False, at the wall too.

    Returns
    -------
    array of shape (n_faces,)
        NaN where fewer corners than needed have a value.
    """
    corners = values[faces]
    known = np.isfinite(corners)
    n_known = known.sum(axis=1)
    if categories:
        first = np.take_along_axis(corners, known.argmax(axis=1)[:, None], 1)[:, 0]
        # Where the first corner is one of two that agree, it has their value itself.
        of_face = np.where(corners[:, 1] == corners[:, 2], corners[:, 1], first)
    else:
        of_face = np.where(known, corners, 0).sum(axis=1) / np.maximum(n_known, 1)
    needed = np.where(on_wall, 3, 2) if whole_faces else 1
    return np.where(n_known >= needed, of_face, np.nan)


@lru_cache(maxsize=4)
def view(hemisphere: Hemisphere, side: Side) -> View:
    """Faces of the inflated surface that are seen from one side.

    The picture's right is forward where the viewer stands on the subject's right, and backward
    where on the left; up is up.
    """
    vertices, faces = surface(hemisphere, "inflated")
    # The viewer's place along x, which points to the subject's right.
    toward = 1.0 if (hemisphere == "right") == (side == "lateral") else -1.0
    plane = np.stack([toward * vertices[:, 1], vertices[:, 2]], axis=1)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = toward * normals[:, 0] / np.linalg.norm(normals, axis=1)
    depth = toward * corners[:, :, 0].mean(axis=1)
    order = np.argsort(depth, kind="stable")
    order = order[facing[order] > 0]
    return View(
        faces=faces[order],
        pixels=_faces_at_pixels(plane[faces[order]]),
        shade=_light(facing[order]) * _sulcal_shade(hemisphere)[faces[order]].mean(axis=1),
        on_wall=touches_wall(hemisphere, faces[order]),
    )


def _faces_at_pixels(outlines: NDArray[np.float32]) -> NDArray[np.int32]:
    """Face that each pixel of a picture shows, painted in their order.

    Parameters
    ----------
    outlines : array of shape (n_faces, 3, 2)
        Corners in the plane of the picture, in mm.
    """
    (left, bottom), (right, top) = outlines.min(axis=(0, 1)), outlines.max(axis=(0, 1))
    size_in = (right - left) * PIXELS_PER_MM / 100, (top - bottom) * PIXELS_PER_MM / 100
    figure = Figure(figsize=size_in, dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    numbers = np.arange(1, len(outlines) + 1)
    colors = np.stack([numbers >> shift & 255 for shift in (16, 8, 0)], axis=1) / 255
    faces: Any = outlines  # matplotlib's stubs ask for a list, which takes three times as long
    painted = PolyCollection(faces, facecolors=colors, edgecolors="none", antialiaseds=False)
    axes.add_collection(painted, autolim=False)
    canvas.draw()
    red, green, blue = np.moveaxis(np.asarray(canvas.buffer_rgba())[..., :3].astype(np.int32), -1, 0)
    shown: NDArray[np.int32] = (red << 16 | green << 8 | blue) - 1
    return shown


def face_colors(
    values: NDArray[np.floating[Any]],
    view: View,
    colors: Normalize,
    color_map: Colormap = SURFACE_COLORS,
    whole_faces: bool = True,
    categories: bool = False,
) -> NDArray[np.floating[Any]]:
    """Colour of every face of a view, ``(n_faces, 4)``: of its value by `face_values`, or of bare cortex."""
    of_face = face_values(values, view.faces, view.on_wall, categories=categories, whole_faces=whole_faces)
    bare = np.isnan(of_face)
    rgba: NDArray[np.floating[Any]] = color_map(colors(np.where(bare, 0.0, of_face)))
    shade = view.shade[~bare, None]
    # Darkened in sulci and veiled in white on gyri: darkening alone would not show in dark colours.
    rgba[~bare, :3] = rgba[~bare, :3] * (0.75 + 0.25 * shade) + VEIL * shade * (1 - rgba[~bare, :3])
    rgba[bare, :3] = BARE_CORTEX * (0.45 + 0.55 * view.shade[bare, None])
    return rgba


def _paint_view(
    axes: Any,
    view: View,
    values: NDArray[np.floating[Any]],
    colors: Normalize,
    color_map: Colormap,
    whole_faces: bool,
    categories: bool,
) -> None:
    rgba = face_colors(values, view, colors, color_map, whole_faces, categories)
    nothing = np.zeros((1, 4))  # which -1 takes
    palette = np.round(255 * np.concatenate([rgba, nothing])).astype(np.uint8)
    axes.imshow(palette[view.pixels], interpolation="antialiased")
    axes.set_axis_off()


def _add_color_bar(
    figure: Figure, values: NDArray[np.floating[Any]], colors: Normalize, unit: str, color_map: Colormap
) -> Colorbar:
    finite = values[np.isfinite(values)]
    below, above = bool((finite < colors.vmin).any()), bool((finite > colors.vmax).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    bar = figure.colorbar(
        ScalarMappable(colors, color_map),
        cax=figure.add_axes((0.895, 0.2, 0.018, 0.55)),
        extend=extend[below, above],
    )
    # Left of the bar, where the width of the ticks' numbers cannot push it off the figure.
    bar.ax.yaxis.set_label_position("left")
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8.5, width=0.6, length=3)
    bar.outline.set_linewidth(0.5)
    return bar


def _light(facing: NDArray[np.float32]) -> NDArray[np.float32]:
    """Brightness of faces under a light at the viewer, from the cosine of their angle to it: 0 at the rim."""
    return np.clip(facing, 0, 1) ** 0.6


def _sulcal_shade(hemisphere: Hemisphere) -> NDArray[np.float32]:
    """Brightness of vertices: 0 in deep sulci to 1 on gyral crowns; even on the medial wall."""
    depth = np.nan_to_num(sulcal_depth(hemisphere), nan=0.1)
    shade: NDArray[np.float32] = np.interp(depth, SULCAL_RANGE, (0.0, 1.0)).astype(np.float32)
    return shade

"""The report's section on pairs of feature sets: r against r, maps of differences, and the best hundredth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE
from hpcenc.tasks.report.data import ReportData, mean_over_subjects
from hpcenc.tasks.report.illustrations import r_limits
from hpcenc.tasks.report.sections import Column, Illustration, Section, Table, count
from hpcenc.tasks.report.style import (
    DIFFERENCE_COLORS,
    MUTED_COLOR,
    SURFACE_COLORS,
    hide_unused,
    new_figure,
    panel_grid,
    render,
    set_title,
    style_axes,
    wrap_label,
)
from hpcenc.tasks.report.surface_map import has_cortical_map, paint_cortex, paint_rows
from hpcenc.tasks.report.surface_view import SurfaceMap
from hpcenc.tasks.report.tables import format_score, format_share

MAX_PAIRS = 6
"""Pairs that are shown, the first ones; the table has all of them."""

MAX_TITLE = 45
"""Characters of two labels and a subject that fit one line beside a remark."""

TOP_SHARE = 0.01
"""Share of the vertices that a map of the best ones shows."""

Maps = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class PairRow:
    """Two feature sets over the vertices where both have an r."""

    subject: str
    first: str
    second: str
    n_valid: int
    mean_difference: float
    share_first_better: float
    correlation_of_maps: float


def shown_maps(data: ReportData) -> tuple[str, Maps]:
    """Whose r stands for all, and it by feature set.

    The average's; else the mean over the subjects who have all of the sets that several subjects have; else
    that of the subject with most sets. Each needs two sets, except for the last.
    """
    average = data.fits_by_label(AVERAGE)
    if len(average) > 1:
        return AVERAGE, {label: fit.mean_r for label, fit in average.items()}
    # Means of different subjects would differ for these, and not for their feature sets.
    means = data.fits_in_means()
    subjects = [{fit.subject for fit in fits} for fits in means.values()]
    common = set.intersection(*subjects) if subjects else set()
    if len(means) > 1 and len(common) > 1:
        return f"mean of {len(common)} subjects", {
            label: mean_over_subjects([fit for fit in fits if fit.subject in common])
            for label, fits in means.items()
        }
    subject = max(data.subjects, key=lambda subject: len(data.fits_by_label(subject)))
    return subject, {label: fit.mean_r for label, fit in data.fits_by_label(subject).items()}


def pair_rows(subject: str, maps: Maps) -> tuple[PairRow, ...]:
    """A line for each pair of feature sets."""
    return tuple(_pair(subject, first, second, maps) for first, second in combinations(maps, 2))


def comparison_section(data: ReportData, remark: str = "") -> Section:
    """The section on pairs of feature sets; `data` has fits of two of them."""
    subject, maps = shown_maps(data)
    title = "Feature sets compared"
    if len(maps) < 2:
        return Section("pairs", title, ("No subject has two feature sets, which alone could be compared.",))
    rows = pair_rows(subject, maps)
    pairs = list(combinations(maps, 2))[:MAX_PAIRS]
    table = Table(
        "pairs",
        f"Pairs of feature sets, {subject}.",
        rows,
        (
            Column("first", "first"),
            Column("second", "second"),
            Column("n_valid", "vertices", count),
            Column("mean_difference", "mean of first less second", format_score),
            Column("share_first_better", "first is better", format_share),
            Column("correlation_of_maps", "correlation of the maps", format_score),
        ),
    )
    figures, views = [_plane(subject, maps, pairs, remark)], []
    if has_cortical_map(data.voxels):
        views = [difference_map(subject, maps, pair) for pair in pairs]
        figures.append(_side_by_side(data, subject, maps, remark))
        figures += [
            _difference(data, subject, pair, view, remark) for pair, view in zip(pairs, views, strict=True)
        ]
        for label, r in list(maps.items())[:MAX_PAIRS]:
            views.append(best_map(data, subject, label, r))
            figures.append(_top(data, subject, label, r, views[-1], remark))
    more = f" The first {MAX_PAIRS} of {len(rows)} pairs are drawn." if len(rows) > MAX_PAIRS else ""
    if len(maps) > MAX_PAIRS and has_cortical_map(data.voxels):
        more += (
            f" Maps of r and of the best hundredth are of the first {MAX_PAIRS} of {len(maps)} feature sets."
        )
    if subject not in data.subjects:
        more += " A mean is over the subjects who have all of these sets, the same for each."
    if left_out := [label for label in data.labels if label not in maps]:
        more += f" Not compared, without an r here: {', '.join(left_out)}."
    paragraphs = (
        f"r of {subject}, feature set against feature set. A concatenation is no better for being larger: "
        f"alphas are chosen inside the training runs, and r is over the test runs.{more}",
    )
    return Section("pairs", title, paragraphs, (table,), tuple(figures), tuple(views))


def draw_planes(maps: Maps, pairs: Sequence[tuple[str, str]], *, title: str, remark: str = "") -> Figure:
    """Two-dimensional histograms of r, a panel for each pair, with the diagonal."""
    n_rows, n_columns = panel_grid(max(3, len(pairs)), n_columns=3)  # few begin at the left, too
    spare = 0.9 if len(pairs) < 3 else 0.5  # a panel without neighbours is larger
    figure = new_figure(height_in=spare + 2.3 * n_rows)
    # Room for a bar beside panels of fixed shape is more than a tight layout can find.
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    finite = np.concatenate([r[np.isfinite(r)] for r in maps.values()])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    mesh = None
    edges = np.linspace(low, high, 61)
    # Ticks that panels choose change with their size, and the room for numbers with them, after the layout.
    ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    counts = [_joint_counts(maps[first], maps[second], edges) for first, second in pairs]
    norm = LogNorm(1, max([2, *(float(each.max()) for each in counts)]))  # one bar for all panels
    for panel, (first, second), of_pair in zip(panels, pairs, counts, strict=False):
        shown = np.ma.masked_equal(of_pair, 0)
        mesh = panel.pcolormesh(edges, edges, shown, cmap=SURFACE_COLORS, norm=norm, rasterized=True)
        panel.plot([low, high], [low, high], color=MUTED_COLOR, linewidth=0.8, linestyle="--")
        panel.set_xlabel(f"r of {wrap_label(second)}", fontsize=8.5)
        panel.set_ylabel(f"r of {wrap_label(first)}", fontsize=8.5)
        panel.set_title(f"n = {int(of_pair.sum()):,}", loc="left", fontsize=8)
        panel.set_xticks(ticks)
        panel.set_yticks(ticks)
        panel.set_aspect("equal")
        style_axes(panel)
    hide_unused(panels, len(pairs))
    set_title(figure, title, remark)
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=list(panels[: len(pairs)]), shrink=0.6, pad=0.02)
        bar.set_label("vertices", fontsize=9)
        bar.ax.tick_params(which="both", labelsize=8)
    return figure


def _joint_counts(
    first: NDArray[np.float64], second: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Vertices with both values, by those of the first along rows and of the second along columns."""
    both = np.isfinite(first) & np.isfinite(second)
    counts: NDArray[np.float64] = np.histogram2d(first[both], second[both], bins=edges)[0]
    return counts


def _pair(subject: str, first: str, second: str, maps: Maps) -> PairRow:
    both = np.isfinite(maps[first]) & np.isfinite(maps[second])
    one, other = maps[first][both], maps[second][both]
    vary = both.sum() > 1 and one.std() > 0 and other.std() > 0
    nan = float("nan")
    return PairRow(
        subject,
        first,
        second,
        int(both.sum()),
        float((one - other).mean()) if both.any() else nan,
        float((one > other).mean()) if both.any() else nan,
        float(np.corrcoef(one, other)[0, 1]) if vary else nan,
    )


def _plane(subject: str, maps: Maps, pairs: Sequence[tuple[str, str]], remark: str) -> Illustration:
    figure = draw_planes(maps, pairs, title=f"r against r · {subject}", remark=remark)
    return Illustration(
        "pairs",
        f"r against r {subject}",
        render(figure),
        f"r (Pearson, no unit) of each valid vertex of {subject} with two feature sets, mean over folds; "
        "colours count vertices on a logarithmic scale. Above the dashed line the set of the vertical axis "
        "predicts better.",
        "Two-dimensional histograms of r; the shares of either side are in tables/pairs.csv.",
    )


def _side_by_side(data: ReportData, subject: str, maps: Maps, remark: str) -> Illustration:
    shown = dict(list(maps.items())[:MAX_PAIRS])
    limits = r_limits(list(shown.values()))
    figure = paint_rows(
        shown,
        data.voxels,
        limits=limits,
        unit="r",
        title=f"Feature sets side by side · {subject}",
        remark=remark,
    )
    defined = {label: _on_cortex(r, data) for label, r in shown.items()}
    means = ", ".join(f"{label} {r.mean():.3f}" for label, r in defined.items() if r.size)
    return Illustration(
        "pairs",
        f"maps side by side {subject}",
        render(figure),
        f"r (Pearson, no unit) of {subject}, mean over folds, in the same colours, {limits[0]:.2f} to "
        f"{limits[1]:.2f}; left lateral, left medial, right medial, right lateral. Grey: no value, and the "
        "medial wall.",
        f"Cortical maps of r; means: {means}.",
    )


def difference_map(subject: str, maps: Maps, pair: tuple[str, str]) -> SurfaceMap:
    """r of one feature set less that of another."""
    difference = maps[pair[0]] - maps[pair[1]]
    sizes = np.abs(difference[np.isfinite(difference)])
    limit = max(0.05, float(np.percentile(sizes, 99.5)) if sizes.size else 0.05)
    return SurfaceMap(
        f"{pair[0]} less {pair[1]} · {subject}",
        difference,
        (-limit, limit),
        "difference of r, first less second",
        DIFFERENCE_COLORS,
    )


def _difference(
    data: ReportData, subject: str, pair: tuple[str, str], view: SurfaceMap, remark: str
) -> Illustration:
    finite = _on_cortex(view.values, data)
    separator = "\n" if sum(map(len, (*pair, subject))) > MAX_TITLE else " "
    figure = paint_cortex(
        view.values,
        data.voxels,
        limits=view.limits,
        unit=view.unit,
        title=f"{pair[0]} less{separator}{pair[1]} · {subject}",
        remark=remark,
        color_map=view.color_map,
    )
    return Illustration(
        "pairs",
        f"difference {pair[0]} {pair[1]} {subject}",
        render(figure),
        f"Difference of r (no unit), {pair[0]} less {pair[1]}, {subject}; n = {finite.size:,} vertices "
        f"where both are defined. Colours span ±{view.limits[1]:.2f}, the 99.5th percentile of its size.",
        f"Cortical map of a difference of r; its mean is {finite.mean():.3f}."
        if finite.size
        else "No vertex has both.",
    )


def _on_cortex(values: NDArray[np.floating[Any]], data: ReportData) -> NDArray[np.floating[Any]]:
    """Defined values of the cortex, which is all that its maps show."""
    cortical = values[data.voxels.positions("cortex")]
    defined: NDArray[np.floating[Any]] = cortical[np.isfinite(cortical)]
    return defined


def best_map(data: ReportData, subject: str, label: str, r: NDArray[np.float64]) -> SurfaceMap:
    """r of the vertices of the cortex that a feature set predicts best, NaN elsewhere."""
    finite = _on_cortex(r, data)
    threshold = float(np.quantile(finite, 1 - TOP_SHARE)) if finite.size else 0.0
    top = float(finite.max()) if finite.size else 1.0
    best = np.where(r >= threshold, r, np.nan)
    limits = threshold, max(top, threshold + 1e-6)
    return SurfaceMap(f"best 1 % · {label} · {subject}", best, limits, "r", whole_faces=False)


def _top(
    data: ReportData, subject: str, label: str, r: NDArray[np.float64], view: SurfaceMap, remark: str
) -> Illustration:
    finite = _on_cortex(r, data)
    threshold, top = view.limits
    figure = paint_cortex(
        view.values,
        data.voxels,
        limits=view.limits,
        unit="r",
        title=f"Best 1 % · {label} · {subject}",
        remark=remark,
        whole_faces=view.whole_faces,
    )
    n_best = int(np.count_nonzero(finite >= threshold))
    return Illustration(
        "pairs",
        f"best hundredth {label} {subject}",
        render(figure),
        f"The hundredth of the valid vertices of {subject}'s cortex that {label} predicts best: r (no unit) "
        f"from {threshold:.3f} on, n = {n_best:,} of {finite.size:,}. Grey: all others, and the medial wall.",
        f"Cortical map of the best vertices; r from {threshold:.3f} to {top:.3f}.",
    )

"""The report's plots: histograms of r, scores by fold, histograms of alpha, and time courses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE
from hpcenc.tasks.report.alphas import alpha_positions, alpha_row
from hpcenc.tasks.report.data import FitScores, TimeCourse
from hpcenc.tasks.report.sections import style_places
from hpcenc.tasks.report.style import (
    LEFT_OUT_COLOR,
    MEASURED_COLOR,
    MUTED_COLOR,
    TITLE_SIZE,
    escape,
    fit_layout,
    hide_unused,
    line_style,
    new_figure,
    panel_grid,
    set_title,
    style_axes,
    wrap_label,
)
from hpcenc.tasks.report.tables import LOW_R, fold_rows, format_share, mean_of_defined, summarise

R_BIN = 0.02
"""Width of a bin of r."""

SETS_PER_PANEL = 6
"""Feature sets overlaid in one panel of the r histogram; more lines cannot be told apart."""


def draw_r_histograms(
    fits: Mapping[str, FitScores], *, title: str, remark: str = "", order: Sequence[str] = ()
) -> Figure:
    """Histograms of the vertices' mean r, all feature sets of one subject overlaid.

    Parameters
    ----------
    fits : mapping of str to FitScores
        Fits of one subject by the label of their feature set.
    order : sequence of str
        Feature sets of the report, by which they have their colours.
    title, remark : str
        Title, and a remark in small type beside it.
    """
    labels, places = list(fits), style_places(fits, order)
    groups = [labels[start : start + SETS_PER_PANEL] for start in range(0, len(labels), SETS_PER_PANEL)]
    panel_height_in = 2.5 + 0.19 * min(len(labels), SETS_PER_PANEL)
    figure = new_figure(height_in=0.5 + panel_height_in * len(groups))
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    edges = _r_bins([fit.mean_r for fit in fits.values()])
    chance = _median([fit.chance for fit in fits.values()])
    for panel, group in zip(panels, groups, strict=True):
        panel.axvline(0, color=MUTED_COLOR, linewidth=0.6)
        for label in group:
            _draw_r_steps(panel, fits[label], edges, label, line_style(places[label]))
        if math.isfinite(chance):
            panel.axvline(chance, color=MUTED_COLOR, linewidth=1, linestyle=(0, (1, 1.5)))
            panel.annotate(
                f"chance {chance:.2f}",
                (chance, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color=MUTED_COLOR,
            )
        panel.set_yscale("log")
        panel.set_ylim(bottom=0.8)
        panel.set_ylabel(f"vertices per {R_BIN:g} of r")
        # Above the axes: inside, it would lie on the tails, which are what one looks at.
        panel.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            fontsize=8,
            frameon=False,
            borderpad=0.2,
            handlelength=2.4,
        )
        style_axes(panel)
    n_folds = len(next(iter(fits.values())).folds)
    panels[-1].set_xlabel(_r_label(n_folds))
    set_title(figure, title, remark)
    fit_layout(figure)
    return figure


def draw_fold_scores(fits: Mapping[str, Sequence[FitScores]], *, title: str, remark: str = "") -> Figure:
    """Mean r of the best tenth of the vertices in each fold: a dot per subject, a bar for their mean.

    The mean takes complete fits with valid vertices only. The average of the subjects' BOLD is a square,
    and in no mean.

    Parameters
    ----------
    fits : mapping of str to sequence of FitScores
        Fits of all subjects by the label of their feature set.
    title, remark : str
        Title, and a remark in small type beside it.
    """
    n_rows, n_columns = panel_grid(len(fits))
    figure = new_figure(height_in=0.75 + 2.4 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).ravel()
    for index, (panel, (label, of_subjects)) in enumerate(zip(panels, fits.items(), strict=False)):
        _draw_folds(panel, of_subjects, line_style(index)["color"])
        panel.set_title(wrap_label(label), fontsize=TITLE_SIZE)
        style_axes(panel)
    hide_unused(panels, len(fits))
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    for first in range(0, len(panels), n_columns):
        panels[first].set_ylabel("mean r of best 10 %")
    subjects = {fit.subject for of_set in fits.values() for fit in of_set} - {AVERAGE}
    dot: dict[str, Any] = {"color": MUTED_COLOR, "markersize": 4, "markeredgewidth": 0, "linestyle": "none"}
    handles = [
        Line2D([], [], marker="o", label=f"a subject (n = {len(subjects)})", **dot),
        Line2D([], [], color="black", linewidth=1.2, label="mean over subjects"),
    ]
    if any(fit.subject == AVERAGE for of_subjects in fits.values() for fit in of_subjects):
        handles.append(Line2D([], [], marker="s", label="the average of the subjects' BOLD", **dot))
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=8, frameon=False, borderpad=0)
    set_title(figure, title, remark)
    fit_layout(figure, bottom=0.25)
    return figure


def draw_alpha_histograms(fits: Mapping[str, FitScores], *, title: str, remark: str = "") -> Figure:
    """Histograms of one subject's chosen alphas, a panel per feature set, with shares on the grid's edges.

    Vertices with r > .1 are drawn over all vertices, on an axis of shares: noise belongs on large
    alphas and would hide them in counts.

    Parameters
    ----------
    fits : mapping of str to FitScores
        Fits of one subject by the label of their feature set.
    title, remark : str
        Title, and a remark in small type beside it.
    """
    n_rows, n_columns = panel_grid(len(fits), n_columns=2)
    figure = new_figure(height_in=0.85 + 2.1 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).ravel()
    for panel, (label, fit) in zip(panels, fits.items(), strict=False):
        _draw_alphas(panel, fit)
        n_chosen = f"n = {alpha_row(fit).n_chosen:,}"
        panel.set_title(f"{escape(label)} ({n_chosen})\n{_edge_text(fit)}", loc="left", fontsize=TITLE_SIZE)
        style_axes(panel)
    hide_unused(panels, len(fits))
    for first in range(0, len(panels), n_columns):
        panels[first].set_ylabel("share of choices (%)")
    for panel in panels[max(0, len(fits) - n_columns) : len(fits)]:
        over_folds = "; geometric mean over folds" if len(fit.folds) > 1 else ""
        panel.set_xlabel(f"alpha (grid value{over_folds})")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=2, fontsize=8, frameon=False, borderpad=0)
    set_title(figure, title, remark)
    fit_layout(figure, bottom=0.3, between=1.6)
    return figure


def draw_time_course(course: TimeCourse, *, title: str, remark: str = "") -> Figure:
    """Measured and predicted BOLD of one vertex, with gaps where rows are not scored."""
    figure = new_figure(height_in=2.6)
    axes = figure.subplots()
    step_s = float(np.median(np.diff(course.time_s))) if len(course.time_s) > 1 else 1.0
    for start, stop in _spans(~course.used):
        axes.axvspan(
            course.time_s[start],
            course.time_s[stop - 1] + step_s,
            color=LEFT_OUT_COLOR,
            linewidth=0,
            zorder=0,
        )
    middle = course.time_s + step_s / 2
    axes.plot(middle, _gapped(course.measured, course.used), color=MEASURED_COLOR, lw=1, label="measured")
    axes.plot(middle, _gapped(course.predicted, course.used), color="#D55E00", lw=1.5, label="predicted")
    if not course.used.all():
        axes.fill_between([], [], color=LEFT_OUT_COLOR, label="not scored")
    axes.axhline(0, color=MUTED_COLOR, linewidth=0.5, zorder=0)
    axes.set_xlim(course.time_s[0], course.time_s[-1] + step_s)
    axes.set_xlabel(f"time from the first volume of {escape(course.run)} (s)")
    axes.set_ylabel("BOLD (z)")
    axes.set_title(
        f"{escape(course.place)} · r = {course.r:.2f} over {int(course.used.sum())} TRs",
        loc="left",
        fontsize=TITLE_SIZE,
    )
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        fontsize=8,
        frameon=False,
        borderpad=0,
        handlelength=1.6,
    )
    style_axes(axes)
    set_title(figure, title, remark)
    fit_layout(figure)
    return figure


def _draw_r_steps(
    axes: Any, fit: FitScores, edges: NDArray[np.float64], label: str, style: dict[str, Any]
) -> None:
    summary = summarise(fit.mean_r)
    counts, _ = np.histogram(fit.mean_r[np.isfinite(fit.mean_r)], edges)
    # An empty bin has no place on a logarithmic axis; below its lower end it draws the line down to it.
    axes.stairs(
        np.maximum(counts, 0.1),
        edges,
        baseline=None,
        linewidth=1.5,
        label=f"{escape(label)} (median {summary.median:.3f}, best 10 % {summary.mean_best_tenth:.3f}, "
        f"n = {summary.n_valid:,})",
        **style,
    )


def _draw_folds(axes: Any, fits: Sequence[FitScores], color: str) -> None:
    """Scores of one feature set: in each fold subjects as dots, beside them their average, and the mean."""
    subjects: dict[str, list[float]] = {}
    averages: dict[str, float] = {}
    in_means: dict[str, list[float]] = {}
    folds = list(dict.fromkeys(fold for fit in fits for fold in fit.folds))
    for fit in fits:
        for row in fold_rows(fit):
            if fit.subject == AVERAGE:
                averages[row.fold] = row.r.mean_best_tenth
            else:
                subjects.setdefault(row.fold, []).append(row.r.mean_best_tenth)
            if fit.in_means:
                in_means.setdefault(row.fold, []).append(row.r.mean_best_tenth)
    dot = {"markersize": 4, "alpha": 0.75, "color": color, "markeredgewidth": 0}
    for position, fold in enumerate(folds):
        values = subjects.get(fold, [])
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(position + spread, values, "o", **dot)
        mean = mean_of_defined(in_means.get(fold, ()))
        axes.plot([position - 0.25, position + 0.25], [mean, mean], color="black", lw=1.2)
        if fold in averages:
            axes.plot([position + 0.2], [averages[fold]], "s", **dot)
    axes.set_xticks(range(len(folds)), [escape(fold) for fold in folds], rotation=45, ha="right")
    axes.set_xlim(-0.6, len(folds) - 0.4)


def _draw_alphas(axes: Any, fit: FitScores) -> None:
    n_alphas = fit.alpha_grid.shape[1]
    positions = alpha_positions(fit)
    grid = np.exp(np.log(fit.alpha_grid).mean(axis=0))
    edges = _log_edges(grid)
    for chosen, name, style in (
        (positions, "all vertices", {"fill": True, "color": "#c4c4c4"}),
        (
            positions[:, fit.mean_r > LOW_R],
            f"vertices with r > {LOW_R}",
            {"color": "#0072B2", "linewidth": 1.5},
        ),
    ):
        counts = np.bincount(chosen[chosen >= 0], minlength=n_alphas)
        shares = 100 * counts / max(1, counts.sum())
        axes.stairs(shares, edges, label=name, **style)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    if edges[-1] > 1000 * edges[0]:  # a narrow axis may have no power of ten to show
        axes.xaxis.set_minor_locator(NullLocator())  # eight for each of them, and most of the figure's time


def _edge_text(fit: FitScores) -> str:
    row = alpha_row(fit)
    return (
        f"low edge {format_share(row.share_low_edge)}, "
        f"high edge {format_share(row.share_high_edge_over_0_1)} of r > {LOW_R}"
    )


def _log_edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of bins around centres on a logarithmic scale, half a step beyond the outer ones."""
    log = np.log(centres)
    middle = (log[:-1] + log[1:]) / 2
    first = 2 * log[0] - middle[0] if middle.size else log[0] - 0.5
    last = 2 * log[-1] - middle[-1] if middle.size else log[-1] + 0.5
    edges: NDArray[np.float64] = np.exp(np.concatenate([[first], middle, [last]]))
    return edges


def _r_bins(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Edges of bins on multiples of `R_BIN` that hold all values, and r = 0 to .1 at least."""
    finite = np.concatenate([array[np.isfinite(array)] for array in values])
    low = min(0.0, finite.min()) if finite.size else 0.0
    high = max(LOW_R, finite.max()) if finite.size else LOW_R
    edges: NDArray[np.float64] = R_BIN * np.arange(math.floor(low / R_BIN), math.floor(high / R_BIN) + 2)
    return edges


def _median(arrays: Sequence[NDArray[np.floating[Any]]]) -> float:
    finite = np.concatenate([array[np.isfinite(array)] for array in arrays])
    return float(np.median(finite)) if finite.size else math.nan


def _gapped(values: NDArray[np.floating[Any]], used: NDArray[np.bool_]) -> NDArray[np.floating[Any]]:
    return np.where(used, values, np.nan)


def _spans(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open spans of rows where a flag is set."""
    steps = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def _r_label(n_folds: int) -> str:
    return "r (Pearson)" if n_folds == 1 else f"r (Pearson), mean over {n_folds} folds"

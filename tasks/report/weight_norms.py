"""How the weights of the FIR window are spread over its delays, over all vertices and in each region."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE, WEIGHT_NORM
from hpcenc.tasks.nested import mean_excess
from hpcenc.tasks.report.data import FitScores
from hpcenc.tasks.report.sections import Column, Illustration, Table, count, span_of, style_places
from hpcenc.tasks.report.style import (
    TITLE_SIZE,
    escape,
    fit_layout,
    hide_unused,
    line_style,
    new_figure,
    panel_grid,
    render,
    set_title,
    style_axes,
)
from hpcenc.tasks.report.sweeps import ALL_VERTICES, Masks
from hpcenc.tasks.report.tables import format_score, format_share

MAX_PANELS = 12
"""Panels of a figure with one for each region; more would be too small to read, or a figure too long."""

NO_NORMS = (
    "No norms of the weights by delay: they are kept with primal weights of several delays "
    '(fit.weights = "primal").'
)


@dataclass(frozen=True)
class NormRow:
    """Weights of one delay of the window, over the vertices of a region whose r is above their chance level.

    Attributes
    ----------
    n_above : int
        These vertices.
    mean_norm : float
        Norm of a vertex's weights over features, mean over them; NaN where there are none, or no chance
        level.
    share : float
        `mean_norm` as a share of its sum over delays.
    """

    feature_set: str
    subject: str
    region: str
    delay: int
    n_above: int
    mean_norm: float
    share: float


def norm_rows(fits: Sequence[FitScores], regions: Masks) -> tuple[NormRow, ...]:
    """Lines of all fits of the shown subject whose weights' norms were kept; the average is preferred."""
    kept = [fit for fit in fits if any(name.startswith(WEIGHT_NORM) for name in fit.more)]
    subjects = [fit.subject for fit in kept]
    shown = AVERAGE if AVERAGE in subjects else subjects[0] if subjects else ""
    kept = [fit for fit in kept if fit.subject == shown]
    n_layers = Counter(fit.feature_set for fit in kept)
    rows = []
    for fit in kept:
        several = n_layers[fit.feature_set] > 1
        label = f"{fit.feature_set} {fit.variant}" if several else fit.feature_set
        above = mean_excess(fit.r, fit.chance) > 0
        for region, mask in ({ALL_VERTICES: np.ones(len(above), dtype=bool)} | dict(regions)).items():
            delays, norms = mean_norms(fit, above & mask)
            shares = norms / norms.sum()
            n_above = int(np.count_nonzero(above & mask))
            rows += [
                NormRow(label, shown, region, delay, n_above, float(norm), float(share))
                for delay, norm, share in zip(delays, norms, shares, strict=True)
            ]
    return tuple(rows)


def mean_norms(fit: FitScores, vertices: NDArray[np.bool_]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Mean norm of the weights at each delay, in the last fold whose weights are kept.

    Parameters
    ----------
    fit : FitScores
    vertices : array of bool, shape (n_voxels,)
        Over which the mean is taken.

    Returns
    -------
    delays : tuple of int
        In TRs.
    norms : array of shape (n_delays,)
        Of weights of z-scored BOLD on z-scored features; NaN where no vertex has one.
    """
    names = [name for name in fit.more if name.startswith(WEIGHT_NORM)]
    means = []
    for name in names:
        values = fit.more[name][:, vertices]
        kept = values[np.isfinite(values).all(axis=1)]
        means.append(float(kept[-1].mean()) if kept.size else math.nan)
    return tuple(int(name.removeprefix(WEIGHT_NORM)) for name in names), np.array(means)


def norms_table(rows: Sequence[NormRow]) -> Table:
    """Of all vertices; the file has the regions too."""
    return Table(
        "weight_norms",
        f"Norm of the window's weights by delay over the vertices of {rows[0].subject} above chance; the "
        "file has the regions too.",
        [row for row in rows if row.region == ALL_VERTICES],
        (
            Column("feature_set", "feature set"),
            Column("delay", "delay (TRs)", count),
            Column("n_above", "vertices above chance", count),
            Column("mean_norm", "mean norm", format_score),
            Column("share", "share", format_share),
        ),
        in_file=rows,
    )


def draw_weight_norms(
    rows: Sequence[NormRow], *, title: str, remark: str = "", order: Sequence[str] = ()
) -> Figure:
    """Norm of the window's weights at each delay as a share of its sum over delays, a panel for each region.

    Parameters
    ----------
    rows : sequence of NormRow
    title, remark : str
    order : sequence of str
        Feature sets of the report, whose colours the lines have.
    """
    regions = list(dict.fromkeys(row.region for row in rows))
    labels = list(dict.fromkeys(row.feature_set for row in rows))
    places = style_places(labels, order)
    n_rows, n_columns = panel_grid(len(regions), n_columns=2)
    figure = new_figure(height_in=0.8 + 2.1 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True).ravel()
    for panel, region in zip(panels, regions, strict=False):
        of_region = [row for row in rows if row.region == region]
        for label in labels:
            line = [row for row in of_region if row.feature_set == label]
            panel.plot(
                [row.delay for row in line],
                [100 * row.share for row in line],
                marker="o",
                ms=3,
                lw=1.4,
                label=escape(label),
                **line_style(places[label]),
            )
        n_above = span_of([row.n_above for row in of_region])
        panel.set_title(f"{escape(region)} (n = {n_above} vertices)", loc="left", fontsize=TITLE_SIZE)
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        style_axes(panel)
    hide_unused(panels, len(regions))
    for first in range(0, len(regions), n_columns):
        panels[first].set_ylabel("share of the norms (%)")
    for panel in panels[max(0, len(regions) - n_columns) : len(regions)]:
        panel.set_xlabel("delay (TRs)")
        panel.tick_params(labelbottom=True)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=2, fontsize=8, frameon=False, borderpad=0)
    set_title(figure, title, remark)
    fit_layout(figure, bottom=0.18 * -(-len(names) // 2) + 0.1)
    return figure


def norms_figure(rows: Sequence[NormRow], remark: str, order: Sequence[str]) -> Illustration:
    """The figure of all vertices and of the first regions."""
    subject = rows[0].subject
    with_vertices = (row.region for row in rows if row.n_above > 0 or row.region == ALL_VERTICES)
    shown = list(dict.fromkeys(with_vertices))[:MAX_PANELS]
    figure = draw_weight_norms(
        [row for row in rows if row.region in shown],
        title=f"Weights of the FIR window · {subject}",
        remark=remark,
        order=order,
    )
    curves: dict[str, list[NormRow]] = {}
    for row in rows:
        if row.region == ALL_VERTICES:
            curves.setdefault(row.feature_set, []).append(row)
    largest = [
        f"{label}: {max(line, key=lambda row: row.share).delay} TRs"
        for label, line in curves.items()
        if not any(math.isnan(row.share) for row in line)
    ]
    return Illustration(
        "delays",
        f"weight norms {subject}",
        render(figure),
        "Norm of the window's weights over features at each delay, mean over the n valid vertices of "
        f"{subject} in each region whose r is above their chance level, as a share (%) of its sum over "
        "delays. Weights are those of z-scored BOLD on z-scored features, in the last fold whose weights are "
        "kept. A region without such a vertex has no panel. A penalty spreads them over neighbouring delays "
        "of slow features.",
        f"Curves of the norm of weights by delay; largest over all vertices: {'; '.join(largest) or 'none'}.",
    )

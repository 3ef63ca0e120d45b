"""The report's section on regions: mean r of every region, model and subject."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.regions import RegionSet
from hpcenc.tasks.report.data import FitScores, ReportData
from hpcenc.tasks.report.sections import (
    Column,
    Illustration,
    Section,
    Table,
    count,
    name_some,
    span_of,
    style_places,
)
from hpcenc.tasks.report.style import (
    escape,
    fit_layout,
    line_style,
    new_figure,
    render,
    set_title,
    style_axes,
)
from hpcenc.tasks.report.tables import (
    format_score,
    format_share,
    mean_of_defined,
    share_over_chance,
    summarise,
)

MAX_BARS = 40
"""Regions of a set that has a bar figure; the table holds every set."""


@dataclass(frozen=True)
class RegionRow:
    """r of one feature set in one region of one subject, over its valid vertices."""

    regions: str
    region: str
    feature_set: str
    variant: str
    subject: str
    n_subjects: int
    n_defined: int
    """Subjects with a valid vertex there, of which the numbers are means."""
    n_valid: int
    """Valid vertices; of a mean the fewest of any subject who has some."""
    mean_r: float
    sd_r: float
    """Standard deviation of `mean_r` between subjects, NaN for one."""
    median_r: float
    max_r: float
    mean_best_tenth: float
    share_over_0_1: float
    share_over_0_3: float
    share_over_chance: float
    """Of the vertices that have a chance level, mean over the folds that have any."""


def region_rows(data: ReportData, regions: Sequence[RegionSet]) -> tuple[RegionRow, ...]:
    """Lines of all fits and regions; before them the means over subjects of complete fits.

    Means over subjects are plain means of the numbers of those who have a valid vertex there.
    """
    own = [row for fit in data.scores for each in regions for row in _rows_of(fit, each)]
    means = []
    in_means = {(fit.feature_set, fit.variant, fit.subject) for fit in data.scores if fit.in_means}
    groups: dict[tuple[str, ...], list[RegionRow]] = {}
    for row in own:
        if (row.feature_set, row.variant, row.subject) in in_means:
            groups.setdefault((row.regions, row.region, row.feature_set, row.variant), []).append(row)
    for rows in groups.values():
        if len(rows) > 1:
            defined = [row for row in rows if row.n_valid]
            r = [row.mean_r for row in defined]
            means.append(
                replace(
                    rows[0],
                    subject=f"mean of {len(rows)} subjects",
                    n_subjects=len(rows),
                    n_defined=len(defined),
                    n_valid=min((row.n_valid for row in defined), default=0),
                    sd_r=float(np.std(r, ddof=1)) if len(r) > 1 else math.nan,
                    **_averaged(rows),
                )
            )
    return (*means, *own)


def _averaged(rows: Sequence[RegionRow]) -> dict[str, Any]:
    """What of some subjects' rows is averaged, over those who have a value."""
    names = ("mean_r", "median_r", "max_r", "mean_best_tenth", "share_over_0_1", "share_over_0_3")
    return {
        name: mean_of_defined(getattr(row, name) for row in rows) for name in (*names, "share_over_chance")
    }


def region_section(data: ReportData, regions: Sequence[RegionSet], remark: str = "") -> Section:
    """The section on regions.

    Parameters
    ----------
    data : ReportData
    regions : sequence of RegionSet
        At least one.
    remark : str
        Said in every figure.
    """
    rows = region_rows(data, regions)
    first = regions[0]
    # Who stands for all: means over subjects and the average, or else each subject.
    summary = [row for row in rows if row.n_subjects > 1 or row.subject == AVERAGE]
    shown = [row for row in summary or rows if row.regions == first.name]
    table = Table(
        "regions",
        f"r over the valid vertices of each region: {first.name} ({first.source}); the file has all sets "
        "and subjects.",
        shown,
        (
            Column("region", "region"),
            Column("feature_set", "feature set"),
            Column("variant", "layer"),
            Column("subject", "subject"),
            Column("n_defined", "subjects with any", count),
            Column("n_valid", "valid vertices", count),
            Column("mean_r", "mean r", format_score),
            Column("sd_r", "SD between subjects", format_score),
            Column("median_r", "median r", format_score),
            Column("max_r", "max r", format_score),
            Column("mean_best_tenth", "mean of best 10 %", format_score),
            Column("share_over_chance", "over chance", format_share),
        ),
        in_file=rows,
    )
    drawn = dict.fromkeys(row.subject for row in summary or rows[:1])
    figures = [
        _bars(data, each, subject, rows, remark)
        for each in regions
        if len(each.masks) <= MAX_BARS
        for subject in drawn
    ]
    sources = "; ".join(f"{each.name}: {each.source}" for each in regions)
    paragraphs = (
        f"Regions are {sources}. A vertex may be in several masks, or in none. Means are over the vertices "
        "where r is defined in every fold.",
        *(
            f"{each.name} has {len(each.masks)} regions, too many for bars (at most {MAX_BARS}): see "
            "tables/regions.csv."
            for each in regions
            if len(each.masks) > MAX_BARS
        ),
    )
    return Section("regions", "Regions", paragraphs, (table,), tuple(figures))


def _rows_of(fit: FitScores, regions: RegionSet) -> list[RegionRow]:
    rows = []
    for name, mask in regions.masks.items():
        r = summarise(fit.mean_r[mask])
        rows.append(
            RegionRow(
                regions.name,
                name,
                fit.feature_set,
                fit.variant,
                fit.subject,
                1,
                int(r.n_valid > 0),
                int(r.n_valid),
                r.mean,
                math.nan,
                r.median,
                r.max,
                r.mean_best_tenth,
                r.share_over_0_1,
                r.share_over_0_3,
                mean_of_defined(share_over_chance(fit.r[:, mask], fit.chance[:, mask])),
            )
        )
    return rows


def _bars(
    data: ReportData, regions: RegionSet, subject: str, rows: Sequence[RegionRow], remark: str
) -> Illustration:
    shown = [row for row in rows if row.regions == regions.name and row.subject == subject]
    in_means = {(fit.feature_set, fit.variant, fit.subject) for fit in data.scores if fit.in_means}
    own = [
        row
        for row in rows
        if row.regions == regions.name and (row.feature_set, row.variant, row.subject) in in_means
    ]
    title = f"Mean r by region · {subject}"
    several = bool(shown) and shown[0].n_subjects > 1
    figure = draw_bars(
        shown,
        list(regions.masks),
        own if several else (),
        title=title,
        remark=remark,
        order=data.labels,
    )
    best = max((row for row in shown if not math.isnan(row.mean_r)), key=lambda row: row.mean_r, default=None)
    there = {(row.feature_set, row.variant) for row in shown}
    missing = [data.label(fit) for fit in data.scores if (fit.feature_set, fit.variant) not in there]
    without = f" Without bars here: {', '.join(dict.fromkeys(missing))}." if missing else ""
    spread = "; whiskers: standard deviation between subjects, dots: each of them" if several else ""
    partly = dict.fromkeys(row.region for row in shown if 0 < row.n_defined < row.n_subjects)
    if partly:
        without += f" Means of only those subjects who have a valid vertex there: {name_some(list(partly))}."
    return Illustration(
        "regions",
        f"regions {regions.name} {subject}",
        render(figure),
        f"Mean r (Pearson, no unit) over the valid vertices of each region of {regions.name}, "
        f"{subject}{spread}. In brackets: valid vertices, fewest and most where feature sets differ."
        f"{without}",
        f"Bars of mean r; the highest is {best.mean_r:.3f}, {best.feature_set} ({best.variant}) in "
        f"{best.region}."
        if best
        else "No region has a valid vertex.",
    )


def draw_bars(
    rows: Sequence[RegionRow],
    labels: Sequence[str],
    own: Sequence[RegionRow] = (),
    *,
    title: str,
    remark: str = "",
    order: Sequence[str] = (),
) -> Figure:
    """Horizontal bars of mean r: a group for each region, a bar for each feature set.

    Parameters
    ----------
    rows : sequence of RegionRow
        Of one subject.
    labels : sequence of str
        Regions.
    own : sequence of RegionRow
        Of the subjects whose mean the bars are, a dot each.
    title, remark : str
    order : sequence of str
        Feature sets of the report, whose colours the bars have.
    """
    sets = list(dict.fromkeys((row.feature_set, row.variant) for row in rows))
    several = Counter(feature_set for feature_set, _ in sets)
    names = [f"{name} {variant}" if several[name] > 1 else name for name, variant in sets]
    places = style_places(names, order)
    values = {(row.region, row.feature_set, row.variant): row for row in rows}
    height = 0.8 / max(1, len(sets))
    figure = new_figure(height_in=1.0 + len(labels) * max(0.22, 0.09 * len(sets)))
    axes = figure.subplots()
    positions = np.arange(len(labels))
    where = dict(zip(labels, positions, strict=True))
    for place, (feature_set, variant) in enumerate(sets):
        of_set = [values[label, feature_set, variant] for label in labels]
        deviations = [0 if math.isnan(row.sd_r) else row.sd_r for row in of_set]
        axes.barh(
            positions + (place - (len(sets) - 1) / 2) * height,
            [row.mean_r for row in of_set],
            height=height,
            xerr=deviations if any(deviations) else None,
            error_kw={"elinewidth": 0.7},
            color=line_style(places[names[place]])["color"],
            label=escape(names[place]),
        )
        dots = [row for row in own if (row.feature_set, row.variant) == (feature_set, variant)]
        axes.plot(
            [row.mean_r for row in dots],
            [where[row.region] + (place - (len(sets) - 1) / 2) * height for row in dots],
            linestyle="none",
            marker="o",
            markersize=2,
            markeredgewidth=0,
            color="black",
            alpha=0.5,
        )
    counts = [span_of([values[(label, *each)].n_valid for each in sets]) for label in labels]
    axes.set_yticks(positions, [f"{escape(label)} ({n})" for label, n in zip(labels, counts, strict=True)])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("mean r (Pearson)")
    style_axes(axes)
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0.2)
    set_title(figure, title, remark)
    fit_layout(figure)
    return figure

"""Sections of the report on sweeps: over delays, over layers, and fits in bands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.band_table import band_table, main_r
from hpcenc.tasks.report.data import FitScores
from hpcenc.tasks.report.sections import Column, Illustration, Section, Table, count, name_some
from hpcenc.tasks.report.style import render
from hpcenc.tasks.report.surface_map import has_cortical_map, paint_cortex
from hpcenc.tasks.report.surface_view import SurfaceMap
from hpcenc.tasks.report.sweep_figures import draw_choices, draw_curves
from hpcenc.tasks.report.sweeps import ALL_VERTICES, Sweep, alike, choice_row, curve_rows
from hpcenc.tasks.report.tables import format_score, format_share
from hpcenc.tasks.report.weight_norms import MAX_PANELS, NO_NORMS, norm_rows, norms_figure, norms_table

TITLES = {"delays": "Delays", "layers": "Layers", "bands": "One penalty or two"}
NOUNS = {"delays": "single delay", "layers": "layer", "bands": "ratio of scalings"}

IN_WORDS = NOUNS | {"bands": "ratio of scalings (first : second; a larger scaling is a smaller penalty)"}
"""The same for captions and titles of tables, where a noun alone may be read the other way round."""

UNITS = {
    "delays": "best delay (TRs)",
    "layers": "best layer",
    "bands": "log10 of the best ratio of scalings (first : second)",
}
"""Of maps of the best variant."""

_CHOICE_COLUMNS = (
    Column("feature_set", "feature set"),
    Column("subject", "subject"),
    Column("n_valid", "valid vertices", count),
    Column("fixed", "best fixed one"),
    Column("fixed_mean_r", "mean r, one for all", format_score),
    Column("nested_mean_r", "mean r, each vertex its own", format_score),
    Column("window_mean_r", "mean r of the main fit", format_score),
    Column("share_with_best", "above chance", format_share),
)

_HOW = (
    "Each vertex chooses by the error of the inner folds, with its own alpha, in every outer fold anew; r "
    "is over the test rows, which have no say in it. A vertex whose r is not above its chance level has no "
    "best {noun}. The best fixed one is chosen likewise, for all vertices together by their mean, in every "
    "outer fold anew; the table names that of the mean over outer folds, which decides no r."
)
_WHAT = {
    "delays": "Fits of single delays beside the FIR window. All single delays leave out the rows that the "
    "longest of them and of the window reaches, so that they are scored on the same rows. {window}",
    "layers": "Fits of every layer with the whole FIR window.",
    "bands": "Two feature sets with a penalty each, beside their sum under one penalty, which is the ratio "
    "1. The kernel of each has a scaling, and a ratio is that of the first to the second; a larger scaling "
    "is a smaller penalty. The grid of 5 × 5 scalings from 0.01 to 100 has nine ratios; what both scalings "
    "share is a matter of alpha. What a set adds to r is the covariance of its part of the prediction with "
    "BOLD, over the deviations of BOLD and of the whole prediction: the two add up to r.",
}


def sweep_section(
    kind: str,
    sweeps: Sequence[Sweep],
    fits: Sequence[FitScores],
    voxels: VoxelAxis,
    *,
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
    window: str = "",
    remark: str = "",
    order: Sequence[str] = (),
    other_rows: Sequence[Sweep] = (),
) -> Section:
    """The section of one kind of sweep.

    Parameters
    ----------
    kind : {"delays", "layers", "bands"}
    sweeps : sequence of Sweep
        Of that kind, at least one.
    fits : sequence of FitScores
        Main fits, which sweeps are compared with.
    voxels : VoxelAxis
    regions : mapping of str to array of shape (n_voxels,), optional
        Regions in which the norms of weights have curves of their own.
    window : str
        How the audio windows of the features lie, in a sentence: it moves the best delay.
    remark : str
        Said in every figure, such as that the BOLD is simulated.
    order : sequence of str
        Feature sets of the report: each has one colour in all figures.
    other_rows : sequence of Sweep
        Those whose main fit was scored on other rows.
    """
    regions = regions or {}
    main = {(fit.feature_set, fit.variant, fit.subject): fit.mean_r for fit in fits}
    choices = [
        choice_row(sweep, main_r(main, sweep.feature_set, sweep.layer, sweep.subject)) for sweep in sweeps
    ]
    norms = norm_rows(fits, regions) if kind == "delays" else ()
    tables = [
        Table(
            f"{kind}_choices",
            f"What each {IN_WORDS[kind]} and the choice among them score.",
            choices,
            _CHOICE_COLUMNS,
        ),
        *([band_table(sweeps, main)] if kind == "bands" else []),
        _curve_table(kind, sweeps),
    ]
    maps = best_maps(kind, sweeps) if has_cortical_map(voxels) else []
    figures = [
        _curves(kind, sweeps, window, remark, order),
        _choices(kind, sweeps, remark, order),
        *(_painted(kind, sweep, shown, voxels, remark) for sweep, shown in maps),
        *([norms_figure(norms, remark, order)] if norms else []),
    ]
    if norms:
        tables.append(norms_table(norms))
    paragraphs = (
        _WHAT[kind].format(window=window).strip(),
        _HOW.format(noun=NOUNS[kind]),
        *_left_out_panels(sweeps),
        *([NO_NORMS] if kind == "delays" and fits and not norms else []),
        *([_rows_of_main_fits(kind, other_rows)] if fits else []),
    )
    shown_maps = tuple(shown for _, shown in maps)
    return Section(kind, TITLES[kind], paragraphs, tuple(tables), tuple(figures), shown_maps)


def _with_curves(sweeps: Sequence[Sweep]) -> list[str]:
    """All vertices and the regions, but those without a valid vertex in any sweep."""
    return [
        region
        for region in sweeps[0].curves
        if region == ALL_VERTICES or any(np.isfinite(sweep.curves[region]).any() for sweep in sweeps)
    ]


def _left_out_panels(sweeps: Sequence[Sweep]) -> Iterator[str]:
    regions = _with_curves(sweeps)
    if len(regions) > MAX_PANELS:
        yield (
            f"Curves are drawn of all vertices and of the first {MAX_PANELS - 1} of {len(regions) - 1} "
            "regions; the tables' files have all."
        )
    empty = [region for region in sweeps[0].curves if region not in regions]
    if empty:
        yield f"Without a valid vertex, and so without a curve: {name_some(empty)}."


def _rows_of_main_fits(kind: str, other_rows: Sequence[Sweep]) -> str:
    """Whether the mean r of the main fits can be held against that of the sweeps."""
    if not other_rows:
        return "The main fits are scored on the same rows."
    why = "its window reaches less far than the longest single delay, or " if kind == "delays" else ""
    of_set: dict[str, list[str]] = {}
    for sweep in other_rows:
        of_set.setdefault(sweep.label, []).append(sweep.subject)
    whose = "; ".join(f"{label} of {name_some(subjects)}" for label, subjects in of_set.items())
    return (
        f"The main fit was scored on other rows than the sweep in {whose}: {why}one of the two was made with "
        "other settings. Its mean r and that of the sweep are not to be compared there."
    )


def _curve_table(kind: str, sweeps: Sequence[Sweep]) -> Table:
    rows, subject = curve_rows(sweeps), of_whom(sweeps)
    return Table(
        f"{kind}_curves",
        f"Mean r of each {IN_WORDS[kind]} over all valid vertices of {subject}; the file has all subjects "
        "and the regions too.",
        [row for row in rows if (row.region, row.subject) == (ALL_VERTICES, subject)],
        (
            Column("feature_set", "feature set"),
            Column("variant", NOUNS[kind]),
            Column("n_valid", "valid vertices", count),
            Column("mean_r", "mean r", format_score),
        ),
        in_file=rows,
    )


def _curves(
    kind: str, sweeps: Sequence[Sweep], window: str, remark: str, order: Sequence[str]
) -> Illustration:
    by_set: dict[str, list[Sweep]] = {}
    for sweep in sweeps:
        by_set.setdefault(sweep.label, []).append(sweep)
    regions = _with_curves(sweeps)[:MAX_PANELS]
    figure = draw_curves(by_set, regions, title=f"Mean r by {NOUNS[kind]}", remark=remark, order=order)
    subject = of_whom(sweeps)
    peaks = [
        f"{sweep.label}: {sweep.labels[int(np.argmax(sweep.curves[ALL_VERTICES]))]}"
        for sweep in sweeps
        if sweep.subject == subject and np.isfinite(sweep.curves[ALL_VERTICES]).all()
    ]
    return Illustration(
        kind,
        f"{kind} curves",
        render(figure),
        "Mean r (Pearson, no unit) over the valid vertices of each region by "
        f"{IN_WORDS[kind]}. {_lines(by_set)}{_partly(by_set, regions)} {window}".strip(),
        f"Curves of mean r. Largest over all vertices ({subject}): {'; '.join(peaks) or 'none'}.",
    )


def _lines(by_set: Mapping[str, Sequence[Sweep]]) -> str:
    """What the lines of the curves are, and who has none."""
    grouped = {label: alike(of_set) for label, of_set in by_set.items()}
    counts = sorted({len(in_mean) for in_mean, _ in grouped.values() if in_mean})
    kinds = []
    if counts and counts[-1] > 1:
        span = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        kinds.append(
            f"lines with bands: mean over subjects and standard deviation between them (n = {span}, complete "
            "ones)"
        )
    elif counts:
        kinds.append("lines: the one subject whose sweep is complete")
    if any(sweep.subject == AVERAGE for of_set in by_set.values() for sweep in of_set):
        kinds.append("dashed: the average's BOLD")
    text = "; ".join(kinds) or "no line: no subject's sweep is complete"
    others = {label: [sweep.subject for sweep in left_out] for label, (_, left_out) in grouped.items()}
    named = [f"{label} of {name_some(subjects)}" for label, subjects in others.items() if subjects]
    return f"{text[0].upper()}{text[1:]}." + (
        f" Not drawn, for their variants are others; the table has them: {'; '.join(named)}." if named else ""
    )


def _partly(by_set: Mapping[str, Sequence[Sweep]], regions: Sequence[str]) -> str:
    """Regions whose mean curve is of some of its subjects only."""
    in_mean = [sweep for of_set in by_set.values() for sweep in alike(of_set)[0]]
    partly = [
        region
        for region in regions
        if len({bool(np.isfinite(sweep.curves[region]).any()) for sweep in in_mean}) > 1
    ]
    return (
        f" Means of only those subjects who have a valid vertex there: {name_some(partly)}." if partly else ""
    )


def of_whom(sweeps: Sequence[Sweep]) -> str:
    """Whose figures are shown where one subject stands for all: the average, or the first one."""
    subjects = [sweep.subject for sweep in sweeps]
    return AVERAGE if AVERAGE in subjects else subjects[0]


def _choices(kind: str, sweeps: Sequence[Sweep], remark: str, order: Sequence[str]) -> Illustration:
    subject = of_whom(sweeps)
    shown = {sweep.label: sweep for sweep in sweeps if sweep.subject == subject}
    figure = draw_choices(shown, title=f"Chosen {NOUNS[kind]} · {subject}", remark=remark, order=order)
    counts = [
        f"{label}: {np.count_nonzero(sweep.best >= 0):,} vertices above chance"
        if sweep.n_with_chance
        else f"{label}: no chance level"
        for label, sweep in shown.items()
    ]
    return Illustration(
        kind,
        f"{kind} chosen {subject}",
        render(figure),
        f"Share (%) of the vertices of {subject} that have each {IN_WORDS[kind]} as their best one, of the n "
        "vertices whose r is above their own chance level.",
        f"Bars of the chosen {NOUNS[kind]}; {'; '.join(counts)}.",
    )


def best_maps(kind: str, sweeps: Sequence[Sweep]) -> list[tuple[Sweep, SurfaceMap]]:
    """Maps of the best variants of whoever is shown, of sweeps in which a vertex has one."""
    subject = of_whom(sweeps)
    maps = []
    for sweep in sweeps:
        if sweep.subject != subject or not (sweep.best >= 0).any():
            continue
        # Ratios are steps of a power of ten.
        scale, values = np.array(sweep.values), sweep.best_values
        if kind == "bands":
            scale, values = np.log10(scale), np.log10(values)
        limits = float(scale.min()), float(scale.max())
        name = f"best {NOUNS[kind]} · {sweep.label} · {subject}"
        maps.append((sweep, SurfaceMap(name, values, limits, UNITS[kind])))
    return maps


def _painted(kind: str, sweep: Sweep, shown: SurfaceMap, voxels: VoxelAxis, remark: str) -> Illustration:
    figure = paint_cortex(
        shown.values,
        voxels,
        limits=shown.limits,
        unit=shown.unit,
        title=f"Best {NOUNS[kind]} · {sweep.label} · {sweep.subject}",
        remark=remark,
    )
    best = shown.values[voxels.positions("cortex")]
    best = best[np.isfinite(best)]
    return Illustration(
        kind,
        f"{kind} map {sweep.label} {sweep.subject}",
        render(figure),
        f"Best {IN_WORDS[kind]} of each vertex of {sweep.subject} with {sweep.label}; n = {best.size:,} "
        "vertices whose r is above their own chance level. Grey: not above it, undefined, or medial wall.",
        f"Cortical map of the best {NOUNS[kind]}; median {np.median(best):g} ({shown.unit})."
        if best.size
        else "No vertex of the cortex has one.",
    )

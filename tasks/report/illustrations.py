"""Which figures a report shows, each with its caption and alternative text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.data import FitScores, ReportData, TimeCourse, mean_over_subjects
from hpcenc.tasks.report.figures import (
    R_BIN,
    draw_alpha_histograms,
    draw_fold_scores,
    draw_r_histograms,
    draw_time_course,
)
from hpcenc.tasks.report.sections import Illustration
from hpcenc.tasks.report.style import render
from hpcenc.tasks.report.surface_map import has_cortical_map, paint_cortex
from hpcenc.tasks.report.tables import LOW_R, summarise

SHOWN_SUBJECTS = 4
"""Subjects with figures of their own; the tables and .dscalar.nii files hold all of them."""

SHOWN_MAPS = 24
"""Cortical maps at most: 0.7 MB and 1.3 s each."""


@dataclass(frozen=True, eq=False)
class CorticalMap:
    """A map of r that is to be painted."""

    label: str
    subject: str
    """A subject, or ``mean of N subjects``."""
    r: NDArray[np.float64]
    n_folds: int
    remark: str = ""


def illustrate(data: ReportData) -> Iterator[Illustration]:
    """Draw a report's figures one after the other, in the order of its page."""
    shown = shown_subjects(data)
    for subject in shown:
        yield _r_histograms(data, subject)
    if data.scores:
        yield _fold_scores(data)
    if has_cortical_map(data.voxels):
        limits = r_limits([fit.mean_r for fit in data.scores])
        for cortical_map in cortical_maps(data)[:SHOWN_MAPS]:
            yield _cortical_map(data, cortical_map, limits)
    for course in data.courses:
        yield _time_course(data, course)
    for subject in shown:
        yield _alpha_histograms(data, subject)


def cortical_maps(data: ReportData) -> tuple[CorticalMap, ...]:
    """Maps worth painting, the most telling first: means over subjects, then the first subjects' own.

    A mean takes complete fits with valid vertices only, and is made where there are two or more.
    """
    means = [
        CorticalMap(label, f"mean of {len(fits)} subjects", mean_over_subjects(fits), len(fits[0].folds))
        for label, fits in data.fits_in_means().items()
    ]
    own = [
        CorticalMap(label, subject, fit.mean_r, len(fit.folds), _progress(fit))
        for subject in shown_subjects(data)
        for label, fit in data.fits_by_label(subject).items()
    ]
    return (*means, *own)


def r_limits(values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Range of the colours: 0 to the 99.9th percentile of all values, rounded up to .05; at least .1."""
    finite = np.concatenate([array[np.isfinite(array)] for array in values]) if values else np.empty(0)
    top = float(np.percentile(finite, 99.9)) if finite.size else 0.0
    return 0.0, max(0.1, math.ceil(round(top / 0.05, 6)) * 0.05)


def shown_subjects(data: ReportData) -> tuple[str, ...]:
    """Subjects with figures of their own: the average, then the first ones."""
    return tuple(sorted(data.subjects, key=lambda subject: subject != AVERAGE)[:SHOWN_SUBJECTS])


def hidden_subjects(data: ReportData) -> str:
    """Sentence on the subjects that have no figures of their own; empty if all have."""
    shown, n_subjects = shown_subjects(data), len(data.subjects)
    if n_subjects == len(shown):
        return ""
    return f"Figures of single subjects show {', '.join(shown)}, of {n_subjects}; the tables hold all."


def _r_histograms(data: ReportData, subject: str) -> Illustration:
    fits = data.fits_by_label(subject)
    summaries = {label: summarise(fit.mean_r) for label, fit in fits.items()}
    n_folds = len(next(iter(fits.values())).folds)
    return Illustration(
        "accuracy",
        f"r histogram {subject}",
        render(
            draw_r_histograms(
                fits, title=f"Prediction accuracy · {subject}", remark=_remark(data), order=data.labels
            )
        ),
        f"Histogram of r (Pearson, no unit) over the valid vertices of {subject}: r of a vertex is its "
        f"{_over_folds(n_folds)}; bins of {R_BIN:g}; the number of vertices is on a logarithmic axis. "
        "n: valid vertices. Dotted line: the median vertex's chance level of r in a single fold (99.9th "
        f"percentile of r under circular shifts).{_progress_sentence(fits)}",
        f"Histograms of r in {subject}. "
        + " ".join(
            f"{label}: median {r.median:.3f}, best tenth {r.mean_best_tenth:.3f}, largest {r.max:.3f}."
            for label, r in summaries.items()
        ),
    )


def _fold_scores(data: ReportData) -> Illustration:
    fits = {label: [fit for fit in data.scores if data.label(fit) == label] for label in data.labels}
    n_in_means = [sum(fit.in_means for fit in of_label) for of_label in fits.values()]
    span = f"{min(n_in_means)}" if len(set(n_in_means)) == 1 else f"{min(n_in_means)} to {max(n_in_means)}"
    average = (
        " The square is the average of the subjects' BOLD, fitted like a subject, and in no mean."
        if AVERAGE in data.subjects
        else ""
    )
    return Illustration(
        "accuracy",
        "r by fold",
        render(draw_fold_scores(fits, title="Scores by test run", remark=_remark(data))),
        "Mean r (Pearson, no unit) of the best 10 % of the valid vertices of each outer fold, named after "
        f"its test run. A dot is a subject, a bar the mean over subjects with a complete fit (n = {span})."
        f"{average}",
        "Mean r of the best tenth of the vertices by test run and feature set; the numbers are in "
        "tables/folds.csv.",
    )


def _cortical_map(data: ReportData, cortical_map: CorticalMap, limits: tuple[float, float]) -> Illustration:
    label, subject, r = cortical_map.label, cortical_map.subject, cortical_map.r
    remark = " · ".join(filter(None, [cortical_map.remark, _remark(data)]))
    low, high = limits
    on_cortex = data.voxels.positions("cortex")
    valid = r[on_cortex][np.isfinite(r[on_cortex])]
    n_over = int((valid > high).sum())
    what = _over_folds(cortical_map.n_folds)
    figure = paint_cortex(
        r, data.voxels, limits=limits, unit=_r_unit(cortical_map), title=f"{label} · {subject}", remark=remark
    )
    return Illustration(
        "maps",
        f"r map {label} {subject}",
        render(figure),
        f"r (Pearson, no unit) of {label}, {subject}: {what} on the inflated fs_LR 32k surface; "
        f"n = {valid.size:,} valid vertices. Colours span {low:g} to {high:g} in all maps: lower values have "
        f"the lowest colour, {n_over:,} vertices lie above the highest. Grey: medial wall, or r undefined. "
        f"Shading: sulcal depth.{f' Not finished ({cortical_map.remark}).' if cortical_map.remark else ''}",
        f"Cortical map of r of {label}, {subject}, both hemispheres, lateral and medial. "
        + _peak(data.voxels, r, on_cortex),
    )


def _test_run(course: TimeCourse) -> str:
    if course.run == course.fold:
        return f"the test run {course.run}"
    return f"{course.run}, of the test rows of {course.fold}"


def _time_course(data: ReportData, course: TimeCourse) -> Illustration:
    picked = "The vertex is picked for its r, which is therefore biased upwards."
    if course.named:
        picked = "Of all feature sets the one is drawn that predicts this vertex best."
    return Illustration(
        "courses",
        f"time course {course.feature_set} {course.subject} {course.fold} {course.voxel}",
        render(
            draw_time_course(course, title=f"{course.feature_set} · {course.subject}", remark=_remark(data))
        ),
        f"Measured and predicted BOLD (z-scored) of {course.place} in {course.subject}, {course.what}, with "
        f"{course.feature_set}, over {_test_run(course)}: r = {course.r:.3f}, "
        f"n = {int(course.used.sum())} scored TRs of {len(course.used)}. Grey: TRs that are not scored. "
        f"{picked}",
        f"Two lines over {len(course.used)} TRs, measured and predicted BOLD; r = {course.r:.3f}.",
    )


def _alpha_histograms(data: ReportData, subject: str) -> Illustration:
    fits = data.fits_by_label(subject)
    return Illustration(
        "alphas",
        f"alpha histogram {subject}",
        render(draw_alpha_histograms(fits, title=f"Chosen alphas · {subject}", remark=_remark(data))),
        f"Ridge penalties (alpha, in units of the kernel) chosen for the vertices of {subject}, all outer "
        "folds together, as shares of the choices made. A bar is one value of the alpha grid, at the "
        "geometric mean of what it is in the outer folds, whose kernels differ; a vertex has a choice in "
        "each. Vertices without signal belong on the highest alphas; those with r > "
        f"{LOW_R} should lie inside the grid."
        f"{_progress_sentence(fits)}",
        f"Histograms of the chosen alphas in {subject}; the shares on the grid's edges are in "
        "tables/alpha_edges.csv.",
    )


def _remark(data: ReportData) -> str:
    return "simulated BOLD" if data.simulated else ""


def _over_folds(n_folds: int) -> str:
    return "r in the only fold" if n_folds == 1 else f"plain mean over {n_folds} folds"


def _r_unit(cortical_map: CorticalMap) -> str:
    return "r" if cortical_map.n_folds == 1 else f"r, mean over {cortical_map.n_folds} folds"


def _progress(fit: FitScores) -> str:
    return "" if fit.complete else f"incomplete: {fit.blocks_done} of {fit.blocks} blocks"


def _progress_sentence(fits: dict[str, FitScores]) -> str:
    unfinished = [f"{label} ({_progress(fit)})" for label, fit in fits.items() if not fit.complete]
    return f" Not finished: {', '.join(unfinished)}." if unfinished else ""


def _peak(axis: VoxelAxis, r: NDArray[np.float64], on_cortex: NDArray[np.int64]) -> str:
    """Where on the cortex r is largest, in words."""
    if not np.isfinite(r[on_cortex]).any():
        return "No vertex is valid."
    voxel = int(on_cortex[np.nanargmax(r[on_cortex])])
    structure = (
        axis.names[int(axis.structure[voxel])].removeprefix("CIFTI_STRUCTURE_").lower().replace("_", " ")
    )
    return f"Largest r {r[voxel]:.3f}, in {structure}, vertex {int(axis.vertex[voxel])}."

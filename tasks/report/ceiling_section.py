"""The report's section on noise ceilings: what repeats, and how much of it the models predict."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.results import Ceilings
from hpcenc.tasks.ceiling import BLOCK_ROWS, N_RESAMPLES, over_ceiling
from hpcenc.tasks.report.data import FitScores, ReportData
from hpcenc.tasks.report.sections import Column, Illustration, Section, Table, count, name_some
from hpcenc.tasks.report.style import render
from hpcenc.tasks.report.surface_map import has_cortical_map, paint_cortex
from hpcenc.tasks.report.surface_view import SurfaceMap
from hpcenc.tasks.report.tables import format_score, format_share

MIN_BLOCKS = 4
"""Blocks of the bootstrap in a showing, below which the report warns of its intervals."""

SELECTED = (
    "Vertices are reliable by the very showings that give their ceilings, so that those of weak signals have "
    "too high a ceiling: a perfect model has a ratio of means of .84 where the share is .1 in all vertices, "
    ".95 where it is .2, and 1 from .4 on (simulated, four showings of 73 TRs)."
)
"""What ratios over reliable vertices suffer from."""


@dataclass(frozen=True)
class CeilingRow:
    """Noise ceilings of one subject and clip.

    Attributes
    ----------
    n_reliable : int
        Vertices whose 95 % interval of the explainable share lies above 0.
    n_without : int
        Defined vertices without a ceiling, for their share is not above 0.
    """

    subject: str
    clip: str
    n_showings: int
    n_rows: int
    n_valid: int
    n_reliable: int
    n_without: int
    median_share: float
    median_share_reliable: float
    median_ceiling_reliable: float


@dataclass(frozen=True)
class NormalisedRow:
    """r of one fit in the repeated clip beside its ceiling, over the reliable vertices.

    Attributes
    ----------
    mean_r, mean_ceiling : float
        Over the same vertices and rows.
    ratio_of_means : float
    median_ratio : float
        Of the vertices' own r over ceiling.
    n_above : int
        Vertices whose r is above their ceiling, by chance; nothing is capped.
    """

    feature_set: str
    variant: str
    subject: str
    clip: str
    n_reliable: int
    mean_r: float
    mean_ceiling: float
    ratio_of_means: float
    median_ratio: float
    n_above: int


def ceiling_rows(found: Ceilings) -> tuple[CeilingRow, ...]:
    """A line for each repeated clip of one subject."""
    rows = []
    for place, clip in enumerate(found.clips):
        showing = found.attributes["showings"][place]
        share, low = found.values["share"][place], found.values["share_low"][place]
        valid, reliable = np.isfinite(share), low > 0
        rows.append(
            CeilingRow(
                subject=found.attributes["subject"],
                clip=clip,
                n_showings=showing["n_showings"],
                n_rows=showing["n_rows"],
                n_valid=int(valid.sum()),
                n_reliable=int(reliable.sum()),
                n_without=int((valid & ~(share > 0)).sum()),
                median_share=_median(share[valid]),
                median_share_reliable=_median(share[reliable]),
                median_ceiling_reliable=_median(found.values["ceiling"][place][reliable]),
            )
        )
    return tuple(rows)


def normalised_row(fit: FitScores, found: Ceilings) -> NormalisedRow | None:
    """r of one fit over its ceiling, mean over the folds that test the clip.

    None where no test run shows one clip alone, where training has it too, or where the fit is of other BOLD
    or rows than the ceiling.
    """
    r_repeat = _r_in_clip(fit, found)
    if not r_repeat.size or _is_of_other_rows(fit, found):
        return None
    r = r_repeat.mean(axis=0)
    ceiling, low = found.values["ceiling"][0], found.values["share_low"][0]
    reliable = np.isfinite(r) & (low > 0)
    ratio = over_ceiling(r[reliable], ceiling[reliable])
    mean_r, mean_ceiling = _mean(r[reliable]), _mean(ceiling[reliable])
    return NormalisedRow(
        fit.feature_set,
        fit.variant,
        fit.subject,
        found.clips[0],
        int(reliable.sum()),
        mean_r,
        mean_ceiling,
        mean_r / mean_ceiling if reliable.any() else math.nan,
        _median(ratio),
        int((ratio > 1).sum()),
    )


def _r_in_clip(fit: FitScores, found: Ceilings) -> NDArray[np.floating[Any]]:
    """r in the clip of the folds that test it, (n_folds, n_voxels); none where several clips repeat, or where
    training has it too."""
    none: NDArray[np.floating[Any]] = np.empty((0, 0))
    if len(found.clips) != 1 or found.clips[0] in fit.clips_on_both_sides:
        return none
    r = fit.more.get("r_repeat", none)
    return np.asarray(r[np.isfinite(r).any(axis=1)])


def _is_of_other_rows(fit: FitScores, found: Ceilings) -> bool:
    """Whether a fit is of other BOLD than a ceiling, or scored a clip on other rows, as after a change of the
    study file that not all feature sets were submitted again for."""
    of_ceiling = found.attributes["bold"], found.attributes["showings"]
    return (fit.bold, list(fit.showings)) != of_ceiling


def ceiling_section(
    data: ReportData, ceilings: Mapping[str, Ceilings], reasons: Sequence[str] = (), remark: str = ""
) -> Section:
    """The section on noise ceilings.

    Parameters
    ----------
    data : ReportData
    ceilings : mapping of str to Ceilings
        By subject; at least one.
    reasons : sequence of str
        Clips that are shown again but have no ceiling, each with the reason.
    remark : str
        Said in every figure.
    """
    rows = [row for found in ceilings.values() for row in ceiling_rows(found)]
    normalised = [
        row
        for fit in data.scores
        if fit.subject in ceilings and (row := normalised_row(fit, ceilings[fit.subject])) is not None
    ]
    seen = dict.fromkeys(clip for fit in data.scores for clip in fit.clips_on_both_sides)
    unlike = [
        f"{data.label(fit)} of {fit.subject}"
        for fit in data.scores
        if fit.subject in ceilings
        and _r_in_clip(fit, ceilings[fit.subject]).size
        and _is_of_other_rows(fit, ceilings[fit.subject])
    ]
    numbers = ("n_valid", "n_reliable", "n_without")
    tables = [
        Table(
            "ceilings",
            "What repeats of BOLD when a clip is shown again.",
            rows,
            (
                Column("subject", "subject"),
                Column("clip", "clip"),
                Column("n_showings", "showings", count),
                Column("n_rows", "TRs of each", count),
                *(Column(name, name.removeprefix("n_"), count) for name in numbers),
                Column("median_share", "median share", format_score),
                Column("median_share_reliable", "of reliable ones", format_score),
                Column("median_ceiling_reliable", "their median ceiling", format_score),
            ),
        )
    ]
    if normalised:
        tables.append(
            Table(
                "over_ceiling",
                "r in the repeated clip of the test runs beside the ceiling, over the reliable vertices.",
                normalised,
                (
                    Column("feature_set", "feature set"),
                    Column("variant", "layer"),
                    Column("subject", "subject"),
                    Column("n_reliable", "vertices", count),
                    Column("mean_r", "mean r", format_score),
                    Column("mean_ceiling", "mean ceiling", format_score),
                    Column("ratio_of_means", "ratio of means", format_share),
                    Column("median_ratio", "median ratio", format_share),
                    Column("n_above", "above their ceiling", count),
                ),
            )
        )
    return Section(
        "ceilings",
        "Noise ceilings",
        _paragraphs(rows, reasons, seen, unlike, bool(normalised)),
        tuple(tables),
        tuple(_maps(data, ceilings, remark)),
        _views(data, ceilings),
    )


def short_remarks(rows: Sequence[CeilingRow]) -> tuple[str, ...]:
    """A sentence on each clip whose showings are too short for the bootstrap's blocks."""
    n_rows: dict[str, int] = {}
    for row in rows:
        n_rows[row.clip] = min(row.n_rows, n_rows.get(row.clip, row.n_rows))
    return tuple(
        f"A showing of {clip} has only {n} TRs, less than {MIN_BLOCKS} blocks of {BLOCK_ROWS}: its intervals "
        "are too narrow, and vertices without signal pass as reliable (4 to 11 % of them with 15 TRs)."
        for clip, n in n_rows.items()
        if n < MIN_BLOCKS * BLOCK_ROWS
    )


def _paragraphs(
    rows: Sequence[CeilingRow],
    reasons: Sequence[str],
    seen: Collection[str],
    unlike: Sequence[str],
    any_normalised: bool,
) -> tuple[str, ...]:
    clips = list(dict.fromkeys(row.clip for row in rows))
    several = f"r in the clip is over all clips that repeat, {', '.join(clips)}." if len(clips) > 1 else ""
    return (
        "The explainable share of a vertex is the mean covariance between the showings of a clip over their "
        "mean variance, about their means, of the rows from the onset and the longest delay to the clip's "
        "end: the share of one showing's variance that comes back. Noise that is independent between "
        "showings does not bias it. Its root is the ceiling, the r that a perfect model would reach "
        f"against one showing. Intervals of 95 % are expanded percentiles of {N_RESAMPLES} resamples of "
        f"blocks of {BLOCK_ROWS} TRs. Reliable: vertices whose interval lies above 0. Without: those whose "
        "share is not above 0, which have no ceiling.",
        "Only scores on the same rows are divided by the ceiling. Nothing is capped: a vertex may lie above "
        "its ceiling by chance.",
        *([SELECTED] if any_normalised else []),
        *(
            f"No r of {clip} is held against the ceiling where it stands in training as well."
            for clip in seen
        ),
        *(["No r is held against a ceiling: " + several] if several else []),
        *(
            [
                f"Not held against a ceiling, for they were fitted to other BOLD or rows than it is of now: "
                f"{name_some(unlike)}. Submit them again."
            ]
            if unlike
            else []
        ),
        *short_remarks(rows),
        *(f"No ceiling of {reason}." for reason in reasons),
    )


def _shown(ceilings: Mapping[str, Ceilings]) -> str:
    """Whose ceilings are shown as maps."""
    return AVERAGE if AVERAGE in ceilings else next(iter(ceilings))


def _views(data: ReportData, ceilings: Mapping[str, Ceilings]) -> tuple[SurfaceMap, ...]:
    if not has_cortical_map(data.voxels):
        return ()
    subject = _shown(ceilings)
    found = ceilings[subject]
    return tuple(
        SurfaceMap(f"noise ceiling · {clip} · {subject}", values, (0.0, 1.0), "noise ceiling (r)")
        for clip, values in zip(found.clips, found.values["ceiling"], strict=True)
    )


def _maps(data: ReportData, ceilings: Mapping[str, Ceilings], remark: str) -> list[Illustration]:
    if not has_cortical_map(data.voxels):
        return []
    subject = _shown(ceilings)
    found = ceilings[subject]
    return [
        _map(data, subject, clip, found.values["ceiling"][place], found.attributes["showings"][place], remark)
        for place, clip in enumerate(found.clips)
    ]


def _map(
    data: ReportData,
    subject: str,
    clip: str,
    ceiling: NDArray[np.floating[Any]],
    showing: Mapping[str, Any],
    remark: str,
) -> Illustration:
    figure = paint_cortex(
        ceiling,
        data.voxels,
        limits=(0.0, 1.0),
        unit="noise ceiling (r)",
        title=f"Noise ceiling · {clip} · {subject}",
        remark=remark,
    )
    shown = ceiling[data.voxels.positions("cortex")]
    shown = shown[np.isfinite(shown)]
    return Illustration(
        "ceilings",
        f"ceiling map {subject} {clip}",
        render(figure),
        f"Noise ceiling of r (no unit) of {subject} from {showing['n_showings']} showings of {clip}, "
        f"{showing['n_rows']} TRs each; n = {shown.size:,} vertices whose explainable share is above 0. A "
        "face is painted where two of its corners have a ceiling. Grey: fewer have one, or medial wall.",
        f"Cortical map of the noise ceiling; median {_median(shown):.3f}.",
    )


def _median(values: NDArray[np.floating[Any]]) -> float:
    return float(np.median(values)) if values.size else math.nan


def _mean(values: NDArray[np.floating[Any]]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan

"""The numbers of the report: r per feature set, fold and subject, as rows of tables.

Every summary is over *valid* vertices, those where r is defined: means over 64,984 surface vertices
with an empty medial wall, or over dead vertices scored 0, are biased downwards.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE
from hpcenc.tasks.report.data import FitScores, ReportData

BEST_SHARE = 0.1
"""Share of the valid vertices that count as the best ones."""

LOW_R, HIGH_R = 0.1, 0.3
"""Values of r whose exceedance the tables state."""


class SubjectRow(Protocol):
    """What every row about one feature set in one subject has."""

    @property
    def feature_set(self) -> str:
        """Label of the feature set."""

    @property
    def variant(self) -> str:
        """Layer behind the features."""

    @property
    def subject(self) -> str:
        """The subject."""


Row = TypeVar("Row", bound=SubjectRow)


@dataclass(frozen=True)
class RSummary:
    """How r is distributed over valid vertices; shares are between 0 and 1."""

    n_valid: float
    mean: float
    median: float
    mean_best_tenth: float
    max: float
    share_over_0_1: float
    share_over_0_3: float


@dataclass(frozen=True)
class ModelRow:
    """One line of the model table: a feature set in one subject, or its mean over subjects."""

    feature_set: str
    variant: str
    modality: str
    subject: str
    n_subjects: int
    n_features: int
    n_columns: int
    n_constant: int
    n_folds: int
    blocks_done: int
    blocks: int
    r: RSummary
    share_over_chance: float
    sd: RSummary
    """Standard deviations of the numbers of `r` between subjects, NaN for one."""

    @property
    def complete(self) -> bool:
        """Whether every voxel block behind this line is done."""
        return self.blocks_done == self.blocks

    @property
    def in_means(self) -> bool:
        """Whether means over subjects take this line: a subject's, complete, with a valid vertex."""
        return self.subject != AVERAGE and self.complete and self.r.n_valid > 0


@dataclass(frozen=True)
class FoldRow:
    """Scores of one fold of a feature set in one subject."""

    feature_set: str
    variant: str
    subject: str
    fold: str
    r: RSummary
    median_r2: float
    share_over_chance: float
    n_shifts: int


def summarise(r: NDArray[np.floating[Any]]) -> RSummary:
    """Summary of r over the vertices where it is defined.

    Parameters
    ----------
    r : array of shape (n_voxels,)
        NaN where undefined.

    Returns
    -------
    RSummary
        ``mean_best_tenth`` is the mean of the ``ceil(n_valid / 10)`` largest values. All but
        ``n_valid`` are NaN where no vertex is valid.
    """
    valid = np.sort(r[np.isfinite(r)].astype(np.float64))
    if valid.size == 0:
        return RSummary(0, *[math.nan] * 6)
    n_best = math.ceil(valid.size * BEST_SHARE)
    return RSummary(
        n_valid=valid.size,
        mean=float(valid.mean()),
        median=float(np.median(valid)),
        mean_best_tenth=float(valid[-n_best:].mean()),
        max=float(valid[-1]),
        share_over_0_1=float((valid > LOW_R).mean()),
        share_over_0_3=float((valid > HIGH_R).mean()),
    )


def share_over_chance(r: NDArray[np.floating[Any]], chance: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Share of vertices whose r exceeds their own chance level, per fold.

    Parameters
    ----------
    r, chance : array of shape (n_folds, n_voxels)
        NaN where undefined; such vertices are left out of both counts.

    Returns
    -------
    array of shape (n_folds,)
        NaN for a fold without a vertex where both are defined.
    """
    n_defined = (np.isfinite(r) & np.isfinite(chance)).sum(axis=1)
    n_over = (r > chance).sum(axis=1)
    share: NDArray[np.float64]
    share = np.divide(n_over, n_defined, out=np.full(len(r), np.nan), where=n_defined > 0)
    return share


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def model_row(fit: FitScores) -> ModelRow:
    """Line of the model table for one fit; r of a vertex is its plain mean over folds.

    Folds without a chance level, whose test runs are too short for shifts, are left out of the share over it.
    """
    return ModelRow(
        feature_set=fit.feature_set,
        variant=fit.variant,
        modality=fit.modality,
        subject=fit.subject,
        n_subjects=1,
        n_features=fit.n_features,
        n_columns=fit.n_columns,
        n_constant=fit.n_constant,
        n_folds=len(fit.folds),
        blocks_done=fit.blocks_done,
        blocks=fit.blocks,
        r=summarise(fit.mean_r),
        share_over_chance=mean_of_defined(share_over_chance(fit.r, fit.chance)),
        sd=RSummary(*[math.nan] * 7),
    )


def mean_row(rows: Sequence[ModelRow]) -> ModelRow:
    """Mean over subjects of the lines of one feature set.

    Scores are plain means of the subjects' summaries; what describes the feature set is the first
    subject's. Fits that are incomplete or have no valid vertex are to be left out by the caller.
    """
    scores = np.array([astuple(row.r) for row in rows])
    return replace(
        rows[0],
        subject=f"mean of {len(rows)} subjects",
        n_subjects=len(rows),
        blocks_done=sum(row.blocks_done for row in rows),
        blocks=sum(row.blocks for row in rows),
        r=RSummary(*map(float, scores.mean(axis=0))),
        sd=RSummary(*map(float, scores.std(axis=0, ddof=1))),
        share_over_chance=mean_of_defined([row.share_over_chance for row in rows]),
    )


def model_table(data: ReportData) -> tuple[tuple[ModelRow, ...], tuple[ModelRow, ...]]:
    """Lines of the model table.

    Returns
    -------
    means : tuple of ModelRow
        One per feature set with at least two subjects whose fits are complete and have valid vertices:
        their mean.
    rows : tuple of ModelRow
        One per fit, in the order given, incomplete ones too.
    """
    rows = tuple(model_row(fit) for fit in data.scores)
    in_means = group_rows([row for row in rows if row.in_means])
    return tuple(mean_row(group) for group in in_means.values() if len(group) > 1), rows


def fold_rows(fit: FitScores) -> tuple[FoldRow, ...]:
    """Scores of each fold of one fit."""
    over_chance = share_over_chance(fit.r, fit.chance)
    rows = []
    for index, fold in enumerate(fit.folds):
        r2 = fit.r2[index][np.isfinite(fit.r2[index])]
        rows.append(
            FoldRow(
                feature_set=fit.feature_set,
                variant=fit.variant,
                subject=fit.subject,
                fold=fold,
                r=summarise(fit.r[index]),
                median_r2=float(np.median(r2)) if r2.size else math.nan,
                share_over_chance=float(over_chance[index]),
                n_shifts=fit.n_shifts[index],
            )
        )
    return tuple(rows)


def progress_warnings(rows: Sequence[ModelRow]) -> tuple[str, ...]:
    """One sentence per feature set with fits that are not finished."""
    found = []
    for feature_set, of_set in group_rows(rows).items():
        unfinished = [row for row in of_set if not row.complete]
        if unfinished:
            done, blocks = sum(row.blocks_done for row in unfinished), sum(row.blocks for row in unfinished)
            found.append(
                f"{feature_set} is incomplete in {name_subjects(unfinished, len(of_set))}: "
                f"{done} of {blocks} voxel blocks are done. The numbers are of these only; means over "
                "subjects leave them out."
            )
    return tuple(found)


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by feature set and variant, in the order given."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.feature_set} ({row.variant})", []).append(row)
    return groups


def name_subjects(rows: Sequence[SubjectRow], n_subjects: int, n_named: int = 5) -> str:
    """Subjects of some rows, counted and the first few named: ``2 of 3 subjects (S1, S3)``."""
    named = ", ".join(row.subject for row in rows[:n_named])
    more = f" and {len(rows) - n_named} more" if len(rows) > n_named else ""
    return f"{len(rows)} of {n_subjects} subjects ({named}{more})"


def format_score(value: float) -> str:
    """A correlation with three decimals and a true minus sign; an en dash where undefined."""
    return "–" if math.isnan(value) else f"{value:z.3f}".replace("-", "−")


def format_share(value: float) -> str:
    """A share between 0 and 1 in percent; an en dash where undefined."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def csv_text(rows: Sequence[Any]) -> str:
    """Comma-separated text of rows, which are dataclasses of one kind: a header, then a line per row.

    Numbers have full precision; what is undefined is ``nan``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for index, row in enumerate(rows):
        cells = _flat(row)
        if index == 0:
            writer.writerow(cells.keys())
        writer.writerow(cells.values())
    return text.getvalue()


def _flat(row: Any) -> dict[str, Any]:
    """Columns of a row, those of a summary named by its field: ``r_mean``, ``sd_mean``."""
    cells: dict[str, Any] = {}
    for item in fields(row):
        value = getattr(row, item.name)
        if isinstance(value, RSummary):
            cells |= {f"{item.name}_{name.name}": getattr(value, name.name) for name in fields(value)}
        else:
            cells[item.name] = value
    return cells

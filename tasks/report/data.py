"""What the report is made from: plain data, already read from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.sections import Section, name_some


@dataclass(frozen=True, eq=False)
class FitScores:
    """Scores of one variant of a feature set in one subject.

    Arrays hold NaN where a value is undefined: a constant vertex, an empty set of test rows, or a
    voxel block that is not done yet.

    Raises
    ------
    ValueError
        If an array has another shape than the folds and the other arrays imply.
    """

    feature_set: str
    """Label as shown everywhere, such as ``clip[untrained, seed 0]``."""
    variant: str
    """Layer behind the features, such as ``clip/embedding``."""
    modality: str
    """``audio``, ``vision`` or ``audio-visual``."""
    subject: str
    n_features: int
    """Dimension of the features themselves."""
    n_columns: int
    """Dimension with delays."""
    n_constant: int
    """Constant feature columns that were dropped."""
    folds: tuple[str, ...]
    """Names of the outer folds: the test run or runs of each."""
    r: NDArray[np.floating[Any]]
    """Pearson r over the test rows, ``(n_folds, n_voxels)``."""
    r2: NDArray[np.floating[Any]]
    """1 - SSE/SST over the test rows, ``(n_folds, n_voxels)``."""
    alpha: NDArray[np.floating[Any]]
    """Ridge penalty chosen inside the training runs, ``(n_folds, n_voxels)``."""
    chance: NDArray[np.floating[Any]]
    """99.9th percentile of the vertex's own r under circular shifts, ``(n_folds, n_voxels)``."""
    alpha_grid: NDArray[np.floating[Any]]
    """Penalties that were tried, ascending and positive, ``(n_folds, n_alphas)``."""
    n_shifts: tuple[int, ...]
    """Circular shifts behind the chance level, one count per fold."""
    blocks_done: int
    blocks: int
    more: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    """Other scores by name, ``(n_folds, n_voxels)``: r in the repeated clip, norms of weights."""
    clips_on_both_sides: tuple[str, ...] = ()
    """Repeated clips that stand in training and in test, in any fold."""
    bold: Any = None
    """What identifies the BOLD that was fitted, as a noise ceiling says it too."""
    showings: Sequence[Mapping[str, Any]] = ()
    """Rows of repeated clips behind ``r_repeat``, as a noise ceiling says them too."""

    def __post_init__(self) -> None:
        expected = (len(self.folds), self.r.shape[-1])
        for name in ("r", "r2", "alpha", "chance"):
            found = getattr(self, name).shape
            if found != expected:
                raise ValueError(
                    f"{self.feature_set} of {self.subject}: {name} has shape {found}, expected "
                    f"(n_folds, n_voxels) = {expected}"
                )
        if self.alpha_grid.ndim != 2 or len(self.alpha_grid) != len(self.folds):
            raise ValueError(
                f"{self.feature_set} of {self.subject}: alpha_grid has shape {self.alpha_grid.shape}, "
                f"expected ({len(self.folds)}, n_alphas)"
            )

    @property
    def complete(self) -> bool:
        """Whether every voxel block of this fit is done."""
        return self.blocks_done == self.blocks

    @cached_property
    def in_means(self) -> bool:
        """Whether means over subjects take this fit: it is a subject's, complete, and has a valid vertex."""
        return self.subject != AVERAGE and self.complete and bool(np.isfinite(self.mean_r).any())

    @cached_property
    def mean_r(self) -> NDArray[np.float64]:
        """Plain mean of r over folds, ``(n_voxels,)``.

        NaN where r is undefined in any fold: a mean over fewer folds would compare vertices on
        different test runs.
        """
        mean: NDArray[np.float64] = np.mean(self.r, axis=0, dtype=np.float64)
        return mean


@dataclass(frozen=True, eq=False)
class TimeCourse:
    """Measured and predicted BOLD of one vertex over one test run."""

    feature_set: str
    subject: str
    fold: str
    run: str
    """The run that is drawn: the first of the fold that tests."""
    voxel: int
    """Position on the study's voxel axis."""
    place: str
    """Where that is, in words: ``left cortex, vertex 1234``."""
    time_s: NDArray[np.floating[Any]]
    """Start of each TR in seconds from the run's first volume, ``(n_trs,)``."""
    measured: NDArray[np.floating[Any]]
    """z-scored BOLD, ``(n_trs,)``."""
    predicted: NDArray[np.floating[Any]]
    """Prediction in the units of ``measured``, ``(n_trs,)``."""
    r: float
    """Pearson r over the rows used."""
    used: NDArray[np.bool_]
    """Rows that are scored, ``(n_trs,)``; the others are rest or were left out."""
    what: str = "the vertex that is predicted best"
    """Why it is shown."""
    named: bool = False
    """Whether it is shown because the study names it, and for no other reason."""


@dataclass(frozen=True)
class Facts:
    """What was run, as named sections of key and value."""

    sections: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a report shows."""

    study: str
    """Name of the study."""
    scores: tuple[FitScores, ...]
    voxels: VoxelAxis
    note: str = ""
    """Shown first and large: what a reader must know before any figure."""
    simulated: bool = False
    """Whether the BOLD is simulated; said in the title of every figure."""
    courses: tuple[TimeCourse, ...] = ()
    missing_courses: tuple[str, ...] = ()
    """Feature sets without a time course, each with the reason."""
    facts: Facts = field(default_factory=Facts)
    sections: tuple[Section, ...] = ()
    """What was analysed beside the models' own scores."""
    warnings: tuple[str, ...] = ()
    acknowledgements: tuple[str, ...] = ()

    @property
    def first_to_know(self) -> str:
        """What the pages begin with: whether BOLD is simulated, which no table says, and the note."""
        return " ".join(filter(None, ["Simulated BOLD." if self.simulated else "", self.note]))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects with a fit, in the order given."""
        return tuple(dict.fromkeys(fit.subject for fit in self.scores))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the feature sets, in the order given; see :meth:`label`."""
        return tuple(dict.fromkeys(self.label(fit) for fit in self.scores))

    @cached_property
    def _variants(self) -> dict[str, set[str]]:
        variants: dict[str, set[str]] = {}
        for fit in self.scores:
            variants.setdefault(fit.feature_set, set()).add(fit.variant)
        return variants

    def label(self, fit: FitScores) -> str:
        """Name of a fit's feature set in figures: with its variant only where there are several."""
        several = len(self._variants[fit.feature_set]) > 1
        return f"{fit.feature_set} {fit.variant}" if several else fit.feature_set

    def fits_by_label(self, subject: str) -> dict[str, FitScores]:
        """Fits of one subject by their label."""
        return {self.label(fit): fit for fit in self.scores if fit.subject == subject}

    def fits_in_means(self) -> dict[str, list[FitScores]]:
        """Fits that means over subjects take, by label, where there are two or more."""
        fits = {
            label: [fit for fit in self.scores if self.label(fit) == label and fit.in_means]
            for label in self.labels
        }
        return {label: of_label for label, of_label in fits.items() if len(of_label) > 1}


def unlike_means(data: ReportData) -> Iterator[str]:
    """A warning where feature sets have means over different subjects, in tables, maps and regions alike."""
    subjects = {label: [fit.subject for fit in fits] for label, fits in data.fits_in_means().items()}
    if len({frozenset(of_set) for of_set in subjects.values()}) > 1:
        each = "; ".join(f"{label}: {name_some(of_set)}" for label, of_set in subjects.items())
        yield f"Means over subjects are not of the same ones, and not to be compared as they stand ({each})."


def mean_over_subjects(fits: Sequence[FitScores]) -> NDArray[np.float64]:
    """Plain mean over subjects of the vertices' mean r, ``(n_voxels,)``.

    A vertex that is undefined in some subjects has the mean of the others, NaN where in all.
    """
    r = np.stack([fit.mean_r for fit in fits])
    n_defined = np.isfinite(r).sum(axis=0)
    mean: NDArray[np.float64] = np.divide(
        np.nansum(r, axis=0), n_defined, out=np.full(r.shape[1], np.nan), where=n_defined > 0
    )
    return mean

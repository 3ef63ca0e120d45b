"""What the tables of a study file must agree on, beyond what each of them says by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from hpcenc.storage.layout import AVERAGE, slug

if TYPE_CHECKING:
    from hpcenc.storage.study import Run, Study

MODEL_SETS = (
    "beats",
    "beats-tags",
    "clip",
    "cavmae",
    "cavmae-audio",
    "cavmae-visual",
    "cavmae-concat",
    "cavmae-tags",
)
"""Names of the feature sets of one model each, which no feature file may have."""

_ROUNDED_S = 0.01
"""Seconds of a segment may come from a table of two decimals."""


def cross_problems(study: Study) -> Iterator[str]:
    """Every disagreement, one line each that begins with the key.

    Parameters
    ----------
    study : Study
        Whose tables are valid one by one.
    """
    yield from _run_problems(study)
    yield from _subject_problems(study)
    yield from _name_problems(study)
    yield from _fit_problems(study)
    yield from _average_problems(study)
    low, high = study.fit.alpha_exponents
    is_given = isinstance(study.fit.alpha, float)
    if study.sweeps.bands and (study.fit.n_alphas == 1 or is_given):
        yield (
            "sweeps.bands: ratios of two penalties stand for a grid of both only where alpha is searched, "
            'too; set fit.alpha to "voxel" or "shared" and fit.n_alphas to more than 1, or leave bands out'
        )
    if low == high and study.fit.n_alphas > 1:
        yield f"fit.alpha_exponents: {study.fit.n_alphas} alphas need a range, found {[low, high]}"
    if low < high and study.fit.n_alphas == 1 and not is_given:
        yield (
            f"fit.n_alphas: which one of a range? One alpha needs two equal fit.alpha_exponents, found "
            f"{[low, high]}"
        )


def file_problems(study: Study) -> Iterator[str]:
    """What a study file may not say, though a run may: `--subjects` leaves out whom it likes."""
    sweeps = study.sweeps
    if sweeps.any_asked and sweeps.subjects and not set(sweeps.subjects) & set(study.fitted):
        swept, fitted = ", ".join(sweeps.subjects), ", ".join(study.subjects.only)
        yield (
            f"sweeps.subjects: nothing would be swept: none of {swept} is fitted, subjects.only is {fitted}. "
            "Name one of these, or leave sweeps.subjects out"
        )


def _run_problems(study: Study) -> Iterator[str]:
    """What is wrong between the runs and what names them."""
    names = [run.name for run in study.runs]
    if len(set(names)) < len(names):
        yield f"runs: names must differ, found {names}"
    named = {"fit.test_runs": study.fit.test_runs} | {
        f"subjects.runs_of.{subject}": runs for subject, runs in study.subjects.runs_of.items()
    }
    for key, runs in named.items():
        unknown = sorted(set(runs) - set(names))
        if unknown:
            yield f"{key}: no run is called {', '.join(unknown)}; runs are {', '.join(names)}"
    for run in study.runs:
        yield from _segment_problems(run, study.tr_s)
        longest = max((*study.fit.delays, *study.sweeps.delays, study.sweeps.tags or 0))
        if run.n_trs <= longest:
            yield f"runs.{run.name}: {run.n_trs} TRs are fewer than the longest delay, {longest} TRs, needs"
    if "{subject}" not in study.bold.path or ("{run}" not in study.bold.path and len(names) > 1):
        yield f"bold.path: must hold {{subject}} and {{run}}, found {study.bold.path!r}"
    for name, file in study.feature_files.items():
        if "{run}" not in file.path and len(names) > 1:
            yield f"feature_files.{name}.path: must hold {{run}}, one file for each; found {file.path!r}"


def _segment_problems(run: Run, tr_s: float) -> Iterator[str]:
    """Segments that do not lie one after the other within their run, but for one TR at its end."""
    end_s = run.n_trs * tr_s
    for segment in run.segments:
        if segment.start_s >= end_s:
            yield (
                f"runs.{run.name}: a segment starts at {segment.start_s} s, "
                f"after the run's end at {end_s:g} s"
            )
        elif segment.end_s > end_s + tr_s + _ROUNDED_S:
            yield (
                f"runs.{run.name}: a segment ends at {segment.end_s:g} s, "
                f"more than one TR after the run's end at {end_s:g} s"
            )
    for first, second in pairwise(sorted(run.segments, key=lambda segment: segment.start_s)):
        if second.start_s < first.end_s - _ROUNDED_S:
            yield (
                f"runs.{run.name}: segments overlap: {first.start_s:g} to {first.end_s:g} s "
                f"and {second.start_s:g} to {second.end_s:g} s"
            )


def _fit_problems(study: Study) -> Iterator[str]:
    """Settings of the fit that cannot both hold, or that name what is never fitted."""
    fit = study.fit
    if fit.outer == "rotate" and fit.test_runs:
        yield "fit.test_runs: outer = 'rotate' makes every run the test run once; leave test_runs out"
    if fit.split_s is not None:
        if fit.outer == "rotate" or fit.test_runs:
            yield "fit.split_s: says by itself what is tested; leave outer and test_runs out"
        whole_s = sum(run.n_trs for run in study.runs) * study.tr_s
        if fit.split_s >= whole_s:
            yield (
                f"fit.split_s: the runs last {whole_s:g} s together, found {fit.split_s:g} s to train on; "
                "give fewer, so that a test part is left"
            )
    known = (*MODEL_SETS, *study.feature_files)
    for exception in fit.weights_exceptions:
        name = re.sub(r"\[[^\]]*\]$", "", exception.feature_set)  # a label, such as clip[untrained, seed 0]
        if not set(name.split("+")) <= set(known):
            yield (
                f"fit.weights_exceptions: no feature set {exception.feature_set!r}; "
                f"known: {', '.join(known)}, and sums of them"
            )


def _average_problems(study: Study) -> Iterator[str]:
    """What is wrong with the pseudo-subject, and with who is swept."""
    for subject in study.subjects.ids:
        if subject.lower() == AVERAGE:
            yield f"subjects.ids: {subject!r} is the name of the mean over subjects; rename this one"
    subjects = (*study.subjects.ids, *((AVERAGE,) if study.average else ()))
    for key, named in {
        "sweeps.subjects": study.sweeps.subjects,
        "subjects.only": study.subjects.only,
    }.items():
        strangers = sorted(set(named) - set(subjects))
        if strangers:
            hint = f"; {AVERAGE!r} needs a table [average]" if AVERAGE in strangers else ""
            yield f"{key}: not in subjects.ids: {', '.join(strangers)}{hint}"
    if study.average is None:
        return
    versions = sorted({version for run in study.runs for version in run.movies()})
    version = study.average.stimulus
    if version is not None and versions and version not in versions:
        known = ", ".join(versions)
        yield f"average.stimulus: no run has a movie of version {version!r}; versions are {known}"
    if len(study.subjects.ids) < 2:
        yield "average: needs two subjects at least; leave the table out"


def _subject_problems(study: Study) -> Iterator[str]:
    """What is wrong between the subjects and what names them."""
    subjects = study.subjects
    named = {
        "subjects.stimulus_of": list(subjects.stimulus_of),
        "subjects.runs_of": list(subjects.runs_of),
        "fit.weights_exceptions": [exception.subject for exception in study.fit.weights_exceptions],
    }
    for key, ids in named.items():
        known = (*subjects.ids, *((AVERAGE,) if study.average and key == "fit.weights_exceptions" else ()))
        strangers = sorted(set(ids) - set(known))
        if strangers:
            yield f"{key}: not in subjects.ids: {', '.join(strangers)}"
    versions = sorted({version for run in study.runs for version in run.movies()})
    seen = {f"subjects.stimulus_of.{subject}": version for subject, version in subjects.stimulus_of.items()}
    if set(subjects.ids) - set(subjects.stimulus_of):
        seen["subjects.stimulus"] = subjects.stimulus
    for key, version in seen.items():
        if versions and version not in versions:
            yield f"{key}: no run has a movie of version {version!r}; versions are {', '.join(versions)}"
    for subject, runs in subjects.runs_of.items():
        if not runs:
            yield f"subjects.runs_of.{subject}: names no run; leave the subject out of subjects.ids instead"


def _name_problems(study: Study) -> Iterator[str]:
    """Names that make no group of the store, or the same one as another name."""
    versions = dict.fromkeys(version for run in study.runs for version in run.movies())
    for key, labels in {
        "runs": [run.name for run in study.runs],
        "runs.movie": list(versions),
        "subjects.ids": list(study.subjects.ids),
        "feature_files": list(study.feature_files),
    }.items():
        groups: dict[str, list[str]] = {}
        for label in dict.fromkeys(labels):
            try:
                groups.setdefault(slug(label), []).append(label)
            except ValueError as error:
                yield f"{key}: {error}"
        for same in groups.values():
            if len(same) > 1:
                yield f"{key}: {', '.join(same)} differ in case or signs only; rename them"
    taken = "|".join(map(slug, MODEL_SETS))
    for name in study.feature_files:
        plain = name.lower()
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield f"feature_files.{name}: choose another name, of letters, digits, '-' and '_'"
        elif re.fullmatch(rf"({taken})(-untrained-.*)?", plain) or "-and-" in plain:
            yield (
                f"feature_files.{name}: its results would lie where those of a model or of a sum lie; choose "
                "another name"
            )

"""The report of a store: what the fits hold and what the runs recorded, made into pages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import report_folder
from hpcenc.storage.regions import study_regions
from hpcenc.storage.results import Scores, read_progress, read_voxels, require_scores
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.ceiling import ceiling_facts, find_showings
from hpcenc.tasks.folds import RunRows, clips_on_both_sides
from hpcenc.tasks.report.analyses import make_sections
from hpcenc.tasks.report.courses import make_courses
from hpcenc.tasks.report.data import Facts, FitScores, ReportData
from hpcenc.tasks.report.leftovers import find_leftovers, leftover_warnings
from hpcenc.tasks.report.page import ReportFiles, write_report
from hpcenc.tasks.report.provenance import (
    Origin,
    feature_lines,
    origin_warnings,
    read_origins,
    row_lines,
    setting_lines,
)
from hpcenc.tasks.report.unfinished import unfinished_warnings
from hpcenc.tasks.scores import circular_shift_count
from hpcenc.tasks.selection import REFERENCE_SETS
from hpcenc.tasks.zscoring import run_lengths

SHOWN_REGIONS = 8
"""Regions at most, of the first set, that have a time course each."""

Events = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes
    ----------
    damaged : tuple of str
        Fits with undefined vertices, named and counted.
    """

    files: ReportFiles
    damaged: tuple[str, ...]


def build_report(
    study: Study,
    run: Mapping[str, Any],
    events: Events,
    set_aside: Sequence[str],
    folder: Path | None = None,
) -> Report:
    """Write the report of everything that is in a store.

    Parameters
    ----------
    study : Study
    run : mapping
        Record of the latest run: versions, settings, when it began; and ``fitted_with``, the versions that
        fits were made with, where that is known.
    events : iterable of mapping
        What happened in it.
    set_aside : sequence of str
        Subjects, runs and tasks that were set aside, each with the reason.
    folder : Path, optional
        Where to write it; beside the store if absent.

    Raises
    ------
    StoreError
        If no block of a fit that the study asks for is done, or a chunk of them is damaged.
    """
    store = Store(study.store_path)
    progress, leftovers = read_progress(store), find_leftovers(store, study)
    left_over = {each.group for each in leftovers}
    shown = {group for group, (n_done, _) in progress.items() if n_done and group not in left_over}
    found = sorted(require_scores(store, shown), key=_reading_order)
    voxels = read_voxels(store)
    origins = read_origins(store, found)
    regions = study_regions(voxels, study.regions, study.folder)
    masks = regions[0].masks if regions and len(regions[0].masks) <= SHOWN_REGIONS else {}
    courses, missing_courses = make_courses(store, found, voxels, study, masks)
    if regions and not masks:
        n_regions = len(regions[0].masks)
        missing_courses += (
            f"regions: {regions[0].name} has {n_regions}, courses are of sets of {SHOWN_REGIONS} at most",
        )
    damaged = tuple(line for scores in found if (line := _damage(scores)))
    fits = tuple(fit for scores in found for fit in _fits(store, scores))
    facts = _facts(store, found, origins, run, list(events), [*set_aside, *damaged])
    data = ReportData(
        study=study.name,
        scores=fits,
        voxels=voxels,
        note=study.note,
        simulated=study.simulated,
        courses=courses,
        missing_courses=missing_courses,
        facts=Facts(facts),
        warnings=(
            *(f"Set aside: {reason}" for reason in (*set_aside, *damaged)),
            *origin_warnings(origins),
            *leftover_warnings(leftovers),
            *unfinished_warnings(store, progress, left_over),
        ),
    )
    sections = make_sections(store, study, data, found, run, dict(facts)["Features"], regions, shown)
    data = replace(data, sections=tuple(sections))
    return Report(write_report(data, folder or report_folder(study.store_path)), damaged)


def _reading_order(scores: Scores) -> int:
    """Feature sets in the order of the reference study, others after them."""
    name = str(scores.attributes["feature_set"]).partition("[")[0]
    return REFERENCE_SETS.index(name) if name in REFERENCE_SETS else len(REFERENCE_SETS)


def _damage(scores: Scores) -> str:
    """Vertices of a fit that are undefined, in words; empty if there are none."""
    undefined = np.isnan(scores.r).any(axis=(0, 1)) & scores.done
    if not undefined.any():
        return ""
    name = f"{scores.attributes['feature_set']} of subject {scores.attributes['subject']}"
    # Only BOLD that cannot be fitted has no alpha.
    damaged = np.isnan(scores.alpha).any(axis=(0, 1)) & scores.done
    if damaged.sum() == scores.done.sum():
        return f"{name}: every vertex is constant or not finite in some run; the subject is set aside"
    constant = undefined & ~damaged
    parts = [
        f"{part.sum()} of {scores.done.sum()} vertices {what}"
        for part, what in (
            (damaged, "are constant or not finite in some run"),
            (constant, "have no r, for their prediction is constant over the test rows"),
        )
        if part.any()
    ]
    return f"{name}: {'; '.join(parts)}"


def _fits(store: Store, scores: Scores) -> Iterable[FitScores]:
    attributes = scores.attributes
    for place, variant in enumerate(attributes["variants"]):
        groups = [store.attributes_of(group) for group in variant["operators"]]
        n_features = sum(space["n_features"] for space in variant["spaces"])
        scales = [store.read(f"{group}/feature_scale") for group in variant["operators"]]
        onsets = attributes["onsets"]
        roles = [store.read(f"{group}/role") for group in variant["operators"]]
        yield FitScores(
            feature_set=attributes["feature_set"],
            variant=variant["label"],
            modality=attributes["modality"],
            subject=attributes["subject"],
            n_features=n_features,
            n_columns=n_features * len(variant["delays"]),
            n_constant=max(int(np.sum(scale == 0)) for scale in scales),
            folds=tuple(group["fold"] for group in groups),
            r=scores.r[:, place],
            r2=scores.r2[:, place],
            alpha=scores.alpha[:, place],
            chance=scores.chance[:, place],
            alpha_grid=np.stack([store.read(f"{group}/alphas") for group in variant["operators"]]),
            n_shifts=tuple(
                circular_shift_count(run_lengths(np.flatnonzero(role == 2), onsets)) for role in roles
            ),
            blocks_done=scores.blocks_done,
            blocks=scores.blocks,
            more={name: values[:, place] for name, values in scores.more.items()},
            clips_on_both_sides=_clips_on_both_sides(groups, roles),
            bold=attributes["bold"],
            showings=_showings(groups[0]),
        )


def _runs(fold: Mapping[str, Any]) -> list[RunRows]:
    """Runs of a fold of operators."""
    return [
        RunRows("", n_trs, tuple(map(tuple, rest)), tuple(map(tuple, repeats)))
        for n_trs, rest, repeats in fold["runs"]
    ]


def _showings(fold: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of repeated clips that a fit scores apart."""
    longest = fold["longest_delay"]
    rest_tail = longest if fold["policy"]["rest"] == "drop" else -1
    return ceiling_facts(find_showings(_runs(fold), longest, rest_tail)[0])


def _clips_on_both_sides(
    operators: Sequence[Mapping[str, Any]], roles: Sequence[NDArray[np.integer[Any]]]
) -> tuple[str, ...]:
    """Clips that any fold of a fit trains on and tests."""
    clips: dict[str, None] = {}
    for fold, role in zip(operators, roles, strict=True):
        clips |= dict.fromkeys(clips_on_both_sides(_runs(fold), role == 1, role == 2))
    return tuple(clips)


Section = tuple[str, Sequence[tuple[str, str]]]


def _facts(
    store: Store,
    found: Sequence[Scores],
    origins: Sequence[Origin],
    run: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    set_aside: Sequence[str],
) -> tuple[Section, ...]:
    return (
        ("Run", [(key, _text(run[key])) for key in ("run_id", "started", "command", "profile", "backend",
                                                    "backend_choice", "backend_description", "n_workers",
                                                    "n_threads") if key in run]),
        ("Time of this run", _timings(events)),
        ("Rows", row_lines(origins)),
        ("Stimuli", _stimuli(store)),
        ("Features", feature_lines(origins)),
        ("Fit settings", setting_lines(origins)),
        ("Alphas of the fast solver against exact scores", _agreement(found)),
        ("Digests", [(scores.group, scores.attributes["digest"]) for scores in found]),
        ("Versions", [(name, str(version)) for name, version in run.get("versions", {}).items()]),
        ("Set aside", [(str(place), reason) for place, reason in enumerate(set_aside, 1)]
                      or [("tasks", "none")]),
    )  # fmt: skip


def _agreement(found: Sequence[Scores]) -> list[tuple[str, str]]:
    """Comparisons of the fast solver's alphas with those by exact scores, per feature set."""
    checked: Counter[str] = Counter()
    differed: Counter[str] = Counter()
    for scores in found:
        name = scores.attributes["feature_set"]
        checked[name] += int(np.isfinite(scores.agrees).sum())
        differed[name] += int((scores.agrees == 0).sum())
    return [
        (name, f"{differed[name]:,} of {count:,} compared vertices differed")
        for name, count in checked.items()
        if count
    ] or [("all feature sets", "none was compared: the exact solver chose all alphas")]


def _timings(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Units and seconds of every stage, from the events of a run; tasks that take turns count both."""
    seconds: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "unit":
            seconds.setdefault(event["stage"], []).append(event["seconds"])
    lines = [
        (stage, f"{len(each)} units, {sum(each):.1f} s of tasks, {np.median(each):.2f} s the median unit")
        for stage, each in seconds.items()
    ]
    return lines or [("all stages", "nothing was left to do")]


def _stimuli(store: Store) -> list[tuple[str, str]]:
    """Movies, and how much of each run lies after its movie's end."""
    lines = []
    for metadata in sorted((store.path / "stimulus").glob("*/*/zarr.json")):
        movie = json.loads(metadata.read_bytes())["attributes"]
        lines.append(
            (
                f"{movie['run']} (stimulus {movie['stimulus']})",
                f"{movie['file']}, {movie['n_trs']} rows, {movie['rows_padded']} of them padded; "
                f"sha256 {movie['movie'][:16]}",
            )
        )
    return lines


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_text(part) for part in value)
    return str(value)

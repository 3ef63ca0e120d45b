"""The report's section on methods: one paragraph of what was really run, and each departure from the
defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcenc.storage.departures import AS_PUBLISHED, Departure, departures
from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.results import Scores
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.report.sections import Column, Section, Table

CITED = ("torch", "open_clip_torch", "speechbrain", "numpy", "scipy", "cupy", "zarr", "dask")
"""Packages whose versions a methods section names, where they were there."""


def methods_section(
    store: Store,
    study: Study,
    found: Sequence[Scores],
    run: Mapping[str, Any],
    features: Sequence[tuple[str, str]],
) -> Section:
    """The section on methods.

    Parameters
    ----------
    store : Store
    study : Study
        As it is now; what fits were made with is read from the store.
    found : sequence of Scores
        Main fits.
    run : mapping
        Record of the latest run.
    features : sequence of (label, text)
        What every model's features were made with.
    """
    paragraphs = [" ".join(sentences(store, study, found, run, features))]
    rows = list(departures(study))
    if study.preset == "paper":
        paragraphs.append(
            f"Preset paper: the settings below are {AS_PUBLISHED}, not hpcenc's own. The figures that the "
            "study reports contradict each other; they are no target, and none is held against these."
        )
    if _clip_on_both_sides(store, found):
        paragraphs.append(
            "The repeated clip stands in training and in test: part of r is that of a stimulus which was "
            "seen before."
        )
    return Section("methods", "Methods", tuple(paragraphs), (_table(rows),) if rows else ())


def sentences(
    store: Store,
    study: Study,
    found: Sequence[Scores],
    run: Mapping[str, Any],
    features: Sequence[tuple[str, str]],
) -> list[str]:
    """A methods paragraph, sentence by sentence."""
    versions = run.get("versions", {})
    cited = [f"{name} {versions[name]}" for name in CITED if name in versions]
    subjects = list(dict.fromkeys(scores.attributes["subject"] for scores in found))
    people = [subject for subject in subjects if subject != AVERAGE]
    said = [
        f"Voxel-wise encoding models were fitted with hpcenc {versions.get('hpcenc', '')}".rstrip()
        + (f" ({', '.join(cited)})" if cited else "")
        + f", to {_counted(len(people), 'subject')}"
        + (_average(store) if AVERAGE in subjects else "")
        + f", {found[0].r.shape[-1]:,} voxels each."
    ]
    if study.simulated:
        said.append("The BOLD is simulated.")
    said += [f"Features of {label}: {text}." for label, text in features]
    folds = _folds(store, found)
    rows = sorted({(fold["n_train"], fold["n_test"]) for fold in folds})
    said.append(
        "Rows: "
        + "; ".join(f"{n_train:,} of training and {n_test:,} of test" for n_train, n_test in rows[:4])
        + (f" and {len(rows) - 4} other splits" if len(rows) > 4 else "")
        + f", at a TR of {study.tr_s:g} s, in {_counted(len({fold['fold'] for fold in folds}), 'outer fold')}"
        + f" ({', '.join(dict.fromkeys(fold['fold'] for fold in folds))})."
    )
    dropped = sorted({reason for fold in folds for reason in fold["dropped"]})
    said.append(f"Left out were rows of {', '.join(dropped)}." if dropped else "No row was left out.")
    said.append(_fit_sentence(folds))
    said.append(
        "r is Pearson's between predicted and measured BOLD over the test rows; a vertex's chance level is "
        "the 99.9th percentile of r under circular shifts of at least 30 TRs within the run."
    )
    return said


def _fit_sentence(folds: Sequence[Mapping[str, Any]]) -> str:
    delays = dict.fromkeys(" ".join(map(str, fold["delays"])) for fold in folds)
    grids = dict.fromkeys(
        f"the alpha {fold['alpha']:g}"
        if fold.get("alpha") is not None
        else f"{len(fold['alpha_exponents'])} alphas from 10^{fold['alpha_exponents'][0]:g} to "
        f"10^{fold['alpha_exponents'][-1]:g} times the kernel's mean variance"
        for fold in folds
    )
    solvers = dict.fromkeys(str(fold["solver"]) for fold in folds)
    zscored = dict.fromkeys(
        "of the training rows" if fold.get("zscore", "train") == "train" else "of the whole movie"
        for fold in folds
    )
    return (
        f"Ridge regression on features z-scored by mean and deviation {' or '.join(zscored)}, at delays of "
        f"{' or '.join(delays)} TRs within runs, with {' or '.join(grids)}, chosen by the mean squared "
        f"error of leave-one-run-out folds within the training rows (solver: {', '.join(solvers)})."
    )


def _folds(store: Store, found: Sequence[Scores]) -> list[Mapping[str, Any]]:
    groups = dict.fromkeys(
        group
        for scores in found
        for variant in scores.attributes["variants"]
        for group in variant["operators"]
    )
    return [store.attributes_of(group) for group in groups]


def _average(store: Store) -> str:
    attributes = store.attributes_of("bold/average")
    how = "z-scored runs" if attributes["how"] == "zscored" else "raw BOLD"
    return f" and to the average of the {how} of {_counted(len(attributes['subjects']), 'subject')}"


def _clip_on_both_sides(store: Store, found: Sequence[Scores]) -> bool:
    """Whether a clip that is shown in several runs was kept in training and scored."""
    for fold in _folds(store, found):
        groups = [group for _, _, repeats in fold["runs"] for group, _, _ in repeats]
        shown_again = len(groups) > len(set(groups))
        policy = fold["policy"]
        if shown_again and policy["repeat_train"] == "keep" and policy["repeat_test"] != "drop":
            return True
    return False


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table(rows: Sequence[Departure]) -> Table:
    return Table(
        "departures",
        "Settings that are not hpcenc's defaults, and what each means for the results.",
        rows,
        (
            Column("key", "setting"),
            Column("default", "default"),
            Column("found", "here"),
            Column("meaning", "what it means"),
        ),
    )

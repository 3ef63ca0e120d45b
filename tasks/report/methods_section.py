"""The report's section on methods: one paragraph of what was really run, and each departure from the
defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hpcenc.storage.departures import AS_PUBLISHED, Departure, acts, departures
from hpcenc.storage.layout import AVERAGE, average_group
from hpcenc.storage.results import Scores, read_average_counts
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.report.sections import Column, Section, Table, name_some, span_of

CITED = ("torch", "open_clip_torch", "speechbrain", "numpy", "scipy", "cupy", "zarr", "dask")
"""Packages whose versions a methods section names, where they were there."""


def methods_section(
    store: Store,
    study: Study,
    found: Sequence[Scores],
    run: Mapping[str, Any],
    features: Sequence[tuple[str, str]],
    swept: Sequence[str] = (),
    clips_on_both_sides: Sequence[str] = (),
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
        Record of the latest run, and ``fitted_with``: versions that fits were made with.
    features : sequence of (label, text)
        What every model's features were made with.
    swept : sequence of str
        Kinds of sweeps that the report shows.
    clips_on_both_sides : sequence of str
        Repeated clips that a fit trains on and tests.
    """
    paragraphs = [" ".join(sentences(store, study, found, run, features, swept))]
    settings = _settings(found)
    if any(each["preset"] == "paper" for each in settings):
        paragraphs.append(
            f"Preset paper: the study file began with the settings {AS_PUBLISHED}; those below are what was "
            "run. The figures that the study reports contradict each other; they are no target, and none is "
            "held against these."
        )
    rows = _departures(settings)
    if clips_on_both_sides:
        paragraphs.append(
            f"Shown in training and in test: {name_some(clips_on_both_sides)}. Part of r is that of a "
            "stimulus which was seen before."
        )
    return Section("methods", "Methods", tuple(paragraphs), (_table(rows),) if rows else ())


def _settings(found: Sequence[Scores]) -> list[Mapping[str, Any]]:
    """Settings that fits were made under, each once."""
    settings: list[Mapping[str, Any]] = []
    for scores in found:
        if scores.attributes["settings"] not in settings:
            settings.append(scores.attributes["settings"])
    return settings


def _departures(settings: Sequence[Mapping[str, Any]]) -> list[Departure]:
    """Those of all settings; one that others on which the setting acts do not have says so."""
    of_each = [list(departures(each)) for each in settings]
    rows = dict.fromkeys(row for rows in of_each for row in rows)

    def is_everywhere(row: Departure) -> bool:
        pairs = zip(settings, of_each, strict=True)
        return all(row in found for each, found in pairs if acts(each, row.key))

    return [row if is_everywhere(row) else replace(row, found=f"{row.found} (some fits)") for row in rows]


def sentences(
    store: Store,
    study: Study,
    found: Sequence[Scores],
    run: Mapping[str, Any],
    features: Sequence[tuple[str, str]],
    swept: Sequence[str] = (),
) -> list[str]:
    """A methods paragraph, sentence by sentence."""
    versions = _versions(run)
    cited = [f"{name} {versions[name]}" for name in CITED if name in versions]
    subjects = list(dict.fromkeys(scores.attributes["subject"] for scores in found))
    people = [subject for subject in subjects if subject != AVERAGE]
    said = [
        f"Voxel-wise encoding models were fitted with hpcenc {versions.get('hpcenc', '')}".rstrip()
        + (f" ({', '.join(cited)})" if cited else "")
        + f", to {_counted(len(people), 'subject')}"
        + (_average(store, found) if AVERAGE in subjects else "")
        + f", {found[0].r.shape[-1]:,} voxels each."
    ]
    if study.simulated:
        said.append("The BOLD is simulated.")
    said += [f"Features of {label}: {text}." for label, text in features]
    if joined := _joined(found):
        said.append(f"{'; '.join(joined)}.")
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
    said.append(_fit_sentence(folds, _settings(found)))
    if beside := [words for kind, words in _SWEPT.items() if kind in swept]:
        said.append(
            f"Beside these, {' and '.join(beside)} were fitted, of which each vertex chose one by the error "
            "of the inner folds."
        )
    said.append(
        "r is Pearson's between predicted and measured BOLD over the test rows; a vertex's chance level is "
        "the 99.9th percentile of r under circular shifts of at least 30 TRs within the run."
    )
    return said


_SWEPT = {
    "delays": "single delays",
    "layers": "every layer of the models",
    "bands": "sums of two feature sets with a penalty each",
}
"""What sweeps are, by the group that holds them."""


def _joined(found: Sequence[Scores]) -> list[str]:
    """What feature spaces are that are made of several layers."""
    spaces = [
        space for scores in found for variant in scores.attributes["variants"] for space in variant["spaces"]
    ]
    said: dict[str, None] = {}
    for space in spaces:
        source = space["name"].partition("/")[0]
        layers = " and ".join(f"{source}/{path.rpartition('/')[2]}" for path in space["arrays"][0])
        if space["how"] == "mean":
            said[f"{space['name']} is the mean of {layers}, feature by feature"] = None
        if space["how"] == "concat":
            said[f"{space['name']} has {layers} side by side"] = None
    return list(said)


def _fit_sentence(folds: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> str:
    delays = dict.fromkeys(" ".join(map(str, fold["delays"])) for fold in folds)
    penalties = dict.fromkeys(
        _penalties(fold, each["fit"]) for each in settings for fold in folds if _is_of(fold, each["fit"])
    )
    solvers = dict.fromkeys(str(fold["solver"]) for fold in folds)
    zscored = dict.fromkeys(
        "of the training rows" if fold.get("zscore", "train") == "train" else "of the whole movie"
        for fold in folds
    )
    return (
        f"Ridge regression on features z-scored by mean and deviation {' or '.join(zscored)}, at delays of "
        f"{' or '.join(delays)} TRs within runs, with {' or '.join(penalties)} (solver: "
        f"{', '.join(solvers)})."
    )


def _is_of(fold: Mapping[str, Any], fit: Mapping[str, Any]) -> bool:
    """Whether operators may be of fits with these settings: as to where their alpha is from."""
    return (fold.get("alpha") is None) == isinstance(fit["alpha"], str)


def _penalties(fold: Mapping[str, Any], fit: Mapping[str, Any]) -> str:
    """Where the alphas are from."""
    if fold.get("alpha") is not None:
        return f"the alpha {fold['alpha']:g}, which was given, for all vertices"
    exponents = fold["alpha_exponents"]
    whose = (
        "one alpha for all vertices of a subject" if fit["alpha"] == "shared" else "an alpha for each vertex"
    )
    merged = fit["min_fold_trs"]
    joined = f", where a run of fewer than {merged} rows joins its neighbour" if merged else ""
    return (
        f"{whose}, of {len(exponents)} from 10^{exponents[0]:g} to 10^{exponents[-1]:g} times the kernel's "
        "mean variance: that of the least mean squared error in leave-one-run-out folds within the training "
        f"rows{joined}"
    )


def _folds(store: Store, found: Sequence[Scores]) -> list[Mapping[str, Any]]:
    groups = dict.fromkeys(
        group
        for scores in found
        for variant in scores.attributes["variants"]
        for group in variant["operators"]
    )
    return [store.attributes_of(group) for group in groups]


def _average(store: Store, found: Sequence[Scores]) -> str:
    attributes = store.attributes_of(average_group())
    fitted = [each.attributes for each in found if each.attributes["subject"] == AVERAGE]
    if any(fit["bold"] != attributes["digest"] for fit in fitted):
        return " and to an average of subjects that was made anew since"
    how = "z-scored runs" if attributes["how"] == "zscored" else "raw BOLD"
    counts = read_average_counts(store)
    counts = counts[counts > 0]
    said = f" and to the average of the {how} of {_counted(len(attributes['subjects']), 'subject')}"
    if not counts.size:
        return said
    return f"{said} ({span_of([int(counts.min()), int(counts.max())])} of them in a vertex of a run)"


def _versions(run: Mapping[str, Any]) -> dict[str, str]:
    """Versions of packages that fits were made with, several joined by ``or``; of the latest run where
    nothing is known of these."""
    found: dict[str, dict[str, None]] = {}
    for versions in run.get("fitted_with") or [run.get("versions", {})]:
        for name, version in versions.items():
            found.setdefault(name, {})[version] = None
    return {name: " or ".join(each) for name, each in found.items()}


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

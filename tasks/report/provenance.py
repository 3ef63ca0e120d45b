"""What the fits of a store were made with, as their operators say, and warnings where that differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from hpcenc.storage.groups import group_attributes
from hpcenc.storage.layout import superseded_folder
from hpcenc.storage.results import Scores
from hpcenc.storage.store import Store

COMPARABLE = (
    "row policy",
    "delays",
    "alpha exponents",
    "alpha of",
    "test runs",
    "features z-scored over",
    "BOLD z-scored over",
)
"""Settings that feature sets must share for their scores to be compared."""

NAMED_SUBJECTS = 5
"""Subjects named of a longer list."""

Attributes = Mapping[str, Any]
Line = tuple[str, str]


@dataclass(frozen=True)
class Origin:
    """What one fit was made with.

    Attributes
    ----------
    settings : mapping of str to str
        Settings in words, by name; what shall be the same in all subjects.
    features : mapping of (str, str) to str
        By feature space and run: what made the features, apart from the stimulus.
    made_with : tuple of (str, str)
        Each model or set of feature files, and what its features were made with, in words.
    output : mapping of str to str
        What may differ between subjects: kind of weights, backend.
    rows : tuple of (str, str)
        Each outer fold, and its rows in words.
    bold : str
        What identifies the BOLD that was fitted, and its rests and repeated clips, in one line to compare.
    """

    feature_set: str
    subject: str
    settings: Mapping[str, str]
    features: Mapping[tuple[str, str], str]
    made_with: tuple[Line, ...]
    output: Mapping[str, str]
    rows: tuple[Line, ...]
    bold: str


def read_origins(store: Store, found: Sequence[Scores]) -> tuple[Origin, ...]:
    """Origin of each fit, from its operators: a later study file says nothing of them.

    Raises
    ------
    StoreError
        If a group of operators is missing, or metadata are damaged.
    """
    operators = cache(store.attributes_of)  # subjects share operators and features
    makers = cache(partial(_makers, store.path))
    return tuple(_origin(scores.attributes, operators, makers) for scores in found)


def origin_warnings(origins: Sequence[Origin]) -> Iterator[str]:
    """Warnings of means over subjects, and of comparisons of feature sets, that mix settings.

    That happens when a setting is changed and only some subjects or feature sets are submitted again,
    and where subjects lack runs.
    """
    by_set: dict[str, list[Origin]] = {}
    for origin in origins:
        by_set.setdefault(origin.feature_set, []).append(origin)
    for feature_set, of_set in by_set.items():
        yield from _mixed_subjects(feature_set, of_set)
    yield from _mixed_sets(by_set)


def row_lines(origins: Sequence[Origin]) -> list[Line]:
    """Rows used and left out on every outer fold, by reason; who has them where fits differ."""
    return _lines((fold, text, origin) for origin in origins for fold, text in origin.rows)


def feature_lines(origins: Sequence[Origin]) -> list[Line]:
    """What the features of all fits were made with, checkpoints by name and digest; who has them where fits
    differ."""
    return _lines((label, text, origin) for origin in origins for label, text in origin.made_with)


def setting_lines(origins: Sequence[Origin]) -> list[Line]:
    """Settings of all fits; who has them where fits differ."""
    return _lines(
        (name, text, origin)
        for origin in origins
        for name, text in {**origin.settings, **origin.output}.items()
    )


def _origin(
    fit: Attributes,
    operators: Callable[[str], Attributes],
    makers: Callable[[str, str], Attributes | None],
) -> Origin:
    folds = [operators(group) for variant in fit["variants"] for group in variant["operators"]]
    sources = dict.fromkeys(
        (space["name"], run, paths[0].rpartition("/")[0], digest)
        for fold in folds
        for space, (digests, *_) in zip(fold["spaces"], fold["features"], strict=True)
        for run, paths, digest in zip(fold["run_names"], space["arrays"], digests, strict=True)
    )
    return Origin(
        feature_set=fit["feature_set"],
        subject=fit["subject"],
        settings={
            name: "; ".join(dict.fromkeys(describe(fold) for fold in folds))
            for name, describe in _SETTINGS.items()
        }
        | {name: describe(fit) for name, describe in _FIT_SETTINGS.items()},
        features={
            (space, run): _identify_features(makers(group, digest), digest)
            for space, run, group, digest in sources
        },
        made_with=tuple(
            dict.fromkeys(
                _describe_features(makers(group, digest), space, digest)
                for space, _, group, digest in sources
            )
        ),
        output={"weights": fit["weights"], "backend": _describe_backend(fit)},
        rows=tuple(dict.fromkeys((f"test run {fold['fold']}", _describe_rows(fold)) for fold in folds)),
        # All layers of a fit have the same runs, and feature sets have layers of other numbers.
        bold=json.dumps([fit["bold"], sorted({json.dumps(fold["runs"]) for fold in folds})], sort_keys=True),
    )


def _makers(store: Path, group: str, digest: str) -> Attributes | None:
    """Attributes of the features of a digest, also if their group was superseded since; None if they are
    gone."""
    attributes = group_attributes(store, group)
    if attributes is None or attributes["digest"] != digest:
        attributes = group_attributes(superseded_folder(store, digest, group), "")
    return attributes


def _identify_features(attributes: Attributes | None, digest: str) -> str:
    """What made the features, in one line to compare; their digest where nothing else is left."""
    if attributes is None:
        return digest
    # Without the stimulus: two versions of it are no difference between subjects' settings.
    makers = {name: attributes.get(name) for name in ("version", "weights", "spec", "file", "key")}
    return json.dumps(makers, sort_keys=True)


def _describe_features(attributes: Attributes | None, space: str, digest: str) -> Line:
    """The label of features, and what they were made with."""
    if attributes is None:
        return space, f"features of digest {digest}, which are no longer in the store"
    spec = attributes.get("spec")
    if spec is None:
        return attributes["label"], "from files on the TR grid"
    if attributes["checkpoint"]:
        facts = ", ".join(f"{name} {value}" for name, value in attributes["checkpoint"].items())
        weights = f"{facts}, sha256 {attributes['weights']}"
    else:
        weights = f"weights untrained, seed {spec['seed']}"
    return attributes["label"], f"{weights}; {spec['n_layers']} layers; {_inputs(spec)}"


def _inputs(spec: Mapping[str, Any]) -> str:
    """What a model hears and sees of a row; CAV-MAE does both."""
    inputs = []
    if spec["model"] != "clip":
        pool = spec["pool"].replace("tr", "TR")
        inputs.append(f"audio window {spec['window_s']:g} s, {spec['align']}, pooled over the {pool}")
    if spec["model"] != "beats":
        inputs.append("frame at the middle of the TR")
    return "; ".join(inputs)


def _describe_run(name: str, n_trs: int, rest: Sequence[Any], repeats: Sequence[Any]) -> str:
    parts = [f"{n_trs} TRs", *(f"rest {start}-{stop}" for start, stop in rest)]
    parts += [f"repeat {group} {start}-{stop}" for group, start, stop in repeats]
    return f"{name} ({', '.join(parts)})"


def _describe_runs(fold: Attributes) -> str:
    return ", ".join(
        _describe_run(name, *run) for name, run in zip(fold["run_names"], fold["runs"], strict=True)
    )


def _describe_test(fold: Attributes) -> str:
    if fold["split_row"] is not None:
        return f"rows from {fold['split_row']} on"
    return "+".join(name for name, held in zip(fold["run_names"], fold["test"], strict=True) if held)


def _describe_policy(fold: Attributes) -> str:
    return ", ".join(f"{name} {value}" for name, value in fold["policy"].items())


def _describe_rows(fold: Attributes) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in fold["dropped"].items()) or "none"
    runs = ", ".join(fold["run_names"])
    return f"of {runs}: {fold['n_train']} training, {fold['n_test']} test; left out: {dropped}"


def _describe_backend(fit: Attributes) -> str:
    return f"{fit['backend']}, alphas in TF32" if fit.get("tf32") else str(fit["backend"])


def _describe_solver(fold: Attributes) -> str:
    tolerance = fold["basis_tolerance"]
    return fold["solver"] if tolerance is None else f"{fold['solver']}, basis tolerance {tolerance:g}"


def _describe_alphas(fold: Attributes) -> str:
    if fold["alpha"] is not None:
        return f"none: alpha {fold['alpha']:g} is given"
    return " ".join(f"{exponent:g}" for exponent in fold["alpha_exponents"])


_SETTINGS: Mapping[str, Callable[[Attributes], str]] = {
    "runs": _describe_runs,
    "test runs": _describe_test,
    "row policy": _describe_policy,
    "delays": lambda fold: " ".join(map(str, fold["delays"])),
    "alpha exponents": _describe_alphas,
    "features z-scored over": lambda fold: (
        "the training rows" if fold["zscore"] == "train" else "the whole movie, test rows among it"
    ),
    "solver": _describe_solver,
}

_ZSCORED = {"run": "each run", "movie": "all used rows of all runs, test rows among them"}

_FIT_SETTINGS: Mapping[str, Callable[[Attributes], str]] = {
    "BOLD z-scored over": lambda fit: _ZSCORED[fit["zscore"]],
    "alpha of": lambda fit: "each vertex" if fit["settings"]["fit"]["alpha"] == "voxel" else "all vertices",
}


def _mixed_subjects(feature_set: str, origins: Sequence[Origin]) -> Iterator[str]:
    values: dict[str, dict[str, list[str]]] = {}
    for origin in origins:
        for name, text in origin.settings.items():
            values.setdefault(name, {}).setdefault(text, []).append(origin.subject)
    differing = [
        f"{name} ({'; '.join(_names(subjects) for subjects in by_text.values())})"
        for name, by_text in values.items()
        if len(by_text) > 1
    ]
    # Run by run, so that a subject that lacks a run has no other features for that alone.
    features: dict[tuple[str, str], dict[str, list[str]]] = {}
    for origin in origins:
        for place, maker in origin.features.items():
            features.setdefault(place, {}).setdefault(maker, []).append(origin.subject)
    mixed = [by_maker for by_maker in features.values() if len(by_maker) > 1]
    if mixed:
        differing.append(f"features ({'; '.join(_names(subjects) for subjects in mixed[0].values())})")
    if differing:
        yield (
            f"{feature_set}: subjects were fitted under different settings: {', '.join(differing)}; their "
            "means mix them. Submit all subjects again, without those that lack runs."
        )


def _mixed_sets(by_set: Mapping[str, Sequence[Origin]]) -> Iterator[str]:
    for name in COMPARABLE:
        sets: dict[frozenset[str], list[str]] = {}
        for feature_set, origins in by_set.items():
            sets.setdefault(frozenset(origin.settings[name] for origin in origins), []).append(feature_set)
        if len(sets) > 1:
            each = "; ".join(", ".join(feature_sets) for feature_sets in sets.values())
            yield (
                f"Feature sets were fitted under different {name} ({each}): their scores cannot be "
                "compared. Submit all of them again."
            )
    of_subject: dict[str, set[str]] = {}
    for origin in (origin for origins in by_set.values() for origin in origins):
        of_subject.setdefault(origin.subject, set()).add(origin.bold)
    unlike = [subject for subject, fitted in of_subject.items() if len(fitted) > 1]
    if unlike:
        yield (
            f"Feature sets were not all fitted to the same BOLD of {_names(unlike)}: files, runs, rests or "
            "repeated clips, or who is averaged, changed between submits. Their scores cannot be compared "
            "there. Submit all of them again."
        )


def _lines(entries: Iterable[tuple[str, str, Origin]]) -> list[Line]:
    """A line per name and text; where a name has several texts, each says whose it is."""
    texts: dict[str, dict[str, list[Origin]]] = {}
    for name, text, origin in entries:
        texts.setdefault(name, {}).setdefault(text, []).append(origin)
    return [
        (name, text if len(by_text) == 1 else f"{text} — {_whose(origins)}")
        for name, by_text in texts.items()
        for text, origins in by_text.items()
    ]


def _whose(origins: Sequence[Origin]) -> str:
    subjects: dict[str, list[str]] = {}
    for origin in origins:
        subjects.setdefault(origin.feature_set, []).append(origin.subject)
    return "; ".join(f"{feature_set} of {_names(each)}" for feature_set, each in subjects.items())


def _names(subjects: Sequence[str]) -> str:
    more = len(subjects) - NAMED_SUBJECTS
    return ", ".join(subjects[:NAMED_SUBJECTS]) + (f" and {more} more" if more > 0 else "")

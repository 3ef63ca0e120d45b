"""What a store still holds of an earlier study file, and the present one no longer asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcenc.storage.layout import AVERAGE, SWEEPS
from hpcenc.storage.results import fit_groups
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.bold_planner import run_rows
from hpcenc.tasks.ceiling import ceiling_facts, find_showings
from hpcenc.tasks.report.sections import name_some

WHAT = {
    "delays": "Single delays",
    "layers": "Layers",
    "bands": "Fits in bands",
    "singles": "Single tags",
    "ceilings": "Noise ceilings",
}
"""Analyses beside the main fits, by the folder of the store that holds them."""


@dataclass(frozen=True)
class Leftover:
    """One analysis of one subject that is of an earlier study file.

    Attributes
    ----------
    what : str
        Its kind, and the feature set if it has one.
    reason : str
        Why it is not of the present one.
    """

    group: str
    what: str
    subject: str
    reason: str


def find_leftovers(store: Store, study: Study) -> tuple[Leftover, ...]:
    """Sweeps, single tags and noise ceilings in a store that its study file does not ask for, or asks for
    otherwise.

    A submit that names some subjects leaves those of the others in place: these are no leftovers.
    """
    return tuple(_leftovers(store, study))


def leftover_warnings(leftovers: Iterable[Leftover]) -> Iterator[str]:
    """A sentence for each kind, feature set and reason."""
    subjects: dict[tuple[str, str], list[str]] = {}
    for each in leftovers:
        subjects.setdefault((each.what, each.reason), []).append(each.subject)
    for (what, reason), named in subjects.items():
        yield (
            f"{what} of {name_some(named)}: left over from an earlier study file, and not shown. The present "
            f"one {reason}."
        )


def _leftovers(store: Store, study: Study) -> Iterator[Leftover]:
    for kind in (*SWEEPS, "singles"):
        for group in fit_groups(store, kind):
            attributes = store.attributes_of(group)
            subject = attributes["subject"]
            if reason := _not_swept(study, subject) or _other_sweep(study, kind, attributes):
                yield Leftover(group, f"{WHAT[kind]}, {attributes['feature_set']},", subject, reason)
    for metadata in sorted((store.path / "ceilings").glob("*/zarr.json")):
        group = str(metadata.parent.relative_to(store.path))
        attributes = store.attributes_of(group)
        subject = attributes["subject"]
        if reason := _unknown(study, subject) or _other_showings(study, attributes):
            yield Leftover(group, WHAT["ceilings"], subject, reason)


def _unknown(study: Study, subject: str) -> str:
    # A submit may be of some subjects only: it has no say in who belongs to the study.
    known = (*study.subjects.ids, *((AVERAGE,) if study.average else ()))
    return "" if subject in known else "does not name that subject"


def _not_swept(study: Study, subject: str) -> str:
    if reason := _unknown(study, subject):
        return reason
    swept = study.sweeps.subjects or (subject,)
    return "" if subject in swept else "leaves that subject out of sweeps.subjects"


def _other_sweep(study: Study, kind: str, attributes: Mapping[str, Any]) -> str:
    """Why the study does not ask for this sweep, or for these single tags; empty if it does."""
    sweeps = study.sweeps
    asked = {"delays": bool(sweeps.delays), "layers": sweeps.layers, "bands": sweeps.bands}
    asked["singles"] = sweeps.tags is not None
    key = "tags" if kind == "singles" else kind
    if not asked[kind]:
        return f"does not ask for sweeps.{key}"
    if kind == "singles" and attributes["delay"] != sweeps.tags:
        return f"has another sweeps.tags, {sweeps.tags}; submit again"
    if kind == "delays":
        found = {variant["delays"][0] for variant in attributes["variants"]}
        if found != set(sweeps.delays):
            return f"has other sweeps.delays, {' '.join(map(str, sweeps.delays))}; submit again"
    return ""


def _other_showings(study: Study, attributes: Mapping[str, Any]) -> str:
    """Why the study's repeated clips are not those of these ceilings; empty if they are."""
    runs = {run.name: run_rows(run, study.tr_s) for run in study.runs_of(attributes["subject"])}
    other = "has other runs, repeated clips, rests or delays; submit again"
    if not set(attributes["run_names"]) <= runs.keys():
        return other
    longest = max(study.fit.delays)
    rest_tail = longest if study.fit.rest == "drop" else -1
    showings, _ = find_showings([runs[name] for name in attributes["run_names"]], longest, rest_tail)
    # By way of JSON, where tuples are lists as they are in the store.
    return "" if json.loads(json.dumps(ceiling_facts(showings))) == attributes["showings"] else other

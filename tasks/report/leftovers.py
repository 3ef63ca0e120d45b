"""What a store still holds of an earlier study file, and the present one no longer asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.results import fit_groups
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.bold_planner import run_rows
from hpcenc.tasks.ceiling import ceiling_facts, find_showings
from hpcenc.tasks.report.sections import name_some

WHAT = {
    "fits": "Fits",
    "delays": "Single delays",
    "layers": "Layers",
    "bands": "Fits in bands",
    "singles": "Single tags",
    "ceilings": "Noise ceilings",
}
"""Main fits and the analyses beside them, by the folder of the store that holds them."""


@dataclass(frozen=True)
class Leftover:
    """One fit or analysis of one subject that is of an earlier study file.

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
    """Fits of subjects that the study file does not name; sweeps, single tags and noise ceilings that it does
    not ask for, or asks for otherwise.

    A submit that names some subjects or feature sets leaves the others in place: these are no leftovers.
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
    for kind, what in WHAT.items():
        for group in fit_groups(store, kind):
            attributes = store.attributes_of(group)
            subject = attributes["subject"]
            if reason := _unknown(study, subject) or _other(study, kind, attributes):
                feature_set = f", {attributes['feature_set']}," if "feature_set" in attributes else ""
                yield Leftover(group, f"{what}{feature_set}", subject, reason)


def _unknown(study: Study, subject: str) -> str:
    # A submit may be of some subjects only: it has no say in who belongs to the study.
    if subject == AVERAGE:
        return "" if study.average else "does not ask for the average"
    return "" if subject in study.subjects.ids else "does not name that subject"


def _other(study: Study, kind: str, attributes: Mapping[str, Any]) -> str:
    """Why the study does not ask for this analysis of a subject that it names; empty if it does."""
    if kind == "fits":
        return ""
    if kind == "ceilings":
        return _other_showings(study, attributes)
    return _other_sweep(study, kind, attributes)


def _other_sweep(study: Study, kind: str, attributes: Mapping[str, Any]) -> str:
    """Why the study does not ask for this sweep, or for these single tags; empty if it does."""
    sweeps, subject = study.sweeps, attributes["subject"]
    if subject not in (sweeps.subjects or (subject,)):
        return "leaves that subject out of sweeps.subjects"
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
    return "" if ceiling_facts(showings) == attributes["showings"] else other

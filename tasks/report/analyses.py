"""Which analyses a store holds, made into sections of its report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from hpcenc.storage.layout import SWEEPS, ceiling_group
from hpcenc.storage.regions import RegionSet
from hpcenc.storage.results import Scores, fit_groups, read_ceilings, read_singles
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.bold_planner import run_rows
from hpcenc.tasks.ceiling import find_showings
from hpcenc.tasks.models.catalogue import modality
from hpcenc.tasks.report.ceiling_section import ceiling_section
from hpcenc.tasks.report.comparison_section import comparison_section
from hpcenc.tasks.report.data import ReportData
from hpcenc.tasks.report.methods_section import methods_section
from hpcenc.tasks.report.region_section import region_section
from hpcenc.tasks.report.sections import Section
from hpcenc.tasks.report.sweep_sections import sweep_section
from hpcenc.tasks.report.sweeps import Sweep, read_sweeps
from hpcenc.tasks.report.tag_section import read_tags, tag_section

_ROWS = ("fold", "run_names", "runs", "test", "policy", "longest_delay", "n_train", "n_test")
"""What says of operators which rows train and which are scored."""


def make_sections(
    store: Store,
    study: Study,
    data: ReportData,
    found: Sequence[Scores],
    run: Mapping[str, Any],
    features: Sequence[tuple[str, str]],
    regions: Sequence[RegionSet],
    shown: Collection[str],
) -> Iterator[Section]:
    """Sections of everything that was analysed beside the models' own scores, and that is shown.

    Parameters
    ----------
    store : Store
    study : Study
    data : ReportData
        Of the main fits.
    found : sequence of Scores
        The same as the store holds them.
    run : mapping
        Record of the latest run.
    features : sequence of (label, text)
        What every model's features were made with.
    regions : sequence of RegionSet
        The first one has curves of its own.
    shown : collection of str
        Groups of fits and analyses that are begun, and that the study asks for.
    """

    def groups_of(kind: str) -> list[str]:
        return [group for group in fit_groups(store, kind) if group in shown]

    remark = "simulated BOLD" if study.simulated else ""
    if len(data.labels) > 1:
        yield comparison_section(data, remark)
    if regions:
        yield region_section(data, regions, remark)
    swept = {kind: groups for kind in SWEEPS if (groups := groups_of(kind))}
    for groups in swept.values():
        yield _sweep(store, data, found, groups, regions, remark)
    ceilings = {
        subject: read_ceilings(store, subject) for subject in data.subjects if ceiling_group(subject) in shown
    }
    if ceilings:
        yield ceiling_section(data, ceilings, _without_ceiling(study), remark)
    tags = read_tags(store, study)
    singles = tuple(read_singles(store, group) for group in groups_of("singles"))
    # Untrained heads say nothing by themselves: their courses are shown where someone fitted them.
    if tags and (singles or any("untrained" not in each.label for each in tags)):
        yield tag_section(store, study, data, tags, singles, regions, remark)
    clips = dict.fromkeys(clip for fit in data.scores for clip in fit.clips_on_both_sides)
    yield methods_section(store, study, found, run, features, tuple(swept), tuple(clips))


def _sweep(
    store: Store,
    data: ReportData,
    found: Sequence[Scores],
    groups: Sequence[str],
    regions: Sequence[RegionSet],
    remark: str,
) -> Section:
    masks = regions[0].masks if regions else {}
    order = list(dict.fromkeys(fit.feature_set for fit in data.scores))
    sweeps = sorted(
        read_sweeps(store, groups, masks),
        key=lambda sweep: order.index(sweep.feature_set) if sweep.feature_set in order else len(order),
    )
    return sweep_section(
        sweeps[0].kind,
        sweeps,
        data.scores,
        data.voxels,
        regions=masks,
        window=audio_windows(store, groups),
        remark=remark,
        order=data.labels,
        other_rows=on_other_rows(store, sweeps, found),
    )


def audio_windows(store: Store, groups: Sequence[str]) -> str:
    """How the audio windows lie that the features of some sweeps were made with, in a sentence; empty where
    none is from sound."""
    arrays = {
        path
        for group in groups
        for variant in store.attributes_of(group)["variants"]
        for space in variant["spaces"]
        for run in space["arrays"]
        for path in run
    }
    features = {path: store.attributes_of(path.rpartition("/")[0]) for path in sorted(arrays)}
    kinds = dict.fromkeys(
        f"{spec['align']}, pooled over the {spec['pool'].replace('tr', 'TR')}"
        for path, attributes in features.items()
        if (spec := attributes.get("spec")) and modality(spec["model"], path.rpartition("/")[2]) == "audio"
    )
    return f"Audio windows are {' or '.join(kinds)}." if kinds else ""


def on_other_rows(store: Store, sweeps: Sequence[Sweep], found: Sequence[Scores]) -> tuple[Sweep, ...]:
    """Sweeps whose main fit was scored, or trained, on other rows, as the operators of both say.

    Parameters
    ----------
    found : sequence of Scores
        Main fits.
    """
    operators = cache(store.attributes_of)  # subjects share them

    def rows(groups: Sequence[str]) -> list[list[Any]]:
        return [[operators(group)[name] for name in _ROWS] for group in groups]

    main = {
        (scores.attributes["feature_set"], scores.attributes["subject"]): scores.attributes["variants"][0]
        for scores in found
    }
    return tuple(
        sweep
        for sweep in sweeps
        if (fit := main.get((sweep.feature_set, sweep.subject))) is not None
        and rows(fit["operators"]) != rows(sweep.operators)
    )


def _without_ceiling(study: Study) -> tuple[str, ...]:
    """Clips of the study that are shown again and have no ceiling, each with the reason."""
    rows = [run_rows(run, study.tr_s) for run in study.runs]
    longest = max(study.fit.delays)
    _, reasons = find_showings(rows, longest, longest if study.fit.rest == "drop" else -1)
    return reasons

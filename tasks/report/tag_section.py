"""The report's section on AudioSet tags: their courses, two models against each other, and single tags
against BOLD."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hpcenc.storage.features import read_feature_names
from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.regions import RegionSet
from hpcenc.storage.results import Singles
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store
from hpcenc.storage.study import Run, Study
from hpcenc.tasks.nested import mean_excess
from hpcenc.tasks.report.data import FitScores, ReportData
from hpcenc.tasks.report.sections import Column, Illustration, Section, Table, count, name_some
from hpcenc.tasks.report.style import (
    LEFT_OUT_COLOR,
    escape,
    fit_layout,
    line_style,
    new_figure,
    render,
    set_title,
    style_axes,
)
from hpcenc.tasks.report.tables import format_score, format_share

SHOWN_TAGS = 6
"""Tags whose courses are drawn."""

REPEAT_COLOR = "#fde9c8"
ALL_VERTICES = "all vertices"


@dataclass(frozen=True, eq=False)
class Tags:
    """Probabilities of one model's tags, by run.

    Attributes
    ----------
    label : str
        Of the model.
    version : str
        Of the stimulus.
    names : tuple of str
    courses : dict of str to array of shape (n_trs, n_tags)
        By run.
    """

    label: str
    version: str
    names: tuple[str, ...]
    courses: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class AgreementRow:
    """One class in two models, over all rows of the runs that both have."""

    tag: str
    r: float
    first_mean: float
    second_mean: float


@dataclass(frozen=True)
class SingleRow:
    """The best single tag beside whole models, mean r over the vertices where all of them are defined.

    Attributes
    ----------
    share_above : float
        Vertices whose tag predicts above its chance level, in the mean over folds, of those that have one;
        NaN where none has, as in test runs that are too short.
    commonest : str
        Tag that most of those vertices chose in the last fold.
    """

    feature_set: str
    subject: str
    region: str
    n_valid: int
    delay: int
    single_r: float
    all_tags_r: float
    embedding: str
    embedding_r: float
    share_above: float
    commonest: str


def read_tags(store: Store, study: Study) -> tuple[Tags, ...]:
    """Tags of every model in the store, of one stimulus version each: the one with most of the study's runs,
    of equals that which most subjects saw.

    Runs that are not complete are left out.
    """
    runs = {run.name for run in study.runs}
    usual = Counter(map(study.stimulus_of, study.subjects.ids)).most_common(1)[0][0]
    found: dict[str, dict[str, dict[str, str]]] = {}
    for metadata in sorted((store.path / "features").glob("*/*/*/tags/zarr.json")):
        group = metadata.parent.parent.relative_to(store.path).as_posix()
        attributes = store.attributes_of(group)
        n_done, n_units = store.progress(group)
        if attributes["run"] not in runs or n_done < n_units:
            continue
        by_version = found.setdefault(attributes["label"], {})
        by_version.setdefault(attributes["stimulus_version"], {})[attributes["run"]] = f"{group}/tags"
    tags = []
    for label, by_version in found.items():
        version = max(by_version, key=lambda each: (len(by_version[each]), each == usual))
        paths = by_version[version]
        shape = store.array(next(iter(paths.values()))).shape
        space = SpaceSource("tags", tuple((path,) for path in paths.values()), "single", shape[1])
        courses = {run: store.read(path) for run, path in paths.items()}
        tags.append(Tags(label, version, read_feature_names(store, space), courses))
    return tuple(tags)


def shared_runs(first: Tags, second: Tags) -> list[str]:
    """Runs of which both models have tags."""
    return [run for run in first.courses if run in second.courses]


def compared(tags: Sequence[Tags]) -> tuple[Tags, Tags] | None:
    """Tags of two models that were trained alike, of the same stimulus, pretrained ones before others; None
    where there are no two."""
    pairs = [
        (first, second)
        for first, second in combinations(tags, 2)
        if first.label.partition("[")[::2] != second.label.partition("[")[::2]
        and first.label.partition("[")[2] == second.label.partition("[")[2]
        and first.version == second.version
        and shared_runs(first, second)
    ]
    return min(pairs, key=lambda pair: "[" in pair[0].label, default=None)


def agreement(first: Tags, second: Tags) -> tuple[AgreementRow, ...]:
    """r of every class that both models name, over the rows of the runs that both have; best first, NaN
    last. Empty where they share no run."""
    runs = shared_runs(first, second)
    if not runs:
        return ()
    one, other = (np.concatenate([tags.courses[run] for run in runs]) for tags in (first, second))
    rows = []
    for place, name in enumerate(first.names):
        if name in second.names:
            a, b = one[:, place].astype(np.float64), other[:, second.names.index(name)].astype(np.float64)
            varies = a.std() > 0 and b.std() > 0
            r = float(np.corrcoef(a, b)[0, 1]) if varies else math.nan
            rows.append(AgreementRow(name, r, float(a.mean()), float(b.mean())))
    return tuple(sorted(rows, key=lambda row: (math.isnan(row.r), -row.r)))


def single_rows(
    singles: Sequence[Singles],
    names: Mapping[str, tuple[str, ...]],
    data: ReportData,
    regions: Sequence[RegionSet],
) -> tuple[SingleRow, ...]:
    """A line for each subject, set of tags and region of the first set of regions."""
    masks = {ALL_VERTICES: np.ones(data.voxels.n_voxels, dtype=bool)} | (regions[0].masks if regions else {})
    main: dict[tuple[str, str], FitScores] = {}
    for fit in data.scores:  # of several layers the first
        main.setdefault((fit.feature_set, fit.subject), fit)
    undefined = np.full(data.voxels.n_voxels, np.nan)
    rows = []
    for each in singles:
        label, subject = each.attributes["feature_set"], each.attributes["subject"]
        r, excess = each.scores["r"].mean(axis=0), mean_excess(each.scores["r"], each.scores["chance"])
        feature = each.scores["feature"][-1]
        whole = main.get((label, subject))
        all_tags = whole.mean_r if whole else undefined
        heard = label.replace("cavmae-tags", "cavmae-audio").replace("beats-tags", "beats")
        embedded = main.get((heard, subject))
        embedding = embedded.mean_r if embedded else undefined
        known = [values for values in (all_tags, embedding) if np.isfinite(values).any()]
        defined = np.isfinite([r, *known]).all(axis=0)
        for region, mask in masks.items():
            valid = defined & mask
            with_chance = valid & np.isfinite(excess)
            above = with_chance & (excess > 0)
            chosen = Counter(feature[above].astype(int).tolist()).most_common(1)
            rows.append(
                SingleRow(
                    label,
                    subject,
                    region,
                    int(valid.sum()),
                    each.attributes["delay"],
                    _mean(r[valid]),
                    _mean(all_tags[valid]),
                    embedded.variant if embedded else "",
                    _mean(embedding[valid]),
                    float(above.sum() / with_chance.sum()) if with_chance.any() else math.nan,
                    names[label][chosen[0][0]] if chosen else "",
                )
            )
    return tuple(rows)


def tag_section(
    store: Store,
    study: Study,
    data: ReportData,
    tags: Sequence[Tags],
    singles: Sequence[Singles],
    regions: Sequence[RegionSet],
    remark: str = "",
) -> Section:
    """The section on tags.

    Parameters
    ----------
    tags : sequence of Tags
        Of every model that has them, at least one.
    singles : sequence of Singles
    regions : sequence of RegionSet
    remark : str
        Said in every figure.
    """
    unknown = [name for name in study.tags if name not in tags[0].names]
    tables, figures = [], [_timeline(study, tags[0], singles, remark)]
    pair = compared(tags)
    if pair is not None and (rows := agreement(*pair)):
        tables.append(_agreement_table(pair, rows))
        figures.append(_agreement_figure(pair, rows, remark))
    if singles:
        names = {
            each.attributes["feature_set"]: read_feature_names(
                store, SpaceSource.from_dict(each.attributes["space"])
            )
            for each in singles
        }
        tables.append(_single_table(single_rows(singles, names, data, regions)))
    paragraphs = (
        "Tags are AudioSet's classes: of each row the mean logit of its tokens, then the sigmoid. Names are "
        "those of the checkpoint's own table or of AudioSet's; where neither was given, classes go by id or "
        "place.",
        *(f"{name}: not drawn, for {tags[0].label} has no such tag." for name in unknown),
        *(
            f"{each.label}: an untrained head, whose classes mean nothing: a control."
            for each in tags
            if "untrained" in each.label
        ),
        *(
            f"{each.label}: held against no other model's tags; one pair is drawn, of models trained alike "
            "and of one stimulus."
            for each in tags
            if len(tags) > 1 and (pair is None or each not in pair)
        ),
        *(
            f"Single tags are at {each.attributes['delay']} TRs, further than the window reaches, and leave "
            "out more rows than the whole sets."
            for each in singles[:1]
            if each.attributes["delay"] > max(study.fit.delays)
        ),
        "A vertex's single tag is that of the largest correlation with its BOLD over the training rows, of "
        "either sign; its r is over the test rows.",
    )
    return Section("tags", "AudioSet tags", paragraphs, tuple(tables), tuple(figures))


def draw_timelines(
    run: Run, tr_s: float, courses: NDArray[np.float32], names: Sequence[str], *, title: str, remark: str = ""
) -> Figure:
    """Courses of some tags over one run, with its rests and repeated clips shaded."""
    figure = new_figure(height_in=0.7 + 0.75 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    times = (np.arange(len(courses)) + 0.5) * tr_s
    for place, (panel, name) in enumerate(zip(panels, names, strict=True)):
        for segment in run.segments:
            if segment.kind != "clip":
                color = LEFT_OUT_COLOR if segment.kind == "rest" else REPEAT_COLOR
                panel.axvspan(segment.start_s, segment.end_s, color=color, linewidth=0, zorder=0)
            elif segment.start_s > 0:
                panel.axvline(segment.start_s, color=LEFT_OUT_COLOR, linewidth=0.8, zorder=0)
        panel.plot(times, courses[:, place], linewidth=1, color=line_style(place)["color"])
        panel.set_ylim(0, max(1e-6, float(np.nanmax(courses[:, place]))) * 1.05)
        panel.set_title(escape(name), loc="left", fontsize=8, pad=2)
        panel.locator_params(axis="y", nbins=2)
        style_axes(panel)
    panels[-1].set_xlim(0, len(courses) * tr_s)
    panels[-1].set_xlabel(f"time from the first volume of {escape(run.name)} (s)")
    panels[len(names) // 2].set_ylabel("probability")
    set_title(figure, title, remark)
    fit_layout(figure)
    return figure


def shown_tags(tags: Tags, singles: Sequence[Singles], wanted: Sequence[str] = ()) -> tuple[list[int], str]:
    """Places of the tags whose courses are drawn, and which these are, in words.

    They are those that are wanted. Where the model has none of these they are those that most vertices
    above chance chose; where there is no such vertex, those that vary most.
    """
    if places := [tags.names.index(name) for name in wanted if name in tags.names]:
        return places, "that the study names"
    for each in singles:
        if each.attributes["feature_set"].replace("-tags", "", 1) == tags.label:
            above = mean_excess(each.scores["r"], each.scores["chance"]) > 0
            chosen = Counter(each.scores["feature"][-1][above].astype(int).tolist())
            if chosen:
                places = [place for place, _ in chosen.most_common(SHOWN_TAGS)]
                return places, f"that most vertices of {each.attributes['subject']} chose"
    spread = np.concatenate(list(tags.courses.values())).std(axis=0)
    return [int(place) for place in np.argsort(-spread, kind="stable")[:SHOWN_TAGS]], "that vary most"


def _timeline(study: Study, tags: Tags, singles: Sequence[Singles], remark: str) -> Illustration:
    run = next(run for run in study.runs if run.name in tags.courses)
    places, how = shown_tags(tags, singles, study.tags)
    names = [tags.names[place] for place in places]
    courses = tags.courses[run.name][:, places]
    title = f"Tags of {tags.label} · {run.name} · n = {len(courses)} TRs"
    figure = draw_timelines(run, study.tr_s, courses, names, title=title, remark=remark)
    return Illustration(
        "tags",
        f"tag timelines {tags.label} {run.name}",
        render(figure),
        f"Probability (no unit) of {len(names)} tag{'s' * (len(names) > 1)} of {tags.label} {how}, over "
        f"{run.name}{_of_version(study, tags)}, n = {len(courses)} rows; each panel has its own scale. Grey: "
        "rest; orange: the repeated clip; grey lines: clips begin.",
        f"Courses of {', '.join(names)}.",
    )


def _of_version(study: Study, tags: Tags) -> str:
    """Which stimulus a course is of, where subjects saw several."""
    return f" (stimulus {tags.version})" if study.subjects.stimulus_of else ""


def _agreement_table(tags: tuple[Tags, Tags], rows: Sequence[AgreementRow]) -> Table:
    columns = (
        Column("tag", "tag"),
        Column("r", "r", format_score),
        Column("first_mean", f"mean of {tags[0].label}", format_score),
        Column("second_mean", f"mean of {tags[1].label}", format_score),
    )
    title = (
        f"Tags of {tags[0].label} and {tags[1].label}, the ten that agree most; the file has all {len(rows)}."
    )
    return Table("tag_agreement", title, rows[:10], columns, in_file=rows)


def _agreement_figure(tags: tuple[Tags, Tags], rows: Sequence[AgreementRow], remark: str) -> Illustration:
    r = np.array([row.r for row in rows if not math.isnan(row.r)])
    figure = new_figure(height_in=2.6)
    axes = figure.subplots()
    axes.hist(r, bins=np.linspace(-1, 1, 41).tolist(), color=line_style(0)["color"])
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("r of a class between the two models")
    axes.set_ylabel("classes")
    style_axes(axes)
    set_title(figure, f"{tags[0].label} against {tags[1].label} · n = {r.size:,} classes", remark)
    fit_layout(figure)
    return Illustration(
        "tags",
        f"tag agreement {tags[0].label} {tags[1].label}",
        render(figure),
        f"r (Pearson, no unit) of each AudioSet class between {tags[0].label} and {tags[1].label} over all "
        f"rows of {name_some(shared_runs(*tags))}; n = {r.size:,} classes that both name and that vary.",
        f"Histogram of r by class; median {np.median(r):.3f}." if r.size else "No class varies in both.",
    )


def _single_table(rows: Sequence[SingleRow]) -> Table:
    subjects = list(dict.fromkeys(row.subject for row in rows))
    shown = AVERAGE if AVERAGE in subjects else subjects[0]
    return Table(
        "single_tags",
        f"The best single tag beside the whole set of tags and the embedding (of beats, of cavmae-audio), "
        f"{shown}; the file has all subjects.",
        [row for row in rows if row.subject == shown],
        (
            Column("feature_set", "feature set"),
            Column("region", "region"),
            Column("n_valid", "valid vertices", count),
            Column("delay", "delay (TRs)", count),
            Column("single_r", "best single tag, mean r", format_score),
            Column("all_tags_r", "all tags", format_score),
            Column("embedding", "embedding"),
            Column("embedding_r", "its mean r", format_score),
            Column("share_above", "above chance", format_share),
            Column("commonest", "commonest tag"),
        ),
        in_file=rows,
    )


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan

"""AudioSet tags in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.regions import RegionSet
from hpcenc.storage.results import Singles
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study, parse_study
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.data import ReportData
from hpcenc.tasks.report.tag_section import (
    Tags,
    agreement,
    compared,
    read_tags,
    shown_tags,
    single_rows,
    tag_section,
)

N_VOXELS = 8
NAMES = ("Speech", "Music", "Dog")


def tags_of(label, names=NAMES, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.array([0.1, 0.5, 0.2])[: len(names)]
    courses = {run: (rng.random((20, len(names))) * spread).astype(np.float32) for run in ("A", "B")}
    return Tags(label, "main", names, courses)


def singles_of(subject="S1", feature=1, chance=0.15, feature_set="beats-tags"):
    r = np.array([[0.3, 0.2, 0.1, 0.4, 0.5, 0.0, 0.2, np.nan]])
    scores = {
        "r": r,
        "chance": np.full((1, N_VOXELS), chance),
        "feature": np.full((1, N_VOXELS), float(feature)),
        "r_train": r,
    }
    space = {
        "name": "beats/tags",
        "arrays": [["features/beats/main/a/tags"]],
        "how": "single",
        "n_features": 3,
    }
    return Singles({"feature_set": feature_set, "subject": subject, "delay": 5, "space": space}, scores)


def test_classes_are_compared_by_name_over_the_rows_that_both_models_have():
    first = tags_of("beats")
    second = Tags("cavmae", "main", ("Dog", "Speech", "Cat"), {"B": first.courses["B"][:, [2, 0, 1]]})
    second.courses["B"][:, 1] *= -1
    rows = agreement(first, second)
    assert [row.tag for row in rows] == ["Dog", "Speech"]
    assert rows[0].r == pytest.approx(1)
    assert rows[1].r == pytest.approx(-1)
    assert rows[0].first_mean == pytest.approx(first.courses["B"][:, 2].mean())
    second.courses["B"][:, 0] = 0.5
    assert np.isnan(agreement(first, second)[-1].r)


def test_the_tags_that_are_drawn_are_those_that_were_chosen_or_that_vary_most():
    tags = tags_of("beats")
    assert shown_tags(tags, []) == ([1, 2, 0], "that vary most")
    assert shown_tags(tags, [singles_of(feature=2)]) == ([2], "that most vertices of S1 chose")
    assert shown_tags(tags_of("cavmae"), [singles_of(feature=2)]) == ([1, 2, 0], "that vary most")
    assert shown_tags(tags, [singles_of(chance=0.9)]) == ([1, 2, 0], "that vary most")
    assert shown_tags(tags, [singles_of(feature=2)], ["Dog", "Speech"]) == ([2, 0], "that the study names")
    assert shown_tags(tags, [], ["Gong"]) == ([1, 2, 0], "that vary most")


def test_a_single_tag_stands_beside_whole_models_on_the_same_vertices(make_fit):
    def fit(name, value):
        return make_fit(N_VOXELS, r=np.full((2, N_VOXELS), value), feature_set=name, variant=name)

    data = ReportData("x", (fit("beats-tags", 0.4), fit("beats", 0.6)), VoxelAxis.from_count(N_VOXELS))
    left = RegionSet("halves", {"left": np.arange(N_VOXELS) < 3}, "a test")
    rows = single_rows([singles_of()], {"beats-tags": NAMES}, data, [left])
    assert [(row.region, row.n_valid) for row in rows] == [("all vertices", 7), ("left", 3)]
    assert rows[1].single_r == pytest.approx(0.2)
    assert (rows[1].all_tags_r, rows[1].embedding_r) == pytest.approx((0.4, 0.6))
    assert rows[1].share_above == pytest.approx(2 / 3)
    assert rows[1].commonest == "Music"


def test_tags_that_are_heard_stand_beside_the_branch_that_hears(make_fit):
    fits = tuple(
        make_fit(N_VOXELS, r=np.full((2, N_VOXELS), value), feature_set=f"{name}[untrained, seed 0]")
        for name, value in (("cavmae", 0.7), ("cavmae-audio", 0.3))
    )
    label = "cavmae-tags[untrained, seed 0]"
    data = ReportData("x", fits, VoxelAxis.from_count(N_VOXELS))
    (row,) = single_rows([singles_of(feature_set=label)], {label: NAMES}, data, [])
    assert row.embedding_r == pytest.approx(0.3)
    layers = tuple(
        make_fit(N_VOXELS, r=np.full((2, N_VOXELS), value), feature_set="beats", variant=f"beats/{layer}")
        for layer, value in ((12, 0.6), (3, 0.1))
    )
    data = ReportData("x", layers, VoxelAxis.from_count(N_VOXELS))
    (row,) = single_rows([singles_of()], {"beats-tags": NAMES}, data, [])
    assert (row.embedding, row.embedding_r) == ("beats/12", pytest.approx(0.6))


def test_without_a_chance_level_no_share_of_vertices_is_above_it(make_fit):
    data = ReportData("x", (make_fit(N_VOXELS),), VoxelAxis.from_count(N_VOXELS))
    (row,) = single_rows([singles_of(chance=np.nan)], {"beats-tags": NAMES}, data, [])
    assert np.isnan(row.share_above)
    assert row.commonest == ""
    chance = np.array([[0.15, 0.15, np.nan, np.nan, 0.6, 0.15, 0.15, 0.15]])
    (row,) = single_rows([singles_of(chance=chance)], {"beats-tags": NAMES}, data, [])
    assert row.share_above == pytest.approx(3 / 5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(N_VOXELS)})
    for run in ("A", "B"):
        add_tags(made, run, "main")
    return made


def add_tags(store: Store, run: str, version: str) -> None:
    """Tags of beats in one run of one version of the stimulus, complete."""
    array = ArraySpec((20, 3), (20, 3), "float32", ("tr", "tag"), attributes={"display_name": list(NAMES)})
    attributes = {"label": "beats", "stimulus_version": version, "run": run}
    group = f"features/beats/{version}/{run.lower()}"
    store.ensure_group(GroupSpec(group, "f" * 64, {"tags": array}, 1, attributes))
    store.write(f"{group}/tags", (slice(None), slice(None)), tags_of("beats").courses[run])
    store.mark(group, 0, "f" * 64)


def study_of(runs: str, **subjects: object) -> Study:
    """A study with these runs, of segments that have a rest and a repeated clip."""
    segments = [
        {"kind": "rest", "start_s": 0, "end_s": 3},
        {"kind": "clip", "start_s": 3, "end_s": 12},
        {"kind": "repeat", "start_s": 12, "end_s": 18, "group": "clip"},
    ]
    return parse_study(
        {
            "name": "x",
            "tr_s": 1.0,
            "runs": [{"name": run, "n_trs": 20, "segments": segments} for run in runs],
            "subjects": {"ids": ["S1", "S2", "S3"], **subjects},
            "bold": {"path": "{subject}/{run}.npy"},
        },
        Path(),
    )


def test_tags_are_read_of_the_runs_of_the_study_that_are_complete(store):
    assert [list(tags.courses) for tags in read_tags(store, study_of("A"))] == [["A"]]
    assert read_tags(store, study_of("C")) == ()
    begun = ArraySpec((20, 3), (20, 3), "float32", ("tr", "tag"))
    attributes = {"label": "beats", "stimulus_version": "main", "run": "C"}
    store.ensure_group(GroupSpec("features/beats/main/c", "e" * 64, {"tags": begun}, 1, attributes))
    assert [list(tags.courses) for tags in read_tags(store, study_of("ABC"))] == [["A", "B"]]


@pytest.mark.parametrize("version", ["main", "other"])
def test_tags_are_of_the_version_that_most_saw_where_several_are_complete(store, version):
    for run in ("A", "B"):
        add_tags(store, run, "other")
    rare = "main" if version == "other" else "other"
    study = study_of("AB", stimulus=rare, stimulus_of={"S2": version, "S3": version})
    (tags,) = read_tags(store, study)
    assert (tags.version, list(tags.courses)) == (version, ["A", "B"])
    caption = tag_section(store, study, ReportData("x", (), VoxelAxis.from_count(4)), [tags], [], []).figures[
        0
    ]
    assert f"over A (stimulus {version})" in caption.caption


def test_models_that_were_trained_alike_are_compared():
    labels = ("beats[untrained, seed 0]", "beats", "cavmae[untrained, seed 0]", "cavmae")
    tags = [tags_of(label) for label in labels]
    assert [each.label for each in compared(tags)] == ["beats", "cavmae"]
    assert [each.label for each in compared(tags[:3])] == ["beats[untrained, seed 0]", labels[2]]
    assert compared(tags[:2]) is None
    assert compared([tags[1], replace(tags[3], version="other")]) is None


def test_models_that_share_no_run_are_not_compared():
    first, second = tags_of("beats"), tags_of("cavmae")
    del first.courses["A"], second.courses["B"]
    assert agreement(first, second) == ()


def test_the_section_is_made_from_the_store(store, make_fit):
    study = study_of("AB")
    (tags,) = read_tags(store, study)
    assert (tags.label, tags.names, list(tags.courses)) == ("beats", NAMES, ["A", "B"])
    np.testing.assert_array_equal(tags.courses["B"], tags_of("beats").courses["B"])
    data = ReportData("x", (make_fit(N_VOXELS),), VoxelAxis.from_count(N_VOXELS))
    both = (tags, tags_of("clip[untrained, seed 0]", seed=2), tags_of("cavmae", seed=1))
    section = tag_section(store, study, data, both, [singles_of()], [], "simulated BOLD")
    assert [table.name for table in section.tables] == ["tag_agreement", "single_tags"]
    assert [figure.name for figure in section.figures] == [
        "tag timelines beats A",
        "tag agreement beats cavmae",
    ]
    assert "Music" in section.figures[0].alternative
    assert "that most vertices of S1 chose" in section.figures[0].caption
    assert any("an untrained head" in paragraph for paragraph in section.paragraphs)
    assert any("clip[untrained, seed 0]: held against no" in paragraph for paragraph in section.paragraphs)
    assert not any("further than the window" in paragraph for paragraph in section.paragraphs)
    far = replace(singles_of(), attributes=singles_of().attributes | {"delay": 11})
    assert any(
        "11 TRs, further than the window" in paragraph
        for paragraph in tag_section(store, study, data, both, [far], []).paragraphs
    )
    section = tag_section(store, study, data, both, [singles_of(chance=0.9)], [])
    assert "that vary most" in section.figures[0].caption
    named = study.model_copy(update={"tags": ("Dog", "Gong")})
    section = tag_section(store, named, data, both, [singles_of()], [])
    assert "of 1 tag of beats that the study names" in section.figures[0].caption
    assert "Gong: not drawn, for beats has no such tag." in section.paragraphs

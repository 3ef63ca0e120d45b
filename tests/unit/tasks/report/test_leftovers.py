"""What is in a store and not in its study file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.results import KINDS, read_progress
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study, parse_study
from hpcenc.tasks.bold_planner import run_rows
from hpcenc.tasks.ceiling import ceiling_facts, find_showings
from hpcenc.tasks.report.leftovers import WHAT, find_leftovers, leftover_warnings
from hpcenc.tasks.report.unfinished import unfinished_warnings

SWEEPS = {"delays": [0, 2], "layers": True, "bands": True, "tags": 5}


def study_of(folder: Path, end_s: int = 40, **changes: Any) -> Study:
    repeat = {"kind": "repeat", "start_s": 10, "end_s": end_s, "group": "clip"}
    data = {
        "name": "x",
        "tr_s": 1.0,
        "runs": [{"name": run, "n_trs": 50, "segments": [repeat]} for run in "AB"],
        "subjects": {"ids": ["S1", "S2"]},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {"first": {"path": "{run}.npy"}},
        "sweeps": SWEEPS,
        "average": {},
    }
    return parse_study(data | changes, folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """What `study_of` asks for, in both subjects and the average."""
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})

    def add(group: str, attributes: dict[str, Any]) -> None:
        made.ensure_group(GroupSpec(group, "f" * 64, {}, 1, attributes))

    study = study_of(tmp_path)
    runs = [run_rows(run, study.tr_s) for run in study.runs]
    longest = max(study.fit.delays)
    showings = ceiling_facts(find_showings(runs, longest, longest)[0])
    for subject in ("S1", "S2", "average"):
        of_subject = {"feature_set": "first", "subject": subject}
        variants = {
            "delays": [{"delays": [delay]} for delay in (0, 2)],
            "layers": [{"delays": [1, 2]}] * 2,
            "bands": [{"delays": [1, 2]}] * 9,
        }
        for kind, of_kind in variants.items():
            add(f"{kind}/first/{subject.lower()}", of_subject | {"kind": kind, "variants": of_kind})
        add(f"singles/first/{subject.lower()}", of_subject | {"delay": 5})
        add(f"fits/first/{subject.lower()}", of_subject)
        add(
            f"ceilings/{subject.lower()}",
            {"subject": subject, "showings": showings, "run_names": ["A", "B"]},
        )
    return made


def test_what_the_study_asks_for_is_no_leftover(store: Store, tmp_path: Path) -> None:
    assert find_leftovers(store, study_of(tmp_path)) == ()
    some = study_of(tmp_path, subjects={"ids": ["S1", "S2"], "only": ["S1"]})
    assert find_leftovers(store, some) == ()  # of a submit of one subject


@pytest.mark.parametrize(
    ("changes", "groups", "reason"),
    [
        ({"sweeps": SWEEPS | {"delays": [0, 2, 4]}}, {"delays"}, "has other sweeps.delays, 0 2 4; submit"),
        ({"sweeps": SWEEPS | {"delays": []}}, {"delays"}, "does not ask for sweeps.delays"),
        ({"sweeps": SWEEPS | {"layers": False}}, {"layers"}, "does not ask for sweeps.layers"),
        ({"sweeps": SWEEPS | {"bands": False}}, {"bands"}, "does not ask for sweeps.bands"),
        ({"sweeps": SWEEPS | {"tags": 6}}, {"singles"}, "has another sweeps.tags, 6; submit again"),
        ({"sweeps": {"delays": [0, 2], "layers": True, "bands": True}}, {"singles"}, "ask for sweeps.tags"),
        ({"end_s": 30}, {"ceilings"}, "has other runs, repeated clips, rests or delays; submit again"),
        ({"fit": {"delays": [1, 2]}}, {"ceilings"}, "has other runs, repeated clips, rests or delays"),
        ({"runs": [{"name": "A", "n_trs": 50}]}, {"ceilings"}, "has other runs, repeated clips"),
        ({"runs": [{"name": run, "n_trs": 50} for run in "AB"]}, {"ceilings"}, "has other runs, repeated"),
    ],
)
def test_analyses_of_an_earlier_study_file_are_left_over(
    store: Store, tmp_path: Path, changes: dict[str, Any], groups: set[str], reason: str
) -> None:
    found = find_leftovers(store, study_of(tmp_path, **changes))
    assert {each.group.partition("/")[0] for each in found} == groups
    assert {each.subject for each in found} == {"S1", "S2", "average"}
    (warning,) = leftover_warnings(found)
    assert "of average, S1, S2: left over from an earlier study file, and not shown" in warning
    assert reason in warning


def test_subjects_that_the_study_does_not_have_or_sweep_are_left_over(store: Store, tmp_path: Path) -> None:
    alone = find_leftovers(store, study_of(tmp_path, subjects={"ids": ["S1"]}, average=None))
    assert {each.subject for each in alone} == {"S2", "average"}
    assert {(each.subject, each.reason) for each in alone} == {
        ("S2", "does not name that subject"),
        ("average", "does not ask for the average"),
    }
    assert len(alone) == 2 * 6
    warnings = list(leftover_warnings(alone))
    assert len(warnings) == 2 * 6
    assert "Fits, first, of S2: left over from an earlier study file, and not shown." in warnings[1]
    swept = find_leftovers(store, study_of(tmp_path, sweeps=SWEEPS | {"subjects": ["average"]}))
    assert {each.group.partition("/")[0] for each in swept} == {"delays", "layers", "bands", "singles"}
    assert {each.subject for each in swept} == {"S1", "S2"}


def test_every_kind_has_a_name() -> None:
    assert tuple(WHAT) == KINDS


def test_what_is_not_finished_is_told_and_of_fits_only_what_is_not_shown(store: Store) -> None:
    def add(group: str, subject: str, n_done: int) -> None:
        attributes = {"feature_set": "first", "subject": subject}
        store.ensure_group(GroupSpec(group, "e" * 64, {}, 3, attributes))
        for unit in range(n_done):
            store.mark(group, unit, "e" * 64)

    before = set(read_progress(store))
    for kind in ("fits", "delays"):
        for subject, n_done in (("S3", 0), ("S4", 2), ("S5", 3)):
            add(f"{kind}/first/{subject.lower()}", subject, n_done)
    progress = read_progress(store)
    assert progress["delays/first/s4"] == (2, 3)
    assert list(unfinished_warnings(store, progress, before)) == [
        "Fits of first: not shown of S3: no voxel block is done.",
        "Single delays of first: not shown of S3: no voxel block is done.",
        "Single delays of first: incomplete in S4: 2 of 3 voxel blocks are done. The numbers and maps are of "
        "these only.",
    ]


def test_a_ceiling_of_a_run_that_a_subject_no_longer_has_is_left_over(store: Store, tmp_path: Path) -> None:
    subjects = {"ids": ["S1", "S2"], "runs_of": {"S2": ["A"]}}
    (found,) = find_leftovers(store, study_of(tmp_path, subjects=subjects))
    assert (found.group, found.subject) == ("ceilings/s2", "S2")

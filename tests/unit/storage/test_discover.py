from __future__ import annotations

import glob
from itertools import product
from pathlib import Path

import pytest

from hpcenc.storage.discover import (
    commonest_template,
    find_files,
    find_subjects,
    natural_key,
    pair_movies,
    read_names,
)

BIDS = "sub-{0}/func/sub-{0}_task-{1}_run-{2}_space-fsLR_den-91k_bold.dtseries.nii"


def templates(paths: list[str]) -> set[str]:
    return {name.template for name in read_names(paths)}


def test_bids_runs_are_told_apart_by_their_number() -> None:
    paths = [BIDS.format(subject, "film", run) for subject, run in product(("01", "02"), (1, 2, 3))]
    assert templates(paths) == {BIDS.format("{subject}", "film", "{run}")}
    assert {(name.subject, name.run) for name in read_names(paths)} == set(product(("01", "02"), "123"))


def test_bids_runs_are_told_apart_by_their_task() -> None:
    paths = [BIDS.format(subject, task, 1) for subject, task in product(("01", "02"), ("bourne", "life"))]
    assert templates(paths) == {BIDS.format("{subject}", "{run}", 1)}


def test_bids_runs_are_told_apart_by_task_and_number() -> None:
    paths = [BIDS.format("01", task, run) for task, run in product(("bourne", "life"), (1, 2))]
    assert {name.run for name in read_names(paths)} == {
        f"task-{task}_run-{run}" for task, run in product(("bourne", "life"), (1, 2))
    }


def test_bids_sessions_become_globs_unless_they_tell_runs_apart() -> None:
    path = "sub-{0}/ses-{1}/func/sub-{0}_ses-{1}_task-{2}_bold.dtseries.nii"
    once = [path.format("01", "a", "one"), path.format("01", "b", "two"), path.format("02", "a", "two")]
    assert templates(once) == {"sub-{subject}/ses-*/func/sub-{subject}_ses-*_task-{run}_bold.dtseries.nii"}
    again = [path.format("01", session, task) for session, task in product("ab", ("one", "two"))]
    assert templates(again) == {"sub-{subject}/ses-*/func/sub-{subject}_{run}_bold.dtseries.nii"}
    assert "ses-a_task-two" in {name.run for name in read_names(again)}


def test_other_spaces_of_the_same_run_are_other_templates() -> None:
    paths = [BIDS.format(subject, "film", run) for subject, run in product(("01", "02"), (1, 2))]
    names = read_names([*paths, paths[0].replace("91k", "170k")])
    assert len(names) == 5
    assert commonest_template(names) == BIDS.format("{subject}", "film", "{run}")


@pytest.mark.parametrize(
    ("layout", "template"),
    [
        ("bold/{0}_{1}.npy", "bold/{subject}_{run}.npy"),
        ("{0}/{1}.dtseries.nii", "{subject}/{run}.dtseries.nii"),
        ("data/{0}/film_{1}.npy", "data/{subject}/{run}.npy"),
    ],
)
def test_flat_and_nested_names_are_read(layout: str, template: str) -> None:
    paths = [layout.format(subject, run) for subject, run in product(("S1", "S2"), ("m1", "m2", "m3"))]
    assert templates(paths) == {template}
    assert {name.subject for name in read_names(paths)} == {"S1", "S2"}


def test_names_without_subject_and_run_are_not_guessed() -> None:
    assert read_names(["a.npy", "b.npy", "c.npy"]) == []


def test_globs_in_names_are_escaped_in_the_template() -> None:
    (template,) = templates(["x[1]/S1/a.npy", "x[1]/S2/a.npy"])
    assert template == glob.escape("x[1]") + "/{subject}/{run}.npy"


def test_movies_are_paired_by_words_and_numbers() -> None:
    assert pair_movies(["1", "2", "10"], ["film_10.mp4", "film_01.mp4", "x/film_02.mkv"]) == {
        "1": "film_01.mp4",
        "2": "x/film_02.mkv",
        "10": "film_10.mp4",
    }
    assert pair_movies(["task-bourne_run-1"], ["a.mp4", "bourne01.mkv"]) == {
        "task-bourne_run-1": "bourne01.mkv"
    }
    assert pair_movies(["run"], ["anything.mp4"]) == {"run": "anything.mp4"}


def test_movies_in_doubt_are_not_paired() -> None:
    assert pair_movies(["1", "2"], ["film_1.mp4", "film_1.webm", "film_2.mp4"]) == {"2": "film_2.mp4"}
    assert pair_movies(["1", "2"], ["a.mp4", "b.mp4"]) == {}
    assert pair_movies(["life", "life2"], ["life.mp4", "x.mp4"]) == {"life": "life.mp4"}
    assert pair_movies(["a", "b"], ["a_b.mp4", "c.mp4"]) == {}
    assert pair_movies(["run"], []) == {}


def test_runs_are_sorted_as_people_count() -> None:
    assert sorted(["run10", "run2", "b", "run1"], key=natural_key) == ["b", "run1", "run2", "run10"]


def test_links_to_folders_are_followed_and_rings_are_not(tmp_path: Path) -> None:
    data, study = tmp_path / "data", tmp_path / "study"
    for subject in ("S1", "S2"):
        (data / subject).mkdir(parents=True)
        (data / subject / "x.npy").touch()
    study.mkdir()
    (study / "S1").symlink_to(data / "S1")
    (study / "S2").symlink_to(data / "S2")
    (data / "S1" / "back").symlink_to(data / "S1")
    assert find_files(study, (".npy",)) == ["S1/x.npy", "S2/x.npy"]


def test_hidden_folders_and_stores_are_passed_over(tmp_path: Path) -> None:
    for name in ("a/x.MP4", "a/._x.mp4", ".cache/x.mp4", "results/s.zarr/x.mp4", "b.mkv", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path, (".mp4", ".mkv")) == ["a/x.MP4", "b.mkv"]


def test_subjects_must_be_the_same_wherever_the_template_names_them(tmp_path: Path) -> None:
    for name in (
        "S1/S1_m1_AP.npy",
        "S1/S1_m1_PA.npy",
        "S2/S2_m1_AP.npy",
        "S3/S1_m1_AP.npy",
        "S4/S4_m2_AP.npy",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_subjects(tmp_path, "{subject}/{subject}_{run}_??.npy", "m1") == {
        "S1": ["S1/S1_m1_AP.npy", "S1/S1_m1_PA.npy"],
        "S2": ["S2/S2_m1_AP.npy"],
    }


def test_hcp_folders_name_subject_and_run() -> None:
    layout = "data/{0}/MNINonLinear/Results/{1}/{1}_Atlas_hp2000_clean.dtseries.nii"
    runs = ("tfMRI_MOVIE1_7T_AP", "tfMRI_MOVIE2_7T_PA")
    paths = [layout.format(subject, run) for subject, run in product(("100610", "102311"), runs)]
    assert templates(paths) == {layout.format("{subject}", "{run}")}
    assert {(name.subject, name.run) for name in read_names(paths)} == set(
        product(("100610", "102311"), runs)
    )

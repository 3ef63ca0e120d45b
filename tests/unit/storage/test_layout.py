from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcenc.storage import layout

STORE = Path("/lab/results/study.zarr")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("clip", "clip"),
        ("beats+clip", "beats-and-clip"),
        ("clip[untrained, seed 0]", "clip-untrained-seed-0"),
        ("tfMRI_MOVIE1_7T_AP", "tfmri_movie1_7t_ap"),
        ("100610", "100610"),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("a/b", "a-b"),
        ("sub 01 ", "sub-01"),
    ],
)
def test_a_slug_is_a_plain_name_for_one_folder(label: str, expected: str) -> None:
    assert layout.slug(label) == expected
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", expected)


@pytest.mark.parametrize("label", ["", " ", "...", "é", "[]"])
def test_a_label_without_letters_or_digits_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="leaves no letter or digit for a group name; give it another name"):
        layout.slug(label)


def test_groups_of_one_study_do_not_meet() -> None:
    groups = [
        layout.stimulus_group("v1", "run1"),
        layout.stimulus_group("v2", "run1"),
        layout.features_group("clip", "v1", "run1"),
        layout.features_group("clip[untrained, seed 0]", "v1", "run1"),
        layout.features_group("clip[untrained, seed 1]", "v1", "run1"),
        layout.operators_group("0" * 64),
        layout.operators_group("1" * 64),
        layout.fit_group("beats", "S1"),
        layout.fit_group("beats+clip", "S1"),
        layout.fit_group("beats", "S2"),
    ]
    assert len(set(groups)) == len(groups)
    assert not any(one != other and one.startswith(other + "/") for one in groups for other in groups)


def test_everything_but_the_store_lies_beside_it() -> None:
    beside = [
        layout.superseded_folder(STORE, "a" * 64, "fits/clip/s1"),
        layout.cache_folder(STORE),
        layout.operators_folder(STORE, "a" * 64),
        layout.runs_folder(STORE),
        layout.report_folder(STORE),
        layout.lock_path(STORE),
    ]
    for path in beside:
        assert path.is_relative_to(STORE.parent)
        assert not path.is_relative_to(STORE)


def test_what_two_stores_in_one_folder_have_of_their_own_differs() -> None:
    other = STORE.with_name("other.zarr")
    assert layout.lock_path(STORE) != layout.lock_path(other)
    assert layout.report_folder(STORE) != layout.report_folder(other)
    assert layout.runs_folder(STORE) != layout.runs_folder(other)
    assert layout.superseded_folder(STORE, "a" * 64, "g") != layout.superseded_folder(other, "a" * 64, "g")


def test_a_block_of_weights_is_whole_shards_of_whole_chunks() -> None:
    assert layout.SHARD_VOXELS % layout.CHUNK_VOXELS == 0
    assert 10_000 % layout.SHARD_VOXELS == 0

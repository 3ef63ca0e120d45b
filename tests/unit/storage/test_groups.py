from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcenc.storage.errors import StoreError
from hpcenc.storage.groups import ArraySpec, GroupSpec, group_attributes, group_state
from hpcenc.storage.layout import superseded_folder

SPEC = GroupSpec("fits/clip/s1", "a" * 64, {}, 1, {})


def write_group(folder: Path, digest: str) -> None:
    folder.mkdir(parents=True)
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": {"digest": digest}}
    (folder / "zarr.json").write_text(json.dumps(metadata))


def test_a_group_has_one_of_four_states(tmp_path: Path) -> None:
    store = tmp_path / "study.zarr"
    assert group_state(store, SPEC) == "absent"
    write_group(store / SPEC.group, "b" * 64)
    assert group_state(store, SPEC) == "other"
    write_group(superseded_folder(store, SPEC.digest, SPEC.group), SPEC.digest)
    assert group_state(store, SPEC) == "superseded"
    (store / SPEC.group).rename(tmp_path / "gone")
    assert group_state(store, SPEC) == "superseded"
    write_group(store / SPEC.group, "a" * 64)
    assert group_state(store, SPEC) == "current"


def test_attributes_are_read_without_opening_the_store(tmp_path: Path) -> None:
    write_group(tmp_path / "group", "c" * 64)
    assert group_attributes(tmp_path, "group") == {"digest": "c" * 64}
    assert group_attributes(tmp_path, "absent") is None


def test_a_group_may_have_no_attributes(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    assert group_attributes(tmp_path, "") == {}


def test_a_file_in_the_place_of_a_store_is_no_group(tmp_path: Path) -> None:
    (tmp_path / "study.zarr").write_text("text")
    assert group_attributes(tmp_path / "study.zarr", "") is None
    assert group_attributes(tmp_path / "study.zarr", "fits") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"attributes": 3}'])
def test_damaged_metadata_are_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fits").mkdir()
    for group, way_out in (("fits", "Remove .*fits and submit again"), ("", "Restore this one file")):
        (tmp_path / group / "zarr.json").write_bytes(content)
        with pytest.raises(StoreError, match=rf"damaged metadata .* {way_out}"):
            group_attributes(tmp_path, group)


def test_bytes_of_an_array_are_those_of_its_values() -> None:
    dims = ("a", "b")
    assert ArraySpec((3, 5), (3, 2), "float32", dims).n_bytes == 60
    assert ArraySpec((3, 5), (3, 2), "uint8", dims).n_bytes == 15
    assert ArraySpec((3_000_000, 5_000), (1, 1), "float64", dims).n_bytes == 120_000_000_000

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zarr

from hpcenc.storage.digests import mark_of
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.marks import is_done, write_mark
from hpcenc.storage.store import Store

GROUP, DIGEST = "fits/clip/s1", "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = Store.create(tmp_path / "study.zarr", {}, {})
    store.ensure_group(GroupSpec(GROUP, DIGEST, {}, 3, {}))
    return store.path


def test_a_unit_is_done_when_it_is_marked_and_not_before(store: Path) -> None:
    assert not is_done(store, GROUP, 1, DIGEST)
    write_mark(store, GROUP, 1, DIGEST)
    assert [is_done(store, GROUP, unit, DIGEST) for unit in range(3)] == [False, True, False]


def test_a_mark_of_other_inputs_is_none(store: Path) -> None:
    write_mark(store, GROUP, 0, DIGEST)
    assert not is_done(store, GROUP, 0, "1" + DIGEST[1:])
    write_mark(store, GROUP, 0, "1" + DIGEST[1:])
    assert not is_done(store, GROUP, 0, DIGEST)


def test_a_damaged_mark_is_none(store: Path) -> None:
    write_mark(store, GROUP, 0, DIGEST)
    file = store / GROUP / "done/0"
    whole = file.read_bytes()
    for bit in range(64):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert not is_done(store, GROUP, 0, DIGEST)
    for damaged_length in (*range(8), 9):
        file.write_bytes((whole + b"\0")[:damaged_length])
        assert not is_done(store, GROUP, 0, DIGEST)
    file.write_bytes(bytes(8))
    assert not is_done(store, GROUP, 0, "0" * 64)


def test_marks_are_a_zarr_array(store: Path) -> None:
    write_mark(store, GROUP, 2, DIGEST)
    done = zarr.open_array(str(store / GROUP / "done"), mode="r")
    assert done[:].tolist() == [0, 0, mark_of(DIGEST)]


def test_nothing_of_a_group_that_is_not_there_is_done_and_it_takes_no_mark(store: Path) -> None:
    assert not is_done(store, "fits/clip/s2", 0, DIGEST)
    assert not is_done(store / "absent.zarr", GROUP, 0, DIGEST)
    with pytest.raises(FileNotFoundError):
        write_mark(store, "fits/clip/s2", 0, DIGEST)


def test_login_nodes_read_marks_without_zarr() -> None:
    code = (
        "import sys, hpcenc.storage.marks, hpcenc.storage.groups, hpcenc.storage.lock\n"
        "print([name for name in ('zarr', 'torch', 'dask', 'xarray', 'nibabel') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"

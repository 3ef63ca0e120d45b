"""SIGKILL at every moment of what changes the store, in real processes.

Children are forked from one that has run this file, and end themselves by SIGKILL instead of a chosen call
of the functions that change the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hpcenc.storage.groups import ArraySpec, GroupSpec, group_state
from hpcenc.storage.layout import superseded_folder
from hpcenc.storage.results import fit_groups
from hpcenc.storage.store import Store

GROUP = "fits/clip/s1"
UNITS = (slice(0, 50), slice(50, 70))
A, B = "a" * 64, "b" * 64
KILLED = -signal.SIGKILL
MOST_MOMENTS = 200

SERVER = """
import json, os, runpy, sys, traceback
names = runpy.run_path(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            exec(json.loads(line), names)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

RunChild = Callable[[str], int]


@pytest.fixture(scope="module")
def run_child() -> Iterator[RunChild]:
    """Run code with the names of this file in a process of its own; gives the exit status, -9 if killed."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        send, answers = server.stdin, server.stdout
        assert send is not None
        assert answers is not None

        def run(code: str) -> int:
            print(json.dumps(code), file=send, flush=True)
            return int(answers.readline())

        yield run
        send.close()


def die_before(moment: int, within: str = "") -> None:
    """End this process instead of its n-th call that changes the disk, at a path that holds a text."""
    left = moment

    def dying(original: Callable[..., Any], by_descriptor: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            place = os.readlink(f"/proc/self/fd/{arguments[0]}") if by_descriptor else str(arguments)
            if within in place:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return original(*arguments, **options)

        return call

    for name in ("fsync", "replace", "rename", "mkdir"):
        setattr(os, name, dying(getattr(os, name), name == "fsync"))


def make_store(path: Path) -> Store:
    return Store.create(path, {"study": "small"}, {"structure": np.zeros(70, np.int8)})


def small_spec(digest: str) -> GroupSpec:
    dims = ("weight_fold", "variant", "column", "voxel")
    arrays = {
        "scores": ArraySpec((5, 1, 1, 70), (5, 1, 1, 50), "float32", ("score", "fold", "variant", "voxel")),
        "weights": ArraySpec((1, 1, 3, 70), (1, 1, 3, 5), "float32", dims, shards=(1, 1, 3, 25)),
    }
    return GroupSpec(GROUP, digest, arrays, len(UNITS), {"block": 50})


def values() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(7)
    return {
        name: rng.standard_normal(array.shape, dtype=np.float32)
        for name, array in small_spec(A).arrays.items()
    }


def fill(store: Store, digest: str) -> None:
    """Do the units that are not done: shards, scores, mark."""
    for unit, voxels in enumerate(UNITS):
        if store.is_done(GROUP, unit, digest):
            continue
        for start in range(voxels.start, voxels.stop, 25):
            shard = slice(start, min(start + 25, voxels.stop))
            part = (slice(None), slice(None), slice(None), shard)
            store.write(f"{GROUP}/weights", part, values()["weights"][part])
        part = (slice(None), slice(None), slice(None), voxels)
        store.write(f"{GROUP}/scores", part, values()["scores"][part])
        store.mark(GROUP, unit, digest)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as it is when nothing was killed."""
    store = make_store(tmp_path_factory.mktemp("undisturbed") / "study.zarr")
    store.ensure_group(small_spec(A))
    fill(store, A)
    return store.path


def test_a_store_killed_at_any_moment_of_its_creation_is_not_there(
    tmp_path: Path, run_child: RunChild
) -> None:
    path = tmp_path / "new" / "study.zarr"
    for moment in range(MOST_MOMENTS):
        status = run_child(f"die_before({moment}); make_store(Path({str(path)!r}))")
        assert status in (0, KILLED)
        if path.exists():
            break
    assert moment > 5
    store = Store(path)
    np.testing.assert_array_equal(store.read("structure"), np.zeros(70, np.int8))
    store.sweep()
    assert [leftover.name for leftover in path.parent.iterdir()] == ["study.zarr"]


@pytest.mark.filterwarnings("ignore:Object at")  # zarr names what it skips
def test_a_group_killed_at_any_moment_of_its_creation_is_whole_or_not_seen(
    tmp_path: Path, run_child: RunChild, undisturbed: Path
) -> None:
    path = tmp_path / "study.zarr"
    make_store(path)
    n_half_made = 0
    for moment in range(MOST_MOMENTS):
        status = run_child(
            f"store = Store(Path({str(path)!r})); die_before({moment}); store.ensure_group(small_spec(A))"
        )
        assert status in (0, KILLED)
        n_half_made += any(path.parent.glob(".study.zarr.*"))
        state = group_state(path, small_spec(A))
        seen = {name for name, _ in zarr.open_group(str(path), mode="r").members(max_depth=None)}
        if state == "absent":
            assert list(fit_groups(Store(path))) == []
            assert seen <= {"structure", "fits", "fits/clip"}
        else:
            assert state == "current"
            assert seen >= {f"{GROUP}/{name}" for name in ("scores", "weights", "done")}
        Store(path).sweep()
        assert [leftover.name for leftover in path.parent.iterdir()] == ["study.zarr"]
        if status == 0:
            break
        shutil.rmtree(path / "fits", ignore_errors=True)
    assert moment > 10
    assert n_half_made > 5
    fill(Store(path), A)
    assert contents(path) == contents(undisturbed)


def test_a_group_killed_at_any_moment_of_its_replacement_loses_nothing(
    tmp_path: Path, run_child: RunChild, undisturbed: Path
) -> None:
    path = tmp_path / "here/study.zarr"
    for moment in range(MOST_MOMENTS):
        shutil.copytree(undisturbed, path)
        status = run_child(
            f"store = Store(Path({str(path)!r})); die_before({moment}); store.ensure_group(small_spec(B))"
        )
        assert status in (0, KILLED)
        store = Store(path)
        store.sweep()
        store.ensure_group(small_spec(B))
        assert not store.is_done(GROUP, 0, B)
        assert superseded_folder(path, A, GROUP).exists()
        store.ensure_group(small_spec(A))
        assert contents(path) == contents(undisturbed)
        shutil.rmtree(path.parent)
        if status == 0:
            break
    assert moment > 10


def test_work_killed_at_any_moment_is_done_again_byte_equal(
    tmp_path: Path, run_child: RunChild, undisturbed: Path
) -> None:
    empty, path = tmp_path / "empty/study.zarr", tmp_path / "study.zarr"
    make_store(empty).ensure_group(small_spec(A))
    n_marked = set()
    for moment in range(MOST_MOMENTS):
        shutil.copytree(empty, path)
        status = run_child(f"store = Store(Path({str(path)!r})); die_before({moment}); fill(store, A)")
        assert status in (0, KILLED)
        store = Store(path)
        marked = [voxels for unit, voxels in enumerate(UNITS) if store.is_done(GROUP, unit, A)]
        n_marked.add(len(marked))
        for voxels in marked:  # then its data are whole
            for name, expected in values().items():
                part = (*[slice(None)] * (expected.ndim - 1), voxels)
                found = store.read(f"{GROUP}/{name}", part, wait_s=0)
                np.testing.assert_array_equal(found, expected[part])
        store.sweep()
        fill(store, A)
        assert contents(path) == contents(undisturbed)
        shutil.rmtree(path)
        if status == 0:
            break
    assert moment > 20
    assert n_marked == {0, 1, 2}


@pytest.mark.parametrize(
    ("place", "n_shards", "stray"),
    [
        ("weights/0.0.0.1", 1, "weights/0.0.0*.partial"),  # mid-shard: written, but not renamed
        ("scores/0.0.0.0", 2, "scores/0.0*.partial"),
        ("done/0", 2, "done/0.*.partial"),  # after the data, before the mark
    ],
)
def test_a_writer_killed_at_a_named_point_leaves_a_stray_file_and_no_mark(
    tmp_path: Path, run_child: RunChild, undisturbed: Path, place: str, n_shards: int, stray: str
) -> None:
    path = tmp_path / "study.zarr"
    store = make_store(path)
    store.ensure_group(small_spec(A))
    # The first call at the place's own name is the rename that makes the file.
    code = f"store = Store(Path({str(path)!r})); die_before(0, {place + chr(39)!r}); fill(store, A)"
    assert run_child(code) == KILLED
    assert not store.is_done(GROUP, 0, A)
    assert len(list((path / GROUP / "weights").glob("0.0.0.?"))) == n_shards
    assert len(list((path / GROUP).glob(stray))) == 1
    fill(store, A)
    store.sweep()
    assert contents(path) == contents(undisturbed)

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from hpcenc.storage.errors import StoreError
from hpcenc.storage.files import write_atomically
from hpcenc.storage.groups import ArraySpec, GroupSpec, group_state
from hpcenc.storage.store import Store
from hpcenc.tasks.decoding import stimulus_arrays
from hpcenc.tasks.fitting import fit_arrays
from hpcenc.tasks.operator_task import operator_arrays

N_VOXELS = 5_300  # three shards, the last one ragged
FIT, FRAMES = "fits/clip/s1", "stimulus/main/one"
FEATURES, OPERATORS = "features/clip/main/one", "operators/f00"
ALL = slice(None)

SPECS = {
    FIT: GroupSpec(
        FIT,
        "a" * 64,
        fit_arrays(
            n_folds=1, n_variants=1, n_voxels=N_VOXELS, block=5_000, weights="primal", n_weight_folds=1,
            n_weight_rows=4,
        ),
        2,
        {"block": 5_000, "label": "clip"},
    ),
    FRAMES: GroupSpec(FRAMES, "b" * 64, stimulus_arrays(70, 0.01, 4, 6), 3, {}),
    FEATURES: GroupSpec(
        FEATURES, "c" * 64, {"layer": ArraySpec((70, 8), (60, 8), "float32", ("tr", "layer_feature"))}, 2, {}
    ),
    OPERATORS: GroupSpec(OPERATORS, "d" * 64, operator_arrays(70, 20, 8), 1, {}),
}  # fmt: skip

KINDS = [f"{group}/{name}" for group, spec in SPECS.items() for name in spec.arrays]
"""Every array of every kind of group."""


def make_store(path: Path) -> Store:
    voxels = {"structure": np.zeros(N_VOXELS, np.int8), "ijk": np.arange(3 * N_VOXELS).reshape(-1, 3)}
    return Store.create(path, {"study": "small"}, voxels)


def values_for(spec: ArraySpec, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(spec.shape).astype(spec.dtype)
    return rng.integers(0, 100, spec.shape).astype(spec.dtype)


def fill(store: Store, spec: GroupSpec) -> None:
    """Write a group as workers do: shards one after the other, then the marks."""
    for name, array in spec.arrays.items():
        values = values_for(array)
        step = (array.shards or array.chunks)[-1]
        for start in range(0, array.shape[-1], step):
            part = (*[ALL] * (len(array.shape) - 1), slice(start, min(start + step, array.shape[-1])))
            store.write(f"{spec.group}/{name}", part, values[part])
    for unit in range(spec.n_units):
        store.mark(spec.group, unit, spec.digest)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def chunk_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0].isdigit())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every kind of group, filled; not to be changed."""
    store = make_store(tmp_path_factory.mktemp("full") / "study.zarr")
    for spec in SPECS.values():
        store.ensure_group(spec)
        fill(store, spec)
    return store.path


@pytest.fixture
def store(full: Path, tmp_path: Path) -> Store:
    """A copy of the filled store, to be damaged."""
    shutil.copytree(full, tmp_path / "study.zarr")
    return Store(tmp_path / "study.zarr")


# Creating.


def test_every_array_is_given_back_as_written(full: Path) -> None:
    store = Store(full)
    for path in KINDS:
        group, _, name = path.rpartition("/")
        spec = SPECS[group].arrays[name]
        read = store.read(path)
        assert read.dtype == spec.dtype
        np.testing.assert_array_equal(read, values_for(spec))
    np.testing.assert_array_equal(store.read("ijk"), np.arange(3 * N_VOXELS).reshape(-1, 3))
    assert store.attributes["study"] == "small"


def test_a_part_of_an_array_is_read_by_its_selection(full: Path) -> None:
    expected = values_for(SPECS[FIT].arrays["weights"])
    part = (slice(0, 1), slice(0, 1), slice(1, 3), slice(2_400, 5_100))
    np.testing.assert_array_equal(Store(full).read(f"{FIT}/weights", part), expected[part])


def test_opening_what_is_no_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "file.zarr").write_text("text")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("absent.zarr", "empty.zarr", "file.zarr"):
        with pytest.raises(StoreError, match=r"no store here. `hpcenc submit` makes it"):
            Store(tmp_path / name)


def test_a_store_of_another_layout_is_refused(store: Store) -> None:
    path = store.path / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["hpcenc_layout"] = 99
    path.write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match="expected a store of layout 2, found 99"):
        Store(store.path)


def test_damaged_metadata_are_named(store: Store) -> None:
    for path in (store.path / FIT / "zarr.json", store.path / FIT / "scores/zarr.json"):
        path.write_text(path.read_text()[:30])
    with pytest.raises(StoreError, match="damaged metadata"):
        store.attributes_of(FIT)
    with pytest.raises(StoreError, match="damaged metadata"):
        Store(store.path).array(f"{FIT}/scores")


def test_asking_for_what_is_not_there_makes_nothing(store: Store) -> None:
    before = contents(store.path)
    with pytest.raises(StoreError, match="no array 'fits/clip/s9/scores'"):
        store.read("fits/clip/s9/scores")
    with pytest.raises(StoreError, match="no group 'fits/clip/s9'"):
        store.attributes_of("fits/clip/s9")
    assert not (store.path / "fits/clip/s9").exists()
    assert contents(store.path) == before


def test_a_group_under_its_digest_is_left_as_it_is(store: Store) -> None:
    before = contents(store.path)
    stamps = {path: path.stat().st_mtime_ns for path in store.path.rglob("zarr.json")}
    relabelled = replace(SPECS[FIT], attributes={"block": 5_000, "label": "another"})
    assert store.ensure_group(relabelled) == "current"
    assert contents(store.path) == before
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("zarr.json")} == stamps


def test_new_groups_rewrite_no_metadata_that_exist(store: Store) -> None:
    before = contents(store.path)
    assert store.ensure_group(replace(SPECS[FIT], group="fits/clip/s2")) == "absent"
    assert store.ensure_group(replace(SPECS[FIT], group="fits/beats/s2")) == "absent"
    after = contents(store.path)
    assert {name: after[name] for name in before} == before


def test_groups_made_together_are_those_made_one_by_one(store: Store, tmp_path: Path) -> None:
    assert store.ensure_groups(list(SPECS.values())) == ["current"] * len(SPECS)
    together, alone = (make_store(tmp_path / name / "study.zarr") for name in ("together", "alone"))
    for spec in SPECS.values():
        alone.ensure_group(spec)
    assert together.ensure_groups(list(SPECS.values())) == ["absent"] * len(SPECS)
    assert contents(together.path) == contents(alone.path)
    changed = replace(SPECS[FIT], digest="e" * 64)
    new = replace(SPECS[FIT], group="fits/clip/s2")
    assert together.ensure_groups([new, changed]) == ["absent", "other"]
    assert [path.name for path in together.path.parent.iterdir() if path.name.startswith(".")] == []


def test_a_store_opened_again_sees_what_its_root_says_now(store: Store) -> None:
    path = store.path / "zarr.json"
    metadata = json.loads(path.read_bytes())
    metadata["attributes"]["note"] = "changed"
    write_atomically(path, json.dumps(metadata).encode())
    assert "note" not in store.attributes
    assert Store(store.path).attributes["note"] == "changed"


def test_a_group_of_another_digest_goes_aside_and_comes_back_byte_equal(store: Store) -> None:
    before = contents(store.path / FIT)
    changed = replace(SPECS[FIT], digest="e" * 64)
    assert group_state(store.path, changed) == "other"
    assert store.ensure_group(changed) == "other"
    assert not store.is_done(FIT, 0, "a" * 64)
    assert not store.is_done(FIT, 0, "e" * 64)
    with pytest.raises(StoreError, match="missing"):
        store.read(f"{FIT}/scores", wait_s=0)
    fill(store, changed)
    assert store.is_done(FIT, 1, "e" * 64)

    assert group_state(store.path, SPECS[FIT]) == "superseded"
    assert store.ensure_group(SPECS[FIT]) == "superseded"
    assert contents(store.path / FIT) == before
    assert store.is_done(FIT, 1, "a" * 64)
    # And the other way round: nothing that was computed is lost.
    assert store.ensure_group(changed) == "superseded"
    assert store.is_done(FIT, 1, "e" * 64)


def test_a_group_without_metadata_is_made_anew(store: Store) -> None:
    (store.path / FIT / "zarr.json").unlink()
    assert store.ensure_group(SPECS[FIT]) == "absent"
    assert not store.is_done(FIT, 0, "a" * 64)
    assert np.isnan(store.array(f"{FIT}/scores")[:]).all()


# Writing.


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("weights", (ALL, ALL, ALL, slice(0, 500))),
        ("weights", (ALL, ALL, ALL, slice(500, 2_500))),
        ("weights", (ALL, ALL, slice(0, 2), slice(0, 2_500))),
        ("weights", (ALL, ALL, ALL, slice(2_500, 5_200))),
        ("scores", (ALL, ALL, ALL, slice(0, 4_999))),
        ("scores", (ALL, ALL, ALL, slice(1, 5_000))),
    ],
)
def test_a_shard_is_never_written_in_part(store: Store, name: str, part: tuple[slice, ...]) -> None:
    before = contents(store.path)
    shape = np.empty(SPECS[FIT].arrays[name].shape, np.float32)[part].shape
    with pytest.raises(StoreError, match="are not whole shards of"):
        store.write(f"{FIT}/{name}", part, np.ones(shape, np.float32))
    assert contents(store.path) == before


@pytest.mark.parametrize(
    "shape", [(), (5, 1, 1, 1), (5, 1, 1, 4_999), (5, 1, 1, 5_001), (5_000,), (5, 1, 5_000, 1)]
)
def test_values_of_another_shape_are_neither_stretched_nor_cut(store: Store, shape: tuple[int, ...]) -> None:
    before = contents(store.path)
    with pytest.raises(StoreError, match=r"expected values of shape \(5, 1, 1, 5000\)"):
        store.write(f"{FIT}/scores", (ALL, ALL, ALL, slice(0, 5_000)), np.ones(shape, np.float32))
    assert contents(store.path) == before


@pytest.mark.parametrize("name", ["scores", "weights"])
def test_chunks_of_nan_alone_are_files_like_any_other(store: Store, name: str) -> None:
    shape = SPECS[FIT].arrays[name].shape
    files = chunk_files(store.path / FIT / name)
    store.write(f"{FIT}/{name}", tuple(ALL for _ in shape), np.full(shape, np.nan, np.float32))
    assert chunk_files(store.path / FIT / name) == files
    assert np.isnan(store.read(f"{FIT}/{name}")).all()


def test_black_frames_are_files_like_any_other(store: Store) -> None:
    shape = SPECS[FRAMES].arrays["frames"].shape
    store.write(f"{FRAMES}/frames", (ALL, ALL, ALL, ALL), np.zeros(shape, np.uint8))
    assert len(chunk_files(store.path / FRAMES / "frames")) == 2
    assert not store.read(f"{FRAMES}/frames").any()


def test_data_and_their_folder_are_on_the_disk_before_the_mark(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recorded_replace(source: Any, target: Any) -> None:
        calls.append(("replace", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    folder = store.path / FIT
    shape = SPECS[FIT].arrays["weights"].shape
    store.write(f"{FIT}/weights", (ALL,) * 4, np.ones(shape, np.float32))
    store.mark(FIT, 0, "a" * 64)

    marked = calls.index(("replace", str(folder / "done/0")))
    for shard in ("0.0.0.0", "0.0.0.1", "0.0.0.2"):
        written = calls.index(("replace", str(folder / "weights" / shard)))
        synced = calls.index(("fsync", str(folder / "weights" / shard)))
        listed = calls.index(("fsync", str(folder / "weights")))
        assert written < synced < listed < marked
    assert any(kind == "fsync" and "/done/0." in path for kind, path in calls[:marked])
    assert calls[marked + 1 :] == [("fsync", str(folder / "done"))]


# Reading.


@pytest.mark.parametrize("path", ["structure", "ijk", *KINDS])
def test_a_deleted_chunk_is_an_error_and_never_data(store: Store, path: str) -> None:
    files = chunk_files(store.path / path)
    files[-1].unlink()
    with pytest.raises(StoreError, match=rf"1 of the chunks .* missing, {files[-1].name} among them"):
        store.read(path, wait_s=0)


@pytest.mark.parametrize("path", ["structure", "ijk", *KINDS])
def test_a_chunk_cut_short_is_an_error_and_never_data(store: Store, path: str) -> None:
    rng = np.random.default_rng(1)
    files = chunk_files(store.path / path)
    for file in {files[0], files[-1]}:  # the last one is ragged
        data = file.read_bytes()
        for length in (0, 1, 3, len(data) - 1, *rng.integers(0, len(data), 5)):
            file.write_bytes(data[:length])
            with pytest.raises(StoreError, match=r"missing|damaged"):
                store.read(path, wait_s=0)
        file.write_bytes(data)


@pytest.mark.parametrize("path", ["structure", "ijk", *KINDS])
def test_a_flipped_bit_is_an_error_and_never_data(store: Store, path: str) -> None:
    file = chunk_files(store.path / path)[-1]
    data = file.read_bytes()
    rng = np.random.default_rng(2)
    # The ends hold headers, the index of a shard and checksums.
    places = {
        0,
        1,
        len(data) // 2,
        *range(len(data) - 12, len(data)),
        *rng.integers(0, len(data), 8).tolist(),
    }
    for place in sorted(place for place in places if place >= 0):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        with pytest.raises(StoreError, match="damaged"):
            store.read(path)


def test_readers_open_read_only(store: Store) -> None:
    before = contents(store.path)
    store.read(f"{FIT}/scores")
    with pytest.raises(ValueError, match="read-only"):
        store.array(f"{FIT}/scores")[...] = 0
    assert contents(store.path) == before


def test_a_reader_without_permission_to_write_changes_nothing(store: Store) -> None:
    paths = [store.path, *store.path.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in paths}
    reader = Store(store.path)
    for path in KINDS:
        group, _, name = path.rpartition("/")
        np.testing.assert_array_equal(reader.read(path), values_for(SPECS[group].arrays[name]))
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert {path: path.stat().st_mtime_ns for path in [store.path, *store.path.rglob("*")]} == before


def test_chunks_that_are_not_asked_for_are_not_looked_at(store: Store) -> None:
    chunk_files(store.path / FIT / "weights")[2].unlink()
    first = (ALL, ALL, ALL, slice(0, 5_000))
    np.testing.assert_array_equal(
        store.read(f"{FIT}/weights", first), values_for(SPECS[FIT].arrays["weights"])[first]
    )


def test_a_file_that_another_node_has_just_written_is_waited_for(store: Store) -> None:
    file = chunk_files(store.path / FIT / "scores")[0]
    late = file.rename(store.path / "late")
    mover = subprocess.Popen(["sh", "-c", f"sleep 0.3; mv '{late}' '{file}'"])
    np.testing.assert_array_equal(
        store.read(f"{FIT}/scores", wait_s=30), values_for(SPECS[FIT].arrays["scores"])
    )
    assert mover.wait() == 0


def test_an_array_deleted_after_it_was_opened_is_an_error(store: Store) -> None:
    store.read(f"{FIT}/scores")
    shutil.rmtree(store.path / FIT / "scores")
    with pytest.raises(StoreError, match="missing"):
        store.read(f"{FIT}/scores", wait_s=0.2)


# Metadata in one file, and what others see.


def test_consolidated_metadata_come_and_go_without_a_trace(store: Store) -> None:
    before = contents(store.path)
    store.consolidate()
    assert "consolidated_metadata" in json.loads((store.path / "zarr.json").read_text())
    assert Store(store.path).attributes == store.attributes
    store.drop_consolidated()
    after = contents(store.path)
    assert json.loads(after.pop("zarr.json")) == json.loads(before.pop("zarr.json"))
    assert after == before
    stamp = (store.path / "zarr.json").stat().st_mtime_ns
    store.drop_consolidated()
    assert (store.path / "zarr.json").stat().st_mtime_ns == stamp


def test_groups_made_after_dropping_are_in_the_next_consolidation(store: Store) -> None:
    store.consolidate()
    store.drop_consolidated()
    store.ensure_group(replace(SPECS[FIT], group="fits/clip/s2"))
    store.consolidate()
    tree = xarray.open_datatree(str(store.path), engine="zarr", consolidated=True)
    assert set(tree["fits/clip"].children) == {"s1", "s2"}


@pytest.mark.parametrize("consolidated", [True, False])
def test_xarray_opens_the_tree_with_named_axes(store: Store, consolidated: bool) -> None:
    if consolidated:
        store.consolidate()
    tree = xarray.open_datatree(str(store.path), engine="zarr", consolidated=consolidated)
    assert tree["structure"].dims == ("voxel",)
    assert tree[f"{FIT}/scores"].dims == ("score", "fold", "variant", "voxel")
    assert tree[f"{FIT}/scores"].attrs["score"] == ["r", "r2", "alpha", "chance", "agrees"]
    assert tree[f"{FIT}/weights"].dims == ("weight_fold", "variant", "column", "voxel")
    assert tree[f"{FRAMES}/frames"].dims == ("tr", "row", "column", "rgb")
    assert tree[f"{FRAMES}/audio"].attrs["sample_rate_hz"] == 16_000
    assert tree[FIT].attrs["label"] == "clip"
    np.testing.assert_array_equal(tree[f"{FIT}/weights"].values, values_for(SPECS[FIT].arrays["weights"]))


def test_xarray_opens_one_group_with_named_axes(full: Path) -> None:
    fit = xarray.open_zarr(str(full), group=FIT, consolidated=False)
    assert fit.scores.dims == ("score", "fold", "variant", "voxel")
    assert fit.done.dims == ("unit",)
    np.testing.assert_array_equal(fit.scores.values, values_for(SPECS[FIT].arrays["scores"]))
    assert (fit.done.values == int("a" * 16, 16) >> 1).all()


@pytest.mark.filterwarnings("ignore:Object at")  # zarr names what it skips
def test_leftovers_of_killed_writers_harm_nobody_and_are_swept(store: Store) -> None:
    before = contents(store.path)
    strays = [
        store.path / FIT / "weights" / f"0.0.0.0.{'1' * 32}.partial",
        store.path / FIT / "done" / f"0.{'2' * 32}.partial",
        store.path / FIT / f"zarr.{'3' * 32}.partial",
        store.path / f"zarr.json.{'4' * 32}.partial",
    ]
    for stray in strays:
        stray.write_bytes(b"half")
    half_made = store.path.with_name(f".study.zarr.{'5' * 32}")
    half_made.mkdir()
    others = [store.path.with_name(f".study.zarr.old.{'6' * 32}"), store.path.with_name(".study.zarr.notes")]
    for other in others:  # not this store's: of a store called study.zarr.old, and the user's own
        other.mkdir()

    np.testing.assert_array_equal(store.read(f"{FIT}/weights"), values_for(SPECS[FIT].arrays["weights"]))
    tree = xarray.open_datatree(str(store.path), engine="zarr", consolidated=False)
    assert tree[f"{FIT}/weights"].shape == (1, 1, 4, N_VOXELS)
    store.sweep()
    assert contents(store.path) == before
    assert not half_made.exists()
    assert all(other.exists() for other in others)

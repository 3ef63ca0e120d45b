"""The Zarr store: groups made by the controller, arrays filled by workers, complete reads.

Rules that keep a killed run harmless: the controller makes each group beside the store, with its
arrays, and moves it in by one rename; workers write whole shards only, one writer each, and bring
them to the disk before the mark that says so; nothing rewrites metadata that exists. A missing chunk
would read as data, so `read` checks that every file it needs is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from numpy.typing import NDArray

from hpcenc.storage.errors import StoreError
from hpcenc.storage.files import sync, write_atomically
from hpcenc.storage.groups import ArraySpec, GroupSpec, GroupState, group_attributes, group_state
from hpcenc.storage.layout import LAYOUT_VERSION, superseded_folder
from hpcenc.storage.marks import MARKS, is_done, write_mark

# A chunk that holds only the fill value would not be written, and its absence reads as data.
zarr.config.set({"array.write_empty_chunks": True})

SYNCED_AT_ONCE = 8
"""Files that are brought to the disk at the same time where there are many."""

Selection = tuple[slice, ...]


class Store:
    """A study's Zarr store.

    Parameters
    ----------
    path : Path
        Folder of the store, as `create` made it.

    Raises
    ------
    StoreError
        If there is no store, or one of another layout version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        attributes = _root_attributes(path)
        if attributes is None:
            raise StoreError(f"{path}: no store here. `hpcenc submit` makes it.")
        version = attributes.get("hpcenc_layout")
        if version != LAYOUT_VERSION:
            raise StoreError(
                f"{path}: expected a store of layout {LAYOUT_VERSION}, found {version!r}. "
                "Read it with the hpcenc that wrote it, or name another store in the study file."
            )
        self.attributes = attributes
        self._arrays: dict[tuple[str, str], Any] = {}

    @classmethod
    def create(cls, path: Path, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Store:
        """Make a store that holds its root arrays, in one rename.

        Parameters
        ----------
        attributes : mapping
            Of the root group.
        arrays : mapping
            Root arrays (the voxel axis), each of shape (n_voxels, ...), first axis named ``voxel``.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial_beside(path)
        _write_node(partial, _group_metadata({"hpcenc_layout": LAYOUT_VERSION, **attributes}))
        for name, values in arrays.items():
            dims = ("voxel", *(f"{name}_{axis}" for axis in range(1, values.ndim)))
            spec = ArraySpec(values.shape, values.shape, str(values.dtype), dims)
            _write_node(partial / name, _array_metadata(spec))
            zarr.open_array(str(partial / name), mode="r+")[...] = values
        _sync_trees([partial])
        os.rename(partial, path)
        sync(path.parent)
        return cls(path)

    # Groups: the controller only.

    def ensure_group(self, spec: GroupSpec) -> GroupState:
        """`ensure_groups` of one."""
        return self.ensure_groups([spec])[0]

    def ensure_groups(self, specs: Sequence[GroupSpec]) -> list[GroupState]:
        """Make groups ready to be filled under their digests; returns the states they were in.

        A group of another digest is moved beside the store, whole, and comes back when its inputs
        do: nothing that was computed is thrown away here.
        """
        states = [group_state(self.path, spec) for spec in specs]
        to_move = [spec for spec, state in zip(specs, states, strict=True) if state != "current"]
        made = self._create_groups([spec for spec in to_move if not self._kept(spec).exists()])
        for spec in to_move:
            final = self.path / spec.group
            self._make_parents(spec.group)
            if final.exists():
                attributes = group_attributes(self.path, spec.group) or {}
                old = superseded_folder(self.path, str(attributes.get("digest", "unknown")), spec.group)
                if old.exists():
                    shutil.rmtree(old)
                old.parent.mkdir(parents=True, exist_ok=True)
                os.rename(final, old)
                sync(old.parent)
            os.rename(made.get(spec.group, self._kept(spec)), final)
        for folder in {(self.path / spec.group).parent for spec in to_move}:
            sync(folder)
        self._arrays.clear()  # they may be of the groups that were here before
        return states

    def _kept(self, spec: GroupSpec) -> Path:
        """Where a group lies that was moved aside, and whose digest is wanted again."""
        return superseded_folder(self.path, spec.digest, spec.group)

    def _create_groups(self, specs: Sequence[GroupSpec]) -> dict[str, Path]:
        """Make groups beside the store: readers list a group inside it as soon as it has metadata."""
        made = {spec.group: _partial_beside(self.path) for spec in specs}
        metadata: dict[str, bytes] = {}
        for spec in specs:
            partial = made[spec.group]
            _write_node(partial, _group_metadata({"digest": spec.digest, **spec.attributes}))
            marks = ArraySpec((spec.n_units,), (1,), "int64", ("unit",), checksum=False)
            for name, array in {**spec.arrays, MARKS: marks}.items():
                if (key := repr(array)) not in metadata:  # zarr takes milliseconds, and subjects are alike
                    metadata[key] = _array_metadata(array)
                _write_node(partial / name, metadata[key])
        _sync_trees(made.values())
        return made

    def _make_parents(self, group: str) -> None:
        parts = group.split("/")
        for depth in range(1, len(parts)):
            folder = self.path.joinpath(*parts[:depth])
            if not (folder / "zarr.json").exists():
                folder.mkdir(exist_ok=True)
                write_atomically(folder / "zarr.json", _group_metadata({}))

    def drop_consolidated(self) -> None:
        """Forget the consolidated metadata, which would hide groups made from now on."""
        path = self.path / "zarr.json"
        metadata = json.loads(path.read_bytes())
        if metadata.pop("consolidated_metadata", None) is not None:
            write_atomically(path, json.dumps(metadata, indent=2).encode())

    def consolidate(self) -> None:
        """Gather all metadata in one file, so that readers open a large store in one read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is no part of the v3 specification; readers may ignore it
            zarr.consolidate_metadata(str(self.path))
        for path in (self.path / "zarr.json", self.path):  # zarr renames without waiting for the disk
            sync(path)

    def sweep(self) -> None:
        """Remove what killed processes left half made. Call it under the lock only."""
        for folder, _, files in os.walk(self.path):
            for name in files:
                if name.endswith(".partial"):
                    Path(folder, name).unlink()
        for leftover in self.path.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(self.path.name)}\.[0-9a-f]{{32}}", leftover.name):
                shutil.rmtree(leftover)

    # Marks and arrays: workers.

    def is_done(self, group: str, unit: int, digest: str) -> bool:
        """Whether a unit is complete under this digest."""
        return is_done(self.path, group, unit, digest)

    def progress(self, group: str) -> tuple[int, int]:
        """Units of a group that are complete under its own digest, and how many it has."""
        digest, n_units = self.attributes_of(group)["digest"], self.array(f"{group}/{MARKS}").shape[0]
        return sum(self.is_done(group, unit, digest) for unit in range(n_units)), n_units

    def mark(self, group: str, unit: int, digest: str) -> None:
        """Say that a unit is complete."""
        write_mark(self.path, group, unit, digest)

    def attributes_of(self, group: str) -> dict[str, Any]:
        """Attributes of a group.

        Raises
        ------
        StoreError
            If there is no such group.
        """
        attributes = group_attributes(self.path, group)
        if attributes is None:
            raise StoreError(f"{self.path}: no group {group!r}. `hpcenc submit` makes what is missing.")
        return attributes

    def array(self, path: str) -> Any:
        """The zarr array at a path, read-only and opened once; only `write` changes arrays."""
        return self._open(path, "r")

    def _open(self, path: str, mode: Literal["r", "r+"]) -> Any:
        if (path, mode) not in self._arrays:
            try:
                self._arrays[path, mode] = zarr.open_array(str(self.path / path), mode=mode)
            except FileNotFoundError:
                raise StoreError(f"{self.path}: no array {path!r}.") from None
            except (ValueError, TypeError, KeyError) as error:
                raise StoreError(
                    f"{self.path / path}: damaged metadata ({error}). Remove its group and submit again."
                ) from error
        return self._arrays[path, mode]

    def write(self, path: str, selection: Selection, values: NDArray[Any]) -> None:
        """Write whole shards (or chunks), and bring them to the disk.

        Parameters
        ----------
        path : str
            Of the array in the store.
        selection : tuple of slice
            Begins and ends at shard edges, or at the array's end: another writer may be at work in
            the next shard, and a shard written in part would be read, changed and written back.
        values : array of the selection's shape

        Raises
        ------
        StoreError
            If the selection is not whole shards, or the values have another shape.
        """
        array = self._open(path, "r+")
        shape = []
        for axis, (part, size, step) in enumerate(zip(selection, array.shape, _steps(array), strict=True)):
            start, stop, _ = part.indices(size)
            if start % step or (stop % step and stop != size):
                raise StoreError(
                    f"{path}: rows {start} to {stop} of axis {axis} are not whole shards of {step}"
                )
            shape.append(stop - start)
        if values.shape != tuple(shape):  # zarr would broadcast or cut them
            raise StoreError(f"{path}: expected values of shape {tuple(shape)}, found {values.shape}")
        array[selection] = values
        folder = self.path / path
        for key in _chunk_keys(array, selection):
            sync(folder / key)
        sync(folder)

    def read(self, path: str, selection: Selection | None = None, wait_s: float = 2.0) -> NDArray[Any]:
        """Values of an array, after a check that every chunk is there.

        Parameters
        ----------
        selection : tuple of slice, optional
            The whole array if absent.
        wait_s : float
            How long to wait for files that another node has written and this one cannot see yet.

        Raises
        ------
        StoreError
            If a chunk is absent or fails its checksum.
        """
        array = self.array(path)
        selection = selection or tuple(slice(None) for _ in array.shape)
        folder = self.path / path
        deadline = time.monotonic() + wait_s
        while missing := [key for key in _chunk_keys(array, selection) if not _has_data(folder / key)]:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{folder}: {len(missing)} of the chunks asked for are missing, {missing[0]} among them. "
                    "They were not written, or were deleted since: remove the array's group and submit again."
                )
            with contextlib.suppress(FileNotFoundError):
                os.listdir(folder)  # makes network file systems look again
            time.sleep(0.1)
        try:
            return np.asarray(array[selection])
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(
                f"{folder}: a chunk is damaged ({error}). Remove its group and submit again."
            ) from error


def _root_attributes(path: Path) -> dict[str, Any] | None:
    """Attributes of the root group, or None if there is none.

    They lie in one file with all gathered metadata, megabytes in a large store, and every task asks for them:
    a worker parses each version of the file once.
    """
    try:
        status = (path / "zarr.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    attributes = _parse_root(path, status.st_ino, status.st_mtime_ns, status.st_size)
    return None if attributes is None else dict(attributes)


@lru_cache(maxsize=2)
def _parse_root(path: Path, *version: int) -> dict[str, Any] | None:
    return group_attributes(path, "")


def _partial_beside(path: Path) -> Path:
    """Where something is made that a rename will move into the store; `Store.sweep` knows the name."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _write_node(folder: Path, metadata: bytes) -> None:
    """Make a new group or array."""
    folder.mkdir()
    (folder / "zarr.json").write_bytes(metadata)


def _group_metadata(attributes: Mapping[str, Any]) -> bytes:
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(metadata, indent=2).encode()


def _array_metadata(spec: ArraySpec) -> bytes:
    """What zarr writes of an array that it makes."""
    files: dict[str, Any] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(files),
        shape=spec.shape,
        chunks=spec.chunks,
        shards=spec.shards,
        dtype=spec.dtype,
        fill_value=float("nan") if np.dtype(spec.dtype).kind == "f" else 0,
        dimension_names=spec.dims,
        compressors=_compressors(spec.dtype) if spec.checksum else None,
        chunk_key_encoding={"name": "v2", "separator": "."},
        attributes=dict(spec.attributes or {}),
    )
    metadata: bytes = files["zarr.json"].to_bytes()
    return metadata


def _steps(array: Any) -> Sequence[int]:
    """Edges of what one writer writes, and of what one file holds."""
    steps: Sequence[int] = array.shards or array.chunks
    return steps


def _has_data(path: Path) -> bool:
    """Whether a chunk's file is there; zarr reads an empty one as an absent one, which is the fill value."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _chunk_keys(array: Any, selection: Selection) -> Iterator[str]:
    ranges = []
    for part, size, step in zip(selection, array.shape, _steps(array), strict=True):
        start, stop, _ = part.indices(size)
        ranges.append(range(start // step, -(-stop // step)))
    for index in product(*ranges):
        yield array.metadata.encode_chunk_key(index)


def _compressors(dtype: str) -> tuple[Any, ...]:
    checksum = zarr.codecs.Crc32cCodec()
    if np.dtype(dtype) == np.uint8:  # frames compress; noise-like floats do not
        return (zarr.codecs.ZstdCodec(level=1), checksum)
    return (checksum,)


def _sync_trees(folders: Iterable[Path]) -> None:
    parents = ((parent, files) for folder in folders for parent, _, files in os.walk(folder))
    paths = [Path(parent, name) for parent, files in parents for name in ("", *files)]
    # Several at a time: the disk answers them together, and hundreds of groups are thousands of files.
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
        list(pool.map(sync, paths))

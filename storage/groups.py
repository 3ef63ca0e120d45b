"""What groups of the store hold, said before they are made and read without opening it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpcenc.storage.errors import StoreError
from hpcenc.storage.layout import superseded_folder


def group_attributes(store: Path, group: str) -> dict[str, Any] | None:
    """Attributes of a group, or None if there is no such group.

    Raises
    ------
    StoreError
        If its metadata are damaged.
    """
    path = store / group / "zarr.json"
    try:
        return dict(json.loads(path.read_bytes()).get("attributes", {}))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError) as error:
        way_out = (
            f"Remove {path.parent} and submit again." if group else "Restore this one file from a backup."
        )
        raise StoreError(f"{path}: damaged metadata ({error}). {way_out}") from error


@dataclass(frozen=True)
class ArraySpec:
    """An array that a group holds.

    Attributes
    ----------
    shape, chunks : tuple of int
        ``chunks`` is what one writer writes at a time, unless ``shards`` is given.
    shards : tuple of int or None
        Files of several chunks; whole shards are written.
    dtype : str
    dims : tuple of str
        Names of the axes.
    attributes : mapping, optional
        Plain values for readers.
    checksum : bool
        False for marks, which are compared whole.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    shards: tuple[int, ...] | None = None
    attributes: Mapping[str, Any] | None = None
    checksum: bool = True

    @property
    def n_bytes(self) -> int:
        """Size on disk; floats are stored without compression."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def n_files(self) -> int:
        """Files of its values: one for each shard, or for each chunk where there are no shards."""
        steps = self.shards or self.chunks
        return math.prod(-(-size // step) for size, step in zip(self.shape, steps, strict=True))


@dataclass(frozen=True)
class GroupSpec:
    """A group that is filled under one digest.

    Attributes
    ----------
    group : str
        Its path in the store.
    digest : str
        Of everything that decides its content.
    arrays : mapping of str to ArraySpec
    n_units : int
        Units that fill it, each with a mark.
    attributes : mapping
        Plain values for readers.
    """

    group: str
    digest: str
    arrays: Mapping[str, ArraySpec]
    n_units: int
    attributes: Mapping[str, Any]


GroupState = Literal["absent", "current", "other", "superseded"]


def group_state(store: Path, spec: GroupSpec) -> GroupState:
    """Whether a group is there under its digest, under another one, or set aside from before."""
    attributes = group_attributes(store, spec.group)
    if attributes is not None and attributes.get("digest") == spec.digest:
        return "current"
    if superseded_folder(store, spec.digest, spec.group).exists():
        return "superseded"
    return "absent" if attributes is None else "other"

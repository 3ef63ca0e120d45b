"""Named arrays in a folder of ``.npy`` files, whole or not at all, for memory-mapped reading."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.errors import StoreError
from hpcenc.storage.files import sync


def save_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Write arrays to a folder that appears when all are on the disk; returns their bytes.

    An older folder of the same name is replaced.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(partial / f"{name}.npy", values)
        sync(partial / f"{name}.npy")
    sync(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(partial, folder)
    sync(folder.parent)
    return sum(values.nbytes for values in arrays.values())


def load_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Memory-mapped arrays of a folder.

    Raises
    ------
    StoreError
        If the folder is not there or holds something else.
    """
    try:
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.iterdir())}
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder}: the cached operators cannot be read ({error}). Remove the folder and submit again."
        ) from error

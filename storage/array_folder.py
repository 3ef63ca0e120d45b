"""Named arrays in a folder of ``.npy`` files, whole or not at all, for memory-mapped reading."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.errors import StoreError
from hpcenc.storage.files import sync, write_atomically

CONTENTS = "arrays.json"
"""Names of the arrays in a folder: without it, a lost file would pass for an array that never was."""


def save_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Write arrays to a folder that appears when all are on the disk; returns their bytes.

    An older folder of the same name is replaced.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(partial / f"{name}.npy", values)
        sync(partial / f"{name}.npy")
    write_atomically(partial / CONTENTS, json.dumps(sorted(arrays)).encode())
    if folder.exists():
        # In one step too: readers, and a kill halfway, shall see the old folder or none.
        old = partial.with_name(f"{partial.name}.old")
        os.rename(folder, old)
        shutil.rmtree(old)
    os.rename(partial, folder)
    sync(folder.parent)
    return sum(values.nbytes for values in arrays.values())


def load_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Memory-mapped arrays of a folder.

    Raises
    ------
    StoreError
        If the folder is not there, lacks one of its arrays, or holds something else.
    """
    try:
        names = json.loads((folder / CONTENTS).read_bytes())
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, EOFError, ValueError) as error:
        raise StoreError(
            f"{folder}: the cached operators cannot be read ({error}). Remove the folder and submit again."
        ) from error

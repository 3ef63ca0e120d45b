"""Arrays of rows and voxels that lie voxel by voxel in memory, as matrix products read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

Array = Any
"""An array of NumPy, torch or another library of the array API."""


def slices(n_voxels: int, size: int) -> list[slice]:
    """Voxels in parts of so many; the last one may be smaller."""
    return [slice(first, min(first + size, n_voxels)) for first in range(0, n_voxels, size)]


def room(n_rows: int, like: Array) -> Array:
    """Room for values of every voxel of another array, (n_rows, n_voxels), laid out voxel by voxel in memory.

    What comes in parts is put here: parts that are joined at the end are there twice.
    """
    xp = array_namespace(like)
    return xp.matrix_transpose(xp.empty((like.shape[1], n_rows), dtype=like.dtype, device=device(like)))


def join_columns(blocks: Sequence[Array]) -> Array:
    """Blocks of columns side by side, laid out voxel by voxel in memory."""
    xp = array_namespace(blocks[0])
    if len(blocks) == 1:
        return blocks[0]
    return xp.matrix_transpose(xp.concat([xp.matrix_transpose(block) for block in blocks]))


def take_voxels(values: Array, voxels: Array) -> Array:
    """Some columns, or elements of a vector, laid out voxel by voxel in memory."""
    xp = array_namespace(values)
    if values.ndim == 1:
        return xp.take(values, voxels)
    return xp.matrix_transpose(xp.take(xp.matrix_transpose(values), voxels, axis=0))


def take_rows(Y: Array, rows: NDArray[np.intp]) -> Array:
    """Rows of `Y`, laid out voxel by voxel in memory, as the matrix products read them."""
    xp = array_namespace(Y)
    by_voxel = xp.matrix_transpose(Y)
    # Rows come in stretches, between rests: copying those is far faster than picking row by row.
    stretches = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    parts = [by_voxel[:, int(stretch[0]) : int(stretch[-1]) + 1] for stretch in stretches]
    return xp.matrix_transpose(xp.concat(parts, axis=1))

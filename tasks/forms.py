"""Packed quadratic forms: ``y' D y`` of many voxels and symmetric matrices, by matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

Array = Any
"""An array of NumPy, torch or another library of the array API."""
Floats = NDArray[np.floating[Any]]

PANEL = 256
"""Columns of a panel of a packed form: half of a symmetric matrix and an eleventh more, at 2,924 rows."""

VOXELS_AT_ONCE = 1_000
"""Voxels of one product, whose result (1 MB a form) stays in the cache of a CPU until it is summed."""


def panels(size: int, width: int = PANEL) -> list[tuple[int, int]]:
    """First column, and column after the last, of each panel."""
    return [(first, min(first + width, size)) for first in range(0, size, width)]


def packed_size(size: int, width: int = PANEL) -> int:
    """Values of one packed form."""
    return sum(stop * (stop - first) for first, stop in panels(size, width))


def pack(forms: Floats, width: int = PANEL) -> Floats:
    """Symmetric matrices as the panels of their upper triangles.

    Parameters
    ----------
    forms : array of shape (n_forms, size, size)
        Only the upper triangles are read.
    width : int
        Columns of a panel.

    Returns
    -------
    array of shape (n_forms * packed_size(size, width),)
        Panel after panel, each of shape (rows, n_forms, columns): the rows down to the diagonal block, which
        is whole; what lies above it is doubled, for it stands for its mirror image too.
    """
    parts = []
    for first, stop in panels(forms.shape[1], width):
        block = forms[:, first:stop, first:stop]
        whole = np.triu(block) + np.triu(block, 1).transpose(0, 2, 1)
        panel = np.concatenate([2 * forms[:, :first, first:stop], whole], axis=1)
        parts.append(panel.transpose(1, 0, 2).reshape(-1))
    return np.concatenate(parts)


def pack_less_product(form: Floats, left: Floats, right: Floats, width: int = PANEL) -> Floats:
    """One symmetric matrix less ``left @ right.T``, which is symmetric too, packed; half of it is formed.

    Parameters
    ----------
    form : array of shape (size, size)
        Only the upper triangle is read.
    left, right : array of shape (size, rank)
    """
    packed, offset = np.empty(packed_size(len(form), width), form.dtype), 0
    for first, stop in panels(len(form), width):
        end = offset + stop * (stop - first)
        panel = packed[offset:end].reshape(stop, stop - first)
        np.matmul(left[:stop], right[first:stop].T, out=panel)
        np.subtract(form[:stop, first:stop], panel, out=panel)
        panel[:first] *= 2
        block = panel[first:]
        block[...] = np.triu(block) + np.triu(block, 1).T
        offset = end
    return packed


def interleave(packed: Floats, size: int, width: int = PANEL) -> Floats:
    """One packed array of several forms, from forms packed by themselves, (n_forms, n_packed)."""
    parts, offset = [], 0
    for first, stop in panels(size, width):
        end = offset + stop * (stop - first)
        panel = packed[:, offset:end].reshape(len(packed), stop, stop - first)
        parts.append(panel.transpose(1, 0, 2).reshape(-1))
        offset = end
    return np.concatenate(parts)


def inner_products(packed: Floats, size: int, width: int = PANEL) -> NDArray[np.float64]:
    """Frobenius inner products of symmetric matrices.

    Parameters
    ----------
    packed : array of shape (n_forms, packed_size(size, width))
        Each packed by itself.

    Returns
    -------
    array of shape (n_forms, n_forms), float64
        Sums are in float64: forms that are nearly mixtures of others are told from them by tiny differences.
    """
    total = np.zeros((len(packed), len(packed)))
    offset = 0
    for first, stop in panels(size, width):
        middle, end = offset + first * (stop - first), offset + stop * (stop - first)
        above = packed[:, offset:middle].astype(np.float64)
        block = packed[:, middle:end].astype(np.float64)
        total += above @ above.T / 2 + block @ block.T
        offset = end
    return total


def quadratic_forms(Y: Array, packed: Array, width: int = PANEL) -> Array:
    """``y' D y`` of every voxel and form.

    Parameters
    ----------
    Y : array of shape (n_voxels, size)
        A voxel's values lie next to each other.
    packed : array
        As `pack` made it; of the library, device and dtype of `Y`.

    Returns
    -------
    array of shape (n_voxels, n_forms), float64
        Sums within a panel are in the dtype of `Y`, those over panels in float64.
    """
    xp = array_namespace(Y)
    n_voxels, size = Y.shape
    n_forms = packed.shape[0] // packed_size(size, width)
    found = []
    for start in range(0, n_voxels, VOXELS_AT_ONCE):
        part = Y[start : min(start + VOXELS_AT_ONCE, n_voxels), :]
        total = xp.zeros((part.shape[0], n_forms), dtype=xp.float64, device=device(Y))
        offset = 0
        for first, stop in panels(size, width):
            end = offset + stop * n_forms * (stop - first)
            panel = xp.reshape(packed[offset:end], (stop, n_forms * (stop - first)))
            products = xp.reshape(xp.matmul(part[:, :stop], panel), (part.shape[0], n_forms, stop - first))
            total = total + xp.astype(xp.vecdot(products, part[:, None, first:stop]), xp.float64)
            offset = end
        found.append(total)
    return xp.concat(found)

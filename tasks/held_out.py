"""Errors of the inner folds, by which a voxel chooses among the variants of one model."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from hpcenc.tasks.operators import FoldOperators

Array = Any
"""An array of NumPy, torch or another library of the array API."""


def held_out_errors(Y_train: Array, dual: Array, ops: FoldOperators, alpha_index: Array) -> Array:
    """Squared error of the inner folds, mean over rows and then over folds, from the fit on all training
    rows.

    Alpha times the dual coefficients are the residuals of that fit; a fold's matrix turns its rows'
    residuals into those of a fit without them.

    Parameters
    ----------
    Y_train : array of shape (n_train, n_voxels)
    dual : array of shape (n_train, n_voxels)
        Dual coefficients with each voxel's alpha, as `refit_by_alpha` gives them.
    ops : FoldOperators
        The fast solver's, made for nested choices.
    alpha_index : array of int, shape (n_voxels,)

    Returns
    -------
    array of shape (n_voxels,), float64

    References
    ----------
    Cook and Weisberg (1982), Residuals and Influence in Regression (rows left out, from one fit).
    """
    assert ops.fast is not None
    assert ops.fast.held_out is not None
    xp = array_namespace(dual)
    order = xp.argsort(alpha_index)
    by_voxel = xp.take(xp.matrix_transpose(dual), order, axis=0)
    n_alphas = ops.alphas.shape[0]
    n_indirect = n_alphas - ops.fast.duals.shape[0]
    is_deficient = ops.eigenvectors.shape[1] < len(ops.train_rows) - 1
    counts = [int(xp.sum(xp.astype(alpha_index == place, xp.int64))) for place in range(n_alphas)]
    found = []
    for place, (stop, count) in enumerate(zip(accumulate(counts), counts, strict=True)):
        if not count:
            continue
        residuals = by_voxel[stop - count : stop, :] * xp.astype(ops.alphas[place], dual.dtype)
        if place < n_indirect and is_deficient:
            voxels = order[stop - count : stop]
            residuals = residuals + _outside(xp.take(xp.matrix_transpose(Y_train), voxels, axis=0), ops)
        total, offset = xp.zeros(count, dtype=xp.float64, device=device(dual)), 0
        for first, last in ops.inner_rows.tolist():
            n_val = last - first
            matrix = xp.reshape(ops.fast.held_out[place, offset : offset + n_val**2], (n_val, n_val))
            held_out = xp.matmul(residuals[:, first:last], matrix)
            total = total + xp.astype(xp.vecdot(held_out, held_out), xp.float64) / n_val
            offset += n_val**2
        found.append(total / len(ops.inner_rows))
    return xp.take(xp.concat(found), xp.argsort(order))


def _outside(by_voxel: Array, ops: FoldOperators) -> Array:
    """What no feature can fit: the part of BOLD, (n_voxels, n_train), outside the span of the eigenvectors.

    Dual coefficients that came by way of the eigenvectors do not hold it.
    """
    xp = array_namespace(by_voxel)
    inside = xp.matmul(xp.matmul(by_voxel, ops.eigenvectors), xp.matrix_transpose(ops.eigenvectors))
    return by_voxel - xp.mean(by_voxel, axis=1, keepdims=True) - inside


def null_errors(Y_train: Array, inner_rows: NDArray[np.intp]) -> Array:
    """Squared error of the inner folds where each is predicted by the mean of the others.

    Parameters
    ----------
    Y_train : array of shape (n_train, n_voxels)
    inner_rows : array of shape (n_inner, 2)
        As operators have them.

    Returns
    -------
    array of shape (n_voxels,), float64
        Mean over rows and then over folds.
    """
    xp = array_namespace(Y_train)
    total: Array = 0.0
    for first, last in inner_rows.tolist():
        held_out = Y_train[first:last, :]
        others = xp.sum(Y_train, axis=0) - xp.sum(held_out, axis=0)
        mean = others / (Y_train.shape[0] - (last - first))
        total = total + xp.mean(xp.astype(held_out - mean, xp.float64) ** 2, axis=0)
    return total / len(inner_rows)

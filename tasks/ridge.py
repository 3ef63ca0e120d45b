"""Ridge regression of voxels on FIR features in the dual, alpha per voxel, on any array library.

BOLD meets the fold operators in matrix products only; nothing of the size (alphas, rows, voxels) ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from hpcenc.tasks.operators import FoldOperators, InnerOperators
from hpcenc.tasks.scores import circular_shift_chance, pearson_r, r2

Array = Any
"""An array of NumPy, torch or another library of the array API."""


@dataclass(frozen=True, eq=False)
class BlockFit:
    """Fit of one voxel block on one outer fold.

    A voxel that is constant or not finite over the used rows of any run is undefined: NaN, alpha index -1.
    """

    r: Array
    """Pearson r over the test rows, (n_voxels,), float64."""
    r2: Array
    """1 - SSE / SST over the test rows, (n_voxels,), float64."""
    alpha: Array
    """Chosen alpha, absolute, (n_voxels,), float64."""
    alpha_index: Array
    """Its place in the alpha grid, (n_voxels,), int64."""
    chance: Array
    """99.9th percentile of r under circular shifts, (n_voxels,), float64; NaN if a test run is too short."""
    n_shifts: int
    """Shifts behind `chance`."""
    dual: Array | None
    """Dual coefficients, (n_train, n_voxels), in units of z-scored BOLD; they sum to zero."""


def run_lengths(rows: NDArray[np.intp], run_onsets: Sequence[int]) -> tuple[int, ...]:
    """How many of these rising rows lie in each run that has any."""
    run = np.searchsorted(np.asarray(run_onsets), rows, side="right")
    return tuple(int(count) for count in np.unique_counts(run).counts)


def zscore_runs(Y: Array, run_lengths: Sequence[int]) -> tuple[Array, Array]:
    """BOLD z-scored within each run.

    Parameters
    ----------
    Y : array of shape (n_rows, n_voxels)
        Used rows, run after run. Only they give mean and scale: rest and repeated clips, once left out, shall
        not come back through the scaling, nor shall a spike in a dropped row.
    run_lengths : sequence of int
        Rows of each run.

    Returns
    -------
    Z : array of shape (n_rows, n_voxels)
        Zeros where not valid, so that no NaN reaches the neighbours in a matrix product.
    valid : array of bool, shape (n_voxels,)
        False where the voxel is not finite, or constant up to rounding, in any run.
    """
    xp = array_namespace(Y)
    by_voxel = xp.matrix_transpose(Y)
    valid = xp.all(xp.isfinite(by_voxel), axis=1)
    by_voxel = xp.where(valid[:, None], by_voxel, xp.zeros_like(by_voxel))
    scored = []
    for stop, length in zip(accumulate(run_lengths), run_lengths, strict=True):
        run = by_voxel[:, stop - length : stop]
        # Raw BOLD is 10,000 +- 100: without the first value, float32 keeps the digits of the signal, and a
        # constant is exactly zero.
        shifted = run - run[:, :1]
        centred = shifted - xp.mean(shifted, axis=1, keepdims=True)
        scale = xp.sqrt(xp.mean(centred**2, axis=1))
        rounding = 4 * xp.finfo(Y.dtype).eps * xp.abs(run[:, 0])
        varies = xp.logical_and(xp.isfinite(scale), scale > rounding)
        valid = xp.logical_and(valid, varies)
        scored.append(centred / xp.where(varies, scale, xp.ones_like(scale))[:, None])
    together = xp.concat(scored, axis=1)
    return xp.matrix_transpose(xp.where(valid[:, None], together, xp.zeros_like(together))), valid


def cross_validate(Y_train: Array, ops: FoldOperators) -> Array:
    """Score of every alpha: negative squared error, mean over rows, then over inner folds.

    Parameters
    ----------
    Y_train : array of shape (n_train, n_voxels)
        BOLD of the training rows, z-scored per run.
    ops : FoldOperators
        On the same device.

    Returns
    -------
    array of shape (n_voxels, n_alphas), float64
    """
    total: Array = 0.0
    for inner in ops.inner:
        total = total + _inner_scores(Y_train, inner)
    return total / len(ops.inner)


def choose_alphas(Y_train: Array, ops: FoldOperators) -> Array:
    """Place of every voxel's best alpha in the grid; ties go to the larger alpha.

    Parameters and the score are those of `cross_validate`.

    Returns
    -------
    array of shape (n_voxels,), int64
    """
    xp = array_namespace(Y_train)
    falling = xp.flip(cross_validate(Y_train, ops), axis=1)
    return falling.shape[1] - 1 - xp.astype(xp.argmax(falling, axis=1), xp.int64)


def refit(
    Y_train: Array, ops: FoldOperators, alpha_index: Array, want_dual: bool = False
) -> tuple[Array, Array | None]:
    """Fit on all training rows with each voxel's own alpha, and predict the test rows.

    Parameters
    ----------
    Y_train : array of shape (n_train, n_voxels)
        BOLD of the training rows.
    ops : FoldOperators
        On the same device.
    alpha_index : array of int, shape (n_voxels,)
        Place of each voxel's alpha in ``ops.alphas``.
    want_dual : bool

    Returns
    -------
    predicted : array of shape (n_test, n_voxels)
        The intercept is the mean over training rows.
    dual : array of shape (n_train, n_voxels) or None
        Of all dual coefficients that give these predictions and weights, those of least norm; they sum to
        zero.
    """
    xp = array_namespace(Y_train)
    by_voxel = xp.matrix_transpose(Y_train)
    shrinkage = 1 / (ops.eigenvalues + xp.take(ops.alphas, alpha_index, axis=0)[:, None])
    rotated = xp.matmul(by_voxel, ops.eigenvectors) * xp.astype(shrinkage, Y_train.dtype)
    intercept = xp.mean(by_voxel, axis=1, keepdims=True)
    predicted = xp.matmul(rotated, xp.matrix_transpose(ops.test_operator)) + intercept
    dual = xp.matmul(rotated, xp.matrix_transpose(ops.eigenvectors)) if want_dual else None
    return xp.matrix_transpose(predicted), None if dual is None else xp.matrix_transpose(dual)


def fit_block(
    Y: Array, ops: FoldOperators, run_onsets: Sequence[int], want_dual: bool = False, sub_block: int = 500
) -> BlockFit:
    """Fit and score one voxel block on one outer fold.

    Parameters
    ----------
    Y : array of shape (n_trs, n_voxels)
        BOLD of all rows of the runs present, raw or standardised; z-scored per run here (`zscore_runs`), the
        training rows of a training run and the test rows of a test run each by their own statistics. Rows
        that the fold leaves out are never looked at.
    ops : FoldOperators
        Of the dtype and on the device of `Y`.
    run_onsets : sequence of int
        First row of each run; begins with 0.
    want_dual : bool
        Give the dual coefficients too.
    sub_block : int
        Voxels at a time. The basis predictions of one sub-block (about 40 kB per voxel) should fit the cache
        of a CPU; it changes no result beyond rounding.

    Returns
    -------
    BlockFit
    """
    train_lengths = run_lengths(ops.train_rows, run_onsets)
    test_lengths = run_lengths(ops.test_rows, run_onsets)
    n_voxels = Y.shape[1]
    return _joined(
        [
            _fit_sub_block(Y[:, first:stop], ops, train_lengths, test_lengths, want_dual)
            for first in range(0, n_voxels, sub_block)
            for stop in [min(first + sub_block, n_voxels)]
        ]
    )


def _fit_sub_block(
    Y: Array, ops: FoldOperators, train_lengths: Sequence[int], test_lengths: Sequence[int], want_dual: bool
) -> BlockFit:
    xp = array_namespace(Y)
    Y_train, train_valid = zscore_runs(_take_rows(Y, ops.train_rows), train_lengths)
    Y_test, test_valid = zscore_runs(_take_rows(Y, ops.test_rows), test_lengths)
    valid = xp.logical_and(train_valid, test_valid)

    alpha_index = choose_alphas(Y_train, ops)
    predicted, dual = refit(Y_train, ops, alpha_index, want_dual)
    chance, n_shifts = circular_shift_chance(predicted, Y_test, test_lengths)

    def where_valid(values: Array) -> Array:
        return xp.where(valid, values, xp.full_like(values, math.nan))

    return BlockFit(
        r=where_valid(pearson_r(predicted, Y_test)),
        r2=where_valid(r2(predicted, Y_test)),
        alpha=where_valid(xp.take(ops.alphas, alpha_index, axis=0)),
        alpha_index=xp.where(valid, alpha_index, xp.full_like(alpha_index, -1)),
        chance=where_valid(chance),
        n_shifts=n_shifts,
        dual=None if dual is None else where_valid(dual),
    )


def _joined(fits: Sequence[BlockFit]) -> BlockFit:
    xp = array_namespace(fits[0].r)
    scores = {
        name: xp.concat([getattr(fit, name) for fit in fits])
        for name in ("r", "r2", "alpha", "alpha_index", "chance")
    }
    with_dual = fits[0].dual is not None
    dual = xp.concat([fit.dual for fit in fits], axis=1) if with_dual else None
    return BlockFit(**scores, n_shifts=fits[0].n_shifts, dual=dual)


def _inner_scores(Y_train: Array, inner: InnerOperators) -> Array:
    """Negative mean squared error of every alpha on one inner fold, (n_voxels, n_alphas), float64.

    The predictions of alpha a are ``C[a] @ Q``, Q the predictions of the basis filters, so that their squared
    error follows from the Gram matrix of Q and its products with the target. None are formed.
    """
    xp = array_namespace(Y_train)
    n_voxels, n_val = Y_train.shape[1], len(inner.val_rows)
    n_alphas, n_basis = inner.coefficients.shape
    # The operator ignores constants (it is orthogonal to them), so training BOLD goes in as it is.
    training = xp.matrix_transpose(_take_rows(Y_train, inner.train_rows))
    projected = training if inner.projection is None else xp.matmul(training, inner.projection)
    basis = xp.reshape(xp.matmul(projected, inner.operator), (n_voxels, n_basis, n_val))
    intercept = xp.mean(training, axis=1, keepdims=True)
    target = xp.matrix_transpose(_take_rows(Y_train, inner.val_rows)) - intercept

    # Sums over rows in the dtype of the BOLD, sums over the basis and over rows of the target in float64.
    gram = xp.astype(xp.matmul(basis, xp.matrix_transpose(basis)), xp.float64)
    products = xp.astype(xp.matmul(basis, target[:, :, None])[:, :, 0], xp.float64)
    target_squares = xp.sum(xp.astype(target, xp.float64) ** 2, axis=1, keepdims=True)
    by_pair = inner.coefficients[:, :, None] * inner.coefficients[:, None, :]
    pairs = xp.reshape(by_pair, (n_alphas, n_basis**2))
    predicted_squares = xp.matmul(xp.reshape(gram, (n_voxels, n_basis**2)), xp.matrix_transpose(pairs))
    shared = xp.matmul(products, xp.matrix_transpose(inner.coefficients))
    return -(predicted_squares - 2 * shared + target_squares) / n_val


def _take_rows(Y: Array, rows: NDArray[np.intp]) -> Array:
    """Rows of `Y`, laid out voxel by voxel in memory, as the matrix products read them."""
    xp = array_namespace(Y)
    # A copy: torch warns of index arrays that are mapped read-only from disk.
    index = xp.asarray(np.array(rows, dtype=np.int64), device=device(Y))
    return xp.matrix_transpose(xp.take(xp.matrix_transpose(Y), index, axis=1))

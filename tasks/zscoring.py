"""BOLD z-scored for a fit: within runs, on the rows that the fold uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from hpcenc.tasks.by_voxel import room, slices, take_rows, take_voxels
from hpcenc.tasks.held_out import null_errors
from hpcenc.tasks.operators import FoldOperators

Array = Any
"""An array of NumPy, torch or another library of the array API."""


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


def zscore_rows(
    Y: Array,
    rows: tuple[NDArray[np.intp], NDArray[np.intp]],
    run_onsets: Sequence[int],
    zscore: Literal["run", "movie"],
) -> tuple[Array, Array, Array]:
    """Training and test rows of BOLD z-scored as a fit wants them.

    Parameters
    ----------
    Y : array of shape (n_trs, n_voxels)
    rows : tuple of two arrays of int
        Training rows and test rows, each rising.
    run_onsets : sequence of int
        First row of each run; begins with 0.
    zscore : {"run", "movie"}
        Within runs, training and test rows each by their own statistics; or by one mean and scale of all of
        them.

    Returns
    -------
    train : array of shape (n_train, n_voxels)
    test : array of shape (n_test, n_voxels)
        Both zero where a voxel is not valid.
    valid : array of bool, shape (n_voxels,)
        False where the voxel is not finite, or constant, in any run of either.
    """
    xp = array_namespace(Y)
    (train, in_train), (test, in_test) = (
        zscore_runs(take_rows(Y, part), run_lengths(part, run_onsets)) for part in rows
    )
    valid = xp.logical_and(in_train, in_test)
    if zscore == "movie":
        used = np.concatenate(rows)
        together, _ = zscore_runs(take_rows(Y, used), [len(used)])
        train, test = together[: len(train), :], together[len(train) :, :]
    return (*(xp.where(valid, part, xp.zeros_like(part)) for part in (train, test)), valid)


@dataclass(frozen=True, eq=False)
class Standardised:
    """BOLD of the voxels of a block that can be fitted.

    Attributes
    ----------
    train : array of shape (n_train, n_fitted)
    test : array of shape (n_test, n_fitted)
    valid : array of bool, shape (n_voxels,)
    order : array of int, shape (n_voxels,)
        Voxels of the block, those that are fitted first. One that is not valid is among them if none is.
    inner_rows : array of shape (n_inner, 2)
        Training rows that each inner fold holds out, as operators have them.
    """

    train: Array
    test: Array
    valid: Array
    order: Array
    inner_rows: NDArray[np.intp]

    @cached_property
    def null_errors(self) -> Array:
        """Errors of the inner folds where each is predicted by the mean of the others, (n_fitted,)."""
        return null_errors(self.train, self.inner_rows)

    def spread(self, values: Array, fill: float) -> Array:
        """Values of the fitted voxels, last axis, among all voxels of the block."""
        xp = array_namespace(values)
        if bool(xp.all(self.valid)):
            return values
        if values.shape[-1] < self.order.shape[0]:
            # Any voxel stands in for those that were left out.
            places = xp.clip(xp.argsort(self.order), max=values.shape[-1] - 1)
            values = take_voxels(values, places)
        return xp.where(self.valid, values, xp.full((), fill, dtype=values.dtype, device=device(values)))


def standardise(
    Y: Array,
    ops: FoldOperators,
    run_onsets: Sequence[int],
    sub_block: int = 500,
    zscore: Literal["run", "movie"] = "run",
) -> Standardised:
    """BOLD of a block as `fit_block` fits it; for several fits on the same rows, which z-score it once.

    Parameters are those of `fit_block`.
    """
    xp = array_namespace(Y)
    train, test = room(len(ops.train_rows), Y), room(len(ops.test_rows), Y)
    valid = []
    for part in slices(Y.shape[1], sub_block):
        train[:, part], test[:, part], is_valid = zscore_rows(
            Y[:, part], (ops.train_rows, ops.test_rows), run_onsets, zscore
        )
        valid.append(is_valid)
    valid = xp.concat(valid)

    n_fitted = max(1, int(xp.sum(xp.astype(valid, xp.int64))))
    order = xp.argsort(xp.astype(valid, xp.int64), descending=True, stable=True)
    if n_fitted < Y.shape[1]:
        train = take_voxels(train, order[:n_fitted])
        test = take_voxels(test, order[:n_fitted])
    return Standardised(train, test, valid, order, ops.inner_rows)

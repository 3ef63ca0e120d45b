"""Ridge regression of voxels on FIR features in the dual, alpha per voxel, on any array library.

BOLD meets the fold operators in matrix products only; nothing of the size (alphas, rows, voxels) ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from hpcenc.tasks.by_voxel import join_columns, room, slices, take_rows, take_voxels
from hpcenc.tasks.cv_choice import Precision, choose_by_forms, exact_choice, last_argmin
from hpcenc.tasks.cv_forms import CvForms
from hpcenc.tasks.held_out import held_out_errors
from hpcenc.tasks.operators import FoldOperators, InnerOperators
from hpcenc.tasks.scores import circular_shift_chance, pearson_r, r2, split_r
from hpcenc.tasks.thin import fold_coordinates, thin_scores, together
from hpcenc.tasks.zscoring import Standardised, run_lengths, standardise

Array = Any
"""An array of NumPy, torch or another library of the array API."""

MAX_DISAGREEMENT = 5e-4
"""Share of a checked sample whose alphas may differ from those by exact scores."""


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
    agrees: Array
    """Whether the fast solver's alpha is the one by exact scores: 1 or 0, NaN where they were not compared;
    (n_voxels,), float64."""
    r_repeat: Array
    """`r` over the test rows of a repeated clip alone, (n_voxels,), float64; NaN if there are none."""
    cv: Array
    """1 - error / null error in the inner folds, with the chosen alpha, (n_voxels,), float64: by it
    variants of one model are compared. NaN where it was not asked for."""
    r_bands: Array | None
    """What each band adds to `r`, (n_bands, n_voxels), float64; None where there are no bands."""
    dual: Array | None
    """Dual coefficients, (n_train, n_voxels), in units of z-scored BOLD; they sum to zero."""


def cross_validate(Y_train: Array, ops: FoldOperators, coordinates: Sequence[Array] = ()) -> Array:
    """Score of every alpha: negative squared error, mean over rows, then over inner folds.

    Parameters
    ----------
    Y_train : array of shape (n_train, n_voxels)
        BOLD of the training rows, z-scored per run.
    ops : FoldOperators
        On the same device.
    coordinates : sequence of array
        Those of `fold_coordinates`, if they are at hand.

    Returns
    -------
    array of shape (n_voxels, n_alphas), float64
    """
    if ops.thin:
        spans = ops.inner_rows.tolist()
        coordinates = coordinates or fold_coordinates(Y_train, ops.eigenvectors, spans)
        return thin_scores(Y_train, coordinates, ops.thin, spans)
    total: Array = 0.0
    for inner in ops.inner:
        total = total + _inner_scores(Y_train, inner)
    return total / len(ops.inner)


def choose_alphas(
    Y_train: Array, ops: FoldOperators, coordinates: Sequence[Array] = ()
) -> tuple[Array, Array]:
    """Place of every voxel's best alpha in the grid; ties go to the larger alpha.

    Parameters and the score are those of `cross_validate`.

    Returns
    -------
    alpha_index : array of shape (n_voxels,), int64
    errors : array of shape (n_voxels,), float64
        Squared error with that alpha, mean over rows, then over inner folds.
    """
    errors = -cross_validate(Y_train, ops, coordinates)
    chosen = last_argmin(errors)
    xp = array_namespace(errors)
    return chosen, xp.take_along_axis(errors, chosen[:, None], axis=1)[:, 0]


def refit(
    Y_train: Array,
    ops: FoldOperators,
    alpha_index: Array,
    want_dual: bool = False,
    coordinates: Sequence[Array] = (),
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
    coordinates : sequence of array
        Those of `fold_coordinates`, if they are at hand: their sum is what the eigenvectors give.

    Returns
    -------
    predicted : array of shape (n_test, n_voxels)
        The intercept is the mean over training rows.
    dual : array of shape (n_train, n_voxels) or None
        Dual coefficients that give these predictions and weights; they sum to zero. What they hold along
        directions in which the features do not vary changes neither.
    """
    xp = array_namespace(Y_train)
    by_voxel = xp.matrix_transpose(Y_train)
    shrinkage = 1 / (ops.eigenvalues + xp.take(ops.alphas, alpha_index, axis=0)[:, None])
    rotated = together(coordinates)[:, :-1] if coordinates else xp.matmul(by_voxel, ops.eigenvectors)
    rotated = rotated * xp.astype(shrinkage, Y_train.dtype)
    intercept = xp.mean(by_voxel, axis=1, keepdims=True)
    predicted = xp.matmul(rotated, xp.matrix_transpose(ops.test_operator)) + intercept
    dual = xp.matmul(rotated, xp.matrix_transpose(ops.eigenvectors)) if want_dual else None
    return xp.matrix_transpose(predicted), None if dual is None else xp.matrix_transpose(dual)


def refit_by_alpha(Y_train: Array, ops: FoldOperators, alpha_index: Array) -> tuple[Array, Array]:
    """`refit` of many voxels by the fast operators: one product for all voxels of an alpha.

    Parameters
    ----------
    Y_train, ops, alpha_index
        As `refit` takes them.

    Returns
    -------
    predicted : array of shape (n_test, n_voxels)
    dual : array of shape (n_train, n_voxels)
    """
    assert ops.fast is not None
    xp = array_namespace(Y_train)
    by_voxel = xp.matrix_transpose(Y_train)
    order = xp.argsort(alpha_index)
    n_indirect = ops.alphas.shape[0] - ops.fast.duals.shape[0]
    edges = [
        int(xp.sum(xp.astype(alpha_index < place, xp.int64)))
        for place in range(n_indirect, ops.alphas.shape[0] + 1)
    ]

    predicted = room(len(ops.test_rows), Y_train)
    dual = room(len(ops.train_rows), Y_train)
    if edges[0]:
        part = slice(0, edges[0])
        group = xp.matrix_transpose(xp.take(by_voxel, order[part], axis=0))
        predicted[:, part], dual[:, part] = refit(group, ops, xp.take(alpha_index, order[part]), True)
    for place, (start, stop) in enumerate(pairwise(edges)):
        if start < stop:
            part = slice(start, stop)
            group = xp.take(by_voxel, order[part], axis=0)
            of_group = xp.matmul(group, ops.fast.duals[place, :, :])
            intercept = xp.mean(group, axis=1, keepdims=True)
            found = xp.matmul(of_group, xp.matrix_transpose(ops.fast.test_kernel)) + intercept
            predicted[:, part], dual[:, part] = xp.matrix_transpose(found), xp.matrix_transpose(of_group)
            del group, of_group, found  # the next ones need their room
    back = xp.argsort(order)
    return take_voxels(predicted, back), take_voxels(dual, back)


def fit_block(
    Y: Array | Standardised,
    ops: FoldOperators,
    run_onsets: Sequence[int],
    want_dual: bool = False,
    sub_block: int = 500,
    n_check: int = 0,
    seed: int = 0,
    coarsely: Precision = nullcontext,
    nested: bool = False,
    repeat_rows: NDArray[np.intp] | Sequence[int] = (),
    zscore: Literal["run", "movie"] = "run",
) -> BlockFit:
    """Fit and score one voxel block on one outer fold.

    Parameters
    ----------
    Y : array of shape (n_trs, n_voxels)
        BOLD of all rows of the runs present, raw or standardised; z-scored per run here (`zscore_runs`), the
        training rows of a training run and the test rows of a test run each by their own statistics. Rows
        that the fold leaves out are never looked at. Or what `standardise` made of it, for operators of the
        same rows.
    ops : FoldOperators
        Of the dtype and on the device of `Y`; the exact solver's or the fast one's.
    run_onsets : sequence of int
        First row of each run; begins with 0.
    want_dual : bool
        Give the dual coefficients too.
    sub_block : int
        Voxels at a time, where they need not be together. What one sub-block takes (about 40 kB a voxel)
        should fit the cache of a CPU; it changes no result beyond rounding.
    n_check, seed : int
        Size and seed of the sample of voxels whose alphas by the fast solver are compared with those by
        exact scores. If more than `MAX_DISAGREEMENT` of them differ, all voxels get those by exact scores.
    coarsely : callable
        Gives the context, such as TF32, for products that need few digits: the exact solver's scores of
        alphas, the fast one's coarse scores.
    nested : bool
        Score the inner folds too; the operators are made for it.
    repeat_rows : array of int
        Rows of `Y` in which a repeated clip is shown; those that do not test have no part.
    zscore : {"run", "movie"}
        Z-score within runs as above, or by one mean and scale of all used rows, test rows among them.

    Returns
    -------
    BlockFit
    """
    bold = Y if isinstance(Y, Standardised) else standardise(Y, ops, run_onsets, sub_block, zscore)
    agrees, errors = None, None
    if ops.fast is None:
        chosen, errors, predicted, dual = _fit_exact(
            bold.train, ops, want_dual or ops.band_kernels is not None, sub_block, coarsely
        )
    else:
        chosen, agrees = _choose_fast(bold.train, ops.fast.forms, n_check, seed, coarsely)
        predicted, dual = refit_by_alpha(bold.train, ops, chosen)
        errors = held_out_errors(bold.train, dual, ops, chosen) if nested else None

    xp = array_namespace(bold.train)
    lengths = run_lengths(ops.test_rows, run_onsets)
    apart = np.flatnonzero(np.isin(ops.test_rows, repeat_rows))
    scores, n_shifts = [], 0
    for part in slices(predicted.shape[1], sub_block):
        pair = predicted[:, part], bold.test[:, part]
        chance, n_shifts = circular_shift_chance(*pair, lengths)
        again = [take_rows(values, apart) for values in pair] if len(apart) else None
        r_repeat = xp.full_like(chance, math.nan) if again is None else pearson_r(*again)
        scores.append((pearson_r(*pair), r2(*pair), chance, r_repeat))
    r, explained, chance, r_repeat = (xp.concat(list(parts)) for parts in zip(*scores, strict=True))
    r_bands = None
    if ops.band_kernels is not None:
        assert dual is not None
        parts = [
            split_r(xp.matmul(ops.band_kernels, dual[:, part]), bold.test[:, part])
            for part in slices(predicted.shape[1], sub_block)
        ]
        r_bands = bold.spread(xp.concat(parts, axis=1), math.nan)
    cv = xp.full_like(r, math.nan)
    if nested and errors is not None:
        cv = 1 - errors / bold.null_errors
    return BlockFit(
        r=bold.spread(r, math.nan),
        r2=bold.spread(explained, math.nan),
        alpha=bold.spread(xp.take(ops.alphas, chosen, axis=0), math.nan),
        alpha_index=bold.spread(chosen, -1),
        chance=bold.spread(chance, math.nan),
        n_shifts=n_shifts,
        agrees=bold.spread(xp.full_like(r, math.nan) if agrees is None else agrees, math.nan),
        r_repeat=bold.spread(r_repeat, math.nan),
        cv=bold.spread(cv, math.nan),
        r_bands=r_bands,
        dual=bold.spread(dual, math.nan) if want_dual else None,
    )


def join_fits(fits: Sequence[BlockFit]) -> BlockFit:
    """Fits of neighbouring voxels as one."""
    if len(fits) == 1:
        return fits[0]
    xp = array_namespace(fits[0].r)
    scores = {
        name: xp.concat([getattr(fit, name) for fit in fits])
        for name in ("r", "r2", "alpha", "alpha_index", "chance", "agrees", "r_repeat", "cv")
    }
    duals = [fit.dual for fit in fits]
    dual = None if duals[0] is None else join_columns(duals)
    bands = [fit.r_bands for fit in fits]
    r_bands = None if bands[0] is None else xp.concat(bands, axis=1)
    return BlockFit(**scores, n_shifts=fits[0].n_shifts, r_bands=r_bands, dual=dual)


def _fit_exact(
    Y_train: Array, ops: FoldOperators, want_dual: bool, sub_block: int, coarsely: Precision
) -> tuple[Array, Array, Array, Array | None]:
    """Chosen alphas, their errors in the inner folds, predictions and dual coefficients."""
    xp = array_namespace(Y_train)
    chosen, errors = [], []
    predicted = room(len(ops.test_rows), Y_train)
    dual = room(len(ops.train_rows), Y_train) if want_dual else None
    for part in slices(Y_train.shape[1], sub_block):
        coordinates = (
            fold_coordinates(Y_train[:, part], ops.eigenvectors, ops.inner_rows.tolist()) if ops.thin else ()
        )
        with coarsely():
            best, error = choose_alphas(Y_train[:, part], ops, coordinates)
        chosen.append(best)
        errors.append(error)
        predicted[:, part], found = refit(Y_train[:, part], ops, best, want_dual, coordinates)
        if dual is not None:
            dual[:, part] = found
    return xp.concat(chosen), xp.concat(errors), predicted, dual


def _choose_fast(
    Y_train: Array, forms: CvForms, n_check: int, seed: int, coarsely: Precision
) -> tuple[Array, Array]:
    """Alphas by the fast solver, and where they agree with exact scores: 1, 0, or NaN where not compared."""
    xp = array_namespace(Y_train)
    by_voxel = xp.matrix_transpose(Y_train)
    n_voxels, where = Y_train.shape[1], device(Y_train)
    if forms.steps.shape[0] == 0:  # one alpha
        chosen = xp.zeros(n_voxels, dtype=xp.int64, device=where)
        return chosen, xp.full(n_voxels, math.nan, dtype=xp.float64, device=where)
    chosen = choose_by_forms(by_voxel, forms, coarsely).alpha_index
    if n_check == 0:
        return chosen, xp.full(n_voxels, math.nan, dtype=xp.float64, device=where)
    sample = np.random.default_rng(seed).permutation(n_voxels)
    n_check = min(n_check, n_voxels)
    checked = xp.asarray(sample[:n_check], device=where)
    same = xp.take(chosen, checked) == exact_choice(xp.take(by_voxel, checked, axis=0), forms)
    if float(xp.mean(xp.astype(same, xp.float64))) < 1 - MAX_DISAGREEMENT:
        chosen = exact_choice(by_voxel, forms)
    unchecked = xp.full(n_voxels - n_check, math.nan, dtype=xp.float64, device=where)
    agrees = xp.concat([xp.astype(same, xp.float64), unchecked])
    return chosen, xp.take(agrees, xp.asarray(np.argsort(sample), device=where))


def _inner_scores(Y_train: Array, inner: InnerOperators) -> Array:
    """Negative mean squared error of every alpha on one inner fold, (n_voxels, n_alphas), float64.

    The predictions of alpha a are ``C[a] @ Q``, Q the predictions of the basis filters, so that their squared
    error follows from the Gram matrix of Q and its products with the target. None are formed.
    """
    xp = array_namespace(Y_train)
    n_voxels, n_val = Y_train.shape[1], len(inner.val_rows)
    n_alphas, n_basis = inner.coefficients.shape
    # The operator ignores constants (it is orthogonal to them), so training BOLD goes in as it is.
    training = xp.matrix_transpose(take_rows(Y_train, inner.train_rows))
    basis = xp.reshape(xp.matmul(training, inner.operator), (n_voxels, n_basis, n_val))
    intercept = xp.mean(training, axis=1, keepdims=True)
    target = xp.matrix_transpose(take_rows(Y_train, inner.val_rows)) - intercept

    # Sums over rows in the dtype of the BOLD, sums over the basis and over rows of the target in float64.
    gram = xp.astype(xp.matmul(basis, xp.matrix_transpose(basis)), xp.float64)
    products = xp.astype(xp.matmul(basis, target[:, :, None])[:, :, 0], xp.float64)
    target_squares = xp.sum(xp.astype(target, xp.float64) ** 2, axis=1, keepdims=True)
    by_pair = inner.coefficients[:, :, None] * inner.coefficients[:, None, :]
    pairs = xp.reshape(by_pair, (n_alphas, n_basis**2))
    predicted_squares = xp.matmul(xp.reshape(gram, (n_voxels, n_basis**2)), xp.matrix_transpose(pairs))
    shared = xp.matmul(products, xp.matrix_transpose(inner.coefficients))
    return -(predicted_squares - 2 * shared + target_squares) / n_val

"""Squared error of cross-validation as a quadratic form of BOLD, one matrix an alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from hpcenc.tasks.gram import centre

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

FLOAT32_ALPHA = 3e-3
"""Smallest alpha, relative to the largest eigenvalue, whose form is made in float32. Residuals are divided by
as little as that, and rounding with them: the form is then right to 5e-6."""


def smoother_of(eigenvectors: Doubles, eigenvalues: Doubles, alpha: float) -> Floats:
    """Predictions of the training rows from themselves, ``U diag(s / (s + alpha)) U'``, without the mean.

    Returns
    -------
    array of shape (n_train, n_train)
        float32; float64 where alpha is so small that its error form needs it (`FLOAT32_ALPHA`).
    """
    wide = alpha < FLOAT32_ALPHA * eigenvalues.max()
    dtype, syrk = (np.float64, blas.dsyrk) if wide else (np.float32, blas.ssyrk)
    # Rounded once: a filter in float32 would be off by as much in every row, which nothing averages out.
    scaled = np.empty(eigenvectors.shape, dtype)
    filters = np.sqrt(eigenvalues / (eigenvalues + alpha))
    np.multiply(eigenvectors, filters, out=scaled, casting="same_kind")
    return _mirrored(syrk(1.0, scaled.T, trans=1))


def error_form(smoother: Floats, fold_spans: Sequence[tuple[int, int]]) -> Floats:
    """Squared error of one alpha, mean over rows and then over inner folds, less that of the null model.

    With the smoother Q and the intercept, ``S = 11'/n + Q``, the held-out residual of fold J is
    ``(I - S_JJ)^-1 ((I - S) y)_J``; that of the null model is y less the mean of the other rows. The
    difference of the two is formed from Q, which is small where alpha is large: subtracting the two squares
    would leave rounding errors of the size of the differences between alphas.

    Parameters
    ----------
    smoother : array of shape (n_train, n_train)
        As `smoother_of` gives it.
    fold_spans : sequence of (start, stop)

    Returns
    -------
    array of shape (n_train, n_train), float32, Fortran order
        The upper triangle is the form's; what lies below it means nothing.
    """
    n_train, dtype = len(smoother), smoother.dtype
    symm = blas.dsymm if dtype == np.float64 else blas.ssymm
    form = np.zeros((n_train, n_train), np.float32, order="F")
    is_other = np.ones((n_train, len(fold_spans)), np.float32, order="F")
    means = np.zeros_like(is_other)
    for fold, (start, stop) in enumerate(fold_spans):
        n_val = stop - start
        n_others = n_train - n_val
        weight = 1 / (len(fold_spans) * n_val)
        inside = smoother[start:stop, start:stop].astype(np.float64)
        inverse = _upper_inverse(np.eye(n_val) - 1 / n_train - inside).astype(dtype)
        others = np.concatenate([smoother[start:stop, :start], smoother[start:stop, stop:]], axis=1)
        others += (inside.sum(axis=1, keepdims=True) / n_others).astype(dtype)
        residual = symm(-1.0, inverse, others).astype(np.float32, copy=False)

        squares = blas.ssyrk(weight, residual, trans=1)
        form[:start, :start] += squares[:start, :start]
        form[:start, stop:] += squares[:start, start:]
        form[stop:, stop:] += squares[start:, start:]
        # The null residual is y in the fold, and minus the mean of the others.
        form[:start, start:stop] += weight * residual[:, :start].T
        form[start:stop, stop:] += weight * residual[:, start:]
        mean = residual.sum(axis=0) * (weight / n_others)
        is_other[start:stop, fold] = 0
        means[:start, fold], means[stop:, fold] = mean[:start], mean[start:]
    updated: Floats = blas.ssyr2k(-1.0, is_other, means, beta=1.0, c=form, overwrite_c=True)
    return updated


def solved_errors(
    kernel: Doubles, alpha: float, fold_spans: Sequence[tuple[int, int]], Y: Floats
) -> NDArray[np.float64]:
    """What `error_form` gives, by solving each inner fold: slow, and independent of any eigendecomposition.

    Parameters
    ----------
    kernel : array of shape (n_train, n_train)
        Centred training kernel.
    alpha : float
    fold_spans : sequence of (start, stop)
    Y : array of shape (n_voxels, n_train)

    Returns
    -------
    array of shape (n_voxels,), float64
        Squared error, mean over rows and then over inner folds, less that of the null model.

    Raises
    ------
    LinAlgError
        If alpha is so small that a fold cannot be solved.
    """
    rows = np.arange(len(kernel))
    total = np.zeros(len(Y))
    for start, stop in fold_spans:
        held_out = (rows >= start) & (rows < stop)
        columns = centre(kernel, ~held_out)
        targets = Y - Y[:, ~held_out].mean(axis=1, keepdims=True, dtype=np.float64)
        regularised = columns[~held_out]
        np.einsum("ii->i", regularised)[...] += alpha
        factor = scipy.linalg.cho_factor(regularised, overwrite_a=True, check_finite=False)
        predicted = columns[held_out] @ scipy.linalg.cho_solve(factor, targets[:, ~held_out].T)
        # (null - predicted)^2 - null^2, which would cancel where little is predicted.
        total += (predicted.T * (predicted.T - 2 * targets[:, held_out])).mean(axis=1) / len(fold_spans)
    return total


def _upper_inverse(matrix: Doubles) -> Doubles:
    """Upper triangle of the inverse of a symmetric, positive definite matrix, by its Cholesky factor.

    Raises
    ------
    LinAlgError
        If it is not positive definite.
    """
    factor, failed = lapack.dpotrf(matrix, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError(f"a matrix of {len(matrix)} rows is not positive definite")
    inverse: Doubles = lapack.dpotri(factor, overwrite_c=True)[0]
    return inverse


def _mirrored(upper: Floats) -> Floats:
    """A symmetric matrix from its upper triangle, in place."""
    for first in range(0, len(upper), 512):
        stop = min(first + 512, len(upper))
        upper[stop:, first:stop] = upper[first:stop, stop:].T
        block = upper[first:stop, first:stop]
        block[...] = np.triu(block) + np.triu(block, 1).T
    return upper

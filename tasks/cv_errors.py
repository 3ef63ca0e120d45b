"""Squared error of cross-validation as a quadratic form of BOLD, one matrix an alpha."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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


NEGLECTED = 1e-8
"""Filters, relative to the largest one, that are too small to change a smoother in float32."""


def beyond_powers(ratios: Doubles) -> Doubles:
    """What a large alpha's filters leave to a product of their own.

    With ``t = s / alpha`` a filter ``t / (1 + t)`` is ``t - t^2 + t^3 / (1 + t)``. The first two terms are
    multiples of the same two matrices for all alphas, and the third soon vanishes along the spectrum. Beyond
    ``t = 1`` the terms would cancel.

    Parameters
    ----------
    ratios : array of shape (rank,)
        Eigenvalues over alpha, rising, at most 1.

    Returns
    -------
    array of shape (rank,)
        The third term, 0 where it changes nothing in float32.
    """
    third = ratios**3 / (1 + ratios)
    return np.where(third < NEGLECTED * ratios[-1] / (1 + ratios[-1]), 0, third)


class Smoothers:
    """Predictions of the training rows from themselves, ``U diag(s / (s + alpha)) U'``, without the mean.

    Parameters
    ----------
    eigenvectors : array of shape (n_train, rank)
        Of the centred training kernel, orthogonal to the constant.
    eigenvalues : array of shape (rank,)
        Rising.
    """

    def __init__(self, eigenvectors: Doubles, eigenvalues: Doubles) -> None:
        self._eigenvectors = eigenvectors
        self._eigenvalues = eigenvalues

    def at(self, alpha: float) -> Floats:
        """Smoother of one alpha.

        Returns
        -------
        array of shape (n_train, n_train)
            float32; float64 where alpha is so small that its error form needs it (`FLOAT32_ALPHA`).
        """
        ratios = self._eigenvalues / alpha
        if ratios[-1] > 1:
            dtype = np.float64 if alpha < FLOAT32_ALPHA * self._eigenvalues[-1] else np.float32
            return _mirrored(self._filtered(ratios / (1 + ratios), dtype))
        first, second = self._powers
        upper = first * np.float32(ratios[-1])
        upper -= second * np.float32(ratios[-1] ** 2)
        return _mirrored(self._filtered(beyond_powers(ratios), np.float32, upper))

    @cached_property
    def _powers(self) -> tuple[Floats, Floats]:
        """Upper triangles of the kernel and its square, divided by the largest eigenvalue and its square."""
        scaled = self._eigenvalues / self._eigenvalues[-1]
        return self._filtered(scaled, np.float32), self._filtered(scaled**2, np.float32)

    def _filtered(self, filters: Doubles, dtype: type, upper: Floats | None = None) -> Floats:
        """Upper triangle of ``U diag(filters) U'``, added to another one."""
        kept = slice(int(np.argmax(filters > 0)), None)
        # Rounded once: a filter in float32 would be off by as much in every row, which nothing averages out.
        scaled: Floats = np.empty(self._eigenvectors[:, kept].shape, dtype)
        np.multiply(self._eigenvectors[:, kept], np.sqrt(filters[kept]), out=scaled, casting="same_kind")
        syrk = blas.dsyrk if dtype == np.float64 else blas.ssyrk
        added = {} if upper is None else {"beta": 1.0, "c": upper, "overwrite_c": True}
        product: Floats = syrk(1.0, scaled.T, trans=1, **added)
        return product


def error_form(smoother: Floats, fold_spans: Sequence[tuple[int, int]]) -> Floats:
    """Squared error of one alpha, mean over rows and then over inner folds, less that of the null model.

    With the smoother Q and the intercept, ``S = 11'/n + Q``, the held-out residual of fold J is
    ``(I - S_JJ)^-1 ((I - S) y)_J``; that of the null model is y less the mean of the other rows. The
    difference of the two is formed from Q, which is small where alpha is large: subtracting the two squares
    would leave rounding errors of the size of the differences between alphas.

    Parameters
    ----------
    smoother : array of shape (n_train, n_train)
        As `Smoothers` gives it.
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
        inverse = _held_out_inverse(smoother, start, stop).astype(dtype)
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


def held_out_inverses(smoother: Floats, fold_spans: Sequence[tuple[int, int]]) -> list[Doubles]:
    """What turns residuals of the fit on all rows into those of rows that are held out.

    Parameters
    ----------
    smoother : array of shape (n_train, n_train)
        As `Smoothers` gives it.
    fold_spans : sequence of (start, stop)

    Returns
    -------
    list of array of shape (n_val, n_val)
        ``(I - S_JJ)^-1`` of every fold J, symmetric.
    """
    inverses = []
    for start, stop in fold_spans:
        upper = np.triu(_held_out_inverse(smoother, start, stop))
        inverses.append(upper + np.triu(upper, 1).T)
    return inverses


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


def _held_out_inverse(smoother: Floats, start: int, stop: int) -> Doubles:
    """Upper triangle of ``(I - S_JJ)^-1``, S the smoother and the intercept."""
    inside = smoother[start:stop, start:stop].astype(np.float64)
    return _upper_inverse(np.eye(stop - start) - 1 / len(smoother) - inside)


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

"""Scores of predicted against measured BOLD, on any array library.

Rows are test rows, run after run; every function scores each voxel by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from array_api_compat import array_namespace, device

Array = Any
"""An array of NumPy, torch or another library of the array API."""


def pearson_r(predicted: Array, Y: Array) -> Array:
    """Pearson correlation of every voxel, in float64.

    Parameters
    ----------
    predicted, Y : array of shape (n_trs, n_voxels)

    Returns
    -------
    array of shape (n_voxels,), float64
        NaN where either is constant or not finite.
    """
    xp = array_namespace(predicted, Y)
    return xp.sum(_unit_columns(predicted) * _unit_columns(Y), axis=0)


def r2(predicted: Array, Y: Array) -> Array:
    """Coefficient of determination of every voxel, ``1 - SSE / SST``, in float64.

    Parameters
    ----------
    predicted, Y : array of shape (n_trs, n_voxels)
        In the same units.

    Returns
    -------
    array of shape (n_voxels,), float64
        SST about the mean of `Y` over these rows. NaN where `Y` is constant.
    """
    xp = array_namespace(predicted, Y)
    wide = xp.astype(Y, xp.float64)
    errors = xp.sum((wide - xp.astype(predicted, xp.float64)) ** 2, axis=0)
    return 1 - errors / _nan_unless_positive(xp.sum(_centred(wide) ** 2, axis=0))


def split_r(parts: Array, Y: Array) -> Array:
    """What each part of a prediction adds to its correlation, in float64.

    Parameters
    ----------
    parts : array of shape (n_parts, n_trs, n_voxels)
        Their sum, up to a constant, is the prediction.
    Y : array of shape (n_trs, n_voxels)

    Returns
    -------
    array of shape (n_parts, n_voxels), float64
        Covariances of the parts with `Y` over the standard deviations of `Y` and of the whole prediction:
        they sum to its Pearson r. NaN where that is.

    References
    ----------
    Dupre la Tour et al. (2022), NeuroImage 264, 119728 (scores of a joint model, split by feature space).
    """
    xp = array_namespace(parts, Y)
    wide = xp.astype(parts, xp.float64)
    centred = wide - xp.mean(wide, axis=1, keepdims=True)
    whole = xp.sum(centred, axis=0)
    scale = xp.sqrt(_nan_unless_positive(xp.sum(whole**2, axis=0)))
    return xp.sum(centred * _unit_columns(Y)[None, :, :], axis=1) / scale


def circular_shift_count(run_lengths: Sequence[int], min_shift_trs: int = 30) -> int:
    """Circular shifts behind `circular_shift_chance`; 0 where there are fewer than 2."""
    n_shifts = min(run_lengths) - 2 * min_shift_trs + 1
    return n_shifts if n_shifts >= 2 else 0


def circular_shift_chance(
    predicted: Array, Y: Array, run_lengths: Sequence[int], min_shift_trs: int = 30, quantile: float = 0.999
) -> tuple[Array, int]:
    """Chance level of r for every voxel: a quantile of r under circular shifts.

    A shift keeps the autocorrelation of both time courses and breaks their pairing. The prediction is shifted
    within each run, by the same number of TRs in all of them; rows that were left out of a run are closed up.

    Parameters
    ----------
    predicted, Y : array of shape (n_trs, n_voxels)
        Test rows, run after run.
    run_lengths : sequence of int
        Test rows of each run.
    min_shift_trs : int
        Every shift is at least this long, forwards and backwards, in every run.
    quantile : float
        Interpolated linearly between shifts, as `numpy.quantile` does.

    Returns
    -------
    chance : array of shape (n_voxels,), float64
        NaN where `pearson_r` is, and everywhere if a run has fewer than ``2 * min_shift_trs + 1`` rows.
    n_shifts : int
        Shifts behind it: ``min(run_lengths) - 2 * min_shift_trs + 1``, or 0.
    """
    xp = array_namespace(predicted, Y)
    n_shifts = circular_shift_count(run_lengths, min_shift_trs)
    if n_shifts == 0:
        return xp.full(Y.shape[1], math.nan, dtype=xp.float64, device=device(Y)), 0
    # Voxels first, so that every transform and sort runs along contiguous memory; FFT in the dtype given.
    course = xp.matrix_transpose(xp.astype(_unit_columns(predicted), predicted.dtype))
    target = xp.matrix_transpose(xp.astype(_unit_columns(Y), Y.dtype))
    r = xp.zeros((Y.shape[1], n_shifts), dtype=xp.float64, device=device(Y))
    for stop, length in zip(accumulate(run_lengths), run_lengths, strict=True):
        rows = slice(stop - length, stop)
        spectrum = xp.conj(xp.fft.rfft(course[:, rows])) * xp.fft.rfft(target[:, rows])
        by_shift = xp.fft.irfft(spectrum, n=length)
        r = r + xp.astype(by_shift[:, min_shift_trs : min_shift_trs + n_shifts], xp.float64)
    return _quantile(r, quantile), n_shifts


def _unit_columns(values: Array) -> Array:
    """Columns in float64, centred and of length 1; NaN where constant."""
    xp = array_namespace(values)
    centred = _centred(xp.astype(values, xp.float64))
    return centred / xp.sqrt(_nan_unless_positive(xp.sum(centred**2, axis=0, keepdims=True)))


def _centred(values: Array) -> Array:
    """Columns without their mean."""
    xp = array_namespace(values)
    # A constant is then exactly zero, which the rounding of its mean may not give.
    values = values - values[:1, :]
    return values - xp.mean(values, axis=0, keepdims=True)


def _nan_unless_positive(values: Array) -> Array:
    xp = array_namespace(values)
    return xp.where(values > 0, values, xp.full_like(values, math.nan))


def _quantile(values: Array, quantile: float) -> Array:
    """Quantile along the last axis, linear between order statistics."""
    xp = array_namespace(values)
    ordered = xp.sort(values, axis=-1, stable=False)  # the stable sort of NumPy is ten times slower
    position = quantile * (values.shape[-1] - 1)
    below = min(int(position), values.shape[-1] - 2)
    part = position - below
    return ordered[:, below] * (1 - part) + ordered[:, below + 1] * part

"""Products of delayed features with dual coefficients, for all delays at once.

The weights of a FIR window are a correlation of features and dual coefficients in time. Cut into short
pieces, a correlation costs a third of one matrix product per delay: transform both (a few real sums, as in
a discrete Fourier transform), multiply, transform back. It lives in storage because a reader of the store
turns dual coefficients into primal weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from hpcenc.storage.design import Floats, Rows, check_delays, delayed_design, run_spans

Array = Any
"""An array of NumPy, torch or another library of the array API."""

FEATURES_AT_ONCE = 192
VOXELS_AT_ONCE = 500
"""Sizes of one product: its result (18 MB for ten delays) stays in the cache of a CPU for the way back."""


@dataclass(frozen=True, eq=False)
class LaggedFeatures:
    """Features of one space, transformed piece by piece.

    Attributes
    ----------
    products : array of shape (n_products, n_features, n_pieces)
        Left factors of the products.
    rows : array of int, shape (piece_length, n_pieces)
        Row of the dual coefficients behind each place of each piece.
    used : array of shape (piece_length, n_pieces)
        1 where there is such a row, else 0: after a run's end, and where a row does not train.
    to_products : array of shape (n_products, piece_length)
        From a piece of dual coefficients to the right factors.
    to_delays : array of shape (n_delays, n_products)
        From products to the weights of each delay.
    """

    products: Array
    rows: Array
    used: Array
    to_products: Array
    to_delays: Array


@dataclass(frozen=True)
class LagSizes:
    """Sizes of `LaggedFeatures`, for plans: without features.

    Attributes
    ----------
    n_products, n_pieces, piece_length : int
    n_shifts : int
        Delayed copies of the features among the left factors: 1, or all delays where the transform does not
        pay and the factors are the design itself.
    n_delays : int
        Delays that products are turned back to: 1 where the factors are the design.
    """

    n_products: int
    n_pieces: int
    piece_length: int
    n_shifts: int
    n_delays: int

    def n_values(self, n_features: int) -> int:
        """Values of the left factors."""
        return self.n_products * self.n_pieces * self.n_shifts * n_features

    def flop(self, n_features: int) -> int:
        """Floating-point operations of the weights of one voxel."""
        n_results = self.n_delays * self.n_products * self.n_shifts * n_features
        n_factors = self.n_products * self.n_pieces * self.piece_length
        return 2 * (self.n_values(n_features) + n_results + n_factors)


def lag_sizes(delays: Sequence[int], run_onsets: Sequence[int], n_trs: int, rows: Rows) -> LagSizes:
    """Sizes of what `lag_features` makes of `n_trs` rows of features."""
    cut = _cut(delays, run_onsets, n_trs, rows)
    n_products, piece_length = cut.to_products.shape
    if cut.pays:
        return LagSizes(n_products, len(cut.pieces), piece_length, 1, len(delays))
    return LagSizes(1, cut.n_used, 1, len(delays), 1)


def lag_features(
    Z: Floats, delays: Sequence[int], run_onsets: Sequence[int], rows: Rows | None = None
) -> LaggedFeatures:
    """Transform features, once for all voxels.

    Parameters
    ----------
    Z : array of shape (n_trs, n_features)
        Features as in the fit: all rows, z-scored with the statistics of the training rows.
    delays : sequence of int
        In TRs.
    run_onsets : sequence of int
        First row of each run; begins with 0.
    rows : array of bool, shape (n_trs,), or of int, optional
        The rows of `Z` that dual coefficients belong to; all if left out.

    Returns
    -------
    LaggedFeatures
        Of NumPy arrays, about twice the bytes of `Z` for ten delays. Where the transform does not pay (few
        delays, or short runs), the delayed design itself.

    Raises
    ------
    ValueError
        If the delays do not fit the runs, see `check_delays`.
    """
    check_delays(delays, run_onsets, len(Z))
    used = np.arange(len(Z)) if rows is None else np.arange(len(Z))[rows]
    row_of_tr = np.full(len(Z), -1)
    row_of_tr[used] = np.arange(len(used))
    cut = _cut(delays, run_onsets, len(Z), used)
    if not cut.pays:
        one = np.ones((1, 1), Z.dtype)
        design = delayed_design(Z, delays, run_onsets)[used].T
        return LaggedFeatures(np.ascontiguousarray(design)[None], np.arange(len(used))[None], one, one, one)

    to_windows, to_products, to_lags = cut.to_windows, cut.to_products, cut.to_lags
    last_delay, length = max(delays), to_windows.shape[1]
    windows = np.zeros((len(cut.pieces), length, Z.shape[1]), Z.dtype)
    row_of_place = np.full((to_products.shape[1], len(cut.pieces)), -1)
    for place, (first, start, stop) in enumerate(cut.pieces):
        before = first - last_delay
        low, high = max(before, start), min(before + length, stop)
        windows[place, low - before : high - before] = Z[low:high]
        in_run = row_of_tr[first : min(first + len(row_of_place), stop)]
        row_of_place[: len(in_run), place] = in_run
    return LaggedFeatures(
        products=np.ascontiguousarray(np.tensordot(to_windows, windows, (1, 1)).transpose(0, 2, 1), Z.dtype),
        rows=np.maximum(row_of_place, 0),
        used=(row_of_place >= 0).astype(Z.dtype),
        to_products=to_products.astype(Z.dtype),
        to_delays=to_lags[[last_delay - delay for delay in delays]].astype(Z.dtype),
    )


def lagged_products(features: LaggedFeatures, dual: Array) -> Array:
    """Weights of delayed features.

    Parameters
    ----------
    features : LaggedFeatures
        Of the library, device and dtype of `dual`.
    dual : array of shape (n_rows, n_voxels)
        Dual coefficients; NaN in a voxel gives NaN in its weights alone.

    Returns
    -------
    array of shape (n_delays * n_features, n_voxels)
        Delay-major.
    """
    xp = array_namespace(dual)
    n_products, n_features, n_pieces = features.products.shape
    n_delays, n_voxels = features.to_delays.shape[0], dual.shape[1]
    weights = xp.empty((n_delays, n_features, n_voxels), dtype=dual.dtype, device=device(dual))
    rows = xp.reshape(features.rows, (-1,))
    used = xp.reshape(features.used, (-1, 1))
    for first in range(0, n_voxels, VOXELS_AT_ONCE):
        voxels = slice(first, min(first + VOXELS_AT_ONCE, n_voxels))
        width = voxels.stop - voxels.start
        pieces = xp.take(dual[:, voxels], rows, axis=0) * used
        pieces = xp.reshape(pieces, (features.to_products.shape[1], n_pieces * width))
        factors = xp.reshape(xp.matmul(features.to_products, pieces), (n_products, n_pieces, width))
        for start in range(0, n_features, FEATURES_AT_ONCE):
            part = slice(start, min(start + FEATURES_AT_ONCE, n_features))
            products = xp.matmul(features.products[:, part, :], factors)
            products = xp.reshape(products, (n_products, -1))
            found = xp.matmul(features.to_delays, products)
            weights[:, part, voxels] = xp.reshape(found, (n_delays, part.stop - part.start, width))
    return xp.reshape(weights, (n_delays * n_features, n_voxels))


def primal_from_dual(
    Z: Floats, dual: Floats, delays: Sequence[int], run_onsets: Sequence[int], rows: Rows | None = None
) -> Floats:
    """Weights of the FIR features, from the dual coefficients of the training rows.

    ``delayed_design(Z).T @ dual``. No centring is needed: the dual coefficients of a fit with an intercept
    sum to zero.

    Parameters
    ----------
    Z : array of shape (n_trs, n_features)
        Features as in the fit: all rows, z-scored with the statistics of the training rows.
    dual : array of shape (n_trs, n_voxels), or (n_rows, n_voxels) with `rows`
        Dual coefficients, NaN for a voxel that could not be fitted: its weights are NaN too.
    delays : sequence of int
        In TRs.
    run_onsets : sequence of int
        First row of each run; begins with 0.
    rows : array of bool, shape (n_trs,), or of int, optional
        The rows of `Z` that `dual` belongs to; all if left out.

    Returns
    -------
    array of shape (n_delays * n_features, n_voxels)
        Delay-major: row ``delay_index * n_features + feature``. In the units of the fit: z-scored BOLD per
        z-scored feature.

    Raises
    ------
    ValueError
        If the delays do not fit the runs, see `check_delays`.
    """
    dtype = np.result_type(Z, dual)
    features = lag_features(Z.astype(dtype, copy=False), delays, run_onsets, rows)
    weights: Floats = lagged_products(features, dual.astype(dtype, copy=False))
    return weights


@dataclass(frozen=True, eq=False)
class _Cut:
    """How the rows of all runs are cut into pieces, and the transform of a piece (`_bilinear`).

    Attributes
    ----------
    pieces : list of (first, start, stop)
        First row of each piece that holds a used row, and the span of its run.
    n_used : int
        Rows that dual coefficients belong to.
    pays : bool
        Whether the transform takes fewer operations than the delayed design.
    """

    to_windows: NDArray[np.float64]
    to_products: NDArray[np.float64]
    to_lags: NDArray[np.float64]
    pieces: list[tuple[int, int, int]]
    n_used: int
    pays: bool


def _cut(delays: Sequence[int], run_onsets: Sequence[int], n_trs: int, rows: Rows) -> _Cut:
    is_used = np.zeros(n_trs, dtype=bool)
    is_used[rows] = True
    n_used, span = int(is_used.sum()), max(delays) - min(delays) + 1
    transform = _bilinear(8 * -(-3 * span // 8), span)
    n_products, step = transform[1].shape
    pieces = [
        (first, start, stop)
        for start, stop in run_spans(run_onsets, n_trs)
        for first in range(start, stop, step)
        if is_used[first : min(first + step, stop)].any()
    ]
    return _Cut(*transform, pieces, n_used, n_products * len(pieces) < len(delays) * n_used)


@lru_cache(maxsize=8)
def _bilinear(length: int, span: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A bilinear algorithm for short correlations: ``y[j] = sum_i x[i + j] d[i]`` for `span` places j.

    Each frequency of a real discrete Fourier transform is one complex product, and a complex product takes
    three real ones (Gauss): with ``t1 = xr dr``, ``t2 = xi di``, ``t3 = (xr + xi)(dr - di)``, the product of
    x with the conjugate of d is ``t1 + t2`` and, imaginary, ``t3 - t1 + t2``.

    Returns
    -------
    for_x : array of shape (n_products, length)
    for_d : array of shape (n_products, length - span + 1)
    back : array of shape (span, n_products)
        ``y = back @ ((for_x @ x) * (for_d @ d))``; nothing wraps around, as i + j stays below `length`.
    """
    for_x, for_d, back = [], [], []
    time, place = np.arange(length), np.arange(span)
    for frequency in range(length // 2 + 1):
        angle = 2 * np.pi * frequency / length
        real, imaginary = np.cos(angle * time), -np.sin(angle * time)
        is_real = 2 * frequency in (0, length)
        scale = (1 if is_real else 2) / length
        cosine, sine = scale * np.cos(angle * place), -scale * np.sin(angle * place)
        if is_real:
            for_x.append(real)
            for_d.append(real)
            back.append(cosine)
        else:
            for_x += [real, imaginary, real + imaginary]
            for_d += [real, imaginary, real - imaginary]
            back += [cosine - sine, cosine + sine, sine]
    return np.array(for_x), np.array(for_d)[:, : length - span + 1], np.array(back).T

"""The FIR design: features z-scored and shifted within runs.

It lives in storage because a reader of the store turns dual coefficients into primal weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.bool_] | NDArray[np.intp]


def run_spans(run_onsets: Sequence[int], n_trs: int) -> tuple[tuple[int, int], ...]:
    """First row, and row after the last, of every run.

    Parameters
    ----------
    run_onsets : sequence of int
        First row of each run; begins with 0 and rises.
    n_trs : int
        Rows of all runs together.

    Returns
    -------
    tuple of (start, stop)

    Raises
    ------
    ValueError
        If the onsets do not begin with 0, do not rise, or pass ``n_trs``.
    """
    edges = [*run_onsets, n_trs]
    if edges[0] != 0 or any(start >= stop for start, stop in pairwise(edges)):
        raise ValueError(
            f"run onsets {list(run_onsets)} of {n_trs} rows: expected rising rows from 0 to below {n_trs}."
        )
    return tuple(pairwise(edges))


def check_delays(delays: Sequence[int], run_onsets: Sequence[int], n_trs: int) -> None:
    """Refuse delays that no window can have.

    Raises
    ------
    ValueError
        If there is no delay, one is negative or given twice, or one is not shorter than the shortest run.
    """
    if len(delays) == 0 or min(delays) < 0 or len(set(delays)) < len(delays):
        raise ValueError(f"delays {list(delays)}: expected at least one, none negative, none twice.")
    shortest = min(stop - start for start, stop in run_spans(run_onsets, n_trs))
    if max(delays) >= shortest:
        raise ValueError(
            f"delay {max(delays)} TRs: the shortest run has {shortest} TRs. "
            "Expected every delay to be shorter than every run. Leave out the delay or the run."
        )


def standardise(X: Floats, rows: Rows) -> tuple[Floats, Floats, Floats]:
    """Z-score features with the statistics of some rows.

    Parameters
    ----------
    X : array of shape (n_trs, n_features)
    rows : array of bool, shape (n_trs,), or of int
        Rows that the statistics come from: the training rows.

    Returns
    -------
    Z : array of shape (n_trs, n_features)
        float64 if `X` is, else float32. Zero is the mean of `rows`.
    mean : array of shape (n_features,), float64
    scale : array of shape (n_features,), float64
        Standard deviation (population); 0 marks a column that is constant over `rows` up to rounding,
        whose column of `Z` is zero everywhere: it drops out of the fit.

    Raises
    ------
    ValueError
        If a value is NaN or infinite: one such row would poison every entry of the kernel.
    """
    dtype = np.float64 if X.dtype == np.float64 else np.float32
    finite = np.isfinite(X)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"features: {X[row, column]} at row {row}, column {column} "
            f"({np.count_nonzero(~finite)} of {X.size} values are not finite). Expected finite values. "
            "Extract or export these features again."
        )
    used = X[rows].astype(np.float64)
    mean = used.mean(axis=0)
    scale = np.sqrt(np.mean((used - mean) ** 2, axis=0))
    # A constant of a float32 file may flicker by one unit in the last place: that is not a feature.
    scale[scale <= 4 * np.finfo(dtype).eps * np.abs(used).max(axis=0)] = 0
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return ((X - mean) * inverse).astype(dtype), mean, scale


def shift_within_runs(Z: Floats, delay: int, run_onsets: Sequence[int]) -> Floats:
    """Features `delay` TRs earlier; zeros where that lies before the run.

    Parameters
    ----------
    Z : array of shape (n_trs, n_features)
    delay : int
        In TRs, not negative.
    run_onsets : sequence of int
        First row of each run; begins with 0.

    Returns
    -------
    array of shape (n_trs, n_features)
    """
    shifted = np.zeros_like(Z)
    for start, stop in run_spans(run_onsets, len(Z)):
        shifted[start + delay : stop] = Z[start : max(stop - delay, start)]
    return shifted


def delayed_design(Z: Floats, delays: Sequence[int], run_onsets: Sequence[int]) -> Floats:
    """Explicit FIR design. The fit never forms it; it is for small data, tests and reading.

    Parameters
    ----------
    Z : array of shape (n_trs, n_features)
        Z-scored features, so that the zeros before each run are the mean.
    delays : sequence of int
        In TRs.
    run_onsets : sequence of int
        First row of each run; begins with 0.

    Returns
    -------
    array of shape (n_trs, n_delays * n_features)
        Delay-major: column ``delay_index * n_features + feature``.

    Raises
    ------
    ValueError
        If the delays do not fit the runs, see `check_delays`.

    References
    ----------
    Nishimoto et al. (2011), Current Biology 21, 1641-1646 (FIR windows).
    """
    check_delays(delays, run_onsets, len(Z))
    return np.concatenate([shift_within_runs(Z, delay, run_onsets) for delay in delays], axis=1)

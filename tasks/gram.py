"""Kernels of FIR-windowed features, from the Gram matrix of the plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.design import check_delays, run_spans


def base_gram(Z: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Gram matrix of one feature space, accumulated in float64.

    A Gram accumulated in float32 has a rank of rounding noise that later looks like features.

    Parameters
    ----------
    Z : array of shape (n_trs, n_features)
        Z-scored features; zero is the mean of the training rows.

    Returns
    -------
    array of shape (n_trs, n_trs), float64
        ``Z @ Z.T``. The Gram of concatenated feature spaces is the sum of theirs.
    """
    wide = Z.astype(np.float64)
    return wide @ wide.T


def window_gram(
    gram: NDArray[np.float64], delays: Sequence[int], run_onsets: Sequence[int]
) -> NDArray[np.float64]:
    """Gram matrix of FIR-windowed features, from the Gram of the plain ones.

    Each delay adds the Gram once more, every block between two runs shifted by it. Exact, and the windowed
    design (delays times as many columns) never exists.

    Parameters
    ----------
    gram : array of shape (n_trs, n_trs)
        ``Z @ Z.T`` of features z-scored with training statistics, so that zero is the mean.
    delays : sequence of int
        Delays in TRs; ``range(1, 11)`` at a TR of 1 s spans 1 to 10 s.
    run_onsets : sequence of int
        First row of each run; begins with 0.

    Returns
    -------
    array of shape (n_trs, n_trs), float64
        Equal to the Gram of the delayed design, zeros before each run.

    Raises
    ------
    ValueError
        If a delay is negative, or not shorter than the shortest run.

    References
    ----------
    Nishimoto et al. (2011), Current Biology 21, 1641-1646 (FIR windows).
    """
    check_delays(delays, run_onsets, len(gram))
    spans = run_spans(run_onsets, len(gram))
    windowed = np.zeros_like(gram)
    for delay in delays:
        for row, row_stop in spans:
            for column, column_stop in spans:
                windowed[row + delay : row_stop, column + delay : column_stop] += gram[
                    row : row_stop - delay, column : column_stop - delay
                ]
    return windowed


def centre(K: NDArray[np.float64], train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Kernel of features centred on the training rows: the fit then has an intercept.

    Parameters
    ----------
    K : array of shape (n_trs, n_trs)
        Kernel of all rows.
    train : array of bool, shape (n_trs,)
        Training rows.

    Returns
    -------
    array of shape (n_trs, n_train), float64
        ``(x_t - m) . (x_u - m)`` for every row t and training row u, m the mean over training rows; exact for
        any subset of rows (a correction of rank 2).
    """
    columns = K[:, train]
    train_mean = columns[train].mean(axis=0)
    row_mean = columns.mean(axis=1, keepdims=True)
    centred: NDArray[np.float64] = columns - row_mean - train_mean + train_mean.mean()
    return centred

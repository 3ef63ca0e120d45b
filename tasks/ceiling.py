"""Noise ceilings: how much of a vertex's BOLD repeats when the same clip is shown again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.folds import RunRows, rest_rows, run_onsets

Floats = NDArray[np.floating[Any]]

CEILING_VERSION = 2
"""Part of the digest of ceilings: raised by hand whenever they change."""

MIN_ROWS = 10
"""Rows of a showing that a ceiling needs."""

BLOCK_ROWS = 10
"""Rows that the bootstrap keeps together: BOLD and its noise are correlated for some seconds."""

N_RESAMPLES = 400
"""Resamples behind an interval."""

VOXELS_AT_ONCE = 2_500
"""Voxels whose resamples are in memory at a time."""

STATISTICS = ("share", "share_low", "share_high", "ceiling")
"""What is kept of a voxel: the explainable share of its variance with its 95 % interval, and the r that a
perfect model could reach."""


@dataclass(frozen=True)
class Showings:
    """The showings of one repeated clip that are compared.

    Attributes
    ----------
    group : str
        Name of the clip.
    rows : tuple of tuple of int
        Rows of each showing that are compared, counted over all runs; the same moments of the clip.
    """

    group: str
    rows: tuple[tuple[int, ...], ...]

    @property
    def n_rows(self) -> int:
        """Rows of each showing."""
        return len(self.rows[0])


def find_showings(
    runs: Sequence[RunRows], longest_delay: int, rest_tail: int
) -> tuple[tuple[Showings, ...], tuple[str, ...]]:
    """Showings of every clip that several runs show.

    A showing counts from its onset and the longest delay on, when BOLD no longer answers to what came
    before, to its end. All showings of a clip are cut to the shortest, and to the moments that are rest in
    none of them.

    Parameters
    ----------
    runs : sequence of RunRows
        Runs present, in the order of their rows.
    longest_delay : int
        In TRs.
    rest_tail : int
        TRs that rest reaches beyond its end; -1 keeps its rows.

    Returns
    -------
    showings : tuple of Showings
    without : tuple of str
        Clips that are shown again but have no ceiling, each with the reason.
    """
    used = used_rows(runs, rest_tail)
    spans: dict[str, list[tuple[int, int]]] = {}
    for run, onset in zip(runs, run_onsets(runs), strict=True):
        for group, start, stop in run.repeats:
            spans.setdefault(group, []).append((onset + start + longest_delay, onset + stop))
    found, without = [], []
    for group, of_group in spans.items():
        if len(of_group) < 2:
            continue
        shortest = min(stop - start for start, stop in of_group)
        moments = [moment for moment in range(shortest) if all(used[start + moment] for start, _ in of_group)]
        if len(moments) < MIN_ROWS:
            without.append(
                f"{group}: {len(moments)} rows are left of a showing, of {MIN_ROWS} that are needed"
            )
            continue
        found.append(
            Showings(group, tuple(tuple(start + moment for moment in moments) for start, _ in of_group))
        )
    return tuple(found), tuple(without)


def used_rows(runs: Sequence[RunRows], rest_tail: int) -> NDArray[np.bool_]:
    """Rows that are no rest, nor within `rest_tail` TRs after one; all of them where that is -1."""
    if rest_tail < 0:
        return np.ones(sum(run.n_trs for run in runs), dtype=bool)
    return ~rest_rows(runs, rest_tail)


def scale_runs(Y: Floats, runs: Sequence[RunRows], rest_tail: int) -> Floats:
    """BOLD with each run divided by its standard deviation, so that showings in different runs compare.

    Parameters
    ----------
    Y : array of shape (n_trs, n_voxels)
        Runs one after the other.
    runs : sequence of RunRows
    rest_tail : int
        TRs that rest reaches beyond its end; its rows have no part in the deviation. -1 keeps them.

    Returns
    -------
    array of shape (n_trs, n_voxels), float64
        NaN where a voxel is not finite, or constant up to rounding, in a run.
    """
    scaled = np.empty(Y.shape)
    used = used_rows(runs, rest_tail)
    for run, onset in zip(runs, run_onsets(runs), strict=True):
        rows = slice(onset, onset + run.n_trs)
        part = Y[rows].astype(np.float64)
        kept = part[used[rows]] if used[rows].any() else part
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = kept.std(axis=0)
            varies = deviation > 4 * np.finfo(np.float32).eps * np.abs(kept.mean(axis=0))
            scaled[rows] = (part - kept.mean(axis=0)) / np.where(varies, deviation, np.nan)
    return scaled


def explainable_share(showings: Floats) -> NDArray[np.float64]:
    """Share of the variance of one showing that all showings have in common.

    The mean covariance between showings over the mean variance of a showing, all about their means over the
    rows. Noise of different showings is independent, so that a covariance is the variance of the signal over
    these very rows, in the mean over noise; nothing is to be corrected. With showings of equal variance
    this is the field's explainable variance, corrected for bias, ``ev - (1 - ev) / (n - 1)``.

    Parameters
    ----------
    showings : array of shape (n_showings, n_rows, n_voxels)

    Returns
    -------
    array of shape (n_voxels,)
        May be negative, by chance. NaN where a value is not finite or all are constant.

    References
    ----------
    Sahani and Linden (2002), Advances in Neural Information Processing Systems 15 (signal power).
    Dupre la Tour et al. (2025), Imaging Neuroscience 3, 10.1162/imag_a_00575 (explainable variance).
    """
    weights = np.ones((1, showings.shape[1]))
    share: NDArray[np.float64] = _shares(showings, weights)[0]
    return share


def share_interval(showings: Floats, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of the explainable share, by a bootstrap over blocks of rows.

    Percentiles of a few blocks' resamples lie too close together. They are expanded as if the mean of as many
    values had a t interval: at 73 rows from the 2.5th percentile to the 0.46th.

    Parameters
    ----------
    showings : array of shape (n_showings, n_rows, n_voxels)
    seed : int
        Of the resamples, which are the same for all voxels and showings.

    Returns
    -------
    low, high : array of shape (n_voxels,)
        NaN where the share is, and for a single block of rows, whose resamples are all alike.

    References
    ----------
    Politis and Romano (1992), A circular block-resampling procedure for stationary data.
    Hesterberg (2015), The American Statistician 69, 371-386 (expanded percentiles).
    """
    n_rows, n_voxels = showings.shape[1:]
    if n_rows <= BLOCK_ROWS:
        return np.full(n_voxels, np.nan), np.full(n_voxels, np.nan)
    lowest = _percentile(n_rows / BLOCK_ROWS)
    percentiles = lowest, 100 - lowest
    weights = _resamples(n_rows, np.random.default_rng(seed))
    low, high = np.empty(n_voxels), np.empty(n_voxels)
    for first in range(0, n_voxels, VOXELS_AT_ONCE):
        part = slice(first, first + VOXELS_AT_ONCE)
        low[part], high[part] = np.percentile(_shares(showings[:, :, part], weights), percentiles, axis=0)
    return low, high


def _percentile(n_blocks: float) -> float:
    """Percentile of the resamples at which a 95 % interval begins; there is more than one block."""
    from scipy.stats import norm, t  # half a second, and every plan reads this module

    quantile = t.ppf(0.025, n_blocks - 1) * np.sqrt(n_blocks / (n_blocks - 1))
    return float(100 * norm.cdf(quantile))


def ceiling_r(share: Floats) -> NDArray[np.float64]:
    """The r that a perfect model reaches against one showing: the root of the explainable share.

    Returns
    -------
    array
        NaN where the share is not above 0: nothing of the voxel is known to repeat. Nothing is capped.
    """
    ceiling: NDArray[np.float64] = np.sqrt(np.where(share > 0, share, np.nan))
    return ceiling


def ceilings_of_block(Y: Floats, found: Sequence[Showings]) -> NDArray[np.float64]:
    """Ceilings of one voxel block.

    Parameters
    ----------
    Y : array of shape (n_trs, n_voxels)
        Of `scale_runs`.
    found : sequence of Showings

    Returns
    -------
    array of shape (n_statistics, n_groups, n_voxels)
        `STATISTICS` of every clip.
    """
    values = np.empty((len(STATISTICS), len(found), Y.shape[1]))
    for place, of_group in enumerate(found):
        showings = np.stack([Y[list(rows)] for rows in of_group.rows])
        share = explainable_share(showings)
        low, high = share_interval(showings)
        values[:, place] = share, low, high, ceiling_r(share)
    return values


def _shares(showings: Floats, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Explainable shares with rows that count several times or not at all, (n_weights, n_voxels).

    Everything is sums over rows of products between showings: one matrix product for all resamples.
    """
    n_showings, n_rows, _ = showings.shape
    wide = showings.astype(np.float64)
    wide = wide - wide.mean(axis=1, keepdims=True)
    squares = (wide**2).sum(axis=0)
    products = wide.sum(axis=0) ** 2 - squares
    means = np.stack([weights @ showing for showing in wide]) / n_rows
    own = weights @ squares / n_rows - (means**2).sum(axis=0)
    shared = weights @ products / n_rows - (means.sum(axis=0) ** 2 - (means**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        share: NDArray[np.float64] = shared / (n_showings - 1) / np.where(own > 0, own, np.nan)
    return share


def _resamples(n_rows: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each row is drawn in each resample of circular blocks, (N_RESAMPLES, n_rows)."""
    length = min(BLOCK_ROWS, n_rows)
    n_blocks = -(-n_rows // length)
    starts = rng.integers(n_rows, size=(N_RESAMPLES, n_blocks, 1))
    rows = (starts + np.arange(length)).reshape(N_RESAMPLES, -1)[:, :n_rows] % n_rows
    counts = np.zeros((N_RESAMPLES, n_rows))
    np.add.at(counts, (np.arange(N_RESAMPLES)[:, None], rows), 1)
    return counts


def ceiling_facts(found: Sequence[Showings]) -> list[dict[str, Any]]:
    """What ceilings rest on, as plain values."""
    return [
        {
            "group": each.group,
            "n_showings": len(each.rows),
            "n_rows": each.n_rows,
            "rows": [list(rows) for rows in each.rows],
        }
        for each in found
    ]


def over_ceiling(r: Floats, ceiling: Floats) -> NDArray[np.float64]:
    """r over its ceiling, for scores on rows of the clip alone; above 1 by chance, and never capped."""
    return np.asarray(r, dtype=np.float64) / np.asarray(ceiling, dtype=np.float64)

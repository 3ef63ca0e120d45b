"""Where on their grid the chosen alphas lie, and when that calls for another grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.report.data import FitScores
from hpcenc.tasks.report.tables import LOW_R, format_share, group_rows, name_subjects

LOW_EDGE_LIMIT, HIGH_EDGE_LIMIT = 0.01, 0.1
"""Shares on the lowest alpha, and of vertices with r > .1 on the highest, that are not yet warned about."""


@dataclass(frozen=True)
class AlphaRow:
    """How many vertices of a fit chose an alpha at an edge of the grid."""

    feature_set: str
    variant: str
    subject: str
    n_alphas: int
    smallest_alpha: float
    largest_alpha: float
    n_chosen: int
    share_low_edge: float
    n_chosen_over_0_1: int
    share_high_edge_over_0_1: float


def alpha_positions(fit: FitScores) -> NDArray[np.intp]:
    """Position on its fold's grid of every alpha, ``(n_folds, n_voxels)``; -1 where alpha is undefined.

    The nearest value on a logarithmic scale counts, so that a float32 alpha finds its float64 grid.
    """
    positions = np.full(fit.alpha.shape, -1, dtype=np.intp)
    for index, (alpha, grid) in enumerate(zip(fit.alpha, fit.alpha_grid, strict=True)):
        chosen = np.isfinite(alpha)
        log_grid = np.log(grid)
        positions[index, chosen] = np.digitize(np.log(alpha[chosen]), (log_grid[:-1] + log_grid[1:]) / 2)
    return positions


def alpha_row(fit: FitScores) -> AlphaRow:
    """Shares of vertices on the edges of the alpha grid, over all folds together.

    A vertex counts among those with r > .1 by its mean r over folds. With fewer than two alphas
    there is no edge and the shares are NaN.
    """
    positions = alpha_positions(fit)
    n_alphas = fit.alpha_grid.shape[1]
    chosen = positions[positions >= 0]
    over = positions[:, fit.mean_r > LOW_R]
    over = over[over >= 0]
    has_edges = n_alphas > 1
    return AlphaRow(
        feature_set=fit.feature_set,
        variant=fit.variant,
        subject=fit.subject,
        n_alphas=n_alphas,
        smallest_alpha=float(fit.alpha_grid.min()),
        largest_alpha=float(fit.alpha_grid.max()),
        n_chosen=chosen.size,
        share_low_edge=float((chosen == 0).mean()) if has_edges and chosen.size else math.nan,
        n_chosen_over_0_1=over.size,
        share_high_edge_over_0_1=float((over == n_alphas - 1).mean())
        if has_edges and over.size
        else math.nan,
    )


def alpha_warnings(rows: Sequence[AlphaRow]) -> tuple[str, ...]:
    """One sentence per feature set and edge of the grid that too many vertices of some subject lie on.

    Vertices without signal on the high edge are normal, so that only those with r > .1 count there.
    """
    found = []
    for feature_set, of_set in group_rows(rows).items():
        low = [row for row in of_set if row.share_low_edge > LOW_EDGE_LIMIT]
        high = [row for row in of_set if row.share_high_edge_over_0_1 > HIGH_EDGE_LIMIT]
        if low:
            share = format_share(max(row.share_low_edge for row in low))
            found.append(
                f"{feature_set}: up to {share} of vertices chose the smallest alpha, "
                f"{min(row.smallest_alpha for row in low):.3g}, in {name_subjects(low, len(of_set))}; "
                f"expected at most {format_share(LOW_EDGE_LIMIT)}. Extend the alpha grid downwards: "
                "lower the first of fit.alpha_exponents."
            )
        if high:
            share = format_share(max(row.share_high_edge_over_0_1 for row in high))
            found.append(
                f"{feature_set}: up to {share} of vertices with r > {LOW_R} chose the largest alpha, "
                f"{max(row.largest_alpha for row in high):.3g}, in {name_subjects(high, len(of_set))}; "
                f"expected at most {format_share(HIGH_EDGE_LIMIT)}. Extend the alpha grid upwards: "
                "raise the second of fit.alpha_exponents."
            )
    return tuple(found)

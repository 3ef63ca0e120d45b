"""The nested choice among variants: by the inner folds, so that no test row has a say in what it scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class NestedChoice:
    """What every vertex chose.

    Attributes
    ----------
    variant : array of int, shape (n_folds, n_voxels)
        Place on the variant axis with the best score of the inner folds, in each outer fold; the first of
        equals. -1 where a score is undefined.
    r : array of shape (n_folds, n_voxels)
        r over the test rows with that variant.
    chance : array of shape (n_folds, n_voxels)
        Chance level of that r.
    best : array of int, shape (n_voxels,)
        The variant to show: that of the best mean score over outer folds, which decides no r. -1 where the
        vertex has none: its r is not above its chance level (`mean_excess`), or is undefined.
    """

    variant: NDArray[np.intp]
    r: Floats
    chance: Floats
    best: NDArray[np.intp]

    @property
    def mean_r(self) -> NDArray[np.float64]:
        """Plain mean of `r` over outer folds, (n_voxels,); NaN where undefined in any."""
        mean: NDArray[np.float64] = self.r.mean(axis=0, dtype=np.float64)
        return mean


def mean_excess(r: Floats, chance: Floats) -> NDArray[np.float64]:
    """How far r lies above its chance level, mean over the outer folds that have one.

    Parameters
    ----------
    r, chance : array of shape (n_folds, n_voxels)
        A fold whose test rows are too few for circular shifts has no chance level, and no part in the mean.

    Returns
    -------
    array of shape (n_voxels,)
        NaN where no fold has a chance level, or r is undefined in any fold.
    """
    has_chance = np.isfinite(chance)
    excess = np.where(has_chance, r - chance, 0).sum(axis=0, dtype=np.float64)
    defined = np.isfinite(r).all(axis=0) & has_chance.any(axis=0)
    mean: NDArray[np.float64] = np.where(defined, excess / np.maximum(1, has_chance.sum(axis=0)), np.nan)
    return mean


def choose_variants(cv: Floats, r: Floats, chance: Floats) -> NestedChoice:
    """Choose each vertex's variant inside the training runs.

    Parameters
    ----------
    cv, r, chance : array of shape (n_folds, n_variants, n_voxels)
        Score of the inner folds, r over the test rows and its chance level. A vertex that is undefined in
        any variant has no choice.

    Returns
    -------
    NestedChoice
    """
    defined = np.isfinite(cv).all(axis=1)
    ranked = np.where(np.isfinite(cv), cv, -np.inf)
    variant = ranked.argmax(axis=1)

    def of_choice(values: Floats) -> Floats:
        chosen = np.take_along_axis(values, variant[:, None], axis=1)[:, 0]
        return np.where(defined, chosen, np.nan)

    chosen_r, chosen_chance = of_choice(r), of_choice(chance)
    best = np.where(mean_excess(chosen_r, chosen_chance) > 0, ranked.mean(axis=0).argmax(axis=0), -1)
    return NestedChoice(np.where(defined, variant, -1), chosen_r, chosen_chance, best)


def best_fixed_variant(cv: Floats) -> int:
    """The one variant that is best for all vertices together, by the inner folds of all outer folds.

    A name for it, which decides no r: where every run is a test run in turn, it is one of the inner folds of
    the others.

    Parameters
    ----------
    cv : array of shape (n_folds, n_variants, n_voxels)

    Returns
    -------
    int
        Place of the best mean over the vertices that are defined in all variants; the first of equals, -1
        where there is no such vertex.
    """
    defined = np.isfinite(cv).all(axis=(0, 1))
    if not defined.any():
        return -1
    return int(cv[:, :, defined].mean(axis=(0, 2), dtype=np.float64).argmax())


def best_variant_of_folds(cv: Floats) -> NDArray[np.intp]:
    """The one variant that is best for all vertices together in each outer fold, by its own inner folds.

    Parameters
    ----------
    cv : array of shape (n_folds, n_variants, n_voxels)

    Returns
    -------
    array of int, shape (n_folds,)
        `best_fixed_variant` of each outer fold alone.
    """
    return np.array([best_fixed_variant(of_fold[None]) for of_fold in cv], dtype=np.intp)


def values_of(best: NDArray[np.intp], values: Sequence[float]) -> NDArray[np.float64]:
    """A map of what variants stand for, such as delays in TRs: NaN where there is no best one.

    Parameters
    ----------
    best : array of int, shape (n_voxels,)
        Places on the variant axis, or -1.
    values : sequence of float
        One for each variant.
    """
    return np.append(np.asarray(values, dtype=np.float64), np.nan)[best]

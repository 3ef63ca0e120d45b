"""The exact solver's scores where features are fewer than rows: in the features' own coordinates.

All that a fit needs of BOLD are its products with the features. They are taken once, inner fold by inner
fold; those of the rows that train without a fold are the sum of the others'. With p, what they are in the
eigenvectors of those rows' kernel, and h, the filter of an alpha, the squares of its predictions sum to
``(h * p)' A (h * p)``, A the products of the features over the fold's rows. Few forms in p make those of all
alphas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import DTypeLike, NDArray

from hpcenc.tasks.forms import mix, pack, packed_size, quadratic_forms

Array = Any
"""An array of NumPy, torch or another library of the array API."""
Doubles = NDArray[np.float64]

PANEL = 64
"""Columns of a panel of the forms."""


@dataclass(frozen=True, eq=False)
class ThinOperators:
    """Arrays of one inner fold.

    The coordinates of rows are their BOLD times the outer fold's eigenvectors, and its sum: rank + 1 values.
    """

    from_others: Array
    """(rank + 1, rank): coordinates of the rows that train to their BOLD in the eigenvectors of their own
    kernel."""
    from_fold: Array
    """(rank + 1, rank): coordinates of the fold's rows to the products of their BOLD with the features, along
    the same eigenvectors."""
    feature_sums: Array
    """(rank,): sums of those features over the fold's rows."""
    filters: Array
    """(n_alphas, rank), float64: weights of those features from BOLD in the eigenvectors."""
    forms: Array
    """Packed forms of size rank."""
    mixtures: Array
    """(n_alphas, n_basis), float64: squares of the predictions of an alpha from the forms."""


def make_thin_operators(
    eigenvectors: Doubles,
    eigenvalues: Doubles,
    alphas: Doubles,
    span: tuple[int, int],
    tolerance: float,
    dtype: DTypeLike,
) -> ThinOperators:
    """Operators of one inner fold.

    Parameters
    ----------
    eigenvectors : array of shape (n_train, rank)
        Of the centred training kernel of the outer fold.
    eigenvalues : array of shape (rank,)
    alphas : array of shape (n_alphas,)
    span : (start, stop)
        Training rows that the fold holds out.
    tolerance : float
        Singular values kept of the forms of all alphas, relative to the largest.
    dtype : dtype
        Of what is multiplied with BOLD.
    """
    root = np.sqrt(eigenvalues)
    own = (eigenvectors * root)[slice(*span)]
    others = np.delete(eigenvectors * root, slice(*span), axis=0)
    mean = others.mean(axis=0)
    centred = others - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    # Features that vary in the fold alone have rounding for a kernel: nothing can be learned from them.
    kept = values > len(eigenvectors) * np.finfo(np.float64).eps * eigenvalues.max()
    scale = np.sqrt(np.where(kept, values, 1))
    to_features = np.vstack([root[:, None] * vectors, -(mean @ vectors)])
    features = (own - mean) @ vectors
    products = features.T @ features
    filters = np.where(kept, scale, 0) / (np.where(kept, values, 0) + alphas[:, None])
    mixtures, from_alphas = _form_basis(filters, products, tolerance)
    forms = np.stack([(filters.T * weights) @ filters * products for weights in from_alphas])
    return ThinOperators(
        from_others=(to_features * np.where(kept, 1 / scale, 0)).astype(dtype),
        from_fold=to_features.astype(dtype),
        feature_sums=features.sum(axis=0).astype(dtype),
        filters=filters,
        forms=pack(forms.astype(dtype), PANEL),
        mixtures=mixtures,
    )


def _form_basis(filters: Doubles, products: Doubles, tolerance: float) -> tuple[Doubles, Doubles]:
    """Few mixtures of the forms ``h[i] * products[i, j] * h[j]`` of all alphas, whose filters are h.

    Each alpha's form is scaled to unit norm first, so that the tolerance is relative to its own.

    Returns
    -------
    mixtures : array of shape (n_alphas, n_basis)
        Forms of the alphas from the few.
    from_alphas : array of shape (n_basis, n_alphas)
        The few from the forms of the alphas.
    """
    squares = products**2
    gram = np.empty((len(filters), len(filters)))
    for place, one in enumerate(filters):
        pairs = filters * one
        gram[place] = ((pairs @ squares) * pairs).sum(axis=1)
    norms = np.sqrt(np.diag(gram))
    norms[norms == 0] = 1
    values, vectors = np.linalg.eigh(gram / np.outer(norms, norms))
    # Squares of singular values: below the root of the rounding they tell nothing, and all are kept.
    above = np.count_nonzero(values > tolerance**2 * values[-1])
    n_basis = len(filters) if tolerance**2 < np.finfo(np.float64).eps else max(1, int(above))
    chosen = vectors[:, ::-1][:, :n_basis]
    return norms[:, None] * chosen, chosen.T / norms


def restrict_thin(operators: ThinOperators, place: int) -> ThinOperators:
    """Operators of one of the alphas: with one form."""
    xp = array_namespace(operators.forms)
    one = slice(place, place + 1)
    weights = xp.astype(operators.mixtures[place, :], operators.forms.dtype)
    return replace(
        operators,
        filters=operators.filters[one, :],
        forms=mix(operators.forms, weights, operators.filters.shape[1], PANEL),
        mixtures=xp.ones_like(operators.mixtures[:1, :1]),
    )


def fold_coordinates(Y_train: Array, eigenvectors: Array, spans: Sequence[tuple[int, int]]) -> list[Array]:
    """Coordinates of each inner fold's rows, (n_voxels, rank + 1)."""
    xp = array_namespace(Y_train)
    by_voxel = xp.matrix_transpose(Y_train)
    found = []
    for start, stop in spans:
        rows = by_voxel[:, start:stop]
        total = xp.sum(rows, axis=1, keepdims=True)
        found.append(xp.concat([xp.matmul(rows, eigenvectors[start:stop, :]), total], axis=1))
    return found


def together(coordinates: Sequence[Array]) -> Array:
    """Coordinates of all rows."""
    whole: Array = coordinates[0]
    for more in coordinates[1:]:
        whole = whole + more
    return whole


def thin_scores(
    Y_train: Array,
    coordinates: Sequence[Array],
    operators: Sequence[ThinOperators],
    spans: Sequence[tuple[int, int]],
) -> Array:
    """Score of every alpha: negative squared error, mean over rows, then over inner folds.

    Parameters
    ----------
    Y_train : array of shape (n_train, n_voxels)
    coordinates : sequence of array of shape (n_voxels, rank + 1)
        As `fold_coordinates` gives them.
    operators : sequence of ThinOperators
        Of the inner folds, whose rows are `spans`.

    Returns
    -------
    array of shape (n_voxels, n_alphas), float64
    """
    xp = array_namespace(Y_train)
    by_voxel = xp.matrix_transpose(Y_train)
    whole, total = together(coordinates), 0.0
    for (start, stop), own, fold in zip(spans, coordinates, operators, strict=True):
        others = whole - own
        intercept = others[:, -1:] / (by_voxel.shape[1] - (stop - start))
        known = xp.matmul(others, fold.from_others)
        answered = xp.matmul(own, fold.from_fold) - intercept * fold.feature_sums
        target = xp.astype(by_voxel[:, start:stop] - intercept, xp.float64)
        forms = quadratic_forms(known, fold.forms, PANEL)
        predicted_squares = xp.matmul(forms, xp.matrix_transpose(fold.mixtures))
        shared = xp.matmul(xp.astype(known * answered, xp.float64), xp.matrix_transpose(fold.filters))
        target_squares = xp.sum(target**2, axis=1, keepdims=True)
        total = total - (predicted_squares - 2 * shared + target_squares) / (stop - start)
    return total / len(operators)


def thin_values(rank: int, n_basis: int) -> int:
    """Values of the matrices of one inner fold, which BOLD is multiplied with."""
    return 2 * (rank + 1) * rank + rank + n_basis * packed_size(rank, PANEL)


def thin_products(rank: int, n_val: int, n_basis: int) -> int:
    """Multiplications a voxel of one inner fold."""
    return rank * n_val + 2 * (rank + 1) * rank + n_basis * packed_size(rank, PANEL)

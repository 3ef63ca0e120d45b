"""The exact solver's scores where features are fewer than rows: in the features' own coordinates.

All that a fit needs of BOLD are its products with the features. They are taken once, inner fold by inner
fold; those of the rows that train without a fold are the sum of the others'. With p, what they are in the
eigenvectors of those rows' kernel, and h, the filter of an alpha, the squares of its predictions sum to
``(h * p)' A (h * p)``, A the products of the features over the fold's rows. Few forms in p make those of all
alphas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import DTypeLike, NDArray

from hpcenc.tasks.forms import pack, packed_size, quadratic_forms

Array = Any
"""An array of NumPy, torch or another library of the array API."""
Doubles = NDArray[np.float64]

PANEL = 64
"""Columns of a panel of the forms."""


@dataclass(frozen=True, eq=False)
class ThinOperators:
    """Arrays of one inner fold, for choosing among alphas.

    The coordinates of rows are their BOLD times the outer fold's eigenvectors, and its sum: rank + 1 values.
    """

    from_others: Array
    """(rank + 1, rank): coordinates of the rows that train to their BOLD in the eigenvectors of their own
    kernel."""
    from_fold: Array
    """(rank + 1, rank): coordinates of the fold's rows to the products of their BOLD with the features, along
    the same eigenvectors."""
    features: Array
    """(n_val, rank): the features along the same eigenvectors, of the fold's rows."""
    filters: Array
    """(n_alphas, rank), float64: weights of those features from BOLD in the eigenvectors."""
    forms: Array
    """Packed forms of size rank."""
    mixtures: Array
    """(n_alphas, n_basis), float64: squares of the predictions of an alpha from the forms."""


@dataclass(frozen=True, eq=False)
class ThinPredictions:
    """Arrays of one inner fold where there is one alpha."""

    predictions: Array
    """(rank + 1, n_val): coordinates of the rows that train to the predictions of the fold's rows."""


def make_thin_operators(
    eigenvectors: Doubles,
    eigenvalues: Doubles,
    alphas: Doubles,
    span: tuple[int, int],
    tolerance: float,
    dtype: DTypeLike,
) -> ThinOperators | ThinPredictions:
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
    filters = np.where(kept, scale, 0) / (np.where(kept, values, 0) + alphas[:, None])
    from_others = to_features * np.where(kept, 1 / scale, 0)
    if len(alphas) == 1:
        return ThinPredictions(((from_others * filters[0]) @ features.T).astype(dtype))
    products = features.T @ features
    mixtures, from_alphas = _form_basis(filters, products, tolerance)
    forms = np.stack([(filters.T * weights) @ filters * products for weights in from_alphas])
    return ThinOperators(
        from_others=from_others.astype(dtype),
        from_fold=to_features.astype(dtype),
        features=features.astype(dtype),
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


def restrict_thin(operators: ThinOperators | ThinPredictions, place: int) -> ThinPredictions:
    """Operators of one of the alphas."""
    if isinstance(operators, ThinPredictions):
        return operators
    xp = array_namespace(operators.forms)
    weights = xp.astype(operators.filters[place, :], operators.features.dtype)
    return ThinPredictions(
        xp.matmul(operators.from_others * weights, xp.matrix_transpose(operators.features))
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
    operators: Sequence[ThinOperators | ThinPredictions],
    spans: Sequence[tuple[int, int]],
) -> Array:
    """Score of every alpha: negative squared error, mean over rows, then over inner folds.

    Parameters
    ----------
    Y_train : array of shape (n_train, n_voxels)
    coordinates : sequence of array of shape (n_voxels, rank + 1)
        As `fold_coordinates` gives them.
    operators : sequence of ThinOperators or ThinPredictions
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
        target = by_voxel[:, start:stop] - intercept
        if isinstance(fold, ThinPredictions):
            residual = xp.astype(target - xp.matmul(others, fold.predictions), xp.float64)
            errors = xp.vecdot(residual, residual)[:, None]
        else:
            errors = _errors(others, own, intercept, xp.astype(target, xp.float64), fold)
        total = total - errors / (stop - start)
    return total / len(operators)


def _errors(others: Array, own: Array, intercept: Array, target: Array, fold: ThinOperators) -> Array:
    """Squared errors of all alphas over one fold's rows, (n_voxels, n_alphas), float64."""
    xp = array_namespace(others)
    known = xp.matmul(others, fold.from_others)
    answered = xp.matmul(own, fold.from_fold) - intercept * xp.sum(fold.features, axis=0)
    forms = quadratic_forms(known, fold.forms, PANEL)
    predicted_squares = xp.matmul(forms, xp.matrix_transpose(fold.mixtures))
    shared = xp.matmul(xp.astype(known * answered, xp.float64), xp.matrix_transpose(fold.filters))
    return predicted_squares - 2 * shared + xp.vecdot(target, target)[:, None]


def thin_values(rank: int, n_val: int, n_basis: int, n_alphas: int) -> int:
    """Values of the matrices of one inner fold, which BOLD is multiplied with."""
    if n_alphas == 1:
        return (rank + 1) * n_val
    return 2 * (rank + 1) * rank + n_val * rank + n_basis * packed_size(rank, PANEL)


def thin_products(rank: int, n_val: int, n_basis: int, n_alphas: int) -> int:
    """Multiplications a voxel of one inner fold."""
    if n_alphas == 1:
        return n_val * (2 * rank + 1)
    return rank * n_val + 2 * (rank + 1) * rank + n_basis * packed_size(rank, PANEL)

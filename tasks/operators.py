"""Fold operators: what a ridge fit needs and no voxel changes, made once for all subjects.

Three matrices do the work for every voxel: the eigenvectors of the centred training kernel (refit), the
test operator (prediction), and for each inner fold one stacked operator. That one maps training BOLD to the
predictions of a few basis filters, of which the predictions of every alpha are combinations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import DTypeLike, NDArray

from hpcenc.tasks.folds import OuterFold
from hpcenc.tasks.gram import centre

Array = Any
"""An array of NumPy, torch or another library of the array API."""


@dataclass(frozen=True, eq=False)
class InnerOperators:
    """Arrays of one inner fold; rows are positions among the training rows of the outer fold."""

    train_rows: NDArray[np.intp]
    val_rows: NDArray[np.intp]
    projection: Array | None
    """Eigenvectors of the inner training kernel, (n_inner_train, rank), where the way through them is cheaper
    (fewer features than rows); else None."""
    operator: Array
    """(n_inner_train, n_basis * n_val), or (rank, n_basis * n_val) behind the projection; basis-major."""
    coefficients: Array
    """(n_alphas, n_basis), float64: predictions of an alpha from those of the basis filters."""


@dataclass(frozen=True, eq=False)
class FoldOperators:
    """Arrays of one outer fold.

    Row indices stay NumPy arrays on every device: the host looks runs up in them.
    """

    train_rows: NDArray[np.intp]
    """Rows of all runs, (n_train,)."""
    test_rows: NDArray[np.intp]
    eigenvectors: Array
    """Of the centred training kernel, (n_train, rank); orthogonal to the constant."""
    eigenvalues: Array
    """(rank,), float64."""
    test_operator: Array
    """Centred kernel of test against training rows times the eigenvectors, (n_test, rank)."""
    alphas: Array
    """(n_alphas,), float64, absolute, rising."""
    inner: tuple[InnerOperators, ...]


def make_operators(
    windowed_gram: NDArray[np.float64],
    fold: OuterFold,
    alpha_exponents: Sequence[float] | NDArray[np.float64],
    basis_tolerance: float = 1e-5,
    dtype: DTypeLike = np.float32,
) -> FoldOperators:
    """Operators of one outer fold, from the kernel of all rows.

    Eigendecompositions are in float64, whatever `dtype` is: in float32, eigenvalues below 1e-7 of the largest
    are noise. Components without variance are left out; they change no prediction and no primal weight.

    Parameters
    ----------
    windowed_gram : array of shape (n_trs, n_trs), float64
        Kernel of the windowed features, all rows of the runs present, not centred.
    fold : OuterFold
    alpha_exponents : sequence of float
        Rising exponents u. An alpha is ``10**u * trace(Kc) / (n_train - 1)``, Kc the centred training kernel
        of the outer fold; inner folds and refit use the same values.
    basis_tolerance : float
        Singular values kept of the filters ``1 / (s + alpha)``, relative to the largest; more alphas need no
        more filters. Of 18,000 voxels in 9 simulated studies, an alpha other than that of one operator per
        alpha was chosen in 7 at 1e-4 (3 of 2,000 in the worst study), in 1 at 1e-5 and in none at 1e-6; the
        scores of the two alphas then differed by less than 1e-5.
    dtype : dtype
        Of the operators that BOLD is multiplied with.

    Returns
    -------
    FoldOperators

    Raises
    ------
    ValueError
        If all features are constant over the training rows, or the exponents do not rise.
    """
    exponents = np.asarray(alpha_exponents, dtype=np.float64)
    if exponents.size == 0 or np.any(np.diff(exponents) <= 0):
        raise ValueError(
            f"alpha exponents {exponents.tolist()}: expected at least one, each above the one before."
        )
    train_rows, test_rows = np.flatnonzero(fold.train), np.flatnonzero(fold.test)
    centred = centre(windowed_gram, fold.train)
    variance = np.trace(centred[train_rows]) / (len(train_rows) - 1)
    if not variance > 0:
        raise ValueError(
            f"fold '{fold.name}': the kernel of its {len(train_rows)} training rows is zero. "
            "Expected features that vary over the training runs. Leave out this feature space, or extract it "
            "again."
        )
    alphas = 10.0**exponents * variance
    eigenvectors, eigenvalues = _eigenbasis(centred[train_rows])
    return FoldOperators(
        train_rows=train_rows,
        test_rows=test_rows,
        eigenvectors=eigenvectors.astype(dtype),
        eigenvalues=eigenvalues,
        test_operator=(centred[test_rows] @ eigenvectors).astype(dtype),
        alphas=alphas,
        inner=tuple(
            _inner_operators(windowed_gram, train_rows, validation, alphas, basis_tolerance, dtype)
            for validation in fold.inner
        ),
    )


def ops_to_device(ops: FoldOperators, to_device: Callable[[Any], Any]) -> FoldOperators:
    """Operators with every matrix moved once by `to_device`; row indices stay NumPy arrays."""

    def moved_inner(inner: InnerOperators) -> InnerOperators:
        return replace(
            inner,
            projection=None if inner.projection is None else to_device(inner.projection),
            operator=to_device(inner.operator),
            coefficients=to_device(inner.coefficients),
        )

    return replace(
        ops,
        eigenvectors=to_device(ops.eigenvectors),
        eigenvalues=to_device(ops.eigenvalues),
        test_operator=to_device(ops.test_operator),
        alphas=to_device(ops.alphas),
        inner=tuple(moved_inner(inner) for inner in ops.inner),
    )


def to_arrays(ops: FoldOperators) -> dict[str, NDArray[Any]]:
    """Operators as a flat table of named arrays, one file each on disk.

    Parameters
    ----------
    ops : FoldOperators
        Of NumPy arrays.

    Returns
    -------
    dict
        Fields by name; those of inner fold i as ``inner-<i>-<name>``. An absent projection has no entry.
    """
    arrays = {name: getattr(ops, name) for name in _OUTER_ARRAYS}
    for index, inner in enumerate(ops.inner):
        arrays |= {f"inner-{index}-{name}": getattr(inner, name) for name in _INNER_ARRAYS}
    return {name: array for name, array in arrays.items() if array is not None}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FoldOperators:
    """Operators from what `to_arrays` made of them; memory-mapped arrays stay so.

    Raises
    ------
    KeyError
        If an array is missing.
    """
    n_inner = len([name for name in arrays if name.startswith("inner-") and name.endswith("-operator")])
    inner = tuple(
        InnerOperators(
            projection=arrays.get(f"inner-{index}-projection"),
            **{name: arrays[f"inner-{index}-{name}"] for name in _INNER_ARRAYS if name != "projection"},
        )
        for index in range(n_inner)
    )
    return FoldOperators(**{name: arrays[name] for name in _OUTER_ARRAYS}, inner=inner)


def operator_bytes(
    fold: OuterFold,
    n_columns: int,
    alpha_exponents: Sequence[float] | NDArray[np.float64],
    basis_tolerance: float = 1e-5,
) -> int:
    """Bytes of the arrays that `make_operators` will make in float32, at most: for plans, without a kernel.

    Parameters
    ----------
    fold : OuterFold
    n_columns : int
        Columns of the delayed design, constant ones included.
    alpha_exponents, basis_tolerance
        As `make_operators` takes them.

    Returns
    -------
    int
        Up to twice too many where features have full rank: the bases of steep spectra are half their bound.
    """
    n_train, n_test = int(fold.train.sum()), int(fold.test.sum())
    rank = min(n_columns, n_train - 1)
    n_matrix = rank * (n_train + n_test)
    n_vector = n_train + n_test + rank + len(alpha_exponents)
    for validation in fold.inner:
        n_val = int(validation.sum())
        n_training = n_train - n_val
        inner_rank = min(n_columns, n_training - 1)
        n_basis = min(_largest_basis(alpha_exponents, basis_tolerance), inner_rank)
        n_outputs = n_basis * n_val
        n_matrix += min(n_training * n_outputs, inner_rank * (n_training + n_outputs))
        n_vector += n_train + len(alpha_exponents) * n_basis
    return 4 * n_matrix + 8 * n_vector


_OUTER_ARRAYS = ("train_rows", "test_rows", "eigenvectors", "eigenvalues", "test_operator", "alphas")
_INNER_ARRAYS = ("train_rows", "val_rows", "projection", "operator", "coefficients")


def _eigenbasis(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvectors with variance, orthogonal to the constant, and their eigenvalues; at least one."""
    values, vectors = scipy.linalg.eigh(centred, driver="evd")
    values = np.maximum(values, 0)
    # The numerical rank of a kernel accumulated in float64. A threshold at float32's 1e-7 would cut
    # components that the smallest alphas still use where the spectrum is steep.
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    kept[-1] = True
    vectors = vectors[:, kept]
    return vectors - vectors.mean(axis=0), values[kept]


def _inner_operators(
    windowed_gram: NDArray[np.float64],
    outer_train_rows: NDArray[np.intp],
    validation: NDArray[np.bool_],
    alphas: NDArray[np.float64],
    tolerance: float,
    dtype: DTypeLike,
) -> InnerOperators:
    is_val = validation[outer_train_rows]
    training = np.zeros(len(windowed_gram), dtype=bool)
    training[outer_train_rows[~is_val]] = True

    centred = centre(windowed_gram, training)
    eigenvectors, eigenvalues = _eigenbasis(centred[training])
    cross = (centred[validation] @ eigenvectors).T  # (rank, n_val)
    norms = np.linalg.norm(cross, axis=1)
    filters, coefficients = _filter_basis(norms, eigenvalues, alphas, tolerance)

    directions = cross / np.where(norms > 0, norms, 1)[:, None]
    stacked = (filters.T[:, :, None] * directions[:, None, :]).astype(dtype)  # (rank, n_basis, n_val)
    operator = stacked.reshape(len(eigenvalues), -1)
    projection = eigenvectors.astype(dtype)
    n_training, rank = projection.shape
    n_outputs = operator.shape[1]
    through_projection = rank * (n_training + n_outputs) < n_training * n_outputs
    return InnerOperators(
        train_rows=np.flatnonzero(~is_val),
        val_rows=np.flatnonzero(is_val),
        projection=projection if through_projection else None,
        operator=operator if through_projection else projection @ operator,
        coefficients=coefficients,
    )


def _filter_basis(
    norms: NDArray[np.float64],
    eigenvalues: NDArray[np.float64],
    alphas: NDArray[np.float64],
    tolerance: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Few filters whose combinations are the filters ``norms / (eigenvalues + alpha)`` of all alphas.

    Each alpha's filter is scaled to unit norm first, so that the tolerance is relative to its own
    predictions: the filters of large alphas would vanish beside those of small ones.

    Returns
    -------
    filters : array of shape (n_basis, rank)
        Orthonormal.
    coefficients : array of shape (n_alphas, n_basis)
    """
    exact = norms / (eigenvalues + alphas[:, None])
    scale = np.linalg.norm(exact, axis=1, keepdims=True)
    scale[scale == 0] = 1
    left, singular, right = np.linalg.svd(exact / scale, full_matrices=False)
    n_basis = max(1, int(np.count_nonzero(singular > tolerance * singular[0])))
    return right[:n_basis], scale * left[:, :n_basis] * singular[:n_basis]


def _largest_basis(exponents: Sequence[float] | NDArray[np.float64], tolerance: float) -> int:
    """Most filters that `_filter_basis` keeps, whatever the eigenvalues and norms.

    The filters are a Cauchy matrix with scaled rows and columns, whose singular value k + 1 is at most
    ``4 * exp(-pi**2 * k / log(16 * ratio))`` of the first; ``ratio`` is that of the largest alpha to the
    smallest (Beckermann and Townsend 2019, SIAM Review 61, 319-344). 25 for the defaults and many alphas.
    """
    log_ratio = np.log(10) * (exponents[-1] - exponents[0])
    return min(len(exponents), int(np.ceil(np.log(4 / tolerance) * (np.log(16) + log_ratio) / np.pi**2)))

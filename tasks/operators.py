"""Fold operators: what a ridge fit needs and no voxel changes, made once for all subjects.

Three matrices do the exact solver's work for every voxel: the eigenvectors of the centred training kernel
(refit), the test operator (prediction), and for each inner fold one stacked operator. That one maps training
BOLD to the predictions of a few basis filters, of which the predictions of every alpha are combinations.
Where features are few, others take its place (`thin`); the fast solver's own are in `fast_operators`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import DTypeLike, NDArray

from hpcenc.tasks.cv_forms import HEAD_PANEL, MAX_COARSE, N_HEAD, CvForms
from hpcenc.tasks.fast_operators import FastOperators, make_fast_operators
from hpcenc.tasks.folds import OuterFold
from hpcenc.tasks.forms import packed_size
from hpcenc.tasks.kernels import Gram, Kernel
from hpcenc.tasks.thin import (
    ThinOperators,
    ThinPredictions,
    make_thin_operators,
    restrict_thin,
    thin_products,
    thin_values,
)

Array = Any
"""An array of NumPy, torch or another library of the array API."""

Solver = Literal["exact", "fast"]
"""Ways to each voxel's alpha."""

FAST_BYTES = 2_500_000_000
"""Bytes of the fast solver's operators that a worker has room for."""

MIN_FAST_ALPHAS = 8
"""Fewer alphas than this are compared at once by the exact solver."""


@dataclass(frozen=True, eq=False)
class InnerOperators:
    """Arrays of one inner fold; rows are positions among the training rows of the outer fold."""

    train_rows: NDArray[np.intp]
    val_rows: NDArray[np.intp]
    operator: Array
    """(n_inner_train, n_basis * n_val), basis-major."""
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
    inner_rows: NDArray[np.intp]
    """(n_inner, 2): first training row that each inner fold holds out, and the one after the last, counted
    among the training rows."""
    eigenvectors: Array
    """Of the centred training kernel, (n_train, rank); orthogonal to the constant."""
    eigenvalues: Array
    """(rank,), float64."""
    test_operator: Array
    """Centred kernel of test against training rows times the eigenvectors, (n_test, rank)."""
    alphas: Array
    """(n_alphas,), float64, absolute, rising."""
    inner: tuple[InnerOperators, ...]
    """Of the exact solver; empty for the fast one, and where features are few."""
    thin: tuple[ThinOperators | ThinPredictions, ...] = ()
    """Of the exact solver in place of `inner`, where that takes fewer operations."""
    fast: FastOperators | None = None
    band_kernels: Array | None = None
    """Centred kernels of test against training rows of each band, (n_bands, n_test, n_train); None where
    there are no bands."""


def make_operators(
    kernel: NDArray[np.float64] | Kernel,
    fold: OuterFold,
    alpha_exponents: Sequence[float] | NDArray[np.float64],
    basis_tolerance: float = 1e-5,
    dtype: DTypeLike = np.float32,
    solver: Solver = "exact",
    nested: bool = False,
    alpha: float | None = None,
    thin: bool | None = None,
) -> FoldOperators:
    """Operators of one outer fold, from the kernel of all rows.

    Eigendecompositions are in float64, whatever `dtype` is: in float32, eigenvalues below 1e-7 of the largest
    are noise. Components without variance are left out; they change no prediction and no primal weight.

    Parameters
    ----------
    kernel : array of shape (n_trs, n_trs), float64, or Kernel
        Of the windowed features, all rows of the runs present, not centred.
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
        Of the operators that BOLD is multiplied with; the fast solver is float32.
    solver : {"exact", "fast"}
        Which of the two ways to each voxel's alpha the operators are for.
    nested : bool
        Whether fits shall have a score of the inner folds, by which variants can be compared.
    alpha : float, optional
        The one alpha, absolute, in place of a grid.
    thin : bool, optional
        Whether the exact solver works in the coordinates of the features; where that takes fewer operations
        if absent. Both ways give the same scores.

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
    kernel = Gram(kernel) if isinstance(kernel, np.ndarray) else kernel
    train_rows, test_rows = np.flatnonzero(fold.train), np.flatnonzero(fold.test)
    basis = kernel.eigenbasis(fold.train)
    variance = basis.trace / (len(train_rows) - 1)
    if not variance > 0:
        raise ValueError(
            f"fold '{fold.name}': the kernel of its {len(train_rows)} training rows is zero. "
            "Expected features that vary over the training runs. Leave out this feature space, or extract it "
            "again."
        )
    alphas = 10.0**exponents * variance if alpha is None else np.array([float(alpha)])
    vectors, values, test_operator = basis.vectors, basis.values, basis.towards(fold.test)
    del basis  # it holds a matrix as large as the kernel
    spans = [_span(validation[train_rows]) for validation in fold.inner]
    inner: tuple[InnerOperators, ...] = ()
    in_features: tuple[ThinOperators | ThinPredictions, ...] = ()
    fast = None
    if thin is None:
        n_vals = [stop - start for start, stop in spans]
        n_basis = largest_basis(exponents, basis_tolerance)
        thin = thin_pays(len(values), len(train_rows), n_vals, n_basis, len(alphas))
    if solver == "exact" and thin:
        in_features = tuple(
            make_thin_operators(vectors, values, alphas, span, basis_tolerance, dtype) for span in spans
        )
    elif solver == "exact":
        inner = tuple(
            _inner_operators(kernel, train_rows, validation, alphas, basis_tolerance, dtype)
            for validation in fold.inner
        )
    else:
        centred = kernel.centred(fold.train)
        kernels = centred[train_rows], centred[test_rows]
        fast = make_fast_operators(vectors, values, alphas, spans, *kernels, nested=nested)
    return FoldOperators(
        train_rows=train_rows,
        test_rows=test_rows,
        inner_rows=np.array(spans, dtype=np.intp),
        eigenvectors=vectors.astype(dtype),
        eigenvalues=values,
        test_operator=test_operator.astype(dtype),
        alphas=alphas,
        inner=inner,
        thin=in_features,
        fast=fast,
    )


def ops_to_device(ops: FoldOperators, to_device: Callable[[Any], Any]) -> FoldOperators:
    """Operators with every matrix moved once by `to_device`; row indices stay NumPy arrays."""
    arrays = to_arrays(ops)
    return from_arrays(
        {name: values if name.endswith("_rows") else to_device(values) for name, values in arrays.items()}
    )


def to_arrays(ops: FoldOperators) -> dict[str, Any]:
    """Operators as a flat table of named arrays, one file each on disk.

    Returns
    -------
    dict
        Fields by name; those of inner fold i as ``inner-<i>-<name>`` or ``thin-<i>-<name>``, those of the
        fast solver as ``fast-<name>`` and ``forms-<name>``. What is absent has no entry.
    """
    arrays = _fields(ops, "")
    for index, inner in enumerate(ops.inner):
        arrays |= _fields(inner, f"inner-{index}-")
    for index, thin in enumerate(ops.thin):
        arrays |= _fields(thin, f"thin-{index}-")
    if ops.fast is not None:
        arrays |= _fields(ops.fast, "fast-") | _fields(ops.fast.forms, "forms-")
    return arrays


def from_arrays(arrays: Mapping[str, Any]) -> FoldOperators:
    """Operators from what `to_arrays` made of them; memory-mapped arrays stay so.

    Raises
    ------
    KeyError
        If an array is missing.
    """
    inner = tuple(
        InnerOperators(**_named(InnerOperators, f"inner-{index}-", arrays))
        for index in range(_count(arrays, "inner", "operator"))
    )
    thin: list[ThinOperators | ThinPredictions] = [
        ThinOperators(**_named(ThinOperators, f"thin-{index}-", arrays))
        for index in range(_count(arrays, "thin", "forms"))
    ]
    thin += [
        ThinPredictions(**_named(ThinPredictions, f"thin-{index}-", arrays))
        for index in range(_count(arrays, "thin", "predictions"))
    ]
    fast = None
    if "fast-duals" in arrays:
        forms = CvForms(**_named(CvForms, "forms-", arrays))
        fast = FastOperators(
            **_named(FastOperators, "fast-", arrays, without=("forms", "held_out")),
            forms=forms,
            held_out=arrays.get("fast-held_out"),
        )
    return FoldOperators(
        **_named(FoldOperators, "", arrays, without=("inner", "thin", "fast", "band_kernels")),
        inner=inner,
        thin=tuple(thin),
        fast=fast,
        band_kernels=arrays.get("band_kernels"),
    )


def restrict_to_alpha(ops: FoldOperators, place: int) -> FoldOperators:
    """Operators of one of the alphas, which leave no choice.

    Parameters
    ----------
    ops : FoldOperators
        Of any array library.
    place : int
        Of the alpha in the grid.

    Returns
    -------
    FoldOperators
        With one filter in place of the basis of all alphas, so that a fit takes a fraction of the products.
    """
    one = slice(place, place + 1)
    inner = tuple(_restrict_inner(each, one) for each in ops.inner)
    thin = tuple(restrict_thin(each, place) for each in ops.thin)
    fast = None
    if ops.fast is not None:
        n_indirect = ops.alphas.shape[0] - ops.fast.duals.shape[0]
        forms = replace(ops.fast.forms, steps=ops.fast.forms.steps[:0, :])
        direct = slice(place - n_indirect, place - n_indirect + 1) if place >= n_indirect else slice(0, 0)
        held_out = None if ops.fast.held_out is None else ops.fast.held_out[one, :]
        fast = replace(ops.fast, forms=forms, duals=ops.fast.duals[direct, :, :], held_out=held_out)
    return replace(ops, alphas=ops.alphas[one], inner=inner, thin=thin, fast=fast)


def _restrict_inner(inner: InnerOperators, one: slice) -> InnerOperators:
    xp = array_namespace(inner.operator)
    n_inputs, n_val = inner.operator.shape[0], len(inner.val_rows)
    by_filter = xp.reshape(inner.operator, (n_inputs, -1, n_val))
    weights = xp.astype(inner.coefficients[one, :], inner.operator.dtype)
    operator = xp.sum(by_filter * xp.reshape(weights, (1, -1, 1)), axis=1)
    return replace(inner, operator=operator, coefficients=xp.ones_like(inner.coefficients[:1, :1]))


def choose_solver(
    fold: OuterFold, n_columns: int, n_voxels: int, alpha_exponents: Sequence[float], shared: bool = False
) -> Solver:
    """The solver that ``auto`` stands for; it depends on no other subject, feature set or machine.

    Making the fast solver's operators costs more, each voxel then less: about as many voxels as training rows
    pay for it. Its operators hold a matrix for every alpha. With few columns, the exact solver works in their
    number of dimensions; where all voxels share an alpha, one product does there for each inner fold.
    """
    n_train = int(fold.train.sum())
    fits = operator_bytes(fold, n_columns, alpha_exponents, solver="fast") <= FAST_BYTES
    pays = n_voxels >= 2 * n_train and n_columns >= (1 if shared else 0.4) * n_train
    return "fast" if fits and pays and len(alpha_exponents) >= MIN_FAST_ALPHAS else "exact"


def operator_bytes(
    fold: OuterFold,
    n_columns: int,
    alpha_exponents: Sequence[float] | NDArray[np.float64],
    basis_tolerance: float = 1e-5,
    solver: Solver = "exact",
    n_basis: int | None = None,
    nested: bool = False,
) -> int:
    """Bytes of the arrays that `make_operators` will make in float32, at most: for plans, without a kernel.

    Parameters
    ----------
    fold : OuterFold
    n_columns : int
        Columns of the delayed design, constant ones included.
    alpha_exponents, basis_tolerance, solver, nested
        As `make_operators` takes them.
    n_basis : int, optional
        Filters of the exact solver, if a guess is wanted: as many as there can be if absent.

    Returns
    -------
    int
        Up to twice too many where features have full rank: the bases of steep spectra are half their bound.
        More than that for the fast solver where most alphas are below `DIRECT_ALPHA`.
    """
    n_alphas = len(alpha_exponents)
    n_train, n_test = int(fold.train.sum()), int(fold.test.sum())
    rank = min(n_columns, n_train - 1)
    n_matrix = rank * (n_train + n_test)
    n_vector = n_train + n_test + 2 * len(fold.inner) + rank + n_alphas
    if solver == "fast":
        n_head = min(N_HEAD, max(1, rank // 3))
        n_coarse = min(MAX_COARSE, n_alphas - 1)
        n_matrix += n_train * (n_alphas * n_train + n_test + n_head)
        n_matrix += (n_alphas - 1 + n_coarse) * packed_size(n_train)
        n_matrix += (n_alphas - 1) * packed_size(n_head, HEAD_PANEL)
        if nested:
            n_matrix += n_alphas * sum(int(validation.sum()) ** 2 for validation in fold.inner)
        n_vector += n_alphas * (1 + n_coarse + (n_head + 1) * n_alphas)
        return 4 * n_matrix + 8 * n_vector
    most = largest_basis(alpha_exponents, basis_tolerance)
    n_vals = [int(validation.sum()) for validation in fold.inner]
    thin = thin_pays(rank, n_train, n_vals, most, n_alphas)
    for n_val in n_vals:
        n_training = n_train - n_val
        independent = rank * (rank + 1) // 2 if thin else min(n_columns, n_training - 1)
        n_kept = min(most, independent, most if n_basis is None else n_basis)
        n_matrix += thin_values(rank, n_val, n_kept, n_alphas) if thin else n_training * n_kept * n_val
        n_vector += n_alphas * n_kept + (n_alphas * rank if thin else n_train)
    return 4 * n_matrix + 8 * n_vector


def thin_pays(rank: int, n_train: int, n_vals: Sequence[int], n_basis: int, n_alphas: int) -> bool:
    """Whether the exact solver takes fewer operations a voxel in the coordinates of the features.

    Parameters
    ----------
    rank : int
        Of the training kernel.
    n_vals : sequence of int
        Rows that each inner fold holds out.
    n_basis : int
        Filters, or forms, of all alphas.
    """
    wide = sum((n_train - n_val) * n_val for n_val in n_vals) * n_basis
    return sum(thin_products(rank, n_val, n_basis, n_alphas) for n_val in n_vals) < wide


def _fields(part: Any, prefix: str) -> dict[str, Any]:
    """Fields of a dataclass that are arrays."""
    values = {prefix + field.name: getattr(part, field.name) for field in fields(part)}
    return {name: value for name, value in values.items() if hasattr(value, "dtype")}


def _count(arrays: Mapping[str, Any], kind: str, name: str) -> int:
    """Inner folds that have such an array."""
    return len([each for each in arrays if each.startswith(f"{kind}-") and each.endswith(f"-{name}")])


def _named(kind: type, prefix: str, arrays: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    return {field.name: arrays[prefix + field.name] for field in fields(kind) if field.name not in without}


def _span(rows: NDArray[np.bool_]) -> tuple[int, int]:
    """First row and row after the last of a run's rows, which follow each other among the training rows."""
    places = np.flatnonzero(rows)
    return int(places[0]), int(places[-1]) + 1


def _inner_operators(
    kernel: Kernel,
    outer_train_rows: NDArray[np.intp],
    validation: NDArray[np.bool_],
    alphas: NDArray[np.float64],
    tolerance: float,
    dtype: DTypeLike,
) -> InnerOperators:
    is_val = validation[outer_train_rows]
    training = np.zeros(len(validation), dtype=bool)
    training[outer_train_rows[~is_val]] = True

    basis = kernel.eigenbasis(training)
    cross = basis.towards(validation).T  # (rank, n_val)
    norms = np.linalg.norm(cross, axis=1)
    filters, coefficients = _filter_basis(norms, basis.values, alphas, tolerance)

    directions = cross / np.where(norms > 0, norms, 1)[:, None]
    stacked = (filters.T[:, :, None] * directions[:, None, :]).astype(dtype)  # (rank, n_basis, n_val)
    return InnerOperators(
        train_rows=np.flatnonzero(~is_val),
        val_rows=np.flatnonzero(is_val),
        operator=basis.vectors.astype(dtype) @ stacked.reshape(len(basis.values), -1),
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


def largest_basis(exponents: Sequence[float] | NDArray[np.float64], tolerance: float) -> int:
    """Most filters that `_filter_basis` keeps, whatever the eigenvalues and norms.

    The filters are a Cauchy matrix with scaled rows and columns, whose singular value k + 1 is at most
    ``4 * exp(-pi**2 * k / log(16 * ratio))`` of the first; ``ratio`` is that of the largest alpha to the
    smallest (Beckermann and Townsend 2019, SIAM Review 61, 319-344). 25 for the defaults and many alphas.
    """
    log_ratio = np.log(10) * (exponents[-1] - exponents[0])
    return min(len(exponents), int(np.ceil(np.log(4 / tolerance) * (np.log(16) + log_ratio) / np.pi**2)))

"""Operators of the fast solver: quadratic forms for alphas, one matrix an alpha for dual coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.cv_errors import error_form, held_out_inverses, solved_errors
from hpcenc.tasks.cv_forms import CvForms, make_cv_forms

Array = Any
"""An array of NumPy, torch or another library of the array API."""

DIRECT_ALPHA = 1e-2
"""Smallest alpha, relative to the largest eigenvalue, whose dual coefficients are one float32 product: r is
then right to 5e-6. At a thousandth it is wrong by 3e-5, and weights by 5e-5, where features are few."""


FORM_TOLERANCE = 1e-4
"""Relative error of the fast solver's scores at the smallest alpha, at most."""

N_FORM_CHECK = 32
"""Random courses that they are checked on, when operators are made."""


@dataclass(frozen=True, eq=False)
class FastOperators:
    """Arrays of the fast solver: alphas by quadratic forms, dual coefficients by one product an alpha."""

    forms: CvForms
    duals: Array
    """(n_direct, n_train, n_train): dual coefficients from BOLD, for the largest alphas. Smaller ones than a
    hundredth of the largest eigenvalue lose too many digits this way, and go through the eigenvectors."""
    test_kernel: Array
    """Centred kernel of test against training rows, (n_test, n_train)."""
    held_out: Array | None = None
    """(n_alphas, sum of squared inner-fold sizes): for each inner fold the matrix, flat, that turns
    residuals of the fit into those of the fold's rows where they are held out; None where variants are not
    compared."""


def make_fast_operators(
    eigenvectors: NDArray[np.float64],
    eigenvalues: NDArray[np.float64],
    alphas: NDArray[np.float64],
    fold_spans: Sequence[tuple[int, int]],
    train_kernel: NDArray[np.float64],
    test_kernel: NDArray[np.float64],
    nested: bool = False,
) -> FastOperators:
    """Operators of one outer fold.

    Parameters
    ----------
    eigenvectors : array of shape (n_train, rank)
        Of the centred training kernel, orthogonal to the constant; eigenvalues rise.
    eigenvalues : array of shape (rank,)
    alphas : array of shape (n_alphas,)
        Rising.
    fold_spans : sequence of (start, stop)
        Training rows that each inner fold holds out.
    train_kernel : array of shape (n_train, n_train)
        Centred on its rows.
    test_kernel : array of shape (n_test, n_train)
        Centred on the training rows.
    nested : bool
        Whether to make what gives the inner folds' errors themselves, not only which alpha has the least.

    Raises
    ------
    ValueError
        If the smallest alpha is too small for the forms to be right.
    """
    n_train = len(eigenvectors)
    first = int(np.searchsorted(alphas, DIRECT_ALPHA * eigenvalues.max()))
    duals = np.empty((len(alphas) - first, n_train, n_train), np.float32)
    n_held_out = sum((stop - start) ** 2 for start, stop in fold_spans)
    held_out = np.empty((len(alphas), n_held_out), np.float32) if nested else None

    def look(place: int, smoother: NDArray[np.floating[Any]]) -> None:
        if place == 0:
            longest = max(fold_spans, key=lambda span: span[1] - span[0])
            _check_form(smoother, train_kernel, alphas[0], longest)
        if held_out is not None:
            inverses = held_out_inverses(smoother, fold_spans)
            held_out[place] = np.concatenate([inverse.ravel() for inverse in inverses])
        if place >= first:
            dual = duals[place - first]
            # Symmetric, and in Fortran order.
            np.multiply(smoother.T, -1 / alphas[place], out=dual, casting="same_kind")
            dual -= np.float32(1 / (n_train * alphas[place]))
            np.einsum("ii->i", dual)[...] += np.float32(1 / alphas[place])

    forms = make_cv_forms(eigenvectors, eigenvalues, alphas, fold_spans, look)
    return FastOperators(forms, duals, test_kernel.astype(np.float32), held_out)


def _check_form(
    smoother: NDArray[np.floating[Any]],
    train_kernel: NDArray[np.float64],
    alpha: float,
    fold_span: tuple[int, int],
) -> None:
    """Hold one inner fold's form of the smallest alpha, the most delicate, against solving that fold.

    Raises
    ------
    ValueError
        If they differ by more than `FORM_TOLERANCE`.
    """
    form = np.triu(error_form(smoother, (fold_span,))).astype(np.float64)
    Y = np.random.default_rng(0).standard_normal((N_FORM_CHECK, len(form)))
    found = 2 * np.einsum("ij,ij->i", Y @ form, Y) - Y**2 @ np.diag(form)
    try:
        expected = solved_errors(train_kernel, alpha, (fold_span,), Y)
        error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
    except np.linalg.LinAlgError:
        error = np.inf
    if not error <= FORM_TOLERANCE:
        raise ValueError(
            f"the smallest alpha, {alpha:g}, is too small for the fast solver: its scores are off by "
            f"{error:.1g} of the squared error (at most {FORM_TOLERANCE:g} is right). "
            'Raise the lower of fit.alpha_exponents, or set fit.solver = "exact".'
        )

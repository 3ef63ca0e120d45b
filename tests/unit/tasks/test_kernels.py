"""Eigenbases of kernels, from the kernel and from the design."""

from __future__ import annotations

import numpy as np
import pytest

from hpcenc.tasks.folds import RowPolicy, RunRows, outer_folds
from hpcenc.tasks.kernels import Design, Gram
from hpcenc.tasks.operators import make_operators
from hpcenc.tasks.ridge import cross_validate

N_TRS = 90
RUNS = (RunRows("a", 30), RunRows("b", 35), RunRows("c", 25))
ROWS = np.arange(N_TRS) < 65


@pytest.fixture
def design() -> np.ndarray:
    columns = np.random.default_rng(0).standard_normal((N_TRS, 12)) * np.arange(1, 13) ** -1.5
    columns[:, 11] = columns[:, 10]  # rank 11
    return columns


@pytest.mark.parametrize("make", [lambda design: Design(design), lambda design: Gram(design @ design.T)])
def test_an_eigenbasis_gives_the_centred_kernel_back(design: np.ndarray, make: object) -> None:
    basis = make(design).eigenbasis(ROWS)  # type: ignore[operator]
    centred = design - design[ROWS].mean(axis=0)
    on_rows = centred[ROWS] @ centred[ROWS].T
    assert basis.vectors.shape == (65, 11)
    assert np.all(np.diff(basis.values) >= 0)
    np.testing.assert_allclose(basis.vectors.T @ basis.vectors, np.eye(11), atol=1e-10)
    np.testing.assert_allclose(basis.vectors.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((basis.vectors * basis.values) @ basis.vectors.T, on_rows, atol=1e-12)
    np.testing.assert_allclose(basis.trace, np.trace(on_rows))
    others = centred[~ROWS] @ centred[ROWS].T @ basis.vectors
    np.testing.assert_allclose(basis.towards(~ROWS), others, atol=1e-12)


def test_operators_from_a_thin_design_are_those_from_its_kernel(design: np.ndarray) -> None:
    (fold,) = outer_folds(RUNS, (1,), RowPolicy())
    exponents = np.linspace(-2, 5, 8)
    thin = make_operators(Design(design), fold, exponents, dtype=np.float64)
    whole = make_operators(design @ design.T, fold, exponents, dtype=np.float64)
    np.testing.assert_allclose(thin.alphas, whole.alphas, rtol=1e-12)
    np.testing.assert_allclose(thin.eigenvalues, whole.eigenvalues, rtol=1e-9)
    assert thin.inner_rows.tolist() == whole.inner_rows.tolist() == [[0, 30], [30, 65]]
    Y = np.random.default_rng(1).standard_normal((65, 3))

    def predicted(ops: object) -> np.ndarray:
        rotated = (Y.T @ ops.eigenvectors) / (ops.eigenvalues + ops.alphas[2])  # type: ignore[attr-defined]
        return np.asarray(rotated @ ops.test_operator.T)  # type: ignore[attr-defined]

    np.testing.assert_allclose(predicted(thin), predicted(whole), atol=1e-10)
    np.testing.assert_allclose(cross_validate(Y, thin), cross_validate(Y, whole), atol=1e-10)


def test_a_kernel_of_zeros_has_an_eigenvector_and_no_trace() -> None:
    for kernel in (Design(np.ones((N_TRS, 2))), Gram(np.zeros((N_TRS, N_TRS)))):
        basis = kernel.eigenbasis(ROWS)
        assert basis.trace == 0
        assert basis.vectors.shape == (65, 1)

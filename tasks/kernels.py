"""Kernels of a ridge fit and their eigenbases: from a Gram matrix, or from a design with few columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from hpcenc.tasks.gram import centre

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """What a kernel, centred on some rows, is on those rows and towards others.

    Attributes
    ----------
    vectors : array of shape (n_rows, rank)
        Eigenvectors with variance, orthogonal to the constant; at least one.
    values : array of shape (rank,)
        Their eigenvalues, rising.
    trace : float
        Of the kernel on the rows.
    towards : callable
        Kernel of other rows (a mask of all) against these, times the eigenvectors: (n_others, rank).
    """

    vectors: Doubles
    values: Doubles
    trace: float
    towards: Callable[[Mask], Doubles]


class Kernel(Protocol):
    """Inner products of the rows of a design."""

    def centred(self, rows: Mask) -> Doubles:
        """Kernel of features centred on some rows, of all rows against those, (n_trs, n_rows)."""

    def eigenbasis(self, rows: Mask) -> Eigenbasis:
        """Eigenbasis of the kernel centred on some rows."""


class Gram:
    """Kernel as a matrix; the way where the design has many columns.

    Parameters
    ----------
    values : array of shape (n_trs, n_trs), float64
    """

    def __init__(self, values: Doubles) -> None:
        self._values = values

    def centred(self, rows: Mask) -> Doubles:
        """See `Kernel.centred`."""
        return centre(self._values, rows)

    def eigenbasis(self, rows: Mask) -> Eigenbasis:
        """See `Kernel.eigenbasis`."""
        centred = self.centred(rows)
        on_rows = centred[rows]
        values, vectors = scipy.linalg.eigh(on_rows, driver="evd")
        values = np.maximum(values, 0)
        kept = _kept(values, len(values))
        basis = _orthogonal_to_constant(vectors[:, kept])
        return Eigenbasis(
            basis, values[kept], float(np.trace(on_rows)), lambda others: centred[others] @ basis
        )


class Design:
    """Kernel of a design with fewer columns than rows, which is never formed.

    A singular value decomposition of the design takes its columns' share of the time that an
    eigendecomposition of the kernel takes, and does not square what it decomposes.

    Parameters
    ----------
    columns : array of shape (n_trs, n_columns), float64
    """

    def __init__(self, columns: Doubles) -> None:
        self._columns = columns

    def centred(self, rows: Mask) -> Doubles:
        """See `Kernel.centred`."""
        centred = self._columns - self._columns[rows].mean(axis=0)
        kernel: Doubles = centred @ centred[rows].T
        return kernel

    def eigenbasis(self, rows: Mask) -> Eigenbasis:
        """See `Kernel.eigenbasis`."""
        centred = self._columns - self._columns[rows].mean(axis=0)
        on_rows = centred[rows]
        vectors, singular, loadings = scipy.linalg.svd(on_rows, full_matrices=False)
        values = singular[::-1] ** 2
        kept = _kept(values, len(on_rows))
        to_basis = loadings[::-1][kept].T * singular[::-1][kept]
        basis = _orthogonal_to_constant(vectors[:, ::-1][:, kept])
        trace = float(np.einsum("ij,ij->", on_rows, on_rows))
        return Eigenbasis(basis, values[kept], trace, lambda others: centred[others] @ to_basis)


def _kept(values: Doubles, n_rows: int) -> Mask:
    """Eigenvalues, rising, above rounding.

    That is the numerical rank of a kernel accumulated in float64. A threshold at float32's 1e-7 would cut
    components that the smallest alphas still use where the spectrum is steep.
    """
    kept: Mask = values > n_rows * np.finfo(np.float64).eps * values[-1]
    kept[-1] = True
    return kept


def _orthogonal_to_constant(vectors: Doubles) -> Doubles:
    return np.asarray(vectors - vectors.mean(axis=0))

"""The floor of a run: the flop that its recipe cannot do without, from the operators that it really made.

Matrix products and factorisations count, symmetric ones half. What is in double precision counts twice, for a
processor does half as many of these a second. Nothing else counts: reading and writing, sums along rows,
sorting, scores and the Fourier transforms of chance levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.array_folder import load_arrays
from hpcenc.storage.bold import find_bold, read_block, read_header
from hpcenc.storage.lagged import lag_features
from hpcenc.storage.layout import SCORES, fit_group, operators_folder
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.cv_choice import choose_by_forms
from hpcenc.tasks.cv_errors import FLOAT32_ALPHA, beyond_powers
from hpcenc.tasks.cv_forms import HEAD_PANEL, N_PILOT
from hpcenc.tasks.fitting import N_CHECK
from hpcenc.tasks.folds import RunRows, run_onsets
from hpcenc.tasks.forms import packed_size
from hpcenc.tasks.operators import FoldOperators, InnerOperators, from_arrays
from hpcenc.tasks.thin import thin_products
from hpcenc.tasks.zscoring import run_lengths, zscore_runs

PARTS = ("operators", "alphas", "refit", "weights")
"""Of a run; all but the first are the fits'."""

DOUBLE = 2
EIGH = 4 / 3 + 4 / 3 + 2
"""Times n ** 3: to tridiagonal form, divide and conquer, and back."""

N_SAMPLE = 1_000
"""Vertices whose exact forms are counted."""


def floor_flop(study: Study, feature_sets: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Flop of a study that has run, by part, and what of the recipe they follow from.

    The recipe is told for every feature set and outer fold, in a line each.
    """
    store = Store(study.store_path)
    onsets = run_onsets([RunRows(run.name, run.n_trs) for run in study.runs])
    flop = dict.fromkeys(PARTS, 0.0)
    recipe = []
    for feature_set in feature_sets:
        bold = _sample(study, study.subjects.ids[0])
        for fold, (ops, widths) in enumerate(_operators(store, feature_set, study.subjects.ids[0])):
            n_columns = len(study.fit.delays) * sum(widths)
            flop["operators"] += making_flop(ops, onsets, len(bold), widths, n_columns)
            alphas, told = choosing_flop(ops, study.fit.block, bold, onsets)
            recipe.append(f"{feature_set}, fold {fold + 1}: {told}")
            for subject in study.subjects.ids:
                group = fit_group(feature_set, subject)
                attributes = store.attributes_of(group)
                chosen = store.read(f"{group}/scores")[SCORES.index("alpha"), fold, 0]
                has_weights = attributes["weights"] == "primal" and fold in attributes["weight_folds"]
                flop["alphas"] += len(chosen) * alphas
                flop["refit"] += refit_flop(ops, chosen, has_weights)
                if has_weights:
                    flop["weights"] += len(chosen) * sum(
                        weighting_flop(len(bold), width, study.fit.delays, onsets, ops.train_rows)
                        for width in widths
                    )
    return flop, recipe


def _operators(
    store: Store, feature_set: str, subject: str
) -> Iterator[tuple[FoldOperators, tuple[int, ...]]]:
    """Operators of every outer fold, and the widths of the feature spaces behind them."""
    (variant,) = store.attributes_of(fit_group(feature_set, subject))["variants"]
    widths = tuple(space["n_features"] for space in variant["spaces"])
    for group in variant["operators"]:
        folder = operators_folder(store.path, store.attributes_of(group)["digest"])
        yield from_arrays(load_arrays(folder)), widths


def _sample(study: Study, subject: str) -> NDArray[np.float32]:
    """BOLD of a subject's first vertices, (n_trs, n_sample)."""
    headers = [read_header(find_bold(study.bold.path, study.folder, subject, run.name)) for run in study.runs]
    return np.concatenate([read_block(header, slice(0, N_SAMPLE)) for header in headers])


def making_flop(
    ops: FoldOperators, onsets: Sequence[int], n_trs: int, widths: Sequence[int], n_columns: int
) -> float:
    """Of the operators of one outer fold."""
    n_train, rank = ops.eigenvectors.shape
    gram = sum(n_trs**2 * width for width in widths)
    flop = DOUBLE * (gram + EIGH * n_train**3 + 2 * len(ops.test_rows) * n_train * rank)
    if ops.fast is None:
        return flop + sum(_making_inner(inner, n_columns) for inner in ops.inner) + _making_thin(ops)
    forms = ops.fast.forms
    n_head, n_alphas, n_packed = forms.head.shape[1], len(ops.alphas), packed_size(n_train)
    n_vals = run_lengths(ops.train_rows, onsets)
    if ops.alphas[-1] >= ops.eigenvalues[-1]:
        flop += 2 * n_train**2 * rank  # the kernel and its square, for large alphas
    for alpha in ops.alphas:
        precision = DOUBLE if alpha < FLOAT32_ALPHA * ops.eigenvalues.max() else 1
        flop += precision * n_train**2 * _smoother_rank(ops.eigenvalues / alpha)
        for n_val in n_vals:
            n_others = n_train - n_val
            flop += DOUBLE * n_val**3 + precision * 2 * n_val**2 * n_others + n_val * n_others**2
        flop += 4 * n_train**2 * len(n_vals)
        flop += 2 * n_head * n_train**2 + 6 * n_head**2 * n_train + 2 * n_packed * (n_head + N_PILOT)
    # One fold's form of the smallest alpha is held against solving it.
    flop += DOUBLE * (n_train - max(n_vals)) ** 3 / 3
    n_coarse = len(forms.coarse) // n_packed
    pairs = 2 * n_alphas**2 * (DOUBLE * n_head * n_train + n_packed)
    return flop + pairs + 2 * n_coarse * n_alphas * n_packed


def _smoother_rank(ratios: NDArray[np.float64]) -> int:
    """Inner dimension of the product of one alpha's smoother, from eigenvalues over alpha."""
    return len(ratios) if ratios[-1] > 1 else int(np.count_nonzero(beyond_powers(ratios)))


def _making_inner(inner: InnerOperators, n_columns: int) -> float:
    n_training, n_val, n_basis = len(inner.train_rows), len(inner.val_rows), inner.coefficients.shape[1]
    rank = min(n_training - 1, n_columns)
    through = 2 * n_training * rank * n_basis * n_val
    return DOUBLE * (EIGH * n_training**3 + 2 * n_val * n_training * rank) + through


def _making_thin(ops: FoldOperators) -> float:
    """Kernels of the other rows and of the fold's, an eigendecomposition, the forms and their products."""
    n_train, rank = ops.eigenvectors.shape
    flop = 0.0
    for (start, stop), thin in zip(ops.inner_rows.tolist(), ops.thin, strict=False):
        n_alphas, n_basis = thin.mixtures.shape
        rows = n_train + (stop - start)
        flop += DOUBLE * (EIGH * rank**3 + 2 * rank**2 * (rows + n_alphas * (n_alphas + n_basis)))
    return flop


def choosing_flop(
    ops: FoldOperators, block: int, bold: NDArray[np.float32], onsets: Sequence[int]
) -> tuple[float, str]:
    """Per vertex: of its alpha, by a count on a sample of them, and what was counted."""
    if ops.fast is None:
        flop = sum(_choosing_inner(inner) for inner in ops.inner)
        sizes = sorted({inner.coefficients.shape[1] for inner in ops.inner})
        if not ops.thin:
            return flop, f"exact, {' or '.join(map(str, sizes))} filters"
        rank, sizes = ops.eigenvectors.shape[1], sorted({thin.mixtures.shape[1] for thin in ops.thin})
        for (start, stop), thin in zip(ops.inner_rows.tolist(), ops.thin, strict=True):
            n_alphas, n_basis = thin.mixtures.shape
            flop += 2 * thin_products(rank, stop - start, n_basis, n_alphas) + DOUBLE * 2 * n_alphas * (
                rank + n_basis
            )
        return flop, f"exact, {' or '.join(map(str, sizes))} forms of {rank} coordinates"
    forms = ops.fast.forms
    n_train, n_head = forms.head.shape
    n_alphas, n_packed = len(ops.alphas), packed_size(n_train)
    n_coarse = len(forms.coarse) // n_packed
    training, _ = zscore_runs(bold[ops.train_rows], run_lengths(ops.train_rows, onsets))
    n_exact = choose_by_forms(np.ascontiguousarray(training.T), forms).n_exact
    head = 2 * n_train * n_head + 2 * (n_alphas - 1) * packed_size(n_head, HEAD_PANEL)
    deviation = DOUBLE * 2 * n_head * n_alphas**2
    check = min(1, N_CHECK / block)
    flop = (1 + check) * head + deviation
    flop += 2 * n_packed * (n_coarse + n_exact + check * (n_alphas - 1))
    return flop, f"fast, {n_coarse} coarse forms and {n_exact:.2f} exact ones a vertex"


def _choosing_inner(inner: InnerOperators) -> float:
    n_alphas, n_basis = inner.coefficients.shape
    n_val = len(inner.val_rows)
    return (
        2 * inner.operator.size
        + 2 * n_val * (n_basis**2 + n_basis)
        + DOUBLE * 2 * n_alphas * (n_basis**2 + n_basis)
    )


def refit_flop(ops: FoldOperators, chosen: NDArray[np.float32], want_dual: bool) -> float:
    """Of all vertices of a subject: by one matrix an alpha, or through the eigenvectors and back."""
    n_train, rank = ops.eigenvectors.shape
    n_test = len(ops.test_rows)
    rotated = 2 * rank * (n_train + n_test)
    if ops.fast is None:
        return len(chosen) * (rotated + (2 * rank * n_train if want_dual else 0))
    n_indirect = len(ops.alphas) - len(ops.fast.duals)
    # The store has alphas in float32; the grid is far coarser.
    largest = 1.01 * ops.alphas[n_indirect - 1] if n_indirect else 0.0
    n_small = int(np.count_nonzero(chosen < largest))
    direct = 2 * n_train * (n_train + n_test)
    return n_small * (rotated + 2 * rank * n_train) + (len(chosen) - n_small) * direct


def weighting_flop(
    n_trs: int, width: int, delays: Sequence[int], onsets: Sequence[int], train_rows: NDArray[np.intp]
) -> float:
    """Per vertex: of the weights of one space."""
    one = lag_features(np.zeros((n_trs, 1), np.float32), delays, onsets, train_rows)
    n_pieces = one.products.shape[2]
    return 2 * width * (one.products.size + one.to_delays.size) + 2 * one.to_products.size * n_pieces

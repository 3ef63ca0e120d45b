"""Alphas by the forms of cross-validation: coarse scores, and exact ones where those do not decide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from hpcenc.tasks.cv_forms import CvForms, from_steps, head_and_tail, score_deviation
from hpcenc.tasks.forms import quadratic_forms

Array = Any
"""An array of NumPy, torch or another library of the array API."""
Precision = Callable[[], AbstractContextManager[Any]]
"""Gives a context in which a library may multiply with fewer digits; `nullcontext` where it may not."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Chosen alphas.

    Attributes
    ----------
    alpha_index : array of shape (n_voxels,), int64
    n_exact : float
        Exact forms that were needed, a voxel.
    """

    alpha_index: Array
    n_exact: float


def choose_by_forms(Y: Array, forms: CvForms, coarsely: Precision = nullcontext) -> Choice:
    """Place of every voxel's best alpha in the grid; ties go to the larger alpha.

    A coarse score finds a best alpha and how far it may be off. Every alpha that it cannot tell from the best
    one, and all between those, are compared by their exact scores.

    Parameters
    ----------
    Y : array of shape (n_voxels, n_train)
        BOLD of the training rows, z-scored per run.
    forms : CvForms
        Of the library, device and dtype of `Y`.
    coarsely : callable
        Gives the context for products that need few digits: those of the coarse scores.
    """
    xp = array_namespace(Y)
    small, head_squares, tail_energy = head_and_tail(Y, forms.head, forms.head_steps, forms.tail_steps)
    with coarsely():
        coarse = quadratic_forms(Y, forms.coarse)
    rest = xp.matmul(coarse, xp.matrix_transpose(forms.coarse_weights))
    cost = small + rest
    winner = last_argmin(cost)
    deviation = score_deviation(head_squares, tail_energy, forms.cross_grams, forms.tail_gram, winner)
    undecided = cost - xp.min(cost, axis=1, keepdims=True) <= forms.margin * deviation

    # The winner is undecided against itself, so every row has a first and a last one.
    n_alphas = cost.shape[1]
    marks = xp.astype(undecided, xp.int64)
    first = xp.argmax(marks, axis=1)
    last = n_alphas - 1 - xp.argmax(xp.flip(marks, axis=1), axis=1)
    steps, n_exact = small[:, :-1] - small[:, 1:], 0
    for alpha in range(n_alphas - 1):
        wanted = xp.logical_and(first <= alpha, alpha < last)
        values, count = _where(wanted, Y, forms.steps[alpha, :])
        steps[:, alpha] += values
        n_exact += count

    places = xp.arange(n_alphas, device=device(Y))[None, :]
    outside = xp.logical_or(places < first[:, None], places > last[:, None])
    chain = xp.where(outside[:, 1:], xp.zeros_like(steps), steps)
    cost = xp.where(outside, xp.full_like(cost, float("inf")), from_steps(chain))
    return Choice(last_argmin(cost), n_exact / Y.shape[0])


def exact_choice(Y: Array, forms: CvForms) -> Array:
    """The same, with the exact scores of all alphas.

    Returns
    -------
    array of shape (n_voxels,), int64
    """
    return last_argmin(exact_costs(Y, forms))


def exact_costs(Y: Array, forms: CvForms) -> Array:
    """Squared error of every alpha in the inner folds, less that of the largest one.

    Returns
    -------
    array of shape (n_voxels, n_alphas), float64
        Mean over rows, then over folds.
    """
    small, _, _ = head_and_tail(Y, forms.head, forms.head_steps, forms.tail_steps)
    steps = small[:, :-1] - small[:, 1:]
    for alpha in range(forms.steps.shape[0]):
        steps[:, alpha] += quadratic_forms(Y, forms.steps[alpha, :])[:, 0]
    return from_steps(steps)


def last_argmin(values: Array) -> Array:
    """Place of the smallest value of each row, the last of equals."""
    xp = array_namespace(values)
    backwards = xp.argmin(xp.flip(values, axis=1), axis=1)
    return values.shape[1] - 1 - xp.astype(backwards, xp.int64)


def _where(wanted: Array, Y: Array, form: Array) -> tuple[Array, int]:
    """One form of the voxels that are wanted, 0 of the others; and how many those are."""
    xp = array_namespace(Y)
    count = int(xp.sum(xp.astype(wanted, xp.int64)))
    zeros = xp.zeros_like(wanted, dtype=xp.float64)
    if count == 0:
        return zeros, 0
    order = xp.argsort(xp.astype(wanted, xp.int64), descending=True, stable=True)
    values = quadratic_forms(xp.take(Y, order[:count], axis=0), form)[:, 0]
    return xp.take(xp.concat([values, zeros[count:]]), xp.argsort(order), axis=0), count

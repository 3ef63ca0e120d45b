"""The same fit by other libraries, each as fast as its documentation and some trials made it.

All take BOLD as ``(n_trs, n_vertices)`` in C order, standardised, and the explicit FIR design.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clock import Clock
from problem import Problem, pearson, spans


@dataclass(frozen=True)
class Fitted:
    """What every solver gives.

    Attributes
    ----------
    choice : array of int, shape (n_vertices,)
        Place in the grid of alphas (of fractions for fracridge).
    r : array of shape (n_vertices,)
        Pearson r over the test rows.
    weights : list of arrays of shape (n_delays * n_features, some vertices)
        One after the other: a solver that gives them in parts need not join them.
    """

    choice: NDArray
    r: NDArray
    weights: list[NDArray]


def himalaya(problem: Problem, bold: NDArray, clock: Clock, dtype: type = np.float32) -> Fitted:
    """KernelRidgeCV on NumPy, with the fastest of three batch settings."""
    from himalaya.kernel_ridge import KernelRidgeCV
    from sklearn.model_selection import PredefinedSplit

    train, test, bold_train, bold_test = _split(problem, bold.astype(dtype, copy=False), clock, dtype)
    with clock("fit"):
        model = KernelRidgeCV(
            alphas=problem.alphas,
            kernel="linear",
            cv=PredefinedSplit(problem.validation_run),
            fit_intercept=True,
            solver_params={"n_targets_batch": 1000, "n_alphas_batch": 20, "n_targets_batch_refit": 250},
            warn=False,
        ).fit(train, bold_train)
    with clock("predict"):
        r = pearson(model.predict(test), bold_test)
    with clock("weights"):
        weights = model.get_primal_coef()
    return Fitted(_places(problem.alphas, model.best_alphas_), r, [weights])


def ridgecv(problem: Problem, bold: NDArray, clock: Clock, n_batches: int = 1) -> Fitted:
    """scikit-learn's RidgeCV with an alpha per vertex.

    That is possible by leave-one-row-out only, so its choice is another one; it casts to float64 itself.
    With several batches it is the scheme of B-MOR (Ahmadi et al. 2024): each batch of vertices is a task of
    its own, and factorises the design again.
    """
    from sklearn.linear_model import RidgeCV

    train, test, bold_train, bold_test = _split(problem, bold, clock)
    n_vertices = bold.shape[1]
    choice, r = np.empty(n_vertices, int), np.empty(n_vertices)
    weights = np.empty((train.shape[1], n_vertices), np.float32)
    for batch in spans(0, n_vertices, -(-n_vertices // n_batches)):
        inside = slice(*batch)
        with clock("fit"):
            model = RidgeCV(problem.alphas, alpha_per_target=True).fit(train, bold_train[:, inside])
        with clock("predict"):
            r[inside] = pearson(model.predict(test), bold_test[:, inside])
        with clock("weights"):
            weights[:, inside] = model.coef_.T
        choice[inside] = _places(problem.alphas, model.alpha_)
    return Fitted(choice, r, [weights])


def ridge_loop(problem: Problem, bold: NDArray, clock: Clock) -> Fitted:
    """scikit-learn's Ridge for every fold and alpha, then once for each group of vertices of one alpha.

    The scheme of studies that fit chunks of vertices in a loop; one chunk here.
    """
    from sklearn.linear_model import Ridge

    train, test, bold_train, bold_test = _split(problem, bold, clock)
    error = np.zeros((len(problem.alphas), bold.shape[1]))
    with clock("choose"):
        for is_val in _validation_masks(problem):
            inner, inner_bold, held_out = train[~is_val], bold_train[~is_val], train[is_val]
            for place, alpha in enumerate(problem.alphas):
                predicted = Ridge(alpha).fit(inner, inner_bold).predict(held_out)
                error[place] += np.mean((predicted - bold_train[is_val]) ** 2, axis=0)
        choice = len(error) - 1 - np.argmin(error[::-1], axis=0)  # ties go to the larger alpha
    r, weights = np.empty(bold.shape[1]), np.empty((train.shape[1], bold.shape[1]), np.float32)
    with clock("refit"):
        for place in np.unique(choice):
            chosen = choice == place
            model = Ridge(problem.alphas[place]).fit(train, bold_train[:, chosen])
            # A single vertex comes back without its axis.
            weights[:, chosen] = model.coef_.reshape(-1, train.shape[1]).T
            r[chosen] = pearson(model.predict(test).reshape(len(test), -1), bold_test[:, chosen])
    return Fitted(choice, r, [weights])


FRACTIONS = np.geomspace(0.001, 1, 20)
"""Of the length of a solution that fits more columns than rows exactly: the best ones are far below 1."""


def fracridge(problem: Problem, bold: NDArray, clock: Clock) -> Fitted:
    """fracridge with 20 fractions in place of the alphas.

    In float64: in float32 the direction that centring takes from the design would be the longest part of the
    least-squares solution, which the fractions are relative to. scipy's SVD, for numba's would be compiled
    within the time that is measured.
    """
    from fracridge import fracridge as solve

    train, test, bold_train, bold_test = _split(problem, bold.astype(np.float64), clock, np.float64)
    error = np.zeros((len(FRACTIONS), bold.shape[1]))
    with clock("choose"):
        for is_val in _validation_masks(problem):
            mean, bold_mean = train[~is_val].mean(axis=0), bold_train[~is_val].mean(axis=0)
            weights, _ = solve(train[~is_val] - mean, bold_train[~is_val] - bold_mean, FRACTIONS, jit=False)
            predicted = np.tensordot(train[is_val] - mean, weights, 1) + bold_mean
            error += np.mean((predicted - bold_train[is_val][:, None]) ** 2, axis=0)
        choice = np.argmin(error, axis=0)
    with clock("refit"):
        weights, _ = solve(train, bold_train - bold_train.mean(axis=0), FRACTIONS, jit=False)
        weights = weights[:, choice, np.arange(bold.shape[1])]
        r = pearson(test @ weights, bold_test)
    return Fitted(choice, r, [weights])


@dataclass(frozen=True)
class Peer:
    """A solver and the module that has to be installed for it."""

    module: str
    fit: Callable[[Problem, NDArray, Clock], Fitted]


PEERS = {
    "himalaya": Peer("himalaya.kernel_ridge", himalaya),
    "himalaya-float64": Peer("himalaya.kernel_ridge", functools.partial(himalaya, dtype=np.float64)),
    "ridgecv": Peer("sklearn.linear_model", ridgecv),
    "b-mor": Peer("sklearn.linear_model", functools.partial(ridgecv, n_batches=8)),
    "ridge-loop": Peer("sklearn.linear_model", ridge_loop),
    "fracridge": Peer("fracridge", fracridge),
}
"""By the name that jobs use; B-MOR's eight batches are the eight nodes of its largest published run."""


def _split(
    problem: Problem, bold: NDArray, clock: Clock, dtype: type = np.float32
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    with clock("design"):
        train, test = problem.design(dtype)
        return train, test, bold[problem.fold.train], bold[problem.fold.test]


def _validation_masks(problem: Problem) -> Iterator[NDArray[np.bool_]]:
    for run in np.unique(problem.validation_run):
        yield problem.validation_run == run


def _places(alphas: NDArray, chosen: NDArray) -> NDArray:
    """Places of chosen alphas, which some solvers give back in float32."""
    return np.argmin(np.abs(np.log(alphas)[:, None] - np.log(chosen.astype(np.float64))), axis=0)

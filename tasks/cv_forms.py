"""Cross-validation scores as quadratic forms of BOLD, made once for all subjects.

The held-out residual of an inner fold is linear in the BOLD of all training rows. So the squared error of a
voxel at one alpha, over all folds, is one quadratic form ``y' M y``. Taken against the null model, in which
each fold is predicted by the mean of the others, it is ``y' D y`` with ``D = M - M_null``. D is split by the
leading eigenvectors of the kernel, the head: a small form on the head; outside it a constant, the mean of D
there; and a rest. The rests of all alphas share a few coarse forms. What these leave over says how far a
coarse score may be off; alphas that it leaves undecided are compared by their exact rests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray
from scipy.linalg import blas

from hpcenc.tasks.cv_errors import Smoothers, error_form
from hpcenc.tasks.forms import (
    VOXELS_AT_ONCE,
    inner_products,
    interleave,
    pack,
    pack_less_product,
    packed_size,
    quadratic_forms,
)

Array = Any
"""An array of NumPy, torch or another library of the array API."""
Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

N_HEAD = 256
"""Leading eigenvectors that are split off, at most."""

HEAD_PANEL = 64
"""Columns of a panel of the head's forms."""

MIN_MARGIN = 12.0
"""Standard deviations of a coarse score that decide, at least: errors have heavy tails."""

MAX_COARSE = 10
"""Coarse forms, at most."""

N_PILOT = 256
"""Simulated voxels that the coarse forms are chosen by."""


@dataclass(frozen=True, eq=False)
class CvForms:
    """Forms of one outer fold, over its training rows; BOLD has mean zero.

    Attributes
    ----------
    head : array of shape (n_train, n_head)
        Leading eigenvectors of the centred training kernel.
    head_steps : array, packed forms of size n_head
        Head part of each alpha but the last, minus that of the next alpha. All is kept relative to the
        next alpha, so that nearly equal scores are compared without cancellation.
    tail_steps : array of shape (n_alphas - 1,), float64
        The same of the constant outside the head.
    coarse : array, packed forms of size n_train
    coarse_weights : array of shape (n_alphas, n_coarse), float64
        Rest of each alpha from the coarse forms.
    steps : array of shape (n_alphas - 1, packed_size(n_train))
        Exact rest of each alpha but the last, minus that of the next alpha.
    cross_grams : array of shape (n_head, n_alphas, n_alphas), float64
        Inner products of what the coarse forms leave over of the rests, between each component of the head
        and what is outside.
    tail_gram : array of shape (n_alphas, n_alphas), float64
        The same outside the head.
    margin : array of shape (), float64
        Standard deviations of a coarse score that decide between two alphas.
    """

    head: Array
    head_steps: Array
    tail_steps: Array
    coarse: Array
    coarse_weights: Array
    steps: Array
    cross_grams: Array
    tail_gram: Array
    margin: Array


def make_cv_forms(
    eigenvectors: Doubles,
    eigenvalues: Doubles,
    alphas: Doubles,
    fold_spans: Sequence[tuple[int, int]],
    look: Callable[[int, Floats], None] = lambda place, smoother: None,
    seed: int = 0,
) -> CvForms:
    """Forms of one outer fold.

    Parameters
    ----------
    eigenvectors : array of shape (n_train, rank)
        Of the centred training kernel, orthogonal to the constant; eigenvalues rise.
    eigenvalues : array of shape (rank,)
    alphas : array of shape (n_alphas,)
        Rising.
    fold_spans : sequence of (start, stop)
        Training rows that each inner fold holds out; together all of them.
    look : callable
        Is shown the place of each alpha and its smoother, as `error_form` takes it.
    seed : int
        Of the simulated voxels; it decides costs, not choices.

    Returns
    -------
    CvForms
        Of NumPy arrays, float32 but for the small ones.
    """
    n_train = len(eigenvectors)
    n_head = min(N_HEAD, max(1, eigenvectors.shape[1] // 3))
    head = eigenvectors[:, ::-1][:, :n_head].astype(np.float32)
    n_tail = n_train - 1 - n_head

    rests = np.empty((len(alphas), packed_size(n_train)), np.float32)
    heads = np.empty((len(alphas), n_head, n_head))
    crosses = np.empty((len(alphas), n_train, n_head), np.float32)
    tails = np.empty(len(alphas))
    smoothers = Smoothers(eigenvectors, eigenvalues)
    for place, alpha in enumerate(alphas):
        smoother = smoothers.at(alpha)
        look(place, smoother)
        form = error_form(smoother, fold_spans)
        on_head = blas.ssymm(1.0, form, head)
        heads[place] = head.T @ on_head
        tails[place] = (np.trace(form, dtype=np.float64) - np.trace(heads[place])) / n_tail
        crosses[place] = on_head - head @ heads[place].astype(np.float32)
        diagonal = np.einsum("ii->i", form)
        diagonal -= tails[place].astype(np.float32)
        inside = heads[place] - tails[place] * np.eye(n_head)
        rests[place] = pack_less_product(form, head @ inside.astype(np.float32), head)

    by_component = crosses.transpose(2, 0, 1).astype(np.float64)
    cross_grams = by_component @ by_component.transpose(0, 2, 1)
    # The constant of the tail counts the mean too, which BOLD does not have: one in thousands.
    tail_gram = inner_products(rests, n_train) - 2 * cross_grams.sum(axis=0)
    head_steps = heads[:-1] - heads[1:]
    tail_steps = tails[:-1] - tails[1:]

    packed_heads = pack(head_steps.astype(np.float32), HEAD_PANEL)

    bold = _simulated(eigenvectors, eigenvalues, alphas, fold_spans, np.random.default_rng(seed))
    small, head_squares, tail_energy = head_and_tail(bold, head, packed_heads, tail_steps)
    rest = np.concatenate([quadratic_forms(bold, form) for form in rests], axis=1)
    pilot = _Pilot(head_squares, tail_energy, small, rest)
    basis = _coarse_basis(pilot, cross_grams, tail_gram)
    coarse = interleave(basis.mixtures.astype(np.float32) @ rests, n_train)
    steps = rests  # in their place: hundreds of megabytes
    for place in range(len(alphas) - 1):
        steps[place] -= rests[place + 1]
    return CvForms(
        head=head,
        head_steps=packed_heads,
        tail_steps=tail_steps,
        coarse=coarse,
        coarse_weights=basis.weights,
        steps=steps[:-1],
        cross_grams=basis.left_over(cross_grams),
        tail_gram=basis.left_over(tail_gram),
        margin=np.array(basis.margin),
    )


def head_and_tail(Y: Array, head: Array, head_steps: Array, tail_steps: Array) -> tuple[Array, Array, Array]:
    """The cheap part of every alpha's cost.

    Parameters
    ----------
    Y : array of shape (n_voxels, n_train)
        BOLD of the training rows, with mean zero.
    head, head_steps, tail_steps : array
        As in `CvForms`.

    Returns
    -------
    small : array of shape (n_voxels, n_alphas), float64
        Cost of each alpha, without its rest, less that of the last alpha.
    head_squares : array of shape (n_voxels, n_head), float64
    tail_energy : array of shape (n_voxels,), float64
        Mean square outside the head.
    """
    xp = array_namespace(Y)
    on_head = xp.matmul(Y, head)
    head_squares = xp.astype(on_head, xp.float64) ** 2
    tail_square = xp.clip(xp.astype(xp.vecdot(Y, Y), xp.float64) - xp.sum(head_squares, axis=1), 0)
    steps = quadratic_forms(on_head, head_steps, HEAD_PANEL) + tail_square[:, None] * tail_steps
    return from_steps(steps), head_squares, tail_square / (Y.shape[1] - 1 - on_head.shape[1])


def from_steps(steps: Array) -> Array:
    """Costs less that of the last alpha, from the differences of neighbours: one more column."""
    xp = array_namespace(steps)
    last = xp.zeros((steps.shape[0], 1), dtype=steps.dtype, device=device(steps))
    from_last = xp.concat([last, xp.flip(steps, axis=1)], axis=1)
    return xp.flip(xp.cumulative_sum(from_last, axis=1), axis=1)


def score_deviation(
    head_squares: Array, tail_energy: Array, cross_grams: Array, tail_gram: Array, winner: Array
) -> Array:
    """Standard deviation of what the coarse forms leave over, of every alpha against one.

    For BOLD that has these squares on the head, and is as spread out as noise outside it.

    Parameters
    ----------
    head_squares : array of shape (n_voxels, n_head)
    tail_energy : array of shape (n_voxels,)
    cross_grams : array of shape (n_head, n_alphas, n_alphas)
        Of what is left over, as in `CvForms`.
    tail_gram : array of shape (n_alphas, n_alphas)
    winner : array of int, shape (n_voxels,)
        The alpha that the others are compared with.

    Returns
    -------
    array of shape (n_voxels, n_alphas), float64
    """
    xp = array_namespace(head_squares)
    n_voxels, n_alphas = head_squares.shape[0], tail_gram.shape[0]
    by_component = xp.reshape(_squared_distances(cross_grams), (-1, n_alphas**2))
    cross = []
    for start in range(0, n_voxels, VOXELS_AT_ONCE):
        part = slice(start, min(start + VOXELS_AT_ONCE, n_voxels))
        pairs = xp.reshape(xp.matmul(head_squares[part, :], by_component), (-1, n_alphas, n_alphas))
        to_winner = xp.broadcast_to(winner[part, None, None], (pairs.shape[0], 1, n_alphas))
        cross.append(xp.take_along_axis(pairs, to_winner, axis=1)[:, 0, :])
    tail = xp.take(_squared_distances(tail_gram), winner, axis=0)
    variance = 4 * tail_energy[:, None] * xp.concat(cross) + 2 * (tail_energy**2)[:, None] * tail
    return xp.sqrt(xp.clip(variance, 0))


def _squared_distances(gram: Array) -> Array:
    xp = array_namespace(gram)
    squares = xp.linalg.diagonal(gram)
    return squares[..., :, None] + squares[..., None, :] - 2 * gram


@dataclass(frozen=True, eq=False)
class _CoarseBasis:
    """Coarse forms as mixtures of the rests.

    Attributes
    ----------
    scale : array of shape (n_alphas,)
        How precise the score of each alpha must be.
    vectors : array of shape (n_alphas, n_coarse)
        Orthonormal: a rest is about ``scale[a] * sum_i vectors[a, i] * coarse_i``.
    margin : float
    """

    scale: Doubles
    vectors: Doubles
    margin: float

    @property
    def weights(self) -> Doubles:
        """Rest of each alpha from the coarse forms, (n_alphas, n_coarse)."""
        return self.scale[:, None] * self.vectors

    @property
    def mixtures(self) -> Doubles:
        """Coarse forms from the rests, (n_coarse, n_alphas)."""
        return (self.vectors / self.scale[:, None]).T

    def left_over(self, gram: Doubles) -> Doubles:
        """Inner products of what the coarse forms leave over of the rests."""
        left = np.eye(len(self.scale)) - self.weights @ self.mixtures
        return left @ gram @ left.T


def _coarse_basis(pilot: _Pilot, cross_grams: Doubles, tail_gram: Doubles) -> _CoarseBasis:
    """Few mixtures that decide most voxels, chosen on simulated ones.

    An alpha that hardly ever wins needs little precision: its scale is the gap between its score and the
    best one, for all but a hundredth of the voxels. The steps of the alpha grid are another: a difference
    smaller than the grid's own curvature decides nothing.
    """
    squares = np.median(pilot.head_squares * pilot.tail_energy[:, None], axis=0)
    gram = 4 * np.tensordot(squares, cross_grams, 1) + 2 * np.median(pilot.tail_energy**2) * tail_gram
    n_alphas = len(gram)
    gap = pilot.cost - pilot.cost.min(axis=1, keepdims=True)
    scale = 0.3 * np.quantile(gap, 0.01, axis=0)
    if n_alphas > 2:
        bend = np.diff(np.eye(n_alphas), 2, axis=0)
        curvature = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", bend, gram, bend), 0))
        scale = np.maximum(scale, np.pad(curvature, 1, mode="edge"))
    scale[scale == 0] = 1
    vectors = np.linalg.eigh(gram / np.outer(scale, scale))[1][:, ::-1]
    priced = [
        _priced(_CoarseBasis(scale, vectors[:, :n_coarse], MIN_MARGIN), pilot, cross_grams, tail_gram)
        for n_coarse in range(min(MAX_COARSE + 1, n_alphas))
    ]
    return min(priced, key=lambda found: found[0])[1]


def _priced(
    basis: _CoarseBasis, pilot: _Pilot, cross_grams: Doubles, tail_gram: Doubles
) -> tuple[float, _CoarseBasis]:
    """Forms that a voxel costs with this basis, and the basis with the margin that the pilot's errors ask."""
    coarse = pilot.small + pilot.rest @ basis.mixtures.T @ basis.weights.T
    winner = coarse.argmin(axis=1)
    left_over = basis.left_over(cross_grams), basis.left_over(tail_gram)
    deviation = score_deviation(pilot.head_squares, pilot.tail_energy, *left_over, winner)
    gap = coarse - coarse.min(axis=1, keepdims=True)
    exact = pilot.cost - np.take_along_axis(pilot.cost, winner[:, None], axis=1)
    errors = np.divide(np.abs(gap - exact), deviation, out=np.zeros_like(gap), where=deviation > 0)
    margin = max(MIN_MARGIN, 1.5 * float(errors.max()))
    undecided = gap <= margin * deviation
    n_steps = np.ptp(np.where(undecided, np.arange(len(basis.scale)), winner[:, None]), axis=1)
    return basis.vectors.shape[1] + 1.3 * float(n_steps.mean()), replace(basis, margin=margin)


@dataclass(frozen=True, eq=False)
class _Pilot:
    """Simulated voxels and their exact costs.

    Attributes
    ----------
    head_squares : array of shape (n_pilot, n_head)
    tail_energy : array of shape (n_pilot,)
        As `head_and_tail` gives them.
    small : array of shape (n_pilot, n_alphas)
        Cost of each alpha less that of the last, without the rests.
    rest : array of shape (n_pilot, n_alphas)
    """

    head_squares: Doubles
    tail_energy: Doubles
    small: Doubles
    rest: Doubles

    @property
    def cost(self) -> Doubles:
        """Squared error of each alpha, up to a constant."""
        return self.small + self.rest


def _simulated(
    eigenvectors: Doubles,
    eigenvalues: Doubles,
    alphas: Doubles,
    spans: Sequence[tuple[int, int]],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """BOLD of voxels that follow the features in as many ways as there are alphas, z-scored per run.

    Signals with the covariance of the kernel's leading components, from few to all, at the strength for which
    an alpha is the best one; autoregressive noise from white to slow; a third are noise.
    """
    from scipy.signal import lfilter  # half a second, and every plan reads this module

    n_train, rank = eigenvectors.shape
    signal = np.zeros((N_PILOT, n_train))
    noise = np.empty_like(signal)
    for voxel in range(N_PILOT):
        if voxel % 3:
            n_components = int(np.exp(rng.uniform(np.log(min(8, rank)), np.log(rank))))
            leading = slice(rank - n_components, rank)
            strength = np.sqrt(eigenvalues[leading] / rng.choice(alphas))
            signal[voxel] = eigenvectors[:, leading] @ (strength * rng.standard_normal(n_components))
        noise[voxel] = lfilter([1], [1, -rng.uniform(0, 0.9)], rng.standard_normal(n_train))
    bold = signal + noise / noise.std(axis=1, keepdims=True)
    for start, stop in spans:
        run = bold[:, start:stop]
        run -= run.mean(axis=1, keepdims=True)
        run /= run.std(axis=1, keepdims=True)
    simulated: NDArray[np.float32] = bold.astype(np.float32)
    return simulated

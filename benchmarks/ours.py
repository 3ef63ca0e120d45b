"""hpcenc's own fit, by the calls that its fit tasks make."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clock import Clock
from hpcenc.storage.array_folder import load_arrays, save_arrays
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.lagged import lag_features, lagged_products
from hpcenc.storage.layout import SHARD_VOXELS
from hpcenc.storage.store import Store
from hpcenc.tasks.at_hand import SUB_BLOCK
from hpcenc.tasks.fitting import N_CHECK, fit_arrays
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.operators import FoldOperators, from_arrays, make_operators, to_arrays
from hpcenc.tasks.ridge import choose_alphas, fit_block
from hpcenc.tasks.zscoring import run_lengths, zscore_runs
from job import Job
from peers import Fitted
from problem import EXPONENTS, Problem, spans

WeightSink = Callable[[slice, NDArray[np.float32]], None]


def fit(problem: Problem, job: Job, first: int, last: int, clock: Clock, sink: WeightSink) -> Fitted:
    """Fit vertices ``[first, last)``: operators, then block by block, shard by shard.

    `sink` takes the weights; the result has none.
    """
    ops, delays = _operators(problem, job, clock)
    with clock("weights"):
        features = lag_features(problem.features, delays, problem.onsets, ops.train_rows)
    choice, r = [], []
    for start, stop in spans(first, last, job.block or last - first):
        with clock("read"):
            bold = problem.bold(start, stop)
        with clock("fit"):
            found = fit_block(bold, ops, problem.onsets, True, SUB_BLOCK, N_CHECK)
        for shard in spans(0, stop - start, SHARD_VOXELS):
            with clock("weights"):
                weights = lagged_products(features, found.dual[:, slice(*shard)])
            with clock("write"):
                sink(slice(start + shard[0], start + shard[1]), weights)
        choice.append(found.alpha_index)
        r.append(found.r)
    return Fitted(np.concatenate(choice), np.concatenate(r), [])


def choose(problem: Problem, job: Job, first: int, last: int, clock: Clock) -> dict[str, Any]:
    """Choose alphas as `fit` does, and measure what share of the machine's sgemm rate that reaches.

    Returns
    -------
    dict
        ``gemm_flop``, of the products with the stacked operators alone: what the stage does beside counts as
        overhead. ``peak_cpu`` and ``peak_wall``, flop per second of the best of six large products, three
        before and three after.
    """
    ops, _ = _operators(problem, job, clock)
    bold = problem.bold(first, last)
    lengths = run_lengths(ops.train_rows, problem.onsets)
    peaks = [_sgemm_rate(problem.n_train) for _ in range(3)]
    for sub_block in spans(0, last - first, 500):
        training, _ = zscore_runs(bold[ops.train_rows, slice(*sub_block)], lengths)
        with clock("choose"):
            choose_alphas(training, ops)
    peaks += [_sgemm_rate(problem.n_train) for _ in range(3)]
    cpu, wall = np.max(peaks, axis=0)
    flop = 2 * (last - first) * sum(inner.operator.size for inner in ops.inner)
    return {"gemm_flop": flop, "peak_cpu": cpu, "peak_wall": wall}


def make_cache(problem: Problem, job: Job, clock: Clock) -> dict[str, Any]:
    """Make the operators and cache them; gives their bytes."""
    ops, _ = _operators(problem, job, clock)
    with clock("save"):
        return {"bytes_cached": save_arrays(_cache(problem, job), to_arrays(ops))}


def open_sink(problem: Problem, job: Job, first: int, last: int) -> tuple[WeightSink, list[NDArray]]:
    """Where weights go, and the list that those which are kept end in."""
    kept: list[NDArray] = []
    if job.weights == "keep":
        return (lambda _, weights: kept.append(weights)), kept
    if job.weights == "drop":
        return (lambda _, weights: None), kept
    n_rows = len(problem.delays) * problem.features.shape[1]
    return _zarr_sink(problem, first, last, job.block or last - first, n_rows), kept


def _operators(problem: Problem, job: Job, clock: Clock) -> tuple[FoldOperators, tuple[int, ...]]:
    delays = problem.delays if job.delay is None else (job.delay,)
    if job.operators == "load":
        with clock("operators"):
            return from_arrays(load_arrays(_cache(problem, job))), delays
    exponents = np.linspace(EXPONENTS[0], EXPONENTS[-1], job.n_alphas)
    with clock("operators"):
        kernel = window_gram(base_gram(problem.features), delays, problem.onsets)
        ops = make_operators(
            kernel, problem.fold, exponents, solver=job.solver, thin=False if job.general else None
        )
    if job.delay is None and job.n_alphas == len(EXPONENTS):
        np.testing.assert_allclose(ops.alphas, problem.alphas, rtol=1e-9)
    return ops, delays


def _cache(problem: Problem, job: Job) -> Path:
    return problem.folder / f"operators-{job.solver}"


def _sgemm_rate(n: int) -> tuple[float, float]:
    """Flop per second of CPU and of wall time of a square product, by the BLAS that the fit calls."""
    left, right = np.ones((2, n, n), np.float32)
    watch = Clock()
    with watch("sgemm"):
        left @ right
    cpu, wall = watch.stages["sgemm"]
    return 2 * n**3 / cpu, 2 * n**3 / wall


def _zarr_sink(problem: Problem, first: int, last: int, block: int, n_rows: int) -> WeightSink:
    """A new store of one subject, in the layout that fits have."""
    path = problem.folder / f"store-{first}" / "study.zarr"
    shutil.rmtree(path.parent, ignore_errors=True)
    store = Store.create(path, {}, {"vertex": np.arange(last - first)})
    arrays = fit_arrays(
        n_folds=1, n_variants=1, n_voxels=last - first, block=block,
        weights="primal", n_weight_folds=1, n_weight_rows=n_rows,
    )  # fmt: skip
    store.ensure_group(GroupSpec("fits/benchmark/subject", "0" * 64, arrays, n_units=1, attributes={}))

    def write(vertices: slice, weights: NDArray[np.float32]) -> None:
        voxels = slice(vertices.start - first, vertices.stop - first)
        one, rows = slice(0, 1), slice(0, n_rows)
        store.write("fits/benchmark/subject/weights", (one, one, rows, voxels), weights[None, None])

    return write

"""The seeded problem that every solver gets: five runs of one movie, FIR features, vertices of half noise.

Runs 1 to 4 train, in four leave-one-run-out folds of equal length; run 5 tests. No rows are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.signal import lfilter

from hpcenc.storage.design import delayed_design, standardise
from hpcenc.tasks.folds import OuterFold, RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.gram import base_gram, centre, window_gram

N_RUNS = 5
N_LATENTS = 40
"""Leading components of the features that signal vertices respond to."""
FEATURE_AR, NOISE_AR = 0.8, 0.5
SNR = (0.05, 1.0)
"""Variance of signal over that of noise, spread evenly in its logarithm over the signal vertices."""
CHUNK = 500
"""Vertices made from one seed: the first vertices are the same however many there are."""

SPECTRA = {"base": 0.6, "steep": 1.2}
"""Standard deviation of the k-th component of the features is 1 / k ** exponent."""
EXPONENTS = np.linspace(-2, 5, 20)
"""An alpha is 10 ** exponent * trace(Kc) / (n_train - 1)."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """Sizes of the problem, and how many vertices the benchmarks take of it."""

    run_trs: int
    n_features: int
    n_delays: int
    few: int
    """Vertices of a small job, and of each of many small subjects."""
    many: int
    whole: int
    """Vertices of a whole subject, in blocks of `many`, which are whole shards of weights."""


SCALES = {
    "full": Scale(run_trs=731, n_features=768, n_delays=10, few=2_000, many=10_000, whole=64_984),
    "small": Scale(run_trs=60, n_features=96, n_delays=4, few=40, many=2_500, whole=6_000),
}


@dataclass(frozen=True)
class Problem:
    """A problem on disk.

    Attributes
    ----------
    folder : Path
        Holds ``problem.json``, ``features.npy``, ``alphas.npy`` and ``bold.f32`` (vertex after vertex).
    delays : tuple of int
        In TRs, from 1.
    features : array of shape (n_trs, n_features), float32
        Z-scored with the statistics of the training rows.
    alphas : array of shape (20,), float64
        The same absolute values for every solver.
    """

    folder: Path
    spectrum: str
    run_trs: int
    delays: tuple[int, ...]
    features: Floats
    alphas: NDArray[np.float64]

    @cached_property
    def runs(self) -> tuple[RunRows, ...]:
        return tuple(RunRows(f"run{index + 1}", self.run_trs) for index in range(N_RUNS))

    @property
    def onsets(self) -> tuple[int, ...]:
        return run_onsets(self.runs)

    @cached_property
    def fold(self) -> OuterFold:
        (fold,) = outer_folds(self.runs, self.delays, RowPolicy())
        return fold

    @property
    def n_train(self) -> int:
        return int(self.fold.train.sum())

    @property
    def validation_run(self) -> NDArray[np.intp]:
        """For every training row the inner fold that it validates, as PredefinedSplit takes it."""
        return np.repeat(np.arange(N_RUNS - 1), self.run_trs)

    def bold(self, start: int, stop: int) -> Floats:
        """BOLD of some vertices, (n_trs, n_vertices); read, not mapped, so that memory counts as a task's."""
        n_trs = len(self.features)
        values = np.fromfile(
            self.folder / "bold.f32", np.float32, (stop - start) * n_trs, offset=4 * start * n_trs
        )
        return values.reshape(stop - start, n_trs).T

    def design(self, dtype: type = np.float32) -> tuple[NDArray, NDArray]:
        """Explicit FIR design of training and test rows, centred on the training rows: what peers take."""
        design = delayed_design(self.features.astype(dtype, copy=False), self.delays, self.onsets)
        train, test = design[self.fold.train], design[self.fold.test]
        mean = train.mean(axis=0)
        train -= mean
        test -= mean
        return train, test

    def largest_eigenvalue(self) -> float:
        """Of the centred training kernel."""
        kernel = self._train_kernel()
        last = len(kernel) - 1
        return float(scipy.linalg.eigh(kernel, eigvals_only=True, subset_by_index=(last, last))[0])

    def _train_kernel(self) -> NDArray[np.float64]:
        kernel = window_gram(base_gram(self.features), self.delays, self.onsets)
        return centre(kernel, self.fold.train)[self.fold.train]


def write_problem(folder: Path, scale: Scale, spectrum: str, n_vertices: int, seed: int = 0) -> Problem:
    """Make a problem in a folder, which must exist.

    Parameters
    ----------
    spectrum : {"base", "steep"}
    n_vertices : int
        Every second one is noise alone, autoregressive as BOLD is.
    """
    rng = np.random.default_rng(seed)
    run_lengths = (scale.run_trs,) * N_RUNS
    latents = autoregressive(rng, FEATURE_AR, run_lengths, scale.n_features)
    train = np.arange(len(latents)) < (N_RUNS - 1) * scale.run_trs
    features, _, _ = standardise(rotated_features(rng, latents, spectrum), train)
    np.save(folder / "features.npy", features)
    facts = {"scale": asdict(scale), "spectrum": spectrum, "seed": seed}
    (folder / "problem.json").write_text(json.dumps(facts))

    bare = _open(folder, facts, np.empty(0))
    sources = delayed_design(latents[:, :N_LATENTS].astype(np.float32), bare.delays, bare.onsets)
    with open(folder / "bold.f32", "wb") as file:
        for start in range(0, n_vertices, CHUNK):
            bold = bold_chunk(np.random.default_rng([seed, 1, start]), sources, run_lengths)
            file.write(np.ascontiguousarray(bold[:, : n_vertices - start].T).tobytes())

    trace = np.trace(bare._train_kernel())
    np.save(folder / "alphas.npy", 10**EXPONENTS * trace / (bare.n_train - 1))
    return open_problem(folder)


def open_problem(folder: Path) -> Problem:
    """A problem that `write_problem` made."""
    return _open(folder, json.loads((folder / "problem.json").read_text()), np.load(folder / "alphas.npy"))


def pearson(predicted: NDArray, measured: NDArray) -> NDArray:
    """Pearson r of every column: the test score of peers, which bring none of their own."""
    predicted = predicted - predicted.mean(axis=0, dtype=np.float64)
    measured = measured - measured.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(predicted, axis=0) * np.linalg.norm(measured, axis=0)
    return np.einsum("tv,tv->v", predicted, measured) / norms


def spans(start: int, stop: int, step: int) -> Sequence[tuple[int, int]]:
    """``[start, stop)`` in pieces of at most `step`."""
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]


def rotated_features(rng: np.random.Generator, latents: NDArray, spectrum: str) -> Floats:
    """Features whose components are the latents, at the strengths of a spectrum, rotated at random."""
    n_features = latents.shape[1]
    strengths = np.arange(1, n_features + 1) ** -SPECTRA[spectrum]
    rotation, _ = np.linalg.qr(rng.standard_normal((n_features, n_features)))
    return ((latents * strengths) @ rotation).astype(np.float32)


def bold_chunk(rng: np.random.Generator, sources: Floats, run_lengths: Sequence[int]) -> Floats:
    """`CHUNK` vertices, (n_trs, CHUNK), z-scored per run; the odd ones respond to the sources."""
    bold = autoregressive(rng, NOISE_AR, run_lengths, CHUNK)
    signal = sources @ rng.standard_normal((sources.shape[1], CHUNK // 2), dtype=np.float32)
    snr = np.exp(rng.uniform(*np.log(SNR), CHUNK // 2))
    bold[:, 1::2] += signal / signal.std(axis=0) * np.sqrt(snr)
    for run in _by_run(bold, run_lengths):
        run -= run.mean(axis=0)
        run /= run.std(axis=0)
    return bold.astype(np.float32)


def autoregressive(
    rng: np.random.Generator, coefficient: float, run_lengths: Sequence[int], n_columns: int
) -> NDArray:
    """Unit-variance AR(1) courses, every run a new start, (n_trs, n_columns)."""
    courses = rng.standard_normal((sum(run_lengths), n_columns))
    for run in _by_run(courses, run_lengths):
        run[1:] *= np.sqrt(1 - coefficient**2)
        run[:] = lfilter([1], [1, -coefficient], run, axis=0)
    return courses


def _by_run(values: NDArray, run_lengths: Sequence[int]) -> list[NDArray]:
    """Views of the rows of each run."""
    return np.split(values, np.cumsum(run_lengths)[:-1])


def _open(folder: Path, facts: dict, alphas: NDArray[np.float64]) -> Problem:
    scale = Scale(**facts["scale"])
    delays = tuple(range(1, scale.n_delays + 1))
    features = np.load(folder / "features.npy")
    return Problem(folder, facts["spectrum"], scale.run_trs, delays, features, alphas)

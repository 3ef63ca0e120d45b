"""Noise ceilings against their definition, plain loops and planted shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.store import Store
from hpcenc.tasks.ceiling import (
    MIN_ROWS,
    Showings,
    ceiling_r,
    ceilings_of_block,
    explainable_share,
    find_showings,
    over_ceiling,
    scale_runs,
    share_interval,
)
from hpcenc.tasks.ceiling_unit import CeilingUnit, ceiling_arrays
from hpcenc.tasks.folds import RunRows
from hpcenc.tasks.records import Unit

N_SIMULATIONS = 200
N_SHOWINGS, N_ROWS = 4, 73  # HCP's validation clip: 83 s less ten TRs


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], rho: float, axis: int) -> np.ndarray:
    """Courses of variance 1."""
    draws = rng.standard_normal((*shape[:axis], shape[axis] + 200, *shape[axis + 1 :]))
    courses = lfilter([1], [1, -rho], draws, axis=axis) * np.sqrt(1 - rho**2)
    return np.take(courses, range(200, 200 + shape[axis]), axis=axis)


def variance_left(n_rows: int) -> float:
    """Expected variance of autoregressive noise of .4 about its mean over so many rows."""
    lags = np.arange(1, n_rows)
    return float(1 - (1 + 2 * np.sum((1 - lags / n_rows) * 0.4**lags)) / n_rows)


def simulated(share: float, seed: int, n_voxels: int = N_SIMULATIONS) -> tuple[np.ndarray, np.ndarray]:
    """Showings of many voxels, each a study of its own, and each one's analytic share over these very rows.

    Signal and noise are autoregressive; the noise's expected variance about its mean over the rows is known.
    """
    rng = np.random.default_rng(seed)
    signal = np.sqrt(share) * autoregressive(rng, (N_ROWS, n_voxels), 0.85, axis=0)
    noise = np.sqrt(1 - share) * autoregressive(rng, (N_SHOWINGS, N_ROWS, n_voxels), 0.4, axis=1)
    noise_variance = (1 - share) * variance_left(N_ROWS)
    power = signal.var(axis=0)
    return signal + noise, power / (power + noise_variance)


def test_the_share_is_the_mean_covariance_over_the_mean_variance() -> None:
    showings, _ = simulated(0.4, seed=0, n_voxels=5)
    for voxel in range(5):
        courses = showings[:, :, voxel]
        covariance = np.mean([np.cov(a, b, ddof=0)[0, 1] for a, b in combinations(courses, 2)])
        expected = covariance / np.mean([course.var() for course in courses])
        assert explainable_share(showings)[voxel] == pytest.approx(expected, rel=1e-12)


def test_with_equal_variances_it_is_the_fields_corrected_explainable_variance() -> None:
    showings, _ = simulated(0.3, seed=1, n_voxels=50)
    scored = (showings - showings.mean(axis=1, keepdims=True)) / showings.std(axis=1, keepdims=True)
    ev = 1 - (scored - scored.mean(axis=0)).var(axis=(0, 1))
    corrected = ev - (1 - ev) / (N_SHOWINGS - 1)
    np.testing.assert_allclose(explainable_share(scored), corrected, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_the_share_is_unbiased_over_200_simulations(share: float) -> None:
    showings, analytic = simulated(share, seed=2)
    error = explainable_share(showings) - analytic
    assert abs(error.mean()) <= 3 * error.std(ddof=1) / np.sqrt(N_SIMULATIONS)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_a_perfect_model_reaches_the_ceiling_in_the_mean(share: float) -> None:
    rng = np.random.default_rng(3)
    signal = np.sqrt(share) * autoregressive(rng, (N_ROWS, 2_000), 0.85, axis=0)
    noise = np.sqrt(1 - share) * autoregressive(rng, (N_SHOWINGS, N_ROWS, 2_000), 0.4, axis=1)
    showings = signal + noise
    centred = signal - signal.mean(axis=0), showings[3] - showings[3].mean(axis=0)
    r = (centred[0] * centred[1]).sum(axis=0) / np.sqrt(
        (centred[0] ** 2).sum(axis=0) * (centred[1] ** 2).sum(axis=0)
    )
    assert np.median(r) == pytest.approx(
        np.median(np.sqrt(np.maximum(explainable_share(showings), 0))), abs=0.02
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_the_interval_holds_the_share_in_most_simulations(share: float) -> None:
    showings, analytic = simulated(share, seed=4)
    low, high = share_interval(showings, seed=0)
    assert 0.92 <= np.mean((low <= analytic) & (analytic <= high)) <= 1.0
    assert (low < high).all()
    if share == 0:
        assert np.mean(low > 0) < 0.03


def test_a_showing_of_one_block_has_no_interval() -> None:
    showings = np.random.default_rng(8).standard_normal((3, 11, 50))
    low, high = share_interval(showings)
    assert (low < high).all()
    assert np.isnan(share_interval(showings[:, :10])).all()


def test_a_resample_is_a_choice_of_rows() -> None:
    """The interval by sums over rows is that of taking the rows themselves."""
    from hpcenc.tasks.ceiling import _resamples, _shares

    showings, _ = simulated(0.5, seed=5, n_voxels=3)
    weights = _resamples(N_ROWS, np.random.default_rng(7))[:6]
    found = _shares(showings, weights)
    for place, counts in enumerate(weights):
        rows = np.repeat(np.arange(N_ROWS), counts.astype(int))
        assert len(rows) == N_ROWS
        np.testing.assert_allclose(found[place], explainable_share(showings[:, rows]), rtol=1e-9)


def test_undefined_voxels_are_nan_and_nothing_is_capped() -> None:
    showings, _ = simulated(0.5, seed=6, n_voxels=4)
    showings[:, :, 0] = 2.0
    showings[1, 5, 1] = np.nan
    share = explainable_share(showings)
    assert np.isnan(share[:2]).all()
    assert np.isfinite(share[2:]).all()
    np.testing.assert_array_equal(
        ceiling_r(np.array([-0.1, 0.0, 0.25, 1.2])), [np.nan, np.nan, 0.5, np.sqrt(1.2)]
    )
    np.testing.assert_allclose(over_ceiling(np.array([0.6, 0.2]), np.array([0.5, np.nan])), [1.2, np.nan])


RUNS = (
    RunRows("A", 60, rest=((0, 5), (50, 60)), repeats=(("clip", 30, 50), ("once", 6, 20))),
    RunRows("B", 55, repeats=(("clip", 20, 41),)),
    RunRows("C", 50, repeats=(("short", 10, 14),)),
    RunRows("D", 50, repeats=(("short", 10, 14),)),
)


def test_a_showing_counts_from_its_onset_and_the_longest_delay_and_all_are_equally_long() -> None:
    found, without = find_showings(RUNS, longest_delay=4, rest_tail=4)
    assert found == (Showings("clip", (tuple(range(34, 50)), tuple(range(84, 100)))),)
    assert without == (f"short: 0 rows are left of a showing, of {MIN_ROWS} that are needed",)


def test_moments_that_are_rest_in_one_showing_are_left_out_of_all() -> None:
    runs = (*RUNS[:1], RunRows("B", 55, rest=((37, 44),), repeats=(("clip", 20, 41),)))
    (found,), _ = find_showings(runs, longest_delay=4, rest_tail=4)
    assert found.rows == (tuple(range(34, 47)), tuple(range(84, 97)))
    (kept,), _ = find_showings(runs, longest_delay=4, rest_tail=-1)
    assert kept.n_rows == 16


def test_runs_are_scaled_by_the_rows_that_are_no_rest() -> None:
    rng = np.random.default_rng(8)
    Y = rng.standard_normal((215, 3))
    Y[:60] *= 5
    Y[2, 0] = 1e6  # in rest
    Y[60:115, 1] = 3.0
    scaled = scale_runs(Y, RUNS, rest_tail=4)
    np.testing.assert_allclose(scaled[9:50, 0].std(), 1)
    assert np.isnan(scaled[60:115, 1]).all()
    values = ceilings_of_block(scaled, find_showings(RUNS, 4, 4)[0])
    assert values.shape == (4, 1, 3)
    assert np.isnan(values[:, 0, 1]).all()
    assert (values[1, 0, [0, 2]] < values[2, 0, [0, 2]]).all()


@pytest.mark.parametrize(("share", "ratio"), [(0.1, 0.84), (0.2, 0.95), (0.4, 1.0)])
def test_a_perfect_model_has_the_ratios_over_reliable_vertices_that_the_report_tells(
    share: float, ratio: float
) -> None:
    rng = np.random.default_rng(1)
    signal = np.sqrt(share) * autoregressive(rng, (73, 1500), 0.85, axis=0)
    showings = signal + np.sqrt(1 - share) * autoregressive(rng, (4, 73, 1500), 0.4, axis=1)
    reliable = share_interval(showings)[0] > 0
    ceiling = ceiling_r(explainable_share(showings))
    centred = [values - values.mean(axis=0) for values in (signal, showings[3])]
    r = (centred[0] * centred[1]).sum(axis=0) / np.prod([np.linalg.norm(each, axis=0) for each in centred], 0)
    assert r[reliable].mean() / ceiling[reliable].mean() == pytest.approx(ratio, abs=0.02)


SCANNED = tuple(
    RunRows(name, n_trs, rest=((0, 8),), repeats=(("clip", start, start + 83),))
    for name, n_trs, start in (("A", 240, 140), ("B", 260, 60), ("C", 230, 100), ("D", 250, 150))
)
LONGEST_DELAY = 10
N_EACH = 10
"""Vertices of a simulation."""


def scanned(
    share: float, gains: Sequence[float], noises: Sequence[float], drifts: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Raw BOLD of four runs that show one clip, and each vertex's analytic share.

    Beside the clip, runs show what no other does. A run's drift, up or down by chance, is noise that repeats
    in no other run. Expected is, given signals and drifts: the products of two showings have the signal's
    variance over the clip's rows in common, over the deviations of their whole runs.
    """
    rng, n_vertices = np.random.default_rng(9), N_SIMULATIONS * N_EACH
    clip = np.sqrt(share) * autoregressive(rng, (83, n_vertices), 0.85, axis=0)
    bold, scales, variances = [], [], []
    for run, gain, noise, drift in zip(SCANNED, gains, noises, drifts, strict=True):
        start = run.repeats[0][1]
        known = np.sqrt(share) * autoregressive(rng, (run.n_trs, n_vertices), 0.85, axis=0)
        # For the longest delay BOLD still answers to what came before the clip.
        known[start + LONGEST_DELAY : start + 83] = clip[LONGEST_DELAY:]
        ramp = drift * np.linspace(-1, 1, run.n_trs)[:, None] * rng.choice([-1, 1], n_vertices)
        variance = noise * (1 - share)
        own = np.sqrt(variance) * autoregressive(rng, (run.n_trs, n_vertices), 0.4, axis=0)
        bold.append(gain * (1000 + known + ramp + own))
        used = slice(8 + LONGEST_DELAY, None)
        n_used = run.n_trs - used.start
        scales.append(((known + ramp)[used].var(axis=0) + variance * variance_left(n_used)) ** -0.5)
        rows = slice(start + LONGEST_DELAY, start + 83)
        in_clip = known[rows].var(axis=0) + ramp[rows].var(axis=0) + variance * variance_left(N_ROWS)
        variances.append(scales[-1] ** 2 * in_clip)
    pairs = np.mean([one * other for one, other in combinations(scales, 2)], axis=0)
    analytic = pairs * clip[LONGEST_DELAY:].var(axis=0) / np.mean(variances, axis=0)
    return np.concatenate(bold).astype(np.float32), analytic


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize(
    ("gains", "noises", "drifts"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)),
        ((1, 3, 0.5, 2), (1, 2, 0.5, 1), (0, 0, 0, 0)),
        ((1, 3, 0.5, 2), (0.5, 2, 1, 4), (0.5, 1, 0.5, 0)),
    ],
    ids=["equal runs", "gains and noise differ", "runs drift"],
)
def test_ceilings_of_raw_bold_are_unbiased_over_200_simulations(
    share: float, gains: Sequence[float], noises: Sequence[float], drifts: Sequence[float], tmp_path: Path
) -> None:
    bold, analytic = scanned(share, gains, noises, drifts)
    n_vertices = bold.shape[1]
    found, _ = find_showings(SCANNED, LONGEST_DELAY, rest_tail=LONGEST_DELAY)
    store = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(n_vertices)})
    store.ensure_group(GroupSpec("ceilings/s1", "d" * 64, ceiling_arrays(1, n_vertices, n_vertices), 1, {}))
    unit = CeilingUnit(Unit("ceilings/s1", 0, "d" * 64), SCANNED, LONGEST_DELAY, found)
    unit.work(store, bold, slice(0, n_vertices))
    of_share, _, _, ceiling = store.read("ceilings/s1/values")[:, 0].astype(float)
    error = (of_share - analytic).reshape(N_SIMULATIONS, N_EACH).mean(axis=1)
    # A ratio of two means over 73 rows is not the ratio of what is expected of each: over 32,000 vertices the
    # share is .001 to .0025 too low, which 200 vertices, one a simulation, would not tell from nothing.
    assert abs(error.mean()) <= 0.0025 + 3 * error.std(ddof=1) / np.sqrt(N_SIMULATIONS)
    np.testing.assert_allclose(ceiling, np.sqrt(np.where(of_share > 0, of_share, np.nan)), rtol=1e-6)
    if share > 0.1:  # at weak shares some vertices have no ceiling, and the mean of the others is too high
        # A root's mean lies below the root of a mean: by the variance over 8, over the mean to the power 1.5.
        bend = np.mean((of_share - analytic) ** 2) / 8 * np.mean(analytic**-1.5)
        assert np.nanmean(ceiling) == pytest.approx(np.mean(np.sqrt(analytic)) - bend, abs=0.01)

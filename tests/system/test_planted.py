"""Simulated studies whose answer is known: what sweeps find of delays, layers and bands, and that noise
gives nothing.

Courses are drawn at 20 Hz, mixed by each vertex with weights of its own, and convolved with an HRF at that
rate; features are their means over the rows, as a model's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planting import N_VERTICES, REGIONS, SLICES, Planted, Simulated, above_chance, no_effect, to_rows
from run_here import run_sets
from scipy.signal import lfilter

from hpcenc.storage.results import read_scores
from hpcenc.storage.store import Store
from hpcenc.storage.study import parse_study
from hpcenc.tasks.nested import choose_variants
from hpcenc.tasks.report.sweeps import summarise_sweep
from hpcenc.tasks.selection import FeatureSet, FeatureSpace, Variant, select_feature_sets

N_TRS = {"A": 320, "B": 300, "C": 310, "D": 330}
RATE_HZ, N_FEATURES = 20, 24
WINDOW, SINGLE = tuple(range(1, 11)), tuple(range(10))
Floats = NDArray[np.floating[Any]]


def slow_courses(rng: np.random.Generator, n_trs: int) -> Floats:
    """Features at `RATE_HZ`, (n_samples, n_features): correlated over some seconds, of variance 1."""
    rho = np.exp(-1 / (1.5 * RATE_HZ))
    courses = lfilter(
        [np.sqrt(1 - rho**2)], [1, -rho], rng.standard_normal((n_trs * RATE_HZ, N_FEATURES)), axis=0
    )
    return np.asarray(courses)


def write_study(
    folder: Path, seed: int = 0, noise_only: bool = False, subjects: Sequence[str] = ("s1",)
) -> Planted:
    """Features of two spaces in three layers each, BOLD, and what was planted."""
    rng = np.random.default_rng(seed)
    weights = {space: rng.standard_normal((N_FEATURES, N_VERTICES)) for space in ("vision", "audio")}
    rotate = [np.linalg.qr(rng.standard_normal((N_FEATURES, N_FEATURES)))[0] for _ in range(2)]
    planted = Planted(weights, RATE_HZ)
    draws = (rng, *rng.spawn(len(subjects) - 1))  # the first subject's noise is the same beside others
    for subject in subjects:
        (folder / subject).mkdir(parents=True)
    for run, n_trs in N_TRS.items():
        fine = {space: slow_courses(rng, n_trs) for space in ("vision", "audio")}
        for space, courses in fine.items():
            # The planted layer is the second; the first knows half of it, the third a distortion of all of
            # it.
            half = np.where(np.arange(N_FEATURES) % 2, courses, slow_courses(rng, n_trs))
            bent = np.abs(courses @ rotate[0]) @ rotate[1] + 0.5 * courses
            for layer, values in enumerate((half, courses, bent), start=1):
                np.save(folder / f"{space}{layer}_{run}.npy", to_rows(values, RATE_HZ).astype(np.float32))
        for subject, of_subject in zip(subjects, draws, strict=True):
            bold = planted.bold(fine, of_subject, noise_only)
            np.save(folder / subject / f"{run}.npy", bold.astype(np.float32))
    return planted


def run_study(folder: Path, subjects: Sequence[str] = ("s1",)) -> Store:
    """Fit both spaces and their sum with all sweeps, layers by hand: files have none of their own. Of several
    subjects the average, too."""
    names = [f"{space}{layer}" for space in ("vision", "audio") for layer in (1, 2, 3)]
    data = {
        "name": "planted",
        "simulated": True,
        "tr_s": 1.0,
        "store": str(folder / "results" / "study.zarr"),
        "runs": [{"name": run, "n_trs": n_trs} for run, n_trs in N_TRS.items()],
        "subjects": {"ids": list(subjects)},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {name: {"path": f"{name}_{{run}}.npy"} for name in names},
        "fit": {"delays": list(WINDOW), "block": 5000, "backend": "numpy", "weights": "none"},
        "sweeps": {"delays": list(SINGLE), "bands": True},
        "average": {} if len(subjects) > 1 else None,
    }
    study = parse_study(data, folder)
    chosen = [*select_feature_sets(study, "vision2,audio2,vision2+audio2"), layers("vision"), layers("audio")]
    return run_sets(study, chosen)[0]


def layers(space: str) -> FeatureSet:
    variants = tuple(Variant((FeatureSpace(f"{space}{layer}", "values"),), WINDOW) for layer in (1, 2, 3))
    return FeatureSet(f"{space}1", space, variants, "layers")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    folder = tmp_path_factory.mktemp("planted")
    planted = write_study(folder)
    return Simulated(run_study(folder), planted)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("noise")
    write_study(folder, seed=1, noise_only=True, subjects=("s1", "s2"))
    return run_study(folder, ("s1", "s2"))


@pytest.mark.parametrize(("region", "feature_set"), [
    ("visual", "vision2"), ("auditory", "audio2"), ("both", "vision2"), ("both", "vision2-and-audio2"),
])  # fmt: skip
def test_delay_curves_peak_where_the_planted_course_answers_most(
    simulated: Simulated, region: str, feature_set: str
) -> None:
    simulated.check_delays(feature_set, region)


def test_regions_of_other_lags_peak_at_other_delays(simulated: Simulated) -> None:
    """Which one answer between the two lags, each within a TR of it, would not show."""
    planted = simulated.planted.lag("visual") - simulated.planted.lag("auditory")
    assert simulated.peak("vision2", "visual") - simulated.peak("audio2", "auditory") == planted > 1


@pytest.mark.parametrize(("space", "region"), [("vision", "visual"), ("audio", "auditory")])
def test_the_planted_layer_is_found_by_the_nested_choice(
    simulated: Simulated, space: str, region: str
) -> None:
    scores = read_scores(simulated.store, f"layers/{space}/s1")
    choice = choose_variants(scores.more["cv"], scores.r, scores.chance)
    best = choice.best[SLICES[region]]
    assert np.mean(best == 1) > 0.95
    assert choice.r[0, SLICES[region]].mean() > scores.r[0, [0, 2]][:, SLICES[region]].mean()


def test_sets_rank_as_planted(simulated: Simulated) -> None:
    def mean(feature_set: str, region: str) -> float:
        return float(simulated.r(feature_set, region).mean())

    both = "vision2-and-audio2"
    assert mean("vision2", "visual") > mean(both, "visual") > 0.3 > abs(mean("audio2", "visual")) + 0.2
    assert mean("audio2", "auditory") > mean(both, "auditory") > 0.3 > abs(mean("vision2", "auditory")) + 0.2
    assert mean(both, "both") > mean("vision2", "both") > mean("audio2", "both")


def test_a_fit_in_bands_finds_the_planted_shares(simulated: Simulated) -> None:
    scores = read_scores(simulated.store, "bands/vision2-and-audio2/s1")
    sweep = summarise_sweep(scores, {})
    vision = sweep.band_r["vision2/values"] / sweep.nested_r
    for region in REGIONS[:3]:
        assert np.median(vision[SLICES[region.name]]) == pytest.approx(region.vision, abs=0.08)
    # Where one space is planted, its penalty is the smaller one, and the fit no worse than it alone.
    assert np.median(sweep.best_values[SLICES["visual"]]) >= 100
    assert np.median(sweep.best_values[SLICES["auditory"]]) <= 0.01
    single = read_scores(simulated.store, "fits/vision2-and-audio2/s1").r[0, 0]
    for name, alone in (("visual", "vision2"), ("auditory", "audio2")):
        bands = sweep.nested_r[SLICES[name]].mean()
        assert bands > single[SLICES[name]].mean()
        assert bands > simulated.r(alone, name).mean() - 0.01


SWEPT = ("delays/vision2", "delays/audio2", "delays/vision2-and-audio2", "layers/vision", "layers/audio")
ALL_SWEPT = (*SWEPT, "bands/vision2-and-audio2")


def test_vertices_without_signal_stay_at_chance_in_every_analysis(simulated: Simulated) -> None:
    part = SLICES["silent"]
    assert above_chance(simulated.store, ALL_SWEPT, part) <= 0.02
    for group in ALL_SWEPT:
        scores = read_scores(simulated.store, f"{group}/s1")
        choice = choose_variants(scores.more["cv"], scores.r, scores.chance)
        assert no_effect(choice.r[0, part])
    for feature_set in ("vision2", "audio2", "vision2-and-audio2"):
        assert no_effect(simulated.r(feature_set, "silent"))


@pytest.mark.parametrize("subject", ["s1", "average"])
def test_a_study_of_noise_has_no_best_delay_no_best_layer_and_no_r(noise: Store, subject: str) -> None:
    everyone = slice(None)
    # One in a thousand is above the 99.9th percentile; above that of 271 shifts up to one in a hundred.
    assert above_chance(noise, ALL_SWEPT, everyone, subject) <= 0.01
    for group in ALL_SWEPT:
        scores = read_scores(noise, f"{group}/{subject}")
        choice = choose_variants(scores.more["cv"], scores.r, scores.chance)
        assert no_effect(choice.r[0])
        for place in range(scores.r.shape[1]):
            assert no_effect(scores.r[0, place])

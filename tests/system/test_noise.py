"""Studies of noise in which every run is the test run once: no analysis finds anything in them, neither in
subjects nor in their average, whatever each vertex chose for itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planting import no_effect
from run_here import NOT_DECODED, run_plan
from scipy.signal import lfilter
from scipy.special import expit

from hpcenc.storage.results import Singles, fit_groups, read_scores, read_singles
from hpcenc.storage.store import Store
from hpcenc.storage.study import parse_study
from hpcenc.tasks.extraction import ExtractChunk
from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.nested import choose_variants, mean_excess

N_TRS = {"A": 190, "B": 180, "C": 200}
N_VERTICES, N_FEATURES, N_TAGS = 1_000, 6, 527
WINDOW, SINGLE, TAG_DELAY = (1, 2, 3), (0, 3), 3
SUBJECTS = ("s1", "s2", "average")
Floats = NDArray[np.floating[Any]]


def slow(rng: np.random.Generator, n_trs: int, n_courses: int, rho: float) -> Floats:
    """Courses that change over some rows, (n_trs, n_courses)."""
    return np.asarray(lfilter([1], [1, -rho], rng.standard_normal((n_trs, n_courses)), axis=0))


def write_tags(store: Store, task: ExtractChunk, courses: Mapping[str, Floats]) -> None:
    """Tags in the place of those that a network would have made of a movie."""
    group = task.unit.group
    store.write(f"{group}/tags", (slice(None), slice(None)), courses[group[-1]])
    store.mark(group, task.unit.index, task.unit.digest)


def run_noise(folder: Path, models: str, seed: int, **tables: Any) -> Store:
    """A study of noise in two subjects and their average: features from files, or tags."""
    rng = np.random.default_rng(seed)
    tags = {}
    for run, n_trs in N_TRS.items():
        for name in ("vision", "audio"):
            values = slow(rng, n_trs, N_FEATURES, 0.6)
            np.save(folder / f"{name}_{run}.npy", values.astype(np.float32))
        tags[run.lower()] = expit(slow(rng, n_trs, N_TAGS, 0.6) - 2).astype(np.float32)
        for subject in SUBJECTS[:2]:
            (folder / subject).mkdir(exist_ok=True)
            bold = 100 + slow(rng, n_trs, N_VERTICES, 0.4)
            np.save(folder / subject / f"{run}.npy", bold.astype(np.float32))
        if "tags" in models:
            frames = np.zeros((n_trs, 16, 16, 3), np.uint8)
            write_movie(folder / f"{run}.mp4", frames, 1, np.zeros(n_trs * 16_000, np.float32), 16_000)
    runs = [{"name": run, "n_trs": n_trs} for run, n_trs in N_TRS.items()]
    if "tags" in models:
        runs = [run | {"movie": f"{run['name']}.mp4"} for run in runs]
    data = {
        "name": "noise",
        "simulated": True,
        "tr_s": 1.0,
        "store": str(folder / "results" / "study.zarr"),
        "runs": runs,
        "subjects": {"ids": list(SUBJECTS[:2])},
        "bold": {"path": "{subject}/{run}.npy"},
        "models": {"weights": "untrained", "n_layers": 2, "audio_window_s": 1.0},
        "feature_files": {name: {"path": f"{name}_{{run}}.npy"} for name in ("vision", "audio")},
        "fit": {"outer": "rotate", "delays": list(WINDOW), "n_alphas": 8, "block": 5000, "backend": "numpy",
                "weights": "none"},
        "average": {},
    }  # fmt: skip
    study = parse_study(data | tables, folder)
    stand_ins = {**NOT_DECODED, ExtractChunk: partial(write_tags, courses=tags)}
    return run_plan(study, models, stand_ins)[0]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A set and its sum with another one, with single delays and a penalty for each band."""
    sweeps = {"delays": list(SINGLE), "bands": True}
    return run_noise(tmp_path_factory.mktemp("swept"), "vision,vision+audio", seed=0, sweeps=sweeps)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Singles]:
    """The best single tag of each vertex, by subject."""
    store = run_noise(tmp_path_factory.mktemp("tagged"), "beats-tags", seed=1, sweeps={"tags": TAG_DELAY})
    found = [read_singles(store, group) for group in fit_groups(store, "singles")]
    return {each.attributes["subject"]: each for each in found}


def check_noise(r: Floats, chance: Floats) -> None:
    """Scores (n_folds, n_vertices) are 0 in the mean, and no more of them above chance than their levels let
    pass."""
    above = np.mean(r > chance, axis=1)
    for fold, n_trs in enumerate(N_TRS.values()):
        assert no_effect(r[fold])
        # The 99.9th percentile of n shifts is close to their largest, which 1 in n + 1 exceeds; neighbouring
        # shifts of slow courses are alike, so that there are as if a few times fewer.
        n_shifts = n_trs - 59
        assert above[fold] <= 4 / n_shifts
    assert no_effect(r.mean(axis=0))
    assert np.mean(mean_excess(r, chance) > 0) <= above.mean() / 2, "a mean of folds varies less than one"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_noise_in_rotation_has_no_r_no_best_delay_and_no_best_band(swept: Store, subject: str) -> None:
    sets = ("vision", "vision-and-audio")
    for group in (*(f"delays/{name}" for name in sets), "bands/vision-and-audio"):
        scores = read_scores(swept, f"{group}/{subject}")
        choice = choose_variants(scores.more["cv"], scores.r, scores.chance)
        assert len(np.unique(choice.variant)) == scores.r.shape[1], "all variants are chosen by some"
        check_noise(choice.r, choice.chance)
        assert np.mean(choice.best >= 0) <= 0.01
    for name in sets:
        scores = read_scores(swept, f"fits/{name}/{subject}")
        check_noise(scores.r[:, 0], scores.chance[:, 0])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_best_of_527_tags_predicts_nothing_of_noise(tagged: dict[str, Singles], subject: str) -> None:
    """In each fold by itself: the last one's choice is that of a study with one test run."""
    scores = tagged[subject].scores
    assert scores["r"].shape == (len(N_TRS), N_VERTICES)
    assert np.abs(scores["r_train"]).mean() > 0.15, "on the rows that it was chosen by, it does"
    check_noise(scores["r"], scores["chance"])

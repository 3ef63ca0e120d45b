"""A simulated study planted through CAV-MAE's branches: what its visual and its audio branch make of the same
movies, found again by each of them, by their mean and by their concatenation.

An HRF leaves 34 % of the audio branch's variance (77 % of the visual one's), and of four of its five leading
courses 1 to 2 %: they follow single pulses of sound, which no linear model could tell from noise. So courses
are planted that last.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from planting import SLICES, Floats, Simulated, above_chance, no_effect
from shown_movies import RATE_HZ, joined, show_runs, standardised, submit_planted

from hpcenc.storage.results import read_scores
from hpcenc.tasks.demo.hrf import respond
from hpcenc.tasks.nested import choose_variants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

RUNS = {"A": 110, "B": 105, "C": 115, "D": 110}
N_LAYERS = 2
"""A block of each branch's own, and the unified one."""
N_COURSES = 4
SETS = ("cavmae-visual", "cavmae-audio", "cavmae", "cavmae-concat")
LABELS = VISUAL, AUDIO, MEAN, CONCAT = tuple(f"{name}-untrained-seed-0" for name in SETS)


def lasting_courses(of_runs: Sequence[Floats]) -> Floats:
    """Courses of variance 1 in a layer: those whose responses are the leading components of all of them."""
    values = standardised(np.concatenate(of_runs))
    edges = np.cumsum([len(of_run) for of_run in of_runs])[:-1]
    answered = np.concatenate([respond(part, 5.0, RATE_HZ) for part in np.split(values, edges)])
    mixtures = np.linalg.svd(answered - answered.mean(axis=0), full_matrices=False)[2][:N_COURSES]
    return standardised(values @ mixtures.T)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("branches")


@pytest.fixture(scope="module")
def shown(folder: Path) -> list[dict[str, Floats]]:
    return show_runs(folder, RUNS, ("cavmae",), N_LAYERS)["cavmae"]


@pytest.fixture(scope="module")
def simulated(folder: Path, shown: list[dict[str, Floats]]) -> Simulated:
    courses = {
        "vision": lasting_courses([of_run["visual"] for of_run in shown]),
        "audio": lasting_courses([of_run["audio"] for of_run in shown]),
    }
    return submit_planted(folder, RUNS, courses, ",".join(SETS), N_LAYERS)


@pytest.fixture(scope="module")
def mean_r(simulated: Simulated) -> dict[str, dict[str, float]]:
    """By region and feature set."""
    return {
        region: {label: float(simulated.r(label, region).mean()) for label in LABELS} for region in SLICES
    }


@pytest.mark.parametrize(("region", "found_by"), [
    ("visual", (VISUAL, MEAN, CONCAT)), ("auditory", (AUDIO, MEAN, CONCAT)), ("both", (MEAN, CONCAT)),
])  # fmt: skip
def test_delay_curves_peak_where_the_planted_course_answers_most(
    simulated: Simulated, region: str, found_by: Sequence[str]
) -> None:
    for label in found_by:
        simulated.check_delays(label, region)


@pytest.mark.parametrize(("region", "planted", "other"), [
    ("visual", VISUAL, AUDIO), ("auditory", AUDIO, VISUAL),
])  # fmt: skip
def test_one_branch_s_signal_is_found_by_it_and_less_well_by_what_holds_the_other_too(
    mean_r: dict[str, dict[str, float]], region: str, planted: str, other: str
) -> None:
    r = mean_r[region]
    assert r[planted] > 0.7
    for joint in (MEAN, CONCAT):
        assert r[planted] > r[joint] > abs(r[other]) + 0.4


def test_where_both_are_planted_both_together_beat_either(mean_r: dict[str, dict[str, float]]) -> None:
    r = mean_r["both"]
    assert r[VISUAL] > r[AUDIO] + 0.1
    assert min(r[MEAN], r[CONCAT]) > r[VISUAL] + 0.05


def test_the_mean_takes_after_the_branch_that_varies_more(
    mean_r: dict[str, dict[str, float]], shown: list[dict[str, Floats]]
) -> None:
    # Two branches that vary in other directions of the features add up in the kernel of their mean, each as
    # it varies; in that of the concatenation all features count alike.
    variance = {name: values.var(axis=0) for name, values in joined(shown, ("visual", "audio")).items()}
    assert np.mean(variance["visual"] / (variance["visual"] + variance["audio"])) > 0.6
    assert mean_r["visual"][MEAN] > mean_r["visual"][CONCAT]
    assert mean_r["auditory"][MEAN] < mean_r["auditory"][CONCAT] - 0.05


def test_all_sets_come_from_one_pass_over_the_movies(simulated: Simulated) -> None:
    features = simulated.store.path / "features"
    assert len(list(features.glob("*/*/*/zarr.json"))) == len(RUNS)


def test_the_report_tells_the_sets_apart(simulated: Simulated) -> None:
    report = simulated.store.path.with_name("study.report")
    with (report / "tables" / "models.csv").open(newline="") as table:
        found = {row["variant"]: (row["modality"], row["n_features"]) for row in csv.DictReader(table)}
    assert found == {
        "cavmae/visual": ("vision", "768"),
        "cavmae/audio": ("audio", "768"),
        "cavmae/mean": ("audio-visual", "768"),
        "cavmae/concat": ("audio-visual", "1536"),
    }
    page = (report / "report.html").read_text()
    assert "cavmae/mean is the mean of cavmae/audio and cavmae/visual, feature by feature" in page
    assert "cavmae/concat has cavmae/audio and cavmae/visual side by side" in page
    assert "audio window 1 s, causal, pooled over the TR; frame at the middle of the TR" in page


def test_vertices_without_signal_stay_at_chance_in_every_analysis(simulated: Simulated) -> None:
    # Of the 51 shifts behind a level, those of courses that last some seconds are as good as ten: of vertices
    # without an effect every twelfth exceeds all of them.
    assert above_chance(simulated.store, [f"delays/{label}" for label in LABELS], SLICES["silent"]) <= 0.1
    for label in LABELS:
        scores = read_scores(simulated.store, f"delays/{label}/s1")
        choice = choose_variants(scores.more["cv"], scores.r, scores.chance)
        assert no_effect(choice.r[0, SLICES["silent"]])
        assert no_effect(simulated.r(label, "silent"))

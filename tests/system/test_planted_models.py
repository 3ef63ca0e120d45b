"""A simulated study planted through the models' own features: movies are shown to untrained CLIP and BEATs
ten times a second, and what they make of it is mixed, convolved with an HRF at that rate, sampled as BOLD.

An untrained network adds so little to its input in a layer that its layers are linear images of each other;
they differ in which courses have variance. Vision is planted in what the deepest layer has much of and the
others little; which layer an audio signal came from could not be told by any linear model. A quarter of an
hour has some hundred scenes: enough for ranks, too few for the shares of a mix, which `test_planted` has.
"""

from __future__ import annotations

import numpy as np
import pytest
from planting import REGIONS, SLICES, Simulated, above_chance, no_effect
from shown_movies import courses_of, joined, leading_courses, show_runs, submit_planted

from hpcenc.storage.results import read_scores
from hpcenc.tasks.nested import choose_variants
from hpcenc.tasks.report.sweeps import summarise_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RUNS = {"A": 200, "B": 190, "C": 210, "D": 200}
N_LAYERS = 3
VISION, AUDIO, BOTH = (f"{name}-untrained-seed-0" for name in ("clip", "beats", "beats-and-clip"))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    folder = tmp_path_factory.mktemp("planted")
    found = show_runs(folder, RUNS, ("clip", "beats"), N_LAYERS)
    courses = {
        "vision": courses_of(joined(found["clip"], ("1", "2", "embedding")), "embedding"),
        "audio": leading_courses(joined(found["beats"], (str(N_LAYERS),))[str(N_LAYERS)]),
    }
    return submit_planted(
        folder, RUNS, courses, "clip,beats,beats+clip", N_LAYERS, "layers = true\nbands = true"
    )


@pytest.mark.parametrize(("region", "feature_set"), [
    ("visual", VISION), ("auditory", AUDIO), ("both", VISION), ("both", BOTH),
])  # fmt: skip
def test_delay_curves_peak_where_the_planted_course_answers_most(
    simulated: Simulated, region: str, feature_set: str
) -> None:
    simulated.check_delays(feature_set, region)


@pytest.mark.parametrize("region", ["visual", "both"])
def test_the_planted_layer_is_found_by_the_nested_choice(simulated: Simulated, region: str) -> None:
    scores = read_scores(simulated.store, f"layers/{VISION}/s1")
    best = choose_variants(scores.more["cv"], scores.r, scores.chance).best[SLICES[region]]
    assert np.mean(best >= 0) > 0.9
    assert np.mean(best[best >= 0] == 2) > 0.8


def test_sets_rank_as_planted(simulated: Simulated) -> None:
    def mean(label: str, region: str) -> float:
        return float(simulated.r(label, region).mean())

    assert mean(VISION, "visual") > mean(BOTH, "visual") > abs(mean(AUDIO, "visual")) + 0.2
    assert mean(AUDIO, "auditory") > mean(BOTH, "auditory") > abs(mean(VISION, "auditory")) + 0.2
    assert mean(VISION, "both") > mean(AUDIO, "both") + 0.1


def test_a_fit_in_bands_finds_the_planted_shares(simulated: Simulated) -> None:
    sweep = summarise_sweep(read_scores(simulated.store, f"bands/{BOTH}/s1"), {})
    (vision,) = (part for name, part in sweep.band_r.items() if name.startswith("clip"))
    shares = {
        region.name: np.median((vision / sweep.nested_r)[SLICES[region.name]]) for region in REGIONS[:3]
    }
    assert shares["visual"] > 0.97
    assert shares["auditory"] < 0.03
    assert 0.5 < shares["both"] < shares["visual"]
    for name, label in (("visual", VISION), ("auditory", AUDIO)):
        alone = simulated.r(label, name).mean()
        assert sweep.nested_r[SLICES[name]].mean() > alone - 0.02
    assert sweep.nested_r[SLICES["both"]].mean() > simulated.r(VISION, "both").mean() + 0.01


def test_vertices_without_signal_stay_at_chance_in_every_analysis(simulated: Simulated) -> None:
    swept = [f"{kind}/{label}" for kind in ("delays", "layers") for label in (VISION, AUDIO, BOTH)]
    swept.append(f"bands/{BOTH}")
    assert above_chance(simulated.store, swept, SLICES["silent"]) <= 0.03
    for group in swept:
        scores = read_scores(simulated.store, f"{group}/s1")
        choice = choose_variants(scores.more["cv"], scores.r, scores.chance)
        assert no_effect(choice.r[0, SLICES["silent"]])

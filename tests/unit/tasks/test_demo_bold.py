"""Simulated BOLD of the demo."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import gamma

from hpcenc.storage.geometry import glasser_labels
from hpcenc.tasks.demo.bold import (
    REGIONS,
    clip_course,
    draw_mixes,
    draw_noise,
    feature_course,
    mix_responses,
    region_labels,
    region_responses,
    sample_response,
    simulate_run,
)
from hpcenc.tasks.demo.hrf import hrf
from hpcenc.tasks.demo.scenes import Script
from hpcenc.tasks.demo.script import write_scripts


@pytest.fixture(scope="module")
def scripts() -> tuple[Script, ...]:
    return write_scripts([180.0, 120.0], seed=0)


@pytest.mark.parametrize("peak_s", [4.5, 5.0, 5.5, 6.5])
def test_hrf_peaks_where_asked(peak_s: float) -> None:
    response = hrf(peak_s, 20)
    assert response.argmax() / 20 == pytest.approx(peak_s, abs=0.15)
    assert response.sum() == pytest.approx(1)
    assert response.min() < 0


def test_regions_have_hrfs_of_their_own_with_peaks_between_4_5_and_6_5_s() -> None:
    peaks = [region.peak_s for region in REGIONS]
    assert len(set(peaks)) == len(peaks)
    assert min(peaks) >= 4.5
    assert max(peaks) <= 6.5


def test_response_is_the_hrf_at_the_middle_of_each_volume() -> None:
    course = np.zeros(60 * 20)
    course[10 * 20] = 20.0  # unit impulse in [10, 10.05) s
    response = sample_response(course, 5.0, 30, 2.0)
    since = np.arange(0.5, 30) * 2.0 - 10.025
    scale = 1 - 1 / 6  # area of the two densities
    expected = (gamma.pdf(since, 6) - gamma.pdf(since, 16) / 6) / scale
    expected[since > 31] = 0
    assert response == pytest.approx(expected, abs=2e-3)
    assert response[since < 0] == pytest.approx(0, abs=1e-12)


def test_courses_are_zero_in_rest_and_take_the_level_of_their_scene(scripts: tuple[Script, ...]) -> None:
    script = scripts[0]
    for course in ("luminance", "loudness", "speed"):
        values = feature_course(script, course)
        for segment in script.segments:
            part = values[round(segment.start_s * 20) : round(segment.end_s * 20)]
            assert part.any() == (segment.kind != "rest")
        start_s, block = script.blocks[1]
        scenes = block.scenes_of(course)
        middles = start_s + (scenes.onset_s + scenes.end_s) / 2
        at = values[(middles * 20).astype(int)]
        assert at == pytest.approx(np.sqrt(12) * (scenes.levels[course] - 0.5))


def test_clip_course_is_the_same_in_every_run_and_nowhere_else(scripts: tuple[Script, ...]) -> None:
    shown = []
    for script in scripts:
        values = clip_course(script, "clip_1", seed=0)
        start, end = (round(seconds * 20) for seconds in script.showing_s)
        shown.append(values[start:end])
        assert not values[:start].any()
        assert not values[end:].any()
    assert np.array_equal(shown[0], shown[1])
    assert len(np.unique(shown[0])) == 5
    assert not np.array_equal(shown[0], clip_course(scripts[1], "clip_2", seed=0)[start:end])


def test_noise_is_stationary_ar1_of_variance_1() -> None:
    noise = draw_noise(20_000, 40, 0.4, np.random.default_rng(0))
    assert noise.dtype == np.float32
    assert noise.var(axis=0) == pytest.approx(np.ones(40), abs=0.05)
    for lag in (1, 2):
        assert np.mean(noise[:, lag:] * noise[:, :-lag]) == pytest.approx(0.4**lag, abs=0.01)


def test_noise_does_not_depend_on_the_number_of_voxels() -> None:
    few, many = (draw_noise(n, 30, 0.4, np.random.default_rng(1)) for n in (9000, 20_000))
    assert np.array_equal(few, many[:9000])


def test_mixes_are_random_directions_of_length_1() -> None:
    mixes = draw_mixes(5000, 4, np.random.default_rng(0))
    assert np.linalg.norm(mixes, axis=1) == pytest.approx(np.ones(5000), abs=1e-5)
    assert np.mean(mixes > 0, axis=0) == pytest.approx(np.full(4, 0.5), abs=0.03)
    assert np.mean(mixes**2, axis=0) == pytest.approx(np.full(4, 0.25), abs=0.02)


@pytest.mark.parametrize("snr", [0.5, 1.0, 4.0])
def test_signal_has_the_variance_asked_over_its_rows(snr: float, scripts: tuple[Script, ...]) -> None:
    for response in region_responses(scripts[0], 180, 1.0, seed=0):
        mixes = draw_mixes(20, len(response), np.random.default_rng(0))
        signal = mix_responses(mixes, response, slice(100, None), snr)
        assert signal[:, 100:].var(axis=1) == pytest.approx(np.full(20, snr), rel=1e-4)


def test_bold_correlates_with_what_is_planted_as_the_snr_says(scripts: tuple[Script, ...]) -> None:
    rng = np.random.default_rng(3)
    responses = region_responses(scripts[0], 180, 1.0, seed=0)
    regions = np.append(np.repeat(np.arange(-1, len(REGIONS)), 400), np.full(50, -1)).astype(np.int8)
    mixes = [draw_mixes(400, len(response), rng) for response in responses]
    bold = simulate_run(responses, mixes, regions[:2000], len(regions), 147, snr=1.0, rho=0.4, rng=rng)
    assert bold.shape == (2050, 180)
    assert bold.mean(axis=1) == pytest.approx(np.zeros(2050), abs=1e-5)
    assert bold.std(axis=1) == pytest.approx(np.ones(2050), abs=1e-4)
    for index, (response, mix) in enumerate(zip(responses, mixes, strict=True)):
        rows = slice(147, None) if REGIONS[index].name == "trap" else slice(None)
        here, nowhere = bold[regions == index], bold[regions == -1][:400]
        r = [_mean_r(voxels[:, rows], (mix @ response)[:, rows]) for voxels in (here, nowhere)]
        assert r[0] == pytest.approx(np.sqrt(0.5), abs=0.04)
        assert abs(r[1]) < 0.05


def _mean_r(bold: NDArray[np.float32], signal: NDArray[np.float64]) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(bold, signal, strict=True)]))


def test_regions_are_named_disjoint_and_made_of_known_areas() -> None:
    labels, names = glasser_labels()
    areas = [area for region in REGIONS for area in region.areas]
    assert len(set(areas)) == len(areas)
    assert {f"{side}_{area}" for side in "LR" for area in areas} <= set(names)
    assert len({region.name for region in REGIONS}) == len(REGIONS)
    regions = region_labels(labels, names)
    for index, region in enumerate(REGIONS):
        wanted = [names.index(f"{side}_{area}") for side in "LR" for area in region.areas]
        assert np.array_equal(regions == index, np.isin(labels, wanted))
        assert (regions == index).sum() > 450
    assert (regions == -1).mean() > 0.8


def test_no_region_but_the_one_of_the_clip_has_a_course_in_the_clip_only() -> None:
    courses = {region.name: region.courses for region in REGIONS}
    assert courses["visual"] == ("luminance", "hue_cos", "hue_sin", "size")
    assert courses["auditory"] == ("loudness", "am_rate", "tone")
    assert courses["motion"] == ("speed",)
    assert all(name.startswith("clip_") for name in courses["trap"])

"""A simulated study planted through the models' own features: movies are shown to untrained CLIP and BEATs
ten times a second, and what they make of it is mixed, convolved with an HRF at that rate, sampled as BOLD.

An untrained network adds so little to its input in a layer that its layers are linear images of each other;
they differ in which courses have variance. Vision is planted in what the deepest layer has much of and the
others little; which layer an audio signal came from could not be told by any linear model. A quarter of an
hour has some hundred scenes: enough for ranks, too few for the shares of a mix, which `test_planted` has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray
from planting import N_VERTICES, REGIONS, SLICES, Planted, Simulated, above_chance, no_effect
from typer.testing import CliRunner

from hpcenc.cli.app import app
from hpcenc.storage.results import read_scores
from hpcenc.storage.store import Store
from hpcenc.tasks.demo.balance import balance_blocks
from hpcenc.tasks.demo.rendering import FPS, SAMPLE_RATE, render_frames, render_sound
from hpcenc.tasks.demo.scenes import Script, draw_block
from hpcenc.tasks.demo.seeds import Stream, generator
from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.loading import load_extractor
from hpcenc.tasks.models.windows import MovieChunk, sample_span
from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.movies import read_audio, read_frames, row_times
from hpcenc.tasks.nested import choose_variants
from hpcenc.tasks.report.sweeps import summarise_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RUNS = {"A": 200, "B": 190, "C": 210, "D": 200}
RATE_HZ, WINDOW_S, N_LAYERS = 10, 1.0, 3
N_COURSES = 8
VISION, AUDIO, BOTH = (f"{name}-untrained-seed-0" for name in ("clip", "beats", "beats-and-clip"))
SINGLE = tuple(range(10))
Floats = NDArray[np.floating[Any]]


def write_run(path: Path, number: int, duration_s: float) -> None:
    """A movie of one block of scenes, without rest: nothing goes on and off with it."""
    (block,) = balance_blocks([draw_block(duration_s, 0, (number, 0))], generator(0, Stream.ORDER, number))
    script = Script(duration_s, (), ((0.0, block),))
    write_movie(path, render_frames(script), FPS, render_sound(script), SAMPLE_RATE)


def fine_features(path: Path, n_trs: int, model: str) -> dict[str, Floats]:
    """All layers of a model at `RATE_HZ`, (n_samples, n_features) each."""
    extractor = load_extractor(
        ModelSpec(model, "untrained", n_layers=N_LAYERS, tr_s=1 / RATE_HZ, window_s=WINDOW_S)
    )
    wave, times, parts = read_audio(path), row_times(n_trs * RATE_HZ, 1 / RATE_HZ), []
    for first in range(0, len(times), 100):
        rows = times[first : first + 100]
        start, stop = sample_span(first, len(rows), 1 / RATE_HZ, WINDOW_S, "causal")
        heard = wave[max(start, 0) : stop]
        padded = np.pad(heard, (max(-start, 0), stop - max(start, 0) - len(heard)))
        chunk = MovieChunk(
            first_row=first,
            n_rows=len(rows),
            tr_s=1 / RATE_HZ,
            frames=read_frames(path, rows.tolist()).frames if model == "clip" else None,
            wave=padded if model == "beats" else None,
            wave_start=start,
        )
        parts.append(extractor.extract(chunk))
    return {layer: np.concatenate([part[layer] for part in parts]).astype(float) for layer in parts[0]}


def standardised(values: Floats) -> Floats:
    scale = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(scale > 0, scale, 1))


def courses_of(layers: dict[str, Floats], planted: str, n_leading: int = 16) -> Floats:
    """Courses of variance 1 that one layer has most of, against the others.

    Among its leading components, those of the largest variance in its features over that in the others'.
    """
    scaled = {layer: standardised(values) for layer, values in layers.items()}
    left, singular, _ = np.linalg.svd(scaled[planted], full_matrices=False)
    leading = left[:, :n_leading]
    others = [values for layer, values in scaled.items() if layer != planted]
    shared = sum((leading.T @ other) @ (leading.T @ other).T for other in others)
    _, mixtures = scipy.linalg.eigh(np.diag(singular[:n_leading] ** 2), shared)
    return standardised(leading @ mixtures[:, ::-1][:, :N_COURSES])


def leading_courses(values: Floats) -> Floats:
    """The layer's leading components, of variance 1."""
    return standardised(np.linalg.svd(standardised(values), full_matrices=False)[0][:, :N_COURSES])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "s1").mkdir()
    found: dict[str, list[dict[str, Floats]]] = {"clip": [], "beats": []}
    for number, (run, n_trs) in enumerate(RUNS.items(), start=1):
        write_run(folder / f"{run}.mp4", number, float(n_trs))
        for model, of_runs in found.items():
            of_runs.append(fine_features(folder / f"{run}.mp4", n_trs, model))
    clip = {
        layer: np.concatenate([of_run[layer] for of_run in found["clip"]])
        for layer in ("1", "2", "embedding")
    }
    edges = np.cumsum([n_trs * RATE_HZ for n_trs in RUNS.values()])[:-1]
    courses = {
        "vision": np.split(courses_of(clip, "embedding"), edges),
        "audio": np.split(
            leading_courses(np.concatenate([of_run[str(N_LAYERS)] for of_run in found["beats"]])), edges
        ),
    }
    rng = np.random.default_rng(0)
    planted = Planted(
        {space: rng.standard_normal((N_COURSES, N_VERTICES)) for space in courses}, RATE_HZ, strength=3
    )
    for place, run in enumerate(RUNS):
        bold = planted.bold({space: of_runs[place] for space, of_runs in courses.items()}, rng)
        np.save(folder / "s1" / f"{run}.npy", bold.astype(np.float32))
    study = folder / "study.toml"
    runs = "\n".join(
        f'[[runs]]\nname = "{run}"\nn_trs = {n_trs}\nmovie = "{run}.mp4"' for run, n_trs in RUNS.items()
    )
    study.write_text(f"""\
name = "planted"
simulated = true
tr_s = 1.0
store = "results/study.zarr"
[subjects]
ids = ["s1"]
[bold]
path = "{{subject}}/{{run}}.npy"
[models]
weights = "untrained"
n_layers = {N_LAYERS}
audio_window_s = {WINDOW_S}
[fit]
block = 5000
backend = "numpy"
weights = "none"
[sweeps]
delays = {list(SINGLE)}
layers = true
bands = true
{runs}
""")
    command = ["submit", str(study), "--models", "clip,beats,beats+clip", "--profile", "serial"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return Simulated(Store(folder / "results" / "study.zarr"), planted)


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

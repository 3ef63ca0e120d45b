"""Real movies through decoding and all feature sets: the codec must not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.tasks.models.catalogue import MODELS, ModelSpec
from hpcenc.tasks.models.loading import load_extractor
from hpcenc.tasks.models.windows import MovieChunk, sample_span
from hpcenc.tasks.movies import check_duration, probe_movie, read_audio, read_frames, row_times

MOVIES = Path(__file__).parents[3] / "shared" / "movies"
MP4, WEBM = MOVIES / "bbb_480p24_h264_aac51_30s.mp4", MOVIES / "bbb_720p24_vp8_vorbis_30s.webm"
SHORT = MOVIES / "bbb_720p25_h264_aac51_5s.mp4"

pytestmark = pytest.mark.skipif(not MOVIES.exists(), reason=f"no real movies at {MOVIES}")


def features(movie: Path, spec: ModelSpec, n_rows: int) -> dict[str, NDArray[np.float32]]:
    """All layers of a model on the first rows of a movie."""
    start, stop = sample_span(0, n_rows, spec.tr_s, spec.window_s, spec.align)
    wave = read_audio(movie)[: max(stop, 0)]
    padded = np.pad(wave, (max(0, -start), max(0, stop - len(wave))))
    frames = read_frames(movie, row_times(n_rows, spec.tr_s).tolist()).frames
    return load_extractor(spec).extract(MovieChunk(0, n_rows, spec.tr_s, frames, padded, start))


@pytest.mark.parametrize(
    ("model", "at_least"),
    [("beats", {"2": 0.7}), ("clip", {"embedding": 0.98}), ("cavmae", {"audio-1": 0.85, "visual": 0.98})],
)
def test_features_of_two_codecs_agree(model: str, at_least: dict[str, float]) -> None:
    """H.264 with AAC 5.1 against VP8 with Vorbis stereo, of another size: the same courses.

    Correlation over all rows and features, each feature less its mean. Pictures agree to .99. The two
    sounds differ before any model hears them: the mean of six channels is a third as loud, the sound
    lies 33 ms apart, and the AAC file holds nothing in the top quarter of the mel bands, where the
    log spectra correlate .66 (elsewhere .99).
    """
    spec = ModelSpec(model, weights="untrained", n_layers=2, window_s=2.0)
    found = [features(movie, spec, 30) for movie in (MP4, WEBM)]
    for layer, bound in at_least.items():
        first, second = (values[layer].astype(float) - values[layer].mean(axis=0) for values in found)
        r = np.vdot(first, second) / (np.linalg.norm(first) * np.linalg.norm(second))
        print(f"{model}/{layer}: r {r:.4f}")
        assert r > bound


@pytest.mark.parametrize("tr_s", [1.0, 1.49, 2.0])
@pytest.mark.parametrize("model", MODELS)
def test_a_movie_of_any_length_gives_a_row_for_each_tr(model: str, tr_s: float) -> None:
    n_rows = int(np.ceil(probe_movie(SHORT).duration_s / tr_s))
    check_duration(probe_movie(SHORT), n_rows, tr_s, "short")
    found = features(
        SHORT, ModelSpec(model, weights="untrained", n_layers=2, window_s=2.0, tr_s=tr_s), n_rows
    )
    for values in found.values():
        assert len(values) == n_rows
        assert np.isfinite(values).all()

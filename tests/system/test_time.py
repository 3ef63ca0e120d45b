"""From a written movie to feature rows: what happens in a second changes that row, and none before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.loading import load_extractor
from hpcenc.tasks.models.windows import MovieChunk, sample_span
from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.movies import read_audio, read_frames, row_times

N_ROWS, EVENT_S, FPS, RATE = 8, 4, 24, 48_000
WINDOW_S = 2.0


def write_test_movie(path: Path, event: bool) -> Path:
    """Eight seconds of grey and faint noise; the event is a white second with a beep of 0.4 s in it."""

    def frames() -> Iterator[NDArray[np.uint8]]:
        for frame in range(N_ROWS * FPS):
            white = event and frame // FPS == EVENT_S
            yield np.full((224, 256, 3), 230 if white else 90, np.uint8)

    wave = 0.003 * np.random.default_rng(0).standard_normal(N_ROWS * RATE)
    if event:
        start = round((EVENT_S + 0.3) * RATE)
        wave[start : start + round(0.4 * RATE)] += 0.5 * np.sin(np.arange(round(0.4 * RATE)) * 0.1)
    write_movie(path, frames(), FPS, wave.astype(np.float32), RATE)
    return path


def features(movie: Path, model: str, layer: str) -> NDArray[np.float32]:
    spec = ModelSpec(model, weights="untrained", n_layers=2, window_s=WINDOW_S)
    start, stop = sample_span(0, N_ROWS, spec.tr_s, spec.window_s, spec.align)
    wave = read_audio(movie)[:stop]
    padded = np.pad(wave, (-start, max(0, stop - len(wave))))
    frames = read_frames(movie, row_times(N_ROWS, spec.tr_s).tolist()).frames
    return load_extractor(spec).extract(MovieChunk(0, N_ROWS, spec.tr_s, frames, padded, start))[layer]


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("movies")
    return write_test_movie(folder / "plain.mp4", False), write_test_movie(folder / "event.mp4", True)


def changed_rows(model: str, layer: str, movies: tuple[Path, Path]) -> list[int]:
    """Rows that the event changes, beyond 2 % of its effect on its own row.

    Coding is no part of what is tested: a later picture changes the last digits of an earlier one.
    """
    plain, event = (features(movie, model, layer) for movie in movies)
    effect = np.linalg.norm(event - plain, axis=1)
    return np.flatnonzero(effect > 0.02 * effect[EVENT_S]).tolist()


@pytest.mark.parametrize(("model", "layer"), [("clip", "embedding"), ("cavmae", "visual")])
def test_a_flash_changes_its_row_alone(model: str, layer: str, movies: tuple[Path, Path]) -> None:
    assert changed_rows(model, layer, movies) == [EVENT_S]


@pytest.mark.parametrize(("model", "layer"), [("beats", "2"), ("cavmae", "audio")])
def test_a_beep_changes_no_row_before_its_own(model: str, layer: str, movies: tuple[Path, Path]) -> None:
    """The next row's window of two seconds holds it too; what AAC makes of the noise differs from then on."""
    changed = changed_rows(model, layer, movies)
    assert changed[:2] == [EVENT_S, EVENT_S + 1]

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.store import Store
from hpcenc.tasks.decoding import (
    CHUNK_TRS,
    DecodeAudio,
    DecodeFrames,
    audio_unit,
    chunk_rows,
    n_chunks,
    n_samples,
    stimulus_arrays,
)
from hpcenc.tasks.movies import frame_size, read_audio
from hpcenc.tasks.records import Unit

TR_S = 0.1
N_TRS = 72  # two chunks
FPS = 20
GROUP, KEY = "stimulus/main/a", "a" * 64


@pytest.fixture(scope="module")
def movie(number_movie: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered frames that end one row before the run does."""
    return number_movie(
        tmp_path_factory.mktemp("movie") / "a.mp4", FPS, range(round((N_TRS - 1) * TR_S * FPS))
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})
    height, width = frame_size(96, 128)
    arrays = stimulus_arrays(N_TRS, TR_S, height, width)
    made.ensure_group(GroupSpec(GROUP, KEY, arrays, n_chunks(N_TRS) + 1, {}))
    return made


def test_sound_that_ends_more_than_one_row_early_fails_its_unit(
    number_movie: Callable[..., Path],
    beeps: Callable[[float, int], NDArray[np.float32]],
    store: Store,
    tmp_path: Path,
) -> None:
    n_frames = round(N_TRS * TR_S * FPS)
    short = number_movie(tmp_path / "b.mp4", FPS, range(n_frames), wave=beeps(5.0, 48_000))
    task = DecodeAudio(unit=audio_unit(GROUP, N_TRS, KEY), movie=short, n_trs=N_TRS, tr_s=TR_S)
    record = task.run(store, None)
    assert record.done == ()
    assert "the sound ends at 5." in record.failed[0].reason


@pytest.mark.parametrize("n_trs", [1, CHUNK_TRS, CHUNK_TRS + 1, 901])
def test_chunks_cover_every_row_once(n_trs: int) -> None:
    rows = [row for chunk in range(n_chunks(n_trs)) for row in range(n_trs)[chunk_rows(chunk, n_trs)]]
    assert rows == list(range(n_trs))


def test_audio_has_the_samples_of_the_run() -> None:
    assert n_samples(300, 1.0) == 300 * 16_000
    assert n_samples(3, 1.49) == round(3 * 1.49 * 16_000)


def test_rows_hold_the_frame_on_screen_at_their_middle(
    movie: Path, store: Store, read_numbers: Callable[[NDArray[np.uint8]], list[int]]
) -> None:
    for chunk in range(n_chunks(N_TRS)):
        task = DecodeFrames(unit=Unit(GROUP, chunk, KEY), movie=movie, n_trs=N_TRS, tr_s=TR_S)
        (done,) = task.run(store, None).done
        assert done.facts["rows_padded"] == chunk  # the last row, by the last frame
    last = round((N_TRS - 1) * TR_S * FPS) - 1
    shown = [min(int((row + 0.5) * TR_S * FPS + 1e-6), last) for row in range(N_TRS)]
    assert read_numbers(store.read(f"{GROUP}/frames")) == shown


def test_audio_is_that_of_the_movie_and_silence(movie: Path, store: Store) -> None:
    task = DecodeAudio(unit=audio_unit(GROUP, N_TRS, KEY), movie=movie, n_trs=N_TRS, tr_s=TR_S)
    assert task.unit.index == n_chunks(N_TRS)
    (done,) = task.run(store, None).done
    wave, stored = read_audio(movie), store.read(f"{GROUP}/audio")
    assert stored.shape == (n_samples(N_TRS, TR_S),)
    heard = min(len(wave), len(stored))
    np.testing.assert_array_equal(stored[:heard], wave[:heard])
    assert not stored[heard:].any()
    assert done.facts["seconds_padded"] == pytest.approx((len(stored) - heard) / 16_000)
    assert done.facts["seconds_padded"] > 0

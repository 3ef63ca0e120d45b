"""Rows, their windows, and the time steps that belong to a row's TR."""

import numpy as np
import pytest

from hpcenc.tasks.models.windows import MovieChunk, pooled_steps, row_windows, sample_span, window_start

TRS = [0.72, 1.0, 1.49, 2.0]


def counting_chunk(first_row, n_rows, tr_s, window_s, align):
    """Every sample is its own number on the movie's clock."""
    start, stop = sample_span(first_row, n_rows, tr_s, window_s, align)
    return MovieChunk(first_row, n_rows, tr_s, None, np.arange(start, stop, dtype=np.float32), start)


@pytest.mark.parametrize("tr_s", TRS)
def test_a_causal_window_ends_with_its_row(tr_s):
    chunk = counting_chunk(3, 5, tr_s, 4.0, "causal")
    windows = row_windows(chunk, 4.0, "causal")
    assert windows.shape == (5, 64_000)
    for window, row in zip(windows, range(3, 8), strict=True):
        assert window[-1] + 1 == round((row + 1) * tr_s * 16_000)
        assert (np.diff(window) == 1).all()


@pytest.mark.parametrize("tr_s", TRS)
def test_a_centred_window_lies_around_the_middle_of_its_row(tr_s):
    chunk = counting_chunk(0, 4, tr_s, 4.0, "centred")
    for row, window in enumerate(row_windows(chunk, 4.0, "centred")):
        assert window[32_000] == round((row + 0.5) * tr_s * 16_000)


@pytest.mark.parametrize("align", ["causal", "centred"])
@pytest.mark.parametrize("tr_s", TRS)
def test_windows_do_not_depend_on_the_chunk(tr_s, align):
    whole = row_windows(counting_chunk(0, 7, tr_s, 3.0, align), 3.0, align)
    part = row_windows(counting_chunk(4, 3, tr_s, 3.0, align), 3.0, align)
    np.testing.assert_array_equal(part, whole[4:])


def test_the_first_windows_begin_before_the_movie():
    assert sample_span(0, 2, 1.0, 10.0, "causal") == (-144_000, 32_000)
    assert window_start(0, 1.0, 10.0, "centred") == -72_000


def test_a_chunk_with_too_little_audio_is_refused():
    wave = np.zeros(16_000, np.float32)
    with pytest.raises(
        ValueError, match="need samples -16000 to 16000 of the movie; the chunk has 0 to 16000"
    ):
        row_windows(MovieChunk(0, 1, 1.0, None, wave, 0), 2.0, "causal")
    with pytest.raises(ValueError, match="no audio"):
        row_windows(MovieChunk(0, 1, 1.0, None, None, 0), 2.0, "causal")


def test_a_chunk_has_as_many_frames_as_rows():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="expected 3 frames, found 2"):
        MovieChunk(0, 3, 1.0, frames, None, 0)


@pytest.mark.parametrize("align", ["causal", "centred"])
@pytest.mark.parametrize(
    ("tr_s", "window_s"), [(1.0, 10.0), (1.49, 4.0), (2.0, 4.0), (0.72, 10.0), (4.0, 4.0)]
)
def test_steps_of_a_row_are_those_with_their_centre_in_its_tr(tr_s, window_s, align):
    n_steps = int(((window_s * 16_000 - 400) // 160 + 1) // 16)
    start = window_s - tr_s if align == "causal" else (window_s - tr_s) / 2
    expected = [start <= 0.16 * t + 0.0875 < start + tr_s for t in range(n_steps)]
    assert pooled_steps(n_steps, tr_s, window_s, align, "tr").tolist() == expected
    assert any(expected)


def test_ten_second_windows_give_six_steps_to_the_last_second():
    steps = pooled_steps(62, 1.0, 10.0, "causal", "tr")
    assert np.flatnonzero(steps).tolist() == [56, 57, 58, 59, 60, 61]


def test_a_tr_without_any_centre_takes_the_nearest_step():
    assert np.flatnonzero(pooled_steps(24, 0.05, 4.0, "causal", "tr")).tolist() == [23]
    assert np.flatnonzero(pooled_steps(24, 0.02, 4.0, "centred", "tr")).tolist() == [12]


def test_pooling_over_the_window_takes_every_step():
    assert pooled_steps(62, 1.0, 10.0, "causal", "window").all()


def test_a_tr_longer_than_the_window_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        pooled_steps(62, 12.0, 10.0, "causal", "tr")

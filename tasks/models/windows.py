"""A stretch of movie on the TR grid, and the audio window that each row of it hears."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.models.catalogue import SAMPLE_RATE

STEP_SAMPLES = 2560
"""Samples from one time step of an audio model to the next: 16 spectrogram rows of 10 ms."""

STEP_CENTRE_SAMPLES = 1400
"""Samples from a time step's first to its centre: it spans 16 rows of 10 ms, each 25 ms long."""


@dataclass(frozen=True)
class MovieChunk:
    """Consecutive rows of a movie, with the audio that their windows need.

    Raises
    ------
    ValueError
        If there are not as many frames as rows.
    """

    first_row: int
    n_rows: int
    tr_s: float
    frames: NDArray[np.uint8] | None
    """RGB, shape (n_rows, height, width, 3): the frame at each row's middle, shorter side 224."""

    wave: NDArray[np.float32] | None
    """Mono at 16 kHz, zero where the movie has none."""

    wave_start: int
    """Sample of the movie that ``wave[0]`` is; negative where a window begins before the movie."""

    def __post_init__(self) -> None:
        if self.frames is not None and len(self.frames) != self.n_rows:
            raise ValueError(
                f"rows {self.first_row} to {self.first_row + self.n_rows}: "
                f"expected {self.n_rows} frames, found {len(self.frames)}."
            )


def count_samples(seconds: float) -> int:
    """Samples nearest to a duration in seconds."""
    return round(seconds * SAMPLE_RATE)


def window_start(row: int, tr_s: float, window_s: float, align: str) -> int:
    """First sample, on the movie's clock, of a row's audio window.

    Parameters
    ----------
    row : int
        The row describes the movie in [row * tr_s, (row + 1) * tr_s).
    tr_s, window_s : float
        TR and window in seconds.
    align : {"causal", "centred"}
        Whether the window ends with the row's TR, or is centred on its middle.

    Returns
    -------
    int
        Negative where the window begins before the movie.
    """
    n_samples = count_samples(window_s)
    if align == "causal":
        return count_samples((row + 1) * tr_s) - n_samples
    return count_samples((row + 0.5) * tr_s) - n_samples // 2


def sample_span(first_row: int, n_rows: int, tr_s: float, window_s: float, align: str) -> tuple[int, int]:
    """Samples that the windows of consecutive rows cover, as ``(start, stop)``.

    The caller reads this span for a `MovieChunk` and fills what lies outside the movie
    with zeros.
    """
    last_row = first_row + n_rows - 1
    start = window_start(first_row, tr_s, window_s, align)
    stop = window_start(last_row, tr_s, window_s, align) + count_samples(window_s)
    return start, stop


def row_windows(chunk: MovieChunk, window_s: float, align: str) -> NDArray[np.float32]:
    """The audio window of every row, all of one length.

    Equal lengths are what keeps padding masks, and BEATs' inexact ones with them, out of
    the models.

    Returns
    -------
    array of shape (n_rows, n_samples)

    Raises
    ------
    ValueError
        If the chunk has no audio, or less than its windows need.
    """
    start, stop = sample_span(chunk.first_row, chunk.n_rows, chunk.tr_s, window_s, align)
    rows = f"rows {chunk.first_row} to {chunk.first_row + chunk.n_rows}"
    if chunk.wave is None:
        raise ValueError(f"{rows}: the chunk has no audio. Expected samples {start} to {stop} of the movie.")
    chunk_stop = chunk.wave_start + len(chunk.wave)
    if chunk.wave_start > start or chunk_stop < stop:
        raise ValueError(
            f"{rows}: their {align} windows of {window_s} s need samples {start} to {stop} of the movie; "
            f"the chunk has {chunk.wave_start} to {chunk_stop}. Fill what lies outside the movie with zeros."
        )
    offsets = [
        window_start(row, chunk.tr_s, window_s, align) - chunk.wave_start
        for row in range(chunk.first_row, chunk.first_row + chunk.n_rows)
    ]
    n_samples = count_samples(window_s)
    return np.stack([chunk.wave[offset : offset + n_samples] for offset in offsets])


def pooled_steps(n_steps: int, tr_s: float, window_s: float, align: str, pool: str) -> NDArray[np.bool_]:
    """Time steps of a window that a row's features are the mean of.

    Every row's TR lies at the same place in its window, so one mask serves all rows. A
    step counts for the TR in which its centre lies, 0.16 t + 0.0875 s after the window's
    start; a TR too short to hold a centre takes the step nearest to its middle.

    Parameters
    ----------
    n_steps : int
        Time steps that the model makes of a window.
    tr_s, window_s : float
        TR and window in seconds.
    align : {"causal", "centred"}
    pool : {"tr", "window"}
        Whether steps of the row's TR count, or all.

    Returns
    -------
    array of bool, shape (n_steps,)
        True at least once.

    Raises
    ------
    ValueError
        If the TR is longer than the window.
    """
    if tr_s > window_s:
        raise ValueError(f"a TR of {tr_s} s does not fit into a window of {window_s} s.")
    if pool == "window":
        return np.ones(n_steps, dtype=np.bool_)
    # Whole samples: a centre on the edge of two TRs must not be decided by rounding.
    n_window, n_tr = count_samples(window_s), count_samples(tr_s)
    tr_start = n_window - n_tr if align == "causal" else n_window // 2 - n_tr // 2
    centres = STEP_CENTRE_SAMPLES + STEP_SAMPLES * np.arange(n_steps)
    inside: NDArray[np.bool_] = (centres >= tr_start) & (centres < tr_start + n_tr)
    if not inside.any():
        inside[np.argmin(np.abs(centres - (tr_start + n_tr / 2)))] = True
    return inside

"""Read movies onto the TR grid: the frame on screen at a row's time, and the sound as one 16 kHz wave.

Times are seconds of the movie's clock. Its zero is the earliest start among picture and sound, as in players:
a track that starts later stays that much later, so the two keep in step. Frames are found by their time
stamps; counting them fails at a variable rate, and FFmpeg's ``fps=1`` filter is half a second late.

A damaged file is refused rather than filled in: no feature may come from a picture that was not there. Damage
that a codec itself cannot see, such as a wrong bit in a VP8 packet, stays unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL import Image

from hpcenc.tasks.models.catalogue import SAMPLE_RATE, SHORT_SIDE
from hpcenc.tasks.movie_file import MovieError, open_movie
from hpcenc.tasks.pictures import CLOCK_TOLERANCE_S, Picture, pictures_on_screen
from hpcenc.tasks.sound import mono_pieces

_CODEC_SLACK_S = 512 / SAMPLE_RATE
"""How much codecs may shorten or lengthen the sound: part of a packet."""


@dataclass(frozen=True)
class MovieInfo:
    """What a movie file holds."""

    path: Path
    duration_s: float
    """From the movie's time zero to the end of its last picture."""
    fps: float
    """Frames per second, on average where the rate varies."""
    width: int
    height: int
    video_codec: str
    n_channels: int
    """Channels of the sound; 0 without an audio track."""
    audio_rate: int
    """Samples per second of the sound; 0 without an audio track."""
    audio_codec: str
    """Codec of the sound; empty without an audio track."""
    audio_duration_s: float | None
    """From the movie's time zero to the end of the sound; None where the header does not say it."""

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio track."""
        return self.n_channels > 0


@dataclass(frozen=True)
class FrameRows:
    """Frames on screen at the wanted times."""

    frames: NDArray[np.uint8]
    """RGB, of shape (n_times, height, width, 3)."""
    shown_at_s: NDArray[np.float64]
    """When each frame came on screen, of shape (n_times,)."""
    n_padded: int
    """Times at or after the end of the picture, which repeat the last frame."""


def row_times(n_trs: int, tr_s: float) -> NDArray[np.float64]:
    """Middle of each row's stimulus interval [k·TR, (k+1)·TR), in seconds, of shape (n_trs,)."""
    return (np.arange(n_trs, dtype=np.float64) + 0.5) * tr_s


def frame_size(height: int, width: int, short_side: int = SHORT_SIDE) -> tuple[int, int]:
    """Height and width once the shorter side is ``short_side``, rounded as torchvision's ``Resize`` does."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def probe_movie(path: Path) -> MovieInfo:
    """Read what a movie holds, from its headers and last packets, without decoding.

    Parameters
    ----------
    path : Path
        A local movie file.

    Returns
    -------
    MovieInfo
        Duration, size, rates and codecs.

    Raises
    ------
    MovieError
        If the file is missing, not a movie, without a picture track, or ends before its header says.
    """
    with open_movie(path) as movie:
        audio = movie.audio.codec_context if movie.audio else None
        return MovieInfo(
            path=path,
            duration_s=movie.end_s,
            fps=movie.fps,
            width=movie.video.width,
            height=movie.video.height,
            video_codec=movie.video.codec_context.name,
            n_channels=audio.layout.nb_channels if audio else 0,
            audio_rate=audio.sample_rate if audio else 0,
            audio_codec=audio.name if audio else "",
            audio_duration_s=movie.audio_end_s,
        )


def check_duration(info: MovieInfo, n_trs: int, tr_s: float, run: str, *, with_audio: bool = True) -> None:
    """Refuse a movie whose picture or sound ends more than one TR before its run; up to one TR is padded.

    Parameters
    ----------
    info : MovieInfo
        The movie, from `probe_movie`.
    n_trs : int
        TRs of the run in which it was shown.
    tr_s : float
        Repetition time in seconds.
    run : str
        Name of the run, for the message.
    with_audio : bool
        Whether the sound is needed. It is checked where the header tells its end, and again by `check_sound`
        once it is decoded.

    Raises
    ------
    MovieError
        If more than one TR is missing.
    """
    if n_trs * tr_s - info.duration_s > tr_s + CLOCK_TOLERANCE_S:
        raise MovieError(
            f"run '{run}': movie '{info.path}' lasts {info.duration_s:.2f} s, the run {n_trs * tr_s:.2f} s "
            f"({n_trs} TRs of {tr_s:g} s). Expected at most one TR less. Name the movie shown in this "
            "run; if the scan did go on, name those seconds a rest, and pad the movie with them "
            "(ffmpeg -i in -vf tpad=stop_mode=add:stop_duration=SECONDS -af apad -shortest out)."
        )
    if with_audio and info.audio_duration_s is not None:
        check_sound(info.path, info.audio_duration_s, n_trs, tr_s)


def check_sound(path: Path, end_s: float, n_trs: int, tr_s: float) -> None:
    """Refuse a sound that ends more than one TR before its run; up to one TR is padded with silence.

    Parameters
    ----------
    path : Path
        The movie, for the message.
    end_s : float
        End of the sound, in seconds of the movie. What a codec may take off the last packet is allowed for.
    n_trs : int
        TRs of the run in which the movie was shown.
    tr_s : float
        Repetition time in seconds.

    Raises
    ------
    MovieError
        If more than one TR is missing.
    """
    if n_trs * tr_s - end_s > tr_s + _CODEC_SLACK_S:
        raise MovieError(
            f"movie '{path}': the sound ends at {end_s:.2f} s, the run at {n_trs * tr_s:.2f} s "
            f"({n_trs} TRs of {tr_s:g} s). Expected at most one TR less. Copy the movie again; if it did "
            "fall silent, fill its sound up (ffmpeg -i in -c:v copy -af apad -shortest out)."
        )


def read_frames(path: Path, times_s: Sequence[float], short_side: int = SHORT_SIDE) -> FrameRows:
    """Read the frame on screen at each time: the last one whose time stamp is not after it.

    Decoding starts at the keyframe before the first time, so that a movie can be read in chunks of rows; the
    frames are byte for byte those of reading it in one go.

    Parameters
    ----------
    path : Path
        A local movie file.
    times_s : sequence of float
        Times in seconds, not decreasing.
    short_side : int
        Pixels of the shorter side after antialiased bicubic resizing of the RGB picture by Pillow, as in
        CLIP's own preprocessing. Pictures are taken as stored: neither rotated nor stretched by display
        hints.

    Returns
    -------
    FrameRows
        The frames, when they came on screen, and how many times lay after the last one.

    Raises
    ------
    MovieError
        If the file cannot be read, the picture starts a frame or more after the first time, a packet cannot
        be decoded, or the picture that should be on screen is lost.
    ValueError
        If a time is negative, not finite, or before the preceding one.

    Notes
    -----
    RGB follows from the matrix and range that the file names; one that names none is taken for BT.601 in
    limited range, as FFmpeg's tools do.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times, prepend=0) < 0).any():
        raise ValueError(
            f"movie '{path}': expected times in seconds from 0 on, not decreasing, found {times_s}."
        )
    with open_movie(path) as movie:
        size = frame_size(movie.video.height, movie.video.width, short_side)
        try:
            frames, shown_at_s = _gather(pictures_on_screen(movie, times), len(times), size)
        except MovieError:
            frames, shown_at_s = _gather(pictures_on_screen(movie, times, from_start=True), len(times), size)
        n_padded = np.count_nonzero(times >= movie.end_s - CLOCK_TOLERANCE_S)
    return FrameRows(frames, shown_at_s, int(n_padded))


def read_audio(path: Path, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Read the whole sound as one channel, from the movie's time zero.

    The mean over all channels is resampled by soxr at high quality, in one sequential pass: AAC decoded from
    a seek differs from AAC decoded from the start. A sound that starts after time zero follows on silence.

    Parameters
    ----------
    path : Path
        A local movie file.
    sample_rate : int
        Samples per second to resample to.

    Returns
    -------
    float32 array of shape (n_samples,)
        Sample ``i`` is the sound at ``i / sample_rate`` s. It is as long as the track, which may end before
        or after the picture. No other memory grows with its length.

    Raises
    ------
    MovieError
        If the file cannot be read or has no sound, or a packet cannot be decoded or is missing.
    """
    with open_movie(path) as movie:
        if movie.audio is None:
            raise MovieError(
                f"movie '{path}': expected an audio track, found none. Name a movie with sound, or leave out "
                "the models that need it."
            )
        rate = movie.audio.codec_context.sample_rate
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
        wave = bytearray()  # grows in place, where a list of pieces would be held twice to be joined
        for piece in mono_pieces(movie):
            wave += resampler.resample_chunk(piece).tobytes()
        wave += resampler.resample_chunk(np.empty(0, np.float32), last=True).tobytes()
    return np.frombuffer(wave, dtype=np.float32)


def _gather(
    pictures: Iterable[Picture], n_rows: int, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Resized pictures of shape (n_rows, height, width, 3), and when each came on screen."""
    height, width = size
    frames = np.empty((n_rows, height, width, 3), np.uint8)
    shown_at_s = np.empty(n_rows)
    previous: Picture | None = None
    for row, picture in enumerate(pictures):
        if picture is previous:
            frames[row] = frames[row - 1]
        else:
            image = Image.fromarray(picture.to_rgb())
            frames[row] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        shown_at_s[row] = picture.start_s
        previous = picture
    return frames, shown_at_s

"""Decode a movie's sound in one sequential pass, placed by counting samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.movie_file import MovieError, MovieFile

_GAP_S = 0.015  # between a packet of AAC, Opus or MP3 (20 ms or more) and what stamps may be off (11 ms seen)


def mono_pieces(movie: MovieFile) -> Iterator[NDArray[np.float32]]:
    """Mean over the channels at the file's own rate, piece by piece from the movie's time zero on.

    Samples are counted from the first stamp on: Matroska rounds stamps to 1 ms. They are compared with the
    count to find missing packets, which would shift all later sound.

    Raises
    ------
    MovieError
        If a packet cannot be decoded or is missing, or channels or rate change within the movie.
    """
    expected = _form(movie.audio.codec_context)
    rate = movie.audio.codec_context.sample_rate
    to_float = av.AudioResampler(format="fltp")
    n_samples: int | None = None
    for frame in _decode(movie):
        start_s = movie.seconds(frame.pts, frame.time_base)
        if _form(frame) != expected:
            raise MovieError(
                f"movie '{movie.path}': sound at {start_s:.3f} s: expected {expected}, found {_form(frame)}. "
                "Convert the sound to one form."
            )
        mono = np.concatenate([part.to_ndarray().mean(axis=0) for part in to_float.resample(frame)])
        if n_samples is None:
            n_samples = round(start_s * rate)
            if n_samples > 0:
                yield np.zeros(n_samples, np.float32)
            n_early = max(-n_samples, 0)
        elif abs(start_s - n_samples / rate) > _GAP_S:
            raise MovieError(
                f"movie '{movie.path}': the sound stops at {n_samples / rate:.3f} s and goes on at "
                f"{start_s:.3f} s. Expected no gap. Copy the file again, or fill the gap (ffmpeg -i in -af "
                "aresample=async=1 out)."
            )
        n_samples += len(mono)
        yield mono[n_early:]
        n_early = max(n_early - len(mono), 0)


def _form(sound: Any) -> str:
    return f"{sound.layout.nb_channels} channels at {sound.sample_rate} Hz"


def _decode(movie: MovieFile) -> Iterator[Any]:
    for packet in movie.container.demux(movie.audio):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            at_s = movie.seconds(packet.pts or 0, packet.time_base)
            raise MovieError(
                f"movie '{movie.path}': the sound at {at_s:.3f} s cannot be decoded ({error.strerror}). "
                "Expected an undamaged file. Copy it again."
            ) from error
        for frame in frames:
            if frame.pts is None:
                raise MovieError(
                    f"movie '{movie.path}': expected time stamps on the sound, found none. Convert it to mp4."
                )
            yield frame

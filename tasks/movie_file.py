"""Open a movie file: what may be opened, where its clock begins, and where its picture ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

_FORMATS = "mov,matroska,webm,avi,asf,ogg"
"""Containers that hold their own data, which playlists and image sequences do not, and in which a seek finds
the keyframe before a time, which it may not in MPEG's streams and FLV."""

_TRUNCATED_S = 0.25  # a header may promise this much more than the packets hold; muxers round
_N_SURVEYED = 250  # packets at the start that tell whether pictures are regular
_REGULAR_SHARE = 0.9


class MovieError(ValueError):
    """A movie file that cannot be used, or not without inventing what it lost."""


@dataclass(frozen=True)
class MovieFile:
    """An open movie and its clock, in seconds from the earliest start among picture and sound."""

    path: Path
    container: Any
    video: Any
    audio: Any
    """The sound's stream, or None."""
    zero: Fraction
    """Time zero on the file's own clock."""
    end_s: float
    """End of the last picture."""
    audio_end_s: float | None
    """End of the sound, where the header says it."""
    fps: float
    """Frames per second, on average where the rate varies."""
    is_regular: bool
    """Whether nearly all pictures come one frame period after the one before."""

    @property
    def lists_packets(self) -> bool:
        """Whether the header lists every packet, so that none can vanish unseen."""
        return "mp4" in self.container.format.name

    def seconds(self, ticks: int, time_base: Fraction) -> float:
        """Movie time of a time stamp."""
        return float(ticks * time_base - self.zero)


@contextmanager
def open_movie(path: Path) -> Iterator[MovieFile]:
    """Open a local movie file for reading from its start.

    Raises
    ------
    MovieError
        If the file is missing, not a movie, without a picture, or ends before its header says; also in place
        of FFmpeg's own errors within the ``with`` block.
    """
    with _open_container(path) as container:
        zero = _find_zero(container)
        end, is_regular = _survey(container, path)
    # Opened again rather than rewound: sound decoded after a seek is not the sound decoded from the start.
    with _open_container(path) as container:
        video, audio = container.streams.best("video"), container.streams.best("audio")
        # The workers are the parallelism, and with one thread damage shows at its own packet. Without
        # "explode" H.264 paints over what it cannot decode.
        video.codec_context.thread_type = "NONE"
        video.codec_context.options = {"err_detect": "explode"}
        yield MovieFile(
            path=path,
            container=container,
            video=video,
            audio=audio,
            zero=zero,
            end_s=float(end - zero),
            audio_end_s=_audio_end_s(audio, zero),
            fps=float(_frame_rate(video)),
            is_regular=is_regular,
        )


@contextmanager
def _open_container(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise MovieError(
            f"movie '{path}': expected a local file, found none. Correct the path; "
            "copy a movie that is on the network first."
        )
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        # "file:" keeps a name such as "concat:a" from being read as a protocol.
        with av.open(f"file:{path}", options=options) as container:
            if container.streams.best("video") is None:
                raise MovieError(f"movie '{path}': expected a picture track, found none. Name a movie file.")
            yield container
    except av.error.FFmpegError as error:
        raise MovieError(
            f"movie '{path}': expected an undamaged movie ({_FORMATS}), found: {error.strerror}. "
            "Copy the file again, or copy its tracks into another container (ffmpeg -i in -c copy out.mkv)."
        ) from error


def _find_zero(container: Any) -> Fraction:
    """Earliest picture or sound on the file's own clock.

    The first sound is decoded, because a codec's first packets may be silent: Vorbis gives nothing for the
    first, AAC and Opus give samples to be skipped.
    """
    video, audio = container.streams.best("video"), container.streams.best("audio")
    starts: list[Fraction] = [] if video.start_time is None else [video.start_time * video.time_base]
    if audio is not None:
        heard = next((frame for frame in container.decode(audio) if frame.pts is not None), None)
        starts += [] if heard is None else [heard.pts * heard.time_base]
        container.seek(0)
    return min(starts, default=Fraction(0))


def _audio_end_s(audio: Any, zero: Fraction) -> float | None:
    """End of the sound in movie time; None without sound, or where the header does not say it (Matroska)."""
    if audio is None or audio.duration is None:
        return None
    return float(((audio.start_time or 0) + audio.duration) * audio.time_base - zero)


def _frame_rate(video: Any) -> Fraction:
    rate: Fraction = video.average_rate or video.guessed_rate or Fraction(25)
    return rate


def _survey(container: Any, path: Path) -> tuple[Fraction, bool]:
    """End of the last picture on the file's own clock, and whether pictures follow each other regularly.

    Only the first packets and those after the last keyframe are read, so that every chunk of a long movie can
    afford it and comes to the same answer.
    """
    video = container.streams.best("video")
    header_end = Fraction(container.duration or 0, av.time_base)
    if "matroska" not in container.format.name:  # which counts from the clock's zero, not from its own start
        header_end += Fraction(container.start_time or 0, av.time_base)
    first = [p.pts for p in islice(container.demux(video), _N_SURVEYED) if p.pts is not None]
    container.seek(int(header_end / video.time_base), stream=video)
    tail = [p for p in container.demux() if p.size and p.pts is not None]
    last = [p.pts for p in tail if p.stream_index == video.index]
    data_end = _packets_end(tail)
    if last and header_end - data_end > _TRUNCATED_S:  # the last to end may be a subtitle from long before
        container.seek(0)
        data_end = _packets_end(p for p in container.demux() if p.size and p.pts is not None)
    if not last or header_end - data_end > _TRUNCATED_S:
        raise MovieError(
            f"movie '{path}': the header promises {float(header_end):.2f} s, the data end at "
            f"{float(data_end):.2f} s. Expected a whole file. Copy it again."
        )
    return _picture_end(video, max(last)), _is_regular(first, last)


def _packets_end(packets: Iterable[Any]) -> Fraction:
    """End of the last packet on the file's own clock."""
    return max(((p.pts + (p.duration or 0)) * p.time_base for p in packets), default=Fraction(0))


def _picture_end(video: Any, last: int) -> Fraction:
    """End of the picture with the last stamp: the header's, if it can be.

    With B-frames at a variable rate, mp4 counts durations in the order of decoding: its packets then carry
    each other's, and their sum may end before the last picture comes.
    """
    if video.duration is not None:
        end: Fraction = ((video.start_time or 0) + video.duration) * video.time_base
        if end > last * video.time_base:
            return end
    period: Fraction = 1 / (video.base_rate or _frame_rate(video))
    return last * Fraction(video.time_base) + period


def _is_regular(*stamps: list[int]) -> bool:
    intervals = np.concatenate([np.diff(np.sort(part)) for part in stamps])
    if not len(intervals):
        return False
    usual = np.median(intervals)
    return bool(np.mean(np.abs(intervals - usual) < 0.5 * usual) > _REGULAR_SHARE)

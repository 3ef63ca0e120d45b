"""Find the picture on screen at each time, by time stamps, and refuse a movie that has lost it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.movie_file import MovieError, MovieFile

CLOCK_TOLERANCE_S = 1e-6  # (k + 1/2) * TR is rounded: a stamp this little above it means the same time
_STAMP_ROUNDING_S = 1e-3  # Matroska's
_LONGEST_HOLD_S = 2.0  # of a picture, where longer would be odd for the container and its other pictures
_SEEK_BACK_S = (0, 1, 4, 16, 64)


@dataclass(frozen=True)
class Picture:
    """A decoded frame and when it came on screen, in movie time."""

    start_s: float
    frame: Any

    def to_rgb(self) -> NDArray[np.uint8]:
        """RGB of shape (height, width, 3)."""
        rgb: NDArray[np.uint8] = self.frame.to_ndarray(format="rgb24")
        return rgb


def pictures_on_screen(
    movie: MovieFile, times_s: NDArray[np.float64], from_start: bool = False
) -> Iterator[Picture]:
    """For each time, in order, the last picture whose stamp is not after it; after the end, the last one.

    Decoding begins at the last keyframe not after the first time, or at the movie's start. H.264 has
    keyframes that need pictures from before them, and fail like damaged ones: only from the start is damage
    certain.

    Raises
    ------
    MovieError
        If the picture starts a frame or more after the first time, a packet cannot be decoded, or a picture
        that should be on screen is lost.
    """
    if not len(times_s):
        return
    decoder = _Decoder(movie, 0.0 if from_start else float(times_s[0]))
    pictures = decoder.pictures()
    shown = next(pictures, None)
    if shown is None:
        raise MovieError(
            f"movie '{movie.path}': found no picture at {times_s[0]:.3f} s. Copy the file again."
        )
    following = next(pictures, None)
    for time_s in times_s:
        while following is not None and following.start_s <= time_s + CLOCK_TOLERANCE_S:
            shown, following = following, next(pictures, None)
        until_s = max(movie.end_s, shown.start_s) if following is None else following.start_s
        _check_coverage(decoder, shown, until_s, min(float(time_s), movie.end_s))
        yield shown


def _check_coverage(decoder: _Decoder, shown: Picture, until_s: float, time_s: float) -> None:
    """Refuse a picture that cannot be the one on screen at a time.

    Where the frame rate varies, pictures are held long; damage has to be told from that. In every container,
    a packet between the picture and the time that gave no picture tells it (if the hold is long, too: VP8 has
    packets that are never shown). From a damaged Matroska file packets vanish, so there a hold is believed
    only if it is short and other pictures are irregular as well. An mp4 lists its packets, so only a damaged
    list can lose any: a hold is believed if it is short, or other pictures are irregular.
    """
    movie = decoder.movie
    period_s = 1 / movie.fps
    if movie.lists_packets:
        longest_s = _LONGEST_HOLD_S if movie.is_regular else math.inf
    else:
        longest_s = 1.5 * period_s if movie.is_regular else _LONGEST_HOLD_S
    held_s, hold_s = time_s - shown.start_s, until_s - shown.start_s
    if held_s <= -period_s:
        problem = f"the first one comes at {shown.start_s:.3f} s"
        way_out = "Convert the movie so that picture and sound start together."
    elif hold_s > 1.5 * period_s and any(shown.start_s < lost <= time_s for lost in decoder.lost_s):
        problem = f"some after {shown.start_s:.3f} s could not be decoded"
        way_out = "Copy the file again."
    elif hold_s > longest_s and held_s > period_s - _STAMP_ROUNDING_S:
        problem = f"there is none from {shown.start_s:.3f} s to {until_s:.3f} s"
        way_out = "Copy the file again; if it does stand still, convert the movie to a constant frame rate."
    else:
        return
    raise MovieError(f"movie '{movie.path}': expected a picture at {time_s:.3f} s, but {problem}. {way_out}")


class _Decoder:
    """Decodes from the last keyframe at or before a time on, and keeps count of what did not come out.

    Attributes
    ----------
    movie : MovieFile
        What is decoded.
    lost_s : list of float
        Movie times of packets that gave no picture, up to the picture yielded last.
    """

    def __init__(self, movie: MovieFile, start_s: float) -> None:
        self.movie = movie
        self.lost_s: list[float] = []
        self._start_s = start_s

    def pictures(self) -> Iterator[Picture]:
        """Pictures in the order they are shown."""
        movie = self.movie
        awaited: set[int] = set()
        for packet in self._packets_from_keyframe():
            if packet.size:
                awaited.add(packet.pts)
            for frame in self._decode(packet):
                overdue = {pts for pts in awaited if pts < frame.pts}
                awaited -= overdue | {frame.pts}
                self._add_lost(overdue)
                yield Picture(movie.seconds(frame.pts, movie.video.time_base), frame)
        self._add_lost(awaited)

    def _add_lost(self, stamps: set[int]) -> None:
        self.lost_s += [self.movie.seconds(pts, self.movie.video.time_base) for pts in sorted(stamps)]

    def _packets_from_keyframe(self) -> Iterator[Any]:
        """Packets to decode, up to the empty one that makes the decoder give its last pictures.

        Some containers seek by decoding times, and so find a keyframe that is shown after the start: then the
        search begins further back.
        """
        movie, video = self.movie, self.movie.video
        target = int((movie.zero + self._start_s) / video.time_base)
        first = video.start_time or 0
        for start in (*(target - int(back_s / video.time_base) for back_s in _SEEK_BACK_S), first):
            movie.container.seek(max(start, first), stream=video)
            packets = movie.container.demux(video)
            key = next((packet for packet in packets if packet.is_keyframe), None)
            if key is not None and key.pts is not None and key.pts <= max(target, first):
                break
        if key is None:
            return
        yield key
        for packet in packets:
            if packet.size and packet.pts is None:
                raise MovieError(
                    f"movie '{movie.path}': expected a time stamp on every picture, found one without. "
                    "Convert the movie to mp4."
                )
            # Stored after the keyframe but shown before it: these build on pictures before the keyframe.
            if not packet.size or packet.pts > key.pts:
                yield packet

    def _decode(self, packet: Any) -> list[Any]:
        movie, video = self.movie, self.movie.video
        at_s = movie.end_s if packet.pts is None else movie.seconds(packet.pts, packet.time_base)
        try:
            frames: list[Any] = packet.decode()
        except av.error.FFmpegError as error:
            raise MovieError(
                f"movie '{movie.path}': the picture at {at_s:.3f} s cannot be decoded ({error.strerror}). "
                "Expected an undamaged file. Copy it again."
            ) from error
        for frame in frames:
            if packet.is_corrupt or frame.is_corrupt or frame.pts is None:
                raise MovieError(
                    f"movie '{movie.path}': the picture at {at_s:.3f} s is damaged. Expected an undamaged "
                    "file. Copy it again."
                )
            if (frame.width, frame.height) != (video.width, video.height):
                raise MovieError(
                    f"movie '{movie.path}': expected pictures of {video.width} x {video.height}, found one "
                    f"of {frame.width} x {frame.height} at {at_s:.3f} s. Convert the movie to one size."
                )
        return frames

"""Write movie files with sound from arrays: the demo study and the tests are made of these.

Frames are encoded as they come from their iterator, so memory does not grow with the length of the movie. The
same input gives the same bytes: one encoder thread, no creation time, no random identifiers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import Flags
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

_CODECS = {
    ".mp4": ("libx264", "aac"),
    ".mov": ("libx264", "aac"),
    ".mkv": ("libx264", "aac"),
    ".webm": ("libvpx", "libopus"),
}
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
_SOUND_PIECE = 1 << 15  # samples handed to the encoder at a time


def write_movie(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    fps: Fraction | int,
    wave: NDArray[np.float32] | None,
    sample_rate: int,
    *,
    frame_numbers: Iterable[int] | None = None,
    gop: int = 48,
    n_bframes: int = 2,
    crf: int = 20,
) -> None:
    """Write one movie file: H.264 and AAC, or VP8 and Opus in ``.webm``.

    Parameters
    ----------
    path : Path
        Where to write; its suffix (``.mp4``, ``.mov``, ``.mkv`` or ``.webm``) names the container. An
        existing file is replaced only once the new one is complete.
    frames : iterable of uint8 arrays of shape (height, width, 3)
        RGB pictures, all of one size with even sides; consumed one by one.
    fps : Fraction or int
        Frames per second, e.g. ``Fraction(24000, 1001)``.
    wave : float32 array of shape (n_samples,) or (n_samples, n_channels), or None
        Sound in [-1, 1] from time zero, with 1, 2 or 6 channels (5.1 in the order FL FR FC LFE BL BR). None
        writes no audio track.
    sample_rate : int
        Samples of ``wave`` per second; Opus takes 48,000 only.
    frame_numbers : iterable of int, optional
        Frame ``i`` appears at ``frame_numbers[i] / fps`` s; by default 0, 1, 2, … Numbers left out make a
        variable frame rate, a first number above 0 makes a picture that begins later than the sound.
    gop : int
        Frames from one keyframe to the next.
    n_bframes : int
        B-frames between two other frames (H.264 only).
    crf : int
        Constant quality, lower is better: 0 to 51 in H.264, 4 to 63 in VP8.

    Raises
    ------
    ValueError
        If the container is unknown, there is no frame, a frame has another size or an odd side, the frame
        numbers do not increase, or the sound has another number of channels or samples that are not finite.
    """
    if path.suffix not in _CODECS:
        raise ValueError(f"movie '{path}': expected a suffix of {', '.join(_CODECS)}, found '{path.suffix}'.")
    video_codec, audio_codec = _CODECS[path.suffix]
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"movie '{path}': expected at least one frame, found none.")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            container.flags |= Flags.bitexact.value  # else Matroska draws a random identifier
            video = _add_video(container, video_codec, first.shape, Fraction(fps), gop, n_bframes, crf)
            sound = None if wave is None else _SoundTrack(container, audio_codec, wave, sample_rate)
            numbers = count() if frame_numbers is None else iter(frame_numbers)
            for frame in _encodable(first, pictures, numbers):
                container.mux(video.encode(frame))
                if sound:  # both tracks advance together, or the muxer would have to hold one of them
                    sound.encode_until(int((frame.pts + 1) * sample_rate / Fraction(fps)))
            container.mux(video.encode(None))
            if sound:
                sound.finish()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _add_video(
    container: Any, codec: str, shape: tuple[int, ...], fps: Fraction, gop: int, n_bframes: int, crf: int
) -> Any:
    if len(shape) != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
        raise ValueError(f"expected frames of shape (height, width, 3) with even sides, found {shape}.")
    options = {"crf": str(crf)}
    if codec == "libx264":
        # x264's macroblock tree, on in slower presets, gave other bytes in a fifth of repeated encodings.
        # No picture is judged, so that keyframes and B-frames come where they were asked for.
        options |= {"preset": "superfast", "mbtree": "0", "sc_threshold": "0", "b_strategy": "0"}
        options |= {"bf": str(n_bframes)}
    else:
        options |= {"deadline": "realtime", "cpu-used": "8"}
    stream = container.add_stream(codec, rate=fps, options=options)
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = gop
    stream.codec_context.thread_count = 1  # the encoder's decisions depend on the number of threads
    if codec == "libvpx":
        stream.codec_context.bit_rate = 8_000_000  # the ceiling of constrained quality; 256 kbit/s by default
    return stream


def _encodable(
    first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]], numbers: Iterator[int]
) -> Iterator[Any]:
    """Frames in the encoder's pixel format with their numbers as time stamps, checked as they pass."""
    reformatter = VideoReformatter()  # a frame's own would be made anew each time, for most of the time here
    picture: NDArray[np.uint8] | None = first
    previous = -1
    while picture is not None:
        number = next(numbers, None)
        if number is None or number <= previous:
            raise ValueError(f"expected a frame number above {previous}, found {number}.")
        if picture.shape != first.shape or picture.dtype != np.uint8:
            found = f"{picture.dtype} of shape {picture.shape}"
            raise ValueError(f"frame {number}: expected uint8 of shape {first.shape}, found {found}.")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = reformatter.reformat(frame, format="yuv420p")
        frame.pts = number
        yield frame
        previous, picture = number, next(rest, None)


class _SoundTrack:
    """An audio stream and the wave it is encoded from."""

    def __init__(self, container: Any, codec: str, wave: NDArray[np.float32], sample_rate: int) -> None:
        self._wave = wave[:, np.newaxis] if wave.ndim == 1 else wave
        if self._wave.ndim != 2 or self._wave.shape[1] not in _LAYOUTS:
            raise ValueError(f"expected sound of shape (n_samples, 1, 2 or 6 channels), found {wave.shape}.")
        self._layout = _LAYOUTS[self._wave.shape[1]]
        self._sample_rate = sample_rate
        self._n_encoded = 0
        self._container = container
        self._stream = container.add_stream(codec, rate=sample_rate, layout=self._layout)

    def encode_until(self, stop: int) -> None:
        """Encode the samples up to ``stop`` that are not encoded yet."""
        stop = min(stop, len(self._wave))
        while self._n_encoded < stop:
            start = self._n_encoded
            piece = self._wave[start : min(start + _SOUND_PIECE, stop)]
            if not np.isfinite(piece).all():
                raise ValueError(f"sound after sample {start}: expected finite values, found NaN or Inf.")
            planes = np.ascontiguousarray(piece.T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._layout)
            frame.sample_rate = self._sample_rate
            frame.time_base = Fraction(1, self._sample_rate)
            frame.pts = start
            self._container.mux(self._stream.encode(frame))
            self._n_encoded += len(piece)

    def finish(self) -> None:
        """Encode the rest of the wave, and what the encoder holds back."""
        self.encode_until(len(self._wave))
        self._container.mux(self._stream.encode(None))

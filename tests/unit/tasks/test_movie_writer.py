from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.movies import probe_movie

FRAMES = np.random.default_rng(0).integers(0, 256, (48, 32, 48, 3), np.uint8)
WAVE = np.random.default_rng(1).uniform(-0.5, 0.5, (96_000, 2)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("first", "second"):
        write_movie(tmp_path / (name + suffix), iter(FRAMES), 24, WAVE, 48_000)
    first, second = ((tmp_path / (name + suffix)).read_bytes() for name in ("first", "second"))
    assert first == second


def test_the_file_holds_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "movie.mp4"
    write_movie(path, iter(FRAMES), Fraction(24000, 1001), WAVE, 48_000, gop=12, n_bframes=2)
    info = probe_movie(path)
    assert (info.width, info.height, info.n_channels, info.audio_rate) == (48, 32, 2, 48_000)
    assert info.fps == pytest.approx(23.976, abs=1e-3)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 48
    assert [k for k, frame in enumerate(frames) if frame.key_frame] == [0, 12, 24, 36]
    kinds = av.video.frame.PictureType
    assert [kinds(frame.pict_type).name for frame in frames[:7]] == ["I", "B", "B", "P", "B", "B", "P"]


def test_frames_are_taken_one_by_one(tmp_path: Path) -> None:
    alive = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for k in range(200):
            frame = np.full((32, 48, 3), k, np.uint8)
            alive.append(frame.__array_interface__["data"][0])
            yield frame

    write_movie(tmp_path / "movie.mp4", frames(), 24, None, 48_000)
    assert len(set(alive)) < 20  # memory is used again, so frames are not kept


def failing() -> Iterator[NDArray[np.uint8]]:
    yield from FRAMES[:30]
    raise RuntimeError("the generator failed")


def test_a_failed_movie_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "movie.mp4"
    write_movie(path, iter(FRAMES), 24, WAVE, 48_000)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the generator failed"):
        write_movie(path, failing(), 24, WAVE, 48_000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frames", "wave", "frame_numbers", "message"),
    [
        (FRAMES[:0], WAVE, None, "at least one frame"),
        (FRAMES[:, :31], WAVE, None, "even sides"),
        (FRAMES[..., 0], WAVE, None, "even sides"),
        (FRAMES, WAVE[:, [0, 0, 0]], None, "channels"),
        (
            FRAMES,
            np.where(np.arange(96_000) == 50_000, np.nan, WAVE[:, 0]).astype(np.float32),
            None,
            "finite",
        ),
        (FRAMES, WAVE, [0, 1, 1], "a frame number above 1, found 1"),
        (FRAMES, WAVE, [0, 1], "a frame number above 1, found None"),
        ([FRAMES[0], FRAMES[1, :16]], WAVE, None, "frame 1: expected uint8 of shape"),
        ([FRAMES[0], FRAMES[1].astype(float)], WAVE, None, "found float64"),
    ],
)
def test_wrong_input_is_refused(
    tmp_path: Path,
    frames: NDArray[np.uint8],
    wave: NDArray[np.float32],
    frame_numbers: list[int],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        write_movie(tmp_path / "movie.mp4", iter(frames), 24, wave, 48_000, frame_numbers=frame_numbers)
    assert not list(tmp_path.iterdir())


def test_an_unknown_container_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a suffix of \.mp4.*found '\.gif'"):
        write_movie(tmp_path / "movie.gif", iter(FRAMES), 24, WAVE, 48_000)

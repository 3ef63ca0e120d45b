import math
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode, Resize

from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.movies import (
    FrameRows,
    MovieError,
    check_duration,
    check_sound,
    frame_size,
    probe_movie,
    read_audio,
    read_frames,
    row_times,
)

Movie = Callable[..., Path]
ReadNumbers = Callable[[NDArray[np.uint8]], list[int]]

SUFFIXES = (".mp4", ".mkv", ".webm")
FPS = Fraction(24000, 1001)
N_FRAMES = 600  # 25 s
VARIABLE = np.flatnonzero(np.random.default_rng(3).random(N_FRAMES) < 0.5).tolist()
REAL_MOVIES = Path(__file__).parents[4] / "shared" / "movies"
REAL_MP4 = "bbb_480p24_h264_aac51_30s.mp4"
REAL_WEBM = "bbb_720p24_vp8_vorbis_30s.webm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("movies")


@pytest.fixture(
    scope="module", params=[f"{rate}{suffix}" for rate in ("constant", "variable") for suffix in SUFFIXES]
)
def long_movie(request: pytest.FixtureRequest, folder: Path, number_movie: Movie) -> tuple[Path, list[int]]:
    """25 s with B-frames and one keyframe in 10 s, and the numbers of its frames."""
    numbers = list(range(N_FRAMES)) if request.param.startswith("constant") else VARIABLE
    return number_movie(folder / request.param, FPS, numbers, gop=240, n_bframes=3), numbers


@pytest.fixture(scope="module")
def short_movie(folder: Path, number_movie: Movie) -> Callable[[str], Path]:
    """10 s at 24 fps and a keyframe every second."""

    def write(suffix: str) -> Path:
        path = folder / f"short{suffix}"
        return path if path.exists() else number_movie(path, gop=24)

    return write


def real_movie(name: str) -> Path:
    path = REAL_MOVIES / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path


def beep_onsets(wave: NDArray[np.float32], seconds: range, share: float = 0.25) -> list[int]:
    """First sample around each second that is louder than a share of the loudest."""
    loud = np.abs(wave) > share * np.abs(wave).max()
    return [int(np.argmax(loud[k * 16_000 - 8000 : k * 16_000 + 8000])) + k * 16_000 - 8000 for k in seconds]


def read_in_chunks(path: Path, times: NDArray[np.float64], n_rows: int) -> FrameRows:
    edges = [*range(0, len(times), n_rows), len(times)]
    chunks = [read_frames(path, times[start:stop]) for start, stop in pairwise(edges)]
    return FrameRows(
        np.concatenate([chunk.frames for chunk in chunks]),
        np.concatenate([chunk.shown_at_s for chunk in chunks]),
        sum(chunk.n_padded for chunk in chunks),
    )


# --- time


@pytest.mark.parametrize("tr_s", [1.0, 1.49, 2.0])
def test_each_row_has_the_frame_on_screen_at_its_middle(
    long_movie: tuple[Path, list[int]], read_numbers: ReadNumbers, tr_s: float
) -> None:
    path, numbers = long_movie
    n_trs = int(25 / tr_s)
    found = read_numbers(read_frames(path, row_times(n_trs, tr_s)).frames)
    middles = [(k + Fraction(1, 2)) * Fraction(str(tr_s)) for k in range(n_trs)]
    assert found == [max((n for n in numbers if n / FPS <= middle), default=numbers[0]) for middle in middles]


def test_chunks_give_the_bytes_of_the_whole(long_movie: tuple[Path, list[int]]) -> None:
    path, _ = long_movie
    times = row_times(27, 1.0)  # 25.02 s of picture: the last chunk begins after the end
    whole, chunked = read_frames(path, times), read_in_chunks(path, times, n_rows=13)
    assert whole.frames.tobytes() == chunked.frames.tobytes()
    assert whole.shown_at_s.tolist() == chunked.shown_at_s.tolist()
    assert whole.n_padded == chunked.n_padded == 2
    after_the_end = read_frames(path, times[25:])
    assert after_the_end.frames.tobytes() == whole.frames[25:].tobytes()


@pytest.mark.parametrize(
    ("codec", "params"),
    [
        ("libx264", "open-gop=1:keyint=40:min-keyint=40:scenecut=0:bframes=3"),
        ("libx264", "intra-refresh=1:keyint=40"),
        (
            "libx265",
            "open-gop=1:keyint=40:min-keyint=40:scenecut=0:log-level=none:pools=none:frame-threads=1",
        ),
    ],
)
def test_chunks_are_exact_where_pictures_refer_across_keyframes(
    tmp_path: Path,
    number_picture: Callable[[int], NDArray[np.uint8]],
    read_numbers: ReadNumbers,
    codec: str,
    params: str,
) -> None:
    path = tmp_path / "open.mp4"
    with av.open(str(path), "w") as container:
        options = {codec.removeprefix("lib") + "-params": params, "preset": "superfast"}
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for number in range(240):
            frame = av.VideoFrame.from_ndarray(number_picture(number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    times = row_times(20, 0.5)
    whole = read_frames(path, times)
    assert read_numbers(whole.frames) == [6 + 12 * k for k in range(20)]
    assert whole.frames.tobytes() == read_in_chunks(path, times, n_rows=1).frames.tobytes()


def test_a_time_on_a_frame_boundary_shows_the_new_frame_in_spite_of_rounding(
    short_movie: Callable[[str], Path], read_numbers: ReadNumbers
) -> None:
    boundaries = [(7 * k + 1) * (1 / 24) for k in range(30)]  # a third of them rounded below n / 24
    assert read_numbers(read_frames(short_movie(".mp4"), boundaries).frames) == [7 * k + 1 for k in range(30)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_beeps_lie_on_their_samples(short_movie: Callable[[str], Path], suffix: str) -> None:
    wave = read_audio(short_movie(suffix))
    assert wave.dtype == np.float32
    assert len(wave) == pytest.approx(160_000, abs=512)  # a codec pads its last packet
    onsets = beep_onsets(wave, range(1, 10))
    np.testing.assert_allclose(onsets, 16_000 * np.arange(1, 10), atol=32)  # 2 ms


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("shift_s", "picture_late_s", "sound_late_s"),
    [({"video": 0.5}, 0.5, 0), ({"audio": 0.5}, 0, 0.5), ({"video": 2.0, "audio": 2.0}, 0, 0)],
)
def test_time_zero_is_the_earlier_of_picture_and_sound(
    tmp_path: Path,
    short_movie: Callable[[str], Path],
    remux: Movie,
    read_numbers: ReadNumbers,
    suffix: str,
    shift_s: dict[str, float],
    picture_late_s: float,
    sound_late_s: float,
) -> None:
    # In a copied mp4 that starts later, the codec's priming, a packet before zero, would be heard.
    source, target = short_movie(suffix), tmp_path / f"shifted{suffix}"
    path = remux(source, target, shift_s, keep=lambda packet: suffix == ".mkv" or packet.pts >= 0)
    times = np.arange(1, 9) + 0.02
    assert read_numbers(read_frames(path, times).frames) == [
        round(24 * (t - picture_late_s) - 0.48) for t in times
    ]
    onsets = beep_onsets(np.roll(read_audio(path), -int(sound_late_s * 16_000)), range(1, 9))
    np.testing.assert_allclose(onsets, 16_000 * np.arange(1, 9), atol=48)  # 2 ms, and mkv's millisecond
    assert probe_movie(path).duration_s == pytest.approx(10 + picture_late_s, abs=0.002)


def test_a_picture_that_starts_late_is_not_shown_earlier(
    tmp_path: Path, short_movie: Callable[[str], Path], remux: Movie
) -> None:
    path = remux(short_movie(".mp4"), tmp_path / "late.mp4", {"video": 0.5})
    assert read_frames(path, [0.47]).shown_at_s.tolist() == [0.5]  # less than a frame
    with pytest.raises(MovieError, match=r"picture at 0\.400 s, but the first one comes at 0\.500 s"):
        read_frames(path, [0.4])


@pytest.mark.parametrize("times", [[1.0, 0.5], [-1.0], [math.nan], [[1.0]]])
def test_times_must_be_ordered_seconds(short_movie: Callable[[str], Path], times: list[float]) -> None:
    with pytest.raises(ValueError, match="not decreasing"):
        read_frames(short_movie(".mp4"), times)


def test_no_times_give_no_frames(short_movie: Callable[[str], Path]) -> None:
    assert read_frames(short_movie(".mp4"), []).frames.shape == (0, 224, 298, 3)


# --- length


def test_a_movie_up_to_one_tr_short_is_padded_with_its_last_frame(
    short_movie: Callable[[str], Path], read_numbers: ReadNumbers
) -> None:
    path = short_movie(".mp4")
    check_duration(probe_movie(path), n_trs=11, tr_s=1.0, run="movie01")
    rows = read_frames(path, row_times(11, 1.0))
    assert read_numbers(rows.frames[-2:]) == [228, 239]
    assert rows.n_padded == 1


def test_a_movie_more_than_one_tr_short_is_an_error(short_movie: Callable[[str], Path]) -> None:
    info = probe_movie(short_movie(".mp4"))
    with pytest.raises(MovieError, match=r"run 'movie01'.*lasts 10\.00 s, the run 11\.10 s"):
        check_duration(info, n_trs=111, tr_s=0.1, run="movie01")


@pytest.mark.parametrize(("suffix", "told"), [(".mp4", True), (".mkv", False)])
def test_a_sound_more_than_one_tr_short_is_an_error(
    tmp_path: Path, number_movie: Movie, beeps: Callable[..., NDArray[np.float32]], suffix: str, told: bool
) -> None:
    path = number_movie(tmp_path / f"short{suffix}", wave=beeps(4.0, 48_000))  # of a picture of 10 s
    info, heard_s = probe_movie(path), len(read_audio(path)) / 16_000
    message = r"movie '.*short.*': the sound ends at 4\.\d\d s, the run at 10\.00 s .* at most one TR less"
    if told:
        assert info.audio_duration_s == pytest.approx(heard_s, abs=512 / 16_000)
        with pytest.raises(MovieError, match=message):
            check_duration(info, n_trs=10, tr_s=1.0, run="movie01")
    else:
        assert info.audio_duration_s is None  # seen once it is decoded
    check_duration(info, n_trs=5, tr_s=1.0, run="movie01")
    check_duration(info, n_trs=10, tr_s=1.0, run="movie01", with_audio=False)
    check_sound(path, heard_s, n_trs=5, tr_s=1.0)
    with pytest.raises(MovieError, match=message):
        check_sound(path, heard_s, n_trs=10, tr_s=1.0)


def test_a_sound_that_starts_late_is_not_short(
    tmp_path: Path, short_movie: Callable[[str], Path], remux: Movie
) -> None:
    path = remux(
        short_movie(".mp4"), tmp_path / "late.mp4", {"audio": 3.0}, keep=lambda packet: packet.pts >= 0
    )
    info = probe_movie(path)
    assert info.audio_duration_s == pytest.approx(13, abs=0.05)
    check_duration(info, n_trs=10, tr_s=1.0, run="movie01")


def test_a_fragmented_mp4_does_not_look_short(
    tmp_path: Path, short_movie: Callable[[str], Path], remux: Movie
) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    path = remux(short_movie(".mp4"), tmp_path / "fragments.mp4", options=options)
    check_duration(probe_movie(path), n_trs=10, tr_s=1.0, run="movie01")


# --- pictures


def test_resizing_is_that_of_clip(short_movie: Callable[[str], Path]) -> None:
    path = short_movie(".mp4")
    with av.open(str(path)) as container:
        frame = next(frame for frame in container.decode(video=0) if frame.pts * frame.time_base == 2)
    clip = np.asarray(Resize(224, InterpolationMode.BICUBIC)(frame.to_image()))
    np.testing.assert_array_equal(read_frames(path, [2.0]).frames[0], clip)


@pytest.mark.parametrize("size", [(480, 854), (854, 480), (224, 224), (101, 333)])
def test_frame_size_rounds_as_torchvision(size: tuple[int, int]) -> None:
    from PIL import Image

    width, height = Resize(224)(Image.new("RGB", (size[1], size[0]))).size
    assert frame_size(*size) == (height, width)


def test_colours_come_back(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [255, 255, 255]], np.uint8)
    frames = (np.broadcast_to(colour, (64, 64, 3)) for colour in colours)
    write_movie(tmp_path / "colours.mp4", frames, 1, None, 16_000)
    found = read_frames(tmp_path / "colours.mp4", row_times(5, 1.0)).frames.mean(axis=(1, 2))
    np.testing.assert_allclose(found, colours, atol=4)


# --- sound


def test_channels_are_averaged(
    tmp_path: Path, number_movie: Movie, beeps: Callable[..., NDArray[np.float32]]
) -> None:
    beep = beeps(4.0, 48_000)
    stereo = number_movie(tmp_path / "2.mkv", numbers=range(96), wave=np.stack([beep, 0.5 * beep], axis=1))
    mono = number_movie(tmp_path / "1.mkv", numbers=range(96), wave=beep)
    assert np.abs(read_audio(stereo)).max() == pytest.approx(0.75 * np.abs(read_audio(mono)).max(), rel=0.05)


def test_every_channel_of_surround_counts_the_same(tmp_path: Path, number_movie: Movie) -> None:
    n_seconds, rate = 7, 48_000
    tone = 0.6 * np.sin(
        2 * np.pi * 100 * np.arange(rate) / rate
    )  # low, or AAC takes it out of the LFE channel
    wave = np.zeros((n_seconds * rate, 6), np.float32)
    for channel in range(6):
        wave[channel * rate : (channel + 1) * rate, channel] = tone
    path = number_movie(tmp_path / "surround.mp4", numbers=range(168), wave=wave)
    sound = read_audio(path)[: n_seconds * 16_000].reshape(n_seconds, -1)[:6, 4000:12_000]
    np.testing.assert_allclose(sound.std(axis=1), 0.1 / np.sqrt(2), rtol=0.05)


def test_streamed_sound_equals_resampling_in_one_go(tmp_path: Path, number_movie: Movie) -> None:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100 * 5, 2)).astype(np.float32)
    path = number_movie(tmp_path / "noise.mp4", numbers=range(120), wave=wave, sample_rate=44_100)
    with av.open(str(path)) as container:
        decoded = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    np.testing.assert_array_equal(read_audio(path), soxr.resample(decoded.mean(axis=0), 44_100, 16_000))


def test_sound_needs_memory_for_the_result_only(
    tmp_path: Path, number_movie: Movie, beeps: Callable[..., NDArray[np.float32]]
) -> None:
    path = number_movie(tmp_path / "long.mp4", 1, range(240), wave=beeps(240, 16_000), sample_rate=16_000)
    tracemalloc.start()
    try:
        wave = read_audio(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert wave.nbytes > 15e6
    assert peak_bytes < 1.3 * wave.nbytes


def test_a_movie_without_sound_says_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    write_movie(path, iter(np.zeros((24, 32, 32, 3), np.uint8)), 24, None, 48_000)
    info = probe_movie(path)
    assert (info.has_audio, info.n_channels, info.audio_rate, info.audio_codec) == (False, 0, 0, "")
    with pytest.raises(MovieError, match="expected an audio track, found none"):
        read_audio(path)


# --- damage


def test_variable_rate_mp4_may_hold_a_picture_for_long(
    tmp_path: Path, number_movie: Movie, read_numbers: ReadNumbers
) -> None:
    path = number_movie(tmp_path / "slides.mp4", numbers=[0, 1, 2, 150, 151, 239])
    assert read_numbers(read_frames(path, [1.0, 6.0, 6.5, 9.99]).frames) == [2, 2, 151, 239]


def test_a_regular_mp4_holds_no_picture_for_long(tmp_path: Path, number_movie: Movie) -> None:
    path = number_movie(tmp_path / "list.mp4", numbers=[*range(60), *range(120, 240)])  # as of a damaged list
    with pytest.raises(MovieError, match=r"there is none from 2\.458 s to 5\.000 s"):
        read_frames(path, [4.0])


def test_a_hole_in_a_regular_matroska_movie_is_refused(
    tmp_path: Path, short_movie: Callable[[str], Path], remux: Movie
) -> None:
    path = remux(
        short_movie(".webm"),
        tmp_path / "hole.webm",
        keep=lambda packet: packet.stream.type == "audio" or not 5 < packet.pts * packet.time_base < 5.5,
    )
    with pytest.raises(
        MovieError, match=r"expected a picture at 5\.250 s, but there is none from 5\.000 s to 5\.500 s"
    ):
        read_frames(path, [4.25, 4.75, 5.25])
    assert read_frames(path, [4.25, 4.75, 5.75]).n_padded == 0  # no row needs what is lost


def test_missing_sound_is_refused(tmp_path: Path, short_movie: Callable[[str], Path], remux: Movie) -> None:
    lost = []

    def keep(packet: object) -> bool:
        after = packet.stream.type == "audio" and packet.pts * packet.time_base > 3  # type: ignore[attr-defined]
        if after and not lost:
            lost.append(packet)
            return False
        return True

    path = remux(short_movie(".webm"), tmp_path / "gap.webm", keep=keep)
    with pytest.raises(MovieError, match=r"the sound stops at 3\.0\d\d s and goes on at 3\.0\d\d s"):
        read_audio(path)


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mp4", {}), (".mkv", {})]
)
def test_a_truncated_file_is_refused(
    tmp_path: Path, short_movie: Callable[[str], Path], remux: Movie, suffix: str, options: dict[str, str]
) -> None:
    path = remux(short_movie(suffix), tmp_path / f"whole{suffix}", options=options)
    read_frames(path, [9.5])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    for read in (probe_movie, read_audio, lambda p: read_frames(p, [1.0])):
        with pytest.raises(MovieError, match=r"Copy (it|the file) again"):
            read(path)


def test_a_subtitle_may_stay_longer_than_the_picture(
    tmp_path: Path, short_movie: Callable[[str], Path]
) -> None:
    """One that appears before the last keyframe, behind which a movie is searched for its end."""
    (tmp_path / "words.srt").write_text("1\n00:00:06,500 --> 00:00:12,000\nhello\n\n")
    path = tmp_path / "subtitled.mkv"
    with (
        av.open(str(short_movie(".mp4"))) as movie,
        av.open(str(tmp_path / "words.srt")) as words,
        av.open(str(path), "w") as target,
    ):
        tracks = {stream.index: target.add_stream_from_template(stream) for stream in movie.streams}
        subtitles = target.add_stream_from_template(words.streams[0])
        (word,) = (packet for packet in words.demux() if packet.size)
        word.stream = subtitles
        for packet in movie.demux():
            if packet.size:
                if word is not None and packet.pts * packet.time_base > 6.5:
                    target.mux(word)
                    word = None
                packet.stream = tracks[packet.stream_index]
                target.mux(packet)
    assert probe_movie(path).duration_s == pytest.approx(10, abs=0.1)
    read_frames(path, [9.5])


@pytest.mark.parametrize("suffix", [".ts", ".flv"])
def test_containers_in_which_seeking_is_unsure_are_refused_with_the_way_out(
    tmp_path: Path, short_movie: Callable[[str], Path], remux: Movie, suffix: str
) -> None:
    path = remux(short_movie(".mp4"), tmp_path / f"movie{suffix}")
    with pytest.raises(MovieError, match=r"-c copy out\.mkv"):
        probe_movie(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_bytes_never_change_which_frame_is_shown_unseen(
    tmp_path: Path, short_movie: Callable[[str], Path], suffix: str
) -> None:
    clean = short_movie(suffix).read_bytes()
    times = row_times(20, 0.5)
    shown_at_s = read_frames(short_movie(suffix), times).shown_at_s.tolist()
    path = tmp_path / f"damaged{suffix}"
    rng = np.random.default_rng(11)
    n_refused = 0
    for _ in range(20):
        damaged = np.frombuffer(clean, np.uint8).copy()
        start = rng.integers(1000, len(clean) - 200)
        damaged[start : start + 200] = rng.integers(0, 256, 200)
        path.write_bytes(damaged.tobytes())
        try:
            assert read_frames(path, times).shown_at_s.tolist() == shown_at_s
        except MovieError:
            n_refused += 1
    assert n_refused > 0


# --- what may be opened


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:9/a.mp4", "https://example.org/a.mp4", "concat:a.mp4|b.mp4", "gone.mp4", ""]
)
def test_only_local_files_are_opened(name: str) -> None:
    with pytest.raises(MovieError, match="expected a local file, found none"):
        probe_movie(Path(name))


def test_what_is_no_movie_is_refused(tmp_path: Path, short_movie: Callable[[str], Path]) -> None:
    movie = short_movie(".mp4")
    contents = {
        "text.mp4": "no movie",
        "empty.mp4": "",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{movie}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{movie}'\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(MovieError, match="expected an undamaged movie"):
            probe_movie(tmp_path / name)


# --- real movies


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (REAL_MP4, (30.0, 24, 854, 480, "h264", 6, 48_000, "aac")),
        (REAL_WEBM, (30.0, 24, 1280, 720, "vp8", 2, 44_100, "vorbis")),
        ("bbb_720p25_h264_aac51_5s.mp4", (5.28, 25, 1280, 720, "h264", 6, 48_000, "aac")),
    ],
)
def test_real_movies_are_what_their_readme_says(name: str, expected: tuple[object, ...]) -> None:
    info = probe_movie(real_movie(name))
    found = (
        info.fps,
        info.width,
        info.height,
        info.video_codec,
        info.n_channels,
        info.audio_rate,
        info.audio_codec,
    )
    assert found == expected[1:]
    assert info.duration_s == pytest.approx(expected[0], abs=0.01)


def test_two_encodings_of_a_real_movie_agree() -> None:
    # One shows the same scene up to two frames before the other, so rows on a cut differ: none is at this TR.
    times = row_times(20, 1.49)
    mp4, webm = real_movie(REAL_MP4), real_movie(REAL_WEBM)
    luma = [read_frames(path, times).frames.mean(axis=(1, 2, 3)) for path in (mp4, webm)]
    assert np.corrcoef(luma)[0, 1] > 0.999
    assert np.abs(luma[0] - luma[1]).max() < 6
    loudness = [np.abs(read_audio(path)[:480_000]).reshape(300, -1).mean(axis=1) for path in (mp4, webm)]
    assert np.corrcoef(loudness)[0, 1] > 0.9

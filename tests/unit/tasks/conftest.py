"""Array libraries that the solver's tests share, and small seeded movies.

Pictures of the movies carry their frame number, and the sound beeps at every second.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import array_api_strict
import av
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.tasks.backends import BackendError, open_backend
from hpcenc.tasks.movie_writer import write_movie

HEIGHT, WIDTH = 96, 128
N_BITS = 12  # in 3 x 4 blocks of 32 x 32 pixels, too large for a codec to lose
BEEP_S = 0.01


@dataclass(frozen=True)
class ArrayLibrary:
    """How arrays come to a library and back."""

    name: str
    to_device: Callable[[NDArray[Any]], Any]
    to_host: Callable[[Any], NDArray[Any]]


@pytest.fixture(
    params=[
        "numpy",
        "torch",
        "strict",
        "cupy_stand_in",
        pytest.param("cupy", marks=pytest.mark.gpu),
        pytest.param("torch-cuda", marks=pytest.mark.gpu),
    ]
)
def library(request: pytest.FixtureRequest) -> Iterator[ArrayLibrary]:
    """Every library that the array-API code must run on; those on a GPU where there is one.

    ``strict`` has nothing but the standard, on a device that is not the host, and neither boolean masks nor
    shapes that depend on data, for which a GPU would wait.
    """
    name = request.param
    if name == "strict":
        with array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
            yield ArrayLibrary(name, _to_strict, _from_strict)
    elif name == "cupy_stand_in":
        with request.getfixturevalue("cupy_stand_in")():
            backend = open_backend("cupy")
            yield ArrayLibrary(name, backend.to_device, backend.to_host)
    else:
        try:
            backend = open_backend(name)
        except BackendError as error:
            pytest.skip(str(error))
        yield ArrayLibrary(name, backend.to_device, backend.to_host)


def _to_strict(values: NDArray[Any]) -> Any:
    return array_api_strict.asarray(values, device=array_api_strict.Device("device1"))


def _from_strict(values: Any) -> NDArray[Any]:
    on_host = array_api_strict.asarray(values, device=array_api_strict.Device("CPU_DEVICE"))
    return np.asarray(on_host)


@pytest.fixture(scope="session")
def cupy_stand_in() -> Callable[..., AbstractContextManager[Any]]:
    """The context of `cupy_stand_in.py`, where CuPy is installed; it needs no GPU."""
    pytest.importorskip("cupy")
    # Tests are no package, so their modules cannot import each other by name.
    spec = spec_from_file_location("cupy_stand_in", Path(__file__).with_name("cupy_stand_in.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    context: Callable[..., AbstractContextManager[Any]] = module.cupy_stand_in
    return context


@pytest.fixture(scope="session")
def number_picture() -> Callable[[int], NDArray[np.uint8]]:
    """A noisy picture of black and white blocks, the binary digits of a number."""

    def draw(number: int) -> NDArray[np.uint8]:
        bits = ((number >> np.arange(N_BITS)) & 1).reshape(3, 4)
        noise = np.random.default_rng(number).normal(0, 4, (HEIGHT, WIDTH))
        grey = np.clip(20 + 215 * np.kron(bits, np.ones((32, 32))) + noise, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)

    return draw


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[NDArray[np.uint8]], list[int]]:
    """Frame numbers in RGB pictures of shape (n, height, width, 3), at any size."""

    def read(frames: NDArray[np.uint8]) -> list[int]:
        _, height, width, _ = frames.shape
        rows = ((np.arange(3) + 0.5) * height / 3).astype(int)
        columns = ((np.arange(4) + 0.5) * width / 4).astype(int)
        blocks = [frames[:, r - 8 : r + 8, c - 8 : c + 8].mean(axis=(1, 2, 3)) for r in rows for c in columns]
        return [int(number) for number in (np.stack(blocks, axis=1) > 127) @ (1 << np.arange(N_BITS))]

    return read


@pytest.fixture(scope="session")
def beeps() -> Callable[[float, int], NDArray[np.float32]]:
    """2 kHz beeps of 10 ms at each whole second from 1 s on: ``beeps(duration_s, sample_rate)``."""

    def draw(duration_s: float, sample_rate: int) -> NDArray[np.float32]:
        wave = np.zeros(round(duration_s * sample_rate), np.float32)
        beep = 0.8 * np.sin(2 * np.pi * 2000 * np.arange(round(BEEP_S * sample_rate)) / sample_rate)
        for start in range(sample_rate, len(wave) - len(beep), sample_rate):
            wave[start : start + len(beep)] = beep
        return wave

    return draw


@pytest.fixture(scope="session")
def number_movie(
    number_picture: Callable[[int], NDArray[np.uint8]], beeps: Callable[[float, int], NDArray[np.float32]]
) -> Callable[..., Path]:
    """Write a movie of numbered frames that beeps: ``number_movie(path, fps, numbers, wave, ...)``.

    Without ``wave`` the beeps are one channel as long as the picture.
    """

    def write(
        path: Path,
        fps: Fraction | int = 24,
        numbers: Sequence[int] = range(240),
        wave: NDArray[np.float32] | None = None,
        sample_rate: int = 48_000,
        **options: int,
    ) -> Path:
        def frames() -> Iterator[NDArray[np.uint8]]:
            for number in numbers:
                yield number_picture(number)

        if wave is None:
            wave = beeps(float((numbers[-1] + 1) / fps), sample_rate)
        write_movie(path, frames(), fps, wave, sample_rate, frame_numbers=numbers, **options)
        return path

    return write


@pytest.fixture(scope="session")
def remux() -> Callable[..., Path]:
    """Copy packets to another file: ``remux(source, target, {"video": 0.5}, keep=..., options={...})``.

    ``shift_s`` moves tracks in time, and ``keep(packet)`` says which packets to copy.
    """

    def copy(
        source: Path,
        target: Path,
        shift_s: dict[str, float] | None = None,
        keep: Callable[[Any], bool] = lambda packet: True,
        options: dict[str, str] | None = None,
    ) -> Path:
        shift_s = shift_s or {}
        with av.open(str(source)) as read, av.open(str(target), "w", options=options or {}) as write:
            tracks = {s.index: write.add_stream_from_template(s) for s in read.streams}
            for packet in read.demux():
                if packet.size and keep(packet):
                    ticks = round(shift_s.get(packet.stream.type, 0) / packet.time_base)
                    packet.pts += ticks
                    packet.dts = None if packet.dts is None else packet.dts + ticks
                    packet.stream = tracks[packet.stream_index]
                    write.mux(packet)
        return target

    return copy

"""Reference outputs of the official code, and small movie chunks."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.windows import MovieChunk, sample_span

REPOSITORY = Path(__file__).parents[4]
KEPT = REPOSITORY / "tests" / "data" / "parity"
SHARED = REPOSITORY.parent / "shared" / "parity"


@dataclass(frozen=True)
class Reference:
    """One fixture of the official code: see tests/data/parity/README.md."""

    info: dict[str, Any]
    clips: dict[str, dict[str, NDArray[Any]]]
    weights: Path

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The state dict, from its file or by the rule for weights too large to store."""
        return load_file(self.weights) if self.weights.is_file() else seeded_state(self.info)


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Reference]:
    """``reference("beats/tiny_ssl")``; with more clips where the shared folder is present."""

    @cache
    def load(name: str) -> Reference:
        folder = SHARED if (SHARED / f"{name}.json").is_file() else KEPT
        if not (folder / f"{name}.json").is_file():
            pytest.skip(f"no fixture {name} in {SHARED}")
        info = json.loads((folder / f"{name}.json").read_text())
        clips: dict[str, dict[str, NDArray[Any]]] = {}
        with np.load(folder / f"{name}.npz") as arrays:
            for key in arrays:
                clip, array = key.split("/")
                clips.setdefault(clip, {})[array] = arrays[key]
        return Reference(info, clips, folder / f"{name}.safetensors")

    return load


def seeded_state(info: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of the full-size fixtures, by the rule they were made with."""
    return {
        key: torch.from_numpy(_seeded_weight(key, tuple(shape), info["seed"]))
        for key, shape in info["keys"].items()
    }


def _seeded_weight(key: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    last = key.rpartition(".")[2]
    shared_table = "relative_attention_bias"
    name = shared_table if shared_table in key else key
    if last == "logit_scale":
        return np.full(shape, 4.6052, np.float32)
    z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)
    matrices = ("weight", "weight_v", "in_proj_weight", "proj", "text_projection")
    if last == "weight_g":
        z = 0.5 + 0.1 * np.abs(z)
    elif last == "grep_a":
        z = 1 + 0.1 * z
    elif shared_table in key:
        z = 0.5 * z
    elif len(shape) > 1 and last in matrices:
        z = z / np.sqrt(shape[0] if last in ("proj", "text_projection") else np.prod(shape[1:]))
    elif last == "weight":
        z = 1 + 0.1 * z
    elif last in ("bias", "in_proj_bias"):
        z = 0.1 * z
    else:
        z = 0.2 * z
    return np.asarray(z, np.float32)


@pytest.fixture(scope="session")
def official_file() -> Callable[[Reference, Path], Path]:
    """Save a fixture's weights in the form of its model's official file."""

    def save(fixture: Reference, folder: Path) -> Path:
        model = fixture.info["model"]
        path = folder / "checkpoint.pt"
        if model == "beats":
            config = fixture.info["cfg"]
            tags = {i: f"/m/{i:05}" for i in range(config["predictor_class"])}
            labels = {"label_dict": tags} if config["finetuned_model"] else {}
            torch.save({"cfg": config, "model": fixture.state} | labels, path)
        elif model.startswith("cavmae"):
            torch.save({f"module.{k.removeprefix('module.')}": v for k, v in fixture.state.items()}, path)
        else:
            torch.save(fixture.state, path)
        return path

    return save


@pytest.fixture(scope="session")
def spectrogram_equal() -> Callable[[NDArray[Any], NDArray[Any], float], None]:
    """``spectrogram_equal(found, official, to_log_amplitude)``: to 1e-5, or to the loudest bin's rounding.

    A bin is known no better than float32 rounds the loudest one of its frame. Where processors sum in another
    order, a quiet bin's logarithm shows that as up to 1e-4, in the official code as in ours. Differences
    of more than 1e-3 are told everywhere.
    """

    def check(found: NDArray[Any], official: NDArray[Any], to_log_amplitude: float) -> None:
        quieter = official.max(axis=1, keepdims=True) - official.astype(float)
        rounding = np.finfo(np.float32).eps * np.exp(quieter * to_log_amplitude) / to_log_amplitude
        np.testing.assert_array_less(np.abs(found - official), np.clip(rounding, 1e-5, 1e-3))

    return check


@pytest.fixture(scope="session")
def noise_chunk() -> Callable[..., MovieChunk]:
    """A chunk of seeded noise, sound and picture, that fits a model's windows."""

    def make(spec: ModelSpec, first_row: int = 0, n_rows: int = 6) -> MovieChunk:
        start, stop = sample_span(first_row, n_rows, spec.tr_s, spec.window_s, spec.align)
        movie = np.random.default_rng(1).normal(0, 0.1, 40 * 16_000).astype(np.float32)
        clock = np.arange(start, stop)
        wave = np.where(clock >= 0, movie[clock], 0).astype(np.float32)
        pictures = np.random.default_rng(2).integers(0, 256, (20, 7, 8, 3), dtype=np.uint8)
        frames = np.kron(pictures, np.ones((1, 32, 32, 1), np.uint8))
        return MovieChunk(first_row, n_rows, spec.tr_s, frames[first_row : first_row + n_rows], wave, start)

    return make

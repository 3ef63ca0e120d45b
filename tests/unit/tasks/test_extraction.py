from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.store import Store
from hpcenc.tasks import extraction
from hpcenc.tasks.decoding import CHUNK_TRS, n_chunks, n_samples, stimulus_arrays
from hpcenc.tasks.extraction import ExtractChunk, ImportFeatures, deciding_values, feature_arrays, file_arrays
from hpcenc.tasks.models.catalogue import ModelSpec, stored_layers
from hpcenc.tasks.models.loading import load_extractor
from hpcenc.tasks.models.windows import MovieChunk
from hpcenc.tasks.records import Unit

TR_S, N_TRS = 0.25, CHUNK_TRS + 6
STIMULUS, FEATURES, KEY = "stimulus/main/a", "features/m/main/a", "a" * 64


def spec(model: str) -> ModelSpec:
    return ModelSpec(model, weights="untrained", n_layers=2, tr_s=TR_S, window_s=1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A decoded movie: noise to see and to hear."""
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})
    rng = np.random.default_rng(0)
    made.ensure_group(GroupSpec(STIMULUS, KEY, stimulus_arrays(N_TRS, TR_S, 224, 240), 3, {}))
    everything = (slice(None),)
    frames = rng.integers(0, 255, (N_TRS, 224, 240, 3), dtype=np.uint8)
    made.write(f"{STIMULUS}/frames", everything * 4, frames)
    wave = 0.1 * rng.standard_normal(n_samples(N_TRS, TR_S), dtype=np.float32)
    made.write(f"{STIMULUS}/audio", everything, wave)
    return made


def extract(store: Store, model: str) -> dict[str, np.ndarray]:
    """All chunks of a model, as their tasks write them."""
    chosen = spec(model)
    store.ensure_group(GroupSpec(FEATURES, KEY, feature_arrays(chosen, N_TRS), n_chunks(N_TRS), {}))
    for chunk in range(n_chunks(N_TRS)):
        task = ExtractChunk(unit=Unit(FEATURES, chunk, KEY), spec=chosen, n_trs=N_TRS, stimulus=STIMULUS)
        (done,) = task.run(store, None).done
        assert done.facts["rows"] == (CHUNK_TRS, 6)[chunk]
    return {layer.name: store.read(f"{FEATURES}/{layer.name}") for layer in stored_layers(chosen)}


@pytest.mark.parametrize("model", ["beats", "clip"])
def test_chunks_give_the_features_of_the_whole_run(model: str, store: Store) -> None:
    found = extract(store, model)
    whole = load_extractor(spec(model), "cpu").extract(
        MovieChunk(
            first_row=0,
            n_rows=N_TRS,
            tr_s=TR_S,
            frames=store.read(f"{STIMULUS}/frames") if model == "clip" else None,
            # What the first rows hear before the run is silence.
            wave=np.pad(store.read(f"{STIMULUS}/audio"), (16_000, 0)) if model == "beats" else None,
            wave_start=-16_000,
        )
    )
    assert set(found) == set(whole)
    for layer, values in whole.items():
        np.testing.assert_allclose(found[layer], values, atol=2e-4 * np.abs(values).max())
        assert found[layer].std(axis=0).max() > 0


def test_features_that_are_not_finite_have_no_mark(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = spec("clip")
    store.ensure_group(GroupSpec(FEATURES, KEY, feature_arrays(chosen, N_TRS), n_chunks(N_TRS), {}))

    class Broken:
        def extract(self, chunk: MovieChunk) -> dict[str, np.ndarray]:
            layers = {
                layer.name: np.ones((chunk.n_rows, layer.n_features), np.float32)
                for layer in stored_layers(chosen)
            }
            layers["embedding"][2, 3] = np.nan
            return layers

    monkeypatch.setattr(extraction, "_extractor", lambda _: Broken())
    task = ExtractChunk(unit=Unit(FEATURES, 0, KEY), spec=chosen, n_trs=N_TRS, stimulus=STIMULUS)
    (failure,) = task.run(store, None).failed
    assert "1 values of layer embedding are not finite" in failure.reason
    assert not task.unit.done(store.path)


def test_files_are_imported_as_they_are(store: Store, tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((N_TRS, 5)).astype(np.float32)
    np.savez(tmp_path / "values.npz", mine=values, other=values[:1])
    store.ensure_group(GroupSpec("features/mylab/files/a", KEY, file_arrays(N_TRS, 5), 1, {}))
    task = ImportFeatures(
        unit=Unit("features/mylab/files/a", 0, KEY), path=tmp_path / "values.npz", array="mine", n_trs=N_TRS
    )
    task.run(store, None)
    np.testing.assert_array_equal(store.read("features/mylab/files/a/values"), values)


def test_only_what_decides_features_is_told() -> None:
    pretrained = ModelSpec("clip", checkpoint="/some/where.pt", seed=3)
    assert deciding_values(pretrained) == {
        "model": "clip",
        "weights": "pretrained",
        "n_layers": 12,
        "tr_s": 1.0,
    }
    assert deciding_values(spec("beats")) == {
        "model": "beats",
        "weights": "untrained",
        "seed": 0,
        "n_layers": 2,
        "tr_s": TR_S,
        "window_s": 1.0,
        "align": "causal",
        "pool": "tr",
    }


def test_tags_are_a_deciding_value_only_where_there_are_tags() -> None:
    without = deciding_values(spec("beats"))
    assert "n_tags" not in without
    assert deciding_values(replace(spec("beats"), n_tags=527)) == {**without, "n_tags": 527}


def test_the_array_of_tags_carries_their_names() -> None:
    labels = {"mid": ["/m/1", "/m/2"]}
    arrays = feature_arrays(replace(spec("beats"), n_tags=2), N_TRS, labels)
    assert {name: array.attributes for name, array in arrays.items()} == {
        "1": None,
        "2": None,
        "tags": labels,
    }
    assert arrays["tags"].shape == (N_TRS, 2)


def test_a_gpu_that_was_given_and_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert extraction._device() == "cpu"
    for none_given in extraction.NO_DEVICE:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none_given)
        assert extraction._device() == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(RuntimeError, match=r"CUDA_VISIBLE_DEVICES=1 gives this process a GPU, but PyTorch"):
        extraction._device()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert extraction._device() == "cuda"

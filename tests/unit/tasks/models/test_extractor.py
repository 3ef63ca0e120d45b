"""What holds for the extractors of all models: rows, time, seeds and batches. Full width, few layers."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hpcenc.tasks.models.catalogue import MODELS, UNTRAINED_N_TAGS, ModelSpec, preprocessing, stored_layers
from hpcenc.tasks.models.images import IMAGE_SIZE
from hpcenc.tasks.models.loading import build_untrained, load_extractor
from hpcenc.tasks.models.windows import MovieChunk

N_LAYERS = {"beats": 1, "clip": 1, "cavmae": 2}


def spec_of(model, tr_s=1.0, window_s=2.0, **others):
    return ModelSpec(model, "untrained", n_layers=N_LAYERS[model], tr_s=tr_s, window_s=window_s, **others)


@cache
def extractor_of(spec):
    return load_extractor(spec)


@pytest.mark.parametrize(
    ("model", "n_tags"), [("beats", None), ("clip", None), ("cavmae", None), ("beats", 5), ("cavmae", 5)]
)
def test_arrays_are_those_that_the_catalogue_promises(noise_chunk, model, n_tags):
    spec = spec_of(model, n_tags=n_tags)
    layers = extractor_of(spec).extract(noise_chunk(spec, first_row=2, n_rows=3))
    assert [(name, features.shape) for name, features in layers.items()] == [
        (layer.name, (3, layer.n_features)) for layer in stored_layers(spec)
    ]
    for features in layers.values():
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert features.std(axis=0).max() > 0


@pytest.mark.parametrize("model", MODELS)
def test_rows_depend_neither_on_the_chunk_nor_on_the_batch(noise_chunk, model):
    spec = spec_of(model)
    extractor = extractor_of(spec)
    whole = extractor.extract(noise_chunk(spec, 0, 6))
    part = extractor.extract(noise_chunk(spec, 4, 2))
    single = extractor.extract(noise_chunk(spec, 0, 6), batch=1)
    for name, features in whole.items():
        np.testing.assert_allclose(part[name], features[4:], atol=2e-5, rtol=0)
        np.testing.assert_allclose(single[name], features, atol=2e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_the_same_chunk_gives_the_same_bytes(noise_chunk, model):
    spec = spec_of(model)
    first, second = (load_extractor(spec).extract(noise_chunk(spec, 0, 2)) for _ in range(2))
    for name, features in first.items():
        np.testing.assert_array_equal(features, second[name])


def changed_rows(before, after):
    """Rows that differ at all, over the layers given."""
    return sorted(
        {int(row) for name in before for row in np.flatnonzero((before[name] != after[name]).any(axis=1))}
    )


def with_beep(chunk, start_s, duration_s=0.05):
    wave = chunk.wave.copy()
    first = round(start_s * 16_000) - chunk.wave_start
    n_samples = round(duration_s * 16_000)
    wave[first : first + n_samples] += np.sin(2 * np.pi * 1000 * np.arange(n_samples) / 16_000).astype(
        np.float32
    )
    return replace(chunk, wave=wave)


@pytest.mark.parametrize("tr_s", [1.0, 1.49, 2.0])
@pytest.mark.parametrize("model", ["beats", "cavmae"])
def test_a_beep_changes_its_row_and_the_later_rows_that_hear_it_only(noise_chunk, model, tr_s):
    spec = spec_of(model, tr_s=tr_s, window_s=3.0)
    extractor = extractor_of(spec)
    chunk = noise_chunk(spec, 0, 6)
    before = extractor.extract(chunk)
    beep_s = (2 + 0.5) * tr_s
    after = extractor.extract(with_beep(chunk, beep_s))
    is_audio = [name for name in before if not name.startswith("visual")]
    rows = changed_rows({name: before[name] for name in is_audio}, after)
    assert rows == [row for row in range(2, 6) if (row + 1) * tr_s - 3.0 <= beep_s]


@pytest.mark.parametrize("model", ["beats", "cavmae"])
def test_sound_at_the_very_start_of_a_row_does_not_reach_the_row_before(noise_chunk, model):
    spec = spec_of(model)
    chunk = noise_chunk(spec, 0, 4)
    before = extractor_of(spec).extract(chunk)
    after = extractor_of(spec).extract(with_beep(chunk, 2.0))
    assert changed_rows(before, after) == [2, 3]


def test_a_centred_window_hears_the_row_after(noise_chunk):
    spec = spec_of("beats", align="centred", window_s=2.0)
    chunk = noise_chunk(spec, 0, 5)
    before = extractor_of(spec).extract(chunk)
    after = extractor_of(spec).extract(with_beep(chunk, 2.1))
    assert changed_rows(before, after) == [1, 2]


@pytest.mark.parametrize("tr_s", [1.0, 1.49, 2.0])
@pytest.mark.parametrize("model", ["clip", "cavmae"])
def test_a_flash_changes_its_row_only(noise_chunk, model, tr_s):
    spec = spec_of(model, tr_s=tr_s)
    extractor = extractor_of(spec)
    chunk = noise_chunk(spec, 0, 5)
    frames = chunk.frames.copy()
    frames[3] = 255
    assert changed_rows(extractor.extract(chunk), extractor.extract(replace(chunk, frames=frames))) == [3]


@pytest.mark.parametrize("model", ["beats", "cavmae"])
def test_silence_and_black_give_finite_features(model):
    spec = spec_of(model)
    frames = np.zeros((2, 224, 224, 3), np.uint8)
    chunk = MovieChunk(1, 2, 1.0, frames, np.zeros(48_000, np.float32), 0)
    for features in extractor_of(spec).extract(chunk).values():
        assert np.isfinite(features).all()
        np.testing.assert_allclose(features[0], features[1], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_untrained_weights_follow_their_seed_and_leave_the_global_one_alone(model):
    state = torch.random.get_rng_state()
    first, again, other = (build_untrained(spec_of(model, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    drawn = [
        key
        for key, value in first.items()
        if value.dim() > 1 and "pos_embed" not in key and "grep_a" not in key
    ]
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize("model", ["beats", "cavmae"])
def test_an_untrained_tag_head_leaves_all_other_features_as_they_are(noise_chunk, model):
    spec = spec_of(model, seed=3)
    chunk = noise_chunk(spec, 0, 2)
    without = load_extractor(spec).extract(chunk)
    with_tags = load_extractor(replace(spec, n_tags=UNTRAINED_N_TAGS[model])).extract(chunk)
    tags = with_tags.pop("tags")
    assert tags.shape == (2, 527)
    assert ((tags > 0) & (tags < 1)).all()
    assert list(with_tags) == list(without)
    for name, features in without.items():
        np.testing.assert_array_equal(with_tags[name], features)
    other_seed = load_extractor(replace(spec, seed=4, n_tags=527)).extract(chunk)["tags"]
    assert not np.array_equal(other_seed, tags)


def test_untrained_depth_counts_the_unified_block():
    network = build_untrained(ModelSpec("cavmae", "untrained", n_layers=3))
    assert (len(network.blocks_a), len(network.blocks_v), len(network.blocks_u)) == (2, 2, 1)


def test_images_are_normalised_with_the_constants_that_their_features_name():
    constants = {
        "clip": (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
        "cavmae": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    }
    for model, (mean, std) in constants.items():
        said = preprocessing(spec_of(model))
        assert [float(value) for value in said["image_mean"].split(",")] == list(mean)
        assert [float(value) for value in said["image_std"].split(",")] == list(std)
        assert f"shorter side {IMAGE_SIZE}" in said["image"]


def test_a_chunk_without_what_the_model_needs_is_refused(noise_chunk):
    spec = spec_of("cavmae")
    chunk = noise_chunk(spec, 0, 2)
    extractor = extractor_of(spec)
    with pytest.raises(ValueError, match="needs frames"):
        extractor.extract(replace(chunk, frames=None))
    with pytest.raises(ValueError, match="no audio"):
        extractor.extract(replace(chunk, wave=None))
    with pytest.raises(ValueError, match=r"expected a TR of 1\.0 s, found 2\.0 s"):
        extractor.extract(replace(chunk, tr_s=2.0))

"""BEATs against the official code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcenc.tasks.models import beats
from hpcenc.tasks.models.beats import BeatsExtractor, spectrograms
from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.checkpoints import inspect_checkpoint
from hpcenc.tasks.models.loading import build_pretrained, build_seeded, load_extractor, read_weights
from hpcenc.tasks.models.windows import MovieChunk

TINY = ("beats/tiny_ssl", "beats/tiny_finetuned")


def load(reference, official_file, name, tmp_path):
    fixture = reference(name)
    path = official_file(fixture, tmp_path)
    weights = read_weights("beats", path)
    return fixture, weights, build_pretrained("beats", path, weights).eval()


def unpadded(fixture):
    clips = fixture.info["clips"]
    return {name: clip for name, clip in fixture.clips.items() if not clips[name]["padded_samples"]}


@pytest.mark.parametrize("name", TINY)
def test_spectrograms_and_every_layer_equal_the_official_ones(
    reference, official_file, spectrogram_equal, tmp_path, name
):
    fixture, _, network = load(reference, official_file, name, tmp_path)
    for clip in unpadded(fixture).values():
        spectrogram = spectrograms(torch.from_numpy(clip["wave"])[None])[0].numpy()
        spectrogram_equal(spectrogram, clip["fbank"], beats.BEATS_FBANK_STD)
        with torch.inference_mode():
            hidden = torch.stack(network(torch.from_numpy(clip["fbank"])[None]))[:, 0].numpy()
        tokens = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        np.testing.assert_allclose(tokens[:, :48], clip["hidden_tokens"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(hidden.mean(axis=2), clip["steps"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(tokens.mean(axis=1), clip["tokens_mean"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(tokens[-1].mean(axis=0), clip["final_mean"], atol=1e-5, rtol=0)


def test_tag_head_equals_the_official_one(reference, official_file, tmp_path):
    fixture, weights, network = load(reference, official_file, "beats/tiny_finetuned", tmp_path)
    assert (weights.training, weights.n_tags) == ("fine-tuned", 527)
    for clip in unpadded(fixture).values():
        with torch.inference_mode():
            last = network(spectrograms(torch.from_numpy(clip["wave"])[None]))[-1]
            logits = network.predictor(last)[0]
        np.testing.assert_allclose(logits.mean(dim=1), clip["tag_logits_steps"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(logits.mean(dim=(0, 1)).sigmoid(), clip["tag_probs"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("pool", ["tr", "window"])
def test_tags_of_a_row_are_those_of_the_official_model_over_its_time_steps(
    reference, official_file, tmp_path, pool
):
    fixture, _, network = load(reference, official_file, "beats/tiny_finetuned", tmp_path)
    clip = fixture.clips["one_second"]
    spec = ModelSpec("beats", n_layers=3, tr_s=0.5, window_s=1.0, pool=pool, n_tags=527)
    chunk = MovieChunk(1, 1, 0.5, None, clip["wave"], 0)
    features = BeatsExtractor(network, spec).extract(chunk)
    assert list(features) == ["1", "2", "3", "tags"]
    steps = slice(3, 6) if pool == "tr" else slice(0, 6)
    logits = clip["tag_logits_steps"][steps].mean(axis=0)
    np.testing.assert_allclose(features["tags"][0], 1 / (1 + np.exp(-logits)), atol=1e-6, rtol=0)
    if pool == "window":
        np.testing.assert_allclose(features["tags"][0], clip["tag_probs"], atol=1e-6, rtol=0)
    without = BeatsExtractor(network, replace(spec, n_tags=None)).extract(chunk)
    assert list(without) == ["1", "2", "3"]
    for name, values in without.items():
        np.testing.assert_array_equal(features[name], values)


def test_a_self_supervised_file_is_told_by_its_missing_tags(reference, official_file, tmp_path):
    _, weights, network = load(reference, official_file, "beats/tiny_ssl", tmp_path)
    assert (weights.training, weights.n_tags) == ("self-supervised", None)
    assert network.predictor is None


@pytest.mark.parametrize("pool", ["tr", "window"])
def test_a_row_is_the_mean_of_its_time_steps(reference, official_file, tmp_path, pool):
    fixture, _, network = load(reference, official_file, "beats/tiny_ssl", tmp_path)
    clip = fixture.clips["one_second"]
    tr_s = 0.5
    spec = ModelSpec("beats", n_layers=3, tr_s=tr_s, window_s=1.0, pool=pool)
    chunk = MovieChunk(1, 1, tr_s, None, clip["wave"], 0)
    layers = BeatsExtractor(network, spec).extract(chunk)
    assert list(layers) == ["1", "2", "3"]
    steps = slice(3, 6) if pool == "tr" else slice(0, 6)  # centres at .5675, .7275 and .8875 s
    for name, features in layers.items():
        expected = clip["steps"][int(name), steps].mean(axis=0)
        np.testing.assert_allclose(features[0], expected, atol=1e-5, rtol=0)


def test_the_official_configuration_is_that_of_the_official_file(reference):
    fixture = reference("beats/full_finetuned_seeded")
    network = build_seeded("beats", beats.untrained_config(ModelSpec("beats", n_tags=527)), seed=0)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        stem = "encoder.pos_conv.0."
        shapes[stem + old] = shapes.pop(f"{stem}parametrizations.weight.{new}")
    assert shapes == fixture.info["keys"]
    training_only = {"layer_wise_gradient_decay_ratio", "encoder_layerdrop"}
    head = {"finetuned_model", "predictor_dropout", "predictor_class"}
    for key, value in fixture.info["cfg"].items():
        if key not in training_only | head:
            assert beats.OFFICIAL_CONFIG[key] == value, key


@pytest.mark.slow
def test_a_file_of_official_size_gives_the_official_features(reference, official_file, tmp_path):
    fixture = reference("beats/full_finetuned_seeded")
    path = official_file(fixture, tmp_path)
    info = inspect_checkpoint("beats", path)
    assert (info.training, info.n_layers, info.width, info.n_tags) == ("fine-tuned", 12, 768, 527)
    spec = ModelSpec("beats", checkpoint=str(path), tr_s=3.0, window_s=3.0, pool="window", n_tags=527)
    extractor = load_extractor(spec)
    clip = fixture.clips["clip3"]
    chunk = MovieChunk(0, 1, 3.0, None, clip["wave"], 0)
    found = extractor.extract(chunk)
    np.testing.assert_allclose(found.pop("tags")[0], clip["tag_probs"], atol=1e-5, rtol=0)
    for name, features in found.items():
        np.testing.assert_allclose(features[0], clip["tokens_mean"][int(name)], atol=1e-4, rtol=0)
    in_tr = replace(spec, tr_s=1.0, pool="tr")
    row = BeatsExtractor(extractor.network, in_tr).extract(MovieChunk(2, 1, 1.0, None, clip["wave"], 0))
    expected = clip["steps"][12, 12:18].mean(axis=0)  # centres from 2.0075 s on
    np.testing.assert_allclose(row["12"][0], expected, atol=1e-4, rtol=0)

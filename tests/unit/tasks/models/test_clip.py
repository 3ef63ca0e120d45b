"""CLIP's image tower against the official code."""

import numpy as np
import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file

from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.checkpoints import CheckpointError, inspect_checkpoint
from hpcenc.tasks.models.clip import ClipExtractor
from hpcenc.tasks.models.images import normalised_frames
from hpcenc.tasks.models.loading import build_pretrained, load_extractor, read_weights
from hpcenc.tasks.models.windows import MovieChunk


@pytest.fixture
def tiny(reference, official_file, tmp_path):
    fixture = reference("clip/tiny_vit")
    path = official_file(fixture, tmp_path)
    return fixture, build_pretrained("clip", path, read_weights("clip", path))


def still(image):
    return MovieChunk(0, 1, 1.0, image[np.newaxis], None, 0)


def test_network_input_is_bit_equal_to_the_official_one(reference):
    for clip in reference("clip/tiny_vit").clips.values():
        frame = torch.from_numpy(clip["image_u8"])[None]
        images = normalised_frames(frame, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        np.testing.assert_array_equal(images[0, :, ::4, ::4], clip["input_sub"])


def test_every_layer_equals_the_official_one(tiny):
    fixture, network = tiny
    extractor = ClipExtractor(network, ModelSpec("clip", n_layers=3))
    for clip in fixture.clips.values():
        layers = extractor.extract(still(clip["image_u8"]))
        assert list(layers) == ["1", "2", "3", "embedding", "projected"]
        for i in (1, 2, 3):
            np.testing.assert_allclose(layers[str(i)][0], clip["cls_per_layer"][i], atol=1e-5, rtol=0)
        np.testing.assert_allclose(layers["embedding"][0], clip["pre_projection"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(layers["projected"][0], clip["projected"], atol=1e-5, rtol=0)


def test_plain_gelu_would_be_noticed(tiny):
    fixture, network = tiny
    for block in network.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU()
    clip = fixture.clips["a"]
    layers = ClipExtractor(network, ModelSpec("clip", n_layers=3)).extract(still(clip["image_u8"]))
    assert np.abs(layers["projected"][0] - clip["projected"]).max() > 1e-3


def test_a_frame_already_at_224_is_only_cropped():
    wide = np.random.default_rng(0).integers(0, 256, (1, 224, 300, 3), dtype=np.uint8)
    images = normalised_frames(torch.from_numpy(wide), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal((images[0] * 255).round(), wide[0, :, 38:262].transpose(2, 0, 1))


def write_official_width(path, patch_size=32, image_size=224):
    """One layer of OpenAI's width, in values of half precision, as theirs are; and the state."""
    network = VisionTransformer(image_size, patch_size, 768, 1, 12, 4.0, output_dim=512)
    state = {f"visual.{key}": value.half().float() for key, value in network.state_dict().items()}
    save_file(state, path)
    return state


@pytest.mark.parametrize(("patch_size", "image_size"), [(16, 224), (32, 256)])
def test_another_vit_of_the_same_width_is_refused(tmp_path, patch_size, image_size):
    path = tmp_path / "open_clip_model.safetensors"
    write_official_width(path, patch_size, image_size)
    other = f"patch_size {patch_size}, expected 32" if patch_size != 32 else "image_size 256, expected 224"
    with pytest.raises(CheckpointError, match=rf"not a ViT-B/32 of 224 pixels \({other}\)"):
        load_extractor(ModelSpec("clip", n_layers=1, checkpoint=str(path)))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_that_are_not_openais_must_be_named(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("hpcenc.tasks.models.loading.OFFICIAL_N_LAYERS", 1)
    path = tmp_path / f"open_clip_model{suffix}"
    state = write_official_width(path)
    write = save_file if suffix == ".safetensors" else torch.save
    write(state, path)
    assert inspect_checkpoint("clip", path).width == 768
    state["visual.conv1.weight"][0, 0, 0, 0] += 1e-5
    write(state, path)
    with pytest.raises(CheckpointError, match="does not hold OpenAI's weights"):
        inspect_checkpoint("clip", path)
    assert inspect_checkpoint("clip", path, is_named=True).width == 768


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_of_official_size_gives_the_official_features(reference, tmp_path, suffix):
    fixture = reference("clip/full_vit_b32_seeded")
    path = tmp_path / f"open_clip{suffix}"
    if suffix == ".safetensors":
        save_file(fixture.state, path)
    else:
        torch.save(fixture.state, path)
    info = inspect_checkpoint("clip", path, is_named=True)
    assert (info.n_layers, info.width) == (12, 768)
    extractor = load_extractor(ModelSpec("clip", checkpoint=str(path)))
    clip = fixture.clips["a"]
    layers = extractor.extract(still(clip["image_u8"]))
    for i in range(1, 13):
        np.testing.assert_allclose(layers[str(i)][0], clip["cls_per_layer"][i], atol=1e-4, rtol=0)
    np.testing.assert_allclose(layers["embedding"][0], clip["pre_projection"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(layers["projected"][0], clip["projected"], atol=1e-4, rtol=0)

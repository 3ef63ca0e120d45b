"""CAV-MAE against the official code."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import erf
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hpcenc.tasks.models.catalogue import ModelSpec, cavmae_rows
from hpcenc.tasks.models.cavmae import CAVMAE_FBANK_STD, CavmaeExtractor, CavmaeModel, spectrograms
from hpcenc.tasks.models.checkpoints import inspect_checkpoint
from hpcenc.tasks.models.images import normalised_frames
from hpcenc.tasks.models.loading import build_pretrained, build_seeded, load_extractor, read_weights
from hpcenc.tasks.models.windows import MovieChunk

TINY = ("cavmae/tiny_pretrain", "cavmae/tiny_finetuned")


def load(reference, official_file, name, tmp_path):
    fixture = reference(name)
    path = official_file(fixture, tmp_path)
    weights = read_weights("cavmae", path)
    # The tiny models do not have 64 features a head, and the file does not say how many.
    heads = fixture.info["kwargs"].get("num_heads", 12)
    weights = replace(weights, config={**weights.config, "n_heads": heads})
    return fixture, weights, build_pretrained("cavmae", path, weights).eval()


def frame(clip):
    image = torch.from_numpy(clip["image_u8"])[None]
    return normalised_frames(image, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def check_inputs(clip, n_real, spectrogram_equal):
    spectrogram = spectrograms(torch.from_numpy(clip["wave"])[None])[0].numpy()
    assert spectrogram.shape == (1024, 128)
    spectrogram_equal(spectrogram[:64], clip["fbank_norm_first64"], CAVMAE_FBANK_STD / 2)
    end = min(n_real, 1024)
    around = spectrogram[end - 4 : end + 4]
    spectrogram_equal(around, clip["fbank_norm_around_end"], CAVMAE_FBANK_STD / 2)
    images = frame(clip)
    np.testing.assert_array_equal(images[0, :, ::8, ::8], clip["image_tensor_sub"])


@pytest.mark.parametrize("name", TINY)
def test_network_inputs_equal_the_official_ones(reference, spectrogram_equal, name):
    fixture = reference(name)
    for key, clip in fixture.clips.items():
        check_inputs(clip, fixture.info["clips"][key]["fbank_frames"], spectrogram_equal)


@pytest.mark.parametrize("name", TINY)
def test_every_layer_of_both_branches_equals_the_official_one(reference, official_file, tmp_path, name):
    fixture, _, network = load(reference, official_file, name, tmp_path)
    for clip in fixture.clips.values():
        with torch.inference_mode():
            audio = network.audio_branch(spectrograms(torch.from_numpy(clip["wave"])[None]))
            visual = network.visual_branch(frame(clip))
        audio_means = torch.stack(audio).mean(dim=(1, 2, 3)).numpy()
        visual_means = torch.stack(visual).mean(dim=(1, 2)).numpy()
        np.testing.assert_allclose(audio_means[:-1], clip["audio_layers_mean"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(visual_means[:-1], clip["visual_layers_mean"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(audio_means[-1], clip["audio_pooled"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(visual_means[-1], clip["visual_pooled"], atol=1e-5, rtol=0)
        columns = torch.stack([audio[i] for i in (0, 5, 10, 11)])[:, 0].mean(dim=1)[:, ::4]
        np.testing.assert_allclose(columns, clip["audio_layers_time"], atol=1e-5, rtol=0)
        tokens = audio[-1].flatten(1, 2)[0, ::37]
        np.testing.assert_allclose(tokens, clip["audio_tokens_sample"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(visual[-1][0, ::23], clip["visual_tokens_sample"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_plain_norms_of_the_unified_block_are_those_of_the_joint_pass(
    reference, official_file, tmp_path, name
):
    fixture, _, network = load(reference, official_file, name, tmp_path)
    for clip in fixture.clips.values():
        with torch.inference_mode():
            own = network.audio_branch(spectrograms(torch.from_numpy(clip["wave"])[None]))[-3].flatten(1, 2)
            both = torch.cat([own, network.visual_branch(frame(clip))[-3]], dim=1)
            joint = network.norm(network.blocks_u[0](both))[0].numpy()
        np.testing.assert_allclose(joint.mean(axis=0), clip["joint_pooled"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(joint[:512].mean(axis=0), clip["joint_audio_pooled"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(joint[512:].mean(axis=0), clip["joint_visual_pooled"], atol=1e-5, rtol=0)


def test_logits_of_the_tag_head_equal_the_official_audio_only_ones(reference, official_file, tmp_path):
    fixture, _, network = load(reference, official_file, "cavmae/tiny_finetuned", tmp_path)
    for clip in fixture.clips.values():
        with torch.inference_mode():
            audio = network.audio_branch(spectrograms(torch.from_numpy(clip["wave"])[None]))
            logits = network.mlp_head(audio[-1].mean(dim=(1, 2)))
        np.testing.assert_allclose(logits.ravel(), clip["logits_audioonly"].ravel(), atol=1e-5, rtol=0)


def layer_norm(x, state, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def plain_block(x, state, name, n_heads, norms=""):
    """One transformer block over tokens (n_tokens, width), written out."""
    n_tokens, width = x.shape
    qkv = linear(layer_norm(x, state, f"{name}.norm1{norms}"), state, f"{name}.attn.qkv")
    q, k, v = qkv.reshape(n_tokens, 3, n_heads, width // n_heads).transpose(1, 2, 0, 3)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // n_heads)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    heads = shares / shares.sum(axis=-1, keepdims=True) @ v
    x = x + linear(heads.transpose(1, 0, 2).reshape(n_tokens, width), state, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, state, f"{name}.norm2{norms}"), state, f"{name}.mlp.fc1")
    gelu = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return x + linear(gelu, state, f"{name}.mlp.fc2")


def plain_audio_tokens(spectrogram, state, n_own, n_heads):
    """Normed audio tokens (8, 64, width) of a spectrogram (1024, 128), by the official audio-only pass."""
    patches = spectrogram.reshape(64, 16, 8, 16).transpose(2, 0, 3, 1).reshape(512, 256)
    kernel = state["patch_embed_a.proj.weight"].reshape(-1, 256)
    x = patches @ kernel.T + state["patch_embed_a.proj.bias"]
    x = x + state["pos_embed_a"][0] + state["modality_a"][0]
    for i in range(n_own):
        x = plain_block(x, state, f"blocks_a.{i}", n_heads)
    x = plain_block(x, state, "blocks_u.0", n_heads, norms="_a")
    return layer_norm(x, state, "norm_a").reshape(8, 64, -1)


@pytest.mark.parametrize("pool", ["tr", "window"])
def test_tags_of_a_row_are_those_of_a_plain_forward_pass(tmp_path, pool):
    config = {"width": 128, "n_heads": 2, "n_layers": 3, "mlp_width": 64, "n_tags": 7}
    rng = np.random.default_rng(0)
    state = {
        key: torch.from_numpy(rng.normal(0, 0.15, value.shape).astype(np.float32))
        for key, value in CavmaeModel(config).state_dict().items()
    }
    path = tmp_path / "as_46.6.pth"
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    weights = read_weights("cavmae", path)
    assert dict(weights.config) == config
    spec = ModelSpec("cavmae", n_layers=3, tr_s=2.0, window_s=10.0, pool=pool, n_tags=7)
    wave = rng.normal(0, 0.1, 160_000).astype(np.float32)
    chunk = MovieChunk(4, 1, 2.0, np.zeros((1, 224, 224, 3), np.uint8), wave, 0)
    found = CavmaeExtractor(build_pretrained("cavmae", path, weights), spec).extract(chunk)

    plain = {key: value.double().numpy() for key, value in state.items()}
    spectrogram = spectrograms(torch.from_numpy(wave)[None])[0].double().numpy()
    tokens = plain_audio_tokens(spectrogram, plain, n_own=2, n_heads=2)
    centres = 0.16 * np.arange(64) + 0.0875
    columns = (centres >= 8) & (centres < 10) if pool == "tr" else slice(None)
    pooled = tokens[:, columns].mean(axis=(0, 1))
    logits = linear(layer_norm(pooled, plain, "mlp_head.0"), plain, "mlp_head.1")
    np.testing.assert_allclose(found["audio"][0], pooled, atol=1e-4)
    np.testing.assert_allclose(found["tags"][0], 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_fine_tuned_file_is_told_by_its_tag_head(reference, official_file, tmp_path):
    _, weights, _ = load(reference, official_file, "cavmae/tiny_finetuned", tmp_path)
    assert (weights.training, weights.n_tags) == ("fine-tuned", 527)


def test_decoder_weights_are_left_out(reference, official_file, tmp_path):
    fixture, weights, _ = load(reference, official_file, "cavmae/tiny_pretrain", tmp_path)
    assert any(key.startswith("module.decoder_") for key in fixture.state)
    assert not any("decoder" in key or "mask_token" in key for key in weights.state)
    assert (weights.training, weights.n_layers) == ("self-supervised", 12)


def test_untrained_position_tables_are_the_official_ones(reference):
    fixture = reference("cavmae/tiny_pretrain")
    config = {"width": 32, "n_heads": 4, "n_layers": 2, "mlp_width": 64}
    network = CavmaeModel(config)
    for name in ("pos_embed_a", "pos_embed_v"):
        official = fixture.state[f"module.{name}"]
        np.testing.assert_allclose(network.get_parameter(name).detach(), official, atol=1e-5, rtol=0)


def test_a_short_window_keeps_only_the_columns_that_hold_sound():
    assert [cavmae_rows(window_s) for window_s in (1.0, 4.0, 9.99, 10.0, 10.2)] == [
        112,
        400,
        1008,
        1024,
        1024,
    ]
    wave = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 64_000)).astype(np.float32))
    short = spectrograms(wave, 400)
    np.testing.assert_array_equal(short, spectrograms(wave)[:, :400])
    assert (short[0, 398:] == 5.081 / 4.4849).all()


def test_columns_of_a_short_window_keep_their_places_in_the_position_table():
    network = build_seeded("cavmae", {"width": 32, "n_heads": 2, "n_layers": 2, "mlp_width": 32}, seed=0)
    with torch.inference_mode():
        for block in (*network.blocks_a, *network.blocks_u):
            for layer in (block.attn.proj, block.mlp.fc2):  # a block that changes nothing shows its input
                torch.nn.init.zeros_(layer.weight)
        spectrogram = torch.from_numpy(
            np.random.default_rng(0).normal(size=(1, 1024, 128)).astype(np.float32)
        )
        whole = network.audio_branch(spectrogram)[0]
        short = network.audio_branch(spectrogram[:, :112])[0]
    np.testing.assert_allclose(short, whole[:, :, :7], atol=1e-6)


@pytest.mark.slow
def test_a_file_of_official_size_gives_the_official_features(
    reference, official_file, spectrogram_equal, tmp_path
):
    fixture = reference("cavmae/full_pretrain_seeded")
    path = official_file(fixture, tmp_path)
    info = inspect_checkpoint("cavmae", path)
    assert (info.training, info.n_layers, info.width, info.n_tags) == ("self-supervised", 12, 768, None)
    extractor = load_extractor(ModelSpec("cavmae", checkpoint=str(path), pool="window", tr_s=10.0))
    clip = fixture.clips["ten_seconds"]
    check_inputs(clip, 998, spectrogram_equal)
    layers = extractor.extract(MovieChunk(0, 1, 10.0, clip["image_u8"][np.newaxis], clip["wave"], 0))
    for modality in ("audio", "visual"):
        for i in range(1, 13):
            expected = clip[f"{modality}_layers_mean"][i - 1]
            np.testing.assert_allclose(layers[f"{modality}-{i}"][0], expected, atol=1e-4, rtol=0)
        np.testing.assert_allclose(layers[modality][0], clip[f"{modality}_pooled"], atol=1e-4, rtol=0)

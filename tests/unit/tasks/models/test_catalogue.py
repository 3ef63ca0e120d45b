"""What the plan knows of the models."""

import pickle
import subprocess
import sys

import pytest

from hpcenc.tasks.models.catalogue import (
    FEATURE_SETS,
    MODELS,
    UNTRAINED_N_TAGS,
    LayerSource,
    ModelSpec,
    all_layer_names,
    compose,
    default_layer,
    label,
    layers_of_set,
    modality,
    preprocessing,
    stored_layers,
    sweep_layers,
)
from hpcenc.tasks.models.official_files import expected_files


def test_importing_it_loads_neither_torch_nor_numpy():
    code = (
        "import sys; import hpcenc.tasks.models.catalogue, hpcenc.tasks.models.checkpoints; "
        "print(sorted({'torch', 'numpy', 'timm', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", FEATURE_SETS)
@pytest.mark.parametrize("n_layers", [2, 4, 12])
def test_a_sweep_has_one_layer_per_depth_and_ends_with_the_default(name, n_layers):
    sweep = sweep_layers(name, n_layers)
    assert len(sweep) == len(set(sweep)) == (1 if name.endswith("-tags") else n_layers)
    assert sweep[-1] == default_layer(name, n_layers)
    model, _ = FEATURE_SETS[name]
    assert set(sweep) <= set(layers_of_set(name, n_layers)) <= set(all_layer_names(model, n_layers))


def test_a_branch_sweeps_its_own_depths():
    assert sweep_layers("cavmae-audio", 3) == ("audio-1", "audio-2", "audio")
    assert sweep_layers("cavmae-concat", 2) == ("concat-1", "concat")
    assert sweep_layers("cavmae", 2) == ("mean-1", "mean")
    assert layers_of_set("cavmae-visual", 2) == ("visual-1", "visual", "visual-2")  # the last is not normed


@pytest.mark.parametrize("name", FEATURE_SETS)
def test_layers_know_their_modality(name):
    model, branch = FEATURE_SETS[name]
    known = {"cavmae-audio": "audio", "cavmae-visual": "vision", "clip": "vision", "beats": "audio"}
    expected = "audio" if branch == "tags" else known.get(name, "audio")
    if branch in ("mean", "concat"):
        expected = "audio-visual"
    assert {modality(model, layer) for layer in sweep_layers(name)} <= {expected}


def test_tags_are_a_layer_of_a_model_with_a_tag_head_only():
    for model in ("beats", "cavmae"):
        without, with_tags = stored_layers(ModelSpec(model)), stored_layers(ModelSpec(model, n_tags=9))
        assert with_tags[:-1] == without
        assert (with_tags[-1].name, with_tags[-1].n_features) == ("tags", 9)
    assert "tags" not in all_layer_names("clip")


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_is_made_of_stored_arrays(model):
    spec = ModelSpec(model, n_layers=4, n_tags=UNTRAINED_N_TAGS.get(model))
    stored = {layer.name: layer.n_features for layer in stored_layers(spec)}
    names = all_layer_names(model, 4)
    assert len(names) == len(set(names))
    assert set(stored) <= set(names)
    for name in names:
        source = compose(model, name)
        assert set(source.arrays) <= set(stored)
        assert (len(source.arrays) == 1) == (source.how == "single")


def test_the_reference_layers_are_the_defaults():
    assert [default_layer(model) for model in MODELS] == ["12", "embedding", "mean"]
    assert compose("cavmae", "mean") == LayerSource(("audio", "visual"), "mean")
    assert compose("cavmae", "concat-3") == LayerSource(("audio-3", "visual-3"), "concat")
    assert compose("clip", "embedding") == LayerSource(("embedding",), "single")


def test_preprocessing_says_what_was_done_before_the_model_in_plain_values():
    beats, clip, cavmae = (preprocessing(ModelSpec(model, window_s=2.0, pool="window")) for model in MODELS)
    for said in (beats, cavmae):
        assert (said["sample_rate_hz"], said["channels"]) == (16_000, "mean downmix")
        assert (said["window_s"], said["align"], said["pool"]) == (2.0, "causal", "window")
    assert (beats["spectrogram_mean"], beats["spectrogram_divisor"]) == (15.41663, 2 * 6.55582)
    assert (cavmae["spectrogram_mean"], cavmae["spectrogram_divisor"]) == (-5.081, 4.4849)
    assert cavmae["spectrogram_rows"] == 208
    assert preprocessing(ModelSpec("cavmae"))["spectrogram_rows"] == 1024
    assert clip["activation"] == "QuickGELU"
    assert "window_s" not in clip
    for said in (beats, clip, cavmae):
        assert {type(value) for value in said.values()} <= {str, int, float}


def test_widths_are_those_of_the_models():
    widths = {layer.name: layer.n_features for layer in stored_layers(ModelSpec("clip"))}
    assert (widths["12"], widths["embedding"], widths["projected"]) == (768, 768, 512)
    assert {layer.n_features for layer in stored_layers(ModelSpec("cavmae"))} == {768}
    assert len(stored_layers(ModelSpec("cavmae"))) == 2 * 13


def test_untrained_weights_are_named_as_such():
    assert label("clip") == "clip"
    assert label("clip", "untrained", 3) == "clip[untrained, seed 3]"


def test_a_spec_is_hashable_and_picklable():
    spec = ModelSpec("beats", weights="untrained", n_layers=4)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(ModelSpec("beats", weights="untrained", n_layers=4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "resnet"}, "model = 'resnet': expected one of beats, clip, cavmae"),
        ({"model": "beats", "weights": "random"}, "weights = 'random'"),
        ({"model": "beats", "align": "acausal"}, "align = 'acausal'"),
        ({"model": "beats", "pool": "second"}, "pool = 'second'"),
        ({"model": "cavmae", "n_layers": 1}, "expected at least 2"),
        ({"model": "beats", "tr_s": 0.0}, "expected a TR"),
        ({"model": "beats", "tr_s": 2.0, "window_s": 1.0}, "at least one TR"),
        ({"model": "beats", "tr_s": 0.1, "window_s": 0.1}, "at least 0.175 s"),
        ({"model": "cavmae", "window_s": 12.0}, "at most 10.255 s"),
        ({"model": "clip", "n_tags": 527}, "n_tags = 527 of clip: .* are beats, cavmae"),
        ({"model": "beats", "n_tags": 0}, "at least 1 output"),
    ],
)
def test_what_no_model_can_do_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec(**wrong)


def test_a_vision_model_has_no_use_for_a_window():
    assert ModelSpec("clip", tr_s=20.0).window_s == 10.0


@pytest.mark.parametrize("model", MODELS)
def test_every_model_says_which_files_will_do(model):
    for file in expected_files(model):
        assert file.size_bytes > 3e8
        assert file.name
        assert file.origin

"""Checkpoint files that are missing, damaged, unsafe or of another model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hpcenc.tasks.models.catalogue import MODELS, ModelSpec
from hpcenc.tasks.models.checkpoints import (
    CheckpointError,
    check_file,
    find_checkpoint,
    inspect_checkpoint,
)
from hpcenc.tasks.models.loading import build_pretrained, load_extractor, read_weights
from hpcenc.tasks.models.official_files import expected_files

TINY = {"beats": "beats/tiny_ssl", "clip": "clip/tiny_vit", "cavmae": "cavmae/tiny_pretrain"}


@pytest.fixture
def tiny_file(reference, official_file, tmp_path):
    """The official form of a tiny model's checkpoint."""
    return lambda model: official_file(reference(TINY[model]), tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_a_missing_checkpoint_names_the_file_its_size_and_its_place(model, tmp_path):
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(model, tmp_path)
    for file in expected_files(model):
        assert file.name in str(error.value)
        assert f"{file.size_bytes / 1e6:.0f} MB" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "untrained" in str(error.value)


def test_the_only_known_file_of_a_folder_is_taken(tmp_path):
    (tmp_path / "BEATs_iter3_plus_AS2M.pt").write_bytes(b"x")
    assert find_checkpoint("beats", tmp_path).name == "BEATs_iter3_plus_AS2M.pt"


def test_of_two_known_files_the_study_must_choose(tmp_path):
    names = [file.name for file in expected_files("beats")]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="Name the one to use"):
        find_checkpoint("beats", tmp_path)
    assert find_checkpoint("beats", tmp_path, names[1]).name == names[1]


def test_a_file_that_the_study_names_must_exist(tmp_path):
    with pytest.raises(CheckpointError, match=r"'mine\.pt' is not there"):
        find_checkpoint("beats", tmp_path, "mine.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>sign in</html>", b"\n  <html lang='en'>"])
def test_a_web_page_is_no_checkpoint(tmp_path, page, suffix):
    path = tmp_path / f"open_clip_model{suffix}"
    path.write_bytes(page)
    with pytest.raises(CheckpointError, match="web page"):
        check_file("clip", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"", "begins with b''"),
        (b"GIF89a", "begins with b'GIF89a'"),
    ],
)
def test_other_files_are_told_by_their_first_bytes(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        check_file("beats", path)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0.1, 0.6, 0.999])
def test_a_truncated_file_is_noticed_before_it_is_read(tiny_file, model, share):
    path = tiny_file(model)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="truncated"):
        check_file(model, path)


@pytest.mark.parametrize("n_bytes", [4, 2000, -1])
def test_a_truncated_safetensors_file_is_noticed_by_its_header(reference, tmp_path, n_bytes):
    path = tmp_path / "open_clip_model.safetensors"
    save_file(reference("clip/tiny_vit").state, path)
    assert check_file("clip", path) == "safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match="truncated"):
        check_file("clip", path)


def test_bytes_lost_inside_a_file_are_noticed_when_it_is_read(tiny_file):
    path = tiny_file("beats")
    content = bytearray(path.read_bytes())
    start = content.index(b"data.pkl") + 200
    content[start : start + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        read_weights("beats", path)


def test_an_old_pickle_is_read_too(reference, tmp_path):
    path = tmp_path / "old.pth"
    state = reference("cavmae/tiny_pretrain").state
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert check_file("cavmae", path) == "pickle"
    assert read_weights("cavmae", path).width == 32
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="truncated"):
        read_weights("cavmae", path)


class Payload:
    """Writes a file if a pickle of it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_file_that_wants_to_run_code_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"cfg": Payload(trace), "model": {}}, path)
    with pytest.raises(CheckpointError, match=r"would run code when read \(getattr\)") as error:
        read_weights("beats", path)
    assert "weights_only" not in str(error.value)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_refused_with_the_way_to_convert_it(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(CheckpointError, match="TorchScript") as error:
        check_file("clip", path)
    lines = str(error.value).splitlines()
    code = "\n".join(line.strip() if not line.startswith(" " * 8) else line[4:] for line in lines[3:])
    exec(compile(code, "advice", "exec"), {})  # the advice given must work
    assert check_file("clip", tmp_path / "open_clip_model.safetensors") == "safetensors"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("other", MODELS)
def test_another_models_checkpoint_is_named(tiny_file, model, other):
    path = tiny_file(other)
    if model == other:
        assert read_weights(model, path).n_layers in (3, 12)
    else:
        with pytest.raises(CheckpointError, match=f"looks like a checkpoint of {other}"):
            read_weights(model, path)


@pytest.mark.parametrize(
    "config", [5, {"encoder_layers": 2, "conv_pos_groups": 7}, {"activation_fn": "none"}]
)
def test_an_odd_configuration_is_a_checkpoint_error(tmp_path, config):
    path = tmp_path / "odd.pt"
    torch.save({"cfg": config, "model": {"patch_embedding.weight": torch.zeros(3)}}, path)
    with pytest.raises(CheckpointError, match="Expected one of"):
        build_pretrained("beats", path, read_weights("beats", path))


def test_a_checkpoint_of_no_known_model_is_said_to_be_so(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.save({"fc.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(CheckpointError, match="no model known here"):
        inspect_checkpoint("beats", path)


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_another_size_is_refused(tiny_file, model):
    path = tiny_file(model)
    with pytest.raises(CheckpointError, match="expected 12 of 768"):
        inspect_checkpoint(model, path)
    with pytest.raises(CheckpointError, match="expected 12 of 768"):
        load_extractor(ModelSpec(model, checkpoint=str(path)))


KEYS = {
    "beats": "encoder.layers.1.fc1.bias",
    "clip": "visual.ln_post.bias",
    "cavmae": "blocks_v.3.norm1.bias",
}


@pytest.mark.parametrize("model", MODELS)
def test_lost_renamed_and_misshapen_weights_are_named(tiny_file, model):
    path = tiny_file(model)
    key = KEYS[model]
    lost = read_weights(model, path)
    value = lost.state.pop(key)
    with pytest.raises(CheckpointError, match=f"missing: {key}"):
        build_pretrained(model, path, lost)
    lost.state[f"{key}.old"] = value
    with pytest.raises(CheckpointError, match=rf"unexpected: {key}\.old"):
        build_pretrained(model, path, lost)
    del lost.state[f"{key}.old"]
    lost.state[key] = value[:-1]
    with pytest.raises(CheckpointError, match=rf"of another shape: {key} \(\d+,\), expected \(\d+,\)"):
        build_pretrained(model, path, lost)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("model", MODELS)
def test_weights_that_are_not_finite_are_refused(tiny_file, model, bad):
    path = tiny_file(model)
    weights = read_weights(model, path)
    weights.state[KEYS[model]][0] = bad
    with pytest.raises(CheckpointError, match=f"NaN or Inf in {KEYS[model]}"):
        build_pretrained(model, path, weights)


def test_a_half_precision_file_is_loaded_in_float32(reference, tmp_path):
    path = tmp_path / "open_clip_model.safetensors"
    save_file({key: value.half() for key, value in reference("clip/tiny_vit").state.items()}, path)
    network = build_pretrained("clip", path, read_weights("clip", path))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("model", MODELS)
def test_features_are_in_full_float32_whatever_a_library_has_set(model):
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    load_extractor(ModelSpec(model, weights="untrained", n_layers=2))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_pretrained_weights_need_a_path():
    with pytest.raises(CheckpointError, match="found none"):
        load_extractor(ModelSpec("clip"))

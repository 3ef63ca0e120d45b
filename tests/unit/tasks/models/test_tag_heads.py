"""Tag heads, read from the outlines of checkpoints, and the names of tags."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.checkpoints import CheckpointError
from hpcenc.tasks.models.loading import load_extractor
from hpcenc.tasks.models.tag_heads import CLASS_LABELS, TagHead, find_tag_head, missing_tags, name_tags

MIDS = ("/m/09x0r", "/t/dd00003", "/m/05zppz")
TABLE = 'index,mid,display_name\n0,/m/05zppz,"Male speech, man speaking"\n1,/m/09x0r,Speech\n2,/m/07,Dog\n'


def beats_file(folder: Path, **others) -> Path:
    path = folder / "beats.pt"
    model = {"patch_embedding.weight": torch.zeros(2, 2), "predictor.weight": torch.zeros(3, 4)}
    contents = {"cfg": {"encoder_layers": 12}, "model": model, "label_dict": dict(enumerate(MIDS))}
    torch.save(contents | others, path)
    return path


@pytest.mark.parametrize("old_form", [False, True])
def test_the_head_and_its_table_are_found_in_the_official_form(reference, tmp_path, old_form):
    fixture = reference("beats/tiny_finetuned")
    path = tmp_path / "beats.pt"
    labels = {place: f"/m/{place:05}" for place in range(527)}
    contents = {"cfg": fixture.info["cfg"], "model": fixture.state, "label_dict": labels}
    torch.save(contents, path, _use_new_zipfile_serialization=not old_form)
    head = find_tag_head("beats", path)
    assert head == TagHead(527, tuple(labels.values()))
    assert head.labels == {"mid": list(labels.values())}


@pytest.mark.parametrize("name", ["beats/tiny_ssl", "cavmae/tiny_pretrain", "clip/tiny_vit"])
def test_a_self_supervised_file_has_none(reference, official_file, tmp_path, name):
    assert find_tag_head(name.partition("/")[0], official_file(reference(name), tmp_path)) is None


def test_a_head_of_cav_mae_has_no_names_of_its_own(tmp_path):
    state = {"module.mlp_head.1.weight": torch.zeros(7, 4), "module.norm.weight": torch.zeros(4)}
    torch.save(state, tmp_path / "as_46.6.pth")
    save_file(state, tmp_path / "as.safetensors")
    for name in ("as_46.6.pth", "as.safetensors"):
        head = find_tag_head("cavmae", tmp_path / name)
        assert head == TagHead(7)
        assert head.labels == {}


def test_weights_that_are_parameters_are_read_too(tmp_path):
    torch.save({"mlp_head.1.weight": torch.nn.Parameter(torch.zeros(7, 4))}, tmp_path / "as.pth")
    assert find_tag_head("cavmae", tmp_path / "as.pth") == TagHead(7)


def test_a_login_node_needs_no_torch_for_it(tmp_path):
    path = beats_file(tmp_path)
    code = (
        "import sys; from hpcenc.tasks.models.tag_heads import find_tag_head; "
        f"print(find_tag_head('beats', {str(path)!r}).n_tags, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3 False False"


class Payload:
    """Writes a file if a pickle of it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("old_form", [False, True])
def test_nothing_that_a_file_names_is_run(tmp_path, old_form):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    contents = {"cfg": Payload(trace), "model": {"predictor.weight": torch.zeros(3, 4)}}
    torch.save(contents, path, _use_new_zipfile_serialization=not old_form)
    assert find_tag_head("beats", path) == TagHead(3)
    assert not trace.exists()


def test_a_file_of_another_model_is_left_to_the_check_of_models(tmp_path):
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pt")
    assert find_tag_head("beats", tmp_path / "resnet.pt") is None


@pytest.mark.parametrize("labels", [{0: "/m/1"}, {0: "/m/1", 1: "/m/2", 3: "/m/3"}])
def test_a_table_that_does_not_name_each_output_is_refused(tmp_path, labels):
    with pytest.raises(CheckpointError, match="names each of the 3 outputs"):
        find_tag_head("beats", beats_file(tmp_path, label_dict=labels))


@pytest.mark.parametrize(
    "contents", [5, {"cfg": {}, "model": 7}, {"cfg": {}, "model": {"predictor.weight": 1}}]
)
def test_an_odd_outline_is_a_checkpoint_error(tmp_path, contents):
    torch.save(contents, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="outline cannot be read"):
        find_tag_head("beats", tmp_path / "odd.pt")


def test_a_head_that_is_not_the_planned_one_is_refused(reference, official_file, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcenc.tasks.models.loading._check_size", lambda *_: None)
    path = official_file(reference("beats/tiny_ssl"), tmp_path)
    with pytest.raises(CheckpointError, match="expected a tag head of 527 outputs, found none"):
        load_extractor(ModelSpec("beats", checkpoint=str(path), n_layers=3, n_tags=527))


# Names.


def test_tags_with_ids_get_the_words_of_the_table_whatever_its_order(tmp_path):
    head = TagHead(3, MIDS)
    assert name_tags("beats", head, tmp_path) == head
    (tmp_path / CLASS_LABELS).write_text(TABLE)
    named = name_tags("beats", head, tmp_path)
    # The second id is not in the table: its name is not made up.
    assert named.display_names == ("Speech", "/t/dd00003", "Male speech, man speaking")
    assert named.labels == {"mid": list(MIDS), "display_name": list(named.display_names)}


def test_tags_of_cav_mae_are_in_the_order_of_the_table_if_they_are_as_many(tmp_path):
    (tmp_path / CLASS_LABELS).write_text(TABLE)
    named = name_tags("cavmae", TagHead(3), tmp_path)
    assert named.mids == ("/m/05zppz", "/m/09x0r", "/m/07")
    assert named.display_names == ("Male speech, man speaking", "Speech", "Dog")
    assert name_tags("cavmae", TagHead(309), tmp_path) == TagHead(309)
    assert name_tags("beats", TagHead(3), tmp_path) == TagHead(3)


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "index,mid,display_name\n1,/m/1,x\n", TABLE + "3,/m/07,Cat\n", TABLE + "3,/m/08\n"],
)
def test_another_table_is_refused(tmp_path, text):
    (tmp_path / CLASS_LABELS).write_text(text)
    with pytest.raises(CheckpointError, match="expected AudioSet's table of classes"):
        name_tags("beats", TagHead(3, MIDS), tmp_path)


def test_missing_tags_name_the_file_that_has_them():
    said = missing_tags("beats", "beats-tags+clip", "BEATs_iter3_plus_AS2M.pt")
    assert "beats-tags+clip" in said
    assert "found none in BEATs_iter3_plus_AS2M.pt" in said
    assert "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt (363 MB" in said
    assert "as_46.6.pth" in missing_tags("cavmae", "cavmae-tags", "cav-mae-scale++.pth")

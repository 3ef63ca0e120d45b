"""Tag heads of checkpoints: how many outputs they have, and what those are called.

The digest of features says whether tags are among them, so a login node must know; this reads the
outline of a file (names and shapes) with the standard library, a few kilobytes of it.
"""

import csv
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hpcenc.tasks.models.checkpoints import CheckpointError, check_file, damaged
from hpcenc.tasks.models.official_files import expected_files

CLASS_LABELS = "class_labels_indices.csv"
"""AudioSet's own table of its 527 classes (index, mid, display_name), looked for in ``weights_dir``."""

_HEADS = {"beats": "predictor.weight", "cavmae": "mlp_head.1.weight"}
_ODD_OUTLINES = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)
"""What reading an outline raises on contents of another form."""


@dataclass(frozen=True)
class TagHead:
    """The tag head of a checkpoint.

    Attributes
    ----------
    n_tags : int
        Its outputs.
    mids : tuple of str
        AudioSet's id of each output (``/m/09x0r``); empty where no table says them.
    display_names : tuple of str
        AudioSet's words for them (``Speech``), by `CLASS_LABELS`; an output that it does not have keeps
        its id. Empty without that table.
    """

    n_tags: int
    mids: tuple[str, ...] = ()
    display_names: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, list[str]]:
        """What is known of the outputs' names, as plain values for the attributes of an array."""
        known = {"mid": self.mids, "display_name": self.display_names}
        return {key: list(names) for key, names in known.items() if names}


def find_tag_head(model: str, path: Path | str) -> TagHead | None:
    """The tag head of a checkpoint, without PyTorch and without reading its weights.

    Parameters
    ----------
    model : str
    path : path

    Returns
    -------
    TagHead or None
        With the ids of the file's own table (BEATs). CAV-MAE's files have none: their outputs are in the
        order of the table that they were trained with, see `name_tags`. None also for a file of another
        model, which is for `inspect_checkpoint` to refuse.

    Raises
    ------
    CheckpointError
        If the file is damaged, or its table does not name each output once.
    """
    path = Path(path)
    if model not in _HEADS:
        return None
    try:
        contents = _outline(model, path)
        state = contents.get("model", {}) if model == "beats" else contents
        head = {key.removeprefix("module."): value for key, value in state.items()}.get(_HEADS[model])
        if head is None:
            return None
        n_tags = int(head[0])
        table = {int(place): str(mid) for place, mid in dict(contents.get("label_dict", {})).items()}
    except _ODD_OUTLINES as error:
        raise damaged(model, path, f"its outline cannot be read: {error!r}") from error
    if table and set(table) != set(range(n_tags)):
        raise CheckpointError(
            f"{model}: {str(path)!r}: expected a label_dict that names each of the {n_tags} outputs of its "
            f"tag head, found {len(table)} names. Get it again."
        )
    return TagHead(n_tags, tuple(table[place] for place in range(n_tags)) if table else ())


def name_tags(model: str, head: TagHead, folder: Path | str) -> TagHead:
    """A tag head with the words of AudioSet's table, where that lies in a folder.

    Parameters
    ----------
    model : str
    head : TagHead
    folder : path
        Of the checkpoints.

    Returns
    -------
    TagHead
        Outputs with an id get the table's words for it, whatever its order. Outputs without one (CAV-MAE's)
        are those of the table in order, which is the one they were trained with, if they are as many.
        Unchanged where there is no table.

    Raises
    ------
    CheckpointError
        If the file is not AudioSet's table.
    """
    path = Path(folder) / CLASS_LABELS
    if not path.is_file():
        return head
    words = _read_class_labels(path)
    mids = head.mids
    if not mids and model == "cavmae" and len(words) == head.n_tags:
        mids = tuple(words)
    return TagHead(head.n_tags, mids, tuple(words.get(mid, mid) for mid in mids))


def missing_tags(model: str, feature_set: str, checkpoint: str) -> str:
    """The error of a feature set of tags whose checkpoint has no tag head; names the file that has one."""
    files = " or ".join(
        f"{file.name} ({file.size_bytes / 1e6:.0f} MB; {file.origin})"
        for file in expected_files(model)
        if file.has_tags
    )
    return (
        f"--models: {feature_set} needs a checkpoint of {model} with a tag head, found none in {checkpoint}. "
        f'Put {files} into models.weights_dir and name it under [models.{model}] checkpoint = "...", '
        f"or leave {model}/tags out."
    )


def _read_class_labels(path: Path) -> dict[str, str]:
    """Words by id, in the order of AudioSet's table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        table = {int(row["index"]): (row["mid"], row["display_name"]) for row in rows}
        words = dict(table[place] for place in range(len(rows)))
        if not words or len(words) < len(rows) or not all((*words, *words.values())):
            raise ValueError("ids that are missing or there twice")
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(
            f"{str(path)!r}: expected AudioSet's table of classes, rows of index, mid and display_name with "
            f"the indices 0, 1, 2, ..., found something else ({error!r}). Get it again, or remove it."
        ) from error
    return words


def _outline(model: str, path: Path) -> Mapping[str, Any]:
    """A checkpoint's contents with the shape of each tensor in its place."""
    form = check_file(model, path)
    if form == "safetensors":
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        return {key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
    if form == "zip":
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as pickled:
                outline = _Outline(pickled).load()  # type: ignore[arg-type]  # it reads like a file
    else:
        with path.open("rb") as file:
            for _ in ("magic number", "protocol", "machine"):
                _Outline(file).load()
            outline = _Outline(file).load()
    if not isinstance(outline, Mapping):
        raise TypeError(f"expected a mapping, found {type(outline).__name__}")
    return outline


class _Inert:
    """Stands for whatever a pickle names, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> "_Inert":
        return self

    def __setstate__(self, _: Any) -> None:
        pass


class _Outline(pickle.Unpickler):
    """Reads a pickle of tensors as their shapes; nothing that it names is ever imported or run."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        known = {"OrderedDict": OrderedDict, "_rebuild_tensor_v2": _shape, "_rebuild_parameter": _same}
        return known.get(name, _Inert)

    def persistent_load(self, _: Any) -> Any:
        return None


def _shape(_: Any, __: int, size: tuple[int, ...], *___: Any) -> tuple[int, ...]:
    """Of the tensor that the same arguments would rebuild."""
    return tuple(size)


def _same(value: Any, *_: Any) -> Any:
    return value

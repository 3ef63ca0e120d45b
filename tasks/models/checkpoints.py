"""Checkpoint files: finding them, and telling by their bytes what they are.

Importing this needs neither torch nor any model, so that a login node can find and check the
files before a job is queued; only `inspect_checkpoint` looks inside.
"""

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpcenc.tasks.models.official_files import expected_files

CheckpointForm = Literal["safetensors", "zip", "pickle"]

_TORCHSCRIPT_ADVICE = """\
It is a TorchScript archive (OpenAI's own release of CLIP), which is code and is not run here.
Convert it once, if you trust its source:
    import torch
    from safetensors.torch import save_file
    state = torch.jit.load({path!r}, map_location="cpu").state_dict()
    for key in ("input_resolution", "context_length", "vocab_size"):
        state.pop(key, None)
    save_file({{key: value.float().contiguous() for key, value in state.items()}}, {target!r})"""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or not what its model needs."""


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds, as the modules of the models unpack it."""

    config: Mapping[str, Any]
    """Sizes that the model is built with."""

    state: Mapping[str, Any]
    """Tensors by parameter name."""

    training: str
    """``"self-supervised"``, ``"fine-tuned"`` or ``"contrastive"``."""

    n_layers: int
    width: int
    n_tags: int | None
    """Classes of a fine-tuned file's tag head."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint whose names and shapes were found to be those of its model."""

    path: str
    model: str
    size_bytes: int
    training: str
    n_layers: int
    width: int
    n_tags: int | None

    @property
    def facts(self) -> dict[str, str | int | None]:
        """What the file was recognised as, for the metadata of features made with it."""
        return {"training": self.training, "n_tags": self.n_tags, "size_bytes": self.size_bytes}


def find_checkpoint(
    model: str, weights_dir: Path | str, name: str | None = None, *, with_tags: bool = False
) -> Path:
    """The checkpoint file of a model in the folder that the study names.

    Parameters
    ----------
    model : str
    weights_dir : path
    name : str, optional
        File name that the study gives; without one, the folder must hold exactly one of the
        official names.
    with_tags : bool
        Whether its tags are asked for: the error names those files alone that have them.

    Returns
    -------
    Path

    Raises
    ------
    CheckpointError
        If there is none, or more than one to choose from.
    """
    folder = Path(weights_dir)
    if name is not None:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(_missing(model, folder, f"{name!r} is not there", with_tags))
        return path
    official = [file.name for file in expected_files(model) if not file.by_name_only]
    found = [file for file in official if (folder / file).is_file()]
    if not found:
        raise CheckpointError(_missing(model, folder, "none of the files is there", with_tags))
    if len(found) > 1:
        raise CheckpointError(
            f"{model}: expected one checkpoint in {str(folder)!r}, found {' and '.join(found)}. "
            "Name the one to use in the study, or move the other away."
        )
    return folder / found[0]


def check_file(model: str, path: Path | str) -> CheckpointForm:
    """Tell a checkpoint's form by its first bytes and its table of contents.

    Reads a few kilobytes, whatever the size of the file. Names and shapes of the tensors are
    the matter of `inspect_checkpoint`.

    Returns
    -------
    {"safetensors", "zip", "pickle"}
        ``"zip"`` is PyTorch's form since 1.6, ``"pickle"`` the one before.

    Raises
    ------
    CheckpointError
        If the file is missing, a web page, cut off, a TorchScript archive or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(_missing(model, path.parent, f"{path.name!r} is not there"))
    with path.open("rb") as file:
        head = file.read(512)
    if head.lstrip().startswith(b"<"):
        raise CheckpointError(
            _refused(model, path, "found a web page (HTML): its link has moved or asks for a login")
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(_refused(model, path, "found a git-lfs pointer, not the file itself"))
    if path.suffix == ".safetensors":
        _check_safetensors(model, path)
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        _check_zip(model, path)
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    raise CheckpointError(_refused(model, path, f"found a file that begins with {head[:8]!r}"))


def inspect_checkpoint(model: str, path: Path | str, *, is_named: bool = False) -> CheckpointInfo:
    """Check a checkpoint's form, every name and shape in it, and whether CLIP's is OpenAI's.

    Parameters
    ----------
    model : str
    path : path
    is_named : bool
        Whether the study names this very file, and so vouches for whose weights they are.

    Returns
    -------
    CheckpointInfo

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another model, or has other names, shapes or sizes
        than the official model. NaN in the weights shows only when they are loaded.
    """
    check_file(model, path)
    from hpcenc.tasks.models.loading import inspect_weights

    return inspect_weights(model, Path(path), is_named)


def describe_files(model: str, with_tags: bool = False) -> str:
    """The files that will do for a model (and its tags), one line each: name, size, what and whose it is."""
    return "\n".join(
        f"    {file.name} ({file.size_bytes / 1e6:.0f} MB): {file.what}; from {file.origin}"
        for file in expected_files(model)
        if file.has_tags or not with_tags
    )


def damaged(model: str, path: Path, reason: str) -> CheckpointError:
    """The error for a file that began well but cannot be read to its end."""
    return CheckpointError(_refused(model, path, f"found a damaged or truncated file ({reason})"))


def _check_safetensors(model: str, path: Path) -> None:
    size_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > size_bytes:
                raise ValueError(f"its header claims {header_bytes} bytes, the file has {size_bytes}")
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(model, path, str(error)) from error
    expected_bytes = 8 + header_bytes + max(ends, default=0)
    if size_bytes != expected_bytes:
        raise damaged(model, path, f"its header tells of {expected_bytes} bytes, the file has {size_bytes}")


def _check_zip(model: str, path: Path) -> None:
    try:
        # The table of contents is at the end: a truncated file has none.
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise damaged(model, path, "it has no table of contents at its end") from error
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        target = str(path.with_name("open_clip_model.safetensors"))
        advice = _TORCHSCRIPT_ADVICE.format(path=str(path), target=target)
        raise CheckpointError(f"{model}: expected a state dict in {str(path)!r}.\n{advice}")


def _missing(model: str, folder: Path, found: str, with_tags: bool = False) -> str:
    files = [file for file in expected_files(model) if file.has_tags or not with_tags]
    by_name = all(file.by_name_only for file in files)
    named = f" and name it under [models.{model}] checkpoint" if by_name else ""
    return (
        f"{model}: no checkpoint{' with tags' if with_tags else ''} in {str(folder)!r}: {found}. "
        f"Expected one of\n{describe_files(model, with_tags)}\n"
        f'Put it there{named}, or set weights = "untrained" for the model\'s initialisation under a seed.'
    )


def _refused(model: str, path: Path, found: str) -> str:
    size_bytes = path.stat().st_size
    return (
        f"{model}: {str(path)!r} ({size_bytes:,} bytes): {found}. Expected one of\n{describe_files(model)}\n"
        "Get it again."
    )

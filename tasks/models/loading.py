"""Models with their weights: from a checkpoint, checked, or untrained under a seed."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import safetensors
import torch

from hpcenc.tasks.models import beats, cavmae, clip
from hpcenc.tasks.models.catalogue import OFFICIAL_N_LAYERS, WIDTH, ModelSpec
from hpcenc.tasks.models.checkpoints import (
    CheckpointError,
    CheckpointInfo,
    Weights,
    check_file,
    damaged,
    describe_files,
)
from hpcenc.tasks.models.extractor import Extractor

_MODULES: Mapping[str, ModuleType] = MappingProxyType({"beats": beats, "clip": clip, "cavmae": cavmae})
_NETWORKS: Mapping[str, type[torch.nn.Module]] = MappingProxyType(
    {"beats": beats.BeatsModel, "clip": clip.ClipModel, "cavmae": cavmae.CavmaeModel}
)
_EXTRACTORS: Mapping[str, type[Extractor]] = MappingProxyType(
    {"beats": beats.BeatsExtractor, "clip": clip.ClipExtractor, "cavmae": cavmae.CavmaeExtractor}
)
_ODD_CONTENTS = (KeyError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError)
"""What unpacking or building a model raises on contents that only look like its own."""

_MAX_LISTED = 3


def load_extractor(spec: ModelSpec, device: torch.device | str = "cpu") -> Extractor:
    """A model, ready to turn movie chunks into features.

    Parameters
    ----------
    spec : ModelSpec
    device : torch.device or str

    Returns
    -------
    Extractor
        In float32, also on a GPU: TF32 is off from here on in this process.

    Raises
    ------
    CheckpointError
        If the checkpoint is not one of the model's official size, lacks the tag head that the spec
        tells of, or holds NaN or Inf.
    """
    # Importing speechbrain, whose BEATs this is, has switched TF32 on.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if spec.weights == "untrained":
        network = build_untrained(spec)
    else:
        if spec.checkpoint is None:
            raise CheckpointError(
                f"{spec.model}: pretrained weights need the path of a checkpoint, found none."
            )
        path = Path(spec.checkpoint)
        weights = read_weights(spec.model, path)
        _check_size(spec.model, path, weights, spec.n_layers)
        if spec.n_tags not in (None, weights.n_tags):
            raise CheckpointError(
                f"{spec.model}: {str(path)!r}: expected a tag head of {spec.n_tags} outputs, found "
                f"{weights.n_tags or 'none'}: the file has changed since the plan was made. Submit again."
            )
        network = build_pretrained(spec.model, path, weights)
    return _EXTRACTORS[spec.model](network, spec, device)


def inspect_weights(model: str, path: Path, is_named: bool) -> CheckpointInfo:
    """Check names and shapes in a checkpoint; see `hpcenc.tasks.models.checkpoints.inspect_checkpoint`."""
    weights = read_weights(model, path, device="meta")
    _check_size(model, path, weights, OFFICIAL_N_LAYERS)
    _matching_network(model, path, weights)
    if model == "clip" and not is_named:
        _check_is_openai(path)
    return CheckpointInfo(
        path=str(path),
        model=model,
        size_bytes=path.stat().st_size,
        training=weights.training,
        n_layers=weights.n_layers,
        width=weights.width,
        n_tags=weights.n_tags,
    )


def read_weights(model: str, path: Path, device: str = "cpu") -> Weights:
    """Contents of a checkpoint, unpacked by its model; on ``"meta"``, names and shapes only.

    Pickles are read with ``weights_only``: a file that wants to run code is refused.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, unsafe or of another model.
    """
    contents = _read_contents(model, path, device)
    looks_like = recognise(contents)
    if looks_like != model:
        raise CheckpointError(
            f"{model}: {str(path)!r} looks like a checkpoint of {looks_like or 'no model known here'}. "
            f"Expected one of\n{describe_files(model)}"
        )
    try:
        weights: Weights = _MODULES[model].unpack(contents)
    except _ODD_CONTENTS as error:
        raise CheckpointError(
            f"{model}: {str(path)!r} looks like {model} but lacks what tells its sizes ({error!r}). "
            f"Expected one of\n{describe_files(model)}"
        ) from error
    return weights


def recognise(contents: Any) -> str | None:
    """The model that a checkpoint's contents look like, by keys that only its files have."""
    if not isinstance(contents, Mapping):
        return None
    state = contents.get("model", contents.get("state_dict", contents))
    if not isinstance(state, Mapping):
        return None
    keys = {str(key).removeprefix("module.") for key in state}
    if "patch_embedding.weight" in keys and "cfg" in contents:
        return "beats"
    if "visual.conv1.weight" in keys:
        return "clip"
    if "patch_embed_a.proj.weight" in keys and "blocks_u.0.mlp.fc1.weight" in keys:
        return "cavmae"
    return None


def build_pretrained(model: str, path: Path, weights: Weights) -> torch.nn.Module:
    """A network of the checkpoint's own sizes, with its weights.

    Raises
    ------
    CheckpointError
        If names or shapes differ from the network's, or a weight is NaN or Inf.
    """
    network = _matching_network(model, path, weights)
    broken = [
        key
        for key, value in weights.state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise CheckpointError(
            f"{model}: {str(path)!r}: expected finite weights, found NaN or Inf in {_listed(broken)}. "
            "Get it again."
        )
    network.load_state_dict(weights.state)
    return network


def build_untrained(spec: ModelSpec) -> torch.nn.Module:
    """A network of full width with its own initialisation under the spec's seed."""
    return build_seeded(spec.model, _MODULES[spec.model].untrained_config(spec), spec.seed)


def build_seeded(model: str, config: Mapping[str, Any], seed: int) -> torch.nn.Module:
    """A freshly initialised network; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, which fork_rng puts back only if asked
        torch.default_generator.manual_seed(seed)
        return _NETWORKS[model](config)


def _read_contents(model: str, path: Path, device: str) -> Any:
    form = check_file(model, path)
    try:
        if form == "safetensors":
            return _read_safetensors(path, device)
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to read the file with weights_only=False, and must not be passed on
        code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if code is None:
            raise damaged(model, path, "it cannot be unpickled") from error
        raise CheckpointError(
            f"{model}: {str(path)!r} would run code when read ({code[1]}) and was not read: expected "
            f"tensors and plain values only. Expected one of\n{describe_files(model)}"
        ) from error
    except (RuntimeError, EOFError, OSError, safetensors.SafetensorError) as error:
        raise damaged(model, path, str(error).partition("\n")[0]) from error


def _read_safetensors(path: Path, device: str) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        if device == "meta":
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118 (no mapping)
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def _check_size(model: str, path: Path, weights: Weights, n_layers: int) -> None:
    if (weights.n_layers, weights.width) != (n_layers, WIDTH):
        raise CheckpointError(
            f"{model}: {str(path)!r} has {weights.n_layers} layers of width {weights.width}, "
            f"expected {n_layers} of {WIDTH}. Expected one of\n{describe_files(model)}"
        )
    if model == "clip" and weights.config != (expected := clip.official_config(n_layers)):
        other = [
            f"{key} {value}, expected {expected[key]}"
            for key, value in weights.config.items()
            if value != expected[key]
        ]
        raise CheckpointError(
            f"clip: {str(path)!r} is not a ViT-B/32 of 224 pixels ({'; '.join(other)}). "
            f"Expected one of\n{describe_files(model)}"
        )


def _check_is_openai(path: Path) -> None:
    """Refuse weights that were not trained with OpenAI's activation, as far as it shows.

    Names and shapes are the same in every ViT-B/32 of open_clip, and so are the files' names. OpenAI's
    weights were released in half precision, and are such values in whatever form; those of other trainings,
    nearly all with another activation, are not.
    """
    state = clip.unpack(_read_contents("clip", path, "cpu")).state
    patches = state["visual.conv1.weight"]
    if not torch.equal(patches, patches.half().to(patches.dtype)):
        raise CheckpointError(
            f"clip: {str(path)!r} does not hold OpenAI's weights, which are float16 values: open_clip's "
            "files of other trainings (LAION, DataComp) have the same name, and another activation than the "
            "QuickGELU of this model. Should it be one for QuickGELU all the same, name it under "
            f"[models.clip] checkpoint. Expected one of\n{describe_files('clip')}"
        )


def _matching_network(model: str, path: Path, weights: Weights) -> torch.nn.Module:
    """A network of the checkpoint's sizes, whose names and shapes are those of its weights."""
    try:
        network = build_seeded(model, weights.config, seed=0)
        found = {key: tuple(value.shape) for key, value in weights.state.items()}
    except _ODD_CONTENTS as error:
        raise CheckpointError(
            f"{model}: {str(path)!r}: no {model} can be built from what it holds ({error!r}). "
            f"Expected one of\n{describe_files(model)}"
        ) from error
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    other = [
        f"{key} {found[key]}, expected {expected[key]}"
        for key in expected.keys() & found.keys()
        if found[key] != expected[key]
    ]
    problems = [
        f"{what}: {_listed(keys)}"
        for what, keys in (
            ("missing", expected.keys() - found.keys()),
            ("unexpected", found.keys() - expected.keys()),
            ("of another shape", other),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{model}: {str(path)!r} does not hold the model's weights; {'; '.join(problems)}. "
            f"Expected one of\n{describe_files(model)}"
        )
    return network


def _listed(names: Any) -> str:
    first, more = sorted(names)[:_MAX_LISTED], len(names) - _MAX_LISTED
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")

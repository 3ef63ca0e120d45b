"""The official checkpoint files of the models: names, sizes, and whose they are.

The plan reads this on a login node, so it imports the standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class CheckpointFile:
    """An official checkpoint: what the file is, how large, and whose it is."""

    name: str
    size_bytes: int
    """Approximate: for messages, not for checks."""

    what: str
    origin: str
    has_tags: bool = False
    """Whether it has a tag head, which gives the layer ``tags``."""

    by_name_only: bool = False
    """Whether it is taken only where the study names it: it was trained for something else."""


_CHECKPOINT_FILES: Mapping[str, tuple[CheckpointFile, ...]] = MappingProxyType(
    {
        "beats": (
            CheckpointFile(
                "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
                363_000_000,
                "BEATs iter3+, fine-tuned on AudioSet (527 tags)",
                "the table of models in the folder 'beats' of microsoft/unilm",
                has_tags=True,
            ),
            CheckpointFile(
                "BEATs_iter3_plus_AS2M.pt",
                361_000_000,
                "BEATs iter3+, self-supervised on AudioSet",
                "the table of models in the folder 'beats' of microsoft/unilm",
            ),
        ),
        "clip": (
            CheckpointFile(
                "open_clip_model.safetensors",
                605_000_000,
                "OpenAI's CLIP ViT-B/32 as a state dict (QuickGELU)",
                "open_clip's copy of OpenAI's weights, timm/vit_base_patch32_clip_224.openai",
            ),
            CheckpointFile(
                "open_clip_pytorch_model.bin",
                605_000_000,
                "the same as a PyTorch file",
                "open_clip's copy of OpenAI's weights, timm/vit_base_patch32_clip_224.openai",
            ),
        ),
        "cavmae": (
            CheckpointFile(
                "cav-mae-scale++.pth",
                764_000_000,
                "CAV-MAE Scale++, self-supervised on AudioSet",
                "the pretrained models of YuanGongND/cav-mae",
            ),
            CheckpointFile(
                "audio_model.21.pth",
                764_000_000,
                "the same under the name it is released with",
                "the pretrained models of YuanGongND/cav-mae",
            ),
            CheckpointFile(
                "as_46.6.pth",
                657_000_000,
                "CAV-MAE Scale+, fine-tuned on AudioSet's sound alone (527 tags); taken only by name",
                "the audio-only fine-tuned models of YuanGongND/cav-mae",
                has_tags=True,
                by_name_only=True,
            ),
        ),
    }
)


def expected_files(model: str) -> tuple[CheckpointFile, ...]:
    """The official checkpoint files of a model; any one of them will do.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    if model not in _CHECKPOINT_FILES:
        raise ValueError(f"unknown model {model!r}: expected one of {', '.join(_CHECKPOINT_FILES)}.")
    return _CHECKPOINT_FILES[model]

"""CLIP's image tower, ViT-B/32, of open_clip.

References
----------
Radford et al. (2021), Learning Transferable Visual Models From Natural Language
Supervision, ICML.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, get_model_config
from open_clip.transformer import QuickGELU, VisionTransformer

from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.checkpoints import Weights
from hpcenc.tasks.models.extractor import Extractor
from hpcenc.tasks.models.images import normalised_frames

ARCHITECTURE = "ViT-B-32-quickgelu"
"""open_clip's name of OpenAI's model. Plain ``ViT-B-32`` loads the same file and is wrong (GELU)."""

HEAD_WIDTH = 64


class ClipModel(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """An image tower with the parameter names of CLIP's files, ``visual.*``.

    Parameters
    ----------
    config : mapping
        ``image_size``, ``patch_size``, ``width``, ``layers``, ``output_dim``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.visual = VisionTransformer(
            **config, heads=config["width"] // HEAD_WIDTH, mlp_ratio=4.0, act_layer=QuickGELU
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Class tokens after every block, and the image embedding before and after projection.

        Parameters
        ----------
        images : tensor of shape (batch, 3, image_size, image_size)

        Returns
        -------
        dict of tensors of shape (batch, width or output_dim)
            Keys ``"1"`` to ``"n_layers"``, ``"embedding"`` (after ln_post) and ``"projected"``,
            not L2-normalised.
        """
        output = self.visual.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
        class_tokens = [tokens[:, 0] for tokens in output["image_intermediates_prefix"]]
        layers = {str(i): token for i, token in enumerate(class_tokens, start=1)}
        return layers | {
            "embedding": self.visual.ln_post(class_tokens[-1]),
            "projected": output["image_features"],
        }


class ClipExtractor(Extractor):
    """Features of each row: CLIP's view of the frame at the row's middle."""

    needs_frames = True
    needs_audio = False
    default_batch = 16

    def layers(self, waves: torch.Tensor | None, frames: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Features of one batch of frames; see `Extractor.extract`."""
        images = normalised_frames(frames, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, self.device)
        return dict(self.network(images))


def unpack(contents: Mapping[str, Any]) -> Weights:
    """Sizes and image-tower weights of a CLIP state dict; the text tower is left out.

    Raises
    ------
    KeyError
        If the keys that tell the sizes are missing.
    """
    state_dict = contents.get("state_dict", contents)
    plain = {key.removeprefix("module."): value for key, value in state_dict.items()}
    state = {key: value for key, value in plain.items() if key.startswith("visual.")}
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    n_layers = len({key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")})
    grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    config = {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "layers": n_layers,
        "output_dim": state["visual.proj"].shape[1],
    }
    return Weights(
        config=config, state=state, training="contrastive", n_layers=n_layers, width=width, n_tags=None
    )


def untrained_config(spec: ModelSpec) -> dict[str, Any]:
    """Sizes of ViT-B/32 at the spec's depth."""
    return official_config(spec.n_layers)


def official_config(n_layers: int) -> dict[str, Any]:
    """Sizes of ViT-B/32 at a depth."""
    official = get_model_config(ARCHITECTURE)
    return {**official["vision_cfg"], "layers": n_layers, "output_dim": official["embed_dim"]}

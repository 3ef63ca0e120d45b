"""CAV-MAE: the contrastive audio-visual masked autoencoder, both branches by themselves.

No library has it. This is its encoder over timm's attention and MLP, with the parameter
names of the official files; the decoder is not needed.

References
----------
Gong et al. (2023), Contrastive Audio-Visual Masked Autoencoder, ICLR.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp, build_sincos2d_pos_embed
from timm.models.vision_transformer import Attention
from torchaudio.compliance.kaldi import fbank

from hpcenc.tasks.models.catalogue import (
    CAVMAE_FBANK_MEAN,
    CAVMAE_FBANK_STD,
    CAVMAE_N_ROWS,
    SAMPLE_RATE,
    TAGS,
    WIDTH,
    ModelSpec,
    cavmae_rows,
)
from hpcenc.tasks.models.checkpoints import Weights
from hpcenc.tasks.models.extractor import Extractor
from hpcenc.tasks.models.images import IMAGE_SIZE, normalised_frames

N_MELS = 128
PATCH = 16
N_BANDS = N_MELS // PATCH
N_STEPS = CAVMAE_N_ROWS // PATCH
N_SIDE = IMAGE_SIZE // PATCH
HEAD_WIDTH = 64
MODALITIES = ("a", "v")
_PRETRAINING_ONLY = ("decoder_", "mask_token")


class PatchEmbed(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Patches of 16 x 16 to tokens, row by row."""

    def __init__(self, n_channels: int, width: int) -> None:
        super().__init__()
        self.proj = torch.nn.Conv2d(n_channels, width, kernel_size=PATCH, stride=PATCH)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, n_tokens, width) of an image (batch, n_channels, height, width)."""
        return self.proj(image).flatten(2).transpose(1, 2)


class Block(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """A transformer block with one pair of norms for each stream that may pass through it.

    Its own modality's blocks use ``norm1`` and ``norm2``. The unified block uses ``_a`` and
    ``_v`` for a branch by itself, and the plain ones for both concatenated.
    """

    def __init__(self, width: int, n_heads: int, mlp_width: int) -> None:
        super().__init__()
        for name in ("norm1", "norm1_a", "norm1_v", "norm2", "norm2_a", "norm2_v"):
            # eps is torch's 1e-5 in the official code, not timm's 1e-6
            self.add_module(name, torch.nn.LayerNorm(width))
        self.attn = Attention(width, num_heads=n_heads, qkv_bias=True)
        self.mlp = Mlp(width, hidden_features=mlp_width)

    def forward(self, tokens: torch.Tensor, norms: str = "") -> torch.Tensor:
        """Tokens after the block; ``norms`` is ``""``, ``"_a"`` or ``"_v"``."""
        tokens = tokens + self.attn(self.get_submodule(f"norm1{norms}")(tokens))
        return tokens + self.mlp(self.get_submodule(f"norm2{norms}")(tokens))


class CavmaeModel(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """CAV-MAE's encoder.

    Parameters
    ----------
    config : mapping
        ``width``, ``n_heads``, ``n_layers`` (own blocks and the unified one), ``mlp_width``;
        ``n_tags``, where there is a tag head.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["width"]
        block = (width, config["n_heads"], config["mlp_width"])
        grids = {"a": (N_BANDS, N_STEPS), "v": (N_SIDE, N_SIDE)}
        for modality, n_channels in zip(MODALITIES, (1, 3), strict=True):
            self.add_module(f"patch_embed_{modality}", PatchEmbed(n_channels, width))
            own_blocks = torch.nn.ModuleList(Block(*block) for _ in range(config["n_layers"] - 1))
            self.add_module(f"blocks_{modality}", own_blocks)
            self.add_module(f"norm_{modality}", torch.nn.LayerNorm(width))
            self.register_parameter(f"modality_{modality}", torch.nn.Parameter(torch.zeros(1, 1, width)))
            self.register_parameter(f"pos_embed_{modality}", _position_table(grids[modality], width))
        self.blocks_u = torch.nn.ModuleList([Block(*block)])
        self.norm = torch.nn.LayerNorm(width)
        _initialise(self)
        for modality in MODALITIES:
            torch.nn.init.normal_(self.get_parameter(f"modality_{modality}"), std=0.02)
        self.mlp_head: torch.nn.Module | None = None
        if "n_tags" in config:
            # After all else, so that an untrained encoder is the same with and without it.
            linear = torch.nn.Linear(width, config["n_tags"])
            self.mlp_head = torch.nn.Sequential(torch.nn.LayerNorm(width), linear)
            _initialise(self.mlp_head)

    def audio_branch(self, spectrogram: torch.Tensor) -> list[torch.Tensor]:
        """Audio tokens of every layer.

        Parameters
        ----------
        spectrogram : tensor of shape (batch, n_frames, 128)
            As from `spectrograms`; n_frames a multiple of 16, at most 1024.

        Returns
        -------
        list of n_layers + 1 tensors of shape (batch, 8, n_steps, width)
            After each block (the last is the unified one) and after the final norm; the second
            axis is frequency.
        """
        n_steps = spectrogram.shape[1] // PATCH
        positions = self.pos_embed_a.unflatten(1, (N_BANDS, N_STEPS))[:, :, :n_steps].flatten(1, 2)
        tokens = self.patch_embed_a(spectrogram.unsqueeze(1).transpose(2, 3)) + positions + self.modality_a
        return [layer.unflatten(1, (N_BANDS, n_steps)) for layer in self._branch("a", tokens)]

    def visual_branch(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Visual tokens of every layer: n_layers + 1 tensors of shape (batch, 196, width)."""
        return self._branch("v", self.patch_embed_v(images) + self.pos_embed_v + self.modality_v)

    def _branch(self, modality: str, tokens: torch.Tensor) -> list[torch.Tensor]:
        layers = []
        for block in self.get_submodule(f"blocks_{modality}"):
            tokens = block(tokens)
            layers.append(tokens)
        unified = self.blocks_u[0](tokens, f"_{modality}")
        return [*layers, unified, self.get_submodule(f"norm_{modality}")(unified)]


class CavmaeExtractor(Extractor):
    """Features of each row: both branches, by themselves.

    Audio tokens are averaged over the row's time steps, visual ones over the frame at the
    row's middle. Tags are those of the official model fed with audio only: the head on the mean of the
    row's normed audio tokens, then the sigmoid.
    """

    needs_frames = True
    needs_audio = True
    default_batch = 8

    def layers(self, waves: torch.Tensor | None, frames: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Features of one batch of windows and frames; see `Extractor.extract`."""
        audio = self.network.audio_branch(spectrograms(waves, cavmae_rows(self.spec.window_s)))
        images = normalised_frames(frames, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, self.device)
        visual = self.network.visual_branch(images)
        steps = self._pooled_steps(audio[0].shape[2])
        names = [f"-{i}" for i in range(1, len(audio))] + [""]
        features = {
            **{f"audio{name}": t[:, :, steps].mean(dim=(1, 2)) for name, t in zip(names, audio, strict=True)},
            **{f"visual{name}": t.mean(dim=1) for name, t in zip(names, visual, strict=True)},
        }
        if self.spec.n_tags is not None:
            features[TAGS] = self.network.mlp_head(features["audio"]).sigmoid()
        return features


def spectrograms(waves: torch.Tensor, n_frames: int = CAVMAE_N_ROWS) -> torch.Tensor:
    """Normalised mel spectrograms of equally long windows, padded or cut to ``n_frames`` rows.

    Parameters
    ----------
    waves : tensor of shape (batch, n_samples)
        Mono, 16 kHz; each window's mean is taken off. Silence gives a constant.
    n_frames : int

    Returns
    -------
    tensor of shape (batch, n_frames, 128)
        Rows beyond the sound are zero before normalising, 1.13 after it, as in training.
    """
    centred = waves - waves.mean(dim=1, keepdim=True)
    mels = [
        fbank(
            wave[None],
            htk_compat=True,
            sample_frequency=SAMPLE_RATE,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=N_MELS,
            dither=0.0,
            frame_shift=10,
        )
        for wave in centred
    ]
    spectrogram = torch.stack(mels)[:, :n_frames]
    missing = n_frames - spectrogram.shape[1]
    return (torch.nn.functional.pad(spectrogram, (0, 0, 0, missing)) - CAVMAE_FBANK_MEAN) / CAVMAE_FBANK_STD


def unpack(contents: Mapping[str, Any]) -> Weights:
    """Sizes and weights of an official file's contents; the decoder is left out.

    The number of heads is not in the file; the official models have 64 features a head.

    Raises
    ------
    KeyError
        If the keys that tell the sizes are missing.
    """
    plain = {key.removeprefix("module."): value for key, value in contents.items()}
    state = {key: value for key, value in plain.items() if not key.startswith(_PRETRAINING_ONLY)}
    mlp_width, width = state["blocks_u.0.mlp.fc1.weight"].shape
    n_own = len({key.split(".")[1] for key in state if key.startswith("blocks_a.")})
    head = plain.get("mlp_head.1.weight")
    return Weights(
        config={
            "width": width,
            "n_heads": max(1, width // HEAD_WIDTH),
            "n_layers": n_own + 1,
            "mlp_width": mlp_width,
            **({} if head is None else {"n_tags": int(head.shape[0])}),
        },
        state=state,
        training="self-supervised" if head is None else "fine-tuned",
        n_layers=n_own + 1,
        width=width,
        n_tags=None if head is None else int(head.shape[0]),
    )


def untrained_config(spec: ModelSpec) -> dict[str, Any]:
    """Sizes of the official model at another depth, with the spec's tag head."""
    head = {} if spec.n_tags is None else {"n_tags": spec.n_tags}
    sizes = {"width": WIDTH, "n_heads": WIDTH // HEAD_WIDTH, "mlp_width": 4 * WIDTH}
    return {**sizes, "n_layers": spec.n_layers, **head}


def _initialise(module: torch.nn.Module) -> None:
    """Draw the weights of all linear maps in a module."""
    for part in module.modules():
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(part.weight.flatten(1))
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.zeros_(part.bias)


def _position_table(grid: tuple[int, int], width: int) -> torch.nn.Parameter:
    """The fixed sin-cos table of the official code: shape (1, n_tokens, width)."""
    table = build_sincos2d_pos_embed(list(grid), dim=width, interleave_sin_cos=True)
    # timm puts the row's half first, MAE the column's
    return torch.nn.Parameter(table.roll(width // 2, dims=1)[None], requires_grad=False)

"""BEATs: audio tokens of Microsoft's self-supervised or tag-trained transformer.

The encoder is speechbrain's. Around it lies only what its own wrapper cannot do: be built
from a configuration without a file, take windows without padding masks, and give every
layer back.

References
----------
Chen et al. (2023), BEATs: Audio Pre-Training with Acoustic Tokenizers, ICML.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from speechbrain.lobes.models.beats import BEATsConfig, TransformerEncoder
from torchaudio.compliance.kaldi import fbank

from hpcenc.tasks.models.catalogue import BEATS_FBANK_MEAN, BEATS_FBANK_STD, SAMPLE_RATE, TAGS, ModelSpec
from hpcenc.tasks.models.checkpoints import Weights
from hpcenc.tasks.models.extractor import Extractor

N_MELS = 128
PATCH = 16
"""Spectrogram rows and mel bands of one token; 16 rows are one time step."""

OFFICIAL_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "encoder_layers": 12,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "activation_fn": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "dropout_input": 0.0,
        "layer_norm_first": False,
        "conv_bias": False,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
        "deep_norm": True,
        "input_patch_size": PATCH,
        "embed_dim": 512,
        "finetuned_model": False,
    }
)
"""The ``cfg`` stored in the official files; speechbrain's defaults have no deep norm and no position bias."""


class BeatsModel(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """BEATs with the parameter names of the official files.

    Parameters
    ----------
    config : mapping
        The ``cfg`` of a checkpoint, or `OFFICIAL_CONFIG`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        cfg = BEATsConfig(dict(config))
        # It scales gradients only; at 1 the encoder does not copy the tokens of every layer.
        cfg.layer_wise_gradient_decay_ratio = 1.0
        self.patch_embedding = torch.nn.Conv2d(
            1,
            cfg.embed_dim,
            kernel_size=cfg.input_patch_size,
            stride=cfg.input_patch_size,
            bias=cfg.conv_bias,
        )
        self.layer_norm = torch.nn.LayerNorm(cfg.embed_dim)
        self.post_extract_proj = (
            torch.nn.Linear(cfg.embed_dim, cfg.encoder_embed_dim)
            if cfg.embed_dim != cfg.encoder_embed_dim
            else None
        )
        self.encoder = TransformerEncoder(cfg)
        # After all else, so that an untrained encoder is the same with and without it.
        self.predictor = (
            torch.nn.Linear(cfg.encoder_embed_dim, cfg.predictor_class) if cfg.finetuned_model else None
        )

    def forward(self, spectrogram: torch.Tensor) -> list[torch.Tensor]:
        """Tokens of every layer.

        Parameters
        ----------
        spectrogram : tensor of shape (batch, n_frames, 128)
            As from `spectrograms`; frames beyond a multiple of 16 are not seen.

        Returns
        -------
        list of n_layers + 1 tensors of shape (batch, n_steps, 8, width)
            Entry 0 is the first layer's input, entry i the output of layer i. The third axis
            is frequency. There is no final norm.
        """
        patches = self.patch_embedding(spectrogram.unsqueeze(1))
        n_steps, n_bands = patches.shape[2:]
        tokens = self.layer_norm(patches.flatten(2).transpose(1, 2))
        if self.post_extract_proj is not None:
            tokens = self.post_extract_proj(tokens)
        _, layers = self.encoder(tokens, output_all_hiddens=True)
        return [layer.transpose(0, 1).unflatten(1, (n_steps, n_bands)) for layer in layers]


class BeatsExtractor(Extractor):
    """Features of each row: every layer's tokens, averaged over the row's time steps.

    Tags are the official model's, of the row's tokens instead of the clip's: the head's logits of the
    last layer's tokens, averaged, then the sigmoid.
    """

    needs_frames = False
    needs_audio = True
    default_batch = 8

    def layers(self, waves: torch.Tensor | None, frames: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Features of one batch of audio windows; see `Extractor.extract`."""
        hidden = self.network(spectrograms(waves))
        steps = self._pooled_steps(hidden[0].shape[1])
        features = {str(i): tokens[:, steps].mean(dim=(1, 2)) for i, tokens in enumerate(hidden) if i > 0}
        if self.spec.n_tags is not None:
            features[TAGS] = self.network.predictor(hidden[-1][:, steps]).mean(dim=(1, 2)).sigmoid()
        return features


def spectrograms(waves: torch.Tensor) -> torch.Tensor:
    """Normalised mel spectrograms of equally long windows.

    Parameters
    ----------
    waves : tensor of shape (batch, n_samples)
        Mono, 16 kHz, in -1 to 1. Silence gives a constant, the floor of the logarithm.

    Returns
    -------
    tensor of shape (batch, 1 + (n_samples - 400) // 160, 128)
    """
    mels = [fbank(wave[None] * 2**15, num_mel_bins=N_MELS, sample_frequency=SAMPLE_RATE) for wave in waves]
    return (torch.stack(mels) - BEATS_FBANK_MEAN) / (2 * BEATS_FBANK_STD)


def unpack(contents: Mapping[str, Any]) -> Weights:
    """Configuration, weights and kind of an official file's contents (``cfg``, ``model``, ``label_dict``).

    A fine-tuned file is told by its table of tags or its tag head.

    Raises
    ------
    KeyError
        If ``cfg`` or ``model`` is missing.
    """
    renamed = {
        "weight_g": "parametrizations.weight.original0",
        "weight_v": "parametrizations.weight.original1",
    }
    state = {}
    for key, value in contents["model"].items():
        stem, _, last = key.rpartition(".")
        # The official files store weight norm in the form before torch's parametrizations.
        state[f"{stem}.{renamed[last]}" if last in renamed else key] = value
    head = state.get("predictor.weight")
    finetuned = head is not None or "label_dict" in contents
    config = dict(contents["cfg"]) | {"finetuned_model": finetuned}
    if head is not None:
        config["predictor_class"] = head.shape[0]
    return Weights(
        config=config,
        state=state,
        training="fine-tuned" if finetuned else "self-supervised",
        n_layers=int(config.get("encoder_layers", 0)),
        width=int(config.get("encoder_embed_dim", 0)),
        n_tags=len(contents.get("label_dict", ())) or (None if head is None else int(head.shape[0])),
    )


def untrained_config(spec: ModelSpec) -> dict[str, Any]:
    """The official configuration at another depth, with the spec's tag head."""
    head = {} if spec.n_tags is None else {"finetuned_model": True, "predictor_class": spec.n_tags}
    return dict(OFFICIAL_CONFIG) | {"encoder_layers": spec.n_layers} | head

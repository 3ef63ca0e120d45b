"""The feature models hpcenc knows: their feature sets, layers and sizes.

The plan reads this on a login node, so it imports the standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

SAMPLE_RATE = 16_000
"""Samples per second of the mono audio that every audio model hears."""

SHORT_SIDE = 224
"""Pixels of the shorter side of cached frames: what every vision model looks at."""

MODELS = ("beats", "clip", "cavmae")

FEATURE_SETS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "beats": ("beats", ""),
        "beats-tags": ("beats", "tags"),
        "clip": ("clip", ""),
        "cavmae": ("cavmae", "mean"),
        "cavmae-audio": ("cavmae", "audio"),
        "cavmae-visual": ("cavmae", "visual"),
        "cavmae-concat": ("cavmae", "concat"),
        "cavmae-tags": ("cavmae", "tags"),
    }
)
"""Feature sets of one model each: the model, and which of its branches, if it has several."""

TAGS = "tags"
"""The layer of AudioSet probabilities, where the checkpoint has a tag head."""

UNTRAINED_N_TAGS: Mapping[str, int] = MappingProxyType({"beats": 527, "cavmae": 527})
"""Outputs of the tag heads of untrained models: as many as AudioSet has classes."""

EXTRACTOR_VERSIONS: Mapping[str, int] = MappingProxyType({"beats": 1, "clip": 1, "cavmae": 1})
"""Part of the digest of features: raised by hand whenever an extractor's results change."""

WIDTH = 768
"""Features of every layer of the three models, except CLIP's projection."""

PROJECTED_WIDTH = 512
OFFICIAL_N_LAYERS = 12
CAVMAE_MAX_WINDOW_S = 10.255
"""Longest audio context of CAV-MAE: its 1024 spectrogram rows of 10 ms, each 25 ms long."""

MIN_WINDOW_S = 0.175
"""Shortest audio context: one time step of 16 spectrogram rows of 10 ms, each 25 ms long."""

BEATS_FBANK_MEAN = 15.41663
BEATS_FBANK_STD = 6.55582
CAVMAE_FBANK_MEAN = -5.081
CAVMAE_FBANK_STD = 4.4849
CAVMAE_N_ROWS = 1024
"""Spectrogram rows of CAV-MAE's official input: 10.24 s, of which a 10 s clip fills 998."""

_STEP_ROWS = 16
_IMAGE: Mapping[str, str] = MappingProxyType(
    {"frame": "on screen at the row's middle", "image": f"shorter side {SHORT_SIDE} bicubic, centre crop"}
)

_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "model": MODELS,
        "weights": ("pretrained", "untrained"),
        "align": ("causal", "centred"),
        "pool": ("tr", "window"),
    }
)


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides what an extractor computes; hashable and picklable.

    Raises
    ------
    ValueError
        If a choice is unknown, the model has too few layers, or the audio window is
        shorter than the TR or of a length that the model cannot take.
    """

    model: str
    """``"beats"``, ``"clip"`` or ``"cavmae"``."""

    weights: str = "pretrained"
    """``"pretrained"``, or ``"untrained"``: the library's own initialisation under ``seed``."""

    checkpoint: str | None = None
    """Path of the checkpoint file; None if untrained."""

    seed: int = 0
    """Seed of untrained weights; pretrained ones ignore it."""

    n_layers: int = OFFICIAL_N_LAYERS
    """Depth; for CAV-MAE, n_layers - 1 blocks per modality and the unified block."""

    tr_s: float = 1.0
    """Repetition time in seconds, the spacing of the rows."""

    window_s: float = 10.0
    """Audio context of a row in seconds."""

    align: str = "causal"
    """``"causal"``: the window ends with the row's TR; ``"centred"``: on the TR's middle."""

    pool: str = "tr"
    """Audio tokens averaged for a row: those of its TR, or of the whole ``"window"``."""

    n_tags: int | None = None
    """Outputs of the tag head, which make the layer ``tags``; None if there is none."""

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise ValueError(f"{field} = {value!r}: expected one of {', '.join(choices)}.")
        _check_depth(self.model, self.n_layers)
        if self.tr_s <= 0:
            raise ValueError(f"tr_s = {self.tr_s}: expected a TR in seconds, above 0.")
        if self.n_tags is not None and (self.n_tags < 1 or self.model not in UNTRAINED_N_TAGS):
            raise ValueError(
                f"n_tags = {self.n_tags} of {self.model}: expected None, or at least 1 output of a tag head; "
                f"models with one are {', '.join(UNTRAINED_N_TAGS)}."
            )
        if self.model != "clip":
            self._check_window()

    def _check_window(self) -> None:
        longest = CAVMAE_MAX_WINDOW_S if self.model == "cavmae" else float("inf")
        if not max(self.tr_s, MIN_WINDOW_S) <= self.window_s <= longest:
            raise ValueError(
                f"window_s = {self.window_s} of {self.model}: expected at least one TR ({self.tr_s} s), "
                f"at least {MIN_WINDOW_S} s"
                + (
                    f", and at most {longest} s, the longest sequence it knows."
                    if self.model == "cavmae"
                    else "."
                )
            )


@dataclass(frozen=True)
class Layer:
    """One array that an extractor returns for every row."""

    name: str
    n_features: int


@dataclass(frozen=True)
class LayerSource:
    """The stored arrays that make a feature space.

    ``how`` is ``"single"`` (one array as it is), ``"mean"`` or ``"concat"`` (of the arrays'
    features, in the order given).
    """

    arrays: tuple[str, ...]
    how: Literal["single", "mean", "concat"]


def stored_layers(spec: ModelSpec) -> tuple[Layer, ...]:
    """The arrays that the extractor of a model returns, from shallow to deep.

    Parameters
    ----------
    spec : ModelSpec

    Returns
    -------
    tuple of Layer
        BEATs: tokens after each layer. CLIP: the class token after each block, its
        768-d ``embedding`` (normed) and the 512-d ``projected`` one. CAV-MAE: tokens of each
        modality after each block, the last being the unified block, and the normed
        ``audio`` and ``visual`` outputs. BEATs and CAV-MAE with a tag head: its ``tags``.
    """
    depths = range(1, spec.n_layers + 1)
    tags = () if spec.n_tags is None else (Layer(TAGS, spec.n_tags),)
    if spec.model == "beats":
        return (*(Layer(str(i), WIDTH) for i in depths), *tags)
    if spec.model == "clip":
        blocks = tuple(Layer(str(i), WIDTH) for i in depths)
        return (*blocks, Layer("embedding", WIDTH), Layer("projected", PROJECTED_WIDTH))
    suffixes = (*(f"-{i}" for i in depths), "")
    branches = tuple(
        Layer(f"{modality}{suffix}", WIDTH) for modality in ("audio", "visual") for suffix in suffixes
    )
    return (*branches, *tags)


def default_layer(feature_set: str, n_layers: int = OFFICIAL_N_LAYERS) -> str:
    """The layer that stands for a feature set where none is asked for: its deepest.

    That is BEATs' last layer, CLIP's 768-d class embedding before the projection, the normed
    outputs of CAV-MAE's branches (of ``cavmae`` itself their mean), and ``tags``.
    """
    model, branch = _feature_set(feature_set)
    _check_depth(model, n_layers)
    return branch or {"beats": str(n_layers), "clip": "embedding"}[model]


def sweep_layers(feature_set: str, n_layers: int = OFFICIAL_N_LAYERS) -> tuple[str, ...]:
    """The layers of a sweep over depth: ``n_layers`` of them, the last the default layer.

    Tags have no depth: they are one layer.
    """
    _, branch = _feature_set(feature_set)
    deepest = default_layer(feature_set, n_layers)
    if branch == TAGS:
        return (deepest,)
    prefix = f"{branch}-" if branch else ""
    return (*(f"{prefix}{i}" for i in range(1, n_layers)), deepest)


def layers_of_set(feature_set: str, n_layers: int = OFFICIAL_N_LAYERS) -> tuple[str, ...]:
    """Layers that a feature set may be fitted with: its branch's, or all where it has the model's name."""
    model, branch = _feature_set(feature_set)
    if feature_set == model:
        return all_layer_names(model, n_layers)
    normed = (f"{branch}-{n_layers}",) if branch != TAGS else ()
    return (*sweep_layers(feature_set, n_layers), *normed)


def modality(model: str, layer: str) -> str:
    """``audio``, ``vision`` or ``audio-visual``: what a layer's features are about."""
    _check_model(model)
    if model != "cavmae":
        return {"beats": "audio", "clip": "vision"}[model]
    branch = layer.partition("-")[0]
    return {"audio": "audio", TAGS: "audio", "visual": "vision"}.get(branch, "audio-visual")


def all_layer_names(model: str, n_layers: int = OFFICIAL_N_LAYERS) -> tuple[str, ...]:
    """Every layer of a model that a study may name; ``tags`` needs a checkpoint with a tag head."""
    spec = ModelSpec(model, n_layers=n_layers, n_tags=UNTRAINED_N_TAGS.get(model))
    stored = tuple(layer.name for layer in stored_layers(spec))
    if model != "cavmae":
        return stored
    suffixes = (*(f"-{i}" for i in range(1, n_layers + 1)), "")
    return (*stored, *(f"{how}{suffix}" for how in ("mean", "concat") for suffix in suffixes))


def compose(model: str, layer: str) -> LayerSource:
    """The stored arrays that make a layer's features, and how they are joined.

    Parameters
    ----------
    model : str
    layer : str
        One of `all_layer_names`; its depth is not checked here.

    Returns
    -------
    LayerSource
        CAV-MAE's ``mean-i`` and ``concat-i`` join the ``audio-i`` and ``visual-i`` arrays;
        everything else is one array.
    """
    _check_model(model)
    if model == "cavmae":
        for how in ("mean", "concat"):
            kind, dash, depth = layer.partition("-")
            if kind == how:
                return LayerSource((f"audio{dash}{depth}", f"visual{dash}{depth}"), how)
    return LayerSource((layer,), "single")


def label(model: str, weights: str = "pretrained", seed: int = 0) -> str:
    """A model's name in tables and maps; untrained weights are always named as such."""
    return model if weights == "pretrained" else f"{model}[{weights}, seed {seed}]"


def cavmae_rows(window_s: float) -> int:
    """Spectrogram rows of CAV-MAE's input for a window in seconds.

    From 10 s on the official 1024. Shorter windows get as many columns of 16 rows as hold
    sound: padded to 1024, most of their tokens would be about silence.
    """
    if window_s >= 10:
        return CAVMAE_N_ROWS
    n_rows = 1 + (round(window_s * SAMPLE_RATE) - 400) // 160
    return -(-n_rows // _STEP_ROWS) * _STEP_ROWS


def preprocessing(spec: ModelSpec) -> dict[str, str | int | float]:
    """The way from the movie to a model's input, for the attributes of its features.

    Parameters
    ----------
    spec : ModelSpec

    Returns
    -------
    dict
        Plain values: the audio window, its alignment and pooling, the spectrogram; the image; the
        constants that both are normalised with. The number of rows in one pass is not among them:
        it decides no feature.
    """
    if spec.model == "clip":
        return {
            **_IMAGE,
            "image_mean": "0.48145466, 0.4578275, 0.40821073",
            "image_std": "0.26862954, 0.26130258, 0.27577711",
            "activation": "QuickGELU",
        }
    audio: dict[str, str | int | float] = {
        "sample_rate_hz": SAMPLE_RATE,
        "channels": "mean downmix",
        "window_s": spec.window_s,
        "align": spec.align,
        "pool": spec.pool,
    }
    if spec.model == "beats":
        return {
            **audio,
            "spectrogram": "kaldi fbank, povey window, 128 mel, 25/10 ms, waveform times 2**15",
            "spectrogram_mean": BEATS_FBANK_MEAN,
            "spectrogram_divisor": 2 * BEATS_FBANK_STD,
        }
    return {
        **audio,
        "spectrogram": "kaldi fbank, hanning window, 128 mel, 25/10 ms, waveform minus its mean",
        "spectrogram_rows": cavmae_rows(spec.window_s),
        "spectrogram_mean": CAVMAE_FBANK_MEAN,
        "spectrogram_divisor": CAVMAE_FBANK_STD,
        **_IMAGE,
        "image_mean": "0.485, 0.456, 0.406",
        "image_std": "0.229, 0.224, 0.225",
    }


def _check_model(model: str) -> None:
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}: expected one of {', '.join(MODELS)}.")


def _feature_set(name: str) -> tuple[str, str]:
    if name not in FEATURE_SETS:
        raise ValueError(f"unknown feature set {name!r}: expected one of {', '.join(FEATURE_SETS)}.")
    return FEATURE_SETS[name]


def _check_depth(model: str, n_layers: int) -> None:
    _check_model(model)
    fewest = 2 if model == "cavmae" else 1
    if n_layers < fewest:
        raise ValueError(f"n_layers = {n_layers} of {model}: expected at least {fewest}.")

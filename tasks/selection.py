"""Which feature sets to fit: ``--models`` and ``--layers`` in terms of feature spaces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import Study
from hpcenc.tasks.models import catalogue

REFERENCE_SETS = ("beats", "clip", "cavmae", "beats+clip")
"""The feature sets of the reference study, which ``--models all`` fits."""

FILE_LAYER = "values"
"""The one layer of a feature space that comes from files."""

BAND_RATIOS = (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Scalings of the first band over that of the second: all that a grid of 5 x 5, from 0.01 to 100, can give.

What both scalings share is a matter of alpha, of which each ratio has a path of its own.
"""

Kind = Literal["fits", "delays", "layers", "bands"]
"""Of what is fitted: the models themselves, or one of the sweeps."""

MODALITIES = {"beats": "audio", "clip": "vision", "cavmae": "audio-visual"}


@dataclass(frozen=True)
class FeatureSpace:
    """Named features of one model layer, or of the user's files."""

    source: str
    """A model, or the name of a table of ``feature_files``."""
    layer: str

    def __str__(self) -> str:
        return f"{self.source}/{self.layer}"


@dataclass(frozen=True)
class Variant:
    """One layer (or sum of layers), one set of delays, one scaling of bands: one place on the variant
    axis."""

    spaces: tuple[FeatureSpace, ...]
    delays: tuple[int, ...]
    scales: tuple[float, ...] = ()
    """What the kernel of each space is multiplied with; all by 1 if empty."""

    def __str__(self) -> str:
        return "+".join(str(space) for space in self.spaces)

    def label(self, kind: Kind) -> str:
        """Its name among the variants of one feature set."""
        if kind == "delays":
            return f"{self} delay {self.delays[0]}"
        if kind == "bands":
            return f"{self} {self.scales[0]:g}:{self.scales[1]:g}"
        return str(self)


@dataclass(frozen=True)
class FeatureSet:
    """What is fitted as one model: one feature space, or the sum of several."""

    name: str
    """As asked for: ``beats+clip``."""
    label: str
    """As shown everywhere: ``beats+clip[untrained, seed 0]``."""
    variants: tuple[Variant, ...]
    kind: Kind = "fits"

    @property
    def sources(self) -> tuple[str, ...]:
        """Models and files whose features it needs."""
        return tuple(self.name.split("+"))

    @property
    def modality(self) -> str:
        """``audio``, ``vision``, ``audio-visual``, or ``given`` for features from files."""
        kinds = {MODALITIES.get(source, "given") for source in self.sources}
        return kinds.pop() if len(kinds) == 1 else "audio-visual" if "given" not in kinds else "mixed"


def select_feature_sets(study: Study, models: str = "all", layers: str = "default") -> tuple[FeatureSet, ...]:
    """Feature sets that the command line asks for, each followed by its sweeps.

    Parameters
    ----------
    study : Study
        Its ``sweeps`` say which variants are fitted beside the models themselves.
    models : str
        ``all`` (the four of the reference study and every table of ``feature_files``), or names
        joined by commas; ``a+b`` is the sum of two.
    layers : str
        ``default`` (one layer a model), ``all`` (every depth; sums pair equal depths), or
        ``MODEL/LAYER`` joined by commas, of models that the feature sets use.

    Raises
    ------
    StudyError
        All wrong names at once.
    """
    known = (*catalogue.MODELS, *study.feature_files)
    names = (*REFERENCE_SETS, *study.feature_files) if models == "all" else _split(models)
    if not study.runs[0].movies() and models == "all":
        names = tuple(study.feature_files)
    problems = [
        f"--models: no feature set {name!r}; known: {', '.join((*REFERENCE_SETS, *study.feature_files))}, "
        "and sums of them"
        for name in names
        if not set(name.split("+")) <= set(known)
    ]
    problems += [f"--models: {name!r} is named twice" for name in set(names) if names.count(name) > 1]
    if not names:
        problems.append("--models: empty; give `all` or names such as `beats,clip`")
    chosen = {} if layers in ("default", "all") else _chosen_layers(study, names, layers, problems)
    problems += [
        f"sweeps.bands: {name!r} is a sum of {name.count('+') + 1}; a fit in bands takes two. "
        "Set it to false, or leave the sum out of --models"
        for name in names
        if study.sweeps.bands and name.count("+") > 1
    ]
    if problems:
        raise StudyError(problems)
    fits = [_feature_set(study, name, layers, chosen) for name in names]
    return tuple(chosen for fit in fits for chosen in (fit, *_sweeps(study, fit)))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _chosen_layers(
    study: Study, names: tuple[str, ...], layers: str, problems: list[str]
) -> dict[str, tuple[str, ...]]:
    used = [model for model in catalogue.MODELS if any(model in name.split("+") for name in names)]
    chosen: dict[str, tuple[str, ...]] = {}
    for part in _split(layers):
        model, _, layer = part.partition("/")
        if model not in catalogue.MODELS:
            problems.append(
                f"--layers: {part!r} is not MODEL/LAYER, such as beats/12, nor `default` or `all`"
            )
        elif layer not in catalogue.all_layer_names(model, study.models.n_layers):
            known = ", ".join(catalogue.all_layer_names(model, study.models.n_layers))
            problems.append(f"--layers: {model} has no layer {layer!r}; it has {known}")
        elif model not in used:
            problems.append(
                f"--layers: {part!r} is a layer of {model}, which no chosen feature set uses; expected "
                f"layers of {', '.join(used) or 'no model'}. Add {model} to --models, or leave {part!r} out."
            )
        else:
            chosen[model] = (*chosen.get(model, ()), layer)
    return chosen


def _feature_set(study: Study, name: str, layers: str, chosen: dict[str, tuple[str, ...]]) -> FeatureSet:
    sources = name.split("+")
    per_source = [_layers_of(study, source, layers, chosen) for source in sources]
    depth = max(len(names) for names in per_source)
    # A source with one layer goes with every layer of the others; else equal depths go together.
    padded = [names * depth if len(names) == 1 else names for names in per_source]
    if len({len(names) for names in padded}) > 1:
        raise StudyError(f"--layers: {name} needs equally many layers of {' and '.join(sources)}")
    variants = tuple(
        Variant(
            tuple(FeatureSpace(source, layer) for source, layer in zip(sources, row, strict=True)),
            study.fit.delays,
        )
        for row in zip(*padded, strict=True)
    )
    is_model = any(source in catalogue.MODELS for source in sources)
    label = catalogue.label(name, study.models.weights, study.models.seed) if is_model else name
    return FeatureSet(name, label, variants)


def _sweeps(study: Study, fit: FeatureSet) -> Iterator[FeatureSet]:
    """The sweeps of one feature set that the study asks for."""
    delays = tuple(
        replace(variant, delays=(delay,)) for variant in fit.variants for delay in study.sweeps.delays
    )
    if delays:
        yield replace(fit, variants=delays, kind="delays")
    if study.sweeps.layers and any(source in catalogue.MODELS for source in fit.sources):
        yield replace(_feature_set(study, fit.name, "all", {}), kind="layers")
    if study.sweeps.bands and len(fit.sources) == 2:
        scales = [(ratio, 1.0) if ratio >= 1 else (1.0, 1 / ratio) for ratio in BAND_RATIOS]
        bands = tuple(replace(variant, scales=pair) for variant in fit.variants for pair in scales)
        yield replace(fit, variants=bands, kind="bands")


def _layers_of(study: Study, source: str, layers: str, chosen: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    if source not in catalogue.MODELS:
        return (FILE_LAYER,)
    if layers == "all":
        return catalogue.sweep_layers(source, study.models.n_layers)
    return chosen.get(source, (catalogue.default_layer(source, study.models.n_layers),))

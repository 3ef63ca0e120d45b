"""Which feature sets to fit: ``--models`` and ``--layers`` in terms of feature spaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class FeatureSpace:
    """Named features of one model layer, or of the user's files."""

    source: str
    """A model, or the name of a table of ``feature_files``."""
    layer: str

    def __str__(self) -> str:
        return f"{self.source}/{self.layer}"

    @property
    def modality(self) -> str:
        """``audio``, ``vision``, ``audio-visual``, or ``given`` for features from files."""
        return catalogue.modality(self.source, self.layer) if self.source in catalogue.MODELS else "given"


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
    def spaces(self) -> tuple[FeatureSpace, ...]:
        """Feature spaces of all its variants."""
        return tuple(dict.fromkeys(space for variant in self.variants for space in variant.spaces))

    @property
    def sources(self) -> tuple[str, ...]:
        """Models and files whose features it needs."""
        return tuple(dict.fromkeys(space.source for space in self.spaces))

    @property
    def modality(self) -> str:
        """``audio``, ``vision``, ``audio-visual``, ``given`` (from files), or ``mixed`` with such."""
        kinds = {space.modality for space in self.spaces}
        return kinds.pop() if len(kinds) == 1 else "audio-visual" if "given" not in kinds else "mixed"


def select_feature_sets(study: Study, models: str = "all", layers: str = "default") -> tuple[FeatureSet, ...]:
    """Feature sets that the command line asks for, each followed by its sweeps.

    Parameters
    ----------
    study : Study
        Its ``sweeps`` say which variants are fitted beside the models themselves.
    models : str
        ``all`` (what the study's ``models.sets`` name, or else the four of the reference study and every
        table of ``feature_files``), or names joined by commas: of `catalogue.FEATURE_SETS` and feature files;
        ``a+b`` is the sum of two.
    layers : str
        ``default`` (one layer a model), ``all`` (every depth; sums pair equal depths), or
        ``MODEL/LAYER`` joined by commas. A layer goes to the feature set of its branch
        (``cavmae/audio-3`` to ``cavmae-audio``) where that is chosen, else to the model's own.

    Raises
    ------
    StudyError
        All wrong names at once.
    """
    known = (*catalogue.FEATURE_SETS, *study.feature_files)
    names, key = _split(models), "--models"
    if models == "all" and study.models.sets:
        names, key = study.models.sets, "models.sets"
    elif models == "all":
        has_movies = any(run.movies() for run in study.runs)
        names = (*(REFERENCE_SETS if has_movies else ()), *study.feature_files)
    problems = [
        f"{key}: `all` goes alone; leave it out, or the others"
        if (key, name) == ("--models", "all")
        else f"{key}: no feature set {name!r}; known: {', '.join(known)}, and sums of them"
        for name in names
        if not set(name.split("+")) <= set(known)
    ]
    problems += [
        f"{key}: {name!r} is a sum of a set with itself, expected different ones; give {part!r} once"
        for name in names
        for part in dict.fromkeys(name.split("+"))
        if name.split("+").count(part) > 1
    ]
    sets = [frozenset(name.split("+")) for name in names]
    problems += [
        f"{key}: {name!r} is named twice" for place, name in enumerate(names) if sets[place] in sets[:place]
    ]
    if not names:
        problems.append(
            "--models all: no run names a movie, and there are no feature_files; give either"
            if models == "all"
            else "--models: empty; give `all` or names such as `beats,clip`"
        )
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


def idle_sweeps(study: Study, feature_sets: Sequence[FeatureSet]) -> tuple[str, ...]:
    """What the study's sweeps ask for that these feature sets and subjects leave nothing to do for.

    Parameters
    ----------
    study : Study
    feature_sets : sequence of FeatureSet
        The chosen ones, with their sweeps.

    Returns
    -------
    tuple of str
        One line each: the key, what is missing, and the way out. Nothing is wrong with them, for a run may
        be of a part of its study.
    """
    sweeps, kinds = study.sweeps, {chosen.kind for chosen in feature_sets}
    has_tags = any(
        chosen.kind == "fits" and [space.layer for space in chosen.spaces] == [catalogue.TAGS]
        for chosen in feature_sets
    )
    lines = []
    if sweeps.tags is not None and not has_tags:
        lines.append(
            "sweeps.tags: no feature set of --models has tags, so no tag is held against BOLD; add "
            "beats-tags or cavmae-tags to --models (`all` has neither), or leave it out"
        )
    if sweeps.layers and "layers" not in kinds:
        lines.append(
            "sweeps.layers: no feature set of --models has more than one layer, so no layers are compared; "
            "add a model to --models, or leave it out"
        )
    if sweeps.bands and "bands" not in kinds:
        lines.append(
            "sweeps.bands: none of --models is a sum of two, so nothing is fitted in bands; add one such as "
            "beats+clip to --models, or leave it out"
        )
    if sweeps.any_asked and not set(study.fitted) & set(sweeps.subjects or study.fitted):
        lines.append(
            f"sweeps.subjects: none of {', '.join(sweeps.subjects)} is fitted, so nothing is swept; fitted: "
            f"{', '.join(study.fitted)}. Add one to --subjects, or leave sweeps.subjects out"
        )
    return tuple(lines)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _chosen_layers(
    study: Study, names: tuple[str, ...], layers: str, problems: list[str]
) -> dict[str, tuple[str, ...]]:
    n_layers = study.models.n_layers
    used = [part for part in catalogue.FEATURE_SETS if any(part in name.split("+") for name in names)]
    chosen: dict[str, tuple[str, ...]] = {}
    for part in _split(layers):
        model, _, layer = part.partition("/")
        if model not in catalogue.MODELS:
            problems.append(
                f"--layers: {part!r} is not MODEL/LAYER, such as beats/12, nor `default` or `all`"
            )
        elif layer not in catalogue.all_layer_names(model, n_layers):
            known = ", ".join(catalogue.all_layer_names(model, n_layers))
            problems.append(f"--layers: {model} has no layer {layer!r}; it has {known}")
        elif (taker := _taker(used, model, layer, n_layers)) is None:
            problems.append(
                f"--layers: {part!r} is a layer of {model}, which no chosen feature set uses; expected "
                f"layers of {', '.join(used) or 'no model'}. Add {model} to --models, or leave {part!r} out."
            )
        elif layer in chosen.get(taker, ()):
            problems.append(f"--layers: {part!r} is named twice")
        else:
            chosen[taker] = (*chosen.get(taker, ()), layer)
    return chosen


def _taker(used: list[str], model: str, layer: str, n_layers: int) -> str | None:
    """The chosen feature set that a named layer is for: that of its branch before the model's own."""
    takers = [
        name
        for name in used
        if catalogue.FEATURE_SETS[name][0] == model and layer in catalogue.layers_of_set(name, n_layers)
    ]
    return min(takers, key=lambda name: name == model, default=None)


def _feature_set(study: Study, name: str, layers: str, chosen: dict[str, tuple[str, ...]]) -> FeatureSet:
    parts = name.split("+")
    sources = [catalogue.FEATURE_SETS.get(part, (part, ""))[0] for part in parts]
    per_part = [_layers_of(study, part, layers, chosen) for part in parts]
    depth = max(len(names) for names in per_part)
    # A part with one layer goes with every layer of the others; else equal depths go together.
    padded = [names * depth if len(names) == 1 else names for names in per_part]
    if len({len(names) for names in padded}) > 1:
        raise StudyError(f"--layers: {name} needs equally many layers of {' and '.join(parts)}")
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
    every_layer = _feature_set(study, fit.name, "all", {})
    if study.sweeps.layers and len(every_layer.variants) > 1:
        yield replace(every_layer, kind="layers")
    if study.sweeps.bands and len(fit.variants[0].spaces) == 2:
        scales = [(ratio, 1.0) if ratio >= 1 else (1.0, 1 / ratio) for ratio in BAND_RATIOS]
        bands = tuple(replace(variant, scales=pair) for variant in fit.variants for pair in scales)
        yield replace(fit, variants=bands, kind="bands")


def _layers_of(study: Study, part: str, layers: str, chosen: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    if part not in catalogue.FEATURE_SETS:
        return (FILE_LAYER,)
    if layers == "all":
        return catalogue.sweep_layers(part, study.models.n_layers)
    return chosen.get(part, (catalogue.default_layer(part, study.models.n_layers),))

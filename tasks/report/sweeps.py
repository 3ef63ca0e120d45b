"""What sweeps over delays, layers and bands found: curves, nested choices, and what each of them scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import AVERAGE, BAND_R
from hpcenc.storage.results import Scores, read_scores
from hpcenc.storage.store import Store
from hpcenc.tasks.nested import (
    NestedChoice,
    best_fixed_variant,
    best_variant_of_folds,
    choose_variants,
    mean_excess,
    values_of,
)

Floats = NDArray[np.floating[Any]]
Masks = Mapping[str, NDArray[np.bool_]]
"""Regions by their names: which voxels belong to each, (n_voxels,)."""

ALL_VERTICES = "all vertices"
"""The name under which curves have the mean over all valid vertices."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """One sweep of a feature set in one subject.

    Attributes
    ----------
    kind : {"delays", "layers", "bands"}
    layer : str
        Layer (or sum of layers) behind all its variants; empty where the sweep is over layers.
    several : bool
        Whether the feature set was swept in other layers too, each of which is a sweep of its own.
    labels : tuple of str
        Of its variants.
    values : tuple of float
        What they stand for: a delay in TRs, a depth from 1, the ratio of the first band's scaling to the
        second's.
    folds : tuple of str
    operators : tuple of str
        Groups of its first variant's operators, one for each fold: all variants have the same rows.
    curves : dict of str to array of shape (n_variants,)
        Mean r over the valid vertices, of all and of each region; r of a vertex is its mean over folds. NaN
        where a region has no valid vertex.
    n_valid : dict of str to int
        Valid vertices behind each curve: those where r is defined in every variant and fold.
    n_with_chance : int
        Vertices whose choice has an r and a chance level, which a test run that is too short has not.
    best : array of int, shape (n_voxels,)
        Place of the variant that each vertex chose, -1 where it is not above its chance level.
    nested_r : array of shape (n_voxels,)
        Mean over folds of r with the variant that the vertex chose in each of them.
    band_r : dict of str to array of shape (n_voxels,)
        What each band adds to `nested_r`; empty where there are no bands.
    fixed : int
        The one variant that is best for all vertices by the inner folds of all outer folds, -1 if there is
        none. It decides no r.
    fixed_r : array of shape (n_voxels,)
        Mean over folds of r with the one variant that is best for all vertices by the inner folds of each.
    """

    kind: str
    feature_set: str
    layer: str
    several: bool
    subject: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    folds: tuple[str, ...]
    operators: tuple[str, ...]
    curves: dict[str, NDArray[np.float64]]
    n_valid: dict[str, int]
    n_with_chance: int
    best: NDArray[np.intp]
    nested_r: NDArray[np.float64]
    band_r: dict[str, NDArray[np.float64]]
    fixed: int
    fixed_r: NDArray[np.float64]
    blocks_done: int
    blocks: int

    @property
    def label(self) -> str:
        """Name of its feature set in figures: with its layer only where there are several."""
        return f"{self.feature_set} {self.layer}" if self.several else self.feature_set

    @property
    def complete(self) -> bool:
        """Whether every voxel block is done."""
        return self.blocks_done == self.blocks

    @property
    def best_values(self) -> NDArray[np.float64]:
        """What each vertex's best variant stands for, (n_voxels,); NaN where it has none."""
        return values_of(self.best, self.values)

    @property
    def share_with_best(self) -> float:
        """Share of vertices with a best variant, of those with a chance level; NaN where there are none."""
        n_best = float(np.count_nonzero(self.best >= 0))
        return n_best / self.n_with_chance if self.n_with_chance else math.nan


def read_sweeps(store: Store, groups: Iterable[str], regions: Masks | None = None) -> Iterator[Sweep]:
    """Sweeps that a store holds, read one after the other.

    Parameters
    ----------
    groups : iterable of str
        Of sweeps of one kind.
    regions : mapping, optional
        Regions that have curves of their own.
    """
    for group in groups:
        parts = split_layers(read_scores(store, group))
        for part in parts:
            yield summarise_sweep(part, regions or {}, several=len(parts) > 1)


def split_layers(scores: Scores) -> list[Scores]:
    """A sweep's scores, of each layer apart: delays and ratios are a curve, layers beside them are not."""
    variants = scores.attributes["variants"]
    places: dict[str, list[int]] = {}
    for place in range(len(variants)):
        places.setdefault(layer_of(scores.attributes, place), []).append(place)
    if len(places) == 1:
        return [scores]
    return [
        replace(
            scores,
            attributes=scores.attributes | {"variants": [variants[place] for place in of_layer]},
            r=scores.r[:, of_layer],
            r2=scores.r2[:, of_layer],
            alpha=scores.alpha[:, of_layer],
            chance=scores.chance[:, of_layer],
            agrees=scores.agrees[:, of_layer],
            more={name: values[:, of_layer] for name, values in scores.more.items()},
        )
        for of_layer in places.values()
    ]


def layer_of(attributes: Mapping[str, Any], place: int) -> str:
    """Layer (or sum of layers) behind one variant of a sweep, by its label; empty where it is over layers."""
    label = str(attributes["variants"][place]["label"])
    separator = {"delays": " delay ", "bands": " "}.get(attributes["kind"])
    return label.rpartition(separator)[0] if separator else ""


def summarise_sweep(scores: Scores, regions: Masks, *, several: bool = False) -> Sweep:
    """What a sweep found, from its scores.

    Parameters
    ----------
    scores : Scores
        Of one layer, where it is no sweep over layers; see `split_layers`.
    regions : mapping
        Regions that have curves of their own.
    several : bool
        Whether the feature set was swept in other layers too.
    """
    attributes = scores.attributes
    cv = scores.more["cv"]
    choice = choose_variants(cv, scores.r, scores.chance)
    mean_r = scores.r.mean(axis=0, dtype=np.float64)
    valid = np.isfinite(mean_r).all(axis=0)
    masks = {ALL_VERTICES: np.ones(len(valid), dtype=bool)} | dict(regions)
    return Sweep(
        kind=attributes["kind"],
        feature_set=attributes["feature_set"],
        layer=layer_of(attributes, 0),
        several=several,
        subject=attributes["subject"],
        labels=tuple(variant["label"] for variant in attributes["variants"]),
        values=variant_values(attributes),
        folds=tuple(attributes["folds"]),
        operators=tuple(attributes["variants"][0]["operators"]),
        curves={name: _means(mean_r, valid & mask) for name, mask in masks.items()},
        n_valid={name: int(np.count_nonzero(valid & mask)) for name, mask in masks.items()},
        n_with_chance=int(np.count_nonzero(np.isfinite(mean_excess(choice.r, choice.chance)))),
        best=choice.best,
        nested_r=choice.mean_r,
        band_r=_band_r(scores, choice),
        fixed=best_fixed_variant(cv),
        fixed_r=_fixed_r(cv, scores.r),
        blocks_done=scores.blocks_done,
        blocks=scores.blocks,
    )


def variant_values(attributes: Mapping[str, Any]) -> tuple[float, ...]:
    """What the variants of a sweep stand for, in the order of its axis."""
    variants = attributes["variants"]
    if attributes["kind"] == "delays":
        return tuple(float(variant["delays"][0]) for variant in variants)
    if attributes["kind"] == "bands":
        return tuple(variant["scales"][0] / variant["scales"][1] for variant in variants)
    return tuple(float(place) for place in range(1, len(variants) + 1))


def alike(sweeps: Iterable[Sweep]) -> tuple[list[Sweep], list[Sweep]]:
    """Whose curves have a mean, and whose have not.

    Parameters
    ----------
    sweeps : iterable of Sweep
        Of one feature set.

    Returns
    -------
    in_mean : list of Sweep
        Complete ones of subjects with the same variants; where these differ, those of most subjects, the
        first of equals.
    others : list of Sweep
        Complete ones of subjects with other variants, as those of an earlier study file are.
    """
    groups: dict[tuple[Any, ...], list[Sweep]] = {}
    for sweep in sweeps:
        if sweep.subject != AVERAGE and sweep.complete:
            groups.setdefault((sweep.labels, sweep.values), []).append(sweep)
    in_mean = max(groups.values(), key=len, default=[])
    return in_mean, [sweep for group in groups.values() if group is not in_mean for sweep in group]


def spread_over_subjects(
    curves: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean curve and standard deviation between the subjects who have one.

    Parameters
    ----------
    curves : sequence of array of shape (n_variants,)
        NaN of a subject without a valid vertex there.

    Returns
    -------
    mean : array of shape (n_variants,)
    deviation : array of shape (n_variants,)
        Of the sample (n - 1); NaN for one subject.
    """
    defined = [curve for curve in curves if np.isfinite(curve).any()]
    stacked = np.stack(defined or curves[:1])
    if len(stacked) == 1:
        return stacked[0], np.full(stacked.shape[1], np.nan)
    return stacked.mean(axis=0), stacked.std(axis=0, ddof=1)


@dataclass(frozen=True)
class CurveRow:
    """One point of a curve: a variant in a region of one subject."""

    kind: str
    feature_set: str
    subject: str
    region: str
    variant: str
    value: float
    n_valid: int
    mean_r: float


@dataclass(frozen=True)
class ChoiceRow:
    """What a subject gains where every vertex chooses its own variant; r over the vertices valid in all of
    them.

    Attributes
    ----------
    fixed : str
        The best variant for all vertices together, by the inner folds of all outer folds.
    fixed_mean_r : float
        With the best one for all vertices of each outer fold, by its own inner folds.
    share_with_best : float
        Vertices above their own chance level with the variant that they chose, of those that have one; NaN
        where none has.
    """

    kind: str
    feature_set: str
    subject: str
    n_valid: int
    fixed: str
    fixed_mean_r: float
    nested_mean_r: float
    window_mean_r: float
    share_with_best: float


def curve_rows(sweeps: Iterable[Sweep]) -> tuple[CurveRow, ...]:
    """All points of all curves."""
    return tuple(
        CurveRow(
            kind=sweep.kind,
            feature_set=sweep.label,
            subject=sweep.subject,
            region=region,
            variant=sweep.labels[place],
            value=sweep.values[place],
            n_valid=sweep.n_valid[region],
            mean_r=float(curve[place]),
        )
        for sweep in sweeps
        for region, curve in sweep.curves.items()
        for place in range(len(sweep.labels))
    )


def choice_row(sweep: Sweep, window_r: NDArray[np.float64] | None = None) -> ChoiceRow:
    """What the choice of one subject scores.

    Parameters
    ----------
    sweep : Sweep
    window_r : array of shape (n_voxels,), optional
        r of the main fit of that layer, with the whole FIR window and one penalty, mean over folds.
    """
    valid = np.isfinite(sweep.nested_r)
    window = np.full(len(valid), np.nan) if window_r is None else window_r
    if np.isfinite(window).any():  # where a vertex has no r in the main fit, none is compared
        valid &= np.isfinite(window)
    return ChoiceRow(
        kind=sweep.kind,
        feature_set=sweep.label,
        subject=sweep.subject,
        n_valid=int(np.count_nonzero(valid)),
        fixed=sweep.labels[sweep.fixed] if sweep.fixed >= 0 else "",
        fixed_mean_r=_mean(sweep.fixed_r[valid]),
        nested_mean_r=_mean(sweep.nested_r[valid]),
        window_mean_r=_mean(window[valid]),
        share_with_best=sweep.share_with_best,
    )


def _fixed_r(cv: Floats, r: Floats) -> NDArray[np.float64]:
    """Mean over folds of r with each fold's best variant for all vertices; NaN where a fold has none."""
    chosen = [
        of_fold[place] if place >= 0 else np.full(r.shape[2], np.nan)
        for place, of_fold in zip(best_variant_of_folds(cv), r, strict=True)
    ]
    mean: NDArray[np.float64] = np.mean(chosen, axis=0, dtype=np.float64)
    return mean


def _band_r(scores: Scores, choice: NestedChoice) -> dict[str, NDArray[np.float64]]:
    found = {}
    for name, values in scores.more.items():
        if name.startswith(BAND_R):
            chosen = np.take_along_axis(values, np.maximum(choice.variant, 0)[:, None], axis=1)[:, 0]
            mean = np.where(choice.variant >= 0, chosen, np.nan).mean(axis=0, dtype=np.float64)
            found[name.removeprefix(BAND_R)] = mean
    return found


def _means(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Means of rows over some columns, NaN where there are none."""
    if not mask.any():
        return np.full(len(values), np.nan)
    return np.asarray(values[:, mask].mean(axis=1))


def _mean(values: NDArray[np.float64]) -> float:
    """Mean, NaN where there is no value or one of them is undefined."""
    return float(values.mean()) if values.size else math.nan

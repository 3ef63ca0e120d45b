"""Results, read from the store: scores and noise ceilings of what is done."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.errors import StoreError
from hpcenc.storage.layout import AVERAGE, SCORES, SWEEPS, WEIGHT_NORM, average_group, ceiling_group
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis

KINDS = ("fits", *SWEEPS, "singles", "ceilings")
"""Folders of a store: main fits, and the analyses beside them."""


@dataclass(frozen=True)
class Scores:
    """Scores of one feature set in one subject, and what they belong to.

    Attributes
    ----------
    attributes : dict
        Of the fit's group: feature set, subject, folds, variants, delays, runs, ...
    r, r2, alpha, chance, agrees : array of shape (n_folds, n_variants, n_voxels)
        NaN where the voxel is undefined or its block is not done. ``alpha`` is the grid's value to
        float32: the nearest value of the grid is the one that was chosen. ``agrees`` is NaN too where
        the choice of alpha was not compared with that by exact scores, 1 where it was the same, 0 where not.
    more : dict of str to array of that shape
        What else its array of scores holds, by name: ``cv`` of sweeps, ``r:<feature space>`` of fits in
        bands, or ``r:<feature set>`` where these are in several layers.
    blocks_done, blocks : int
    done : array of bool, shape (n_voxels,)
        Voxels whose block is done.
    """

    group: str
    attributes: dict[str, Any]
    r: NDArray[np.floating[Any]]
    r2: NDArray[np.floating[Any]]
    alpha: NDArray[np.floating[Any]]
    chance: NDArray[np.floating[Any]]
    agrees: NDArray[np.floating[Any]]
    more: dict[str, NDArray[np.floating[Any]]]
    blocks_done: int
    blocks: int
    done: NDArray[np.bool_]


def fit_groups(store: Store, kind: str = "fits") -> Iterator[str]:
    """Groups of all fits in the store, or of one kind of analysis beside them, feature set by feature set."""
    names = "*" if kind == "ceilings" else "*/*"  # ceilings are of a subject alone
    for metadata in sorted((store.path / kind).glob(f"{names}/zarr.json")):
        yield metadata.parent.relative_to(store.path).as_posix()


def read_progress(store: Store) -> dict[str, tuple[int, int]]:
    """Of every fit and analysis, how many of its blocks are done, and how many it has."""
    return {group: store.progress(group) for kind in KINDS for group in fit_groups(store, kind)}


def read_scores(store: Store, group: str, with_norms: bool = True) -> Scores:
    """Scores of one fit, of the blocks that are done.

    Parameters
    ----------
    with_norms : bool
        Read the norms of the weights at each delay too, which take more room than all other scores.

    Raises
    ------
    StoreError
        If a chunk of a block that is marked as done is missing or damaged.
    """
    attributes = store.attributes_of(group)
    names = [
        name
        for name in store.array(f"{group}/scores").attrs["score"]
        if with_norms or not name.startswith(WEIGHT_NORM)
    ]
    values, blocks_done = _read_done(store, group, "scores", len(names))
    scores = dict(zip(names, values, strict=True))
    more = {name: scores.pop(name) for name in names if name not in SCORES}
    done = np.repeat(blocks_done, attributes["block"])[: values.shape[-1]]
    n_done, n_blocks = int(blocks_done.sum()), blocks_done.size
    return Scores(group, attributes, **scores, more=more, blocks_done=n_done, blocks=n_blocks, done=done)


def _read_done(
    store: Store, group: str, name: str, n_first: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """An array of a group by voxels, or the first so many along its first axis, NaN where a block is not
    done; and which blocks are."""
    attributes, array = store.attributes_of(group), store.array(f"{group}/{name}")
    n_voxels, block = array.shape[-1], attributes["block"]
    values = np.full((n_first or array.shape[0], *array.shape[1:]), np.nan, np.float32)
    done = np.zeros(-(-n_voxels // block), dtype=bool)
    for index in range(done.size):
        if store.is_done(group, index, attributes["digest"]):
            done[index] = True
            voxels = slice(index * block, min((index + 1) * block, n_voxels))
            part = (*[slice(None)] * (array.ndim - 1), voxels)
            values[part] = store.read(f"{group}/{name}", part)[: len(values)]
    return values, done


@dataclass(frozen=True)
class Ceilings:
    """Noise ceilings of one subject, and what they belong to.

    Attributes
    ----------
    attributes : dict
        Of their group: subject, ``showings`` (clip, showings, rows), ...
    clips : tuple of str
        Repeated clips.
    values : dict of str to array of shape (n_clips, n_voxels)
        ``share`` of a showing's variance that repeats, ``share_low`` and ``share_high`` of its 95 %
        interval, and ``ceiling``, the r that a perfect model reaches. NaN where undefined or not done.
    """

    attributes: dict[str, Any]
    clips: tuple[str, ...]
    values: dict[str, NDArray[np.floating[Any]]]


def read_ceilings(store: Store, subject: str) -> Ceilings:
    """Noise ceilings of a subject, of the blocks that are done."""
    group = ceiling_group(subject)
    attributes = store.attributes_of(group)
    values, _ = _read_done(store, group, "values")
    statistics = store.array(f"{group}/values").attrs["statistic"]
    clips = tuple(each["group"] for each in attributes["showings"])
    return Ceilings(attributes, clips, dict(zip(statistics, values, strict=True)))


@dataclass(frozen=True)
class Singles:
    """Single features of one space in one subject.

    Attributes
    ----------
    attributes : dict
        Of their group: feature set, subject, folds, space, delay.
    scores : dict of str to array of shape (n_folds, n_voxels)
        ``r`` over the test rows of the feature chosen on the training rows, its ``chance`` level,
        ``feature``, its place, and ``r_train``. NaN where undefined or not done.
    """

    attributes: dict[str, Any]
    scores: dict[str, NDArray[np.floating[Any]]]


def read_singles(store: Store, group: str) -> Singles:
    """Single features of one space in one subject, of the blocks that are done."""
    values, _ = _read_done(store, group, "scores")
    names = store.array(f"{group}/scores").attrs["score"]
    return Singles(store.attributes_of(group), dict(zip(names, values, strict=True)))


def read_average_counts(store: Store) -> NDArray[np.float32]:
    """How many subjects the average has of each vertex in each run, (n_runs, n_voxels); NaN where its block
    is not done."""
    return _read_done(store, average_group(), "n_subjects")[0]


def read_voxels(store: Store) -> VoxelAxis:
    """The voxel axis of a store."""
    names = ("structure", "vertex", "ijk")
    return VoxelAxis.from_arrays({name: store.read(name) for name in names}, store.attributes["voxel_axis"])


def require_scores(store: Store, shown: Collection[str] | None = None) -> list[Scores]:
    """Scores of fits; norms of weights of one subject alone, the average if it has any.

    With those of all subjects a study of hundreds would not fit the memory of a controller.

    Parameters
    ----------
    shown : collection of str, optional
        Groups of fits and of other analyses; by default all of which a block is done. What a task needs may
        never have been made for others.

    Raises
    ------
    StoreError
        If there is none.
    """
    if shown is None:
        shown = [group for group, (n_done, _) in read_progress(store).items() if n_done]
    groups = [group for group in fit_groups(store) if group in shown]
    with_norms = [
        store.attributes_of(group)["subject"]
        for group in groups
        if any(name.startswith(WEIGHT_NORM) for name in store.array(f"{group}/scores").attrs["score"])
    ]
    whose = AVERAGE if AVERAGE in with_norms else next(iter(with_norms), None)
    found = [read_scores(store, group, store.attributes_of(group)["subject"] == whose) for group in groups]
    if not found:
        raise StoreError(
            f"{store.path}: no fits here yet that the study asks for. `hpcenc submit` makes them."
        )
    return found

"""Weights of a fit, given back as primal whichever form they were kept in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.errors import StoreError
from hpcenc.storage.features import read_space
from hpcenc.storage.lagged import primal_from_dual
from hpcenc.storage.layout import fit_group
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store


def standardised_features(
    store: Store, spaces: Sequence[SpaceSource], operators_group: str
) -> tuple[NDArray[np.float32], ...]:
    """Features z-scored with the statistics that the operators of a fold were made with.

    Returns
    -------
    tuple of array of shape (n_trs, n_features)
        One for each space; a column that was constant over the training rows is zero.

    Raises
    ------
    StoreError
        If the features were made anew since, from other inputs: their statistics do not fit them.
    """
    _check_features(store, spaces, operators_group)
    mean = store.read(f"{operators_group}/feature_mean")
    scale = store.read(f"{operators_group}/feature_scale")
    standardised = []
    first = 0
    for space in spaces:
        columns = slice(first, first + space.n_features)
        first += space.n_features
        varies = scale[columns] > 0
        centred = read_space(store, space).astype(np.float64) - mean[columns]
        scored = np.where(varies, centred / np.where(varies, scale[columns], 1.0), 0.0)
        standardised.append(scored.astype(np.float32))
    return tuple(standardised)


def read_weights(
    store: Store, feature_set: str, subject: str, voxels: slice, *, fold: int = -1, variant: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Primal weights of some voxels.

    Parameters
    ----------
    store : Store
    feature_set : str
        Its label, such as ``"clip"`` or ``"beats+clip[untrained, seed 0]"``.
    subject : str
    voxels : slice
        On the study's voxel axis.
    fold : int
        Place among the folds whose weights were kept (by default the last).
    variant : int
        Place on the variant axis.

    Returns
    -------
    dict of str to array of shape (n_delays, n_features, n_voxels)
        For each feature space, weights of z-scored features for z-scored BOLD; NaN where the voxel
        is undefined. A column that was constant in training has weight 0.

    Raises
    ------
    StoreError
        If the fit is not there, its weights were not kept, or a block asked for is not done.
    """
    group = fit_group(feature_set, subject)
    attributes = store.attributes_of(group)
    if attributes["weights"] == "none":
        raise StoreError(f"{group}: weights were not kept. Set fit.weights and submit again.")
    _check_done(store, group, attributes, voxels)
    kept_folds = attributes["weight_folds"]
    place = range(len(kept_folds))[fold]
    source = attributes["variants"][variant]
    spaces = tuple(SpaceSource.from_dict(space) for space in source["spaces"])
    delays = source["delays"]
    stored = store.read(
        f"{group}/weights",
        (slice(place, place + 1), slice(variant, variant + 1), slice(None), voxels),
    )[0, 0]
    parts: Sequence[NDArray[np.float32]]
    if attributes["weights"] == "dual":
        features = standardised_features(store, spaces, source["operators"][kept_folds[place]])
        parts = [
            np.asarray(primal_from_dual(space, stored, delays, attributes["onsets"]), np.float32)
            for space in features
        ]
    else:
        edges = np.cumsum([space.n_features * len(delays) for space in spaces])
        parts = np.split(stored[: edges[-1]], edges[:-1])
    return {
        space.name: part.reshape(len(delays), space.n_features, -1)
        for space, part in zip(spaces, parts, strict=True)
    }


def _check_features(store: Store, spaces: Sequence[SpaceSource], operators_group: str) -> None:
    made_from = store.attributes_of(operators_group)["features"]
    for space, (digests, *_) in zip(spaces, made_from, strict=True):
        for paths, expected in zip(space.arrays, digests, strict=True):
            group = paths[0].rpartition("/")[0]
            if store.attributes_of(group)["digest"] != expected:
                raise StoreError(
                    f"{group}: the features were made anew since this fit. Submit again for its subject."
                )


def _check_done(store: Store, group: str, attributes: Mapping[str, Any], voxels: slice) -> None:
    n_voxels, block = store.array(f"{group}/weights").shape[-1], attributes["block"]
    start, stop, _ = voxels.indices(n_voxels)
    for index in range(start // block, -(-stop // block)):
        if not store.is_done(group, index, attributes["digest"]):
            raise StoreError(f"{group}: block {index} is not done yet. Submit again to do what is left.")

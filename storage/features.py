"""Features of one space over all runs, as the fit sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store


def read_feature_names(store: Store, source: SpaceSource) -> tuple[str, ...]:
    """Names of a space's features, for tables and figures.

    Parameters
    ----------
    store : Store
    source : SpaceSource

    Returns
    -------
    tuple of str, of length n_features
        Of tags AudioSet's words (``Speech``) where they were known, else its ids (``/m/09x0r``); of all
        others their places from 0 on, for they have no names.

    Raises
    ------
    StoreError
        If the array is not there.
    """
    if source.how == "single":
        attributes = store.array(source.arrays[0][0]).attrs
        for key in ("display_name", "mid"):
            if key in attributes:
                return tuple(attributes[key])
    return tuple(str(place) for place in range(source.n_features))


def read_space(store: Store, source: SpaceSource) -> NDArray[np.float32]:
    """Features of a space on the TR grid, runs one after the other.

    Returns
    -------
    array of shape (n_trs, n_features)

    Raises
    ------
    StoreError
        If a chunk of an array is missing or damaged.
    """
    runs: list[NDArray[np.float32]] = []
    for paths in source.arrays:
        layers: Sequence[NDArray[np.float32]] = [store.read(path) for path in paths]
        if source.how == "mean":
            runs.append(np.mean(np.stack(layers), axis=0, dtype=np.float32))
        else:
            runs.append(np.concatenate(layers, axis=1))
    return np.concatenate(runs)

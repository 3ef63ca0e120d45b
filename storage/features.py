"""Features of one space over all runs, as the fit sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store


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

"""Features of one space over all runs, as the fit sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.store import Store


@dataclass(frozen=True)
class SpaceSource:
    """Where a feature space lies in the store.

    Attributes
    ----------
    name : str
        ``"<model>/<layer>"``.
    arrays : tuple of tuple of str
        For each run in order, the arrays that make the space.
    how : {"single", "mean", "concat"}
        How the arrays of a run are joined.
    n_features : int
    """

    name: str
    arrays: tuple[tuple[str, ...], ...]
    how: str
    n_features: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for attributes and digests."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpaceSource:
        """Inverse of `as_dict`, also after a way through JSON."""
        arrays = tuple(tuple(paths) for paths in values["arrays"])
        return cls(values["name"], arrays, values["how"], values["n_features"])


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

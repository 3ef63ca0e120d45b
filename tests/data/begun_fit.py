"""A store whose one fit is in progress: of three blocks one is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import SCORES
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.fitting import fit_arrays

N_VOXELS, BLOCK = 6_000, 2_500  # three blocks, the last one ragged
FOLDS = ["run1", "run2"]
GROUP = "fits/clip/s1"
NAMES = (*SCORES, "r_repeat", "weight_norm:2", "weight_norm:4", "weight_norm:5")
"""Scores of the fit: it has delays 2, 4 and 5."""


def fit_spec(group: str) -> GroupSpec:
    """What is stored of the fit, in a group."""
    arrays = fit_arrays(
        n_folds=2, n_variants=1, n_voxels=N_VOXELS, block=BLOCK, weights="primal", n_weight_folds=1,
        n_weight_rows=3, scores=NAMES,
    )  # fmt: skip
    attributes = {
        "feature_set": "clip",
        "subject": "S1",
        "folds": FOLDS,
        "variants": [
            {
                "label": "clip/embedding",
                "delays": [2, 4, 5],
                "spaces": [{"name": "clip/embedding", "n_features": 1}],
            }
        ],
        "weight_folds": [1],
        "block": BLOCK,
    }
    return GroupSpec(group, "a" * 64, arrays, 3, attributes)


def values() -> dict[str, NDArray[Any]]:
    """Its arrays, whole."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(array.shape).astype(array.dtype)
        for name, array in fit_spec(GROUP).arrays.items()
    }


def score(name: str) -> NDArray[Any]:
    """One of its scores, whole."""
    return values()["scores"][NAMES.index(name)]


def write_block(store: Store, group: str, index: int, *, marked: bool = True) -> None:
    """Write a block of it, and mark it as done."""
    voxels = slice(index * BLOCK, min((index + 1) * BLOCK, N_VOXELS))
    for name, array in values().items():
        part = (*[slice(None)] * (array.ndim - 1), voxels)
        store.write(f"{group}/{name}", part, array[part])
    if marked:
        store.mark(group, index, "a" * 64)


def begin_store(folder: Path) -> Store:
    """A store in a folder: block 0 is done, block 1 is written without its mark, block 2 is not begun."""
    arrays, attributes = VoxelAxis.from_count(N_VOXELS).to_arrays()
    store = Store.create(folder / "study.zarr", {"voxel_axis": attributes}, arrays)
    store.ensure_group(fit_spec(GROUP))
    write_block(store, GROUP, 0)
    write_block(store, GROUP, 1, marked=False)
    return store

"""Feature spaces that users bring: ``.npy``, ``.npz`` and ``.mat`` files on the TR grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray


def read_feature_file(path: Path, array: str | None, n_trs: int) -> NDArray[np.float32]:
    """Features of one run.

    Parameters
    ----------
    path : Path
    array : str or None
        Name of the array in a ``.npz`` or ``.mat`` file; None takes the only one.
    n_trs : int
        Rows that the run has.

    Returns
    -------
    array of shape (n_trs, n_features)

    Raises
    ------
    ValueError
        If the file is of another kind, holds no such array, has other rows, or values that are not
        finite numbers.
    """
    try:
        values = _read(path, array)
    except Exception as error:  # zip, zlib and scipy fail on damaged files in a dozen ways
        raise ValueError(f"{path}: cannot be read as features: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise ValueError(
            f"{path}: expected numbers of shape (n_trs, n_features), "
            f"found {values.dtype} of shape {values.shape}"
        )
    if len(values) != n_trs:
        raise ValueError(f"{path}: expected {n_trs} rows, one for each TR of the run, found {len(values)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
        features = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(features)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"{path}: {np.sum(~finite)} values are NaN or infinite in float32, the first, "
            f"{values[row, column]}, at row {row}, column {column}. "
            "Features must be finite: leave the column out, or fill it."
        )
    return features


def _read(path: Path, array: str | None) -> NDArray[Any]:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(_pick(archive, array))
    if path.suffix == ".mat":
        contents = scipy.io.loadmat(path)
        return np.asarray(_pick({name: contents[name] for name in contents if name[:2] != "__"}, array))
    raise ValueError(f"expected a .npy, .npz or .mat file, found {path.suffix or 'no suffix'}")


def _pick(arrays: Mapping[str, Any], name: str | None) -> Any:
    if name is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    found = ", ".join(arrays) or "none"
    if name is None:
        raise ValueError(f"expected one array, found {found}; name one with `key`")
    if name not in arrays:
        raise ValueError(f"expected an array {name!r}, found {found}; correct `key`")
    return arrays[name]

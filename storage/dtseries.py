"""Write BOLD as CIFTI-2 ``.dtseries.nii``: what `hpcenc.storage.bold` reads."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import nibabel
import numpy as np
from nibabel.cifti2 import Cifti2Header, SeriesAxis
from numpy.typing import NDArray

from hpcenc.storage.files import sync
from hpcenc.storage.voxels import VoxelAxis


def write_dtseries(path: Path, data: NDArray[np.float32], axis: VoxelAxis, tr_s: float) -> None:
    """Write one run of BOLD as a CIFTI-2 dense time series.

    On disk each voxel's series is contiguous, so an array that is the transpose of a C-contiguous
    ``(n_voxels, n_trs)`` one is written as it lies in memory.

    Parameters
    ----------
    path : Path
        Ends in ``.dtseries.nii``; an old file is replaced as a whole.
    data : float32 array of shape (n_trs, n_voxels)
    axis : VoxelAxis
        Must know its structures.
    tr_s : float
        Repetition time in seconds.

    Raises
    ------
    ValueError
        If the axis is plain, or the data are not float32 or of another number of voxels.
    """
    if data.ndim != 2 or data.shape[1] != axis.n_voxels or data.dtype != np.float32:
        raise ValueError(
            f"{path.name}: expected float32 of shape (n_trs, {axis.n_voxels}), "
            f"found {data.dtype} of {data.shape}."
        )
    series = SeriesAxis(start=0, step=tr_s, size=data.shape[0], unit="SECOND")
    image = nibabel.Cifti2Image(data, Cifti2Header.from_axes((series, axis.to_cifti())))
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            image.to_stream(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)

"""Maps for other programs: CIFTI-2 ``.dscalar.nii`` on the study's own voxel axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
from nibabel.cifti2 import Cifti2Header, ScalarAxis
from numpy.typing import ArrayLike

from hpcenc.storage.files import write_atomically
from hpcenc.storage.voxels import VoxelAxis


def write_dscalar(path: Path, maps: Mapping[str, ArrayLike], axis: VoxelAxis) -> None:
    """Write maps as a CIFTI-2 dense scalar file, which wb_view and nibabel open.

    Parameters
    ----------
    path : Path
        Ends in ``.dscalar.nii``; an old file is replaced as a whole.
    maps : mapping of str to array of shape (n_voxels,)
        Maps by name, stored as float32; NaN, for what is undefined, stays NaN.
    axis : VoxelAxis
        The axis of the maps, which is written as it was read.

    Raises
    ------
    ValueError
        If the axis is plain, there is no map, or a map is of another axis.
    """
    for name, values in maps.items():
        if np.shape(values) != (axis.n_voxels,):
            raise ValueError(
                f"map {name!r}: expected {axis.n_voxels} values, found the shape {np.shape(values)}"
            )
    if not maps:
        raise ValueError(f"{path.name}: there is no map to write")
    header = Cifti2Header.from_axes((ScalarAxis(list(maps)), axis.to_cifti()))
    image = nibabel.Cifti2Image(
        np.stack([np.asarray(values, np.float32) for values in maps.values()]), header
    )
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS")
    write_atomically(path, image.to_bytes())

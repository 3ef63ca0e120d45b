from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis

from hpcenc.storage.voxels import CORTEX_LEFT, CORTEX_RIGHT, VoxelAxis, load_cifti

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def brain_models(right_first: bool = False) -> BrainModelAxis:
    """Five left and four right vertices of surfaces of 8, then three voxels of the left thalamus."""
    left = BrainModelAxis.from_surface(np.array([0, 2, 3, 5, 7]), 8, name="CortexLeft")
    right = BrainModelAxis.from_surface(np.array([1, 2, 4, 6]), 8, name="CortexRight")
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2, 3] = mask[3, 0, 1] = mask[0, 4, 5] = True
    thalamus = BrainModelAxis.from_mask(mask, affine=AFFINE, name="thalamus_left")
    return thalamus + right + left if right_first else left + right + thalamus


def test_an_axis_comes_back_from_cifti_with_its_volume() -> None:
    axis = brain_models()
    voxels = VoxelAxis.from_cifti(axis)
    assert voxels.to_cifti() == axis
    assert voxels.n_voxels == len(voxels) == 12
    assert voxels.names == (CORTEX_LEFT, CORTEX_RIGHT, "CIFTI_STRUCTURE_THALAMUS_LEFT")
    assert voxels.n_vertices == {CORTEX_LEFT: 8, CORTEX_RIGHT: 8}
    assert voxels.volume_shape == (4, 5, 6)
    np.testing.assert_array_equal(voxels.ijk[9:], [[0, 4, 5], [1, 2, 3], [3, 0, 1]])
    assert (voxels.ijk[:9] == -1).all()
    assert (voxels.vertex[9:] == -1).all()


@pytest.mark.parametrize("axis", [VoxelAxis.from_cifti(brain_models()), VoxelAxis.from_count(7)])
def test_an_axis_comes_back_from_arrays_and_json_attributes(axis: VoxelAxis) -> None:
    arrays, attributes = axis.to_arrays()
    assert all(len(values) == axis.n_voxels for values in arrays.values())
    again = VoxelAxis.from_arrays(arrays, json.loads(json.dumps(attributes)))
    assert again.digest() == axis.digest()
    assert again.is_plain == axis.is_plain


def test_the_digest_tells_axes_apart() -> None:
    axis = VoxelAxis.from_cifti(brain_models())
    arrays, attributes = axis.to_arrays()
    moved = {**arrays, "vertex": np.roll(arrays["vertex"], 1)}
    shifted = {**attributes, "affine": (AFFINE + 1).tolist()}
    digests = {
        axis.digest(),
        VoxelAxis.from_cifti(brain_models(right_first=True)).digest(),
        VoxelAxis.from_arrays(moved, attributes).digest(),
        VoxelAxis.from_arrays(arrays, shifted).digest(),
        axis.cortex().digest(),
        VoxelAxis.from_count(12).digest(),
    }
    assert len(digests) == 6


def test_the_digest_does_not_depend_on_byte_order_or_the_sign_of_zero() -> None:
    axis = VoxelAxis.from_cifti(brain_models())
    arrays, attributes = axis.to_arrays()
    swapped = {name: values.astype(values.dtype.newbyteorder(">")) for name, values in arrays.items()}
    attributes["affine"] = (-0.0 * AFFINE + AFFINE).tolist()
    assert VoxelAxis.from_arrays(swapped, attributes).digest() == axis.digest()


def test_cortex_is_found_wherever_it_stands() -> None:
    first, last = VoxelAxis.from_cifti(brain_models()), VoxelAxis.from_cifti(brain_models(right_first=True))
    np.testing.assert_array_equal(first.positions("cortex"), np.arange(9))
    np.testing.assert_array_equal(last.positions("cortex"), np.arange(3, 12))
    np.testing.assert_array_equal(last.positions("all"), np.arange(12))
    assert last.cortex().names == (CORTEX_RIGHT, CORTEX_LEFT)
    assert last.cortex().to_cifti() == brain_models(right_first=True)[3:]
    assert last.cortex().affine is None


def test_a_plain_axis_is_its_own_cortex() -> None:
    plain = VoxelAxis.from_count(6)
    assert plain.cortex().digest() == plain.digest()


def test_an_axis_without_cortex_says_so() -> None:
    thalamus = VoxelAxis.from_cifti(brain_models()[9:])
    with pytest.raises(ValueError, match="no cortex among the structures CIFTI_STRUCTURE_THALAMUS_LEFT"):
        thalamus.cortex()


def test_the_medial_wall_is_nan_and_every_vertex_has_its_value() -> None:
    axis = VoxelAxis.from_cifti(brain_models())
    values = np.arange(24, dtype=np.float32).reshape(2, 12)
    right = axis.surface(values, CORTEX_RIGHT)
    assert right.dtype == np.float32
    np.testing.assert_array_equal(
        right,
        [[np.nan, 5, 6, np.nan, 7, np.nan, 8, np.nan], [np.nan, 17, 18, np.nan, 19, np.nan, 20, np.nan]],
    )
    np.testing.assert_array_equal(
        axis.surface(np.arange(12), CORTEX_LEFT), [0, np.nan, 1, 2, np.nan, 3, np.nan, 4]
    )


def test_surface_refuses_values_of_another_axis_and_structures_without_surface() -> None:
    axis = VoxelAxis.from_cifti(brain_models())
    with pytest.raises(ValueError, match=r"expected values of 12 voxels, found an array of shape \(11,\)"):
        axis.surface(np.zeros(11), CORTEX_LEFT)
    with pytest.raises(ValueError, match="no surface 'CIFTI_STRUCTURE_THALAMUS_LEFT'"):
        axis.surface(np.zeros(12), "CIFTI_STRUCTURE_THALAMUS_LEFT")


def test_a_plain_axis_has_no_cifti_form() -> None:
    with pytest.raises(ValueError, match="needs the place of each voxel"):
        VoxelAxis.from_count(3).to_cifti()


def test_nibabel_says_nothing_of_missing_voxel_sizes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = nibabel.cifti2.Cifti2Header.from_axes((nibabel.cifti2.ScalarAxis(["a"]), brain_models()))
    image = nibabel.Cifti2Image(np.zeros((1, 12), np.float32), header)
    raw = bytearray(image.to_bytes())
    raw[104:168] = bytes(64)  # pixdim, which other programs leave at zero
    path = tmp_path / "a.dscalar.nii"
    path.write_bytes(raw)
    load_cifti(path)
    assert not caplog.records

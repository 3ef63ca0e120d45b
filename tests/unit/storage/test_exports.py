from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from hpcenc.storage.exports import write_dscalar
from hpcenc.storage.geometry import grayordinates_axis
from hpcenc.storage.voxels import VoxelAxis


def test_nibabel_reads_the_same_axis_maps_and_intent(tmp_path: Path) -> None:
    axis = grayordinates_axis()
    rng = np.random.default_rng(0)
    r, alpha = rng.standard_normal((2, axis.n_voxels)).astype(np.float32)
    r[[0, 59411, 91281]] = np.nan
    path = tmp_path / "maps.dscalar.nii"
    write_dscalar(path, {"r of clip": r, "alpha": alpha.astype(np.float64)}, axis)

    image = nibabel.load(path)
    assert isinstance(image, nibabel.Cifti2Image)
    assert image.nifti_header.get_intent()[0] == "ConnDenseScalar"
    assert image.get_data_dtype() == np.float32
    assert image.header.get_axis(0).name.tolist() == ["r of clip", "alpha"]
    assert image.header.get_axis(1) == axis.to_cifti()
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.stack([r, alpha]))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    axis = grayordinates_axis().cortex()
    path = tmp_path / "maps.dscalar.nii"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"map 'r': expected 59412 values, found the shape \(64984,\)"):
        write_dscalar(path, {"r": np.zeros(64984)}, axis)
    with pytest.raises(ValueError, match="no map"):
        write_dscalar(path, {}, axis)
    with pytest.raises(ValueError, match="needs the place of each voxel"):
        write_dscalar(path, {"r": np.zeros(4)}, VoxelAxis.from_count(4))
    assert path.read_bytes() == b"old"

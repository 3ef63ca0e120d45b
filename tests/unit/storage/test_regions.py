"""Regions on the voxels of a study."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, LabelAxis, ScalarAxis
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable

from hpcenc.storage.atlas import GLASSER_GROUPS, MASKS
from hpcenc.storage.errors import StudyError
from hpcenc.storage.geometry import cortical_axis, glasser_labels, grayordinates_axis
from hpcenc.storage.regions import BUILT_IN, load_regions, region_means, study_regions
from hpcenc.storage.voxels import CORTEX_LEFT, CORTEX_RIGHT, VoxelAxis

SMALL = {CORTEX_LEFT: 12, CORTEX_RIGHT: 10}


@pytest.fixture(scope="module")
def axis() -> VoxelAxis:
    return cortical_axis()


def small_axis(left: list[int], right: list[int]) -> VoxelAxis:
    """Some vertices of two tiny surfaces."""
    models = BrainModelAxis.from_surface(left, SMALL[CORTEX_LEFT], "CORTEX_LEFT")
    models += BrainModelAxis.from_surface(right, SMALL[CORTEX_RIGHT], "CORTEX_RIGHT")
    return VoxelAxis.from_cifti(models)


def test_every_area_is_in_one_group() -> None:
    areas = {name.partition("_")[2] for name in glasser_labels()[1] if name}
    listed = Counter(area for group in GLASSER_GROUPS.values() for area in group.split())
    assert len(areas) == 180
    assert set(listed) == areas
    assert set(listed.values()) == {1}
    assert len(GLASSER_GROUPS) == 22
    assert set(" ".join(MASKS.values()).split()) <= areas


@pytest.mark.parametrize(("name", "n_regions"), [
    ("masks", 4), ("glasser-groups", 22), ("glasser", 360), ("yeo7", 7), ("yeo17", 17),
])  # fmt: skip
def test_built_in_sets_cover_the_cortex(name: str, n_regions: int, axis: VoxelAxis) -> None:
    regions = load_regions(axis, name, Path())
    assert len(regions.masks) == n_regions
    assert all(mask.any() for mask in regions.masks.values())
    covered = np.sum(list(regions.masks.values()), axis=0)
    if name != "masks":
        assert covered.max() == 1
        assert (covered == 0).mean() < 0.02
    assert regions.source == BUILT_IN[name]


def test_groups_are_unions_of_their_areas(axis: VoxelAxis) -> None:
    areas = load_regions(axis, "glasser", Path()).masks
    groups = load_regions(axis, "glasser-groups", Path()).masks
    for group, listed in GLASSER_GROUPS.items():
        union = np.any([areas[f"{side}_{area}"] for area in listed.split() for side in "LR"], axis=0)
        np.testing.assert_array_equal(groups[group], union)


def test_masks_lie_where_their_names_say(axis: VoxelAxis) -> None:
    areas = load_regions(axis, "glasser", Path()).masks
    masks = load_regions(axis, "masks", Path()).masks
    assert masks["visual"][areas["L_V1"]].all()
    assert masks["auditory"][areas["R_A1"]].all()
    assert masks["superior temporal"][areas["L_STSdp"]].all()
    assert masks["prefrontal"][areas["R_46"]].all()
    assert not masks["visual"][areas["L_A1"]].any()
    both = masks["auditory"] & masks["superior temporal"]
    np.testing.assert_array_equal(
        both, np.any([areas[f"{side}_{area}"] for area in ("A4", "A5") for side in "LR"], axis=0)
    )


def test_regions_follow_the_order_of_the_study_and_leave_the_subcortex_out(axis: VoxelAxis) -> None:
    whole = grayordinates_axis()
    order = np.random.default_rng(0).permutation(whole.n_voxels)
    shuffled = whole.take(order)
    for name, mask in load_regions(axis, "yeo7", Path()).masks.items():
        expected = np.concatenate([mask, np.zeros(whole.n_voxels - axis.n_voxels, dtype=bool)])[order]
        np.testing.assert_array_equal(load_regions(shuffled, "yeo7", Path()).masks[name], expected)


def test_built_in_sets_need_the_32k_surface() -> None:
    with pytest.raises(
        StudyError, match=r"'masks' is of the fs_LR 32k surface; the study's surfaces are: .* 12 vert"
    ):
        load_regions(small_axis([0], [1]), "masks", Path())
    with pytest.raises(StudyError, match=r"surfaces are: none"):
        load_regions(VoxelAxis.from_count(5), "yeo7", Path())


def test_a_label_file_of_cifti_is_matched_by_vertex(tmp_path: Path) -> None:
    models = BrainModelAxis.from_surface([1, 3, 5, 7], 12, "CORTEX_LEFT")
    models += BrainModelAxis.from_surface([0, 2], 10, "CORTEX_RIGHT")
    table = {
        0: ("???", (0, 0, 0, 0)),
        4: ("one", (1, 0, 0, 1)),
        9: ("two", (0, 1, 0, 1)),
        11: ("none", (0, 0, 1, 1)),
    }
    keys = np.array([[4, 9, 0, 4, 9, 9]], np.float32)
    path = tmp_path / "mine.dlabel.nii"
    nibabel.Cifti2Image(keys, (LabelAxis(["labels"], [table]), models)).to_filename(path)
    regions = load_regions(small_axis([7, 3, 2, 1], [2, 9]), "mine.dlabel.nii", tmp_path)
    assert regions.name == "mine"
    assert {name: mask.tolist() for name, mask in regions.masks.items()} == {
        "one": [True, False, False, True, False, False],
        "two": [False, True, False, False, True, False],
        "none": [False] * 6,
    }
    assert regions.digest() == load_regions(small_axis([7, 3, 2, 1], [2, 9]), str(path), Path()).digest()


def write_dlabel(path: Path, names: dict[int, str], *maps: list[int]) -> None:
    """Maps of keys on vertices 0 and 1 of either tiny surface."""
    path.parent.mkdir(exist_ok=True)
    models = BrainModelAxis.from_surface([0, 1], SMALL[CORTEX_LEFT], "CORTEX_LEFT")
    models += BrainModelAxis.from_surface([0, 1], SMALL[CORTEX_RIGHT], "CORTEX_RIGHT")
    table = {key: (name, (0, 0, 0, 0)) for key, name in names.items()}
    labels = LabelAxis([f"map {index}" for index in range(len(maps))], [table] * len(maps))
    nibabel.Cifti2Image(np.array(maps, np.float32), (labels, models)).to_filename(path)


def test_labels_of_one_name_are_one_region_of_a_cifti_file_too(tmp_path: Path) -> None:
    write_dlabel(tmp_path / "mine.dlabel.nii", {0: "???", 1: "V1", 2: "A1", 101: "V1"}, [1, 2, 101, 0])
    regions = load_regions(small_axis([0, 1], [0, 1]), "mine.dlabel.nii", tmp_path)
    assert {name: mask.tolist() for name, mask in regions.masks.items()} == {
        "V1": [True, False, True, False],
        "A1": [False, True, False, False],
    }


def test_files_of_several_maps_are_refused(tmp_path: Path) -> None:
    study = small_axis([0, 1], [0, 1])
    write_dlabel(tmp_path / "two.dlabel.nii", {1: "one"}, [1, 1, 1, 1], [0, 0, 0, 1])
    with pytest.raises(StudyError, match=r"has 2 maps \(map 0, map 1\), expected one.*-cifti-merge"):
        load_regions(study, "two.dlabel.nii", tmp_path)
    for side, count in (("L", 12), ("R", 10)):
        write_gifti(tmp_path / f"two.{side}.label.gii", [1] * count, {1: "one"}, n_maps=2)
    with pytest.raises(StudyError, match=r"two.L.label.gii: has 2 maps \(.*, expected one.*-label-merge"):
        load_regions(study, "two.{hemi}.label.gii", tmp_path)


def test_files_without_any_region_of_the_study_are_refused(tmp_path: Path) -> None:
    study = small_axis([0, 1], [0, 1])
    write_dlabel(tmp_path / "unnamed.dlabel.nii", {0: "???", 3: "???"}, [0, 3, 3, 0])
    write_dlabel(tmp_path / "unused.dlabel.nii", {0: "???", 3: "one"}, [0, 0, 0, 0])
    for name, found in (("unnamed", "0 '???', 3 '???'"), ("unused", "0 '???', 3 'one'")):
        with pytest.raises(StudyError) as refused:
            load_regions(study, f"{name}.dlabel.nii", tmp_path)
        assert f"{name}.dlabel.nii: expected labels beside key 0" in str(refused.value)
        assert f"found labels: {found}." in str(refused.value)
    for side, count in (("L", 12), ("R", 10)):
        write_gifti(tmp_path / f"x.{side}.label.gii", [0] * count, {0: "???"})
    with pytest.raises(StudyError, match=r"x.L.label.gii and .*x.R.label.gii: expected labels"):
        load_regions(study, "x.{hemi}.label.gii", tmp_path)


def test_sets_of_one_name_are_refused_with_both_paths(axis: VoxelAxis, tmp_path: Path) -> None:
    names = ["a/rois.dlabel.nii", "b/rois.dlabel.nii"]
    for name in names:
        write_dlabel(tmp_path / name, {1: "one"}, [1, 1, 1, 1])
    study = small_axis([0, 1], [0, 1])
    with pytest.raises(StudyError, match=r"'a/rois.dlabel.nii' and 'b/rois.dlabel.nii' are both the set 'ro"):
        study_regions(study, names, tmp_path)
    assert [each.name for each in study_regions(study, names[:1], tmp_path)] == ["rois"]
    with pytest.raises(StudyError, match="'yeo7' and 'yeo7' are both the set 'yeo7'"):
        study_regions(axis, ["yeo7", "masks", "yeo7"], tmp_path)


def write_gifti(
    path: Path, keys: list[int], names: dict[int, str], structure: str = "", n_maps: int = 1
) -> None:
    table = GiftiLabelTable()
    for key, name in names.items():
        label = GiftiLabel(key)
        label.label = name
        table.labels.append(label)
    meta = {"AnatomicalStructurePrimary": structure} if structure else {}
    array = GiftiDataArray(np.array(keys, np.int32), intent="NIFTI_INTENT_LABEL", meta=meta)
    GiftiImage(labeltable=table, darrays=[array] * n_maps).to_filename(path)


def test_a_pair_of_gifti_files_makes_one_set(tmp_path: Path) -> None:
    left, right = [0] * 12, [0] * 10
    left[3], right[2], right[9] = 1, 1, 2
    write_gifti(tmp_path / "lab.L.label.gii", left, {0: "???", 1: "one"}, "CortexLeft")
    write_gifti(tmp_path / "lab.R.label.gii", right, {0: "???", 1: "one", 2: "two"}, "CortexRight")
    regions = load_regions(small_axis([7, 3], [2, 9]), "lab.{hemi}.label.gii", tmp_path)
    assert regions.name == "lab"
    assert {name: mask.tolist() for name, mask in regions.masks.items()} == {
        "one": [False, True, True, False],
        "two": [False, False, False, True],
    }


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    study = small_axis([7, 3], [2, 9])
    for name, said in [
        ("brodmann", "no set 'brodmann'; expected masks, glasser-groups"),
        ("mine.dlabel.nii", "no file at"),
        ("lab.label.gii", "no set 'lab.label.gii'"),
    ]:
        with pytest.raises(StudyError, match=said):
            load_regions(study, name, tmp_path)
    (tmp_path / "broken.dlabel.nii").write_bytes(b"nothing")
    with pytest.raises(StudyError, match="cannot be read as a CIFTI label file"):
        load_regions(study, "broken.dlabel.nii", tmp_path)
    models = BrainModelAxis.from_surface([0, 1], SMALL[CORTEX_LEFT], "CORTEX_LEFT")
    scalars = nibabel.Cifti2Image(np.zeros((1, 2), np.float32), (ScalarAxis(["thickness"]), models))
    scalars.to_filename(tmp_path / "thickness.dlabel.nii")
    with pytest.raises(StudyError, match="expected maps of labels, found a ScalarAxis"):
        load_regions(study, "thickness.dlabel.nii", tmp_path)
    write_gifti(tmp_path / "x.L.label.gii", [0] * 11, {0: "???", 1: "one"})
    write_gifti(tmp_path / "x.R.label.gii", [0] * 10, {0: "???", 1: "one"})
    with pytest.raises(StudyError, match="has 11 vertices, the study's 12"):
        load_regions(study, "x.{hemi}.label.gii", tmp_path)
    write_gifti(tmp_path / "y.L.label.gii", [0] * 12, {1: "one"}, "CortexRight")
    write_gifti(tmp_path / "y.R.label.gii", [0] * 10, {1: "one"})
    with pytest.raises(StudyError, match="its metadata say CIFTI_STRUCTURE_CORTEX_RIGHT"):
        load_regions(study, "y.{hemi}.label.gii", tmp_path)


def test_means_are_over_finite_values() -> None:
    masks = {
        "a": np.array([True, True, False, True]),
        "b": np.array([False, True, False, False]),
        "c": np.zeros(4, bool),
    }
    found = region_means(np.array([1.0, np.nan, 9.0, 2.0]), masks)
    assert found["a"] == (1.5, 2)
    assert np.isnan(found["b"][0])
    assert found["b"][1] == found["c"][1] == 0

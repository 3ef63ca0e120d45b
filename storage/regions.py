"""Regions of the cortex on a study's own voxels: built-in sets, and the user's label files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.cifti2 import LabelAxis
from numpy.typing import NDArray

from hpcenc.storage import atlas
from hpcenc.storage.digests import digest
from hpcenc.storage.errors import StudyError
from hpcenc.storage.geometry import cortical_axis
from hpcenc.storage.voxels import CORTEX_LEFT, CORTEX_RIGHT, VoxelAxis, load_cifti

Masks = dict[str, NDArray[np.bool_]]

GLASSER = "Glasser et al. (2016), MMP 1.0"
BUILT_IN: Mapping[str, str] = {
    "masks": f"unions of areas of {GLASSER}",
    "glasser-groups": f"the 22 groups of areas of {GLASSER}",
    "glasser": GLASSER,
    "yeo7": "Yeo et al. (2011), 7 networks",
    "yeo17": "Yeo et al. (2011), 17 networks",
}
"""Sets that come with hpcenc, and where they are from; the first is the default one."""

CIFTI_SUFFIX, GIFTI_SUFFIX = ".dlabel.nii", ".label.gii"
HEMISPHERE = "{hemi}"
"""Stands for L or R in the path of a pair of GIFTI files."""

_NO_REGION = ("???", "")
_GIFTI_STRUCTURES = {"CortexLeft": CORTEX_LEFT, "CortexRight": CORTEX_RIGHT}


@dataclass(frozen=True, eq=False)
class RegionSet:
    """Named regions of a study's voxels.

    Attributes
    ----------
    name : str
        ``masks``, or the stem of a file.
    masks : dict of str to array of bool, shape (n_voxels,)
        Voxels of each region, in the order of the set. A voxel may be in none, or in several; a region of
        which the study has no voxel is empty.
    source : str
        Where it is from, in words.
    """

    name: str
    masks: Masks
    source: str

    def digest(self) -> str:
        """Digest of its names and voxels."""
        members = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in self.masks.values()))
        return digest({"labels": list(self.masks), "members": members.hexdigest()})


DEFAULT_SETS = ("masks", "glasser-groups")
"""Sets of a study that names none, where it is on their surface."""


def study_regions(axis: VoxelAxis, named: Sequence[str] | None, folder: Path) -> tuple[RegionSet, ...]:
    """Sets of regions of a study.

    Parameters
    ----------
    axis : VoxelAxis
    named : sequence of str or None
        As the study names them; by default `DEFAULT_SETS`, and none at all on another surface than theirs.
    folder : Path
        Of the study file.

    Raises
    ------
    StudyError
        All of what is wrong with those that are named; two of one name among it.
    """
    if named is None:
        standard = cortical_axis().n_vertices
        fits = all(axis.n_vertices.get(structure) == count for structure, count in standard.items())
        named = DEFAULT_SETS if fits else ()
    found: dict[str, RegionSet] = {}
    named_by: dict[str, str] = {}
    problems: list[str] = []
    for name in named:
        try:
            regions = load_regions(axis, name, folder)
        except StudyError as error:
            problems += error.problems
            continue
        if regions.name in found:
            problems.append(
                f"regions: {named_by[regions.name]!r} and {name!r} are both the set {regions.name!r}; "
                "expected one name for each. Rename one of the files, or leave it out."
            )
        found[regions.name], named_by[regions.name] = regions, name
    if problems:
        raise StudyError(problems)
    return tuple(found.values())


def load_regions(axis: VoxelAxis, name: str, folder: Path) -> RegionSet:
    """A set of regions on the voxels of a study.

    Parameters
    ----------
    axis : VoxelAxis
        Of the study. Vertices are found by structure and number, whatever the order of either file.
    name : str
        One of `BUILT_IN`, or the path of a ``.dlabel.nii``; of a ``.label.gii`` for each hemisphere, with
        ``{hemi}`` in the place of L and R. A file has one map; labels of one name are one region.
    folder : Path
        Where relative paths start.

    Raises
    ------
    StudyError
        If there is no such set or file, it has several maps, none of its labels is on a voxel of the study,
        or it is of another surface than the study.
    """
    if name in BUILT_IN:
        return RegionSet(name, _from_standard(axis, name), BUILT_IN[name])
    if name.endswith(CIFTI_SUFFIX):
        path = _existing(folder, name)
        return RegionSet(path.name.removesuffix(CIFTI_SUFFIX), _from_cifti(axis, path), path.name)
    if name.endswith(GIFTI_SUFFIX) and HEMISPHERE in name:
        paths = [_existing(folder, name.replace(HEMISPHERE, side)) for side in "LR"]
        stem = re.sub(r"[._-]*\{hemi\}[._-]*", ".", Path(name).name.removesuffix(GIFTI_SUFFIX)).strip(".")
        return RegionSet(stem, _from_gifti(axis, paths), " and ".join(path.name for path in paths))
    raise StudyError(
        f"regions: no set {name!r}; expected {', '.join(BUILT_IN)}, a file that ends in {CIFTI_SUFFIX}, "
        f"or a pair that ends in {GIFTI_SUFFIX} with {HEMISPHERE} in the place of L and R"
    )


def region_means(
    values: NDArray[np.floating[Any]], masks: Mapping[str, NDArray[np.bool_]]
) -> dict[str, tuple[float, int]]:
    """Mean of the finite values of each region, and how many there are.

    Parameters
    ----------
    values : array of shape (n_voxels,)
    masks : mapping of str to array of bool, shape (n_voxels,)

    Returns
    -------
    dict of str to (mean, count)
        NaN and 0 where no value is finite.
    """
    finite = np.isfinite(values)
    found = {}
    for name, mask in masks.items():
        of_region = values[mask & finite]
        found[name] = (
            float(of_region.mean(dtype=np.float64)) if of_region.size else float("nan"),
            of_region.size,
        )
    return found


def _from_standard(axis: VoxelAxis, name: str) -> Masks:
    standard = cortical_axis()
    if any(axis.n_vertices.get(structure) != count for structure, count in standard.n_vertices.items()):
        surfaces = ", ".join(f"{key} of {count} vertices" for key, count in axis.n_vertices.items()) or "none"
        raise StudyError(
            f"regions: {name!r} is of the fs_LR 32k surface; the study's surfaces are: {surfaces}. "
            f"Give the regions as a file of the study's own surface ({CIFTI_SUFFIX}, {GIFTI_SUFFIX})."
        )
    return {region: _moved(mask, standard, axis) for region, mask in _standard_masks(name).items()}


def _standard_masks(name: str) -> Masks:
    if name.startswith("yeo"):
        return atlas.yeo_networks(int(name.removeprefix("yeo")))
    if name == "masks":
        return atlas.masks()
    return atlas.glasser_areas() if name == "glasser" else atlas.glasser_groups()


def _moved(mask: NDArray[np.bool_], source: VoxelAxis, axis: VoxelAxis) -> NDArray[np.bool_]:
    """A mask of the vertices of one axis on another one of the same surfaces; volume voxels are in none."""
    moved = np.zeros(axis.n_voxels, dtype=bool)
    for structure in source.n_vertices:
        if structure not in axis.names:
            continue
        whole = np.zeros(source.n_vertices[structure], dtype=bool)
        there = source.structure == source.names.index(structure)
        whole[source.vertex[there & mask]] = True
        here = (axis.structure == axis.names.index(structure)) & (axis.vertex >= 0)
        moved[here] = whole[axis.vertex[here]]
    return moved


def _from_cifti(axis: VoxelAxis, path: Path) -> Masks:
    try:
        image = load_cifti(path)
        labels, models = image.header.get_axis(0), image.header.get_axis(1)
        keys = np.asarray(image.dataobj[0]).astype(np.int64)
        source = VoxelAxis.from_cifti(models)
    except Exception as error:  # what a parser raises of another kind of file is anything
        raise StudyError(f"regions: {path}: cannot be read as a CIFTI label file: {error}") from error
    if not isinstance(labels, LabelAxis):
        kind = type(labels).__name__
        raise StudyError(f"regions: {path}: expected maps of labels, found a {kind}. Give a label file.")
    maps, table = [str(name) for name in labels.name], labels.label[0]
    if len(maps) > 1:
        command = "wb_command -cifti-merge NEW.dlabel.nii -cifti OLD.dlabel.nii -column 1"
        raise _several_maps(path, maps, command)
    _check_surfaces(axis, source.n_vertices, path)
    names = {int(key): str(label) for key, (label, _) in table.items()}
    masks: Masks = {}
    for key, name in _regions(names).items():
        moved = _moved(keys == key, source, axis)
        masks[name] = masks[name] | moved if name in masks else moved
    return _any_region(masks, [path], names)


def _from_gifti(axis: VoxelAxis, paths: list[Path]) -> Masks:
    import nibabel

    masks: Masks = {}
    named: dict[int, str] = {}
    for path, side in zip(paths, (CORTEX_LEFT, CORTEX_RIGHT), strict=True):
        try:
            image = nibabel.load(path)
            maps = [str((each.meta or {}).get("Name", "unnamed")) for each in image.darrays]
            keys = np.asarray(image.darrays[0].data).astype(np.int64)
            names = {int(key): str(name) for key, name in image.labeltable.get_labels_as_dict().items()}
        except Exception as error:
            raise StudyError(f"regions: {path}: cannot be read as a GIFTI label file: {error}") from error
        if len(maps) > 1:
            command = "wb_command -label-merge NEW.label.gii -label OLD.label.gii -column 1"
            raise _several_maps(path, maps, command)
        said = _GIFTI_STRUCTURES.get(
            (image.darrays[0].meta or {}).get("AnatomicalStructurePrimary", ""), side
        )
        if said != side:
            raise StudyError(f"regions: {path}: expected {side}, and its metadata say {said}")
        _check_surfaces(axis, {side: len(keys)}, path)
        for key, name in _regions(names).items():
            mask = masks.setdefault(name, np.zeros(axis.n_voxels, dtype=bool))
            if side in axis.names:
                here = (axis.structure == axis.names.index(side)) & (axis.vertex >= 0)
                mask[here] |= keys[axis.vertex[here]] == key
        named |= names
    return _any_region(masks, paths, named)


def _regions(names: Mapping[int, str]) -> dict[int, str]:
    """Labels that are regions: not that of nothing, which has key 0 or is called ``???``."""
    return {key: name for key, name in names.items() if key != 0 and name not in _NO_REGION}


def _several_maps(path: Path, maps: Sequence[str], command: str) -> StudyError:
    return StudyError(
        f"regions: {path}: has {len(maps)} maps ({', '.join(maps)}), expected one. Take one out, such as the "
        f"first: `{command}`"
    )


def _any_region(masks: Masks, paths: Sequence[Path], names: Mapping[int, str]) -> Masks:
    """The regions, if there are any."""
    if not any(mask.any() for mask in masks.values()):
        found = ", ".join(f"{key} {name!r}" for key, name in list(names.items())[:5]) or "none"
        raise StudyError(
            f"regions: {' and '.join(map(str, paths))}: expected labels beside key 0 and '???', and vertices "
            f"of the study that have them; found labels: {found}. Give another file, or leave it out."
        )
    return masks


def _check_surfaces(axis: VoxelAxis, found: Mapping[str, int], path: Path) -> None:
    for structure, count in found.items():
        expected = axis.n_vertices.get(structure)
        if expected is not None and expected != count:
            raise StudyError(
                f"regions: {path}: {structure} has {count} vertices, the study's {expected}. "
                "Resample the labels to the study's surface."
            )
    if not set(found) & set(axis.n_vertices):
        raise StudyError(
            f"regions: {path}: is of {', '.join(found) or 'no surface'}, the study of "
            f"{', '.join(axis.n_vertices) or 'no surface'}"
        )


def _existing(folder: Path, name: str) -> Path:
    path = (folder / Path(name).expanduser()).resolve()
    if not path.is_file():
        raise StudyError(f"regions: no file at {path}")
    return path

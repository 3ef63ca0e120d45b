"""The voxel axis: which vertex or voxel each column of BOLD is, in the data's own order."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.cifti2 import BrainModelAxis
from numpy.typing import ArrayLike, NDArray

from hpcenc.storage.digests import digest

CORTEX_LEFT = "CIFTI_STRUCTURE_CORTEX_LEFT"
CORTEX_RIGHT = "CIFTI_STRUCTURE_CORTEX_RIGHT"
CORTEX = (CORTEX_LEFT, CORTEX_RIGHT, "CIFTI_STRUCTURE_CORTEX")
"""CIFTI names of the cerebral cortex."""


@dataclass(frozen=True, eq=False)
class VoxelAxis:
    """What each voxel of a study is, in the order of its BOLD files.

    A study on CIFTI files keeps their structures, vertices and voxels; one on plain arrays knows
    only how many voxels there are. Two axes are the same where their digests are.
    """

    structure: NDArray[np.int8]
    """(n_voxels,) index into ``names``; -1 where nothing is known."""
    vertex: NDArray[np.int32]
    """(n_voxels,) vertex of the structure's surface; -1 for voxels of a volume."""
    ijk: NDArray[np.int32]
    """(n_voxels, 3) indices into the volume; -1 for vertices."""
    names: tuple[str, ...] = ()
    """CIFTI names of the structures present, in the order of their first voxel."""
    n_vertices: dict[str, int] = field(default_factory=dict)
    """Vertices of each structure's whole surface, medial wall included: 32,492 for fs_LR 32k."""
    affine: NDArray[np.float64] | None = None
    """(4, 4) millimetres of the volume's indices; None without volume voxels."""
    volume_shape: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.structure)

    @property
    def n_voxels(self) -> int:
        """Voxels of the axis, vertices counted alike."""
        return len(self.structure)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the number of voxels is known."""
        return not self.names

    def digest(self) -> str:
        """Digest of everything the axis says; the same on every machine."""
        # Adding 0.0 makes -0.0, which is the same place, the same text as 0.0.
        affine = None if self.affine is None else (np.round(self.affine, 4) + 0.0).tolist()
        return digest(
            {
                "names": self.names,
                "structure": _hash(self.structure, "<i1"),
                "vertex": _hash(self.vertex, "<i4"),
                "ijk": _hash(self.ijk, "<i4"),
                "n_vertices": self.n_vertices,
                "affine": affine,
                "volume_shape": self.volume_shape,
            }
        )

    def positions(self, grayordinates: Literal["cortex", "all"]) -> NDArray[np.int64]:
        """Where the voxels that a study asks for lie on this axis.

        Parameters
        ----------
        grayordinates : {"cortex", "all"}
            What the study asks for. A plain axis has no structures, so that ``"cortex"`` is all of it.

        Returns
        -------
        array of shape (n_selected,)
            Rising positions.

        Raises
        ------
        ValueError
            If the axis has structures, but no cortex.
        """
        if grayordinates == "all" or self.is_plain:
            return np.arange(self.n_voxels, dtype=np.int64)
        cortical = [index for index, name in enumerate(self.names) if name in CORTEX]
        if not cortical:
            found = ", ".join(self.names)
            raise ValueError(f"no cortex among the structures {found}; set bold.grayordinates = 'all'")
        return np.flatnonzero(np.isin(self.structure, cortical)).astype(np.int64)

    def take(self, positions: NDArray[np.int64]) -> VoxelAxis:
        """Axis of the voxels at some positions, in that order."""
        structure, vertex, ijk = self.structure[positions], self.vertex[positions], self.ijk[positions]
        order = list(dict.fromkeys(structure[structure >= 0].tolist()))
        renumber = np.full(len(self.names) + 1, -1, np.int8)  # the last one is for -1
        renumber[order] = np.arange(len(order))
        names = tuple(self.names[index] for index in order)
        with_volume = bool((ijk >= 0).any())
        return VoxelAxis(
            structure=renumber[structure],
            vertex=vertex,
            ijk=ijk,
            names=names,
            n_vertices={name: self.n_vertices[name] for name in names if name in self.n_vertices},
            affine=self.affine if with_volume else None,
            volume_shape=self.volume_shape if with_volume else None,
        )

    def cortex(self) -> VoxelAxis:
        """Axis of the cortical voxels; a plain axis has no structures and stays whole."""
        return self.take(self.positions("cortex"))

    def surface(self, values: ArrayLike, structure: str) -> NDArray[np.floating[Any]]:
        """Values on the whole surface of a structure.

        Parameters
        ----------
        values : array of shape (..., n_voxels)
            Values on this axis.
        structure : str
            CIFTI name of a structure with a surface, as `CORTEX_LEFT`.

        Returns
        -------
        array of shape (..., n_vertices)
            Values at their vertices, NaN elsewhere: on the medial wall. Integers become float64.

        Raises
        ------
        ValueError
            If the values are of another axis, or no voxel of this one lies on such a surface.
        """
        values = np.asarray(values)
        if values.shape[-1:] != (self.n_voxels,):
            raise ValueError(
                f"expected values of {self.n_voxels} voxels, found an array of shape {values.shape}"
            )
        if structure not in self.n_vertices:
            surfaces = ", ".join(self.n_vertices) or "none"
            raise ValueError(f"the voxel axis has no surface {structure!r}; its surfaces are: {surfaces}")
        here = (self.structure == self.names.index(structure)) & (self.vertex >= 0)
        dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64
        whole = np.full((*values.shape[:-1], self.n_vertices[structure]), np.nan, dtype)
        whole[..., self.vertex[here]] = values[..., here]
        return whole

    @classmethod
    def from_count(cls, n_voxels: int) -> VoxelAxis:
        """Axis of plain arrays, of which only the number of voxels is known."""
        nothing = np.full(n_voxels, -1, np.int32)
        return cls(nothing.astype(np.int8), nothing, np.full((n_voxels, 3), -1, np.int32))

    @classmethod
    def from_cifti(cls, axis: BrainModelAxis) -> VoxelAxis:
        """Axis of the brain models of a CIFTI-2 file."""
        index: dict[str, int] = {}
        structure = [index.setdefault(name, len(index)) for name in axis.name.tolist()]
        on_surface = axis.surface_mask  # nibabel makes it anew each time
        with_volume = not bool(on_surface.all())
        return cls(
            structure=np.array(structure, np.int8),
            vertex=np.where(on_surface, axis.vertex, -1).astype(np.int32),
            ijk=np.where(on_surface[:, None], -1, axis.voxel).astype(np.int32),
            names=tuple(index),
            n_vertices={name: int(axis.nvertices[name]) for name in index if name in axis.nvertices},
            affine=np.array(axis.affine, np.float64) if with_volume else None,
            volume_shape=_shape(axis.volume_shape) if with_volume else None,
        )

    def to_cifti(self) -> BrainModelAxis:
        """Brain models of a CIFTI-2 file.

        Raises
        ------
        ValueError
            If the axis is plain: CIFTI needs to know where each voxel lies.
        """
        if self.is_plain:
            raise ValueError(f"a CIFTI file needs the place of each voxel; these {self.n_voxels} have none")
        return BrainModelAxis(
            name=np.array(self.names)[self.structure],
            voxel=self.ijk,
            vertex=self.vertex,
            affine=self.affine,
            volume_shape=self.volume_shape,
            nvertices=self.n_vertices,
        )

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """What a store holds of the axis: arrays along voxels, and attributes of plain values."""
        arrays: dict[str, NDArray[Any]]
        arrays = {"structure": self.structure, "vertex": self.vertex, "ijk": self.ijk}
        attributes = {
            "structure_names": list(self.names),
            "n_vertices": dict(self.n_vertices),
            "affine": None if self.affine is None else self.affine.tolist(),
            "volume_shape": None if self.volume_shape is None else list(self.volume_shape),
        }
        return arrays, attributes

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], attributes: Mapping[str, Any]) -> VoxelAxis:
        """Axis of what `to_arrays` gave; keys of others are passed over."""
        affine = attributes["affine"]
        return cls(
            structure=np.asarray(arrays["structure"], np.int8),
            vertex=np.asarray(arrays["vertex"], np.int32),
            ijk=np.asarray(arrays["ijk"], np.int32),
            names=tuple(attributes["structure_names"]),
            n_vertices={name: int(count) for name, count in attributes["n_vertices"].items()},
            affine=None if affine is None else np.asarray(affine, np.float64),
            volume_shape=_shape(attributes["volume_shape"]),
        )


def load_cifti(path: Path) -> Any:
    """CIFTI-2 image of a file: its XML is parsed (0.5 s of 91,282 grayordinates), its data stay on disk.

    Raises
    ------
    nibabel.filebasedimages.ImageFileError
        If the file is no CIFTI-2 file.
    OSError
        If it cannot be read.
    """
    return nibabel.Cifti2Image.from_filename(path)


def _hash(array: NDArray[Any], dtype: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype=dtype).tobytes()).hexdigest()


def _shape(shape: Any) -> tuple[int, int, int] | None:
    if shape is None:
        return None
    i, j, k = (int(size) for size in shape)
    return i, j, k


def _is_news(record: logging.LogRecord) -> bool:
    # CIFTI has no voxel sizes in its binary header, so nibabel would say this of every file.
    return not record.getMessage().startswith("pixdim[1,2,3] should be non-zero")


logging.getLogger("nibabel.global").addFilter(_is_news)

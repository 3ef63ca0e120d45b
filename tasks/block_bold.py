"""BOLD of one subject as tasks read it: voxel block by voxel block, all runs one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks import at_hand

if TYPE_CHECKING:
    from hpcenc.storage.bold import BoldHeader
    from hpcenc.storage.store import Store


@dataclass(frozen=True, slots=True)
class StoredBold:
    """BOLD of one run that lies in the store, on the study's own axis.

    Attributes
    ----------
    array : str
        Its path, (n_trs, n_voxels), float32.
    """

    array: str
    n_trs: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        return np.dtype(np.float32)


@dataclass(frozen=True)
class BlockBold:
    """Where the BOLD of one subject lies.

    Attributes
    ----------
    runs : tuple of BoldHeader or StoredBold
        Files of the runs present, in the order of their rows, or arrays of the store.
    onsets : tuple of int
        First row of each run.
    grayordinates : {"cortex", "all"}
        Those of the study, on the files' own axis.
    """

    runs: tuple[BoldHeader | StoredBold, ...]
    onsets: tuple[int, ...]
    grayordinates: Literal["cortex", "all"]

    @property
    def n_trs(self) -> int:
        """Rows of all runs together."""
        return sum(run.n_trs for run in self.runs)

    def read(self, store: Store, voxels: slice) -> NDArray[np.float32]:
        """BOLD of one block, (n_trs, n_block)."""
        from hpcenc.storage.bold import read_block

        bold = np.empty((self.n_trs, voxels.stop - voxels.start), np.float32)
        for run, onset in zip(self.runs, self.onsets, strict=True):
            if isinstance(run, StoredBold):
                values = store.read(run.array, (slice(None), voxels))
            else:
                values = read_block(run, voxels, positions_in(run, self.grayordinates))
            bold[onset : onset + run.n_trs] = values
        return bold


@dataclass(frozen=True)
class _Axes:
    """Axes of BOLD files, and one file that has them."""

    name: str
    path: Path = field(compare=False)


def positions_in(header: BoldHeader, grayordinates: Literal["cortex", "all"]) -> NDArray[np.int64]:
    """Where the study's voxels lie in a file.

    The XML costs half a second, which files of the same axes, blocks and slots share.
    """
    return _positions(_Axes(header.axes or str(header.path), header.path), grayordinates)


@at_hand.made_once(maxsize=64)
def _positions(axes: _Axes, grayordinates: Literal["cortex", "all"]) -> NDArray[np.int64]:
    from hpcenc.storage.bold import read_axes

    return read_axes(axes.path)[0].positions(grayordinates)

"""Noise ceilings of one voxel block, made by the fit task that has its BOLD at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.tasks.ceiling import STATISTICS, Showings, ceilings_of_block, scale_runs
from hpcenc.tasks.folds import RunRows
from hpcenc.tasks.records import Fact, Unit

if TYPE_CHECKING:
    from hpcenc.storage.store import Store


@dataclass(frozen=True, slots=True)
class CeilingUnit:
    """Noise ceilings of one block.

    Attributes
    ----------
    runs : tuple of RunRows
        Runs present.
    rest_tail : int
        TRs that rests reach beyond their ends; -1 where they are kept.
    showings : tuple of Showings
    needs : tuple of Unit
        BOLD that is made before.
    """

    unit: Unit
    runs: tuple[RunRows, ...]
    rest_tail: int
    showings: tuple[Showings, ...]
    needs: tuple[Unit, ...] = ()

    def work(self, store: Store, bold: NDArray[np.float32], voxels: slice) -> Mapping[str, Fact]:
        """Find the ceilings and write them; gives facts for the record."""
        scaled = scale_runs(bold, self.runs, self.rest_tail)
        values = ceilings_of_block(scaled, self.showings).astype(np.float32)
        store.write(f"{self.unit.group}/values", (slice(None), slice(None), voxels), values)
        share = values[STATISTICS.index("share")]
        return {"voxels": values.shape[-1], "without_ceiling": int((~(share > 0)).any(axis=0).sum())}


def ceiling_arrays(n_groups: int, n_voxels: int, block: int) -> dict[str, ArraySpec]:
    """Noise ceilings of one subject."""
    shape = len(STATISTICS), n_groups
    return {
        "values": ArraySpec(
            (*shape, n_voxels), (*shape, block), "float32", ("statistic", "clip", "voxel"),
            attributes={"statistic": list(STATISTICS)},
        )
    }  # fmt: skip

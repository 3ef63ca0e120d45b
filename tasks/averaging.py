"""The pseudo-subject `average`: mean BOLD over subjects, block by block, with one subject in memory at a
time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.storage.layout import run_array
from hpcenc.tasks.block_bold import positions_in
from hpcenc.tasks.folds import MIN_RUN_ROWS, RunRows, rest_rows
from hpcenc.tasks.records import Fact, UnitTask

if TYPE_CHECKING:
    from hpcenc.storage.bold import BoldHeader
    from hpcenc.storage.store import Store

AVERAGE_VERSION = 2
"""Part of the digest of the mean BOLD: raised by hand whenever it changes."""


@dataclass(frozen=True)
class AveragedRun:
    """One run and the subjects whose BOLD of it is averaged.

    Attributes
    ----------
    rows : RunRows
    tail : int
        TRs that a rest reaches beyond its end; its rows have no part in z-scoring. -1 keeps rests.
    bold : tuple of BoldHeader
        One for each subject who has the run.
    """

    rows: RunRows
    tail: int
    bold: tuple[BoldHeader, ...]

    def used(self) -> NDArray[np.bool_]:
        """Rows that mean and scale of z-scoring come from."""
        if self.tail < 0:
            return np.ones(self.rows.n_trs, dtype=bool)
        kept = ~rest_rows([self.rows], self.tail)
        return kept if np.count_nonzero(kept) >= MIN_RUN_ROWS else np.ones(self.rows.n_trs, dtype=bool)


def average_arrays(runs: tuple[AveragedRun, ...], n_voxels: int, block: int) -> dict[str, ArraySpec]:
    """Mean BOLD of each run, and how many subjects are in it."""
    arrays = {
        run_array(run.rows.name): ArraySpec(
            (run.rows.n_trs, n_voxels), (run.rows.n_trs, block), "float32",
            (f"tr_{run_array(run.rows.name)}", "voxel"),  # runs of one group differ in length
            attributes={"run": run.rows.name},
        )
        for run in runs
    }  # fmt: skip
    arrays["n_subjects"] = ArraySpec(
        (len(runs), n_voxels), (len(runs), block), "int32", ("run", "voxel"),
        attributes={"run": [run.rows.name for run in runs]},
    )  # fmt: skip
    return arrays


@dataclass(frozen=True, kw_only=True)
class AverageBlock(UnitTask):
    """Mean BOLD of one voxel block, all runs.

    Attributes
    ----------
    how : {"zscored", "raw"}
        Whether each subject's run is z-scored before the mean is taken.
    """

    verb = "average"
    voxels: tuple[int, int]
    runs: tuple[AveragedRun, ...]
    grayordinates: Literal["cortex", "all"]
    how: Literal["zscored", "raw"]

    def work(self, store: Store) -> Mapping[str, Fact]:
        """Average the block, run by run, and write it."""
        voxels = slice(*self.voxels)
        counts = np.zeros((len(self.runs), voxels.stop - voxels.start), np.int32)
        for place, run in enumerate(self.runs):
            mean, counts[place] = self._mean(run, voxels)
            store.write(f"{self.unit.group}/{run_array(run.rows.name)}", (slice(None), voxels), mean)
        store.write(f"{self.unit.group}/n_subjects", (slice(None), voxels), counts)
        return {"subjects": max(len(run.bold) for run in self.runs), "fewest_at_a_vertex": int(counts.min())}

    def _mean(self, run: AveragedRun, voxels: slice) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        from hpcenc.storage.bold import read_block

        used = run.used()
        total = np.zeros((run.rows.n_trs, voxels.stop - voxels.start))
        count = np.zeros(total.shape[1], np.int32)
        for header in run.bold:
            bold = read_block(header, voxels, positions_in(header, self.grayordinates))
            add, valid = prepare(bold, used, self.how)
            total += add
            count += valid
        with np.errstate(invalid="ignore"):
            return (total / np.where(count, count, np.nan)).astype(np.float32), count


def prepare(
    bold: NDArray[np.float32], used: NDArray[np.bool_], how: Literal["zscored", "raw"]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """One subject's run as it goes into the mean.

    Parameters
    ----------
    bold : array of shape (n_trs, n_voxels)
    used : array of bool, shape (n_trs,)
        Rows that mean and scale come from.
    how : {"zscored", "raw"}

    Returns
    -------
    values : array of shape (n_trs, n_voxels), float64
        Zero where not valid.
    valid : array of bool, shape (n_voxels,)
        False where a value is not finite or the used rows are constant up to rounding: such a vertex has no
        part in the mean.
    """
    finite = np.isfinite(bold).all(axis=0)
    values = np.where(finite, bold, 0).astype(np.float64)
    mean = values[used].mean(axis=0)
    scale = values[used].std(axis=0)
    valid = finite & (scale > 4 * np.finfo(np.float32).eps * np.abs(mean))
    if how == "zscored":
        values = (values - mean) / np.where(valid, scale, 1)
    return np.where(valid, values, 0), valid

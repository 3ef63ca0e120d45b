"""Every single feature of a space against BOLD at one delay: which tag alone says most of a vertex."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.tasks.operator_task import Rows
from hpcenc.tasks.records import Fact, Unit

if TYPE_CHECKING:
    from hpcenc.storage.spaces import SpaceSource
    from hpcenc.storage.store import Store

SINGLES_VERSION = 3
"""Part of the digest of single features: raised by hand whenever their scores change."""

SINGLE_SCORES = ("r", "chance", "feature", "r_train")
"""What is kept of a voxel: r of its feature over the test rows and the chance level of that, the feature's
place, and the correlation by which it was chosen, over the training rows."""

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SinglesUnit:
    """Single features of one space in one block.

    Attributes
    ----------
    delay : int
        TRs that features are shifted by.
    zscore : {"run", "movie"}
        Of BOLD, as fits have it.
    needs : tuple of Unit
        Features, and BOLD that is made before.
    """

    unit: Unit
    space: SpaceSource
    rows: Rows
    delay: int
    zscore: Literal["run", "movie"]
    needs: tuple[Unit, ...]

    def work(self, store: Store, bold: NDArray[np.float32], voxels: slice) -> Mapping[str, Fact]:
        """Choose each voxel's feature on the training rows of every outer fold, and score it on the test
        rows."""
        from hpcenc.storage.design import shift_within_runs
        from hpcenc.storage.features import read_space
        from hpcenc.tasks.scores import circular_shift_chance, pearson_r
        from hpcenc.tasks.zscoring import run_lengths, zscore_rows

        features = read_space(store, self.space).astype(np.float64)
        folds = self.rows.folds()
        values = np.full((len(SINGLE_SCORES), len(folds), bold.shape[1]), np.nan, np.float32)
        for place, fold in enumerate(folds):
            rows = np.flatnonzero(fold.train), np.flatnonzero(fold.test)
            train, test, valid = zscore_rows(bold, rows, self.rows.onsets, self.zscore)
            # What comes before a run's start is taken for the mean, as in the delayed design: zeros would be
            # the same step in every run.
            centred = features - features[fold.train].mean(axis=0)
            shifted = shift_within_runs(centred, self.delay, self.rows.onsets)
            feature, r_train = choose_features(shifted[fold.train], train)
            course = np.sign(r_train) * shifted[fold.test][:, feature]
            lengths = run_lengths(rows[1], self.rows.onsets)
            chance, _ = circular_shift_chance(course.astype(np.float32), test, lengths)
            found = pearson_r(course, test), chance, feature, r_train
            values[:, place] = np.where(valid & np.isfinite(r_train), found, np.nan)
        store.write(f"{self.unit.group}/scores", (slice(None), slice(None), voxels), values)
        return {"voxels": bold.shape[1], "undefined": int(np.isnan(values[0]).any(axis=0).sum())}


def choose_features(X: Floats, Y: NDArray[np.float32]) -> tuple[NDArray[np.intp], Doubles]:
    """The feature of the largest absolute correlation with each voxel.

    Parameters
    ----------
    X : array of shape (n_rows, n_features)
        Training rows; a constant column is never chosen.
    Y : array of shape (n_rows, n_voxels)

    Returns
    -------
    feature : array of int, shape (n_voxels,)
        Its place; the first of equals.
    r : array of shape (n_voxels,)
        Its correlation, of either sign; NaN where all features or the voxel are constant.
    """
    columns = X - X.mean(axis=0)
    lengths = np.linalg.norm(columns, axis=0)
    varies = lengths > 1e-9 * (1 + np.abs(X).max(axis=0)) * np.sqrt(len(X))
    columns = np.where(varies, columns / np.where(varies, lengths, 1), 0)
    centred = Y.astype(np.float64) - Y.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = columns.T @ (centred / np.where(norms > 0, norms, np.nan))
    sizes = np.where(np.isfinite(r) & varies[:, None], np.abs(r), -1)
    feature = sizes.argmax(axis=0)
    chosen = np.take_along_axis(r, feature[None], axis=0)[0]
    return feature, np.where(sizes.max(axis=0) >= 0, chosen, np.nan)


def singles_arrays(n_folds: int, n_voxels: int, block: int) -> dict[str, ArraySpec]:
    """Scores of single features in one subject."""
    shape = len(SINGLE_SCORES), n_folds
    return {
        "scores": ArraySpec(
            (*shape, n_voxels), (*shape, block), "float32", ("score", "fold", "voxel"),
            attributes={"score": list(SINGLE_SCORES)},
        )
    }  # fmt: skip

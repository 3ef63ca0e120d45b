"""Fit tasks: one voxel block of one subject, fitted with every feature set."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.storage.layout import CHUNK_VOXELS, SCORES, SHARD_VOXELS
from hpcenc.tasks.records import Deadline, Fact, TaskRecord, Unit, run_units

if TYPE_CHECKING:
    from hpcenc.storage.bold import BoldHeader
    from hpcenc.storage.spaces import SpaceSource
    from hpcenc.storage.store import Store
    from hpcenc.tasks.backends import Backend
    from hpcenc.tasks.operators import FoldOperators

FIT_VERSION = 2
"""Part of the digest of fits: raised by hand whenever scores or weights change."""

OPERATOR_BUDGET_BYTES = 2_000_000_000
"""Operators that a worker keeps at hand; memory-mapped ones cost it nothing."""

WeightsKind = Literal["primal", "dual", "none"]


@dataclass(frozen=True)
class VariantSource:
    """What one variant of a feature set is fitted from.

    Attributes
    ----------
    spaces : tuple of SpaceSource
    operators : tuple of (group, folder)
        For each outer fold, the group that readers look at and the cached matrices.
    """

    spaces: tuple[SpaceSource, ...]
    operators: tuple[tuple[str, Path], ...]

    @property
    def n_features(self) -> int:
        """Features of all spaces, without delays."""
        return sum(space.n_features for space in self.spaces)


@dataclass(frozen=True)
class FitUnit:
    """One feature set of one block.

    Attributes
    ----------
    weight_folds : tuple of int
        Outer folds whose weights are kept.
    needs : tuple of Unit
        Its operators, on every outer fold.
    """

    unit: Unit
    variants: tuple[VariantSource, ...]
    weights: WeightsKind
    weight_folds: tuple[int, ...]
    needs: tuple[Unit, ...]


def fit_arrays(
    *,
    n_folds: int,
    n_variants: int,
    n_voxels: int,
    block: int,
    weights: WeightsKind,
    n_weight_folds: int,
    n_weight_rows: int,
) -> dict[str, ArraySpec]:
    """Arrays of one feature set in one subject.

    Parameters
    ----------
    n_weight_rows : int
        Columns of the delayed design for primal weights, TRs for dual ones.
    """
    # One file for all scores of a block: hundreds of subjects make tens of thousands of files as it is.
    arrays = {
        "scores": ArraySpec(
            (len(SCORES), n_folds, n_variants, n_voxels),
            (len(SCORES), n_folds, n_variants, block),
            "float32",
            ("score", "fold", "variant", "voxel"),
            attributes={"score": list(SCORES)},
        )
    }
    if weights != "none":
        arrays["weights"] = ArraySpec(
            (n_weight_folds, n_variants, n_weight_rows, n_voxels),
            (1, 1, n_weight_rows, CHUNK_VOXELS),
            "float32",
            ("weight_fold", "variant", "column" if weights == "primal" else "tr", "voxel"),
            shards=(1, 1, n_weight_rows, SHARD_VOXELS),
        )
    return arrays


@dataclass(frozen=True)
class FitBlock:
    """Fit one voxel block of one subject; its units are the feature sets, BOLD is read once.

    Attributes
    ----------
    bold : tuple of BoldHeader
        Files of the runs present, in the order of their rows.
    positions : str
        Grayordinates of the study on the files' own axis: ``"cortex"`` or ``"all"``.
    """

    subject: str
    block: int
    voxels: tuple[int, int]
    bold: tuple[BoldHeader, ...]
    grayordinates: Literal["cortex", "all"]
    onsets: tuple[int, ...]
    n_trs: int
    delays: tuple[int, ...]
    backend: str
    fits: tuple[FitUnit, ...]

    @property
    def key(self) -> str:
        """Name of the task."""
        return f"fit {self.subject} block {self.block}"

    @property
    def units(self) -> tuple[Unit, ...]:
        """One for each feature set."""
        return tuple(fit.unit for fit in self.fits)

    def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
        """What one feature set needs."""
        return next(fit.needs for fit in self.fits if fit.unit == unit)

    def run(self, store: Store, deadline: Deadline | None) -> TaskRecord:
        """Fit the feature sets that are not done."""
        if all(unit.done(store.path) for unit in self.units):
            return TaskRecord(self.key, skipped=len(self.units))
        bold = self._read_bold()
        fits = {fit.unit: fit for fit in self.fits}
        return run_units(self, store, deadline, lambda unit: self._fit(store, fits[unit], bold))

    def _read_bold(self) -> NDArray[np.float32]:
        """BOLD of the block, (n_trs, n_block): one run after the other."""
        from hpcenc.storage.bold import read_block

        voxels = slice(*self.voxels)
        return np.concatenate(
            [read_block(header, voxels, _positions(header.path, self.grayordinates)) for header in self.bold]
        )

    def _fit(self, store: Store, fit: FitUnit, bold: NDArray[np.float32]) -> Mapping[str, Fact]:
        """Fit all folds and variants, shard by shard; scores are written last."""
        first, last = self.voxels
        n_folds = len(fit.variants[0].operators)
        scores = np.full((len(SCORES), n_folds, len(fit.variants), last - first), np.nan, np.float32)
        for fold in range(n_folds):
            for place, variant in enumerate(fit.variants):
                # Shards are built and written one after the other: a whole block of weights would
                # need gigabytes.
                for start in range(first, last, SHARD_VOXELS):
                    shard = slice(start, min(start + SHARD_VOXELS, last))
                    inside = slice(shard.start - first, shard.stop - first)
                    found, weights = self._fit_shard(store, fit, variant, fold, bold[:, inside])
                    for name, values in found.items():  # what was not found stays NaN
                        scores[SCORES.index(name), fold, place, inside] = values
                    if weights is not None:
                        self._write_weights(store, fit, fold, place, shard, weights)
        everything = slice(None)
        store.write(
            f"{fit.unit.group}/scores", (everything, everything, everything, slice(first, last)), scores
        )
        undefined = np.isnan(scores[SCORES.index("r")]).any(axis=(0, 1))
        return {"voxels": last - first, "undefined": int(undefined.sum())}

    def _fit_shard(
        self, store: Store, fit: FitUnit, variant: VariantSource, fold: int, bold: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32] | None]:
        from hpcenc.tasks.ridge import fit_block

        backend = _backend(self.backend)
        operators = _operators(variant.operators[fold][1], backend)
        keep_weights = fit.weights != "none" and fold in fit.weight_folds
        found = fit_block(backend.to_device(bold), operators, self.onsets, want_dual=keep_weights)
        scores = {name: backend.to_host(getattr(found, name)) for name in ("r", "r2", "alpha", "chance")}
        if not keep_weights:
            return scores, None
        # Rows that do not train weigh nothing, so the dual is kept on the rows of all runs.
        dual = np.zeros((self.n_trs, bold.shape[1]), np.float32)
        dual[operators.train_rows] = backend.to_host(found.dual)
        dual[:, np.isnan(scores["r"])] = np.nan
        if fit.weights == "dual":
            return scores, dual
        return scores, self._primal(store, variant, fold, dual)

    def _primal(
        self, store: Store, variant: VariantSource, fold: int, dual: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        from hpcenc.storage.lagged import primal_from_dual

        features = _standardised(store.path, variant.spaces, variant.operators[fold][0])
        return np.concatenate(
            [primal_from_dual(space, dual, self.delays, self.onsets) for space in features]
        ).astype(np.float32, copy=False)

    def _write_weights(
        self, store: Store, fit: FitUnit, fold: int, place: int, shard: slice, weights: NDArray[np.float32]
    ) -> None:
        path = f"{fit.unit.group}/weights"
        n_rows = store.array(path).shape[2]
        if len(weights) < n_rows:  # variants of one set may have fewer columns than the widest
            weights = np.pad(weights, ((0, n_rows - len(weights)), (0, 0)), constant_values=np.nan)
        fold_place = fit.weight_folds.index(fold)
        store.write(
            path,
            (slice(fold_place, fold_place + 1), slice(place, place + 1), slice(0, n_rows), shard),
            weights[None, None],
        )


@lru_cache(maxsize=64)
def _positions(path: Path, grayordinates: Literal["cortex", "all"]) -> NDArray[np.int64]:
    """Where the study's voxels lie in a file; the XML costs half a second, the blocks share it."""
    from hpcenc.storage.bold import read_axes

    return read_axes(path)[0].positions(grayordinates)


@lru_cache(maxsize=1)
def _backend(name: str) -> Backend:
    from hpcenc.tasks.backends import open_backend

    return open_backend(name)


_at_hand: OrderedDict[Path, tuple[FoldOperators, int]] = OrderedDict()
_at_hand_lock = Lock()


def _operators(folder: Path, backend: Backend) -> FoldOperators:
    """Operators on the device: the least used go when all together pass the budget."""
    from hpcenc.storage.array_folder import load_arrays
    from hpcenc.tasks.operators import from_arrays, ops_to_device

    with _at_hand_lock:  # a worker may have several task slots
        if folder not in _at_hand:
            arrays = load_arrays(folder)
            n_bytes = sum(values.nbytes for values in arrays.values())
            _at_hand[folder] = (ops_to_device(from_arrays(arrays), backend.to_device), n_bytes)
            while len(_at_hand) > 1 and sum(size for _, size in _at_hand.values()) > OPERATOR_BUDGET_BYTES:
                _at_hand.popitem(last=False)
        _at_hand.move_to_end(folder)
        return _at_hand[folder][0]


@lru_cache(maxsize=2)
def _standardised(
    store: Path, spaces: Sequence[SpaceSource], operators_group: str
) -> tuple[NDArray[np.float32], ...]:
    """Features z-scored as the operators were made from them."""
    from hpcenc.storage.store import Store
    from hpcenc.storage.weights import standardised_features

    return standardised_features(Store(store), spaces, operators_group)

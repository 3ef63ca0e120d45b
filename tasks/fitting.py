"""Fit tasks: one voxel block of one subject, fitted with every feature set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.storage.layout import CHUNK_VOXELS, SCORES, SHARD_VOXELS
from hpcenc.tasks import at_hand
from hpcenc.tasks.records import Deadline, Fact, TaskRecord, Unit, run_units

if TYPE_CHECKING:
    from hpcenc.storage.bold import BoldHeader
    from hpcenc.storage.spaces import SpaceSource
    from hpcenc.storage.store import Store
    from hpcenc.tasks.ridge import BlockFit

FIT_VERSION = 3
"""Part of the digest of fits: raised by hand whenever scores or weights change."""

N_CHECK = 128
"""Voxels of a block whose alphas by the fast solver are compared with those by exact scores."""

WeightsKind = Literal["primal", "dual", "none"]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class FitBlock:
    """Fit one voxel block of one subject; its units are the feature sets, BOLD is read once.

    Attributes
    ----------
    bold : tuple of BoldHeader
        Files of the runs present, in the order of their rows.
    grayordinates : {"cortex", "all"}
        Those of the study, on the files' own axis.
    tf32 : bool
        Choose alphas in TF32.
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
    tf32: bool
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
        bold = np.empty((self.n_trs, voxels.stop - voxels.start), np.float32)
        for header, onset in zip(self.bold, self.onsets, strict=True):
            positions = _positions(header.path, self.grayordinates)
            bold[onset : onset + header.n_trs] = read_block(header, voxels, positions)
        return bold

    def _fit(self, store: Store, fit: FitUnit, bold: NDArray[np.float32]) -> Mapping[str, Fact]:
        """Fit all folds and variants; each one's weights are written when they are made, scores last."""
        first, last = self.voxels
        device, solving = at_hand.device(self.backend), _Stopwatch()
        n_folds = len(fit.variants[0].operators)
        scores = np.full((len(SCORES), n_folds, len(fit.variants), last - first), np.nan, np.float32)
        for fold in range(n_folds):
            for place, variant in enumerate(fit.variants):
                keep_weights = fit.weights != "none" and fold in fit.weight_folds
                with device.turn(), solving:
                    found = self._solve(device, variant.operators[fold][1], bold, keep_weights)
                    for score, name in enumerate(SCORES):
                        scores[score, fold, place] = device.backend.to_host(getattr(found, name))
                if found.dual is not None:
                    self._keep_weights(device, store, fit, fold, place, found.dual, solving)
        everything = slice(None)
        store.write(
            f"{fit.unit.group}/scores", (everything, everything, everything, slice(first, last)), scores
        )
        undefined = np.isnan(scores[SCORES.index("r")]).any(axis=(0, 1))
        agrees = scores[SCORES.index("agrees")]
        facts: dict[str, Fact] = {
            "voxels": last - first,
            "undefined": int(undefined.sum()),
            "solve_seconds": round(solving.seconds, 3),
            "sub_block": device.sub_block,
        }
        if not np.isnan(agrees).all():
            facts |= {"checked": int(np.isfinite(agrees).sum()), "disagreed": int((agrees == 0).sum())}
        if device.voxels_at_once is not None:
            facts["voxels_at_once"] = device.voxels_at_once
        return facts

    def _solve(
        self, device: at_hand.Device, operators: Path, bold: NDArray[np.float32], want_dual: bool
    ) -> BlockFit:
        """Fit the block on one fold; where memory is refused, half as many voxels at a time."""
        from hpcenc.tasks.ridge import fit_block, join_fits

        n_voxels = bold.shape[1]
        while True:
            size = min(device.voxels_at_once or n_voxels, n_voxels)
            try:
                return join_fits(
                    [
                        fit_block(
                            device.backend.to_device(bold[:, start : start + size]),
                            device.operators(operators),
                            self.onsets,
                            want_dual,
                            device.sub_block,
                            N_CHECK,
                            seed=self.block,
                            coarsely=device.backend.tf32 if self.tf32 else nullcontext,
                        )
                        for start in range(0, n_voxels, size)
                    ]
                )
            except Exception as error:
                if size <= at_hand.SUB_BLOCK or not device.backend.is_out_of_memory(error):
                    raise
            device.voxels_at_once = at_hand.SUB_BLOCK * -(-size // (2 * at_hand.SUB_BLOCK))
            device.make_room()

    def _keep_weights(
        self,
        device: at_hand.Device,
        store: Store,
        fit: FitUnit,
        fold: int,
        place: int,
        dual: Any,
        solving: _Stopwatch,
    ) -> None:
        """Make and write weights shard by shard: a whole block of them would need gigabytes.

        One shard is written while the next is made, so that the last block of a run, which no other task
        computes beside, does not wait for the disk either.
        """
        first, last = self.voxels
        with ThreadPoolExecutor(1, "hpcenc-writer") as writer:
            writing: Future[None] | None = None
            for start in range(first, last, SHARD_VOXELS):
                shard = slice(start, min(start + SHARD_VOXELS, last))
                of_shard = dual[:, shard.start - first : shard.stop - first]
                with device.turn(), solving:
                    weights = self._weights(device, store, fit.weights, fit.variants[place], fold, of_shard)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write_weights, store, fit, fold, place, shard, weights)
            if writing is not None:
                writing.result()

    def _weights(
        self,
        device: at_hand.Device,
        store: Store,
        kind: WeightsKind,
        variant: VariantSource,
        fold: int,
        dual: Any,
    ) -> NDArray[np.float32]:
        """Weights of one shard, (n_weight_rows, n_voxels)."""
        from hpcenc.storage.lagged import lagged_products

        group, folder = variant.operators[fold]
        if kind == "dual":
            # Rows that do not train weigh nothing: the dual is kept on the rows of all runs.
            weights = np.zeros((self.n_trs, dual.shape[1]), np.float32)
            weights[device.operators(folder).train_rows] = device.backend.to_host(dual)
            weights[:, np.isnan(weights).any(axis=0)] = np.nan
            return weights
        source = at_hand.FeatureSource(store.path, variant.spaces, group, folder, self.delays, self.onsets)
        spaces = [lagged_products(features, dual) for features in device.features(source)]
        on_host = [device.backend.to_host(weights) for weights in spaces]
        return on_host[0] if len(on_host) == 1 else np.concatenate(on_host)

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


class _Stopwatch:
    """Wall seconds within it, whenever it was entered.

    Entered in a slot's turn at the device, it leaves out the wait for the turn: the solving of all slots of a
    worker never overlaps.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start


@at_hand.made_once(maxsize=64)
def _positions(path: Path, grayordinates: Literal["cortex", "all"]) -> NDArray[np.int64]:
    """Where the study's voxels lie in a file; the XML costs half a second, blocks and slots share it."""
    from hpcenc.storage.bold import read_axes

    return read_axes(path)[0].positions(grayordinates)

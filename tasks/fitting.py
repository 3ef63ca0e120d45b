"""Fit tasks: one voxel block of one subject, fitted with every feature set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.storage.layout import (
    BAND_R,
    CHUNK_VOXELS,
    SCORES,
    SHARD_VOXELS,
    SWEEP_SCORES,
    WEIGHT_NORM,
)
from hpcenc.tasks import at_hand
from hpcenc.tasks.block_bold import BlockBold
from hpcenc.tasks.records import Deadline, Fact, TaskRecord, Unit, run_units

if TYPE_CHECKING:
    from hpcenc.storage.spaces import SpaceSource
    from hpcenc.storage.store import Store
    from hpcenc.tasks.ridge import BlockFit
    from hpcenc.tasks.zscoring import Standardised

FIT_VERSION = 5
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
    delays : tuple of int
        In TRs.
    """

    spaces: tuple[SpaceSource, ...]
    operators: tuple[tuple[str, Path], ...]
    delays: tuple[int, ...]

    @property
    def n_features(self) -> int:
        """Features of all spaces, without delays."""
        return sum(space.n_features for space in self.spaces)

    @property
    def n_columns(self) -> int:
        """Columns of the delayed design."""
        return self.n_features * len(self.delays)


class ExtraUnit(Protocol):
    """What else a fit task makes of its block while it has the BOLD at hand."""

    @property
    def unit(self) -> Unit:
        """Its mark."""

    @property
    def needs(self) -> tuple[Unit, ...]:
        """Units of earlier stages that must be done before."""

    def work(self, store: Store, bold: NDArray[np.float32], voxels: slice) -> Mapping[str, Fact]:
        """Compute and write it; gives facts for the record."""


def score_names(
    kind: str, *, repeats: bool = False, norm_delays: Sequence[int] = (), bands: Sequence[str] = ()
) -> tuple[str, ...]:
    """What an array of scores holds, in the order of its first axis.

    Parameters
    ----------
    kind : str
        ``fits``, or one of the sweeps.
    repeats : bool
        Whether a repeated clip is shown in a run, whose rows have an r of their own.
    norm_delays : sequence of int
        Delays whose norms of weights are kept.
    bands : sequence of str
        Feature spaces of a fit in bands, each of which adds to r.
    """
    if kind != "fits":
        return (*SWEEP_SCORES, *(f"{BAND_R}{band}" for band in bands))
    norms = (f"{WEIGHT_NORM}{delay}" for delay in norm_delays)
    return (*SCORES, *(("r_repeat",) if repeats else ()), *norms)


@dataclass(frozen=True, slots=True)
class FitUnit:
    """One feature set of one block.

    Attributes
    ----------
    weight_folds : tuple of int
        Outer folds whose weights are kept.
    needs : tuple of Unit
        Its operators, on every outer fold, and BOLD that is made before.
    scores : tuple of str
        What its array of scores holds.
    alphas : str
        Group of the alphas that all voxels share; empty where each has its own.
    """

    unit: Unit
    variants: tuple[VariantSource, ...]
    weights: WeightsKind
    weight_folds: tuple[int, ...]
    needs: tuple[Unit, ...]
    scores: tuple[str, ...] = SCORES
    alphas: str = ""


def fit_arrays(
    *,
    n_folds: int,
    n_variants: int,
    n_voxels: int,
    block: int,
    weights: WeightsKind,
    n_weight_folds: int,
    n_weight_rows: int,
    scores: tuple[str, ...] = SCORES,
) -> dict[str, ArraySpec]:
    """Arrays of one feature set in one subject.

    Parameters
    ----------
    n_weight_rows : int
        Columns of the delayed design for primal weights, TRs for dual ones.
    scores : tuple of str
        As `score_names` gives them.
    """
    # One file for all scores of a block: hundreds of subjects make tens of thousands of files as it is.
    arrays = {
        "scores": ArraySpec(
            (len(scores), n_folds, n_variants, n_voxels),
            (len(scores), n_folds, n_variants, block),
            "float32",
            ("score", "fold", "variant", "voxel"),
            attributes={"score": list(scores)},
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
    zscore : {"run", "movie"}
        As `fit_block` takes it.
    repeat_rows : tuple of int
        Rows in which a repeated clip is shown, and nothing else is answered to.
    tf32 : bool
        Choose alphas in TF32.
    extras : tuple of ExtraUnit
        Noise ceilings, single features.
    """

    subject: str
    block: int
    voxels: tuple[int, int]
    bold: BlockBold
    zscore: Literal["run", "movie"]
    repeat_rows: tuple[int, ...]
    backend: str
    tf32: bool
    fits: tuple[FitUnit, ...]
    extras: tuple[ExtraUnit, ...] = ()

    @property
    def key(self) -> str:
        """Name of the task."""
        return f"fit {self.subject} block {self.block}"

    @property
    def units(self) -> tuple[Unit, ...]:
        """Those of the extras, and one for each feature set."""
        return (*(extra.unit for extra in self.extras), *(fit.unit for fit in self.fits))

    def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
        """What one feature set or extra needs."""
        needs = {extra.unit: extra.needs for extra in self.extras} | {
            fit.unit: fit.needs for fit in self.fits
        }
        return needs[unit]

    def run(self, store: Store, deadline: Deadline | None) -> TaskRecord:
        """Fit the feature sets that are not done."""
        if all(unit.done(store.path) for unit in self.units):
            return TaskRecord(self.key, skipped=len(self.units))
        bold = self.bold.read(store, slice(*self.voxels))
        fits = {fit.unit: fit for fit in self.fits}
        extras = {extra.unit: extra for extra in self.extras}

        def work(unit: Unit) -> Mapping[str, Fact]:
            if unit in fits:
                return self._fit(store, fits[unit], bold)
            return extras[unit].work(store, bold, slice(*self.voxels))

        return run_units(self, store, deadline, work)

    def _fit(self, store: Store, fit: FitUnit, bold: NDArray[np.float32]) -> Mapping[str, Fact]:
        """Fit all folds and variants; each one's weights are written when they are made, scores last."""
        first, last = self.voxels
        device, solving = at_hand.device(self.backend), _Stopwatch()
        n_folds = len(fit.variants[0].operators)
        shared = store.read(f"{fit.alphas}/alpha_index") if fit.alphas else None
        scores = np.full((len(fit.scores), n_folds, len(fit.variants), last - first), np.nan, np.float32)
        for fold in range(n_folds):
            prepared: list[Standardised] = []
            for place, variant in enumerate(fit.variants):
                keep_weights = fit.weights != "none" and fold in fit.weight_folds
                with device.turn(), solving:
                    folder = variant.operators[fold][1]
                    alpha = None if shared is None else int(shared[fold, place])
                    shared_bold = prepared if "cv" in fit.scores else None
                    found = self._solve(device, folder, alpha, bold, keep_weights, shared_bold)
                    for name, values in _scores_of(found, fit.scores):
                        scores[fit.scores.index(name), fold, place] = device.backend.to_host(values)
                if found.dual is not None:
                    norms = self._keep_weights(device, store, fit, fold, place, found.dual, solving)
                    for name, values in norms.items():
                        scores[fit.scores.index(name), fold, place] = values
        everything = slice(None)
        store.write(
            f"{fit.unit.group}/scores", (everything, everything, everything, slice(first, last)), scores
        )
        undefined = np.isnan(scores[fit.scores.index("r")]).any(axis=(0, 1))
        agrees = scores[fit.scores.index("agrees")]
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
        self,
        device: at_hand.Device,
        folder: Path,
        alpha: int | None,
        bold: NDArray[np.float32],
        want_dual: bool,
        prepared: list[Standardised] | None,
    ) -> BlockFit:
        """Fit the block on one fold; where memory is refused, half as many voxels at a time.

        The variants of a sweep have the same rows: the z-scored block is kept in `prepared` for the next one,
        if it is fitted at once. None for a main fit.
        """
        from hpcenc.tasks.ridge import fit_block, join_fits
        from hpcenc.tasks.zscoring import standardise

        n_voxels = bold.shape[1]

        def given(start: int, size: int) -> Any:
            values = bold[:, start : start + size]
            if prepared is None or size < n_voxels:
                return device.backend.to_device(values)
            if not prepared:
                operators = device.operators(folder, alpha)
                prepared.append(
                    standardise(
                        device.backend.to_device(values),
                        operators,
                        self.bold.onsets,
                        device.sub_block,
                        self.zscore,
                    )
                )
            return prepared[0]

        while True:
            size = min(device.voxels_at_once or n_voxels, n_voxels)
            try:
                return join_fits(
                    [
                        fit_block(
                            given(start, size),
                            device.operators(folder, alpha),
                            self.bold.onsets,
                            want_dual,
                            device.sub_block,
                            N_CHECK,
                            seed=self.block,
                            coarsely=device.backend.tf32 if self.tf32 else nullcontext,
                            nested=prepared is not None,
                            repeat_rows=self.repeat_rows,
                            zscore=self.zscore,
                        )
                        for start in range(0, n_voxels, size)
                    ]
                )
            except Exception as error:
                if size <= at_hand.SUB_BLOCK or not device.backend.is_out_of_memory(error):
                    raise
            if prepared is not None:
                prepared.clear()
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
    ) -> dict[str, NDArray[np.float32]]:
        """Make and write weights shard by shard: a whole block of them would need gigabytes.

        Gives their norms at each delay, where those are wanted. One shard is written while the next is
        made, so that the last block of a run, which no other task computes beside, does not wait for the
        disk either.
        """
        first, last = self.voxels
        names = [name for name in fit.scores if name.startswith(WEIGHT_NORM)]
        norms = np.empty((len(names), last - first), np.float32)
        with ThreadPoolExecutor(1, "hpcenc-writer") as writer:
            writing: Future[None] | None = None
            for start in range(first, last, SHARD_VOXELS):
                shard = slice(start, min(start + SHARD_VOXELS, last))
                of_shard = dual[:, shard.start - first : shard.stop - first]
                with device.turn(), solving:
                    weights = self._weights(device, store, fit.weights, fit.variants[place], fold, of_shard)
                if names:
                    norms[:, shard.start - first : shard.stop - first] = delay_norms(
                        weights, [space.n_features for space in fit.variants[place].spaces], len(names)
                    )
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write_weights, store, fit, fold, place, shard, weights)
            if writing is not None:
                writing.result()
        return dict(zip(names, norms, strict=True))

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
            weights = np.zeros((self.bold.n_trs, dual.shape[1]), np.float32)
            weights[device.operators(folder).train_rows] = device.backend.to_host(dual)
            weights[:, np.isnan(weights).any(axis=0)] = np.nan
            return weights
        source = at_hand.FeatureSource(
            store.path, variant.spaces, group, folder, variant.delays, self.bold.onsets
        )
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


def delay_norms(weights: NDArray[np.float32], widths: Sequence[int], n_delays: int) -> NDArray[np.float32]:
    """Norm of the weights at each delay, over the features of all spaces.

    Parameters
    ----------
    weights : array of shape (n_columns, n_voxels)
        Space by space, delay by delay, feature by feature.
    widths : sequence of int
        Features of each space.
    n_delays : int

    Returns
    -------
    array of shape (n_delays, n_voxels)
        In units of z-scored BOLD for z-scored features; NaN where the weights are.
    """
    squares = np.zeros((n_delays, weights.shape[1]))
    first = 0
    for width in widths:
        part = weights[first : first + n_delays * width].reshape(n_delays, width, -1)
        squares += np.einsum("dfv,dfv->dv", part, part)
        first += n_delays * width
    return np.sqrt(squares).astype(np.float32)


def _scores_of(found: BlockFit, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Scores of one fit by their names, without norms of weights; those of the bands follow each other."""
    bands = iter(() if found.r_bands is None else found.r_bands)
    for name in names:
        if not name.startswith(WEIGHT_NORM):
            yield name, next(bands) if name.startswith(BAND_R) else getattr(found, name)


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

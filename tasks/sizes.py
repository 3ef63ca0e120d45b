"""Sizes of the operators and fits of a plan, from which their price follows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from hpcenc.storage.lagged import LagSizes, lag_sizes
from hpcenc.tasks.fitting import FitBlock, WeightsKind
from hpcenc.tasks.folds import OuterFold
from hpcenc.tasks.operator_task import THIN_SHARE, MakeOperators, Rows
from hpcenc.tasks.operators import largest_basis, operator_bytes, thin_pays
from hpcenc.tasks.plan import Plan

N_BASIS = 15
"""Filters that the exact solver keeps on the benchmark problem; a study's are known after its operators."""


@dataclass(frozen=True)
class FoldSizes:
    """One variant of a feature set on one outer fold.

    Attributes
    ----------
    n_val : tuple of int
        Training rows that each inner fold holds out.
    widths : tuple of int
        Features of each space, without delays.
    lag : LagSizes
        Of the transform that gives weights.
    n_basis : int
        Filters, or forms, of the exact solver, an estimate.
    thin : bool
        Whether the exact solver works in the coordinates of the features.
    operator_bytes : int
        An estimate too.
    nested : bool
        Whether inner folds are scored.
    n_bands : int
        Bands that are scored by themselves; 0 where there are none.
    """

    solver: Literal["exact", "fast"]
    n_trs: int
    n_train: int
    n_test: int
    n_val: tuple[int, ...]
    n_alphas: int
    n_delays: int
    widths: tuple[int, ...]
    lag: LagSizes
    n_basis: int
    thin: bool
    operator_bytes: int
    nested: bool = False
    n_bands: int = 0

    @classmethod
    def of(cls, task: MakeOperators) -> FoldSizes:
        """Sizes of what an operator task makes."""
        rows = task.rows
        fold, lag = _fold_of(rows, task.fold, task.delays)
        widths = tuple(space.n_features for space in task.spaces)
        how = task.alpha_exponents, task.basis_tolerance
        n_basis = min(N_BASIS, largest_basis(*how))
        n_train, n_test = int(fold.train.sum()), int(fold.test.sum())
        n_val = tuple(int(validation.sum()) for validation in fold.inner)
        rank = min(sum(widths) * len(task.delays), n_train - 1)
        thin = task.solver == "exact" and thin_pays(
            rank, n_train, n_val, largest_basis(*how), len(task.alpha_exponents)
        )
        n_bytes = operator_bytes(
            fold, sum(widths) * len(task.delays), *how, task.solver, n_basis, task.nested
        )
        return cls(
            solver=task.solver,
            n_trs=rows.n_trs,
            n_train=n_train,
            n_test=n_test,
            n_val=n_val,
            n_alphas=len(task.alpha_exponents),
            n_delays=len(task.delays),
            widths=widths,
            lag=lag,
            n_basis=n_basis,
            thin=thin,
            operator_bytes=n_bytes + 4 * len(task.scales) * n_train * n_test,
            nested=task.nested,
            n_bands=len(task.scales),
        )

    @property
    def n_features(self) -> int:
        """Features of all spaces, without delays."""
        return sum(self.widths)

    @property
    def n_columns(self) -> int:
        """Columns of the delayed design."""
        return self.n_features * self.n_delays

    @property
    def from_design(self) -> bool:
        """Whether operators are made from the design, as `MakeOperators` does."""
        return self.solver == "exact" and self.n_columns <= THIN_SHARE * self.n_train

    def rank(self, n_rows: int) -> int:
        """Rank of a centred kernel of so many rows, at most."""
        return min(self.n_columns, n_rows - 1)


@dataclass(frozen=True)
class FitSizes:
    """One voxel block of one subject.

    Attributes
    ----------
    longest_run : int
        TRs.
    copies : bool
        Whether the array library copies what NumPy would take as it is, mapped from disk.
    units : tuple of (weights, folds, folds with weights)
        For each feature set the kind of its weights, the sizes of all its fits (outer folds of variants),
        and of those whose weights are kept.
    """

    n_voxels: int
    n_trs: int
    longest_run: int
    copies: bool
    units: tuple[tuple[WeightsKind, tuple[FoldSizes, ...], tuple[FoldSizes, ...]], ...]

    @classmethod
    def of(cls, task: FitBlock, operators: dict[str, FoldSizes]) -> FitSizes:
        """Sizes of a fit task, given those of the operators by group."""
        units = []
        for fit in task.fits:
            places = [
                (fold, operators[group])
                for variant in fit.variants
                for fold, (group, _) in enumerate(variant.operators)
            ]
            kept = () if fit.weights == "none" else fit.weight_folds
            units.append(
                (
                    fit.weights,
                    tuple(sizes for _, sizes in places),
                    tuple(sizes for fold, sizes in places if fold in kept),
                )
            )
        first, last = task.voxels
        longest_run = max(run.n_trs for run in task.bold.runs)
        return cls(last - first, task.bold.n_trs, longest_run, task.backend != "numpy", tuple(units))


def operator_sizes(plan: Plan) -> dict[str, FoldSizes]:
    """Sizes of all operators of a plan, by group."""
    tasks = (task for stage in plan.stages if stage.name == "operators" for task in stage.tasks)
    return {task.unit.group: FoldSizes.of(task) for task in tasks if isinstance(task, MakeOperators)}


@lru_cache(maxsize=64)
def _fold_of(rows: Rows, fold: int, delays: tuple[int, ...]) -> tuple[OuterFold, LagSizes]:
    """An outer fold and the transform of its weights: the feature sets of a study share them."""
    found = rows.folds()[fold]
    return found, lag_sizes(delays, rows.onsets, rows.n_trs, found.train)

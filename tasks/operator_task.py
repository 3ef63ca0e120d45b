"""Operator tasks: what the fits of all subjects of one stimulus share, made once per outer fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.array_folder import save_arrays
from hpcenc.storage.groups import ArraySpec
from hpcenc.tasks.folds import OuterFold, RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.records import Fact, UnitTask

if TYPE_CHECKING:
    from hpcenc.storage.spaces import SpaceSource
    from hpcenc.storage.store import Store
    from hpcenc.tasks.kernels import Kernel

Floats = NDArray[np.floating[Any]]

OPERATORS_VERSION = 4
"""Part of the digest of operators: raised by hand whenever they change."""

THIN_SHARE = 0.5
"""Columns of a design, over training rows, below which its singular value decompositions cost less than
eigendecompositions of its kernel."""


@dataclass(frozen=True)
class Rows:
    """Runs present and how their rows are used: what decides the outer folds.

    Attributes
    ----------
    longest_delay : int
        TRs that rest and repeated clips reach beyond their ends: the longest delay of all that are compared.
    split_row, min_fold_rows : int
        As `outer_folds` takes them.
    """

    runs: tuple[RunRows, ...]
    longest_delay: int
    policy: RowPolicy
    outer: Literal["single", "rotate"]
    test_runs: tuple[str, ...]
    split_row: int | None = None
    min_fold_rows: int = 0

    def folds(self) -> tuple[OuterFold, ...]:
        """Outer folds of these runs."""
        return outer_folds(
            self.runs,
            (self.longest_delay,),
            self.policy,
            self.outer,
            self.test_runs,
            split_row=self.split_row,
            min_fold_rows=self.min_fold_rows,
        )

    @property
    def onsets(self) -> tuple[int, ...]:
        """First row of each run."""
        return run_onsets(self.runs)

    @property
    def n_trs(self) -> int:
        """Rows of all runs together."""
        return sum(run.n_trs for run in self.runs)


def operator_arrays(n_trs: int, n_alphas: int, n_features: int) -> dict[str, ArraySpec]:
    """What readers of a fit need of its operators; the large ones stay in the cache."""
    return {
        "role": ArraySpec(
            (n_trs,), (n_trs,), "int8", ("tr",),
            attributes={"flag_values": [0, 1, 2], "flag_meanings": "left_out training test"},
        ),
        "alphas": ArraySpec((n_alphas,), (n_alphas,), "float64", ("alpha",)),
        "feature_mean": ArraySpec((n_features,), (n_features,), "float64", ("feature",)),
        "feature_scale": ArraySpec(
            (n_features,), (n_features,), "float64", ("feature",),
            attributes={"comment": "standard deviation in training; 0 marks a constant column, dropped"},
        ),
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MakeOperators(UnitTask):
    """Operators of one variant of a feature set on one outer fold.

    Attributes
    ----------
    spaces : tuple of SpaceSource
        Their kernels are added: the same as concatenated features under one penalty.
    delays : tuple of int
        Of the FIR window, in TRs.
    nested : bool
        Whether variants will be compared by their inner folds.
    scales : tuple of float
        What the kernel of each space is multiplied with, for fits in bands; none if empty.
    alpha : float or None
        The one alpha, in place of the grid.
    zscore : {"train", "movie"}
        Rows that features are z-scored by.
    folder : Path
        Where the matrices are cached.
    """

    verb = "operators"
    rows: Rows
    fold: int
    spaces: tuple[SpaceSource, ...]
    delays: tuple[int, ...]
    alpha_exponents: tuple[float, ...]
    basis_tolerance: float
    solver: Literal["exact", "fast"]
    nested: bool
    folder: Path
    scales: tuple[float, ...] = ()
    alpha: float | None = None
    zscore: Literal["train", "movie"] = "train"

    def work(self, store: Store) -> Mapping[str, Fact]:
        """Make the operators, cache them, and write what readers need of them."""
        from hpcenc.storage.design import standardise
        from hpcenc.storage.features import read_space
        from hpcenc.tasks.operators import make_operators, to_arrays

        fold = self.rows.folds()[self.fold]
        features, means, scales = [], [], []
        for space in self.spaces:
            values = read_space(store, space)
            scored, mean, scale = standardise(
                values, fold.train if self.zscore == "train" else np.ones(len(values), dtype=bool)
            )
            features.append(scored)
            means.append(mean)
            scales.append(scale)
        if self.scales:
            pairs = zip(features, self.scales, strict=True)
            features = [np.sqrt(scale) * scored.astype(np.float64) for scored, scale in pairs]
        operators = make_operators(
            self._kernel(features, int(fold.train.sum())),
            fold,
            self.alpha_exponents,
            self.basis_tolerance,
            solver=self.solver,
            nested=self.nested,
            alpha=self.alpha,
        )
        if self.scales:
            bands = [self._kernel([scored], 0).centred(fold.train)[fold.test] for scored in features]
            operators = replace(operators, band_kernels=np.stack(bands).astype(np.float32))
        n_bytes = save_arrays(self.folder, to_arrays(operators))

        role = np.zeros(self.rows.n_trs, dtype=np.int8)
        role[fold.train], role[fold.test] = 1, 2
        for name, values in {
            "role": role,
            "alphas": operators.alphas,
            "feature_mean": np.concatenate(means),
            "feature_scale": np.concatenate(scales),
        }.items():
            store.write(f"{self.unit.group}/{name}", (slice(None),), values)
        return {
            "rows_train": int(fold.train.sum()),
            "rows_test": int(fold.test.sum()),
            "constant_columns": int(sum(np.sum(scale == 0) for scale in scales)),
            "bytes_cached": n_bytes,
            **{f"dropped {reason}": count for reason, count in fold.dropped.items()},
        }

    def _kernel(self, features: Sequence[Floats], n_train: int) -> Kernel:
        """Kernel of all spaces and delays together."""
        from hpcenc.storage.design import delayed_design
        from hpcenc.tasks.gram import base_gram, window_gram
        from hpcenc.tasks.kernels import Design, Gram

        n_columns = len(self.delays) * sum(values.shape[1] for values in features)
        if self.solver == "exact" and n_columns <= THIN_SHARE * n_train:
            parts = [delayed_design(values, self.delays, self.rows.onsets) for values in features]
            return Design(np.concatenate(parts, axis=1).astype(np.float64))
        kernel = np.zeros((self.rows.n_trs, self.rows.n_trs))
        for values in features:
            kernel += window_gram(base_gram(values), self.delays, self.rows.onsets)
        return Gram(kernel)

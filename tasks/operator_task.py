"""Operator tasks: what the fits of all subjects of one stimulus share, made once per outer fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hpcenc.storage.array_folder import save_arrays
from hpcenc.storage.groups import ArraySpec
from hpcenc.tasks.folds import OuterFold, RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.records import Fact, UnitTask

if TYPE_CHECKING:
    from hpcenc.storage.spaces import SpaceSource
    from hpcenc.storage.store import Store

OPERATORS_VERSION = 2
"""Part of the digest of operators: raised by hand whenever they change."""


@dataclass(frozen=True)
class Rows:
    """Runs present and how their rows are used: what decides the outer folds."""

    runs: tuple[RunRows, ...]
    delays: tuple[int, ...]
    policy: RowPolicy
    outer: Literal["single", "rotate"]
    test_runs: tuple[str, ...]

    def folds(self) -> tuple[OuterFold, ...]:
        """Outer folds of these runs."""
        return outer_folds(self.runs, self.delays, self.policy, self.outer, self.test_runs)

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
    folder : Path
        Where the matrices are cached.
    """

    verb = "operators"
    rows: Rows
    fold: int
    spaces: tuple[SpaceSource, ...]
    alpha_exponents: tuple[float, ...]
    basis_tolerance: float
    solver: Literal["exact", "fast"]
    folder: Path

    def work(self, store: Store) -> Mapping[str, Fact]:
        """Make the operators, cache them, and write what readers need of them."""
        from hpcenc.storage.design import standardise
        from hpcenc.storage.features import read_space
        from hpcenc.tasks.gram import base_gram, window_gram
        from hpcenc.tasks.operators import make_operators, to_arrays

        fold = self.rows.folds()[self.fold]
        kernel = np.zeros((self.rows.n_trs, self.rows.n_trs))
        means, scales = [], []
        for space in self.spaces:
            features, mean, scale = standardise(read_space(store, space), fold.train)
            kernel += window_gram(base_gram(features), self.rows.delays, self.rows.onsets)
            means.append(mean)
            scales.append(scale)
        operators = make_operators(
            kernel, fold, self.alpha_exponents, self.basis_tolerance, solver=self.solver
        )
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

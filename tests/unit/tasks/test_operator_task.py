from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcenc.storage.array_folder import load_arrays
from hpcenc.storage.design import delayed_design, standardise
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store
from hpcenc.tasks.folds import RowPolicy, RunRows
from hpcenc.tasks.operator_task import MakeOperators, Rows, operator_arrays
from hpcenc.tasks.operators import from_arrays
from hpcenc.tasks.records import Unit

N_TRS = (30, 25, 20)
DELAYS = (1, 2)
EXPONENTS = (-1.0, 1.0, 3.0)
ROWS = Rows(
    runs=tuple(RunRows(name, n_trs, rest=((0, 3),)) for name, n_trs in zip("ABC", N_TRS, strict=True)),
    longest_delay=max(DELAYS),
    policy=RowPolicy(),
    outer="rotate",
    test_runs=(),
)
FEATURES = np.random.default_rng(0).standard_normal((sum(N_TRS), 5)).astype(np.float32)
FEATURES[:, 3] = 2.0  # constant


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "study.zarr", {}, {"vertex": np.arange(4)})
    edges = np.cumsum((0, *N_TRS))
    for run, start, stop in zip("abc", edges, edges[1:], strict=False):
        arrays = {
            name: ArraySpec((stop - start, width), (stop - start, width), "float32", ("tr", "x"))
            for name, width in (("first", 3), ("second", 2))
        }
        made.ensure_group(GroupSpec(f"features/{run}", "f" * 64, arrays, 1, {}))
        whole = (slice(None), slice(None))
        made.write(f"features/{run}/first", whole, FEATURES[start:stop, :3])
        made.write(f"features/{run}/second", whole, FEATURES[start:stop, 3:])
    made.ensure_group(GroupSpec("operators/o", "d" * 64, operator_arrays(sum(N_TRS), 3, 5), 1, {}))
    return made


def task(store: Store, fold: int = 1) -> MakeOperators:
    spaces = tuple(
        SpaceSource(name, tuple((f"features/{run}/{name}",) for run in "abc"), "single", width)
        for name, width in (("first", 3), ("second", 2))
    )
    return MakeOperators(
        unit=Unit("operators/o", 0, "d" * 64, cached=store.path.parent / "operators"),
        rows=ROWS,
        fold=fold,
        spaces=spaces,
        delays=DELAYS,
        alpha_exponents=EXPONENTS,
        basis_tolerance=1e-6,
        solver="exact",
        nested=False,
        folder=store.path.parent / "operators",
    )


def test_rows_know_runs_and_folds() -> None:
    assert ROWS.onsets == (0, 30, 55)
    assert ROWS.n_trs == 75
    assert [fold.name for fold in ROWS.folds()] == ["A", "B", "C"]


def test_the_kernel_is_that_of_the_delayed_features_of_all_spaces(store: Store) -> None:
    task(store).run(store, None)
    operators = from_arrays(load_arrays(store.path.parent / "operators"))
    fold = ROWS.folds()[1]
    Z, _, _ = standardise(FEATURES.astype(np.float64), fold.train)
    design = delayed_design(Z, DELAYS, ROWS.onsets)
    training = design[fold.train] - design[fold.train].mean(axis=0)
    kernel = training @ training.T
    found = operators.eigenvectors.astype(np.float64)
    np.testing.assert_allclose(found * operators.eigenvalues @ found.T, kernel, atol=1e-4 * np.trace(kernel))
    variance = np.trace(kernel) / (fold.train.sum() - 1)
    np.testing.assert_allclose(operators.alphas, 10.0 ** np.array(EXPONENTS) * variance, rtol=1e-5)


def test_readers_find_roles_alphas_and_scaling(store: Store) -> None:
    (done,) = task(store).run(store, None).done
    fold = ROWS.folds()[1]
    np.testing.assert_array_equal(store.read("operators/o/role"), fold.train + 2 * fold.test)
    scale = store.read("operators/o/feature_scale")
    np.testing.assert_array_equal(scale == 0, [False, False, False, True, False])
    np.testing.assert_allclose(
        store.read("operators/o/feature_mean"), FEATURES[fold.train].mean(axis=0), atol=1e-6
    )
    np.testing.assert_allclose(scale, FEATURES[fold.train].std(axis=0), atol=1e-6)
    assert done.facts["constant_columns"] == 1
    assert done.facts["rows_train"] == fold.train.sum()
    assert done.facts["dropped train rest"] == 2 * (3 + max(DELAYS))


def test_operators_are_made_again_to_the_same_bytes_where_the_cache_was_removed(store: Store) -> None:
    made = task(store)
    made.run(store, None)
    first = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    assert made.run(store, None).skipped == 1
    for path in made.folder.iterdir():
        path.unlink()
    made.folder.rmdir()
    assert len(made.run(store, None).done) == 1
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == first

"""Priced operations against those that fits do."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_compat import numpy as compat

from hpcenc.storage.lagged import lag_features, lagged_products
from hpcenc.storage.spaces import SpaceSource
from hpcenc.tasks.cv_choice import choose_by_forms, exact_choice
from hpcenc.tasks.fitting import N_CHECK
from hpcenc.tasks.folds import RowPolicy, RunRows
from hpcenc.tasks.forms import packed_size
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.operator_task import MakeOperators, Rows
from hpcenc.tasks.operators import FoldOperators, make_operators
from hpcenc.tasks.price import (
    EXTRACT_CPU_S,
    Flop,
    Price,
    alphas_flop,
    extract_cpu_s,
    operators_flop,
    refit_flop,
    weights_flop,
)
from hpcenc.tasks.records import Unit
from hpcenc.tasks.ridge import choose_alphas, refit, refit_by_alpha
from hpcenc.tasks.sizes import FoldSizes
from hpcenc.tasks.thin import fold_coordinates

EXPONENTS = tuple(np.linspace(-2, 5, 20))
ALL_DELAYS = tuple(range(1, 11))
N_FEATURES, N_VOXELS = 30, 300
SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


def task_of(solver: Any, delays: tuple[int, ...] = ALL_DELAYS, nested: bool = False) -> MakeOperators:
    runs = tuple(RunRows(name, 80) for name in "ABCD")
    return MakeOperators(
        unit=Unit("operators/x", 0, "x", cached=Path("x"), cached_bytes=1),
        rows=Rows(runs, max(delays), RowPolicy(), "single", ("D",)),
        fold=0,
        spaces=(SpaceSource("x", (("x",),), "single", N_FEATURES),),
        delays=delays,
        alpha_exponents=EXPONENTS,
        basis_tolerance=1e-5,
        solver=solver,
        nested=nested,
        folder=Path("x"),
    )


def features_of(task: MakeOperators) -> Any:
    return np.random.default_rng(0).standard_normal((task.rows.n_trs, N_FEATURES))


def operators_of(task: MakeOperators) -> FoldOperators:
    kernel = window_gram(base_gram(features_of(task)), task.delays, task.rows.onsets)
    (fold,) = task.rows.folds()
    return make_operators(kernel, fold, EXPONENTS, solver=task.solver, nested=task.nested)


def bold(operators: FoldOperators) -> Any:
    by_voxel = np.random.default_rng(1).standard_normal((N_VOXELS, len(operators.train_rows)))
    return by_voxel.astype(SINGLE).T


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[Any, float]:
    """Operations of all matrix products of NumPy arrays since it was cleared, by precision."""
    counts: dict[Any, float] = defaultdict(float)

    def matmul(left: Any, right: Any) -> Any:
        product = np.matmul(left, right)
        counts[product.dtype] += 2.0 * product.size * left.shape[-1]
        return product

    monkeypatch.setattr(compat, "matmul", matmul)
    return counts


@pytest.mark.parametrize("delays", [ALL_DELAYS, (3,)], ids=["whole", "thin"])
def test_exact_choices_cost_their_products(delays: tuple[int, ...], counted: dict[Any, float]) -> None:
    task = task_of("exact", delays)
    operators = operators_of(task)
    assert bool(operators.thin) == (delays != ALL_DELAYS)
    bases = [inner.coefficients.shape[1] for inner in operators.inner]
    bases += [inner.mixtures.shape[1] for inner in operators.thin]
    assert len(set(bases)) == 1
    sizes = replace(FoldSizes.of(task), n_basis=bases[0])
    choose_alphas(bold(operators), operators)
    price = alphas_flop(sizes, N_VOXELS)
    assert price.single == pytest.approx(counted[SINGLE], rel=0.01)
    assert price.double == pytest.approx(counted[DOUBLE], rel=0.01)


def test_one_alpha_costs_the_predictions_of_the_inner_folds(counted: dict[Any, float]) -> None:
    task = replace(task_of("exact", (3,)), alpha_exponents=(0.0,), alpha=30.0)
    kernel = window_gram(base_gram(features_of(task)), task.delays, task.rows.onsets)
    (fold,) = task.rows.folds()
    operators = make_operators(kernel, fold, (0.0,), alpha=30.0)
    assert operators.thin
    counted.clear()
    choose_alphas(bold(operators), operators)
    assert alphas_flop(FoldSizes.of(task), N_VOXELS).single == pytest.approx(counted[SINGLE], rel=0.01)


def test_fast_choices_cost_their_forms(counted: dict[Any, float]) -> None:
    task = task_of("fast")
    operators = operators_of(task)
    assert operators.fast is not None
    forms, Y = operators.fast.forms, bold(operators).T
    counted.clear()
    choice = choose_by_forms(Y, forms)
    exact_choice(Y[:N_CHECK], forms)
    n_coarse = forms.coarse.size / packed_size(Y.shape[1])
    price = alphas_flop(FoldSizes.of(task), N_VOXELS, n_coarse, choice.n_exact)
    # The difference is what turns coarse forms into scores, in float64.
    assert price.single == pytest.approx(counted[SINGLE], rel=0.01)
    assert price.double == pytest.approx(counted[DOUBLE], rel=0.05)


@pytest.mark.parametrize("delays", [ALL_DELAYS, (3,)], ids=["whole", "thin"])
@pytest.mark.parametrize("wants_dual", [False, True])
def test_exact_refits_cost_their_products(
    wants_dual: bool, delays: tuple[int, ...], counted: dict[Any, float]
) -> None:
    task = task_of("exact", delays)
    operators = operators_of(task)
    Y, coordinates = bold(operators), []
    if operators.thin:
        coordinates = fold_coordinates(Y, operators.eigenvectors, operators.inner_rows.tolist())
        counted.clear()
    refit(Y, operators, np.zeros(N_VOXELS, np.int64), wants_dual, coordinates)
    price = refit_flop(FoldSizes.of(task), N_VOXELS, wants_dual)
    assert price == Flop(pytest.approx(counted[SINGLE], rel=0.01), 0)


def test_fast_refits_cost_one_product(counted: dict[Any, float]) -> None:
    task = task_of("fast")
    operators = operators_of(task)
    counted.clear()
    refit_by_alpha(bold(operators), operators, np.full(N_VOXELS, len(EXPONENTS) - 1))
    assert refit_flop(FoldSizes.of(task), N_VOXELS, True) == Flop(counted[SINGLE], 0)


@pytest.mark.parametrize("delays", [ALL_DELAYS, (3,)], ids=["transform", "design"])
def test_weights_cost_the_products_of_their_transform(
    delays: tuple[int, ...], counted: dict[Any, float]
) -> None:
    task = task_of("exact", delays)
    (fold,) = task.rows.folds()
    Z = features_of(task).astype(SINGLE)
    features = lag_features(Z, delays, task.rows.onsets, fold.train)
    lagged_products(features, np.ones((fold.train.sum(), N_VOXELS), SINGLE))
    sizes = FoldSizes.of(task)
    assert weights_flop(sizes, N_VOXELS).single == counted[SINGLE]
    assert sizes.lag.n_values(N_FEATURES) == features.products.size


def test_operators_cost_an_eigendecomposition_for_every_inner_fold_or_for_none() -> None:
    exact, fast = (operators_flop(FoldSizes.of(task_of(solver))) for solver in ("exact", "fast"))
    sizes = FoldSizes.of(task_of("exact"))
    n = sizes.n_train
    shared = 2 * sizes.n_trs**2 * N_FEATURES + 9 * n**3 + 2 * sizes.n_test * n * (n - 1)
    inner = [(n - n_val, n_val) for n_val in sizes.n_val]
    assert exact.double == shared + sum(9 * rows**3 + 2 * n_val * rows * (rows - 1) for rows, n_val in inner)
    assert exact.single == sum(2 * rows * (rows - 1) * sizes.n_basis * n_val for rows, n_val in inner)
    assert fast.double == shared + len(EXPONENTS) * sum(n_val**3 for n_val in sizes.n_val)
    assert fast.single > len(EXPONENTS) * n**3


def test_extraction_grows_with_depth_and_with_the_window_of_what_hears() -> None:
    assert extract_cpu_s(ModelSpec("beats")) == EXTRACT_CPU_S["beats"]
    shallow = ModelSpec("beats", weights="untrained", n_layers=6, window_s=5.0)
    assert extract_cpu_s(shallow) == EXTRACT_CPU_S["beats"] / 4
    assert extract_cpu_s(ModelSpec("clip", window_s=5.0)) == pytest.approx(EXTRACT_CPU_S["clip"])


def test_hours_follow_the_workers_that_have_a_task() -> None:
    price = Price(
        flop={"operators": Flop(double=0.65e12), "fit": Flop(single=8e12), "weights": Flop(single=8e12)},
        extract_cpu_s=7200.0,
        bytes_read=0,
        dual_saves_bytes=0,
        dual_saves_flop=0.0,
        n_primal=0,
        n_weights=0,
        n_tasks={"decode": 0, "extract": 4, "operators": 1, "fit": 100},
    )
    hours = price.hours(gflops=10.0, n_workers=4, n_threads=2)
    assert hours == pytest.approx({"extract": 0.25, "operators": 200 / 3600, "fit": 500 / 3600})


def test_a_login_node_prices_without_heavy_packages() -> None:
    code = (
        "import sys, hpcenc.tasks.price, hpcenc.tasks.memory; "
        "print([name for name in ('zarr', 'torch', 'dask', 'distributed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

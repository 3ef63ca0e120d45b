import numpy as np
import pytest

from hpcenc.storage.array_folder import load_arrays, save_arrays
from hpcenc.storage.design import delayed_design, standardise
from hpcenc.tasks.fast_operators import DIRECT_ALPHA
from hpcenc.tasks.folds import RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.operators import (
    choose_solver,
    from_arrays,
    make_operators,
    operator_bytes,
    ops_to_device,
    to_arrays,
)

RUNS = (RunRows("a", 60, rest=((0, 8),)), RunRows("b", 45), RunRows("c", 55), RunRows("d", 50))
DELAYS = (1, 2, 3)
EXPONENTS = np.linspace(-2, 5, 20)


@pytest.fixture(scope="module")
def fold():
    return outer_folds(RUNS, DELAYS, RowPolicy())[0]


def kernel_and_design(fold, n_features, seed=7):
    features = np.cumsum(np.random.default_rng(seed).standard_normal((210, n_features)), axis=0)
    Z, _, _ = standardise(features, fold.train)
    onsets = run_onsets(RUNS)
    return window_gram(base_gram(Z), DELAYS, onsets), delayed_design(Z, DELAYS, onsets)


def test_alphas_are_relative_to_the_variance_of_the_training_kernel(fold):
    kernel, design = kernel_and_design(fold, 5)
    total_variance = design[fold.train].var(axis=0, ddof=1).sum()
    np.testing.assert_allclose(
        make_operators(kernel, fold, EXPONENTS).alphas, 10.0**EXPONENTS * total_variance, rtol=1e-10
    )


# 149 training rows span 147 dimensions: the mean is taken out, and the first rows of two runs, whose windows
# are empty, are alike.
@pytest.mark.parametrize(("n_features", "rank"), [(5, 15), (100, 147)])
def test_only_components_with_variance_are_kept(fold, n_features, rank):
    ops = make_operators(kernel_and_design(fold, n_features)[0], fold, EXPONENTS, dtype=np.float64)
    assert ops.eigenvectors.shape == (fold.train.sum(), rank)
    assert ops.eigenvalues.min() > 0
    np.testing.assert_allclose(ops.eigenvectors.T @ ops.eigenvectors, np.eye(rank), atol=1e-10)
    np.testing.assert_allclose(ops.eigenvectors.sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize(("n_features", "thin"), [(5, True), (100, False)])
def test_few_features_have_coordinates_of_their_own(fold, n_features, thin):
    ops = make_operators(kernel_and_design(fold, n_features)[0], fold, EXPONENTS)
    assert (len(ops.inner), len(ops.thin)) == ((0, 3) if thin else (3, 0))


@pytest.mark.parametrize("n_features", [5, 100])
def test_basis_filters_combine_to_the_predictions_of_every_alpha(fold, n_features):
    kernel, design = kernel_and_design(fold, n_features)
    ops = make_operators(kernel, fold, EXPONENTS, basis_tolerance=1e-13, dtype=np.float64, thin=False)
    inner = ops.inner[1]
    train, val = ops.train_rows[inner.train_rows], ops.train_rows[inner.val_rows]
    centred = design - design[train].mean(axis=0)
    by_filter = inner.operator.reshape(len(train), -1, len(val))
    for alpha, coefficients in zip(ops.alphas, inner.coefficients, strict=True):
        penalised = centred[train] @ centred[train].T + alpha * np.eye(len(train))
        explicit = np.linalg.solve(penalised, centred[train] @ centred[val].T)
        explicit -= explicit.mean(axis=0)
        combined = np.tensordot(coefficients, by_filter, axes=(0, 1))
        np.testing.assert_allclose(combined, explicit, atol=1e-9 * np.abs(explicit).max())


@pytest.mark.parametrize("thin", [False, True])
def test_the_basis_grows_with_precision_and_not_with_the_number_of_alphas(fold, thin):
    kernel, _ = kernel_and_design(fold, 100)

    def n_basis(n_alphas, tolerance):
        ops = make_operators(kernel, fold, np.linspace(-2, 5, n_alphas), tolerance, thin=thin)
        return ops.thin[0].mixtures.shape[1] if thin else ops.inner[0].coefficients.shape[1]

    assert n_basis(20, 1e-3) < n_basis(20, 1e-6)
    assert n_basis(100, 1e-5) <= n_basis(20, 1e-5) + (2 if thin else 1)


@pytest.mark.parametrize("thin", [False, True])
def test_features_that_vary_in_one_training_run_only_are_fitted(fold, thin):
    features = np.zeros((210, 2))
    features[60:105] = np.random.default_rng(8).standard_normal((45, 2))
    kernel = window_gram(base_gram(features), DELAYS, run_onsets(RUNS))
    ops = make_operators(kernel, fold, EXPONENTS, thin=thin)
    # Leaving out that run leaves nothing to learn from: zero predictions, not NaN.
    assert not (ops.thin[1].filters if thin else ops.inner[1].operator).any()
    assert all(np.isfinite(array).all() for array in to_arrays(ops).values())


def test_constant_features_are_refused(fold):
    with pytest.raises(ValueError, match="fold 'd': the kernel of its 149 training rows is zero"):
        make_operators(np.zeros((210, 210)), fold, EXPONENTS)


@pytest.mark.parametrize("exponents", [(), (1.0, 1.0), (2.0, 1.0)])
def test_exponents_must_rise(fold, exponents):
    with pytest.raises(ValueError, match="alpha exponents"):
        make_operators(np.eye(210), fold, exponents)


@pytest.mark.parametrize("n_features", [5, 100])
@pytest.mark.parametrize("alpha", [None, 30.0])
def test_operators_come_back_from_memory_mapped_files(fold, n_features, alpha, tmp_path):
    exponents = EXPONENTS if alpha is None else (0.0,)
    ops = make_operators(kernel_and_design(fold, n_features)[0], fold, exponents, alpha=alpha)
    for name, array in to_arrays(ops).items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = {path.stem: np.load(path, mmap_mode="r") for path in tmp_path.iterdir()}
    again = from_arrays(mapped)
    assert (len(again.thin), len(again.inner)) == (len(ops.thin), len(ops.inner))
    assert to_arrays(again).keys() == to_arrays(ops).keys()
    for name, array in to_arrays(again).items():
        assert array.dtype == to_arrays(ops)[name].dtype
        np.testing.assert_array_equal(array, to_arrays(ops)[name])


def test_a_missing_array_is_an_error(fold):
    for n_features, name in ((100, "inner-1-coefficients"), (5, "thin-1-mixtures")):
        arrays = to_arrays(make_operators(kernel_and_design(fold, n_features)[0], fold, EXPONENTS))
        del arrays[name]
        with pytest.raises(KeyError, match=name):
            from_arrays(arrays)


@pytest.mark.parametrize("n_features", [5, 100])
def test_every_matrix_and_no_row_index_moves_to_the_device(fold, n_features):
    ops = make_operators(kernel_and_design(fold, n_features)[0], fold, EXPONENTS)
    moved = []
    again = ops_to_device(ops, lambda array: moved.append(id(array)) or array)
    stays = {"train_rows", "test_rows", "inner_rows"} | {
        f"inner-{index}-{name}" for index in range(len(ops.inner)) for name in ("train_rows", "val_rows")
    }
    arrays = to_arrays(ops)
    assert set(moved) == {id(array) for name, array in arrays.items() if name not in stays}
    assert len(moved) == len(arrays) - len(stays)
    assert again.train_rows is ops.train_rows


def planned_and_made(fold, n_features, exponents, tolerance):
    kernel, design = kernel_and_design(fold, n_features)
    made = to_arrays(make_operators(kernel, fold, exponents, tolerance))
    planned = operator_bytes(fold, design.shape[1], exponents, tolerance)
    return planned, sum(array.nbytes for array in made.values())


@pytest.mark.parametrize("n_features", [1, 5, 30, 100])
@pytest.mark.parametrize("n_alphas", [1, 20, 200])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_planned_bytes_are_enough_and_not_twice_too_many(fold, n_features, n_alphas, tolerance):
    exponents = np.linspace(-2, 5, n_alphas) if n_alphas > 1 else np.zeros(1)
    planned, made = planned_and_made(fold, n_features, exponents, tolerance)
    assert made <= planned <= 2 * made


def test_dual_coefficients_are_one_product_for_all_alphas_but_the_smallest(fold):
    ops = make_operators(kernel_and_design(fold, 100)[0], fold, EXPONENTS, solver="fast")
    n_direct = int(np.sum(ops.alphas >= DIRECT_ALPHA * ops.eigenvalues.max()))
    assert 0 < n_direct < len(EXPONENTS)
    n_train = len(ops.train_rows)
    assert ops.fast.duals.shape == (n_direct, n_train, n_train)
    full = make_operators(kernel_and_design(fold, 100)[0], fold, EXPONENTS, dtype=np.float64)
    kernel = (full.eigenvectors * full.eigenvalues) @ full.eigenvectors.T
    centring = np.eye(n_train) - 1 / n_train
    for dual, alpha in zip(ops.fast.duals, ops.alphas[-n_direct:], strict=True):
        explicit = np.linalg.inv(kernel + alpha * np.eye(n_train)) @ centring
        np.testing.assert_allclose(dual, explicit, atol=2e-7 / alpha)
    np.testing.assert_allclose(
        ops.fast.test_kernel @ full.eigenvectors, full.test_operator, atol=1e-6 * ops.eigenvalues.max()
    )


@pytest.mark.parametrize("exponents", [np.linspace(-9, -4, 8), np.linspace(3, 6, 8)], ids=["small", "large"])
def test_all_alphas_may_be_small_or_large(fold, exponents):
    ops = make_operators(kernel_and_design(fold, 100)[0], fold, exponents, solver="fast")
    assert len(ops.fast.duals) == (8 if exponents[0] > 0 else 0)


@pytest.mark.parametrize("n_features", [1, 100])
@pytest.mark.parametrize("exponents", [(0.0,), np.linspace(-9, -4, 8), EXPONENTS], ids=["1", "small", "20"])
def test_operators_of_the_fast_solver_come_back_from_their_folder(fold, n_features, exponents, tmp_path):
    ops = make_operators(kernel_and_design(fold, n_features)[0], fold, exponents, solver="fast")
    arrays = to_arrays(ops)
    save_arrays(tmp_path / "operators", arrays)
    again = from_arrays(load_arrays(tmp_path / "operators"))
    assert isinstance(again.fast.forms.steps, np.memmap)
    assert again.fast.forms.margin.shape == ()
    assert again.inner == ()
    assert to_arrays(again).keys() == arrays.keys()
    for name, array in to_arrays(again).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])


def test_a_missing_array_of_the_fast_solver_is_an_error(fold):
    arrays = to_arrays(make_operators(kernel_and_design(fold, 5)[0], fold, EXPONENTS, solver="fast"))
    del arrays["forms-margin"]
    with pytest.raises(KeyError, match="forms-margin"):
        from_arrays(arrays)


def test_what_meets_bold_is_float32_and_what_is_small_float64(fold):
    arrays = to_arrays(make_operators(kernel_and_design(fold, 30)[0], fold, EXPONENTS, solver="fast"))
    wide = {name for name, array in arrays.items() if array.dtype == np.float64}
    assert wide == {"eigenvalues", "alphas"} | {
        f"forms-{name}" for name in ("tail_steps", "coarse_weights", "cross_grams", "tail_gram", "margin")
    }
    floats = {name: array for name, array in arrays.items() if not name.endswith("_rows")}
    assert {array.dtype for array in floats.values()} == {np.dtype(np.float32), np.dtype(np.float64)}


def test_every_matrix_of_the_fast_solver_moves_to_the_device(fold):
    ops = make_operators(kernel_and_design(fold, 5)[0], fold, EXPONENTS, solver="fast")
    moved = []
    ops_to_device(ops, lambda array: moved.append(id(array)) or array)
    arrays = to_arrays(ops)
    assert set(moved) == {id(array) for name, array in arrays.items() if not name.endswith("_rows")}


def test_the_fast_solver_is_taken_where_it_pays(fold):
    n_train = int(fold.train.sum())

    def chosen(columns, voxels=2.0, **settings):
        return choose_solver(fold, int(columns * n_train), int(voxels * n_train), EXPONENTS, **settings)

    assert chosen(columns=0.5) == "fast"
    assert chosen(columns=0.3) == "exact"
    assert chosen(columns=0.5, voxels=1.9) == "exact"
    assert chosen(columns=0.5, shared=True) == "exact"
    assert chosen(columns=1.0, shared=True) == "fast"


def test_features_that_vary_in_one_training_run_only_are_fitted_by_the_fast_solver(fold):
    features = np.zeros((210, 2))
    features[60:105] = np.random.default_rng(8).standard_normal((45, 2))
    kernel = window_gram(base_gram(features), DELAYS, run_onsets(RUNS))
    ops = make_operators(kernel, fold, EXPONENTS, solver="fast")
    assert all(np.isfinite(array).all() for array in to_arrays(ops).values())


@pytest.mark.parametrize("n_features", [1, 5, 30, 100])
@pytest.mark.parametrize("n_alphas", [1, 2, 20, 60])
def test_planned_bytes_of_the_fast_solver_are_enough_and_not_twice_too_many(fold, n_features, n_alphas):
    exponents = np.linspace(-2, 5, n_alphas) if n_alphas > 1 else np.full(1, 3.0)
    kernel, design = kernel_and_design(fold, n_features)
    arrays = to_arrays(make_operators(kernel, fold, exponents, solver="fast"))
    made = sum(array.nbytes for array in arrays.values())
    planned = operator_bytes(fold, design.shape[1], exponents, solver="fast")
    assert made <= planned <= 2 * made


def test_alphas_too_small_for_the_fast_solver_are_refused(fold):
    kernel = kernel_and_design(fold, 300)[0]
    with pytest.raises(ValueError, match=r"alpha.*is too small for the fast solver.*fit\.solver = \"exact\""):
        make_operators(kernel, fold, np.linspace(-14, 5, 20), solver="fast")
    make_operators(kernel, fold, np.linspace(-4, 5, 20), solver="fast")

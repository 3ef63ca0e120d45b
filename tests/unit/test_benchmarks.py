"""The benchmarks: that what they time is the same fit, and how `hpcenc bench` finds them."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.storage.lagged import lag_features, lagged_products
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.operators import make_operators
from hpcenc.tasks.ridge import fit_block

ROOT = Path(__file__).parents[2]
MAIN = "from hpcenc.cli.app import main; main()"
SOLVERS = ("exact", "fast", "himalaya", "himalaya-float64", "ridgecv", "b-mor", "ridge-loop", "fracridge")
SAME_CHOICE = ("exact", "fast", "himalaya", "himalaya-float64", "ridge-loop")
"""Alpha per vertex by leave-one-run-out; the others choose by other means."""


@pytest.fixture(scope="module")
def modules() -> Any:
    """Modules of the benchmarks, importable as their scripts import them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="module")
def problem(modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    module = modules("problem")
    return module.write_problem(tmp_path_factory.mktemp("problem"), module.SCALES["small"], "base", 40)


def bench(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "bench", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def solve(modules: Any, problem: Any, solver: str) -> dict[str, Any]:
    """Outputs of a solver in a process of its own, made once."""
    if solver == "fracridge":
        pytest.importorskip("fracridge")
    file = problem.folder / f"{solver}.npz"
    if not file.exists():
        modules("measure").run_job(problem.folder, modules("job").Job(solver, 40), 1, save=file)
    with np.load(file) as found:
        return dict(found)


def test_the_first_vertices_are_the_same_however_many_there_are(
    modules: Any, problem: Any, tmp_path: Path
) -> None:
    module = modules("problem")
    larger = module.write_problem(tmp_path, module.SCALES["small"], "base", 600)
    np.testing.assert_array_equal(larger.bold(0, 40), problem.bold(0, 40))
    assert not np.array_equal(larger.bold(500, 540), problem.bold(0, 40))


def test_the_problem_is_what_its_description_says(problem: Any) -> None:
    by_run = problem.bold(0, 40).reshape(5, problem.run_trs, 40)
    np.testing.assert_allclose(by_run.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(by_run.std(axis=1), 1, atol=1e-5)
    train, test = problem.design(np.float64)
    assert (len(train), len(test)) == (4 * problem.run_trs, problem.run_trs)
    np.testing.assert_allclose(problem.alphas[0], 1e-2 * np.sum(train**2) / (len(train) - 1), rtol=1e-6)
    np.testing.assert_allclose(problem.largest_eigenvalue(), np.linalg.norm(train, 2) ** 2, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_of_every_solver_give_its_scores(modules: Any, problem: Any, solver: str) -> None:
    found = solve(modules, problem, solver)
    _, test = problem.design(np.float64)
    measured = problem.bold(0, 40)[problem.fold.test]
    predicted = test @ found["weights"]
    r = [np.corrcoef(predicted[:, voxel], measured[:, voxel])[0, 1] for voxel in range(40)]
    np.testing.assert_allclose(found["r"], r, atol=1e-4)
    signal, noise = np.mean(found["r"][1::2]), np.mean(found["r"][::2])
    assert signal > max(0.1, noise + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SAME_CHOICE)
def test_solvers_of_the_same_criterion_choose_the_same_alphas(
    modules: Any, problem: Any, solver: str
) -> None:
    found, reference = (solve(modules, problem, name) for name in (solver, "himalaya-float64"))
    np.testing.assert_array_equal(found["choice"], reference["choice"])
    np.testing.assert_allclose(found["r"], reference["r"], atol=1e-4)


@pytest.mark.slow
def test_all_rows_run_at_small_scale() -> None:
    pytest.importorskip("fracridge")
    done = bench("fit", "--scale", "small", "--repeats", "1", "--threads", "1", "--spectrum", "steep")
    assert done.returncode == 0, done.stderr
    assert "**steep spectrum, 1 thread(s), CPU seconds**" in done.stdout
    for row in ("marginal", "whole", "processes", "memory", "ridge-loop", "fracridge", "delay", "gemm"):
        assert f"| {row} | " in done.stdout


@pytest.mark.slow
def test_accuracy_runs_at_small_scale() -> None:
    done = bench("accuracy", "--scale", "small")
    assert done.returncode == 0, done.stderr
    assert "| steep | exact | himalaya-float64 | 40 | 100.00%" in done.stdout


@pytest.mark.slow
def test_a_subject_runs_at_small_scale(tmp_path: Path) -> None:
    log = tmp_path / "subject.json"
    options = ("--scale", "small", "--repeats", "1", "--splits", "rotate", "equal", "--json", str(log))
    done = bench("subject", *options)
    assert done.returncode == 0, done.stderr
    assert "fit             8 of 8 units to do" in done.stdout
    assert done.stdout.count("| CIFTI to Zarr, all | ") == 2
    assert "- audio+vision, fold 4: fast, " in done.stdout
    results = {(result := json.loads(line))["split"]: result for line in log.read_text().splitlines()}
    rotate, equal = results["rotate"], results["equal"]
    for found in (rotate, equal):
        n_workers, walls, unit_s = found["n_workers"], found["walls"], found["unit_s"]
        assert sum(walls[stage] for stage in ("extract", "operators", "fit")) < walls["all"]
        assert 0 < found["solve_s"] <= unit_s["fit"]
        assert found["solve_s"] < n_workers * walls["fit"]
        assert sum(found["flop"].values()) / found["rate"] < walls["all"]
    # Four folds in place of one, of about as many rows; weights of the last fold only.
    for part in ("operators", "alphas", "refit"):
        assert 2.5 < rotate["flop"][part] / equal["flop"][part] < 4.5
    assert 0.8 < rotate["flop"]["weights"] / equal["flop"]["weights"] < 1.2


@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_the_floor_of_a_fit_counts_the_products_that_it_makes(
    solver: str, modules: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0

    def matmul(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
        nonlocal counted
        product: NDArray[Any] = np.matmul(left, right)
        precision = 2 if product.dtype == np.float64 else 1
        counted += precision * 2 * product.size * left.shape[-1]
        return product

    kernel = window_gram(base_gram(problem.features), problem.delays, problem.onsets)
    ops = make_operators(kernel, problem.fold, modules("problem").EXPONENTS, solver=solver)
    features = lag_features(problem.features, problem.delays, problem.onsets, ops.train_rows)
    bold = problem.bold(0, 40)
    with monkeypatch.context() as patch:
        patch.setattr(array_api_compat.numpy, "matmul", matmul)
        found = fit_block(bold, ops, problem.onsets, want_dual=True, n_check=40)
        lagged_products(features, found.dual)

    floor = modules("floor")
    choosing, _ = floor.choosing_flop(ops, 40, bold, problem.onsets)
    refit = floor.refit_flop(ops, found.alpha.astype(np.float32), True)
    weights = floor.weighting_flop(*problem.features.shape, problem.delays, problem.onsets, ops.train_rows)
    assert 0.98 * counted < 40 * (choosing + weights) + refit <= counted


@pytest.mark.slow
def test_scale_runs_at_small_scale() -> None:
    done = bench("scale", "--subjects", "3", "--voxels", "5100")
    assert done.returncode == 0, done.stderr
    assert "**3 subjects, 4 feature sets, 5,100 voxels: 3 tasks of 12 units, 2 workers**" in done.stdout
    assert "**3 subjects of 5,100 voxels and 420 TRs, 2 feature sets, 2 workers**" in done.stdout
    assert "6 units fitted" in done.stdout


def test_options_reach_the_script_and_its_status_comes_back() -> None:
    done = bench("fit", "--only", "nosuch")
    assert done.returncode == 2
    assert "invalid choice: 'nosuch'" in done.stderr
    assert "ridge-loop" in bench("fit", "--", "--help").stdout


def test_a_wheel_has_no_benchmarks_and_says_where_they_are(tmp_path: Path) -> None:
    for folder in ("cli", "storage"):
        shutil.copytree(ROOT / folder, tmp_path / "hpcenc" / folder)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[0] = 'hpcenc'; {MAIN}"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "fit"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path / 'hpcenc' / 'benchmarks' / 'fit.py'}: no such file" in done.stderr
    assert "Clone hpcenc's repository" in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""A test of one backend on the machine at hand, for whoever has the GPU that the developers have not.

Every check is held against NumPy in float64 or a closed form; its figures go into one plain record.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import distributions
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import DTypeLike, NDArray

from hpcenc.storage.design import delayed_design, standardise
from hpcenc.tasks.backends import (
    Backend,
    BackendChoice,
    BackendError,
    fastest_backend,
    gemm_gflops,
    open_backend,
)
from hpcenc.tasks.folds import OuterFold, RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.operators import FoldOperators, Solver, make_operators, ops_to_device
from hpcenc.tasks.records import one_line
from hpcenc.tasks.ridge import BlockFit, fit_block

Figures = Mapping[str, float | str]

MIN_EQUAL_ALPHAS = 0.995
MAX_R_ERROR = 1e-5
MAX_WEIGHTS_ERROR = 1e-4
MAX_EIGENVALUE_ERROR = 1e-10


@dataclass(frozen=True)
class Sizes:
    """What the speed is measured on."""

    gemm: int
    eigh: int
    n_trs: int
    """Of each of four runs."""
    n_voxels: int
    copy_bytes: int = 256_000_000


_SIZES = {"cpu": Sizes(1024, 800, 250, 2_500), "cuda": Sizes(8192, 3000, 500, 10_000)}
_PACKAGES = ("hpcenc", "numpy", "scipy", "array-api-compat", "torch", "cupy-cuda12x", "cupy-cuda13x")
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "CUPY_TF32", "NVIDIA_TF32_OVERRIDE",
              "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUPY_GPU_MEMORY_LIMIT")  # fmt: skip


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes
    ----------
    passed : bool or None
        None if it says nothing on this device.
    said : str
        One line for people.
    figures : mapping
        What was measured, as plain values.
    """

    name: str
    passed: bool | None
    said: str
    figures: Figures = field(default_factory=dict)


def run_selftest(name: str, report: Callable[[Check], None] = lambda check: None) -> dict[str, Any]:
    """Test a backend on this machine.

    Parameters
    ----------
    name : str
        A backend, or ``"auto"``.
    report : callable
        Is told of each check when it is done.

    Returns
    -------
    dict
        Plain values: ``passed``, ``checks``, and what the machine and the backend are. A backend that does
        not work is a check that failed, not an error.

    Raises
    ------
    ValueError
        If there is no such backend.
    """
    start = time.perf_counter()
    choice = fastest_backend() if name == "auto" else BackendChoice(name, "asked for")
    checks: list[Check] = []
    description: dict[str, str] = {}

    def note(check: Check) -> None:
        checks.append(check)
        report(check)

    try:
        backend = open_backend(choice.name)
        description = backend.describe()
    except BackendError as error:
        note(Check("device", False, one_line(error), {"traceback": traceback.format_exc()}))
    else:
        note(Check("device", True, f"{backend.name} on {description['device']}, TF32 {description['tf32']}"))
        for check_name, check in _CHECKS.items():
            note(_guarded(check_name, check, backend))
    return {
        "passed": all(check.passed is not False for check in checks),
        "backend": choice.name,
        "backend_choice": choice.how,
        "backend_description": description,
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_cores": len(os.sched_getaffinity(0)),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "seconds": round(time.perf_counter() - start, 2),
        "checks": [asdict(check) for check in checks],
    }


def _guarded(name: str, check: Callable[[Backend], Check], backend: Backend) -> Check:
    """A check; what it raises is its finding, and the others go on."""
    try:
        return check(backend)
    except Exception as error:
        return Check(name, False, one_line(error), {"traceback": traceback.format_exc()})


def _check_numerics(backend: Backend, solver: Solver) -> Check:
    """One fit in float32 on the backend against the exact solver in float64 on the host."""
    problem = _problem(n_trs=90, n_features=40, n_voxels=1000)
    bold, operators = problem.bold.astype(np.float64), problem.operators("exact", np.float64)
    exact = fit_block(bold, operators, problem.onsets, want_dual=True)
    found = _fitting(backend, problem, solver)()
    alpha_index, r, dual = (backend.to_host(getattr(found, name)) for name in ("alpha_index", "r", "dual"))
    same = alpha_index == exact.alpha_index
    r_error = _largest(np.abs(r - exact.r)[same])
    # Primal weights but for a rotation; dual coefficients themselves are not unique.
    weights = np.sqrt(operators.eigenvalues)[:, None] * operators.eigenvectors.T
    error, scale = (np.linalg.norm(weights @ values, axis=0) for values in (dual - exact.dual, exact.dual))
    weights_error = _largest((error / scale)[same])
    equal = float(same.mean())
    return Check(
        f"numerics, {solver} solver",
        equal >= MIN_EQUAL_ALPHAS and r_error <= MAX_R_ERROR and weights_error <= MAX_WEIGHTS_ERROR,
        f"{equal:.1%} of {len(same)} alphas equal, r within {r_error:.1e}, "
        f"weights within {weights_error:.1e}",
        {"equal_alphas": equal, "r_error": r_error, "weights_error": weights_error, "n_voxels": len(same)},
    )


def _check_linear_algebra(backend: Backend) -> Check:
    """An eigendecomposition, and factorisations that must not fail in silence."""
    matrix = _covariance(300)
    values = backend.to_device(matrix)
    xp = array_namespace(values)
    exact = np.linalg.eigvalsh(matrix)
    with backend.strict_linalg():
        eigenvalues = backend.to_host(xp.linalg.eigh(values)[0])
        error = _largest(np.abs(eigenvalues - exact) / exact[-1])
        of_nan = _outcome(lambda: backend.to_host(xp.linalg.eigh(values * np.nan)[0]))
        of_indefinite = _outcome(lambda: backend.to_host(xp.linalg.cholesky(-values)))
    return Check(
        "linear algebra",
        error <= MAX_EIGENVALUE_ERROR and of_nan != "finite" and of_indefinite == "raised",
        f"eigenvalues within {error:.1e}; eigh of NaN: {of_nan}; cholesky of an indefinite matrix: "
        f"{of_indefinite}",
        {"eigenvalue_error": error, "eigh_of_nan": of_nan, "cholesky_of_indefinite": of_indefinite},
    )


def _outcome(compute: Callable[[], NDArray[np.float64]]) -> str:
    try:
        values = compute()
    except Exception:  # each library has an error of its own
        return "raised"
    return "finite" if np.isfinite(values).all() else "not finite"


def _check_speed(backend: Backend) -> Check:
    """Rates of what a fit consists of, and of one fit; slow is no failure."""
    sizes = _SIZES[backend.device]
    gemm = gemm_gflops(backend, sizes.gemm, seconds=1)
    matrix = backend.to_device(_covariance(sizes.eigh))
    xp = array_namespace(matrix)
    eigh_s = _best_of(2, lambda: backend.to_host(xp.linalg.eigh(matrix)[0]))

    problem = _problem(sizes.n_trs, n_features=100, n_voxels=sizes.n_voxels)
    n_rows, n_voxels = problem.bold.shape
    exact, fast = (_fitting(backend, problem, solver) for solver in ("exact", "fast"))
    exact_s = _best_of(2, lambda: backend.to_host(exact().r))
    fast_s = _best_of(2, lambda: backend.to_host(fast().r))
    figures = {
        "gemm_float32_gflops": gemm,
        "eigh_float64_n": sizes.eigh,
        "eigh_float64_s": eigh_s,
        "fit_n_trs": n_rows,
        "fit_n_voxels": n_voxels,
        "fit_exact_s": exact_s,
        "fit_fast_s": fast_s,
    }
    said = f"{gemm:.0f} GFLOP/s, eigh of {sizes.eigh} in {eigh_s:.2f} s, "
    said += f"{n_voxels} voxels in {exact_s:.2f} s exact, {fast_s:.2f} s fast"
    if backend.device != "cpu":
        there, back = _copy_rates(backend, sizes.copy_bytes)
        figures |= {"to_device_gb_per_s": there, "to_host_gb_per_s": back}
        said += f", {there:.1f} GB/s to the device and {back:.1f} back"
    return Check("speed", True, said, figures)


def _copy_rates(backend: Backend, n_bytes: int) -> tuple[float, float]:
    values = np.ones(n_bytes // 4, np.float32)
    on_device = backend.to_device(values)
    # Of the last element: a copy may still be on its way when the call returns.
    there = _best_of(3, lambda: backend.to_host(backend.to_device(values)[-1:]))
    back = _best_of(3, lambda: backend.to_host(on_device))
    return n_bytes / there / 1e9, n_bytes / back / 1e9


def _check_out_of_memory(backend: Backend) -> Check:
    """Memory that is refused is recognised, given back, and no harm to what comes after."""
    name = "out of memory"
    if backend.device == "cpu":
        return Check(name, None, "not tested on a CPU")
    backend.free()
    before = backend.memory_bytes()
    recognised = _fill(backend, before // 8)
    backend.free()
    after = backend.memory_bytes()
    gemm_gflops(backend, 256, seconds=0)  # raises if the device is not fit for work any more
    return Check(
        name,
        recognised == "yes" and after >= 0.9 * before,
        f"recognised: {recognised}; {after / before:.0%} of {before / 1e9:.1f} GB free again",
        {"recognised": recognised, "free_before_bytes": before, "free_after_bytes": after},
    )


def _fill(backend: Backend, n_bytes: int) -> str:
    """Ask for 16 pieces of memory: whether the refusal is recognised."""
    sample = backend.to_device(np.zeros(1, np.uint8))
    xp = array_namespace(sample)
    held = []
    try:
        for _ in range(16):
            held.append(xp.empty(n_bytes, dtype=xp.uint8, device=device(sample)))
    except Exception as error:
        return "yes" if backend.is_out_of_memory(error) else f"no, {one_line(error)}"
    return "no, nothing was refused"


_CHECKS: Mapping[str, Callable[[Backend], Check]] = {
    "numerics, exact solver": partial(_check_numerics, solver="exact"),
    "numerics, fast solver": partial(_check_numerics, solver="fast"),
    "linear algebra": _check_linear_algebra,
    "speed": _check_speed,
    "out of memory": _check_out_of_memory,
}


@dataclass(frozen=True, eq=False)
class _Problem:
    """A seeded study of four runs: half of the voxels follow the features."""

    kernel: NDArray[np.float64]
    fold: OuterFold
    onsets: tuple[int, ...]
    bold: NDArray[np.float32]

    def operators(self, solver: Solver, dtype: DTypeLike = np.float32) -> FoldOperators:
        return make_operators(self.kernel, self.fold, np.linspace(-2, 5, 20), dtype=dtype, solver=solver)


def _problem(n_trs: int, n_features: int, n_voxels: int, delays: tuple[int, ...] = (1, 2, 3, 4)) -> _Problem:
    rng = np.random.default_rng(0)
    runs = [RunRows(name, n_trs) for name in "abcd"]
    fold = outer_folds(runs, delays, RowPolicy())[0]
    onsets = tuple(run_onsets(runs))
    features, _, _ = standardise(rng.standard_normal((4 * n_trs, n_features)), fold.train)
    design = delayed_design(features, delays, onsets)
    signal = design @ rng.standard_normal((design.shape[1], n_voxels))
    signal *= (np.arange(n_voxels) % 2) / signal.std(axis=0)
    bold = 10_000 + 100 * (signal + 2 * rng.standard_normal(signal.shape))
    kernel = window_gram(base_gram(features), delays, onsets)
    return _Problem(kernel, fold, onsets, bold.astype(np.float32))


def _fitting(backend: Backend, problem: _Problem, solver: Solver) -> Callable[[], BlockFit]:
    """A fit of all voxels, BOLD taken to the device each time."""
    operators = ops_to_device(problem.operators(solver), backend.to_device)
    return lambda: fit_block(backend.to_device(problem.bold), operators, problem.onsets, want_dual=True)


def _covariance(n: int) -> NDArray[np.float64]:
    factors = np.random.default_rng(1).standard_normal((n, 2 * n))
    return factors @ factors.T / (2 * n)


def _best_of(n_times: int, compute: Callable[[], Any]) -> float:
    """Seconds of the fastest of so many, after one that loads kernels and starts threads."""
    compute()
    times = []
    for _ in range(n_times):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return min(times)


def _largest(errors: NDArray[np.float64]) -> float:
    """The largest error; what is not finite counts as 1, so that it is JSON and fails every bound."""
    return float(np.nan_to_num(errors, nan=1, posinf=1, neginf=1).max(initial=0))


def _versions() -> dict[str, str]:
    found = {distribution.name.lower(): distribution.version for distribution in distributions()}
    return {name: found[name] for name in _PACKAGES if name in found}

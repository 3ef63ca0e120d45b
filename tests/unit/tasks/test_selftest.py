from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.tasks import backends, selftest
from hpcenc.tasks.selftest import Check, Sizes, run_selftest

NUMERICS = ["numerics, exact solver", "numerics, fast solver"]
NAMES = ["device", *NUMERICS, "linear algebra", "speed", "out of memory"]
SMALL = Sizes(gemm=128, eigh=50, n_trs=60, n_voxels=100, copy_bytes=1_000_000)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_SIZES", {"cpu": SMALL, "cuda": SMALL})


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert [check["name"] for check in found["checks"]] == NAMES
    return {check["name"]: check for check in found["checks"]}


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_backends_on_the_cpu_pass(name: str) -> None:
    reported: list[Check] = []
    found = run_selftest(name, reported.append)
    checks = by_name(found)
    assert found["passed"]
    assert [check.name for check in reported] == NAMES
    for numerics in (checks[name]["figures"] for name in NUMERICS):
        assert numerics["equal_alphas"] >= 0.995
        assert numerics["r_error"] > 0, "float32 was held against itself"
    assert checks["linear algebra"]["figures"]["cholesky_of_indefinite"] == "raised"
    assert checks["speed"]["figures"]["gemm_float32_gflops"] > 0
    assert (checks["out of memory"]["passed"], checks["out of memory"]["said"]) == (
        None,
        "not tested on a CPU",
    )
    assert found["backend_description"]["tf32"] == "off"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("name", ["cupy", "torch-cuda"])
@pytest.mark.gpu
def test_a_gpu_passes(name: str) -> None:
    try:
        backends.open_backend(name)
    except backends.BackendError as error:
        pytest.skip(str(error))
    assert run_selftest(name)["passed"]


def test_the_path_of_a_device_is_taken_with_the_stand_in(
    cupy_stand_in: Callable[..., AbstractContextManager[Any]],
) -> None:
    with cupy_stand_in(memory_bytes=200_000_000):
        found = run_selftest("cupy")
    checks = by_name(found)
    assert found["passed"]
    assert found["backend_description"]["device"] == "stand-in"
    assert checks["out of memory"]["figures"]["recognised"] == "yes"
    assert checks["speed"]["figures"]["to_device_gb_per_s"] > 0


def test_auto_says_what_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "fastest_backend", lambda: backends.BackendChoice("numpy", "auto: x"))
    found = run_selftest("auto")
    assert (found["backend"], found["backend_choice"]) == ("numpy", "auto: x")


class Silent(backends._CuPy):
    """CuPy as it is by default: linear algebra that fails does not say so."""

    strict_linalg = backends._NumPy.strict_linalg


class Forgetful(backends._CuPy):
    """Takes refused memory for an error in the program."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        return False


class Sloppy(backends._NumPy):
    """Rounds BOLD to 10 bits on its way, as TF32 rounds what it multiplies."""

    def to_device(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype != np.float32 or values.shape[0] != 360:
            return values
        return np.asarray(values).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(
    ("backend", "failed"),
    [
        (Silent, ["linear algebra"]),
        (Forgetful, ["out of memory"]),
        (Sloppy, NUMERICS),
    ],
)
def test_what_is_wrong_with_a_backend_is_found(
    backend: type[backends.Backend],
    failed: list[str],
    cupy_stand_in: Callable[..., AbstractContextManager[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_OPENERS", {"cupy": backend})
    with cupy_stand_in(memory_bytes=200_000_000):
        found = run_selftest("cupy")
    assert not found["passed"]
    assert [name for name, check in by_name(found).items() if check["passed"] is False] == failed


def test_a_check_that_raises_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(backend: backends.Backend) -> Check:
        raise RuntimeError("lost the device")

    monkeypatch.setattr(selftest, "_CHECKS", {**selftest._CHECKS, "numerics, fast solver": lost})
    checks = by_name(run_selftest("numpy"))
    assert checks["numerics, fast solver"]["said"] == "RuntimeError: lost the device"
    assert "Traceback" in checks["numerics, fast solver"]["figures"]["traceback"]
    assert checks["speed"]["passed"]


def test_a_backend_that_does_not_open_is_a_finding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> backends.Backend:
        raise OSError("no driver")

    monkeypatch.setattr(backends, "_OPENERS", {"cupy": no_driver})
    found = run_selftest("cupy")
    assert not found["passed"]
    (check,) = found["checks"]
    assert "no driver" in check["said"]

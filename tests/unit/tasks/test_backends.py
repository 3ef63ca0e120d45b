from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpcenc.tasks import backends
from hpcenc.tasks.backends import BackendError, fastest_backend, gemm_gflops, open_backend

ON_CPU = ("numpy", "torch")


class Rounding(backends._NumPy):
    """NumPy with the 10 bits that TF32 keeps of a float32."""

    def to_device(self, values: NDArray[Any]) -> NDArray[np.float32]:
        bits = np.asarray(values, np.float32).view(np.uint32)
        return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


class Unlucky(backends._NumPy):
    def to_device(self, values: NDArray[Any]) -> NDArray[Any]:
        raise OSError("the device is held\nby another process")


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let names open backends of the test: ``opening(name=factory)``."""

    def change(**openers: Any) -> None:
        changed = {name.replace("_", "-"): opener for name, opener in openers.items()}
        monkeypatch.setattr(backends, "_OPENERS", {**backends._OPENERS, **changed})

    return change


@pytest.mark.parametrize("name", ON_CPU)
def test_mapped_arrays_go_to_the_device_and_back(name: str, tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "values.npy", values)
    backend = open_backend(name)
    back = backend.to_host(backend.to_device(np.load(tmp_path / "values.npy", mmap_mode="r")))
    np.testing.assert_array_equal(back, values)
    assert back.dtype == np.float32


@pytest.mark.parametrize("name", ON_CPU)
def test_a_backend_on_the_cpu_has_the_memory_of_the_machine(name: str) -> None:
    backend = open_backend(name)
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    assert (backend.name, backend.device) == (name, "cpu")
    assert 0 < backend.memory_bytes() <= total
    backend.free()


@pytest.mark.parametrize("name", ON_CPU)
def test_a_backend_says_what_it_is(name: str) -> None:
    described = open_backend(name).describe()
    assert described[name] == {"numpy": np.__version__, "torch": torch.__version__}[name]
    assert described["tf32"] == "off"
    assert described["device"]


@pytest.mark.parametrize("name", ON_CPU)
def test_refused_memory_is_told_from_other_errors(name: str) -> None:
    backend = open_backend(name)
    xp = {"numpy": np, "torch": torch}[name]
    with pytest.raises((MemoryError, RuntimeError)) as refused:
        xp.zeros((2**50,))  # more than any address space
    assert backend.is_out_of_memory(refused.value)
    with pytest.raises((ValueError, RuntimeError)) as mismatched:
        xp.zeros((2, 3)) @ xp.zeros((2, 3))
    assert not backend.is_out_of_memory(mismatched.value)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_cuda_libraries_say_that_memory_was_refused(text: str, refused: bool) -> None:
    assert open_backend("torch").is_out_of_memory(RuntimeError(text)) == refused
    assert not open_backend("torch").is_out_of_memory(KeyError(text))


@pytest.mark.parametrize("name", ON_CPU)
def test_linear_algebra_that_fails_raises(name: str) -> None:
    backend = open_backend(name)
    xp = {"numpy": np, "torch": torch}[name]
    with backend.strict_linalg(), pytest.raises((np.linalg.LinAlgError, RuntimeError)):
        xp.linalg.cholesky(backend.to_device(np.array([[1.0, 2.0], [2.0, 1.0]])))


def test_torch_multiplies_in_full_precision_whatever_was_set() -> None:
    torch.set_float32_matmul_precision("medium")
    open_backend("torch")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", ON_CPU)
def test_a_cpu_has_no_tf32(name: str) -> None:
    with pytest.raises(BackendError, match=f"'{name}' has no TF32"), open_backend(name).tf32():
        pass
    assert torch.get_float32_matmul_precision() == "highest"


def test_torch_multiplies_in_tf32_only_where_it_is_told_to() -> None:
    with backends._Torch("torch-cuda", "cuda").tf32():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_product_in_reduced_precision_is_refused(opening: Any) -> None:
    opening(cupy=Rounding)
    with pytest.raises(BackendError, match=r"reduced precision.*expected 256\.0625, found 256\.0\. Unset"):
        open_backend("cupy")


def test_what_does_not_work_is_an_error_and_nothing_else_is_opened(opening: Any) -> None:
    opening(cupy=Unlucky)
    with pytest.raises(BackendError) as error:
        open_backend("cupy")
    assert "'cupy' does not work on this machine (OSError: the device is held by another" in str(error.value)
    assert "gpu-cuda12" in str(error.value)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'abacus': expected numpy, torch, torch-cuda or cupy"):
        open_backend("abacus")


def test_auto_prefers_cupy_then_torch_on_a_device(opening: Any) -> None:
    opening(cupy=backends._NumPy, torch_cuda=backends._NumPy)
    choice = fastest_backend()
    assert choice.name == "cupy"
    assert choice.how == f"auto: cupy on {open_backend('numpy').describe()['device']}"
    opening(cupy=Unlucky, torch_cuda=backends._NumPy)
    assert fastest_backend().name == "torch-cuda"


def test_without_a_device_auto_is_the_faster_at_a_matrix_product(opening: Any) -> None:
    class Slow(backends._NumPy):
        def to_host(self, values: NDArray[Any]) -> NDArray[Any]:
            time.sleep(0.05)
            return values

    opening(cupy=Unlucky, torch_cuda=Unlucky, torch=Slow)
    name, how = fastest_backend()
    assert name == "numpy"
    assert re.match(r"auto: numpy \d+ GFLOP/s, torch \d+ GFLOP/s", how)
    opening(numpy=Slow, torch=backends._NumPy)
    assert fastest_backend().name == "torch"


def test_a_rate_is_that_of_the_products_it_timed() -> None:
    assert 0.1 < gemm_gflops(open_backend("numpy"), size=256, seconds=0.01) < 10_000

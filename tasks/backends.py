"""Array libraries that fits run on: one thin backend each, chosen by name once per run.

What a library or its device does differently is here; the solver knows the array API only.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.records import one_line

Array = Any
"""An array of the backend's library, on its device."""


class BackendError(RuntimeError):
    """A backend does not work on this machine; says why, and the way out."""


class Backend(ABC):
    """An array library on a device.

    Attributes
    ----------
    name : str
        What the study file calls it.
    device : str
        ``"cpu"`` or ``"cuda"``.
    """

    name: str
    device: str

    @abstractmethod
    def to_device(self, values: NDArray[Any]) -> Array:
        """NumPy array (memory-mapped too) to an array of the library, without a copy where it can."""

    @abstractmethod
    def to_host(self, values: Array) -> NDArray[Any]:
        """The way back; waits for what is still being computed."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Memory that new arrays can have now, what the library holds in its cache included."""

    @abstractmethod
    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory was refused, so that less at a time may work."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What it is, for the records of a run: device, versions, state of TF32."""

    @abstractmethod
    def free(self) -> None:
        """Give cached memory back, for other libraries and processes."""

    def strict_linalg(self) -> AbstractContextManager[Any]:
        """Context in which linear algebra that fails raises; most libraries always do."""
        return nullcontext()

    def tf32(self) -> AbstractContextManager[Any]:
        """Context in which products of float32 matrices may be made in TF32.

        Raises
        ------
        BackendError
            If the device has none.
        """
        raise BackendError(f"backend {self.name!r} has no TF32")


class _NumPy(Backend):
    name, device = "numpy", "cpu"

    def to_device(self, values: NDArray[Any]) -> Array:
        return np.asarray(values)

    def to_host(self, values: Array) -> NDArray[Any]:
        return np.asarray(values)

    def memory_bytes(self) -> int:
        return _available_memory()

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def describe(self) -> dict[str, str]:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        versions = {"numpy": np.__version__, "blas": f"{blas['name']} {blas['version']}"}
        return {"device": _cpu_name(), **versions, "tf32": "off"}

    def free(self) -> None:
        """Nothing: it keeps none."""


class _Torch(Backend):
    def __init__(self, name: str, device: str) -> None:
        import torch

        self.name, self.device, self._torch = name, device, torch
        # TF32, or bfloat16 on some CPUs, is never a default here, whatever the process had set.
        torch.set_float32_matmul_precision("highest")

    def to_device(self, values: NDArray[Any]) -> Array:
        # A copy: torch refuses to promise that it leaves memory-mapped, read-only arrays alone.
        return self._torch.from_numpy(np.array(values)).to(self.device)

    def to_host(self, values: Array) -> NDArray[Any]:
        host: NDArray[Any] = values.cpu().numpy()
        return host

    def memory_bytes(self) -> int:
        if self.device == "cpu":
            return _available_memory()
        cuda = self._torch.cuda
        return int(cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated())

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError | self._torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSED_MEMORY)
        )

    def describe(self) -> dict[str, str]:
        torch = self._torch
        if self.device == "cpu":
            return {"device": _cpu_name(), "torch": torch.__version__, "tf32": "off"}
        return {
            "device": torch.cuda.get_device_name(),
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "driver": _nvidia_driver(),
            "tf32": "off",
        }

    def free(self) -> None:
        if self.device == "cuda":
            self._torch.cuda.empty_cache()

    @contextmanager
    def tf32(self) -> Iterator[None]:
        """Allow TF32; other threads of the process would get it too, so hold the device's turn."""
        if self.device == "cpu":
            super().tf32()
        self._torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            self._torch.set_float32_matmul_precision("highest")


class _CuPy(Backend):
    name, device = "cupy", "cuda"

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy

    def to_device(self, values: NDArray[Any]) -> Array:
        return self._cupy.asarray(values)

    def to_host(self, values: Array) -> NDArray[Any]:
        host: NDArray[Any] = self._cupy.asnumpy(values)
        return host

    def memory_bytes(self) -> int:
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return int(free + self._cupy.get_default_memory_pool().free_bytes())

    def is_out_of_memory(self, error: BaseException) -> bool:
        # CuPy's own error is a MemoryError; cuBLAS, cuSOLVER and cuFFT have theirs.
        return isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSED_MEMORY)
        )

    def describe(self) -> dict[str, str]:
        cupy, runtime = self._cupy, self._cupy.cuda.runtime
        capability = cupy.cuda.Device().compute_capability
        return {
            "device": runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(),
            "compute_capability": f"{capability[:-1]}.{capability[-1]}",
            "cupy": cupy.__version__,
            "array_api_compat": version("array-api-compat"),
            "cuda": _cuda_version(runtime.runtimeGetVersion()),
            "driver": _nvidia_driver(),
            "tf32": "off",
        }

    def free(self) -> None:
        self._cupy.fft.config.get_plan_cache().clear()  # plans hold workspaces
        self._cupy.get_default_memory_pool().free_all_blocks()
        self._cupy.get_default_pinned_memory_pool().free_all_blocks()

    def strict_linalg(self) -> AbstractContextManager[Any]:
        import cupyx

        # By default CuPy ignores what cuSOLVER reports, and gives garbage.
        context: AbstractContextManager[Any] = cupyx.errstate(linalg="raise")
        return context

    @contextmanager
    def tf32(self) -> Iterator[None]:
        """Allow TF32; other threads of the process would get it too, so hold the device's turn."""
        # CuPy's documented switch, CUPY_TF32, is read once, on import.
        core = self._cupy._core
        before = core.get_compute_type(np.float32)
        core.set_compute_type(np.float32, core._routines_linalg.COMPUTE_TYPE_TF32)
        try:
            yield
        finally:
            core.set_compute_type(np.float32, before)


_OPENERS: Mapping[str, Callable[[], Backend]] = MappingProxyType(
    {
        "numpy": _NumPy,
        "torch": lambda: _Torch("torch", "cpu"),
        "torch-cuda": lambda: _Torch("torch-cuda", "cuda"),
        "cupy": _CuPy,
    }
)
BACKENDS = tuple(_OPENERS)
"""Names of the backends. Apple's MPS is not among them: it has no float64, in which scores are summed."""

ON_DEVICES = ("cupy", "torch-cuda")
"""Those that need a CUDA device, the preferred one first."""

_REFUSED_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
)
"""What messages of refused memory hold, where the library has no class for it."""

_WAY_OUT = (
    "CuPy and its CUDA libraries come with hpcenc's extra gpu-cuda12 (or gpu-cuda13, as the driver allows); "
    'where there is no GPU, set fit.backend to "numpy", "torch" (both on the CPU) or "auto".'
)


def open_backend(name: str) -> Backend:
    """A backend that works on this machine: it has just multiplied a matrix, in full float32.

    Raises
    ------
    BackendError
        If it does not. Nothing else is opened in its place.
    ValueError
        If there is no such backend.
    """
    if name not in _OPENERS:
        raise ValueError(f"unknown backend {name!r}: expected {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
    try:
        backend = _OPENERS[name]()
        product = _product_of_ones(backend)
    except Exception as error:  # a missing library, an old driver, a device that another process holds
        raise BackendError(
            f"backend {name!r} does not work on this machine ({one_line(error)}). {_WAY_OUT}"
        ) from error
    if product != _EXACT_PRODUCT:
        raise BackendError(
            f"backend {name!r} multiplies with reduced precision, such as TF32: expected {_EXACT_PRODUCT}, "
            f"found {product}. Unset CUPY_TF32, NVIDIA_TF32_OVERRIDE and their like."
        )
    return backend


def describe_backend(name: str) -> dict[str, str]:
    """What `open_backend` opens, and its errors."""
    return open_backend(name).describe()


_SIZE = 256
_ABOVE_ONE = 1 + 2.0**-12  # 1 in TF32, which keeps 10 bits, and in bfloat16
_EXACT_PRODUCT = _SIZE * _ABOVE_ONE


def _product_of_ones(backend: Backend) -> float:
    """A value of a matrix product that is exact in float32, in whatever order it is summed."""
    left = backend.to_device(np.full((_SIZE, _SIZE), _ABOVE_ONE, np.float32))
    right = backend.to_device(np.ones((_SIZE, _SIZE), np.float32))
    product = backend.to_host(left @ right)
    return float(product[0, 0] if np.ptp(product) == 0 else np.nan)


class BackendChoice(NamedTuple):
    """A backend, and how it was chosen."""

    name: str
    how: str


def fastest_backend() -> BackendChoice:
    """What ``auto`` stands for on this machine.

    CuPy where it works on a CUDA device, else torch where it does; without a working device the faster of
    NumPy and torch at a matrix product, on the threads that they were given. It imports torch, may hold a
    device and takes seconds: call it once per run, in a process of its own.
    """
    failures = []
    for name in ON_DEVICES:
        try:
            described = describe_backend(name)
        except BackendError as error:
            failures.append(str(error.__cause__ or error))
        else:
            return BackendChoice(name, f"auto: {name} on {described['device']}")
    rates = {name: gemm_gflops(open_backend(name)) for name in ("numpy", "torch")}
    how = "auto: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items())
    if Path("/dev/nvidia0").exists():  # a device is there: whoever counts on it is told
        how += "; no backend works on the GPU: " + "; ".join(map(_brief, failures))
    return BackendChoice(max(rates, key=rates.__getitem__), how)


def gemm_gflops(backend: Backend, size: int = 1024, seconds: float = 0.2) -> float:
    """Float32 rate of a matrix product: the best of as many as fit the time, and of at least two."""
    values = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    left = right = backend.to_device(values)
    backend.to_host((left @ right)[:1, :1])  # the first one loads kernels and starts threads
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        backend.to_host((left @ right)[:1, :1])  # waits for the device
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9


def _brief(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _available_memory() -> int:
    """Memory of this machine that is free or can be made so; a job's own limit is the scheduler's."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unnamed CPU"  # Arm's kernels give no name


def _nvidia_driver() -> str:
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return first.removeprefix("NVRM version:").strip()


def _cuda_version(number: int) -> str:
    """12.9 of 12090."""
    return f"{number // 1000}.{number % 1000 // 10}"

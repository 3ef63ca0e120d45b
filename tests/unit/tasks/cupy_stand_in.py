"""A stand-in for CuPy where there is no GPU: names and signatures of the installed CuPy, values by NumPy.

Within `cupy_stand_in`, ``import cupy`` and ``array_api_compat.cupy`` are built on it, so that code under
test takes the path that it takes on a GPU: array-api-compat recognises the arrays by ``cupy.ndarray``, and
its CuPy wrapper calls the stand-in.

It proves that names exist in the installed CuPy, that calls fit their signatures (those of Python functions;
of ufuncs, the keywords are checked against a list), that no array crosses between host and device unasked,
and that refused memory and linear algebra that fails in silence are dealt with. It proves nothing of
numerics, speed, the dtypes that CuPy's kernels lack, or CUDA: that takes ``pytest -m gpu`` and
``hpcenc selftest`` on a real card.

It is stricter than CuPy where leniency hides copies: NumPy's functions refuse its arrays, and NumPy arrays
are no index.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

FROM_HOST = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"}
"""Functions that take NumPy arrays to the device."""

UFUNC_KEYWORDS = {"out", "dtype", "casting"}

BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift",
          "rshift")  # fmt: skip
COMPARISONS = ("lt", "le", "eq", "ne", "gt", "ge")
UNARY = ("neg", "pos", "abs", "invert")


@contextmanager
def cupy_stand_in(memory_bytes: int = 2**31) -> Iterator[ModuleType]:
    """Let ``cupy`` be the stand-in.

    Parameters
    ----------
    memory_bytes : int
        Memory of the device: more than that at a time raises CuPy's own error.
    """
    real = importlib.import_module("cupy")
    importlib.import_module("cupyx")  # CuPy's own: its error state needs no device
    compat = importlib.import_module("array_api_compat")
    wrapper = compat.__dict__.get("cupy")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_cupy(name)}
    if wrapper is not None:
        del compat.cupy
    stand_in = _build(real, memory_bytes)
    sys.modules.update(stand_in)
    try:
        yield stand_in["cupy"]
    finally:
        for name in [name for name in sys.modules if _is_cupy(name)]:
            del sys.modules[name]
        sys.modules.update(hidden)
        compat.__dict__.pop("cupy", None)
        if wrapper is not None:
            compat.cupy = wrapper


def _is_cupy(name: str) -> bool:
    return name.split(".")[0] == "cupy" or name.startswith("array_api_compat.cupy")


class _Array:
    """What arrays of the stand-in have; each stand-in has a class of its own, which carries its memory."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    _memory: _Memory
    device: Any

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)
        self._memory.hold(self._values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize"):
            return getattr(self._values, name)
        if name in ("T", "mT", "real", "imag"):
            return type(self)(getattr(self._values, name))
        raise AttributeError(f"the stand-in's arrays have no {name!r}")

    def get(self) -> Any:
        return self._values.copy()

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> Any:
        same = not copy and self._values.dtype == dtype
        return self if same else type(self)(self._values.astype(dtype, order))

    def copy(self, order: str = "C") -> Any:
        return type(self)(self._values.copy(order))

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        return type(self)(self._values.reshape(*shape, order=order))

    def transpose(self, *axes: Any) -> Any:
        return type(self)(self._values.transpose(*axes))

    def __getitem__(self, index: Any) -> Any:
        return type(self)(self._values[self._bare(index)])

    def __setitem__(self, index: Any, values: Any) -> None:
        self._values[self._bare(index)] = self._bare(values)

    def __len__(self) -> int:
        return len(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __float__(self) -> float:
        return float(self._values)

    @classmethod
    def _bare(cls, value: Any) -> Any:
        """An argument as NumPy takes it; NumPy arrays are refused as CuPy refuses them."""
        if isinstance(value, cls):
            return value._values
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        if isinstance(value, tuple | list):
            return type(value)(cls._bare(part) for part in value)
        return value

    @classmethod
    def _dressed(cls, value: Any) -> Any:
        """A result as CuPy gives it: arrays without dimensions instead of scalars."""
        if isinstance(value, np.ndarray | np.generic):
            return cls(value)
        if isinstance(value, tuple | list):
            parts = [cls._dressed(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value


def _define_operators() -> None:
    def binary(function: Callable[..., Any], swapped: bool = False) -> Callable[[_Array, Any], Any]:
        def apply(self: _Array, other: Any) -> Any:
            pair = (self._values, self._bare(other))
            return self._dressed(function(*reversed(pair) if swapped else pair))

        return apply

    def in_place(function: Callable[..., Any]) -> Callable[[_Array, Any], Any]:
        def apply(self: _Array, other: Any) -> Any:
            self._values = function(self._values, self._bare(other))
            return self

        return apply

    def unary(function: Callable[..., Any]) -> Callable[[_Array], Any]:
        return lambda self: self._dressed(function(self._values))

    for name in BINARY:
        plain = name.rstrip("_")
        setattr(_Array, f"__{plain}__", binary(getattr(operator, name)))
        setattr(_Array, f"__r{plain}__", binary(getattr(operator, name), swapped=True))
        setattr(_Array, f"__i{plain}__", in_place(getattr(operator, f"i{plain}")))
    for name in COMPARISONS:
        setattr(_Array, f"__{name}__", binary(getattr(operator, name)))
    for name in UNARY:
        setattr(_Array, f"__{name}__", unary(getattr(operator, name)))


_define_operators()


class _Memory:
    """Bytes that arrays own; views own none."""

    def __init__(self, total: int, refusal: type[Exception]) -> None:
        self.total, self.used, self._refusal = total, 0, refusal
        self._held: set[int] = set()

    def hold(self, values: Any) -> None:
        while isinstance(values.base, np.ndarray):
            values = values.base
        if id(values) in self._held:
            return
        if self.used + values.nbytes > self.total:
            raise self._refusal(values.nbytes, self.used, self.total)
        self.used += values.nbytes
        self._held.add(id(values))
        weakref.finalize(values, self._release, id(values), values.nbytes)

    def _release(self, key: int, n_bytes: int) -> None:
        self.used -= n_bytes
        self._held.discard(key)


def _build(real: ModuleType, memory_bytes: int) -> dict[str, ModuleType]:
    """Modules of a stand-in, by name."""
    memory = _Memory(memory_bytes, real.cuda.memory.OutOfMemoryError)

    class Device:
        """The only one."""

        id = 0
        compute_capability = "00"

        def __init__(self, device: Any = None) -> None:
            if device not in (None, 0) and not isinstance(device, Device):
                raise ValueError(f"no device {device!r}")

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Device)

        def __hash__(self) -> int:
            return 0

    array = type("ndarray", (_Array,), {"_memory": memory, "device": Device()})
    root, linalg, fft = (
        _mirror(name, getattr(real, name, real), getattr(np, name, np), array)
        for name in ("cupy", "linalg", "fft")
    )
    runtime = _module(
        "runtime",
        real.cuda.runtime,
        memGetInfo=lambda: (memory.total - memory.used, memory.total),
        runtimeGetVersion=real.cuda.runtime.runtimeGetVersion,
        driverGetVersion=lambda: 0,
        getDeviceProperties=lambda device: {"name": b"stand-in"},
    )
    device = _module("device", real.cuda.device, Device=Device)
    cuda = _module("cuda", real.cuda, Device=Device, device=device, runtime=runtime, memory=real.cuda.memory)
    pool = _module("pool", real.get_default_memory_pool(), free_bytes=lambda: 0, free_all_blocks=lambda: None)
    pinned = _module("pinned", real.get_default_pinned_memory_pool(), free_all_blocks=lambda: None)
    plans = _module("plans", real.fft._cache.PlanCache, clear=lambda: None)
    fft.config = _module("config", real.fft.config, get_plan_cache=lambda: plans)  # type: ignore[attr-defined]
    # CuPy's own asks the device whether it has TF32.
    compute_types: dict[Any, int] = {}
    core = _module(
        "_core",
        real._core,
        get_compute_type=lambda dtype: compute_types.get(dtype, 0),
        set_compute_type=compute_types.__setitem__,
        _routines_linalg=real._core._routines_linalg,
    )
    vars(root).update(
        vars(
            _module(
                "cupy",
                real,
                ndarray=array,
                linalg=linalg,
                fft=fft,
                cuda=cuda,
                _core=core,
                asnumpy=lambda values: values.get() if isinstance(values, array) else np.asarray(values),
                get_default_memory_pool=lambda: pool,
                get_default_pinned_memory_pool=lambda: pinned,
                __version__=real.__version__,
            )
        )
    )
    return {
        "cupy": root,
        "cupy.linalg": linalg,
        "cupy.fft": fft,
        "cupy.cuda": cuda,
        "cupy.cuda.device": device,
    }


def _module(name: str, real: Any, **members: Any) -> ModuleType:
    """A namespace of members that the real one has too."""
    module = ModuleType(name)
    for member, value in members.items():
        getattr(real, member)  # a name that CuPy does not have is an error
        setattr(module, member, value)
    return module


def _mirror(name: str, real: Any, numpy: Any, array: Any) -> ModuleType:
    """Functions of one CuPy module that NumPy can stand in for; what NumPy has itself is shared."""
    module = ModuleType(name)
    for member, value in vars(real).items():
        counterpart = getattr(numpy, member, None)
        if member.startswith("_") or isinstance(value, ModuleType):
            continue
        if type(value).__name__ in ("ufunc", "_GUFunc") and counterpart is not None:
            setattr(module, member, _checked(member, None, counterpart, array))
        elif isinstance(value, FunctionType) and counterpart is not None:
            setattr(module, member, _checked(member, inspect.signature(value), counterpart, array))
        elif value is counterpart or isinstance(value, float | int) or type(value).__name__ == "_Feature":
            setattr(module, member, value)
    return module


def _checked(name: str, signature: inspect.Signature | None, compute: Callable[..., Any], array: Any) -> Any:
    def call(*args: Any, **keywords: Any) -> Any:
        if signature is not None:
            try:
                signature.bind(*args, **keywords)
            except TypeError as error:
                raise TypeError(f"cupy's {name}{signature}: {error}") from None
        elif unknown := keywords.keys() - UFUNC_KEYWORDS:
            raise TypeError(f"cupy's ufunc {name}: wrong arguments {sorted(unknown)}")
        crosses = name in FROM_HOST and isinstance(args[0], np.ndarray)
        given = (np.array(args[0]), *args[1:]) if crosses else array._bare(args)
        keywords = {key: array._bare(value) for key, value in keywords.items()}
        try:
            return array._dressed(compute(*given, **keywords))
        except np.linalg.LinAlgError:
            if importlib.import_module("cupyx")._ufunc_config.get_config_linalg() == "raise":
                raise
            return _garbage(name, array, given[0])

    call.__name__ = name
    return call


def _garbage(name: str, array: Any, matrix: Any) -> Any:
    """What a failed factorisation leaves where its failure is ignored."""
    nothing = array(np.full_like(matrix, np.nan))
    if name == "cholesky":
        return nothing
    if name == "eigh":
        return array(np.full_like(matrix[..., 0], np.nan)), nothing
    raise NotImplementedError(f"the stand-in does not know what a failed {name} leaves")

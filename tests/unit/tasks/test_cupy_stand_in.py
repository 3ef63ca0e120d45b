"""What the stand-in refuses, so that what runs on it is what CuPy would take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest

from hpcenc.tasks.backends import open_backend


@pytest.fixture
def cupy(cupy_stand_in: Callable[..., AbstractContextManager[ModuleType]]) -> Iterator[Any]:
    with cupy_stand_in(memory_bytes=10_000_000) as module:
        yield module


def test_array_api_compat_takes_its_way_to_cupy(cupy: Any) -> None:
    array = cupy.asarray(np.ones((2, 3), np.float32))
    xp = array_api_compat.array_namespace(array)
    assert xp.__name__ == "array_api_compat.cupy"
    assert array_api_compat.is_cupy_array(xp.linalg.eigh(array @ array.T).eigenvalues)
    np.testing.assert_array_equal(xp.concat([array, array]).get(), np.ones((4, 3)))


@pytest.mark.parametrize(
    "crossing",
    [
        lambda cupy, array: np.asarray(array),
        lambda cupy, array: np.sqrt(array),
        lambda cupy, array: array + np.ones(3),
        lambda cupy, array: np.ones(3) + array,
        lambda cupy, array: cupy.matmul(array, np.ones((3, 3))),
        lambda cupy, array: cupy.concatenate([array, np.ones((1, 3))]),
        lambda cupy, array: array[np.array([0])],
    ],
)
def test_arrays_do_not_cross_between_host_and_device_unasked(cupy: Any, crossing: Callable[..., Any]) -> None:
    with pytest.raises(TypeError):
        crossing(cupy, cupy.asarray(np.ones((2, 3))))


@pytest.mark.parametrize(
    "call",
    [
        lambda cupy, array: cupy.linalg.eigh(array, driver="evd"),
        lambda cupy, array: cupy.mean(array, where=True),
        lambda cupy, array: cupy.sqrt(array, where=True),
        lambda cupy, array: cupy.linalg.solve_triangular(array, array),
    ],
)
def test_only_what_the_installed_cupy_has_can_be_called(cupy: Any, call: Callable[..., Any]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        call(cupy, cupy.asarray(np.eye(2)))


def test_sums_stay_arrays_on_the_device(cupy: Any) -> None:
    total = cupy.sum(cupy.ones(3))
    assert isinstance(total, cupy.ndarray)
    assert float(total) == 3


def test_views_change_with_what_they_look_at(cupy: Any) -> None:
    array = cupy.zeros((2, 3))
    column = array[:, 1]
    column += 2
    assert array.get().tolist() == [[0, 2, 0], [0, 2, 0]]


def test_the_backend_says_what_memory_is_left_and_when_it_is_refused(cupy: Any) -> None:
    backend = open_backend("cupy")
    before = backend.memory_bytes()
    held = backend.to_device(np.zeros(1_000_000))
    assert before - backend.memory_bytes() == held.nbytes == 8_000_000
    with pytest.raises(MemoryError) as refused:
        backend.to_device(np.zeros(1_000_000))
    assert backend.is_out_of_memory(refused.value)
    del held
    backend.free()
    assert backend.memory_bytes() == before


def test_failed_linear_algebra_raises_only_where_it_is_asked_to(cupy: Any) -> None:
    backend = open_backend("cupy")
    indefinite = backend.to_device(np.array([[1.0, 2.0], [2.0, 1.0]]))
    assert np.isnan(backend.to_host(cupy.linalg.cholesky(indefinite))).all()
    with backend.strict_linalg(), pytest.raises(np.linalg.LinAlgError):
        cupy.linalg.cholesky(indefinite)


def test_tf32_is_on_only_where_it_is_asked_for(cupy: Any) -> None:
    core = cupy._core
    before = core.get_compute_type(np.float32)
    with open_backend("cupy").tf32():
        assert core.get_compute_type(np.float32) == core._routines_linalg.COMPUTE_TYPE_TF32 != before
    assert core.get_compute_type(np.float32) == before


def test_the_backend_describes_what_cupy_says(cupy: Any) -> None:
    described = open_backend("cupy").describe()
    assert described["device"] == "stand-in"
    assert described["cupy"] == cupy.__version__
    assert described["cuda"].count(".") == 1


def test_cupy_itself_is_back_afterwards(
    cupy_stand_in: Callable[..., AbstractContextManager[ModuleType]],
) -> None:
    import cupy as before

    with cupy_stand_in() as during:
        assert sys.modules["cupy"] is during
    import cupy as after

    assert after is before
    assert sys.modules.get("array_api_compat.cupy") is array_api_compat.__dict__.get("cupy")

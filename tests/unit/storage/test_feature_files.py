from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from hpcenc.storage.feature_files import read_feature_file

N_TRS = 20


@pytest.fixture
def features() -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal((N_TRS, 5))


def write(path: Path, values: NDArray[Any], compressed: bool = False) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        (np.savez_compressed if compressed else np.savez)(path, features=values)
    else:
        scipy.io.savemat(path, {"features": values}, do_compression=compressed)
    return path


@pytest.mark.parametrize("name", ["pose.npy", "pose.npz", "pose.mat"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", "uint8"])
def test_numbers_of_any_kind_come_as_float32(
    tmp_path: Path, features: NDArray[np.float64], name: str, dtype: str
) -> None:
    values = (np.abs(features) * 10).astype(dtype)
    read = read_feature_file(write(tmp_path / name, values), None, N_TRS)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_an_array_in_fortran_order_keeps_its_rows(tmp_path: Path, features: NDArray[np.float64]) -> None:
    path = write(tmp_path / "pose.npy", np.asfortranarray(features))
    np.testing.assert_array_equal(read_feature_file(path, None, N_TRS), features.astype(np.float32))


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_one_of_several_arrays_is_named(tmp_path: Path, features: NDArray[np.float64], suffix: str) -> None:
    path = tmp_path / f"pose{suffix}"
    arrays = {"other": np.zeros(3), "wanted": features}
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        scipy.io.savemat(path, arrays)
    np.testing.assert_array_equal(read_feature_file(path, "wanted", N_TRS), features.astype(np.float32))
    with pytest.raises(ValueError, match=r"expected one array, found other, wanted; name one with `key`"):
        read_feature_file(path, None, N_TRS)
    with pytest.raises(ValueError, match=r"expected an array 'wnated', found other, wanted; correct `key`"):
        read_feature_file(path, "wnated", N_TRS)


def test_an_array_that_is_not_asked_for_may_be_anything(
    tmp_path: Path, features: NDArray[np.float64]
) -> None:
    path = tmp_path / "pose.npz"
    np.savez(path, notes=np.array([{"a": 1}], dtype=object), wanted=features)
    assert read_feature_file(path, "wanted", N_TRS).shape == (N_TRS, 5)
    with pytest.raises(ValueError, match="cannot be read as features"):
        read_feature_file(path, "notes", N_TRS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_value_that_float32_cannot_hold_is_named_with_its_place(
    tmp_path: Path, features: NDArray[np.float64], value: float
) -> None:
    features[7, 3] = features[9, 0] = value
    message = f"2 values are NaN or infinite in float32, the first, {value}, at row 7, column 3"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_feature_file(write(tmp_path / "pose.npy", features), None, N_TRS)


def test_other_rows_than_the_run_are_refused(tmp_path: Path, features: NDArray[np.float64]) -> None:
    path = write(tmp_path / "pose.npy", features)
    with pytest.raises(ValueError, match="expected 19 rows, one for each TR of the run, found 20"):
        read_feature_file(path, None, 19)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.zeros(N_TRS), "float64 of shape (20,)"),
        (np.zeros((N_TRS, 2, 2)), "float64 of shape (20, 2, 2)"),
        (np.zeros((N_TRS, 0)), "float64 of shape (20, 0)"),
        (np.zeros((N_TRS, 2), dtype=complex), "complex128 of shape (20, 2)"),
        (np.zeros((N_TRS, 2), dtype=bool), "bool of shape (20, 2)"),
        (np.full((N_TRS, 2), "x"), "<U1 of shape (20, 2)"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(tmp_path: Path, values: NDArray[Any], found: str) -> None:
    with pytest.raises(ValueError, match=r"expected numbers of shape \(n_trs, n_features\)") as refused:
        read_feature_file(write(tmp_path / "pose.npy", values), None, N_TRS)
    assert found in str(refused.value)


@pytest.mark.parametrize(
    ("name", "compressed"),
    [("a.npy", False), ("a.npz", False), ("a.npz", True), ("a.mat", False), ("a.mat", True)],
)
def test_a_file_cut_short_at_any_place_is_a_clear_error(
    tmp_path: Path, features: NDArray[np.float64], name: str, compressed: bool
) -> None:
    path = write(tmp_path / name, features, compressed)
    data = path.read_bytes()
    for length in {0, 1, 5, 100, 130, len(data) - 1, *np.random.default_rng(0).integers(0, len(data), 40)}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as features|{name}: expected"):
            read_feature_file(path, None, N_TRS)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.mat"])
def test_a_page_of_html_and_an_absent_file_are_clear_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be read as features"):
        read_feature_file(tmp_path / name, None, N_TRS)
    (tmp_path / name).write_text("<!DOCTYPE html><html><body>Sign in</body></html>" * 20)
    with pytest.raises(ValueError, match="cannot be read as features"):
        read_feature_file(tmp_path / name, None, N_TRS)


@pytest.mark.parametrize(("name", "found"), [("pose.csv", ".csv"), ("pose", "no suffix")])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / name).write_text("1,2")
    with pytest.raises(ValueError, match=rf"expected a .npy, .npz or .mat file, found {found}"):
        read_feature_file(tmp_path / name, None, N_TRS)

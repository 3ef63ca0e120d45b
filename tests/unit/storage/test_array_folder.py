from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.storage.array_folder import load_arrays, save_arrays
from hpcenc.storage.errors import StoreError


@pytest.fixture
def arrays() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "eigenvectors": rng.standard_normal((30, 20), dtype=np.float32),
        "alphas": rng.random(5),
        "inner-0-train_rows": np.arange(7),
        "empty": np.zeros((0, 3)),
    }


def test_arrays_come_back_memory_mapped_and_read_only(
    tmp_path: Path, arrays: dict[str, NDArray[Any]]
) -> None:
    folder = tmp_path / "cache/operators/abc"
    assert save_arrays(folder, arrays) == sum(values.nbytes for values in arrays.values())
    loaded = load_arrays(folder)
    assert set(loaded) == set(arrays)
    for name, values in arrays.items():
        assert loaded[name].dtype == values.dtype
        np.testing.assert_array_equal(loaded[name], values)
    assert isinstance(loaded["eigenvectors"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        loaded["alphas"][0] = 1
    assert list(folder.parent.iterdir()) == [folder]


def test_an_older_folder_is_replaced_under_the_feet_of_its_readers(
    tmp_path: Path, arrays: dict[str, NDArray[Any]]
) -> None:
    save_arrays(tmp_path / "abc", arrays)
    reading = load_arrays(tmp_path / "abc")["eigenvectors"]
    save_arrays(tmp_path / "abc", {"alphas": np.ones(2)})
    assert set(load_arrays(tmp_path / "abc")) == {"alphas"}
    np.testing.assert_array_equal(reading, arrays["eigenvectors"])
    assert list(tmp_path.iterdir()) == [tmp_path / "abc"]


def test_nothing_is_there_when_writing_fails(tmp_path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    class Unwritable:
        nbytes = 0

        def __array__(self, *_: Any, **__: Any) -> Any:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_arrays(tmp_path / "abc", {**arrays, "zz": Unwritable()})  # type: ignore[dict-item]
    assert not (tmp_path / "abc").exists()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be read .* Remove the folder and submit again"):
        load_arrays(tmp_path / "abc")


def test_a_deleted_array_is_an_error_and_not_an_array_that_never_was(
    tmp_path: Path, arrays: dict[str, NDArray[Any]]
) -> None:
    for name in arrays:
        save_arrays(tmp_path / "abc", arrays)
        (tmp_path / "abc" / f"{name}.npy").unlink()
        with pytest.raises(StoreError, match=rf"{name}\.npy"):
            load_arrays(tmp_path / "abc")


@pytest.mark.parametrize("length", [0, 5, 60, 130, 500])
def test_an_array_cut_short_is_an_error(tmp_path: Path, arrays: dict[str, NDArray[Any]], length: int) -> None:
    save_arrays(tmp_path / "abc", arrays)
    file = tmp_path / "abc/eigenvectors.npy"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(StoreError, match="cannot be read"):
        load_arrays(tmp_path / "abc")

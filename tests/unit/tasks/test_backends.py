from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcenc.tasks.backends import open_backend, resolve_backend


def test_named_backends_are_taken_at_their_word() -> None:
    assert resolve_backend("numpy") == "numpy"
    assert resolve_backend("torch") == "torch"


def test_auto_is_numpy_where_there_is_no_gpu() -> None:
    assert resolve_backend("auto") == ("torch" if Path("/dev/nvidia0").exists() else "numpy")


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_mapped_arrays_go_to_the_device_and_back(name: str, tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "values.npy", values)
    backend = open_backend(name)
    back = backend.to_host(backend.to_device(np.load(tmp_path / "values.npy", mmap_mode="r")))
    np.testing.assert_array_equal(back, values)
    assert back.dtype == np.float32


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'abacus': expected numpy or torch"):
        open_backend("abacus")

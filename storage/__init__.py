"""What lies on disk: study file, layout, Zarr store, marks, lock, BOLD readers and exports.

`open_study` is the way in for notebooks.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`open_study`, without the cost of zarr and xarray for who does not ask for it."""
    if name != "open_study":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hpcenc.storage.notebook import open_study

    return open_study

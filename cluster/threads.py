"""Threads of the numerical libraries: as many as were granted, the same in every executor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries read when they are loaded."""


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have environment variables at these values, and as they were afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def limited_threads(n_threads: int) -> Iterator[None]:
    """Let libraries that are loaded, and those loaded from now on, use this many threads."""
    with environment(dict.fromkeys(THREAD_VARIABLES, str(n_threads))), threadpool_limits(n_threads):
        yield

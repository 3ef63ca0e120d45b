"""What one process measures of itself: CPU and wall seconds of stages, and memory."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Clock:
    """Seconds of named stages; a stage that is entered again adds up.

    Attributes
    ----------
    stages : dict of str to [cpu, wall]
        CPU seconds are those of all threads of this process.
    """

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        spent = self.stages.setdefault(stage, [0.0, 0.0])
        spent[0] += time.process_time() - cpu
        spent[1] += time.perf_counter() - wall


def memory_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS")


def forget_peak() -> None:
    """Let `peak_bytes` count from now; where the kernel does not offer it, from the start of the process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory since `forget_peak`; unlike `resource`, never that of the parent process."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])

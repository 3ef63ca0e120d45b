"""Run tasks in this fresh process, and print the memory that they took at most.

    python measured_memory.py TASKS STORE N_SLOTS

`TASKS` holds pickled tasks; `N_SLOTS` threads run them, as those of a worker do. Prints the bytes that the
process was resident with at its peak, less those after all imports; pages of mapped files count.
"""

from __future__ import annotations

import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from hpcenc.storage.store import Store

IMPORTS = (
    "scipy.fft",
    "hpcenc.storage.bold",
    "hpcenc.storage.lagged",
    "hpcenc.storage.weights",
    "hpcenc.tasks.operators",
    "hpcenc.tasks.ridge",
)
"""What tasks import when they run."""


def status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    tasks = pickle.loads(Path(sys.argv[1]).read_bytes())
    for name in IMPORTS:
        import_module(name)
    base = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with ThreadPoolExecutor(int(sys.argv[3])) as slots:
        records = list(slots.map(lambda task: task.run(Store(sys.argv[2]), None), tasks))
    assert all(record.done and not record.failed for record in records), records
    print(status_bytes("VmHWM") - base)


if __name__ == "__main__":
    main()

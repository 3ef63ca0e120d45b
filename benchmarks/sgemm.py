"""The sgemm rate of processes that multiply at the same time, each with its threads.

As a script, one of these processes: multiplies when it is given a line, and prints the rates as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np

from measure import worker_environment

MIN_SECONDS, MIN_PRODUCTS = 2.0, 3


def sgemm_rates(size: int, n_processes: int, n_threads: int) -> list[float]:
    """Flop per second of single products of square matrices, by every process."""
    command = [sys.executable, __file__, str(size)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = worker_environment(n_threads)
    processes = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(n_processes)]
    for process in processes:
        process.stdout.readline()  # it is ready
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [(process.communicate()[0], process.returncode) for process in processes]
    if any(status for _, status in found):
        raise RuntimeError(f"{' '.join(command)}: ended with {[status for _, status in found]}")
    return [rate for text, _ in found for rate in json.loads(text)]


def main() -> None:
    size = int(sys.argv[1])
    left, right = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    out = left @ right
    print("ready", flush=True)
    sys.stdin.readline()
    seconds: list[float] = []
    while sum(seconds) < MIN_SECONDS or len(seconds) < MIN_PRODUCTS:
        start = time.perf_counter()
        np.matmul(left, right, out=out)
        seconds.append(time.perf_counter() - start)
    print(json.dumps([2 * size**3 / each for each in seconds]))


if __name__ == "__main__":
    main()

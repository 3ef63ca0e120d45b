"""Run one job in this fresh interpreter: JSON on stdin, one JSON line on stdout.

Measured is what comes after the imports and, for peers, after the reading of the BOLD.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from clock import Clock, forget_peak, memory_bytes, peak_bytes
from job import OURS, Job
from peers import PEERS, Fitted
from problem import Problem, open_problem

Work = Callable[[Clock], tuple[Fitted | None, dict[str, Any]]]
"""What is measured: gives what was fitted, if anything was, and facts for the record."""


def prepare(problem: Problem, job: Job, first: int, last: int) -> Work:
    """A job on vertices ``[first, last)``, with everything done that is not measured."""
    if job.solver not in OURS:
        bold = np.ascontiguousarray(problem.bold(first, last))
        return lambda clock: (PEERS[job.solver].fit(problem, bold, clock), {})

    import ours

    if job.task == "operators":
        return lambda clock: (None, ours.make_cache(problem, job, clock))
    if job.task == "choose":
        return lambda clock: (None, ours.choose(problem, job, first, last, clock))
    sink, kept = ours.open_sink(problem, job, first, last)

    def fit(clock: Clock) -> tuple[Fitted, dict[str, Any]]:
        return replace(ours.fit(problem, job, first, last, clock, sink), weights=kept), {}

    return fit


def main() -> None:
    order = json.load(sys.stdin)
    job = Job(**order["job"])
    importlib.import_module("ours" if job.solver in OURS else PEERS[job.solver].module)
    base, clock = memory_bytes(), Clock()
    work = prepare(open_problem(Path(order["folder"])), job, order["first"], order["last"])
    forget_peak()
    # The monotonic clock is shared by all processes.
    cpu, begin = time.process_time(), time.monotonic()
    fitted, facts = work(clock)
    cpu, end = time.process_time() - cpu, time.monotonic()
    peak = peak_bytes() - base
    if order["save"] is not None:
        weights = np.concatenate(fitted.weights, axis=1)
        np.savez(order["save"], choice=fitted.choice, r=fitted.r, weights=weights)
    libraries = {f"{lib['internal_api']} {lib.get('architecture', '')}".strip() for lib in threadpool_info()}
    facts["libraries"] = sorted(libraries)
    found = {"cpu_s": cpu, "span": [begin, end], "peak_bytes": peak, "stages": clock.stages, "facts": facts}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

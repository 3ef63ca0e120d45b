"""Run jobs in fresh processes, and compare what was measured side by side."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpcenc.cluster.pools import KEEP_FREED_MEMORY
from hpcenc.cluster.threads import THREAD_VARIABLES
from job import Job

TUNING_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Left out of the environment of the processes: every solver gets the library as it comes."""


@dataclass(frozen=True)
class Result:
    """Figures of one run of one job, of all its processes together.

    Attributes
    ----------
    cpu_s, wall_s : float
        Without interpreter, imports and, for peers, the reading of the BOLD. Wall time is from the first
        process's begin to the last one's end.
    peak_bytes : int
        Of the largest process, above its interpreter with all packages loaded.
    stages : mapping of str to (cpu, wall)
    facts : mapping
        What else the first process said.
    """

    cpu_s: float
    wall_s: float
    peak_bytes: int
    stages: Mapping[str, Sequence[float]]
    facts: Mapping[str, Any]


def run_job(folder: Path, job: Job, n_threads: int, save: Path | None = None) -> Result:
    """Run a job on the problem in a folder.

    Raises
    ------
    RuntimeError
        If a process fails; with its standard error.
    """
    command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
    edges = [round(job.n_vertices * part / job.n_processes) for part in range(job.n_processes + 1)]
    orders = [
        {"folder": str(folder), "job": asdict(job), "first": first, "last": last, "save": save and str(save)}
        for first, last in pairwise(edges)
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = worker_environment(n_threads)
    processes = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in orders]
    for process, order in zip(processes, orders, strict=True):
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        process.stdin = None
    found = []
    for process in processes:
        out, errors = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{job}: a process ended with {process.returncode}:\n{errors}")
        found.append(json.loads(out.splitlines()[-1]))
    begins, ends = zip(*(one["span"] for one in found), strict=True)
    return Result(
        cpu_s=sum(one["cpu_s"] for one in found),
        wall_s=max(ends) - min(begins),
        peak_bytes=max(one["peak_bytes"] for one in found),
        stages=found[0]["stages"],
        facts=found[0]["facts"],
    )


def worker_environment(n_threads: int) -> dict[str, str]:
    """Environment of a process that measures: every solver gets what hpcenc gives its workers."""
    kept = {name: value for name, value in os.environ.items() if name not in TUNING_VARIABLES}
    return kept | dict.fromkeys(THREAD_VARIABLES, str(n_threads)) | KEEP_FREED_MEMORY


@dataclass(frozen=True)
class Costs:
    """Results of one round of jobs, in the seconds that count: CPU of one thread, wall of several."""

    results: Mapping[Job, Result]
    n_threads: int

    def __call__(self, job: Job, *stages: str) -> float:
        """Seconds of a job, or of some of its stages."""
        found = self.results[job]
        by_clock = 0 if self.n_threads == 1 else 1
        if not stages:
            return (found.cpu_s, found.wall_s)[by_clock]
        return sum(found.stages[stage][by_clock] for stage in stages)

    def line(self, solver: str, n_few: int, n_many: int) -> tuple[float, float]:
        """Seconds that a solver takes at no vertex, and seconds per vertex, from two sizes."""
        few, many = self(Job(solver, n_few)), self(Job(solver, n_many))
        slope = (many - few) / (n_many - n_few)
        return few - slope * n_few, slope


def ratio_cells(pairs: Sequence[tuple[float, float]]) -> tuple[str, str, str]:
    """Medians of A, of B, and of A / B with its range.

    Parameters
    ----------
    pairs : sequence of (A, B)
        One of each round: the ratio is taken within rounds, where both ran under the same load.
    """
    a, b = zip(*pairs, strict=True)
    ratios = [one / other for one, other in pairs]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return f"{statistics.median(a):.3g}", f"{statistics.median(b):.3g}", spread


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])

"""Agreement of solvers: with himalaya in float64, and of the fast solver with the exact one.

    hpcenc bench accuracy
    hpcenc bench accuracy --scale small

Prints Markdown on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fit import machine, refuse_missing
from job import OURS, Job
from measure import run_job, table
from problem import SCALES, SPECTRA, Problem, write_problem

SMALL_ALPHA = 1e-3
"""Relative to the largest eigenvalue of the training kernel: below, float32 loses digits of the weights."""

HEAD = (
    "spectrum", "solver", "reference", "vertices", "same alpha", "largest difference of r where same",
    f"largest relative error of weights, alpha at least {SMALL_ALPHA} of the largest eigenvalue",
    "the same, smaller alphas",
)  # fmt: skip


def compare(found: dict[str, NDArray], reference: dict[str, NDArray], is_small: NDArray) -> tuple[str, ...]:
    """Cells of one row: agreement of two solvers on the same vertices.

    Parameters
    ----------
    found, reference : mapping
        What `peers.Fitted` holds, weights joined.
    is_small : array of bool, shape (n_alphas,)
        Which alphas are small.
    """
    same = found["choice"] == reference["choice"]
    dr = np.abs(found["r"] - reference["r"])[same]
    difference = np.linalg.norm(found["weights"] - reference["weights"], axis=0)
    error = difference / np.linalg.norm(reference["weights"], axis=0)
    small = is_small[reference["choice"]]
    return (
        f"{len(same):,}",
        f"{np.mean(same):.2%} ({np.count_nonzero(~same)} differ)",
        _largest(dr),
        _largest(error[same & ~small]),
        _largest(error[same & small]),
    )


def _largest(values: NDArray) -> str:
    return f"{values.max():.1e} ({len(values):,} vertices)" if len(values) else "no vertex"


def rows_of(problem: Problem, spectrum: str, pairs: list[tuple[Job, Job]], n_threads: int) -> list[tuple]:
    """Rows of one spectrum; every job runs once, in a process of its own."""
    is_small = problem.alphas < SMALL_ALPHA * problem.largest_eigenvalue()
    jobs = list(dict.fromkeys(job for pair in pairs for job in pair))
    files = {job: problem.folder / f"outputs-{place}.npz" for place, job in enumerate(jobs)}
    for job, file in files.items():
        print(f"  {job}", file=sys.stderr, flush=True)
        run_job(problem.folder, job, n_threads, save=file)
    rows = []
    for job, reference in pairs:
        with np.load(files[job]) as found, np.load(files[reference]) as expected:
            cells = compare(dict(found), dict(expected), is_small)
        rows.append((spectrum, job.solver, reference.solver, *cells))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        "hpcenc bench accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--spectrum", choices=SPECTRA, nargs="+", default=list(SPECTRA))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="For the problem and the outputs, 2 GB; else /tmp.")
    options = parser.parse_args()

    scale = SCALES[options.scale]
    reference = Job("himalaya-float64", scale.few)
    pairs = [(Job(solver, scale.few), reference) for solver in ("himalaya", *OURS)]
    pairs.append((Job("fast", scale.many), Job("exact", scale.many)))
    refuse_missing(job for pair in pairs for job in pair)
    rows = []
    for spectrum in options.spectrum:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="hpcenc-bench-") as folder:
            print(f"{spectrum}: making the problem", file=sys.stderr, flush=True)
            problem = write_problem(Path(folder), scale, spectrum, scale.many)
            rows += rows_of(problem, spectrum, pairs, options.threads)
    print(f"{machine()}. Scale {options.scale}.\n")
    print(table([HEAD, *rows]))


if __name__ == "__main__":
    main()

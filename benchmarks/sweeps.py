"""What a sweep over single delays costs beside the FIR window: operators and fits, in CPU seconds of one
thread.

hpcenc bench sweeps                     # 10,000 vertices, ten delays; three rounds
hpcenc bench sweeps -- --scale small    # a smoke test; its figures mean nothing
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

from clock import Clock
from hpcenc.storage.design import delayed_design
from hpcenc.storage.lagged import lag_features, lagged_products
from hpcenc.storage.layout import SHARD_VOXELS
from hpcenc.tasks.at_hand import SUB_BLOCK
from hpcenc.tasks.fitting import N_CHECK
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.kernels import Design
from hpcenc.tasks.operators import FoldOperators, choose_solver, make_operators, restrict_to_alpha
from hpcenc.tasks.ridge import fit_block
from hpcenc.tasks.zscoring import standardise
from problem import EXPONENTS, SCALES, Problem, spans, write_problem

SUBJECT_VERTICES = 59_412
"""Of a cortex: fits of a whole subject are a line through none and those that are measured."""
SHARED_PLACE = 12
"""Place of the alpha that all vertices share in the grid; any would cost the same."""


def window_operators(problem: Problem, nested: bool = False) -> FoldOperators:
    """Operators of the FIR window, as a main fit has them."""
    kernel = window_gram(base_gram(problem.features), problem.delays, problem.onsets)
    return make_operators(kernel, problem.fold, EXPONENTS, solver="fast", nested=nested)


def delay_operators(problem: Problem, delay: int, shared: bool = False) -> FoldOperators:
    """Operators of a single delay, as a sweep of a whole subject has them."""
    design = delayed_design(problem.features, (delay,), problem.onsets).astype(np.float64)
    solver = choose_solver(problem.fold, design.shape[1], SUBJECT_VERTICES, EXPONENTS, shared)
    return make_operators(Design(design), problem.fold, EXPONENTS, solver=solver, nested=True)


def fit_all(problem: Problem, ops: FoldOperators, n_vertices: int, block: int) -> None:
    """Main fits of all vertices, with their weights, which are dropped."""
    features = lag_features(problem.features, problem.delays, problem.onsets, ops.train_rows)
    for start, stop in spans(0, n_vertices, block):
        found = fit_block(problem.bold(start, stop), ops, problem.onsets, True, SUB_BLOCK, N_CHECK)
        for shard in spans(0, stop - start, SHARD_VOXELS):
            lagged_products(features, found.dual[:, slice(*shard)])


def fit_sweep(problem: Problem, variants: Sequence[FoldOperators], n_vertices: int, block: int) -> None:
    """Fits of all variants, block by block, as a task has them: BOLD is read and z-scored once."""
    for start, stop in spans(0, n_vertices, block):
        bold = standardise(problem.bold(start, stop), variants[0], problem.onsets, SUB_BLOCK)
        for ops in variants:
            fit_block(bold, ops, problem.onsets, False, SUB_BLOCK, N_CHECK, nested=True)


def rounds(problem: Problem, n_vertices: int, block: int, n_rounds: int) -> Iterator[dict[str, float]]:
    """CPU seconds of each way, round by round."""
    for _ in range(n_rounds):
        clock = Clock()
        with clock("window operators"):
            window = window_operators(problem)
        with clock("window fits"):
            fit_all(problem, window, n_vertices, block)
        with clock("window fits, one alpha"):
            fit_all(problem, restrict_to_alpha(window, SHARED_PLACE), n_vertices, block)
        del window
        with clock("delays operators"):
            variants = [delay_operators(problem, delay) for delay in problem.delays]
        with clock("delays fits"):
            fit_sweep(problem, variants, n_vertices, block)
        del variants
        with clock("delays operators, one alpha"):
            variants = [delay_operators(problem, delay, shared=True) for delay in problem.delays]
        with clock("delays fits, one alpha"):
            fit_sweep(problem, [restrict_to_alpha(ops, SHARED_PLACE) for ops in variants], n_vertices, block)
        del variants
        yield {name: cpu for name, (cpu, _) in clock.stages.items()}


def _total(seconds: dict[str, float], way: str, suffix: str, times: float) -> float:
    """Operators once and fits so many times; the window's operators are the same for one alpha."""
    operators = seconds.get(f"{way} operators{suffix}", seconds[f"{way} operators"])
    return operators + times * seconds[f"{way} fits{suffix}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="hpcenc bench sweeps", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument(
        "--columns", type=int, help="of the features; two feature sets side by side have 1,536"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scale = SCALES[options.scale]
    scale = replace(scale, n_features=options.columns or scale.n_features)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        problem = write_problem(Path(folder), scale, "base", scale.many)
        found = list(rounds(problem, scale.many, scale.many, options.repeats))
    said = f"{scale.many:,} vertices, {len(problem.delays)} delays"
    print(f"{said}, CPU seconds of one thread, {len(found)} rounds")
    for name in found[0]:
        print(f"{name:28} {median(each[name] for each in found):8.2f}")
    whole = SUBJECT_VERTICES / scale.many
    for what, suffix, wanted in (("own alphas", "", 4), ("one alpha for all", ", one alpha", 2)):
        for size, times in ((scale.many, 1.0), (SUBJECT_VERTICES, whole)):
            ratios = [
                _total(each, "delays", suffix, times) / _total(each, "window", suffix, times)
                for each in found
            ]
            line = f"delays / window, {what}, {size:,} vertices, all in: {median(ratios):.2f}"
            print(f"{line} ({min(ratios):.2f}-{max(ratios):.2f}); wanted: {wanted}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

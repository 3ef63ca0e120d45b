"""The fit against its peers: same data, same folds, same alphas, same outputs.

    hpcenc bench fit                                  all rows, base spectrum, one thread and all
    hpcenc bench fit --only marginal --spectrum steep --threads 1
    hpcenc bench fit --scale small --repeats 1        a smoke test of a minute

Every job runs in a fresh process; a round runs all jobs of the chosen rows one after the other, and ratios
are taken within rounds. One thread is measured in CPU seconds, several in wall seconds: leave the machine
idle then.
Prints Markdown on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from job import OURS, Job
from measure import Costs, Result, ratio_cells, run_job, table
from peers import PEERS
from problem import SCALES, SPECTRA, Problem, Scale, write_problem

N_SUBJECTS = 8
"""Small subjects of one stimulus."""
PACKAGES = ("numpy", "scipy", "himalaya", "scikit-learn", "fracridge")


@dataclass(frozen=True)
class Row:
    """One line of the table: A over B.

    Attributes
    ----------
    name : str
        What ``--only`` takes; rows of several solvers share it.
    title : str
        Says what A and B are.
    unit : str
    bar : str
        What the ratio should reach, if anything was promised.
    jobs : tuple of Job
        What has to be measured.
    compare : callable
        Costs of one round to A and B.
    """

    name: str
    title: str
    unit: str
    bar: str
    jobs: tuple[Job, ...]
    compare: Callable[[Costs], tuple[float, float]]


def rows_of(solver: str, scale: Scale, spectrum: str) -> list[Row]:
    """Rows that compare one of hpcenc's solvers with others, or with itself."""
    few, many, whole = scale.few, scale.many, scale.whole
    ours_few, ours_many = Job(solver, few), Job(solver, many)
    himalaya_few, himalaya_many = Job("himalaya", few), Job("himalaya", many)
    subjects = Job(solver, N_SUBJECTS * few, block=few, weights="drop")
    first = Job(solver, whole, block=many, weights="store")
    further = Job(solver, whole, block=many, weights="store", operators="load")
    further_block = Job(solver, many, block=many, weights="store", operators="load")
    one_process = Job(solver, many, weights="drop", operators="load")
    two_processes = Job(solver, many, weights="drop", operators="load", n_processes=2)

    def himalaya_at(costs: Costs, n_vertices: int) -> float:
        fixed, slope = costs.line("himalaya", few, many)
        return fixed + slope * n_vertices

    return [
        Row(
            "marginal", f"marginal cost, {few:,} to {many:,} vertices: himalaya / {solver}", "ms per vertex",
            "at least 5" if spectrum == "base" else "at least 3.5",
            (himalaya_few, ours_few, himalaya_many, ours_many),
            lambda costs: (
                1000 * costs.line("himalaya", few, many)[1], 1000 * costs.line(solver, few, many)[1]
            ),
        ),
        Row(
            "all-in", f"{many:,} vertices, all in: himalaya / {solver}", "s", "at least 2.4",
            (himalaya_many, ours_many), lambda costs: (costs(himalaya_many), costs(ours_many)),
        ),
        Row(
            "subjects", f"{N_SUBJECTS} subjects of {few:,} vertices: himalaya for each / {solver}", "s",
            "at least 7.5", (himalaya_few, subjects),
            lambda costs: (N_SUBJECTS * costs(himalaya_few), costs(subjects)),
        ),
        Row(
            "whole", f"{whole:,} vertices, weights to Zarr: himalaya (extrapolated, no Zarr) / {solver}", "s",
            "at least 4", (himalaya_few, himalaya_many, first),
            lambda costs: (himalaya_at(costs, whole), costs(first)),
        ),
        Row(
            "further", f"each further subject of the stimulus: himalaya (as before) / {solver}", "s",
            "at least 5.5", (himalaya_few, himalaya_many, further),
            lambda costs: (himalaya_at(costs, whole), costs(further)),
        ),
        Row(
            "processes", f"{many:,} vertices, operators cached, wall: {solver} in one process / in two", "s",
            "at least 1.8", (one_process, two_processes),
            lambda costs: (costs.results[one_process].wall_s, costs.results[two_processes].wall_s),
        ),
        Row(
            "memory", f"peak memory over the interpreter, {solver}: {whole:,} vertices / {many:,}", "GB",
            f"A at most {'2.5' if solver == 'exact' else '3.5'}, flat", (further, further_block),
            lambda costs: (
                costs.results[further].peak_bytes / 1e9, costs.results[further_block].peak_bytes / 1e9
            ),
        ),
        *(_peer_row(peer, solver, scale) for peer in ("ridge-loop", "ridgecv", "b-mor", "fracridge")),
    ]  # fmt: skip


def _peer_row(peer: str, solver: str, scale: Scale) -> Row:
    """A slow peer on few vertices, extrapolated along a line."""
    sizes = (scale.few // 80 or 1, scale.few // 20) if peer == "fracridge" else (scale.few // 4, scale.few)
    ours = Job(solver, scale.many)

    def compare(costs: Costs) -> tuple[float, float]:
        fixed, slope = costs.line(peer, *sizes)
        return fixed + slope * scale.many, costs(ours)

    return Row(
        peer,
        f"{scale.many:,} vertices, all in: {peer} (a line through {sizes[0]:,} and {sizes[1]:,}) / {solver}",
        "s",
        "at least 15" if peer == "ridge-loop" else "",
        (Job(peer, sizes[0]), Job(peer, sizes[1]), ours),
        compare,
    )


def rows_of_exact(scale: Scale) -> list[Row]:
    """Rows that look into the exact solver."""
    choose = Job("exact", scale.few, task="choose")
    choose_100 = Job("exact", scale.few, task="choose", n_alphas=100)
    thin = Job("exact", scale.many, delay=scale.n_delays // 2, weights="drop")
    general = Job("exact", scale.many, delay=scale.n_delays // 2, weights="drop", general=True)

    def rate_and_peak(costs: Costs) -> tuple[float, float]:
        facts = costs.results[choose].facts
        peak = facts["peak_cpu" if costs.n_threads == 1 else "peak_wall"]
        return facts["gemm_flop"] / costs(choose, "choose") / 1e9, peak / 1e9

    return [
        Row(
            "alphas", "choosing alphas, exact: of 100 / of 20", "s", "at most 1.1", (choose_100, choose),
            lambda costs: (costs(choose_100, "choose"), costs(choose, "choose")),
        ),
        Row(
            "delay", f"single delay, {scale.many:,} vertices, operators made: exact general / thin", "s",
            "at least 1.8", (general, thin),
            lambda costs: (costs(general, "fit", "weights"), costs(thin, "fit", "weights")),
        ),
        Row(
            "gemm", "choosing alphas, exact: flop of its operators a second / sgemm peak", "GFLOP/s",
            "at least 0.88", (choose,), rate_and_peak,
        ),
    ]  # fmt: skip


def chosen_rows(
    solvers: Sequence[str], scale: Scale, spectrum: str, n_threads: int, only: Sequence[str]
) -> list[Row]:
    """Rows of one table; two processes are compared with one where each has one thread."""
    rows = [row for solver in solvers for row in rows_of(solver, scale, spectrum)]
    if "exact" in solvers:
        rows += rows_of_exact(scale)
    return [
        row for row in rows if (not only or row.name in only) and (row.name != "processes" or n_threads == 1)
    ]


def run_rounds(
    problem: Problem, jobs: Sequence[Job], n_threads: int, n_rounds: int, log: IO[str] | None
) -> list[dict[Job, Result]]:
    """Results of every round, a JSON line each to `log`; caches of operators are made before the first."""
    for solver in sorted({job.solver for job in jobs if job.operators == "load"}):
        run_job(problem.folder, Job(solver, 1, task="operators"), n_threads)
    rounds: list[dict[Job, Result]] = []
    for _ in range(n_rounds):
        rounds.append({})
        for job in jobs:
            result = rounds[-1][job] = run_job(problem.folder, job, n_threads)
            _say(
                f"  {len(rounds)} of {n_rounds}: {job}: CPU {result.cpu_s:.2f} s, wall {result.wall_s:.2f} s"
            )
            if log is not None:
                place = {"spectrum": problem.spectrum, "n_threads": n_threads, "round": len(rounds)}
                print(json.dumps({**place, "job": asdict(job), **asdict(result)}), file=log, flush=True)
    return rounds


def comparison_table(rows: Sequence[Row], rounds: Sequence[dict[Job, Result]], n_threads: int) -> str:
    """Rows as Markdown: medians over rounds, and the ratio with its range."""
    lines = [("`--only`", "A / B", "unit", "A", "B", "A / B (range)", "bar")]
    for row in rows:
        cells = ratio_cells([row.compare(Costs(results, n_threads)) for results in rounds])
        lines.append((row.name, row.title, row.unit, *cells, row.bar))
    return table(lines)


def stage_table(jobs: Sequence[Job], rounds: Sequence[dict[Job, Result]], n_threads: int) -> str:
    """Where the time of every job went, medians over rounds."""
    clock = 0 if n_threads == 1 else 1
    lines = [("job", "s", "of it", "peak memory, GB")]
    for job in jobs:
        found = [results[job] for results in rounds]
        stages = (
            f"{stage} {statistics.median(result.stages[stage][clock] for result in found):.3g}"
            for stage in found[0].stages
        )
        total = statistics.median((result.cpu_s, result.wall_s)[clock] for result in found)
        peak = statistics.median(result.peak_bytes for result in found) / 1e9
        lines.append((str(job), f"{total:.3g}", ", ".join(stages), f"{peak:.2f}"))
    return table(lines)


def machine() -> str:
    """Processor and versions, one line."""
    model = re.search(r"model name\s+: (.*)", Path("/proc/cpuinfo").read_text())
    versions = (
        f"{name} {importlib.metadata.version(name)}"
        for name in PACKAGES
        if importlib.util.find_spec(name.replace("scikit-learn", "sklearn"))
    )
    return f"{model[1] if model else 'unknown processor'}, {_n_cores()} cores; {', '.join(versions)}"


def refuse_missing(jobs: Iterable[Job]) -> None:
    """End with status 2 if a peer is not installed."""
    modules = {PEERS[job.solver].module.split(".")[0] for job in jobs if job.solver in PEERS}
    missing = sorted(module for module in modules if importlib.util.find_spec(module) is None)
    if missing:
        _say(f"error: {', '.join(missing)}: not installed. In the checkout: pip install -e '.[bench]'")
        raise SystemExit(2)


def main() -> None:
    names = [row.name for row in chosen_rows(["exact"], SCALES["full"], "base", 1, ())]
    parser = argparse.ArgumentParser(
        "hpcenc bench fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=names, nargs="+", default=[], metavar="ROW", help=f"Of {', '.join(names)}."
    )
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--spectrum", choices=SPECTRA, nargs="+", default=["base"])
    parser.add_argument("--threads", nargs="+", default=["1", "all"], metavar="N", help="Numbers, or all.")
    parser.add_argument("--solvers", choices=OURS, nargs="+", default=OURS)
    parser.add_argument("--repeats", type=int, default=3, help="Rounds.")
    parser.add_argument("--folder", type=Path, help="For the problem and the weights, 4 GB; else /tmp.")
    parser.add_argument("--json", type=Path, help="Append every result here, a line each.")
    options = parser.parse_args()

    scale = SCALES[options.scale]
    counts = sorted({_n_cores() if text == "all" else int(text) for text in options.threads})
    rows = {
        (spectrum, n_threads): chosen_rows(options.solvers, scale, spectrum, n_threads, options.only)
        for spectrum in options.spectrum
        for n_threads in counts
    }
    refuse_missing(job for chosen in rows.values() for row in chosen for job in row.jobs)
    print(f"{machine()}. Scale {options.scale}, rounds: {options.repeats}.")
    with open(options.json, "a") if options.json else nullcontext() as log:
        for spectrum in options.spectrum:
            with tempfile.TemporaryDirectory(dir=options.folder, prefix="hpcenc-bench-") as folder:
                by_threads = {n_threads: rows[spectrum, n_threads] for n_threads in counts}
                measure_spectrum(Path(folder), spectrum, scale, by_threads, options.repeats, log)


def measure_spectrum(
    folder: Path, spectrum: str, scale: Scale, by_threads: Mapping[int, Sequence[Row]],
    n_rounds: int, log: IO[str] | None,
) -> None:  # fmt: skip
    """Make the problem in a folder, measure the rows of each count of threads, print two tables of each."""
    _say(f"{spectrum}: making the problem")
    n_vertices = max(job.n_vertices for rows in by_threads.values() for row in rows for job in row.jobs)
    problem = write_problem(folder, scale, spectrum, n_vertices)
    for n_threads, rows in by_threads.items():
        jobs = list(dict.fromkeys(job for row in rows for job in row.jobs))
        _say(f"{spectrum}, {n_threads} threads, load {os.getloadavg()[0]:.1f}")
        rounds = run_rounds(problem, jobs, n_threads, n_rounds, log)
        seconds = "CPU seconds" if n_threads == 1 else "wall seconds"
        print(f"\n**{spectrum} spectrum, {n_threads} thread(s), {seconds}**\n")
        print(comparison_table(rows, rounds, n_threads))
        print(f"\n{stage_table(jobs, rounds, n_threads)}", flush=True)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

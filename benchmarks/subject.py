"""A whole subject of a paper's size, CIFTI to Zarr, against the flop that its fit cannot do without.

    hpcenc bench subject                               one subject, HCP's runs, the last one tests
    hpcenc bench subject --splits single rotate equal  each run tests once; five equal runs too
    hpcenc bench subject --scale small --repeats 1     a smoke test of a minute

Three feature spaces and the sum of two, primal weights: `hpcenc submit` in a process of its own, into a new
store each time, timed by its events. The report is written, but not counted. Leave the machine idle.
Prints Markdown on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from fit import machine
from floor import PARTS, floor_flop
from hpcenc.cluster.run_folder import Event, RunFolder
from hpcenc.storage.study import Study, load_study
from measure import ratio_cells, table, worker_environment
from paper import FEATURE_SETS, SIZES, SPLITS, Size, Split, run_lengths, write_study
from sgemm import sgemm_rates

MAIN = "from hpcenc.cli.app import main; main()"
FIT_PARTS = PARTS[1:]


@dataclass(frozen=True)
class Result:
    """Figures of one run.

    Attributes
    ----------
    walls : mapping of str to float
        Wall seconds: ``all`` from the start of the command to the end of the last fit, and each stage of it
        from the start of its workers to their end.
    unit_s : mapping of str to float
        Seconds of all units of a stage together.
    solve_s : float
        Wall seconds that fits computed, in all workers together. Two slots of a worker never compute at once.
    flop : mapping of str to float
        The floor, by part.
    recipe : list of str
    rate : float
        Flop per second of all workers together at sgemm: median of products before and after.
    n_workers : int
    """

    walls: Mapping[str, float]
    unit_s: Mapping[str, float]
    solve_s: float
    flop: Mapping[str, float]
    recipe: Sequence[str]
    rate: float
    n_workers: int

    def floor_s(self, *parts: str) -> float:
        """Seconds that parts of the floor take at the rate."""
        return sum(self.flop[part] for part in parts) / self.rate

    @property
    def idle_s(self) -> tuple[float, float]:
        """Seconds of workers in the fit stage: in which no slot computed, and in all."""
        total = self.n_workers * self.walls["fit"]
        return total - self.solve_s, total


def measure(path: Path, size: int, n_workers: int, n_threads: int) -> Result:
    """Run a study from nothing.

    Parameters
    ----------
    path : Path
        The study file.
    size : int
        Rows and columns of the products that the rate is measured by.
    """
    study = load_study(path)
    shutil.rmtree(study.store_path.parent, ignore_errors=True)
    rates = sgemm_rates(size, n_workers, n_threads)
    start = time.time()
    _command("submit", path, n_threads, "--profile", "local")
    rates += sgemm_rates(size, n_workers, n_threads)
    flop, recipe = floor_flop(study, FEATURE_SETS)
    walls, unit_s, solve_s = _times(study, start)
    return Result(walls, unit_s, solve_s, flop, recipe, n_workers * statistics.median(rates), n_workers)


def _times(study: Study, start: float) -> tuple[dict[str, float], dict[str, float], float]:
    folder = RunFolder.latest(study.store_path)
    assert folder is not None
    walls: dict[str, float] = {}
    unit_s: defaultdict[str, float] = defaultdict(float)
    solve_s = 0.0
    for event in folder.events():
        if event["event"] == "stage" and event["stage"] == "report":
            walls["all"] = _moment(event) - start
        elif event["event"] == "stage":
            walls[event["stage"]] = -_moment(event)
        elif event["event"] == "stage end":
            walls[event["stage"]] += _moment(event)
        elif event["event"] == "unit":
            unit_s[event["stage"]] += event["seconds"]
            solve_s += event["facts"].get("solve_seconds", 0.0)
    return walls, dict(unit_s), solve_s


def _moment(event: Event) -> float:
    """Seconds since the epoch."""
    return datetime.fromisoformat(event["time"]).timestamp()


def _command(name: str, path: Path, n_threads: int, *options: str, **how: object) -> str:
    """Run a command on a study; gives its stdout, if that is asked for, else it joins the progress."""
    arguments = [name, str(path), "--models", ",".join(FEATURE_SETS), *options]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        env=worker_environment(n_threads), text=True, check=False, **{"stdout": sys.stderr, **how},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"hpcenc {' '.join(arguments)} ended with {done.returncode}; see above")
    return done.stdout


def time_table(results: Sequence[Result]) -> str:
    """Times over their floors, medians over runs."""

    def row(what: str, stages: Sequence[str], parts: Sequence[str], bar: str) -> tuple[str, ...]:
        pairs = [(sum(one.walls[stage] for stage in stages), one.floor_s(*parts)) for one in results]
        return (what, *ratio_cells(pairs), bar)

    return table(
        [
            ("wall time", "s", "floor, s", "time / floor (range)", "bar"),
            row("operators", ["operators"], ["operators"], ""),
            row("fits", ["fit"], FIT_PARTS, ""),
            row("operators and fits", ["operators", "fit"], PARTS, ""),
            row("CIFTI to Zarr, all", ["all"], PARTS, "at most 1.35"),
        ]
    )


def idle_line(results: Sequence[Result]) -> str:
    """How much of the workers' time in the fit stage went without computing."""
    shares = [idle / total for idle, total in (one.idle_s for one in results)]
    starting = statistics.median(one.walls["extract"] / one.walls["fit"] for one in results)
    return (
        f"No slot of a worker computed in {statistics.median(shares):.1%} of the fit stage "
        f"({min(shares):.1%}–{max(shares):.1%}; bar for reading and writing alone: at most 5 %). This counts "
        "workers that start, and one that waits for another's last task; the stage that reads the features, "
        f"which hardly does more than start its workers, took {starting:.1%} as long."
    )


def part_table(results: Sequence[Result]) -> str:
    """Where the floor lies, and where the workers' time went; of the run in the middle."""
    middle = sorted(results, key=lambda one: one.walls["all"])[len(results) // 2]
    rows = [("part of the floor", "TFLOP", "s at the rate")]
    rows += [(part, f"{middle.flop[part] / 1e12:.3g}", f"{middle.floor_s(part):.3g}") for part in PARTS]
    stages = "; ".join(
        f"{stage} {wall:.3g} s of wall time, {middle.unit_s[stage]:.3g} s of units"
        for stage, wall in middle.walls.items()
        if stage in middle.unit_s
    )
    return "\n".join(
        [
            table(rows),
            "",
            f"sgemm of all workers together: {middle.rate / 1e9:.3g} GFLOP/s. Stages: {stages}; of the fits' "
            f"units, {middle.solve_s:.3g} s computed.",
            "",
            *(f"- {line}" for line in middle.recipe),
        ]
    )


def title(size: Size, split: Split, options: argparse.Namespace) -> str:
    """What one set of tables is of."""
    lengths = " + ".join(map(str, run_lengths(size, split)))
    tests = "every run tests once" if split == "rotate" else "the last run tests"
    return (
        f"**{split}: {options.subjects} subject(s) of {size.n_vertices:,} vertices, {lengths} TRs, {tests}; "
        f"{size.n_features} columns ({2 * size.n_features} of {FEATURE_SETS[-1]}), {size.n_delays} delays; "
        f"{options.workers} worker(s) of {options.threads} thread(s)**"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        "hpcenc bench subject", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", choices=SPLITS, nargs="+", default=["single"])
    parser.add_argument("--subjects", type=int, default=1, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="Processes.")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="BLAS threads of each.")
    parser.add_argument("--scale", choices=SIZES, default="full")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each split.")
    parser.add_argument(
        "--folder",
        type=Path,
        help="For study and store: 16 GB, 30 GB for rotate, 10 GB for each further subject; else /tmp.",
    )
    parser.add_argument("--json", type=Path, help="Append every result here, a line each.")
    options = parser.parse_args()

    print(f"{machine()}. Scale {options.scale}, runs: {options.repeats}.")
    with open(options.json, "a") if options.json else nullcontext() as log:
        for split in options.splits:
            with tempfile.TemporaryDirectory(dir=options.folder, prefix="hpcenc-bench-") as folder:
                measure_split(Path(folder), split, options, log)


def measure_split(folder: Path, split: Split, options: argparse.Namespace, log: IO[str] | None) -> None:
    """Write the study of a split to a folder, run it as often as asked for, and print what was found."""
    size, n_workers, n_threads = SIZES[options.scale], options.workers, options.threads
    _say(f"{split}: writing the study")
    path = write_study(folder, size, split, options.subjects, n_workers, n_threads)
    price = _command("check", path, n_threads, stdout=subprocess.PIPE)
    print(f"\n{title(size, split, options)}\n\nPriced before:\n")
    print("".join(f"    {line}\n" for line in price.splitlines()), flush=True)
    *training, _ = run_lengths(size, split)
    results = []
    for place in range(options.repeats):
        _say(f"{split}: run {place + 1} of {options.repeats}, load {os.getloadavg()[0]:.1f}")
        results.append(measure(path, sum(training), n_workers, n_threads))
        if log is not None:
            print(json.dumps({"split": split, **asdict(results[-1])}), file=log, flush=True)
    print(f"{time_table(results)}\n\n{idle_line(results)}\n\n{part_table(results)}", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

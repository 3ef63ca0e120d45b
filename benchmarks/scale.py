"""Many subjects: what planning and driving their fits costs, and that small ones run to completion.

    hpcenc bench scale                            both parts
    hpcenc bench scale --only idle --subjects 44
    hpcenc bench scale --only real

The idle part plans HCP's four runs with four feature sets, from a study file, feature files and BOLD files
(whose values are holes on the disk, since nothing reads them), and takes the plan through the real
controller and worker processes with fits that do nothing. The real part submits small subjects by the
command line, and all is computed. Prints Markdown on stdout.
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import distributed  # noqa: F401  (imports are no part of what is measured)
import numpy as np

import hpcenc.storage.store  # noqa: F401
from clock import memory_bytes
from hpcenc.cluster.controller import Progress, run_plan
from hpcenc.cluster.executors import DaskExecutor
from hpcenc.cluster.pools import LocalPool
from hpcenc.cluster.run_folder import Event, RunFolder
from hpcenc.cluster.status import read_status
from hpcenc.cluster.submit import Prepared, make_groups
from hpcenc.storage.marks import write_mark
from hpcenc.storage.study import Study, load_study
from hpcenc.tasks.backends import BackendChoice
from hpcenc.tasks.fitting import FitBlock
from hpcenc.tasks.inspection import digest_memory, inspect
from hpcenc.tasks.memory import worker_peak
from hpcenc.tasks.plan import Plan, planned_files
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.selection import select_feature_sets
from idle import IdleFit
from measure import table

HCP_RUNS = {"movie1": 921, "movie2": 918, "movie3": 915, "movie4": 901}
SMALL_RUNS = {"a": 120, "b": 110, "c": 100, "d": 90}
IDLE_SETS = {"audio": 768, "image": 768, "both": 768}
SMALL_SETS = {"audio": 32, "image": 24}
N_WORKERS = 2


def write_study(
    folder: Path,
    runs: Mapping[str, int],
    widths: Mapping[str, int],
    n_subjects: int,
    n_voxels: int,
    holes: bool,
) -> Path:
    """A study of feature files; its BOLD files are holes, or follow the first features under noise."""
    rng = np.random.default_rng(0)
    first, *_ = widths
    mix = rng.standard_normal((widths[first], n_voxels), dtype=np.float32)
    subjects = [f"s{place:03}" for place in range(n_subjects)]
    (folder / "bold").mkdir()
    for run, n_trs in runs.items():
        features = {
            name: rng.standard_normal((n_trs, width), dtype=np.float32) for name, width in widths.items()
        }
        for name, values in features.items():
            np.save(folder / f"{name}_{run}.npy", values)
        for subject in subjects:
            path = folder / "bold" / f"{subject}_{run}.npy"
            if holes:
                _write_holes(path, (n_trs, n_voxels))
                continue
            bold = 500 + 5 * rng.standard_normal((n_trs, n_voxels), dtype=np.float32)
            bold[2:] += features[first][:-2] @ mix
            np.save(path, bold)
    lines = ['name = "scale"', "tr_s = 1.0"]
    for run, n_trs in runs.items():
        lines += ["[[runs]]", f'name = "{run}"', f"n_trs = {n_trs}"]
    lines += ["[subjects]", f"ids = {subjects}", "[bold]", 'path = "bold/{subject}_{run}.npy"']
    for name in widths:
        lines += [f"[feature_files.{name}]", f'path = "{name}_{{run}}.npy"']
    lines += ["[fit]", 'backend = "numpy"', "[cluster]", f"n_workers = {N_WORKERS}", "threads_per_worker = 1"]
    path = folder / "study.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _write_holes(path: Path, shape: tuple[int, int]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 4 * shape[0] * shape[1])


@dataclass(frozen=True)
class Usage:
    """Wall and CPU seconds of this process so far, and its memory in bytes; or differences of them."""

    wall_s: float
    cpu_s: float
    n_bytes: int

    @classmethod
    def now(cls) -> Usage:
        return cls(time.perf_counter(), time.process_time(), memory_bytes())

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s, self.n_bytes - other.n_bytes)

    def cells(self, n_tasks: float) -> tuple[str, ...]:
        """In all, and for each task."""
        return (
            f"{self.wall_s:.2f}",
            f"{self.cpu_s:.2f}",
            f"{self.n_bytes / 1e6:.1f}",
            f"{1e3 * self.wall_s / n_tasks:.2f}",
            f"{1e3 * self.cpu_s / n_tasks:.2f}",
            f"{self.n_bytes / 1e3 / n_tasks:.1f}",
        )


HEAD = ("step", "wall s", "CPU s", "memory MB", "wall ms a task", "CPU ms a task", "kB a task")


def run_idle(folder: Path, n_subjects: int, n_voxels: int) -> None:
    """Plan and drive fits that do nothing, and print what it cost."""
    path = write_study(folder, HCP_RUNS, IDLE_SETS, n_subjects, n_voxels, holes=True)
    steps: dict[str, Usage] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        before = Usage.now()
        yield
        steps[name] = Usage.now() - before

    with step("study, headers of the BOLD"):
        study = load_study(path)
        feature_sets = select_feature_sets(study, "audio,image,both,audio+image")
        digests = digest_memory(study)
        facts = inspect(study, feature_sets, study.subjects.ids, digests)
    with step("plan"):
        plan = make_plan(study, feature_sets, facts, "numpy")
    # Not `prepare`, which would refuse to fill a disk with weights that nobody computes.
    peak = worker_peak(plan, study.store_path, overlaps=True)
    chosen = BackendChoice("numpy", "named")
    prepared = Prepared(
        study,
        feature_sets,
        facts,
        plan,
        chosen,
        digests,
        models="",
        layers="",
        profile="local",
        site=None,
        peak=peak,
    )
    with step("run folder"):
        run = RunFolder.create(study.store_path, "scale", plan, {})
    with step("groups of the store"):
        make_groups(prepared, {})
    _mark_all_but_fits(plan, study)

    tasks = tuple(IdleFit(task) for task in plan.stages[-1].tasks if isinstance(task, FitBlock))
    driven = replace(plan, stages=(*plan.stages[:-1], replace(plan.stages[-1], tasks=tasks)))
    with step("drive, with the start of workers"):
        steady = _drive(driven, study, run)
    with step("find that nothing is left"):
        assert not any(stage.tasks for stage in plan.pending(study.store_path))
    with step("status"):
        done, n_units = read_status(study).stages["fit"]
    assert done == n_units == len(feature_sets) * len(tasks)

    print(f"**{n_subjects} subjects, {len(feature_sets)} feature sets, {n_voxels:,} voxels: "
          f"{len(tasks):,} tasks of {n_units:,} units, {N_WORKERS} workers**\n")  # fmt: skip
    rows = [(name, *usage.cells(len(tasks))) for name, usage in steps.items()]
    print(table([HEAD, *rows, ("drive, the last nine tenths", *steady.cells(0.9 * len(tasks)))]))
    seconds = [event["seconds"] for event in run.events() if event["event"] == "unit"]
    print(f"\n- the tasks' own work (their marks): {1e3 * sum(seconds) / len(tasks):.1f} ms a task, in "
          f"{N_WORKERS * plan.stages[-1].slots} slots")  # fmt: skip
    sizes = [len(pickle.dumps(task)) / 1e3 for task in tasks]
    print(f"- a task travels in {max(sizes):.1f} kB")
    for name in ("plan.json", "events.jsonl"):
        print(f"- {name}: {(run.path / name).stat().st_size / 1e6:.2f} MB")
    n_files = sum(path.is_file() for path in study.store_path.rglob("*"))
    n_weights = sum(spec.arrays["weights"].n_files for spec in plan.groups if "weights" in spec.arrays)
    print(f"- files of the store: {planned_files(plan.groups):,} with all values, {n_weights:,} of them "
          f"weights; {n_files:,} made here, metadata and marks")  # fmt: skip


def _mark_all_but_fits(plan: Plan, study: Study) -> None:
    """Leave what a run of the earlier stages would leave, as far as fits that do nothing look at it."""
    for unit in (unit for stage in plan.stages[:-1] for task in stage.tasks for unit in task.units):
        if unit.cached is not None:
            unit.cached.mkdir(parents=True)
        write_mark(study.store_path, unit.group, unit.index, unit.digest)


def _drive(plan: Plan, study: Study, run: RunFolder) -> Usage:
    """Take the fits through the controller; gives what the last nine tenths of them took."""
    n_units = sum(len(task.units) for task in plan.stages[-1].tasks)
    progress = Progress()
    usages: list[Usage] = []
    n_done = 0

    def emit(event: Event) -> None:
        nonlocal n_done
        run.log(event)
        if event["event"] == "unit":
            n_done += 1
            if n_done in (n_units // 10, n_units):
                usages.append(Usage.now())

    executor = DaskExecutor(LocalPool(N_WORKERS, n_threads=1))
    run_plan(plan, study.store_path, executor, None, emit, progress)
    assert (progress.units_done, progress.set_aside) == (n_units, [])
    begin, end = usages
    return end - begin


def run_real(folder: Path, n_subjects: int, n_voxels: int) -> None:
    """Submit small subjects by the command line, and print what it took."""
    path = write_study(folder, SMALL_RUNS, SMALL_SETS, n_subjects, n_voxels, holes=False)
    command = [sys.executable, "-c", "from hpcenc.cli.app import main; main()", "submit", str(path)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - begin
    if done.returncode != 0:
        raise RuntimeError(f"hpcenc submit ended with {done.returncode}:\n{done.stderr}")
    study = load_study(path)
    status = read_status(study)
    run = RunFolder.latest(study.store_path)
    assert run is not None
    begins = {event["stage"]: event["time"] for event in run.events() if event["event"] == "stage"}
    spans = list(begins.values()) + [event["time"] for event in run.events() if event["event"] == "end"]
    seconds = [
        f"{stage} {(datetime.fromisoformat(stop) - datetime.fromisoformat(start)).total_seconds():.0f} s"
        for stage, (start, stop) in zip(begins, pairwise(spans), strict=True)
    ]
    print(f"**{n_subjects} subjects of {n_voxels:,} voxels and {sum(SMALL_RUNS.values())} TRs, "
          f"{len(SMALL_SETS)} feature sets, {N_WORKERS} workers**\n")  # fmt: skip
    done_fits, n_fits = status.stages["fit"]
    assert done_fits == n_fits
    print(f"{n_fits} units fitted; {wall:.0f} s in all, of which {', '.join(seconds)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("idle", "real"))
    parser.add_argument("--subjects", type=int, help="by default 176 idle ones, 24 real ones")
    parser.add_argument("--voxels", type=int, help="by default 64,984 idle ones, 12,000 real ones")
    options = parser.parse_args()
    for name, run, n_subjects, n_voxels in (("idle", run_idle, 176, 64_984), ("real", run_real, 24, 12_000)):
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                run(Path(folder), options.subjects or n_subjects, options.voxels or n_voxels)


if __name__ == "__main__":
    main()

"""What a run asks of this machine: hours, memory, disk, and whether the machine has it."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hpcenc.cluster.executors import workers_and_threads
from hpcenc.cluster.granted import memory_bytes, n_cores
from hpcenc.cluster.recruiting import MARGIN_S
from hpcenc.cluster.threads import limited_threads
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.storage.layout import SHARD_VOXELS
from hpcenc.storage.space import space_left
from hpcenc.storage.study import Study
from hpcenc.tasks.backends import ON_DEVICES, gemm_gflops, open_backend
from hpcenc.tasks.memory import WorkerPeak, worker_peak
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.price import ASSUMED_GFLOPS, longest_units, price_plan


def memory_problems(study: Study, peak: WorkerPeak, profile: str, granted: int, on_device: bool) -> list[str]:
    """Why the workers of a run would not fit the memory, and the way out; nothing if they do.

    Parameters
    ----------
    study : Study
    peak : WorkerPeak
    profile : str
    granted : int
        Bytes of memory that all workers together may use.
    on_device : bool
        Whether the fits are on this machine's GPU.
    """
    n_workers, _ = workers_and_threads(profile, study.cluster, n_cores(), granted, peak.n_bytes, on_device)
    if n_workers * peak.n_bytes <= granted:
        return []
    ways, fit = [], study.fit
    if n_workers > 1 and peak.n_bytes <= granted:
        ways.append(f"cluster.n_workers to {granted // peak.n_bytes}")
    if peak.stage == "fit":
        if fit.block > SHARD_VOXELS:
            ways.append(f"fit.block to {SHARD_VOXELS} (it is {fit.block})")
        if fit.weights == "primal":
            ways.append('fit.weights to "dual" or "none"')
    if peak.stage in ("fit", "operators") and fit.solver != "exact":
        ways.append('fit.solver to "exact"')
    way_out = f"Set {', or '.join(ways)}, or take" if ways else "Take"
    workers = f"{n_workers} workers need" if n_workers > 1 else "a worker needs"
    return [
        f"memory: {workers} {peak.n_bytes / 1e9:.1f} GB{' each' if n_workers > 1 else ''} ({peak.task}), "
        f"this machine grants {granted / 1e9:.1f} GB. {way_out} a machine with more memory."
    ]


def worker_memory_problems(study: Study, plan: Plan, site: SlurmProfile, profile: str) -> list[str]:
    """Why the workers that a site's profile asks for have too little memory; nothing if they do not."""
    problems = []
    kinds: tuple[Literal["cpu", "gpu"], ...] = ("cpu", "gpu")
    for kind in kinds:
        peak = worker_peak(plan, study.store_path, overlaps=True, worker=kind)
        table = "cpu" if site.gpu is None else kind
        asked = site.workers(kind).memory_bytes
        if peak.n_bytes > asked and peak.stage:
            problems.append(
                f"profile {profile!r}: {table}.memory: a worker needs {peak.n_bytes / 1e9:.1f} GB "
                f"({peak.task}), found {asked / 1e9:.1f} GB. Ask for {-(-peak.n_bytes // 1024**3)}G"
            )
    return problems


def walltime_problems(plan: Plan, store: Path, site: SlurmProfile, profile: str, backend: str) -> list[str]:
    """Units that would not fit a worker's job, by the rate of this machine's cores; nothing of GPUs."""
    problems = []
    kinds: dict[str, Literal["cpu", "gpu"]] = {stage.name: stage.worker for stage in plan.stages}
    longest: dict[int, dict[str, tuple[float, str]]] = {}
    for stage, kind in kinds.items():
        if kind == "gpu" and site.gpu is not None and (stage == "extract" or backend in ON_DEVICES):
            continue
        workers, table = site.workers(kind), "cpu" if site.gpu is None else kind
        if workers.cores not in longest:
            rate = workers.cores * measured_gflops(1)
            longest[workers.cores] = longest_units(plan, store, rate, workers.cores)
        seconds, unit = longest[workers.cores].get(stage, (0.0, ""))
        needed_min = math.ceil((1.5 * seconds + MARGIN_S) / 60)
        if needed_min > workers.walltime_min:
            cores = f"{workers.cores} core{'s' * (workers.cores > 1)}"
            problems.append(
                f"profile {profile!r}: {table}.walltime: {unit} takes about {seconds / 60:.0f} min on "
                f"{cores} like those here, and jobs last {workers.walltime_min} min. "
                f"Ask for at least {needed_min} min{', or set fit.block to less' if stage == 'fit' else ''}"
            )
    return problems


def price_run(
    study: Study, plan: Plan, backend: str, peak: WorkerPeak, profile: str, site: SlurmProfile | None
) -> dict[str, Any]:
    """Compute, memory, disk and what dual weights would save, as plain values.

    Of a site's CPUs it knows the rate of the machine that this runs on, of GPUs none.
    """
    store, found = study.store_path, price_plan(plan, study.store_path)
    on_cpu = backend not in ON_DEVICES
    if site is None:
        granted = memory_bytes()
        n_workers, n_threads = workers_and_threads(
            profile, study.cluster, n_cores(), granted, peak.n_bytes, not on_cpu
        )
    else:
        workers = site.workers("gpu")
        n_workers, n_threads = workers.max_jobs, workers.cores
        granted = n_workers * workers.memory_bytes
    gflops = measured_gflops(n_threads) if on_cpu else ASSUMED_GFLOPS
    if on_cpu and site is not None:
        gflops = measured_gflops(1) * n_threads
    hours = found.hours(gflops, n_workers, n_threads)
    extraction = "estimated for CPUs" if hours["extract"] else ""
    if site is not None and site.gpu is not None:
        cpu = site.cpu
        hours["operators"] = found.hours(measured_gflops(1) * cpu.cores, cpu.max_jobs, cpu.cores)["operators"]
        extraction = "not estimated for GPUs" if hours["extract"] else ""
        hours["extract"] = 0.0
    left = space_left(next(folder for folder in store.parents if folder.exists()))
    return {
        "compute": {
            "flop": {name: flop.total for name, flop in found.flop.items()},
            "hours": hours,
            "extraction": extraction,
            "gflops_per_worker": gflops,
            "rate": "assumed" if not on_cpu else "measured" if site is None else "of cores like those here",
            "n_workers": n_workers,
            "n_threads": n_threads,
        },
        "memory": {
            "worker_bytes": peak.n_bytes,
            "task": peak.task,
            "n_workers": n_workers,
            "granted_bytes": granted,
        },
        "disk": {
            "bytes_to_read": found.bytes_read,
            "free_bytes": left.n_bytes,
            "free_bytes_of": left.of_what,
            "free_files": left.n_files,
            "free_files_of": left.files_of_what,
        },
        "dual_weights": {
            "saves_bytes": found.dual_saves_bytes,
            "saves_flop": found.dual_saves_flop,
            "n_primal": found.n_primal,
            "n_weights": found.n_weights,
        },
    }


@lru_cache
def measured_gflops(n_threads: int) -> float:
    """Rate of this machine at a product in float32, on the threads of one worker; it takes 0.3 s."""
    with limited_threads(n_threads):
        return gemm_gflops(open_backend("numpy"))

"""Cores and memory that this process was granted: by SLURM, by its control groups, by its affinity.

A container or a job sees all of a node's cores and memory, and is slowed down or killed beyond its share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where systems mount their control groups."""

MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups of this process, one for each hierarchy."""

SLURM_CORES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
"""Where SLURM says how many cores are this task's: the first is set only if the job asked for it."""


def n_cores(
    environ: Mapping[str, str] = os.environ, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP
) -> int:
    """Cores that this process may keep busy: the least that anyone grants, at least one.

    Parameters
    ----------
    environ : mapping
        Holds what SLURM grants. Where SLURM does not confine its jobs, nothing else says it.
    cgroups : Path
        Control groups, of version 1 or 2.
    membership : Path
        Which of them are this process's.
    """
    granted: list[float] = [len(os.sched_getaffinity(0))]
    granted += [int(environ[name]) for name in SLURM_CORES if environ.get(name, "").isdecimal()][:1]
    for group in _groups("cpu", cgroups, membership):
        version_1 = (group / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
        numbers = _numbers(group / "cpu.max") or [number for path in version_1 for number in _numbers(path)]
        if len(numbers) == 2:  # of core time in each period; without a quota there is the period alone
            granted.append(numbers[0] / numbers[1])
    # Half a core more would be one thread that waits half the time, and all that wait for it.
    return max(1, math.floor(min(granted)))


def memory_bytes(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Memory that this process and its children may use: the machine's, or less if a control group says so.

    Parameters are those of `n_cores`.
    """
    granted = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", cgroups, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):
            granted += _numbers(group / name)  # "max", or a number beyond all memory, if there is no limit
    return min(granted)


def _groups(controller: str, cgroups: Path, membership: Path) -> Iterator[Path]:
    """Folders of this process's control groups and of those around them, for one controller.

    In a container the path may be that of the host, of which only the end, or nothing, is mounted: the
    mounted root is the container's own group then.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [cgroups, cgroups / "unified"]
        elif controller in controllers.split(","):
            mounts = [cgroups / controllers, cgroups / controller]
        else:
            continue
        for mount in mounts:
            group = mount / path.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _numbers(path: Path) -> list[int]:
    """Whole numbers in a file; words such as ``max`` and ``-1`` are none, nor is a file that is not there."""
    try:
        return [int(word) for word in path.read_text().split() if word.isdecimal()]
    except OSError:
        return []

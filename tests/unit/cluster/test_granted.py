"""What was granted, from control groups written as the kernel shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcenc.cluster.granted import memory_bytes, n_cores

AFFINITY = 8
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GB = 2**30
BEYOND = "9223372036854771712\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(AFFINITY)))


def granted(
    folder: Path, membership: str, files: Mapping[str, str], environ: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Cores and memory of a process in these control groups."""
    (folder / "membership").write_text(membership)
    for name, content in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(content)
    where = {"cgroups": folder / "cgroup", "membership": folder / "membership"}
    return n_cores(environ or {}, **where), memory_bytes(**where)


V2 = "0::/system.slice/job_7/step_0\n"
V1 = "4:memory:/slurm/job_7\n3:cpuset:/\n2:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/\n"
HYBRID = V1 + "0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        pytest.param("", {}, (AFFINITY, MACHINE), id="no control groups"),
        pytest.param(
            V2,
            {"system.slice/job_7/step_0/cpu.max": "max 100000\n", "system.slice/memory.max": "max\n"},
            (AFFINITY, MACHINE),
            id="version 2, no limits",
        ),
        pytest.param(
            V2,
            {
                "system.slice/job_7/step_0/cpu.max": "max 100000\n",
                "system.slice/job_7/cpu.max": "300000 100000\n",
                "system.slice/job_7/memory.max": f"{GB}\n",
                "system.slice/memory.max": f"{2 * GB}\n",
            },
            (3, GB),
            id="version 2, limits of the groups around it",
        ),
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, (2, MACHINE), id="two cores and a half"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, (1, MACHINE), id="half a core"),
        pytest.param(
            "0::/\n", {"cpu.max": "6400000 100000\n"}, (AFFINITY, MACHINE), id="more than there are"
        ),
        pytest.param(
            V2,
            {"cpu.max": "100000 50000\n", "memory.max": f"{GB}\n"},
            (2, GB),
            id="a container's group at the mounted root",
        ),
        pytest.param(
            V1,
            {
                "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000\n",
                "memory/slurm/job_7/memory.limit_in_bytes": f"{3 * GB}\n",
                "memory/memory.limit_in_bytes": BEYOND,
            },
            (4, 3 * GB),
            id="version 1",
        ),
        pytest.param(
            HYBRID,
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": BEYOND,
                "unified/cgroup.procs": "",
            },
            (AFFINITY, MACHINE),
            id="version 1, no limits",
        ),
        pytest.param(
            HYBRID,
            {
                "cpu/slurm/job_7/cpu.cfs_quota_us": "100000\n",
                "cpu/slurm/job_7/cpu.cfs_period_us": "100000\n",
                "unified/memory.max": f"{GB}\n",
            },
            (1, GB),
            id="both versions",
        ),
    ],
)
def test_the_least_that_control_groups_allow(
    membership: str, files: Mapping[str, str], expected: tuple[int, int], tmp_path: Path
) -> None:
    assert granted(tmp_path, membership, files) == expected


@pytest.mark.parametrize(
    ("environ", "n_granted"),
    [
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "6"}, 3),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "64"}, AFFINITY),
        ({"SLURM_CPUS_PER_TASK": ""}, AFFINITY),
    ],
)
def test_slurm_grants_no_more_than_there_is(
    environ: Mapping[str, str], n_granted: int, tmp_path: Path
) -> None:
    assert granted(tmp_path, "", {}, environ)[0] == n_granted
    assert granted(tmp_path, "0::/\n", {"cpu.max": "200000 100000\n"}, environ)[0] == 2


def test_this_machine_grants_something() -> None:
    assert 1 <= n_cores() <= AFFINITY
    assert 0 < memory_bytes() <= MACHINE

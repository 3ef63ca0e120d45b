"""`hpcenc profile test` on a real SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox import Sandbox

SITE = """\
scratch = "/tmp"
[controller]
partition = "cpu"
walltime = 30
memory = "500M"
[cpu]
partition = "gpu"
walltime = 10
cores = 1
memory = "500M"
[network]
interface = "lo"
"""
GPU = """\
[gpu]
partition = "gpu"
walltime = 10
cores = 1
memory = "1G"
gpu_request = "--gres=gpu:1"
"""


def check_site(text: str, folder: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Exit status, and what was said by role and check."""
    (folder / "site.toml").write_text(text)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hpcenc.cli.app",
            "profile",
            "test",
            "site",
            "--folder",
            str(folder),
            *options,
        ],
        env={**os.environ, "HPCENC_PROFILES": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    return done.returncode, {f"{role} {what}": f"{state} {said}" for state, role, what, said in lines}


@pytest.mark.usefixtures("sandbox")
def test_a_site_where_all_works(sandbox: Sandbox, tmp_path: Path) -> None:
    first = sandbox.nodes[0]  # where the controller will be
    text = SITE.replace("[network]", f'exclude = "{first}"\n[network]')
    status, said = check_site(text, tmp_path)
    assert status == 0, said
    assert said["controller partition"] == "ok no job of partition cpu is preempted"
    assert said["controller hpcenc"].startswith("ok the same version as here, on ")
    assert said["controller sbatch"].startswith("ok jobs may be submitted from ")
    assert said["cpu store"].startswith(f"ok what {first} renamed is seen on ")
    assert "reaches the controller at 127.0.0.1:" in said["cpu network"]
    assert not list(tmp_path.glob("hpcenc-test-*"))


@pytest.mark.usefixtures("sandbox")
def test_a_gpu_that_does_not_work_is_told_and_so_is_a_controller_that_may_be_preempted(
    tmp_path: Path,
) -> None:
    status, said = check_site((SITE + GPU).replace('partition = "cpu"', 'partition = "gpu"'), tmp_path)
    assert said["controller partition"].startswith("- jobs of partition gpu may be preempted")
    assert status == 1
    assert said["gpu gpu"].startswith("FAILED CUDA_VISIBLE_DEVICES is '0' on ")
    assert said["gpu network"].startswith("ok ")
    assert list(tmp_path.glob("hpcenc-test-*/logs/*.log"))


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ('scratch = "/tmp"', 'scratch = "/tmp"\nprologue = ["echo no such module; exit 3"]'),
            "no such module",
        ),
        (('memory = "500M"\n[network]', 'memory = "900T"\n[network]'), "Memory specification"),
    ],
)
def test_jobs_that_find_nothing_say_why(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    status, said = check_site(SITE.replace(*change), tmp_path)
    assert status == 1
    assert words in said["cpu job"]


def test_jobs_that_still_wait_say_why_and_are_cancelled(sandbox: Sandbox, tmp_path: Path) -> None:
    for node in sandbox.nodes:
        sandbox.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    status, said = check_site(SITE, tmp_path, "--wait", "0.1")
    assert status == 1
    assert "still waits: " in said["controller job"]
    assert said["cpu job"].endswith(
        "still waits: Dependency. Try again with a longer --wait, or ask for less"
    )
    assert sandbox.jobs(ended=False) == []

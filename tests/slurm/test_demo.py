"""The demo study, movies and all four feature sets, on three nodes of two fake GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sites import chunks

PROFILE = """\
scratch = "/tmp"
prologue = ["unset CUDA_VISIBLE_DEVICES"]  # for the GPUs are none

[controller]
partition = "cpu"
walltime = 60
memory = "2G"

[cpu]
partition = "cpu"
walltime = 60
cores = 1
memory = "3G"
max_jobs = 6

[gpu]
partition = "gpu"
walltime = 60
cores = 1
memory = "3G"
max_jobs = 6
gpu_request = "--gres=gpu:1"

[network]
interface = "lo"
"""


def hpcenc(*arguments: str) -> str:
    command = [sys.executable, "-m", "hpcenc.cli.app", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("sandbox")
def test_the_demo_is_the_same_on_six_workers_of_slurm_as_on_two_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "site.toml").write_text(PROFILE)
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path / "profiles"))
    hpcenc("demo", str(tmp_path / "slurm"))
    study = tmp_path / "slurm" / "study.toml"
    study.write_text(study.read_text().replace("[fit]\n", '[fit]\nbackend = "numpy"\n'))
    shutil.copytree(tmp_path / "slurm", tmp_path / "local")  # with the files' times, which identify BOLD
    hpcenc("submit", str(tmp_path / "local" / "study.toml"), "--models", "all", "--profile", "local")
    hpcenc("submit", str(study), "--models", "all", "--profile", "site", "--wait")
    status = json.loads(hpcenc("status", str(study), "--json"))
    # Six blocks each, of four feature sets and the noise ceiling in three subjects.
    fits = status["stages"]["fit"]
    assert (status["ended"], fits["done"], fits["units"]) == (0, 90, 90)
    assert status["account"]["lost"] == {}
    local, slurm = (chunks(tmp_path / place / "results" / "demo.zarr") for place in ("local", "slurm"))
    assert slurm == local
    assert len(slurm) > 800

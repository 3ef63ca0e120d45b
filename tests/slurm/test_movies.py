"""Studies from movies to scores, on three nodes of two fake GPUs: the demo; layers and tags."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from heard_study import write_heard_study
from sites import chunks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.usefixtures("sandbox")]

Chunks = dict[str, bytes]

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


def run_here_and_there(folder: Path, file: str, models: str) -> tuple[dict[str, Any], Chunks]:
    """Status of a study's run on SLURM and the chunks of its results, once they are those of this machine.

    ``folder`` ends in ``there``; a copy beside it, with the files' times, which identify BOLD, in ``here``.
    """
    here = shutil.copytree(folder, folder.parent / "here")
    hpcenc("submit", str(here / file), "--models", models, "--profile", "local")
    hpcenc("submit", str(folder / file), "--models", models, "--profile", "site", "--wait")
    status = json.loads(hpcenc("status", str(folder / file), "--json"))
    (wanted,) = (here / "results").glob("*.zarr")
    found = chunks(folder / "results" / wanted.name)
    assert found == chunks(wanted)
    assert status["ended"] == 0
    assert status["account"]["lost"] == {}
    return status, found


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "site.toml").write_text(PROFILE)
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path / "profiles"))
    return tmp_path / "there"


def test_the_demo_is_the_same_on_six_workers_of_slurm_as_on_two_here(there: Path) -> None:
    hpcenc("demo", str(there))
    study = there / "study.toml"
    study.write_text(study.read_text().replace("[fit]\n", '[fit]\nbackend = "numpy"\n'))
    status, found = run_here_and_there(there, study.name, "all")
    # Six blocks each, of four feature sets and the noise ceiling in three subjects.
    fits = status["stages"]["fit"]
    assert (fits["done"], fits["units"]) == (90, 90)
    assert len(found) > 800


def test_layers_and_tags_of_movies_are_the_same_on_slurm_as_here(there: Path) -> None:
    there.mkdir()
    study = write_heard_study(there)
    _, found = run_here_and_there(there, study.name, "beats,beats-tags,beats+lab")
    untrained = "untrained-seed-0/s1"
    groups = (
        f"layers/beats-{untrained}",
        f"singles/beats-tags-{untrained}",
        f"bands/beats-and-lab-{untrained}",
    )
    assert {f"{group}/done/0" for group in groups} <= found.keys()

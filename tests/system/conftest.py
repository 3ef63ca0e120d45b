"""A study of feature files that runs from end to end in a second, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from hpcenc.cli.app import app

N_TRS = {"A": 50, "B": 45, "C": 40}
N_VOXELS = 5_100  # two blocks of 5,000: the first has two shards, the second a part of one
N_FEATURES = 4

STUDY = """\
name = "small"
note = "of the tests"
tr_s = 1.0

[[runs]]
name = "A"
n_trs = 50
segments = [{ kind = "rest", start_s = 0, end_s = 5 }]
[[runs]]
name = "B"
n_trs = 45
[[runs]]
name = "C"
n_trs = 40

[subjects]
ids = ["s1", "s2"]

[bold]
path = "bold/{subject}/{run}.npy"

[feature_files.mylab]
path = "mylab_{run}.npy"

[fit]
delays = [1, 2, 3]
n_alphas = 5
block = 5000
backend = "numpy"

[cluster]
n_workers = 2
"""


def write_small_study(folder: Path) -> Path:
    """Features, BOLD that follows them two TRs later under as much noise, and the study file."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((N_FEATURES, N_VOXELS))
    for run, n_trs in N_TRS.items():
        features = rng.standard_normal((n_trs, N_FEATURES))
        np.save(folder / f"mylab_{run}.npy", features.astype(np.float32))
        for subject in ("s1", "s2", "s3"):
            response = np.zeros((n_trs, N_VOXELS))
            response[2:] = features[:-2] @ mix
            bold = 1000 + response + N_FEATURES**0.5 * rng.standard_normal(response.shape)
            path = folder / "bold" / subject / f"{run}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, bold.astype(np.float32))
    path = folder / "study.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """Study file of a fresh small study; BOLD of a third subject lies beside that of its two."""
    return write_small_study(tmp_path)


@pytest.fixture
def edit(study_file: Path) -> Callable[[str, str], None]:
    """Replace a part of the study file."""

    def replace(old: str, new: str) -> None:
        text = study_file.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the study file"
        study_file.write_text(text.replace(old, new))

    return replace


@pytest.fixture
def hpcenc(study_file: Path) -> Callable[..., Result]:
    """Run a command on the small study; whatever escapes it but an exit status is a failure."""

    def run(command: str, *options: str) -> Result:
        result = CliRunner().invoke(app, [command, str(study_file), *options])
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, with its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture(scope="session")
def units_run() -> Callable[[Path], list[list[str]]]:
    """Units that each run of a store did, from its events, run after run."""

    def read(results: Path) -> list[list[str]]:
        runs = []
        for folder in sorted((results / "study.runs").iterdir()):
            log = folder / "events.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            events: list[dict[str, Any]] = [json.loads(line) for line in lines]
            runs.append([event["unit"] for event in events if event["event"] == "unit"])
        return runs

    return read

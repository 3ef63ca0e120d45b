"""Submits to a site without SLURM: what is refused, and what is said of those that end early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from small_study import write_small_study
from typer.testing import CliRunner

from hpcenc.cli.app import app
from hpcenc.slurm.commands import SlurmError

PROFILE = """\
scratch = "/tmp"
controller = { partition = "any", walltime = 30 }
cpu = { partition = "any", walltime = 600, cores = 1, memory = "2G" }
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "site.toml").write_text(PROFILE)
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path / "profiles"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study").mkdir()
    return write_small_study(tmp_path / "study")


def submit(study: Path, *options: str) -> Result:
    result = CliRunner().invoke(app, ["submit", str(study), "--profile", "site", *options])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize(
    ("error", "status"),
    [(SlurmError(["sbatch"], None, "no answer in 30 s", transient=True), 2), (KeyboardInterrupt(), 3)],
)
def test_a_job_that_may_be_left_is_told(
    error: BaseException, status: int, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        error.add_note("when SLURM is back: scancel --me --name=hpcenc-abcdefgh")
        raise error

    monkeypatch.setattr("hpcenc.cluster.batch.submit_batch", fail)
    result = submit(study)
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.splitlines()[-1].endswith("when SLURM is back: scancel --me --name=hpcenc-abcdefgh")

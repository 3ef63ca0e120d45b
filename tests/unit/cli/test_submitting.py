"""Submits to a site without SLURM: what is refused, and what is said of those that end early."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from small_study import write_small_study
from typer.testing import CliRunner

from hpcenc.cli.app import app
from hpcenc.cluster.batch import Submitted
from hpcenc.cluster.runs import Ended
from hpcenc.slurm.commands import SlurmError
from hpcenc.storage.study import Study

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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("back\\slash", "folder with a backslash"),
        ("two\nlines", "line breaks"),
        (os.fsdecode(b"M\xe4dchen"), "not UTF-8"),
    ],
)
@pytest.mark.parametrize("option", [None, "--print-script", "--array"])
def test_a_folder_that_jobs_cannot_use_is_refused_in_one_line(
    option: str | None, name: str, said: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcenc.cluster.batch.check_job", lambda *arguments: "")
    study = study.parent.rename(study.parent.with_name(name)) / study.name
    before = sorted(study.parent.rglob("*"))
    result = submit(study, *([option] if option else []))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith(("error: run folder ", "error: folder "))
    assert said in line
    assert repr(name)[1:-1] in line
    assert sorted(study.parent.rglob("*")) == before


def test_a_profile_is_not_tested_in_a_folder_that_jobs_cannot_use(tmp_path: Path) -> None:
    folder = tmp_path / "back\\slash"
    folder.mkdir()
    result = CliRunner().invoke(app, ["profile", "test", "site", "--folder", str(folder)])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "folder with a backslash; rename it" in line
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "-Mother",
            "--clusters=other",
            "--clu=other",
            "--job-name=mine",
            "-Jmine",
            "--array=0-3",
            "--wrap=true",
        ),
        *(
            "--wra=true",
            "--export=NONE",
            "--output=/dev/null",
            "--no-requeue",
            "--partition=other",
            "--time=1",
        ),
        *(
            "--mem=1M",
            "--signal=KILL",
            "--dependency=singleton",
            "--test-only",
            "--chdir=/",
            "--be=now",
            "script.sh",
        ),
    ],
)
def test_an_argument_that_would_change_what_hpcenc_itself_asks_for_is_refused(
    argument: str, study: Path
) -> None:
    result = submit(study, f"--sbatch-arg={argument}", "--print-script")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --sbatch-arg {argument}: expected ")


def test_other_arguments_reach_the_controllers_job_alone(study: Path) -> None:
    said = submit(study, "--sbatch-arg=--begin=now+1hour", "--sbatch-arg=--nice=7", "--print-script").stdout
    controller, worker = said.split("# cpu worker")
    assert "--begin=now+1hour --nice=7 --hold" in controller
    assert "--begin" not in worker
    assert "--nice" not in worker


@pytest.fixture
def submitted(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that is submitted as job 7 as often as one likes, without SLURM."""
    done = Submitted("abcdefgh", "7", study.parent)
    monkeypatch.setattr("hpcenc.cluster.batch.submit_batch", lambda *arguments: done)
    return study


def test_ctrl_c_while_a_run_is_waited_for_says_that_it_goes_on(
    submitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(study: Study) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcenc.cluster.runs.wait_for_end", interrupt)
    for result in (submit(submitted, "--wait"), CliRunner().invoke(app, ["wait", str(submitted)])):
        assert result.exit_code == 3
        assert result.stderr.splitlines()[-1] == (
            f"the run goes on. `hpcenc wait {submitted}` waits again, `hpcenc cancel {submitted}` ends it"
        )
        assert "resumes" not in result.stderr


def test_what_is_waited_for_as_json_is_one_document(submitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcenc.cluster.runs.wait_for_end", lambda study: Ended(1, "run x ended"))
    result = submit(submitted, "--wait", "--json")
    assert json.loads(result.stdout)["job"] == "7"
    assert (result.exit_code, result.stderr) == (1, "run x ended\n")
    assert submit(submitted, "--wait").stdout.endswith("\nrun x ended\n")


def test_commands_to_paste_are_quoted(submitted: Path, tmp_path: Path) -> None:
    folder = submitted.parent.rename(tmp_path / "my study; $(touch hurt)")
    said = submit(folder / "study.toml").stderr.splitlines()[-1].removeprefix("next: ")
    for command in said.split(", "):
        assert shlex.split(command)[2:] == [str(folder / "study.toml")]
    output = folder / "new.toml"
    result = CliRunner().invoke(app, ["init", str(folder), "--output", str(output)])
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("next: "))
    assert shlex.split(line) == ["next:", "hpcenc", "check", str(output)]

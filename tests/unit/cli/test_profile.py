from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hpcenc.cli.app import app

PROFILE = """\
scratch = "/tmp"
[controller]
partition = "long"
walltime = "7-0"
[cpu]
partition = "short"
walltime = 60
cores = 4
memory = "16G"
"""

SCRIPTS = {
    "sinfo": "echo 'batch*|up|7-0|OFF|10|64|257000|(null)'; echo 'gpu|up|2:00:00|OFF|1|32|128000|gpu:2'",
    "scontrol": "echo 'AccountingStorageEnforce = associations'; echo 'TmpFS = /tmp'; echo 'ClusterName = c'",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of profiles; the site has one too, with a profile ``lab``."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path / "site"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "lab.toml").write_text(PROFILE)
    return tmp_path / "config" / "hpcenc" / "profiles"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's commands on PATH, as they answer on a site that demands an account."""
    (tmp_path / "bin").mkdir()
    for name, text in SCRIPTS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


def run(*command: object) -> Result:
    result = CliRunner().invoke(app, ["profile", *map(str, command)])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


@pytest.mark.usefixtures("slurm")
def test_init_writes_a_draft_and_says_what_to_fill_in(folder: Path) -> None:
    result = run("init", "mine")
    assert result.exit_code == 0
    written = (folder / "mine.toml").read_text()
    assert 'partition = "gpu"' in written
    first, *fixes, last = result.stdout.splitlines()
    assert (first, last) == (
        f"wrote {folder}/mine.toml",
        "next: hpcenc profile show mine, then hpcenc profile test mine",
    )
    assert [line.split(":")[1] for line in fixes] == [" account", " account", " account"]
    shown = run("show", "mine")
    assert shown.exit_code == 2
    assert f"{folder}/mine.toml: gpu.account: expected a name that SLURM knows" in shown.stderr
    (folder / "mine.toml").write_text(written.replace('account = ""', 'account = "lab"'))
    assert run("show", "mine").exit_code == 0


@pytest.mark.usefixtures("slurm")
def test_init_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "site" / "lab.toml"
    result = run("init", "--output", output)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{output} exists already" in result.stderr
    assert output.read_text() == PROFILE
    assert not folder.exists()


@pytest.mark.usefixtures("folder", "slurm")
@pytest.mark.parametrize("name", ["local", "../x", "a b"])
def test_init_refuses_what_is_no_name(name: str, tmp_path: Path) -> None:
    result = run("init", name)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: profile: expected a name of letters, digits, ")
    assert result.stderr.endswith(f"neither local nor serial; found {name!r}\n")
    assert not list(tmp_path.rglob("x.toml"))


def test_init_without_slurm_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("init")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: sinfo: not found on PATH")
    assert not folder.exists()


def test_list_names_every_profile_with_its_files(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "lab.toml").write_text("")
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["local", "serial", "lab"]
    assert lines[2].endswith(f"{folder}/lab.toml, {tmp_path}/site/lab.toml")


def test_list_without_any_says_where_it_looked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "lab.toml").unlink()
    assert f"no profile of a SLURM site in {folder}, {tmp_path}/site; write one" in run("list").stdout


def test_show_says_where_each_value_comes_from(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "lab.toml").write_text("[cpu]\ncores = 8\n")
    lines = run("show", "lab").stdout.splitlines()
    assert f"cpu.cores = 8  # {folder}/lab.toml" in lines
    assert f'cpu.memory = "16G"  # {tmp_path}/site/lab.toml' in lines


@pytest.mark.usefixtures("folder")
def test_show_refuses_a_profile_that_does_not_exist() -> None:
    result = run("show", "cloud")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected one of local, serial, lab, found 'cloud'" in result.stderr

"""Commands in this process, on a study of feature files with a few voxels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from hpcenc.cli.app import app
from hpcenc.cli.arguments import ModelsOption
from hpcenc.cli.refusal import shortened
from hpcenc.cli.runs import tell_submitted
from hpcenc.cluster.batch import Submitted
from hpcenc.cluster.submit import prepare, submit
from hpcenc.storage.study import load_study
from hpcenc.tasks.models.catalogue import FEATURE_SETS
from hpcenc.tasks.selection import REFERENCE_SETS

STUDY = """\
name = "x"
tr_s = 1.0
runs = [{ name = "A", n_trs = 40 }, { name = "B", n_trs = 40 }, { name = "C", n_trs = 40 }]
subjects = { ids = ["s1", "s2"] }
bold = { path = "{subject}/{run}.npy" }
feature_files = { mylab = { path = "mylab_{run}.npy" } }
fit = { delays = [1, 2], backend = "numpy" }
"""

COMMANDS = ("init", "check", "submit", "status", "report", "models", "selftest", "demo", "bench")


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for run in "ABC":
        np.save(tmp_path / f"mylab_{run}.npy", rng.standard_normal((40, 3), dtype=np.float32))
        for subject in ("s1", "s2"):
            (tmp_path / subject).mkdir(exist_ok=True)
            np.save(tmp_path / subject / f"{run}.npy", rng.standard_normal((40, 20), dtype=np.float32))
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def run(*command: object) -> Result:
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result


def test_problems_of_a_kind_are_shortened_and_none_of_another_is_hidden() -> None:
    for ids in (range(176), [f"ND{chr(65 + n % 26)}{chr(65 + n // 26)}" for n in range(176)]):
        absent = [f"bold.path: subject '{i}', run 'A': expected one file of /data/{i}/A.nii" for i in ids]
        longer = [f"subject {i}, run A: /data/{i}/A.nii has 50 TRs, the study says 40." for i in ids]
        assert shortened(["fit.delays: wrong", *absent, *longer, "runs.A: wrong"]) == [
            "fit.delays: wrong",
            *absent[:3],
            "and 173 more like these",
            *longer[:3],
            "and 173 more like these",
            "runs.A: wrong",
        ]
        assert shortened(absent[:10]) == absent[:10]


def stop_before_report(event: dict[str, Any]) -> None:
    if event.get("stage") == "report":
        raise KeyboardInterrupt


def test_help_names_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert run(command, "--help").exit_code == 0


def test_the_help_of_models_names_every_feature_set_and_what_all_is() -> None:
    said = get_args(ModelsOption)[1].help
    assert said.startswith(f"all ({', '.join(REFERENCE_SETS)} and your feature files), or names")
    named = said.partition(": ")[2].split(", ")
    assert set(FEATURE_SETS) <= set(named)


@pytest.mark.parametrize(
    "command", [["nosuch"], ["submit", "--nosuch"], ["demo", "x", "--runs", "1"], ["bench", "nosuch"]]
)
def test_wrong_usage_ends_with_2(command: list[str]) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_profile_that_does_not_exist_is_refused(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_file.parent
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.setenv("HPCENC_PROFILES", str(folder / "site"))
    result = run("submit", study_file, "--profile", "cloud")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: profile: expected one of local, serial, found 'cloud'; "
        f"looked in {folder}/hpcenc/profiles, {folder}/site. Write one with `hpcenc profile init cloud`\n"
    )


def test_check_and_a_dry_run_tell_the_same_and_write_nothing(study_file: Path) -> None:
    before = sorted(study_file.parent.rglob("*"))
    checked, dry = run("check", study_file), run("submit", study_file, "--dry-run")
    assert (checked.exit_code, dry.exit_code) == (0, 0)
    assert checked.stdout == dry.stdout
    assert "3 of 3 units to do" in checked.stdout
    assert sorted(study_file.parent.rglob("*")) == before


def test_a_dry_run_as_json_is_json_alone(study_file: Path) -> None:
    result = run("submit", study_file, "--dry-run", "--json", "--subjects", "s2")
    assert json.loads(result.stdout)["stages"]["fit"] == {"units": 1, "to_do": 1}
    assert result.stderr == ""


def test_sweeps_with_nothing_to_do_are_told_by_check_and_submit(study_file: Path) -> None:
    study_file.write_text(STUDY + "sweeps = { delays = [1], bands = true }\n")
    said = "note: sweeps.bands: none of --models is a sum of two"
    assert f"  {said}" in run("check", study_file).stdout
    for command in ("check", "submit --dry-run"):
        (line,) = json.loads(run(*command.split(), study_file, "--json").stdout)["idle_sweeps"]
        assert line.startswith(said.removeprefix("note: "))
    submitted = run("submit", study_file, "--profile", "serial", "--subjects", "s1")
    assert submitted.exit_code == 0
    assert said in submitted.stderr
    again = run("submit", study_file, "--profile", "serial", "--subjects", "s1", "--json")
    assert json.loads(again.stdout)["idle_sweeps"] == [line]


def test_what_was_submitted_to_a_site_is_told_with_its_idle_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted = Submitted("abcdefgh", "7", tmp_path)
    tell_submitted(submitted, tmp_path / "study.toml", as_json=True, idle_sweeps=("sweeps.tags: none",))
    told = {"job": "7", "run": "abcdefgh", "folder": str(tmp_path), "idle_sweeps": ["sweeps.tags: none"]}
    assert json.loads(capsys.readouterr().out) == told


def test_status_before_anything_was_submitted(study_file: Path) -> None:
    result = run("status", study_file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing was submitted yet" in result.stderr


def test_status_of_an_interrupted_run(study_file: Path) -> None:
    submit(prepare(study_file), "serial", (), stop_before_report)
    result = run("status", study_file)
    assert result.exit_code == 0
    assert "interrupted" in result.stdout
    assert "fit             2 of 2 units done" in result.stdout
    as_json = json.loads(run("status", study_file, "--json").stdout)
    done = {stage: (units["done"], units["units"]) for stage, units in as_json["stages"].items()}
    assert done == {"extract": (3, 3), "fit": (2, 2)}
    assert (as_json["ended"], as_json["holder"]) == (3, None)


@pytest.mark.parametrize("command", ["report", "status"])
def test_reading_commands_make_nothing(command: str, study_file: Path) -> None:
    before = sorted(study_file.parent.rglob("*"))
    assert run(command, study_file).exit_code == 2
    assert sorted(study_file.parent.rglob("*")) == before


def test_ctrl_c_while_files_are_looked_at_ends_with_3(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcenc.cluster.submit.inspect", interrupt)
    result = run("submit", study_file)
    assert result.exit_code == 3
    assert "The same command resumes" in result.stderr


def test_models_are_listed() -> None:
    assert "open_clip_model.safetensors (605 MB)" in run("models").stdout
    assert [row["model"] for row in json.loads(run("models", "--json").stdout)] == ["beats", "clip", "cavmae"]


def test_a_selftest_writes_one_file_and_a_line_for_each_check(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    result = run("selftest", "--backend", "numpy", "--output", output)
    assert result.exit_code == 0
    *lines, last = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "ok", "ok", "ok", "-"]
    assert last == f"passed; wrote {output}"
    found = json.loads(output.read_text())
    assert [check["said"] in line for check, line in zip(found["checks"], lines, strict=True)] == [True] * 6


def test_a_selftest_that_fails_ends_with_1_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    program = [sys.executable, "-P", "-c", "from hpcenc.cli.app import main; main()"]
    command = [*program, "selftest", "--backend", "cupy", "--output", "found.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.startswith("FAILED   device ")
    assert not json.loads((tmp_path / "found.json").read_text())["passed"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "abacus"], "--backend: expected auto, numpy, torch, torch-cuda, cupy, found 'abacus'"),
        (["--backend", "numpy", "-o", "nowhere/found.json"], "No such file or directory"),
    ],
)
def test_a_selftest_refuses_what_it_cannot_do(options: list[str], said: str) -> None:
    result = run("selftest", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_init_writes_a_study_of_any_layout(study_file: Path) -> None:
    output = study_file.with_name("found.toml")
    for run_name in "ABC":
        (study_file.parent / f"mylab_{run_name}.npy").unlink()  # without movies, nothing tells them from BOLD
    result = run("init", study_file.parent, "--output", output)
    assert result.exit_code == 0
    assert f"wrote {output}" in result.stdout
    assert "to fix by hand: tr_s" in result.stdout
    assert 'ids = [\n    "s1", "s2",\n]' in output.read_text()


def test_init_knows_hcp(tmp_path: Path) -> None:
    scans = {"MOVIE1": "AP", "MOVIE2": "PA", "MOVIE3": "PA", "MOVIE4": "AP"}
    for run_name, direction in scans.items():
        scan = f"tfMRI_{run_name}_7T_{direction}"
        path = tmp_path / "100610" / "MNINonLinear" / "Results" / scan
        path.mkdir(parents=True)
        (path / f"{scan}_Atlas_MSMAll_hp2000_clean.dtseries.nii").touch()
    for movie in ("7T_MOVIE1_CC1_v2", "7T_MOVIE2_HO1_v2", "7T_MOVIE3_CC2_v2", "7T_MOVIE4_HO2_v2"):
        (tmp_path / f"{movie}.mp4").touch()
    output = tmp_path / "study.toml"
    result = run("init", tmp_path, "--dataset", "hcp7t", "--output", output)
    assert result.exit_code == 0
    (to_fix,) = (line for line in result.stdout.splitlines() if "fix by hand" in line)
    assert "147 subjects" in to_fix
    output.unlink()
    (tmp_path / "v1.txt").write_text("999999\n")
    result = run(
        "init", tmp_path, "--dataset", "hcp7t", "--output", output, "--v1-subjects", tmp_path / "v1.txt"
    )
    assert result.exit_code == 0
    assert "fix by hand" not in result.stdout
    assert [run.n_trs for run in load_study(output).runs] == [921, 918, 915, 901]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{folder}/nowhere"], "is not a folder"),
        (["{folder}", "--dataset", "nosuch"], "expected hcp7t or other, found 'nosuch'"),
        (["{folder}", "--output", "{folder}/study.toml"], "exists already"),
        (
            ["{folder}", "-o", "{folder}/b.toml", "--timing", "{folder}/study.toml"],
            "--timing is for --dataset",
        ),
        (["{folder}", "-o", "{folder}/b.toml", "--v1-subjects", "x"], "--v1-subjects is for --dataset hcp7t"),
        (
            ["{folder}", "-o", "{folder}/b.toml", "--dataset", "hcp7t", "--timing", "{folder}/no.csv"],
            "cannot be read as HCP's clip timing",
        ),
        (["{folder}", "-o", "{folder}/b.toml", "--movies", "{folder}/nowhere"], "is not a folder"),
        (
            ["{folder}", "--output", "{folder}/nowhere/study.toml"],
            "there is no folder {folder}/nowhere; make it",
        ),
    ],
)
def test_init_refuses_what_it_cannot_do(options: list[str], said: str, study_file: Path) -> None:
    before = study_file.read_text()
    result = run("init", *[option.format(folder=study_file.parent) for option in options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said.format(folder=study_file.parent) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert study_file.read_text() == before
    assert not study_file.with_name("b.toml").exists()


def test_demo_does_not_write_over_what_is_there(study_file: Path) -> None:
    result = run("demo", study_file.parent)
    assert result.exit_code == 2
    assert "not empty" in result.stderr


def test_a_demo_that_was_interrupted_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    options = ("--subjects", "1", "--runs", "3", "--trs", "90")
    with monkeypatch.context() as patch:
        patch.setattr("hpcenc.tasks.demo.study._write_subject", interrupted)
        assert run("demo", tmp_path / "demo", *options).exit_code != 0
    assert (tmp_path / "demo" / "planted.json").exists()
    mine = tmp_path / "demo" / "mine.txt"
    mine.touch()
    assert run("demo", tmp_path / "demo", *options).exit_code == 2
    mine.unlink()
    assert run("demo", tmp_path / "demo", *options).exit_code == 0
    assert (tmp_path / "demo" / "study.toml").exists()
    assert run("demo", tmp_path / "demo", *options).exit_code == 2


def test_the_installed_command_ends_with_the_status(study_file: Path) -> None:
    study_file.unlink()
    program = [sys.executable, "-c", "from hpcenc.cli.app import main; main()"]
    result = subprocess.run([*program, "check", str(study_file)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1

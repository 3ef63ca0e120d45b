from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hpcenc.slurm.profiles import (
    OVERRIDES,
    Controller,
    GpuWorkers,
    Network,
    ProfileError,
    SlurmProfile,
    find_profile,
    list_profiles,
    read_profile,
)

MANUAL = Path(__file__).parents[3] / "docs" / "slurm.md"

SITE = """\
scratch = "$TMPDIR"
prologue = ["module load python/3.11"]
[controller]
partition = "long"
account = "lab"
walltime = "7-00:00:00"
[cpu]
partition = "short"
cores = 4
memory = "16G"
walltime = 240
[gpu]
partition = "gpu"
gpu_request = "--gres=gpu:1"
cores = 8
memory = "32G"
walltime = "04:00:00"
"""

HOSTILE = ("a\nb", "a\0b", "a'b", 'a"b', "a;b", "$(a)", "`a`", "a\\b", "a b\n")

SLURM_TEXTS = {
    "controller": ("partition", "account", "qos"),
    "cpu": ("partition", "account", "qos", "constraint", "exclude"),
    "gpu": ("partition", "gpu_request", "constraint", "exclude"),
    "network": ("interface", "ports"),
}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The user's folder and the site's, both empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path / "site"))
    user, site = tmp_path / "config" / "hpcenc" / "profiles", tmp_path / "site"
    user.mkdir(parents=True)
    site.mkdir()
    return user, site


@pytest.fixture
def site(folders: tuple[Path, Path]) -> Path:
    """A whole profile ``lab`` of the site."""
    path = folders[1] / "lab.toml"
    path.write_text(SITE)
    return path


def problems_of(overrides: dict[str, Any] | None = None) -> tuple[str, ...]:
    with pytest.raises(ProfileError) as refused:
        find_profile("lab", overrides=overrides)
    assert str(refused.value) == "\n".join(refused.value.problems)
    return refused.value.problems


@pytest.mark.usefixtures("site")
def test_a_profile_is_read_in_minutes_and_bytes() -> None:
    profile = find_profile("lab")
    assert profile.controller.walltime_min == 7 * 24 * 60
    assert (profile.cpu.walltime_min, profile.cpu.memory_bytes) == (240, 16 * 2**30)
    assert profile.gpu is not None
    assert (profile.gpu.gpu_request, profile.gpu.account, profile.gpu.max_jobs) == ("--gres=gpu:1", None, 8)
    assert (profile.scratch, profile.prologue) == ("$TMPDIR", ("module load python/3.11",))


def test_a_site_without_gpus_computes_on_its_cpu_workers(site: Path) -> None:
    profile = find_profile("lab")
    assert profile.workers("gpu") is profile.gpu
    site.write_text(SITE.partition("[gpu]")[0])
    profile = find_profile("lab")
    assert profile.workers("gpu") is profile.workers("cpu") is profile.cpu


def test_the_users_file_lies_on_the_sites_and_the_study_on_both(
    folders: tuple[Path, Path], site: Path
) -> None:
    mine = folders[0] / "lab.toml"
    mine.write_text('scratch = "/fast/$USER"\n[gpu]\naccount = "mine"\nmemory = "64G"\n')
    profile = find_profile("lab", overrides={"gpu": {"memory": "48G"}, "network": {"ports": "4000-4100"}})
    assert profile.gpu is not None
    assert (profile.gpu.partition, profile.gpu.account) == ("gpu", "mine")
    assert profile.gpu.memory_bytes == 48 * 2**30
    assert (profile.scratch, profile.network.ports) == ("/fast/$USER", (4000, 4100))
    sources = {
        key: source for key, _, source in read_profile("lab", overrides={"cpu": {"cores": 2}}).settings()
    }
    assert sources["scratch"] == sources["gpu.account"] == sources["gpu.memory"] == str(mine)
    assert sources["gpu.partition"] == sources["cpu.memory"] == sources["prologue"] == str(site)
    assert sources["cpu.cores"] == OVERRIDES


def test_of_several_site_folders_the_first_is_the_strongest(
    folders: tuple[Path, Path], site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "lab.toml").write_text("[cpu]\ncores = 3\n")
    monkeypatch.setenv("HPCENC_PROFILES", f"{tmp_path}/group:{site.parent}")
    assert find_profile("lab").cpu.cores == 3


def test_profiles_are_listed_with_their_files(folders: tuple[Path, Path], site: Path) -> None:
    user, _ = folders
    for name in ("lab", "own", "local", "-x", "a b"):  # the last three are no names of profiles
        (user / f"{name}.toml").write_text("")
    assert list_profiles() == {"lab": (user / "lab.toml", site), "own": (user / "own.toml",)}


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", ["cloud", "../lab", "local", ""])
def test_an_unknown_profile_says_what_there_is_and_where(folders: tuple[Path, Path], name: str) -> None:
    with pytest.raises(ProfileError) as refused:
        find_profile(name)
    (problem,) = refused.value.problems
    assert problem.startswith(f"profile: expected one of local, serial, lab, found {name!r}; looked in ")
    assert f"{folders[0]}, {folders[1]}" in problem
    assert ("hpcenc profile init cloud" in problem) == (name == "cloud")


def test_all_problems_come_at_once_with_file_key_expected_and_found(
    folders: tuple[Path, Path], site: Path
) -> None:
    mine = folders[0] / "lab.toml"
    mine.write_text('scrach = "/x"\n[gpu]\nwalltime = "soon"\nmax_jobs = "4"\n[network]\nport = "1-2"\n')
    site.write_text(SITE.replace('partition = "short"\n', "").replace('"16G"', "16"))
    problems = problems_of({"cpu": {"core": 2}, "gpuu": {}, "prologue": ["rm -rf ~"]})
    assert set(problems) == {
        f"{OVERRIDES}: prologue: expected in a profile of yours or of the site only, "
        "for it is code that jobs run; found ['rm -rf ~']",
        f"{mine}: scrach: unknown key; did you mean 'scratch'?",
        f"{mine}: gpu.walltime: expected minutes, or a time such as '04:00:00' or '1-12:00:00', found 'soon'",
        f"{mine}: gpu.max_jobs: input should be a valid integer, found '4'",
        f"{mine}: network.port: unknown key; did you mean 'ports'?",
        f"{OVERRIDES}: cpu.partition: required, but absent",
        f"{site}: cpu.memory: expected a size with its unit, such as '16G' or '500M', found 16",
        f"{OVERRIDES}: cpu.core: unknown key; did you mean 'cores'?",
        f"{OVERRIDES}: gpuu: unknown key; did you mean 'gpu'?",
    }


def test_partition_and_walltime_have_no_default(site: Path) -> None:
    site.write_text("")
    missing = ("scratch", "controller", "cpu")
    assert problems_of() == tuple(f"profile 'lab': {key}: required, but absent" for key in missing)
    tables = {role: {"cores": 1, "memory": "1G"} for role in ("controller", "cpu", "gpu")}
    problems = problems_of({"scratch": "/tmp", **tables})
    for role in tables:
        for key in ("partition", "walltime"):
            assert f"{OVERRIDES}: {role}.{key}: required, but absent" in problems


def test_files_that_cannot_be_read_are_all_named(folders: tuple[Path, Path], site: Path) -> None:
    mine = folders[0] / "lab.toml"
    mine.write_bytes(b"\xff")
    site.write_text("[cpu\n")
    first, second = problems_of()
    assert first.startswith(f"{site}: not valid TOML: ")
    assert second.startswith(f"{mine}: cannot be read as a profile: ")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table, keys in SLURM_TEXTS.items() for key in keys]
)
def test_a_text_for_slurm_that_a_shell_could_run_is_refused_by_name(table: str, key: str, value: str) -> None:
    (problem,) = problems_of({table: {key: value}})
    assert problem.startswith(f"{OVERRIDES}: {table}.{key}: expected ")
    assert problem.endswith(f", found {value!r}")
    assert "\n" not in problem


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("value", [*HOSTILE, "~/x", "x", "/a/../b", "/a$", "${A", "$1", "/$(id)", ""])
@pytest.mark.parametrize("key", ["scratch", "cache"])
def test_a_folder_holds_variables_and_nothing_else_that_is_expanded(key: str, value: str) -> None:
    (problem,) = problems_of({key: value})
    assert problem.startswith(f"{OVERRIDES}: {key}: expected an absolute folder")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("value", ["/tmp", "$TMPDIR", "${TMPDIR}/x", "/my files/$USER/$SLURM_JOB_ID"])
def test_a_folder_may_hold_variables_and_blanks(value: str) -> None:
    assert find_profile("lab", overrides={"scratch": value}).scratch == value


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("directive", "said"),
    [
        ("--mail-type", None),
        ("--mail-user=a@b.org", None),
        ("--gres=lscratch:100", None),
        ("--licenses=x:1,y*2", None),
        ("-p gpu", "expected an option of sbatch"),
        ("--comment=a b", "expected an option of sbatch"),
        ("--comment=$(id)", "expected an option of sbatch"),
        ("--comment=a\n#SBATCH --wrap=x", "expected an option of sbatch"),
        ("--partition=x", "expected no --partition here: it is the key 'partition'"),
        ("--time=5", "expected no --time here: it is the key 'walltime'"),
        ("--export=LD_PRELOAD=/tmp/x.so", "expected no --export here: hpcenc sets it itself"),
        ("--expo=LD_PRELOAD=/tmp/x.so", "expected no --export here: hpcenc sets it itself"),
        ("--requeue", "expected no --requeue here: hpcenc sets it itself"),
    ],
)
def test_directives_are_options_without_a_key_of_their_own(directive: str, said: str | None) -> None:
    overrides = {"cpu": {"directives": [directive]}}
    if said is None:
        assert find_profile("lab", overrides=overrides).cpu.directives == (directive,)
    else:
        (problem,) = problems_of(overrides)
        assert problem.startswith(f"{OVERRIDES}: cpu.directives.1: {said}")


@pytest.mark.usefixtures("site")
def test_a_second_gres_does_not_replace_that_of_the_gpu() -> None:
    (problem,) = problems_of({"gpu": {"directives": ["--gres=lscratch:100"]}})
    assert "gpu.directives: expected no --gres here" in problem


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    "request_",
    [
        "--gpus=1",
        "--gpus-per-node=a100:1",
        "--gres=gpu:a100_1g.5gb:1,lscratch:100",
        "--tres-per-task=gres/gpu:1",
    ],
)
def test_one_gpu_is_asked_for_in_any_way_that_sbatch_knows(request_: str) -> None:
    profile = find_profile("lab", overrides={"gpu": {"gpu_request": request_}})
    assert profile.gpu is not None
    assert profile.gpu.gpu_request == request_


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    "request_", ["gpu:1", "--gres=", "--export=LD_PRELOAD=x", "--gpus 1", "-G1", "--wrap=x"]
)
def test_a_gpu_is_asked_for_by_nothing_else(request_: str) -> None:
    (problem,) = problems_of({"gpu": {"gpu_request": request_}})
    assert "gpu.gpu_request: expected one option of sbatch for one GPU" in problem


def test_a_prologue_may_hold_any_line_of_shell_but_lines_only(site: Path) -> None:
    site.write_text(SITE.replace('["module', '["source \'/my venv/bin/activate\'; umask $(cat x)", "module'))
    assert len(find_profile("lab").prologue) == 2
    site.write_text(SITE.replace('["module', '["a\\nb", "module'))
    (problem,) = problems_of()
    assert problem.startswith(f"{site}: prologue.1: expected one line of shell, found 'a\\nb'")


def test_what_is_checked_is_what_toml_says() -> None:
    assert SlurmProfile.model_validate(tomllib.loads(SITE)).cpu.memory_bytes == 16 * 2**30


def test_the_manual_has_two_whole_profiles() -> None:
    blocks = [block.partition("```")[0] for block in MANUAL.read_text().split("```toml\n")[1:]]
    examples = [tables for block in blocks if "controller" in (tables := tomllib.loads(block))]
    first, second = (SlurmProfile.model_validate(tables) for tables in examples)
    assert first.gpu is not None
    assert second.gpu is not None
    assert (first.gpu.gpu_request, second.gpu.gpu_request) == ("--gres=gpu:a100:1", "--gpus=1")


def test_the_manual_explains_every_key() -> None:
    rows = [line.split("|")[1] for line in MANUAL.read_text().splitlines() if line.startswith("|")]
    explained = {key.strip("[]") for row in rows for key in re.findall(r"`([^`]+)`", row)}
    tables = (SlurmProfile, Controller, GpuWorkers, Network)
    assert explained == {field.alias or key for table in tables for key, field in table.model_fields.items()}

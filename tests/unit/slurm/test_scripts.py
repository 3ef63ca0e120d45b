"""Options and scripts; scripts are run by a real bash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcenc.slurm import scripts
from hpcenc.slurm.scripts import JobRequest, controller_name, sbatch_options, worker_name

HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "$(touch hurt)",
    "`touch hurt`",
    "; touch hurt",
    "100%j",
    "two\nlines",
    "é",
    "*",
]


def render_script(command: Sequence[str], **settings: Any) -> str:
    return scripts.render_script(command, walltime_min=5, **settings)


def run(script: str, folder: Path, **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "TMPDIR": str(folder), **variables}
    done = subprocess.run(
        ["bash", "-"], input=script, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("text", HOSTILE)
def test_a_command_gets_its_arguments_and_variables_as_they_are(text: str, tmp_path: Path) -> None:
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['SETTING']]))"
    script = render_script([sys.executable, "-c", show, text, "last"], variables={"SETTING": text})
    assert json.loads(run(script, tmp_path)) == [[text, "last"], text]
    assert not (tmp_path / "hurt").exists()


def test_the_command_takes_the_place_of_the_shell_so_that_signals_reach_it(tmp_path: Path) -> None:
    script = render_script([sys.executable, "-c", "import os; print(os.getppid())"])
    wrapper = ["bash", "-c", 'echo $$; exec bash "$0"', str(tmp_path / "script")]
    (tmp_path / "script").write_text(script)
    environment = {**os.environ, "SLURM_JOB_ID": "7", "TMPDIR": str(tmp_path)}
    done = subprocess.run(wrapper, env=environment, capture_output=True, text=True, check=True)
    shell, parent = done.stdout.split()
    assert parent == str(os.getpid())
    assert shell != parent


def test_caches_are_in_scratch_and_private(tmp_path: Path) -> None:
    scratch = tmp_path / "local disk"
    scratch.mkdir()
    show = "import os; print(os.environ['CUPY_CACHE_DIR'], os.environ['PYTHONSAFEPATH'], sep='|')"
    script = render_script([sys.executable, "-c", show], scratch="$NODE_DISK")
    found, safe = run(script, tmp_path, NODE_DISK=str(scratch)).strip().split("|")
    assert Path(found).parent.parent == scratch
    assert Path(found).parent.stat().st_mode & 0o777 == 0o700
    assert safe == "1"


def test_a_prologue_comes_first_and_may_leave_variables_unset(tmp_path: Path) -> None:
    prologue = ['export FROM_SITE="$NEVER_SET loaded"']
    show = "import os; print(os.environ['FROM_SITE'])"
    assert run(render_script([sys.executable, "-c", show], prologue=prologue), tmp_path).strip() == "loaded"


def test_a_command_knows_when_its_job_ends(tmp_path: Path) -> None:
    show = "import os, time; print(float(os.environ['SLURM_JOB_END_TIME']) - time.time())"
    script = render_script([sys.executable, "-c", show])
    assert 290 < float(run(script, tmp_path)) <= 300
    assert float(run(script, tmp_path, SLURM_JOB_END_TIME="0")) < -(10**9)


def test_a_cache_of_its_own_and_a_umask(tmp_path: Path) -> None:
    show = "import os; print(os.environ['CUPY_CACHE_DIR'], oct(os.umask(0)))"
    script = render_script([sys.executable, "-c", show], cache="$HOME/fast", umask=0o007)
    assert run(script, tmp_path, HOME=str(tmp_path)).split() == [f"{tmp_path}/fast/cupy", "0o7"]


@pytest.mark.parametrize("scratch", ["$(touch hurt)", "`touch hurt`", "a\nb"])
def test_a_scratch_that_is_a_command_is_refused(scratch: str) -> None:
    with pytest.raises(ValueError, match="scratch"):
        render_script(["true"], scratch=scratch)


def test_a_variable_must_have_the_name_of_one() -> None:
    with pytest.raises(ValueError, match="'A;B' is no name of a variable"):
        render_script(["true"], variables={"A;B": ""})


def request(**changes: object) -> JobRequest:
    settings: dict[str, object] = {
        "name": "hpcenc-w-a1b2c3d4",
        "folder": Path("/data/my 100% study"),
        "walltime_min": 90,
    }
    return JobRequest(**{**settings, "cores": 4, "memory_mb": 16_000, **changes})  # type: ignore[arg-type]


def test_a_request_becomes_arguments() -> None:
    options = sbatch_options(
        request(partition="gpu", account="lab", gpu_request="--gres=gpu:1", exclude="n1,n2", signal_s=120)
    )
    assert options == [
        "--job-name=hpcenc-w-a1b2c3d4",
        "--chdir=/data/my 100% study",
        "--output=/data/my 100%% study/logs/%x-%j.log",
        "--open-mode=append",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=4",
        "--mem=16000M",
        "--time=90",
        "--no-requeue",
        "--export=ALL",
        "--signal=B:USR1@120",
        "--partition=gpu",
        "--account=lab",
        "--exclude=n1,n2",
        "--gres=gpu:1",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a b"}, "job name"),
        ({"folder": Path("/data/a\nb")}, "run folder"),
        ({"folder": Path("/data/a\\b")}, "backslash"),
        ({"partition": "gpu\n--uid=0"}, "partition"),
        ({"gpu_request": "gpu:1"}, "'gpu:1': expected an option of sbatch"),
        ({"extra": ("--x\x00",)}, "option"),
    ],
)
def test_what_slurm_cannot_take_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sbatch_options(request(**changes))


def test_an_array_waits_for_what_comes_before_it() -> None:
    options = sbatch_options(request(n_members=3, after="afterok:12", requeue=True))
    wanted = {"--array=0-2", "--dependency=afterok:12", "--kill-on-invalid-dep=yes", "--requeue"}
    assert wanted <= set(options)
    (output,) = (option for option in options if option.startswith("--output="))
    assert output.endswith("/logs/%x-%A_%a.log")  # ids as squeue shows them
    assert not any("array" in option or "depend" in option for option in sbatch_options(request()))


def test_jobs_are_named_by_their_run() -> None:
    assert (controller_name("a1b2c3d4"), worker_name("a1b2c3d4")) == ("hpcenc-a1b2c3d4", "hpcenc-w-a1b2c3d4")
    with pytest.raises(ValueError, match="run id"):
        worker_name("A1;rm")

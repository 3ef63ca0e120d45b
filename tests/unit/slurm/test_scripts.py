"""Options and scripts; scripts are run by a real bash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcenc.slurm import scripts
from hpcenc.slurm.scripts import JobRequest, RequestError, controller_name, sbatch_options, worker_name

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


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "script").write_text(script)
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "TMPDIR": str(folder)}
    return subprocess.Popen(
        ["bash", "script"],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_job_ends_as_its_command_does(tmp_path: Path) -> None:
    for end, status in (("exit 3", 3), ("true", 0), ("kill -KILL $$", 128 + signal.SIGKILL)):
        job = start(render_script(["bash", "-c", end], scratch="$TMPDIR"), tmp_path)
        assert job.wait(20) == status
        assert [path.name for path in tmp_path.iterdir()] == ["script"]


def test_slurms_word_that_a_job_will_end_reaches_the_command(tmp_path: Path) -> None:
    command = "told=0; trap 'echo told; told=$((told + 1))' USR1; echo began; "
    command += "until ((told == 3)); do sleep 0.05; done; exit 5"
    script = render_script(["bash", "-c", command], scratch="$TMPDIR")
    job = start(script, tmp_path)
    assert job.stdout is not None
    assert job.stdout.readline() == "began\n"
    for _ in range(3):
        job.send_signal(signal.SIGUSR1)
        assert job.stdout.readline() == "told\n"
    assert job.wait(20) == 5


def test_a_script_outlives_its_command_when_slurm_ends_them_both(tmp_path: Path) -> None:
    end = "import signal, sys, time\ndef end(*_): time.sleep(0.5); print('closed'); sys.exit(3)\n"
    wait = "signal.signal(signal.SIGTERM, end)\nprint('began')\nwhile True: time.sleep(0.05)"
    job = start(render_script([sys.executable, "-c", end + wait], scratch="$TMPDIR"), tmp_path)
    assert job.stdout is not None
    assert job.stdout.readline() == "began\n"
    (child,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for process in (job.pid, int(child)):
        os.kill(process, signal.SIGTERM)
    assert (job.wait(20), job.stdout.read()) == (3, "closed\n")
    assert [path.name for path in tmp_path.iterdir()] == ["script"]


def test_the_scratch_folder_goes_before_a_command_that_slurm_will_have_to_kill(tmp_path: Path) -> None:
    command = ["bash", "-c", "trap '' TERM; echo began; until [ -e go ]; do sleep 0.05; done"]
    script = render_script(command, scratch="$TMPDIR")
    assert "(sleep 3; " in script
    job = start(script.replace("(sleep 3; ", "(sleep 0.1; "), tmp_path)
    assert job.stdout is not None
    assert job.stdout.readline() == "began\n"
    own = tmp_path / f"hpcenc-{os.getuid()}-7"
    assert own.exists()
    job.terminate()
    for _ in range(200):
        if not own.exists():
            break
        time.sleep(0.05)
    assert not own.exists()
    assert job.poll() is None
    (tmp_path / "go").touch()
    assert job.wait(20) == 0


HOME_CACHES = {
    "CUDA_CACHE_PATH",  # ~/.nv
    "CUPY_CACHE_DIR",  # ~/.cupy
    "MPLCONFIGDIR",  # ~/.config and ~/.cache
    "NUMBA_CACHE_DIR",  # beside the source, or ~/.cache
    "PYTORCH_KERNEL_CACHE_PATH",  # ~/.cache/torch
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",  # ~/.triton
    "XDG_CACHE_HOME",  # ~/.cache
}
"""What tells libraries where else than there to keep what they compile."""


def test_all_caches_are_in_scratch_and_private_and_go_with_the_job(tmp_path: Path) -> None:
    scratch = tmp_path / "local disk"
    show = (
        "import json, os; from pathlib import Path; "
        f"caches = {{name: os.environ[name] for name in {sorted(HOME_CACHES)}}}; "
        "own = Path(os.environ['DASK_TEMPORARY_DIRECTORY']).parent; (own / 'x').touch(); "
        "made = [Path(cache).is_dir() for cache in caches.values()]; "
        "print(json.dumps([caches, str(own), own.stat().st_mode, made, os.environ['PYTHONSAFEPATH']]))"
    )
    script = render_script([sys.executable, "-c", show], scratch="$NODE_DISK")
    caches, own, mode, made, safe = json.loads(run(script, tmp_path, NODE_DISK=str(scratch)))
    assert {Path(cache).parent for cache in caches.values()} == {Path(own)}
    assert len(set(caches.values())) == len(HOME_CACHES)
    assert (Path(own).parent, mode & 0o777, set(made), safe) == (scratch, 0o700, {True}, "1")
    assert list(scratch.iterdir()) == []


def test_a_job_that_starts_again_takes_what_its_last_time_left(tmp_path: Path) -> None:
    own = tmp_path / f"hpcenc-{os.getuid()}-7"
    own.mkdir(0o700)
    own.chmod(0o2700)  # as in a folder whose group is inherited
    run(render_script(["true"], scratch="$TMPDIR"), tmp_path)
    assert not own.exists()


@pytest.mark.parametrize("how", ["open", "another's", "a link", "a file"])
def test_a_scratch_folder_that_somebody_else_could_have_made_is_refused(how: str, tmp_path: Path) -> None:
    own, other = tmp_path / f"hpcenc-{os.getuid()}-7", tmp_path / "other"
    other.mkdir(0o700)
    if how == "a link":
        own.symlink_to(other)
    elif how == "a file":
        own.touch(0o700)
    else:
        own.mkdir(0o700)
        if how == "open":
            own.chmod(0o750)
        elif os.getuid() != 0:
            pytest.skip("needs root, to be another user")
        else:
            os.chown(own, 1, -1)
    job = start(render_script(["touch", str(other / "hurt")], scratch="$TMPDIR"), tmp_path)
    (said,) = job.communicate(timeout=20)[1].splitlines()
    assert job.returncode == 1
    assert said.startswith(
        f"hpcenc: {own}: expected a folder of user {os.getuid()} alone (drwx------), found "
    )
    assert said.endswith("Remove it, or set another scratch in the profile.")
    assert os.path.lexists(own)
    assert list(other.iterdir()) == []


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
    show = "import os; print(*(os.environ[name] for name in {}), oct(os.umask(0)), sep='|')"
    command = [sys.executable, "-c", show.format(sorted(HOME_CACHES))]
    script = render_script(command, scratch="$TMPDIR", cache="$HOME/fast", umask=0o007)
    *caches, umask = run(script, tmp_path, HOME=str(tmp_path)).strip().split("|")
    assert {Path(cache).parent for cache in caches} == {tmp_path / "fast"}
    assert umask == "0o7"
    assert all(Path(cache).is_dir() for cache in caches)  # for the jobs after this one


@pytest.mark.parametrize("scratch", ["$(touch hurt)", "`touch hurt`", "a\nb"])
def test_a_scratch_that_is_a_command_is_refused(scratch: str) -> None:
    with pytest.raises(ValueError, match="scratch"):
        render_script(["true"], scratch=scratch)


@pytest.mark.parametrize("text", ["M\udce4dchen", "a\0b"])
def test_a_script_holds_no_name_that_would_become_another(text: str) -> None:
    with pytest.raises(RequestError, match="NUL, nor a name that is not UTF-8"):
        render_script(["true", text])


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
        ({"folder": Path("/data/M\udce4dchen")}, "UTF-8"),
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

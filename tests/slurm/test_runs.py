"""hpcenc's own commands on a real SLURM, from submit to the report, whatever happens in between."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sandbox import processes_of, wait_for
from sites import Site, chunks
from small_study import swept


def test_a_study_goes_from_submit_to_report(site: Site, check_done: Callable[[], None]) -> None:
    shutil.rmtree(site.results)
    site.open()
    said = site.hpcenc("submit")
    job = said.split()[1]
    assert said.splitlines()[0] == f"job      {job}"
    site.hpcenc("wait")
    site.await_state(job, "COMPLETED")
    check_done()
    assert f"hpcenc-{site.run_folder.name.rpartition('-')[2]}-{job}.log" in site.hpcenc("logs", "--job", job)
    status = json.loads(site.hpcenc("status", "--json"))
    assert status["ended"] == 0
    assert (status["stages"]["fit"]["done"], status["stages"]["fit"]["units"]) == (4, 4)
    assert status["account"]["workers"]["gpu"]["hours"] > 0
    assert status["jobs"] == []


def test_a_run_that_waits_says_why_and_since_when(site: Site) -> None:
    job = site.submit("--sbatch-arg=--begin=now+1hour")
    wait_for(lambda: "BeginTime" in site.hpcenc("status"), 30, "SLURM's reason")
    said = site.hpcenc("status")
    assert f"waiting for its controller, job {job}" in said
    assert f"job {job} (hpcenc-{site.run_folder.name.rpartition('-')[2]}) waits since 20" in said
    site.hpcenc("cancel")
    assert "no job of it waits or runs" in site.hpcenc("cancel")


def test_a_second_run_is_refused_and_told_the_first_ones_job(
    site: Site, check_done: Callable[[], None]
) -> None:
    job = site.submit()
    site.hpcenc("submit", status=2)
    assert f"(job {job}, which waits) holds this store" in site.errors
    watching = site.start("status", "--watch")
    site.open()
    watched = watching.communicate(timeout=120)[0]
    first, *_, last = (line for line in watched.splitlines() if line.startswith("run "))
    assert f"waiting for its controller, job {job}" in first
    assert last.endswith(": done")
    site.await_state(job, "COMPLETED")
    check_done()


def test_what_slurm_would_refuse_is_refused_at_once_and_changes_nothing(site: Site) -> None:
    text = site.study.read_text()
    site.study.write_text(text + '[cluster.slurm.gpu]\ngpu_request = "--gres=gpu:99"\n')
    before = sorted(site.study.parent.rglob("*"))
    site.hpcenc("submit", status=2)
    assert "Requested node configuration is not available" in site.errors
    assert sorted(site.study.parent.rglob("*")) == before
    assert site.sandbox.jobs(ended=False) == []


def test_a_unit_that_no_job_is_long_enough_for_is_refused_with_the_figures(site: Site) -> None:
    folder, n_trs, n_voxels = site.study.parent, 1_500, 80_000
    for run in "ABC":
        np.save(folder / f"mylab_{run}.npy", np.random.default_rng(0).random((n_trs, 768), np.float32))
        # As large as this says, and yet it takes no place: nobody reads on behind the header.
        path = folder / "bold" / "s1" / f"{run}.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_trs, n_voxels)).flush()
    text = re.sub(r"n_trs = \d+", f"n_trs = {n_trs}", site.study.read_text())
    text = text.replace('ids = ["s1", "s2"]', 'ids = ["s1"]').replace("block = 5000", f"block = {n_voxels}")
    site.study.write_text(text)
    path = site.profiles / "site.toml"
    path.write_text(path.read_text().replace("walltime = 10", "walltime = 1").replace('"1G"', '"14G"'))
    shutil.rmtree(site.results)
    site.hpcenc("submit", status=2)
    assert re.search(r"takes about \d+ min on 1 core like those here, and jobs last 1 min", site.errors)
    assert re.search(r"Ask for at least \d+ min, or set fit.block to less", site.errors)
    assert not site.results.exists()
    assert site.sandbox.jobs(ended=False) == []


@pytest.mark.parametrize("options", [(), ("--array",)])
def test_scripts_are_shown_without_submitting_anything(options: tuple[str, ...], site: Site) -> None:
    shutil.rmtree(site.results)
    before = sorted(site.study.parent.rglob("*"))
    said = site.hpcenc("submit", "--print-script", "--sbatch-arg=--nice=7", *options)
    assert sorted(site.study.parent.rglob("*")) == before
    assert site.sandbox.jobs(ended=False) == []
    chain = ["begin", "extract", "operators", "fit", "end"]
    parts = chain if options else ["controller", "cpu worker", "gpu worker"]
    assert [line[2:] for line in said.splitlines() if line.startswith("# ")] == parts
    assert said.count("--nice=7") == (2 if options else 1)
    assert "--gres=gpu:1" in said.partition(f"# {'fit' if options else 'gpu worker'}")[2]
    assert ("--array=0-1 --dependency=afterok:ID-OF-operators" in said) == bool(options)
    # Nothing of the folder's name runs where the text is pasted: sbatch gets it whole.
    pasted = f'sbatch() {{ printf "%s\\n" "$@"; }}\n{said}'
    shown = subprocess.run(["bash"], input=pasted, text=True, capture_output=True, check=True)
    assert f"--chdir={site.results}/study.runs/...-00000000\n" in shown.stdout
    assert not list(site.study.parent.rglob("hurt"))


def test_a_cancelled_run_leaves_no_job_and_goes_on_by_the_same_submit(
    site: Site, check_done: Callable[[], None]
) -> None:
    job = site.submit()
    site.await_state(job, "RUNNING")
    assert job in site.hpcenc("cancel")
    assert site.sandbox.jobs(ended=False) == []
    site.open()
    site.submit()
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def test_a_cancelled_run_takes_its_workers_along(site: Site, check_done: Callable[[], None]) -> None:
    site.open()
    site.hold_workers()
    site.submit()
    wait_for(site.worker_jobs, 60, "workers")
    site.hpcenc("cancel")
    assert site.sandbox.jobs(ended=False) == []
    site.release_workers()
    site.submit()
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def test_a_run_that_is_cancelled_while_its_controller_ends_by_its_walltime_does_not_come_back(
    site: Site,
) -> None:
    site.open()
    site.hold_workers()
    job = site.submit()
    wait_for(site.worker_jobs, 60, "workers")
    site.sandbox.run("scancel", "--signal=USR1", "--batch", job)
    site.hpcenc("cancel")
    assert site.sandbox.jobs(ended=False) == []
    assert site.sandbox.state(job) == "CANCELLED"
    assert "interrupted" in site.hpcenc("status")


def test_a_run_whose_job_slurm_starts_again_waits_and_keeps_its_store(site: Site) -> None:
    site.open()
    site.hold_workers()
    job = site.submit()
    wait_for(site.worker_jobs, 60, "workers")
    site.sandbox.run("scontrol", "requeue", job)
    site.await_state(job, "PENDING")
    assert site.events()[-1] == {**site.events()[-1], "event": "end", "status": 3}
    assert f"waiting for its controller, job {job}" in site.hpcenc("status")
    site.hpcenc("submit", status=2)
    assert f"(job {job}, which waits) holds this store" in site.errors
    site.hpcenc("cancel")


@pytest.mark.parametrize(
    "how", ["killed", "killed by a signal of its own", "requeued", "told that its walltime ends"]
)
def test_a_controller_that_ends_early_loses_nothing(
    how: str, site: Site, check_done: Callable[[], None]
) -> None:
    site.open()
    site.hold_workers()
    job = site.submit()
    wait_for(site.worker_jobs, 60, "workers")
    before = site.worker_jobs()
    if how == "killed":
        site.sandbox.run("scancel", "--signal=KILL", "--full", job)
        wait_for(lambda: site.sandbox.state(job) not in ("RUNNING", "COMPLETING"), 60, "the controller's end")
    elif how == "killed by a signal of its own":
        (process,) = processes_of(job, "control")
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: site.sandbox.state(job) == "FAILED", 60, "the controller's end")
    elif how == "requeued":
        site.sandbox.run("scontrol", "requeue", job)
    else:
        site.sandbox.run("scancel", "--signal=USR1", "--batch", job)
        site.await_event("requeued")
    site.release_workers()
    if how.startswith("killed"):
        site.submit()
    else:
        site.await_state(job, "PENDING")
        site.sandbox.hurry(job)
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()
    assert len(list((site.results / "study.runs").iterdir())) == (2 if how.startswith("killed") else 1)
    assert not {site.sandbox.state(each) for each in before} & {"PENDING", "RUNNING", "COMPLETED"}


def test_a_controller_that_outlived_its_node_leaves_its_run_to_the_next_one(
    site: Site, check_done: Callable[[], None]
) -> None:
    site.open()
    site.hold_workers()
    job = site.submit()
    wait_for(site.worker_jobs, 60, "workers")
    (first,) = processes_of(job, "control")
    node = next(line.node for line in site.sandbox.jobs() if line.job_id == job)
    site.sandbox.kill_node(node)
    site.sandbox.node_state(node, "down")
    try:
        site.await_state(job, "PENDING")
        site.sandbox.hurry(job)
        site.await_event("controller", 2)
        wait_for(lambda: first not in processes_of(job, "control"), 60, "the first controller's end")
        assert site.events()[-1]["event"] != "end"
        site.release_workers()
        assert "exit status 0" in site.hpcenc("wait")
    finally:
        site.sandbox.start_node(node)
    site.await_no_jobs()
    check_done()


def test_results_are_for_the_group_that_the_profile_names(site: Site, check_done: Callable[[], None]) -> None:
    gid = grp.getgrnam("daemon").gr_gid if os.getuid() == 0 else os.getgroups()[-1]
    shutil.rmtree(site.results)
    path = site.profiles / "site.toml"
    path.write_text(f'group = "{grp.getgrgid(gid).gr_name}"\numask = "007"\n' + path.read_text())
    site.open()
    site.submit()
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()
    states = {path: path.stat() for path in site.results.rglob("*")}
    assert {state.st_gid for state in states.values()} == {gid}
    assert [path for path, state in states.items() if state.st_mode & 0o007] == []
    folders = [path for path in states if path.is_dir()]
    assert [path for path in folders if states[path].st_mode & 0o070 != 0o070] == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="hs"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


AS_ANOTHER = """\
import contextlib, io, os, sys
from hpcenc.cli.app import app
uid, gid, *arguments = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()):
    app(arguments, standalone_mode=False)  # imports what others may not be allowed to read
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
app(arguments)
"""


def ask_as(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command that changes nothing tells another user."""
    found = pwd.getpwnam(user)
    command = [sys.executable, "-c", AS_ANOTHER, str(found.pw_uid), str(found.pw_gid), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_others_of_the_group_see_how_a_run_stands_and_nobody_else(site: Site, open_folder: Path) -> None:
    store, shared = open_folder / "results" / "study.zarr", open_folder / "study.toml"
    site.study.write_text(site.study.read_text().replace("tr_s", f'store = "{store}"\ntr_s', 1))
    shutil.copy(site.study, shared)
    path = site.profiles / "site.toml"
    path.write_text('group = "daemon"\numask = "007"\n' + path.read_text())
    job = site.submit()
    waiting = ask_as("daemon", "status", str(shared))
    assert (waiting.returncode, waiting.stderr) == (0, "")
    assert f"waiting for its controller, job {job}" in waiting.stdout
    site.open()
    assert "exit status 0" in site.hpcenc("wait")
    site.await_no_jobs()
    assert ask_as("daemon", "status", str(shared)).stdout == site.hpcenc("status")
    assert ask_as("daemon", "logs", str(shared)).stdout == site.hpcenc("logs")
    stranger = ask_as("nobody", "status", str(shared))
    assert (stranger.returncode, stranger.stdout) == (2, "")
    assert stranger.stderr.startswith("error: ")
    assert "Permission denied" in stranger.stderr


def test_a_study_that_changed_while_it_waited_ends_with_the_reason(site: Site) -> None:
    site.submit()
    (site.study.parent / "mylab_A.npy").unlink()
    site.open()
    assert "exit status 1" in site.hpcenc("wait", status=1)
    site.await_no_jobs()
    said = site.hpcenc("status")
    assert "done, something was set aside" in said
    assert "mylab_A.npy" in said.partition("set aside: ")[2]


@pytest.mark.parametrize("way", [(), ("--array",)], ids=["controller", "array"])
def test_a_run_json_that_was_changed_while_it_waited_is_refused(way: tuple[str, ...], site: Site) -> None:
    site.submit(*way)
    path = site.run_folder / "run.json"
    path.write_text(path.read_text().replace('"prologue": [', '"prologue": ["touch hurt", ', 1))
    site.open()
    assert "exit status 1" in site.hpcenc("wait", status=1)
    site.await_no_jobs()
    assert "run.json: expected what was submitted" in site.hpcenc("status").partition("set aside: ")[2]
    assert not list(site.results.rglob("hurt"))
    site.submit(*way)  # the store is free again
    site.hpcenc("wait")
    site.await_no_jobs()


def test_a_client_that_went_away_finds_the_run_when_it_is_back(
    site: Site, check_done: Callable[[], None]
) -> None:
    site.submit()
    client = site.start("wait")
    client.kill()
    client.communicate(timeout=60)
    site.open()
    assert "exit status 0" in site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cancelling_at_any_moment_leaves_nothing_behind(site: Site, check_done: Callable[[], None]) -> None:
    rng = np.random.default_rng(4)
    site.open()
    reached = set()
    for moment in ["PENDING", "before the first worker", "COMPLETING", *rng.uniform(0, 9, 17)]:
        shutil.rmtree(site.results, ignore_errors=True)
        job = site.submit(*(["--sbatch-arg=--begin=now+1hour"] if moment == "PENDING" else []))
        if moment == "before the first worker":
            site.await_event("controller")
            assert site.worker_jobs() == []
        elif moment == "COMPLETING":
            wait_for(site.worker_jobs, 60, "workers")
            workers = set(site.worker_jobs())
            site.sandbox.run("scancel", *workers)
        elif moment != "PENDING":
            until = time.monotonic() + moment
            wait_for(lambda end=until: time.monotonic() > end, 10, "the moment")  # type: ignore[misc]
        events = site.events()
        reached.add(events[-1]["event"] if events else "")
        site.hpcenc("cancel")
        assert site.sandbox.jobs(ended=False) == [], moment
        assert site.sandbox.state(job) in ("CANCELLED", "COMPLETED", "FAILED"), moment
        left = [*site.results.rglob("private"), *site.results.rglob("*.lock")]
        assert left == [], moment
    assert len(reached) > 4, reached  # the moments lie in different parts of the run
    site.submit()
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


@pytest.fixture
def small_disk(site: Site, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, to which the study's results go."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    text = site.study.read_text()
    site.study.write_text(text.replace("tr_s", f'store = "{folder}/study.zarr"\ntr_s', 1))
    yield folder
    try:
        for runs in folder.glob("*.runs"):  # looked at, and kept if the test failed, once the disk is gone
            shutil.copytree(runs, tmp_path / runs.name)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_store_on_a_full_disk_is_kept_and_goes_on_when_there_is_space(
    site: Site, small_disk: Path, undisturbed: Path
) -> None:
    site.open()
    site.hold_workers()
    job = site.submit()
    wait_for(site.worker_jobs, 60, "workers")  # the controller has looked at the space that was there then
    filling = small_disk / "filling"
    filling.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    site.release_workers()
    site.await_state(job, "FAILED")
    site.await_no_jobs()
    run = max((small_disk / "study.runs").iterdir())
    log = (run / "logs" / f"hpcenc-{run.name.rpartition('-')[2]}-{job}.log").read_text()
    assert "no space is left there, or your quota is used up" in log
    assert "Traceback" not in log.partition("no space is left")[0]
    assert not list(small_disk.glob("*.lock"))
    before = chunks(small_disk / "study.zarr")
    assert "Traceback" not in site.hpcenc("status")
    filling.unlink()
    site.submit()
    site.hpcenc("wait")
    site.await_no_jobs()
    after = chunks(small_disk / "study.zarr")
    assert after == chunks(undisturbed.parent / "results" / "study.zarr")
    assert all(after[name] == values for name, values in before.items() if "done" not in name)


def test_the_controller_may_run_in_the_foreground(site: Site, check_done: Callable[[], None]) -> None:
    site.open()
    said = json.loads(site.hpcenc("submit", "--controller", "here", "--json"))
    assert said["exit_status"] == 0
    assert said["units_done"] >= 4
    check_done()


SUBMIT = """\
import json, sys
from pathlib import Path
from hpcenc.cli.app import app
try:
    app()
finally:
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    n_bytes = 1024 * int(lines["VmHWM"].split()[0])
    print(json.dumps({"modules": loaded, "bytes": n_bytes}), file=sys.stderr)
"""


@pytest.mark.parametrize("way", [(), ("--array",)])
def test_a_submit_of_many_subjects_is_light(way: tuple[str, ...], site: Site) -> None:
    text = site.study.read_text()
    ids = [f"p{place:03}" for place in range(176)]
    bold = site.study.parent / "bold"
    for subject in ids:
        shutil.copytree(bold / "s1", bold / subject, copy_function=os.link)
    site.study.write_text(text.replace('ids = ["s1", "s2"]', f"ids = {json.dumps(ids)}"))
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, "submit", str(site.study), *way],
        env={**os.environ, "HPCENC_PROFILES": str(site.profiles)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stderr.splitlines()[-1])
    site.hpcenc("cancel")
    assert not {"torch", "dask", "distributed", "dask_jobqueue", "zarr"} & set(found["modules"])
    assert found["bytes"] < 200e6


def test_sweeps_averages_ceilings_and_a_shared_alpha_are_those_of_one_process(site: Site) -> None:
    shutil.rmtree(site.results)
    site.study.write_text(swept(site.study.read_text()))
    models = "mylab,mylab+other"
    site.hpcenc("submit", "--models", models, "--profile", "serial")
    wanted = chunks(site.results / "study.zarr")
    groups = (
        "bold/average",
        "bands/mylab-and-other/average",
        "alphas/delays/mylab/s1",
        "ceilings/s1",
        "fits/mylab/s2",
    )
    assert {f"{group}/done/0" for group in groups} <= wanted.keys()
    site.open()
    for way in ((), ("--array",)):
        shutil.rmtree(site.results)
        site.submit("--models", models, *way)
        site.hpcenc("wait")
        site.await_no_jobs()
        assert chunks(site.results / "study.zarr") == wanted, way

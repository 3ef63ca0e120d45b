"""A real SLURM for the tests of this folder; none may leave a job, a process or a private file behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sandbox import PACKAGES, PROGRAMS, Sandbox, free_port, wait_for, which
from sites import PROFILE, Site, chunks
from small_study import write_small_study

from hpcenc.slurm.profiles import SlurmProfile

N_NODES, N_GPUS = 3, 2
FAILURES = Path(__file__).parents[2] / "build" / "slurm-failures"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[Sandbox]:
    missing = [name for name in PROGRAMS if which(name) is None]
    if missing:
        why = f"SLURM is not installed ({', '.join(missing)}); Debian's packages: {PACKAGES}"
        if os.environ.get("CI") or os.environ.get("HPCENC_NEEDS_SLURM"):
            pytest.fail(why)
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="hs"))
    folder.chmod(0o755)
    cluster = Sandbox(folder, N_NODES, N_GPUS, free_port(N_NODES + 1))
    before = os.environ.get("SLURM_CONF")
    try:
        try:
            cluster.start()
        except BaseException:
            shutil.copytree(folder / "log", FAILURES / "start", dirs_exist_ok=True)
            raise
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    finally:
        cluster.stop()
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder)


@pytest.fixture
def sandbox(running_sandbox: Sandbox, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sandbox]:
    """The cluster, all nodes idle; afterwards nothing may be left of the test: no job, no process, no lock,
    no key, and no scratch folder of a job that came to its end."""
    before = _processes(running_sandbox)
    yield running_sandbox
    left = [*_end_jobs(running_sandbox), *_await_processes(running_sandbox, before)]
    # Dask's own locks are in the scratch folders of jobs that were killed outright.
    locks = (path for path in tmp_path.rglob("*.lock") if path.parent.name != "dask-scratch-space")
    left += [*tmp_path.rglob("private/*"), *locks]
    completed = {job.job_id for job in running_sandbox.jobs() if job.state == "COMPLETED"}
    scratch = tmp_path.glob("*scratch/hpcenc-*")
    left += [path for path in scratch if path.name.rpartition("-")[2] in completed]
    if left or getattr(request.node, "failed", False):
        folder = FAILURES / request.node.name.replace("/", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        running_sandbox.keep_logs(folder)
        ignored = shutil.ignore_patterns("bold", "features", "*.npy", "private")
        shutil.copytree(tmp_path, folder / "files", ignore=ignored, ignore_dangling_symlinks=True)
    for node in running_sandbox.nodes:
        running_sandbox.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    assert not left, f"the test left behind: {left}"


def _end_jobs(cluster: Sandbox) -> list[Any]:
    """Wait for the end of all jobs; those that had to be cancelled."""
    try:
        wait_for(lambda: not cluster.jobs(ended=False), 15, "jobs to end")
    except TimeoutError:
        left = cluster.jobs(ended=False)
        cluster.run("scancel", *(job.job_id for job in left), check=False)
        wait_for(lambda: not cluster.jobs(ended=False), 30, "cancelled jobs to end")
        return list(left)
    return []


def _await_processes(cluster: Sandbox, before: Mapping[int, str]) -> list[Any]:
    """Wait for the end of all processes that are new; command lines of those that do not end."""
    try:
        wait_for(lambda: _processes(cluster).keys() <= before.keys(), 10, "processes to end")
    except TimeoutError:
        return [text for pid, text in _processes(cluster).items() if pid not in before]
    return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.failed:  # in its setup, too
        item.failed = True  # type: ignore[attr-defined]
    return report


def _processes(cluster: Sandbox) -> dict[int, str]:
    """Processes that live and use the cluster, but for its daemons and this one, with their command lines."""
    setting, own = f"SLURM_CONF={cluster.conf}".encode(), cluster.pids() | {os.getpid()}
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            settings = (path / "environ").read_bytes().split(b"\0")
            text = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        is_slurms_own = text.startswith("slurmctld:")  # a child of the daemon that has no pid file
        if state not in "ZX" and setting in settings and int(path.name) not in own and not is_slurms_own:
            found[int(path.name)] = text.strip()
    return found


@pytest.fixture
def profile(tmp_path: Path) -> SlurmProfile:
    """Workers of one thread, two at most, on the loopback."""
    workers = {"partition": "gpu", "walltime": 10, "cores": 1, "memory": "500M", "max_jobs": 2}
    return SlurmProfile.model_validate(
        {
            "scratch": str(tmp_path / "scratch"),  # job ids of another sandbox on this machine are the same
            "controller": {"partition": "cpu", "walltime": 30, "memory": "500M"},
            "cpu": workers,
            "gpu": {**workers, "gpu_request": "--gres=gpu:1"},
            "network": {"interface": "lo"},
        }
    )


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def undisturbed(small_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study with the results that one process without SLURM writes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    shutil.copytree(small_study.parent, folder)  # with the files' times, which identify BOLD
    study = folder / small_study.name
    command = [sys.executable, "-m", "hpcenc.cli.app", "submit", str(study), "--profile", "serial"]
    subprocess.run(command, check=True, capture_output=True)
    return study


@pytest.fixture
def site(sandbox: Sandbox, tmp_path: Path, undisturbed: Path) -> Iterator[Site]:
    """A study of which all is done but its fits: what comes before them takes most of a run's time.

    Nothing may be written but its results, and by jobs nothing into the user's home.
    """
    folder = tmp_path / "my study; $(touch hurt) 100%j"
    shutil.copytree(undisturbed.parent, folder)
    for made in ("study.zarr/fits", "study.report", "study.runs"):
        shutil.rmtree(folder / "results" / made)
    study = folder / undisturbed.name
    study.write_text(study.read_text().replace("[cluster]\n", '[cluster]\nprofile = "site"\n'))
    gate, profiles = tmp_path / "gate", tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "site.toml").write_text(PROFILE.format(gate=gate))
    found = Site(sandbox, study, gate, profiles)
    found.home.mkdir()
    yield found
    assert found.files() <= found.given
    assert list(found.home.rglob("*")) == []


@pytest.fixture
def check_done(site: Site, undisturbed: Path, tmp_path: Path) -> Callable[[], None]:
    """That a run has ended well: the same bytes, a report, no lock, no keys, nothing run that should not."""
    wanted = chunks(undisturbed.parent / "results" / "study.zarr")

    def check() -> None:
        assert chunks(site.results / "study.zarr") == wanted
        assert list(site.results.rglob("*.html"))
        assert not list(tmp_path.rglob("hurt"))

    return check

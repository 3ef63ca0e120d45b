"""Check of a site's profile: one short job for each role, each of which looks around where it lands."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hpcenc.cluster.enlistment import code_digest
from hpcenc.cluster.probe import Finding, Role, read_findings
from hpcenc.cluster.recruiting import Recruiter, controller_request
from hpcenc.cluster.run_folder import new_run_id
from hpcenc.slurm.commands import ON_LOGIN_S, SlurmError, run_command
from hpcenc.slurm.jobs import JobState, cancel_jobs, job_states, submit_job
from hpcenc.slurm.profiles import MergedProfile, SlurmProfile
from hpcenc.slurm.scripts import JobRequest, checked_folder, job_names, render_script, sbatch_options
from hpcenc.slurm.site import read_site
from hpcenc.tasks.records import one_line

WALLTIME_MIN = 2
"""Of the workers' jobs: short, so that they soon find a gap."""

CONTROLLER_MIN = 10
"""Of the controller's, which workers must find alive."""

POLL_S = 1.0


@dataclass(frozen=True)
class Report:
    """What a job found, or why it found nothing."""

    role: Role
    finding: Finding


def check_profile(merged: MergedProfile, parent: Path, wait_min: float) -> Iterator[Report]:
    """Submit a job for each role, and report what they find as they end.

    Parameters
    ----------
    merged : MergedProfile
    parent : Path
        A folder of the file system that stores are on. The test has a folder in it, which is removed unless
        something did not pass.
    wait_min : float
        Jobs that have not ended by then are cancelled.

    Raises
    ------
    ProfileError
        If the profile is wrong.
    RequestError
        If no job could start in the folder.
    SlurmError
        If SLURM cannot be reached.
    """
    profile = merged.checked()
    run_id = new_run_id()
    folder = parent.resolve() / f"hpcenc-test-{run_id}"
    checked_folder(folder)
    roles: tuple[Role, ...] = ("controller", "cpu") if profile.gpu is None else ("controller", "cpu", "gpu")
    (folder / "logs").mkdir(parents=True)
    asked = {
        "profile": merged.name,
        "site": merged.tables,
        "code": code_digest(),
        "n_workers": len(roles) - 1,
        "seconds": 60 * (CONTROLLER_MIN - 1),
    }
    (folder / "test.json").write_text(json.dumps(asked))
    passed = True
    try:
        for report in _reports(profile, run_id, folder, roles, time.monotonic() + 60 * wait_min):
            passed = passed and report.finding.passed is not False
            yield report
    finally:
        for name in job_names(run_id):
            cancel_jobs(name=name, patience_s=ON_LOGIN_S)
    if passed:
        shutil.rmtree(folder)


def _reports(
    profile: SlurmProfile, run_id: str, folder: Path, roles: tuple[Role, ...], end_s: float
) -> Iterator[Report]:
    yield Report("controller", _steadiness(profile))
    jobs: dict[Role, str] = {}
    for role in roles:
        request = _request(profile, run_id, folder, role)
        if role != "controller":
            if "controller" not in jobs:
                yield Report(role, Finding("job", None, "not tried, for it would find no controller"))
                continue
            # It would look for a controller in vain if its job began first.
            request = replace(request, after=f"after:{jobs['controller']}")
        try:
            jobs[role] = submit_job(_script(profile, folder, role), sbatch_options(request), ON_LOGIN_S)
        except SlurmError as error:
            yield Report(role, Finding("job", False, one_line(error)))
    while jobs:
        states = {job.job_id: job for job in job_states(ids=list(jobs.values()))}
        for role, job_id in list(jobs.items()):
            findings = read_findings(folder, role)
            state = states.get(job_id)
            if findings is not None:
                yield from (Report(role, finding) for finding in findings)
            elif state is None or state.ending != "running":
                yield Report(role, _ended_early(folder, role, job_id, state))
            elif time.monotonic() > end_s:
                yield Report(role, _still_there(job_id, state))
            else:
                continue
            del jobs[role]
        if jobs:
            time.sleep(POLL_S)


def _steadiness(profile: SlurmProfile) -> Finding:
    """Whether the controller's partition may take its nodes away, for other partitions or by their QOS."""
    names = profile.controller.partition.split(",")
    try:
        site = read_site(lambda command: run_command(command, patience_s=ON_LOGIN_S))
    except SlurmError as error:
        return Finding("partition", False, one_line(error))
    known = {partition.name: partition for partition in site.partitions}
    preempted = [name for name in names if name in known and known[name].preempts]
    if preempted:
        said = f"jobs of partition {', '.join(preempted)} may be preempted, and all workers with them; "
        return Finding("partition", None, f"{said}take one for the controller whose PreemptMode is OFF")
    unknown = [name for name in names if name not in known]
    if unknown:
        return Finding("partition", None, f"sinfo does not show partition {', '.join(unknown)}")
    return Finding("partition", True, f"no job of partition {', '.join(names)} is preempted")


def _request(profile: SlurmProfile, run_id: str, folder: Path, role: Role) -> JobRequest:
    if role == "controller":
        request = replace(controller_request(profile, run_id, folder), requeue=False, signal_s=None)
        return replace(request, walltime_min=min(CONTROLLER_MIN, request.walltime_min))
    request = Recruiter(profile, profile.workers(role), run_id, folder).request
    return replace(request, walltime_min=min(WALLTIME_MIN, request.walltime_min))


def _script(profile: SlurmProfile, folder: Path, role: Role) -> str:
    return render_script(
        [sys.executable, "-m", "hpcenc.cli.app", "profile", "probe", str(folder), role],
        walltime_min=CONTROLLER_MIN if role == "controller" else WALLTIME_MIN,
        prologue=profile.prologue,
        scratch=profile.scratch,
        cache=profile.cache,
        umask=profile.umask,
    )


def _ended_early(folder: Path, role: Role, job_id: str, state: JobState | None) -> Finding:
    how = "is gone" if state is None else f"ended as {state.state}"
    on = f" on {state.node}" if state is not None and state.node else ""
    logs = list((folder / "logs").glob(f"*-{job_id}.log"))
    last = logs[0].read_text(errors="replace").strip().rpartition("\n")[2] if logs else ""
    said = f": {last}" if last else ""
    return Finding(
        "job",
        False,
        f"job {job_id} {how}{on} before it could look around{said}. Its log is in {folder / 'logs'}; "
        "the prologue must make the Python of this environment runnable there",
    )


def _still_there(job_id: str, state: JobState) -> Finding:
    if state.state == "PENDING":
        why = f"job {job_id} still waits: {state.reason or 'SLURM gives no reason'}"
        return Finding("job", None, f"{why}. Try again with a longer --wait, or ask for less")
    return Finding("job", False, f"job {job_id} does not come to an end on {state.node}")

"""Submit to SLURM: a small controller job takes the run from here, and the login node may go away."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcenc.cluster.liveness import is_gone
from hpcenc.cluster.recruiting import Recruiter
from hpcenc.cluster.run_folder import RunFolder, new_run_id
from hpcenc.cluster.submit import Prepared, run_settings
from hpcenc.slurm.commands import ON_LOGIN_S
from hpcenc.slurm.jobs import cancel_jobs, check_job, release_job, submit_job
from hpcenc.slurm.profiles import SlurmProfile, read_profile
from hpcenc.slurm.scripts import JobRequest, controller_name, render_script, sbatch_options
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import acquire, hand_over, job_of, release, this_process

DRAIN_S = 300
"""Before the end of its walltime a controller begins nothing more, and asks SLURM to start it again."""


@dataclass(frozen=True)
class Submitted:
    """A run that waits for its controller's job.

    Attributes
    ----------
    job_id : str
        Of the controller; empty if that is to run here.
    """

    run_id: str
    job_id: str
    folder: Path


def submit_batch(
    prepared: Prepared, command: Sequence[str] = (), extra: Sequence[str] = (), here: bool = False
) -> Submitted:
    """Write a run's folder, and submit the job of its controller.

    Parameters
    ----------
    prepared : Prepared
        Of a study with a site's profile.
    command : sequence of str
        What the user typed, for the run's record.
    extra : sequence of str
        More options of sbatch for the controller's job.
    here : bool
        The controller will be a process of this machine: no job is submitted, and the lock is that process's.

    Raises
    ------
    LockError
        If another run holds the store.
    SlurmError
        If SLURM would refuse the controller's job or a worker's; nothing is changed then.
    """
    study, store = prepared.study, prepared.study.store_path
    merged = read_profile(prepared.profile, overrides=study.cluster.slurm)
    profile = merged.checked()
    run_id = new_run_id()
    owner = this_process(run_id)
    acquire(lock_path(store), owner, is_gone)
    folder = None
    try:
        _check_jobs(profile, run_id, study.folder, extra, here)
        prepared.digests.save()
        settings = {
            **run_settings(prepared, prepared.profile, command),
            "site": merged.tables,
            "study_folder": str(study.folder),
            "models": prepared.models,
            "layers": prepared.layers,
            "n_workers": profile.workers("gpu").max_jobs,
            "n_threads": profile.workers("gpu").cores,
        }
        folder = RunFolder.create(store, run_id, prepared.plan, settings)
        (folder.path / "logs").mkdir()
        if here:
            return Submitted(run_id, "", folder.path)
        script = controller_script(profile, folder.path)
        (folder.path / "controller.sh").write_text(script)
        options = [*sbatch_options(controller_request(profile, run_id, folder.path)), *extra, "--hold"]
        job_id = submit_job(script, options, ON_LOGIN_S)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder.path)
        release(lock_path(store), owner)
        raise
    try:
        folder.log({"event": "submitted", "job": job_id})
        # The job begins when the lock is its own: else the two would write it at the same time.
        hand_over(lock_path(store), job_of(run_id, job_id))
        release_job(job_id, ON_LOGIN_S)
    except BaseException:
        cancel_jobs(ids=[job_id], patience_s=ON_LOGIN_S)
        raise
    return Submitted(run_id, job_id, folder.path)


def controller_request(profile: SlurmProfile, run_id: str, folder: Path) -> JobRequest:
    """What the controller's job asks for."""
    asked = profile.controller
    return JobRequest(
        name=controller_name(run_id),
        folder=folder,
        walltime_min=asked.walltime_min,
        cores=asked.cores,
        memory_mb=-(-asked.memory_bytes // 1024**2),
        requeue=True,
        signal_s=drain_seconds(profile),
        partition=asked.partition,
        account=asked.account or "",
        qos=asked.qos or "",
        extra=asked.directives,
    )


def drain_seconds(profile: SlurmProfile) -> int:
    """How long before its end a controller begins nothing more."""
    return min(DRAIN_S, 60 * profile.controller.walltime_min // 4)


def controller_script(profile: SlurmProfile, folder: Path) -> str:
    """Script of the controller's job."""
    return render_script(
        [sys.executable, "-m", "hpcenc.cli.app", "control", str(folder)],
        walltime_min=profile.controller.walltime_min,
        prologue=profile.prologue,
        scratch=profile.scratch,
        cache=profile.cache,
        umask=profile.umask,
    )


def _check_jobs(profile: SlurmProfile, run_id: str, folder: Path, extra: Sequence[str], here: bool) -> None:
    """Ask sbatch about every kind of job before anything is written."""
    requests = [Recruiter(profile, profile.workers(kind), run_id, folder).request for kind in ("cpu", "gpu")]
    asked = [sbatch_options(request) for request in dict.fromkeys(requests)]
    if not here:
        asked.insert(0, [*sbatch_options(controller_request(profile, run_id, folder)), *extra])
    for options in asked:
        check_job(render_script(["true"], walltime_min=1), options)

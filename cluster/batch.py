"""Submit to SLURM: a small controller job takes the run from here, and the login node may go away."""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcenc.cluster.chain import chain_jobs, share_out, submit_chain
from hpcenc.cluster.liveness import is_gone
from hpcenc.cluster.recruiting import Recruiter, controller_request, controller_script, keep_script
from hpcenc.cluster.run_folder import RunFolder, new_run_id
from hpcenc.cluster.submit import Prepared, run_settings
from hpcenc.slurm.commands import ON_LOGIN_S, SlurmError
from hpcenc.slurm.jobs import cancel_jobs, check_job, cluster_name, release_job, submit_job
from hpcenc.slurm.profiles import MergedProfile, SlurmProfile, read_profile
from hpcenc.slurm.scripts import checked_folder, controller_name, job_names, render_script, sbatch_options
from hpcenc.storage.errors import StudyError
from hpcenc.storage.files import created_with
from hpcenc.storage.layout import lock_path, runs_folder
from hpcenc.storage.lock import acquire, hand_over, job_of, refuse_held, release, this_process

Way = Literal["job", "here", "array"]


@dataclass(frozen=True)
class Submitted:
    """A run that waits for its first job.

    Attributes
    ----------
    job_id : str
        Of the controller, or of the last job of a chain of arrays; empty if the controller is to run here.
    digest : str
        Of what the folder says is to be run.
    """

    run_id: str
    job_id: str
    folder: Path
    digest: str = ""


def submit_batch(
    prepared: Prepared, command: Sequence[str] = (), extra: Sequence[str] = (), way: Way = "job"
) -> Submitted:
    """Write a run's folder, and submit the job of its controller, or the jobs that do without one.

    Parameters
    ----------
    prepared : Prepared
        Of a study with a site's profile.
    command : sequence of str
        What the user typed, for the run's record.
    extra : sequence of str
        More options of sbatch for the controller's job.
    way : {"job", "here", "array"}
        Where the controller will be: in a job; a process of this machine, which gets the lock, and no job is
        submitted; or nowhere, for a chain of job arrays takes its place.

    Raises
    ------
    LockError
        If another run holds the store.
    RequestError
        If no job could start in the folder of the results.
    SlurmError
        If SLURM would refuse the controller's job or a worker's; nothing is changed then.
    """
    study = prepared.study
    merged = read_profile(prepared.profile, overrides=study.cluster.slurm)
    profile = merged.checked()
    for folder in (runs_folder(study.store_path), study.folder):
        checked_folder(folder)
    refuse_held(lock_path(study.store_path), is_gone)
    run_id = new_run_id()
    _check_jobs(profile, run_id, study.folder, extra, way)
    with _shared(study.store_path.parent, profile):
        return _submit(prepared, merged, profile, run_id, command, extra, way)


def _submit(
    prepared: Prepared,
    merged: MergedProfile,
    profile: SlurmProfile,
    run_id: str,
    command: Sequence[str],
    extra: Sequence[str],
    way: Way,
) -> Submitted:
    study, store = prepared.study, prepared.study.store_path
    owner = this_process(run_id)
    acquire(lock_path(store), owner, is_gone)
    folder = None
    try:
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
        if way == "here":
            return Submitted(run_id, "", folder.path, folder.digest)
        if way == "array":
            first, last = submit_chain(prepared.plan, store, profile, run_id, folder, extra)
        else:
            script = controller_script(profile, folder)
            options = [*sbatch_options(controller_request(profile, run_id, folder.path)), *extra, "--hold"]
            first = last = submit_job(script, options, ON_LOGIN_S)
            keep_script(folder.path, controller_name(run_id), last, script, options)
    except BaseException as error:
        try:
            if folder is not None and way != "here":
                _cancel(run_id, error)  # sbatch's answer may be what was lost, or not waited for
        finally:
            if folder is not None:
                shutil.rmtree(folder.path)
            release(lock_path(store), owner)
        raise
    try:
        folder.log({"event": "submitted", "job": last})
        # The job begins when the lock is its own: else the two would write it at the same time.
        hand_over(lock_path(store), job_of(run_id, last, cluster_name()))
        release_job(first, ON_LOGIN_S)
    except BaseException as error:
        _cancel(run_id, error)
        raise
    return Submitted(run_id, last, folder.path, folder.digest)


def _cancel(run_id: str, error: BaseException) -> None:
    """Cancel all jobs of a run that an error ends; if SLURM does not, a note of the error says how."""
    names = job_names(run_id)
    try:
        for name in names:
            cancel_jobs(name=name, patience_s=ON_LOGIN_S)
    except SlurmError:
        commands = "; ".join(f"scancel --me --name={name}" for name in names)
        error.add_note(
            f"a job of it may have been submitted, and wait for ever; when SLURM is back: {commands}"
        )


@contextmanager
def _shared(results: Path, profile: SlurmProfile) -> Iterator[None]:
    """Make what the group of the profile may use; all that is made in the folder later inherits the group.

    Raises
    ------
    StudyError
        If there is no such group, or this user may not give it the folder.
    """
    with created_with(profile.umask):
        if profile.group is not None:
            made = [folder for folder in (results, *results.parents) if not folder.exists()]
            try:
                gid = grp.getgrnam(profile.group).gr_gid
                results.mkdir(parents=True, exist_ok=True)
                state = results.stat()
                if state.st_gid != gid or not state.st_mode & stat.S_ISGID:
                    os.chown(results, -1, gid)
                    results.chmod(stat.S_IMODE(state.st_mode) | stat.S_ISGID)
            except (KeyError, OSError) as error:
                for folder in made:
                    with suppress(OSError):
                        folder.rmdir()
                why = "there is no such group" if isinstance(error, KeyError) else str(error)
                raise StudyError(f"group {profile.group!r} of the profile: {why}") from error
        yield


def job_texts(prepared: Prepared, extra: Sequence[str] = (), way: Way = "job") -> Iterator[str]:
    """How sbatch would be called for every kind of job, and with which scripts; nothing is submitted."""
    store = prepared.study.store_path
    profile = read_profile(prepared.profile, overrides=prepared.study.cluster.slurm).checked()
    run_id = "00000000"
    folder = runs_folder(store) / f"...-{run_id}"
    run = RunFolder(folder, digest="DIGEST-OF-run.json")
    jobs: list[tuple[str, str, list[str]]] = []
    if way == "array":
        chain = chain_jobs(prepared.plan, share_out(prepared.plan, store, profile), profile, run_id, run)
        for place, job in enumerate(chain):
            before = [f"ID-OF-{other.part}" for other in chain[:place]]
            jobs.append((job.part, job.script, job.options(before, extra)))
    else:
        if way == "job":
            options = [*sbatch_options(controller_request(profile, run_id, folder)), *extra, "--hold"]
            jobs.append(("controller", controller_script(profile, run), options))
        kinds: tuple[Literal["cpu", "gpu"], ...] = ("cpu",) if profile.gpu is None else ("cpu", "gpu")
        for kind in kinds:
            recruiter = Recruiter(profile, profile.workers(kind), run_id, folder)
            script = recruiter.script("tls://CONTROLLER", "WORKER")
            jobs.append((f"{kind} worker", script, sbatch_options(recruiter.request)))
    for name, script, options in jobs:
        yield f"# {name}\n{shlex.join(['sbatch', *options])} <<'SCRIPT'\n{script}SCRIPT\n"


def _check_jobs(profile: SlurmProfile, run_id: str, folder: Path, extra: Sequence[str], way: Way) -> None:
    """Ask sbatch about every kind of job before anything is written."""
    requests = [Recruiter(profile, profile.workers(kind), run_id, folder).request for kind in ("cpu", "gpu")]
    asked = [sbatch_options(request) for request in dict.fromkeys(requests)]
    if way != "here":
        asked.insert(0, [*sbatch_options(controller_request(profile, run_id, folder)), *extra])
    for options in asked:
        check_job(render_script(["true"], walltime_min=1), options)

"""A run without Dask: a chain of job arrays, one for each stage, whose members each have a fixed share of it.

For sites whose nodes cannot reach each other. A first job makes the store's groups, a last one writes the
report and gives the store's lock back; SLURM's dependencies take the place of a controller.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpcenc.cluster.recruiting import Recruiter, control_command, controller_request, controller_script
from hpcenc.slurm.commands import ON_LOGIN_S
from hpcenc.slurm.jobs import cancel_jobs, submit_job
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.slurm.scripts import job_names, sbatch_options
from hpcenc.storage.files import write_atomically
from hpcenc.tasks.plan import Plan

BEGIN, END = "begin", "end"
"""The parts of a run before and after its stages."""

SHARES, ARRAYS = "shares.json", "arrays.json"
"""In the run folder: the tasks of every member, and the ids of the arrays, by stage."""

Shares = dict[str, list[list[str]]]
"""Keys of the tasks of every member, by stage."""


def share_out(plan: Plan, store: Path, profile: SlurmProfile) -> Shares:
    """Deal the tasks that are left of every stage to as many members as the profile allows jobs."""
    shares: Shares = {}
    for stage in plan.pending(store):
        keys = [task.key for task in stage.tasks]
        n_members = min(profile.workers(stage.worker).max_jobs, len(keys))
        if n_members:
            shares[stage.name] = [keys[member::n_members] for member in range(n_members)]
    return shares


def submit_chain(
    plan: Plan, store: Path, profile: SlurmProfile, run_id: str, folder: Path, extra: Sequence[str]
) -> tuple[str, str]:
    """Submit all jobs of a run, the first on hold.

    Parameters
    ----------
    extra : sequence of str
        More options of sbatch for the first and the last job.

    Returns
    -------
    tuple of str
        Ids of the first and the last job; the last waits or runs as long as any of them does.

    Raises
    ------
    SlurmError
        If SLURM refuses one; those before it are cancelled.
    """
    shares = share_out(plan, store, profile)
    write_atomically(folder / SHARES, json.dumps(shares).encode())
    alone = replace(controller_request(profile, run_id, folder), signal_s=None)
    begin, end = (controller_script(profile, folder, "--part", part) for part in (BEGIN, END))
    try:
        ids = [submit_job(begin, [*sbatch_options(alone), *extra, "--hold"], ON_LOGIN_S)]
        arrays: dict[str, str] = {}
        for stage in plan.stages:
            if stage.name in shares:
                recruiter = Recruiter(profile, profile.workers(stage.worker), run_id, folder)
                request = replace(
                    recruiter.request,
                    requeue=True,  # no controller would replace a job that lost its node
                    n_members=len(shares[stage.name]),
                    after=f"afterok:{ids[-1]}",
                )
                script = recruiter.script_of(control_command(folder, "--part", stage.name))
                ids.append(submit_job(script, sbatch_options(request), ON_LOGIN_S))
                arrays[stage.name] = ids[-1]
        write_atomically(folder / ARRAYS, json.dumps(arrays).encode())
        last = replace(alone, after=f"afterany:{':'.join(ids)}")
        return ids[0], submit_job(end, [*sbatch_options(last), *extra], ON_LOGIN_S)
    except BaseException:
        for name in job_names(run_id):
            cancel_jobs(name=name, patience_s=ON_LOGIN_S)
        raise

"""A run without Dask: a chain of job arrays, one for each stage, whose members each have a fixed share of it.

For sites whose nodes cannot reach each other. A first job makes the store's groups, a last one writes the
report and gives the store's lock back; SLURM's dependencies take the place of a controller.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcenc.cluster.recruiting import (
    Recruiter,
    control_command,
    controller_request,
    controller_script,
    keep_script,
)
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.slurm.commands import ON_LOGIN_S
from hpcenc.slurm.jobs import submit_job
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.slurm.scripts import JobRequest, sbatch_options
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


@dataclass(frozen=True)
class ChainJob:
    """One job of a chain, or one array.

    Attributes
    ----------
    part : str
        ``begin``, ``end`` or a stage.
    request : JobRequest
        What it asks for, but for what it waits for.
    """

    part: str
    script: str
    request: JobRequest

    def options(self, before: Sequence[str], extra: Sequence[str]) -> list[str]:
        """Arguments of sbatch.

        Parameters
        ----------
        before : sequence of str
            Ids of the jobs before it. The first job has none, and waits on hold.
        extra : sequence of str
            More options for the first and the last job.
        """
        after = (
            f"afterany:{':'.join(before)}" if self.part == END else f"afterok:{before[-1]}" if before else ""
        )
        further = extra if self.part in (BEGIN, END) else ()
        return [
            *sbatch_options(replace(self.request, after=after)),
            *further,
            *([] if before else ["--hold"]),
        ]


def chain_jobs(
    plan: Plan, shares: Shares, profile: SlurmProfile, run_id: str, folder: RunFolder
) -> list[ChainJob]:
    """All jobs of a run, in the order in which they run."""
    alone = replace(controller_request(profile, run_id, folder.path), signal_s=None)
    begin, end = (
        ChainJob(part, controller_script(profile, folder, "--part", part), alone) for part in (BEGIN, END)
    )
    arrays = []
    for stage in plan.stages:
        if stage.name in shares:
            recruiter = Recruiter(profile, profile.workers(stage.worker), run_id, folder.path)
            # SLURM starts a member again: no controller would replace one that lost its node.
            request = replace(recruiter.request, requeue=True, n_members=len(shares[stage.name]))
            script = recruiter.script_of(control_command(folder, "--part", stage.name))
            arrays.append(ChainJob(stage.name, script, request))
    return [begin, *arrays, end]


def submit_chain(
    plan: Plan, store: Path, profile: SlurmProfile, run_id: str, folder: RunFolder, extra: Sequence[str]
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
        If SLURM refuses one; those before it are the caller's to cancel.
    """
    shares = share_out(plan, store, profile)
    jobs = chain_jobs(plan, shares, profile, run_id, folder)
    ids: list[str] = []
    for job in jobs:
        options = job.options(ids, extra)
        ids.append(submit_job(job.script, options, ON_LOGIN_S))
        keep_script(folder.path, job.request.name, ids[-1], job.script, options)
    arrays = {job.part: job_id for job, job_id in zip(jobs, ids, strict=True) if job.part in shares}
    write_atomically(folder.path / SHARES, json.dumps(shares).encode())
    write_atomically(folder.path / ARRAYS, json.dumps(arrays).encode())
    return ids[0], ids[-1]

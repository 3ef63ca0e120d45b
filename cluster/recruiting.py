"""The jobs of a run, its controller's and its workers': what they ask for and run. Imports no Dask."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcenc.cluster.pools import KEEP_FREED_MEMORY
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.threads import THREAD_VARIABLES
from hpcenc.slurm.jobs import submit_job
from hpcenc.slurm.profiles import GpuWorkers, SlurmProfile, Workers
from hpcenc.slurm.scripts import JobRequest, controller_name, render_script, sbatch_options, worker_name

MARGIN_S = 30.0
"""Before the end of its job a worker is given nothing that could last into this."""

DEATH_TIMEOUT_S = 120
"""How long a worker looks for its controller before its job ends."""

DRAIN_S = 300
"""Before the end of its walltime a controller begins nothing more, and asks SLURM to start it again."""


KIND_VARIABLE = "HPCENC_WORKER"
"""Set in the jobs of workers: whether they have a GPU, ``gpu``, or not, ``cpu``."""


@dataclass
class Recruiter:
    """Submits jobs, each of one worker.

    Attributes
    ----------
    workers : Workers
        What they ask for.
    run_folder : Path
    slots : int
        Tasks at a time.
    excluded : set of str
        Nodes on which workers could not work.
    """

    profile: SlurmProfile
    workers: Workers
    run_id: str
    run_folder: Path
    slots: int = 1
    excluded: set[str] = field(default_factory=set)

    @property
    def request(self) -> JobRequest:
        """What the next job asks for."""
        asked = self.workers
        exclude = ",".join([*([asked.exclude] if asked.exclude else []), *sorted(self.excluded)])
        return JobRequest(
            name=worker_name(self.run_id),
            folder=self.run_folder,
            walltime_min=asked.walltime_min,
            cores=asked.cores,
            memory_mb=-(-asked.memory_bytes // 1024**2),
            partition=asked.partition,
            account=asked.account or "",
            qos=asked.qos or "",
            constraint=asked.constraint or "",
            exclude=exclude,
            gpu_request=getattr(asked, "gpu_request", ""),
            extra=asked.directives,
        )

    def script(self, scheduler: str, name: str) -> str:
        """Script of a job whose worker joins a scheduler."""
        private, network = self.run_folder / "private", self.profile.network
        command = [
            *(sys.executable, "-m", "distributed.cli.dask_worker", scheduler),
            *("--name", name, "--nthreads", str(self.slots), "--no-nanny", "--no-dashboard"),
            *("--memory-limit", "0", "--death-timeout", str(DEATH_TIMEOUT_S)),
            *("--tls-ca-file", str(private / "cert.pem"), "--tls-cert", str(private / "cert.pem")),
            *("--tls-key", str(private / "key.pem")),
            *(("--interface", network.interface) if network.interface else ()),
        ]
        if network.ports is not None:
            command += ["--worker-port", f"{network.ports[0]}:{network.ports[1]}"]
        return self.script_of(command)

    def script_of(self, command: Sequence[str]) -> str:
        """Script of a job that runs a command with what a worker needs."""
        return render_script(
            command,
            walltime_min=self.workers.walltime_min,
            prologue=self.profile.prologue,
            variables={
                **dict.fromkeys(THREAD_VARIABLES, str(self.workers.cores)),
                **KEEP_FREED_MEMORY,
                KIND_VARIABLE: "gpu" if isinstance(self.workers, GpuWorkers) else "cpu",
                "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
            },
            scratch=self.profile.scratch,
            cache=self.profile.cache,
            umask=self.profile.umask,
        )

    def submit(self, scheduler: str, name: str) -> str:
        """Submit a job and give its id; does not wait for a SLURM that is away."""
        script, options = self.script(scheduler, name), sbatch_options(self.request)
        job_id = submit_job(script, options, patience_s=0)
        with contextlib.suppress(OSError):  # on a full disk the job is there all the same
            keep_script(self.run_folder, worker_name(self.run_id), job_id, script, options)
        return job_id


def keep_script(run_folder: Path, name: str, job_id: str, script: str, options: Sequence[str]) -> None:
    """Write what a job runs into the run folder, and how sbatch was called; named as its log is."""
    first, _, rest = script.partition("\n")
    path = run_folder / "scripts" / f"{name}-{job_id}.sh"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{first}\n# {shlex.join(['sbatch', *options])}\n{rest}")


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


def control_command(folder: RunFolder, *options: str) -> list[str]:
    """What a job calls that takes a run, or a part of one, from its folder.

    SLURM keeps it from the submit on, also for a job that it starts again: what ``run.json`` must be then is
    safe from who may write the folder.
    """
    command = [sys.executable, "-m", "hpcenc.cli.app", "control", str(folder.path)]
    return [*command, "--digest", folder.digest, *options]


def drain_seconds(profile: SlurmProfile) -> int:
    """How long before its end a controller begins nothing more."""
    return min(DRAIN_S, 60 * profile.controller.walltime_min // 4)


def controller_script(profile: SlurmProfile, folder: RunFolder, *options: str) -> str:
    """Script of the controller's job."""
    return render_script(
        control_command(folder, *options),
        walltime_min=profile.controller.walltime_min,
        prologue=profile.prologue,
        scratch=profile.scratch,
        cache=profile.cache,
        umask=profile.umask,
    )

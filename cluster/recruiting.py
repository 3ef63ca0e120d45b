"""The jobs that workers come in: what they ask for, and what they run. Imports no Dask."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hpcenc.cluster.pools import KEEP_FREED_MEMORY
from hpcenc.cluster.threads import THREAD_VARIABLES
from hpcenc.slurm.jobs import submit_job
from hpcenc.slurm.profiles import SlurmProfile, Workers
from hpcenc.slurm.scripts import JobRequest, render_script, sbatch_options, worker_name

MARGIN_S = 30.0
"""Before the end of its job a worker is given nothing that could last into this."""

DEATH_TIMEOUT_S = 120
"""How long a worker looks for its controller before its job ends."""


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
        return render_script(
            command,
            walltime_min=self.workers.walltime_min,
            prologue=self.profile.prologue,
            variables={
                **dict.fromkeys(THREAD_VARIABLES, str(self.workers.cores)),
                **KEEP_FREED_MEMORY,
                "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
            },
            scratch=self.profile.scratch,
            cache=self.profile.cache,
            umask=self.profile.umask,
        )

    def submit(self, scheduler: str, name: str) -> str:
        """Submit a job and give its id; does not wait for a SLURM that is away."""
        return submit_job(self.script(scheduler, name), sbatch_options(self.request), patience_s=0)

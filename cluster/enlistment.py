"""What a worker says of itself before it gets its first task, and whether it may have one."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hpcenc.cluster.recruiting import KIND_VARIABLE
from hpcenc.slurm.jobs import this_job
from hpcenc.tasks.backends import ON_DEVICES, BackendError, describe_backend

FOLDERS = ("cli", "cluster", "slurm", "storage", "tasks")


@dataclass(frozen=True)
class Enlistment:
    """A worker as it sees itself.

    Attributes
    ----------
    kind : str
        ``gpu`` if its job was asked for a GPU, else ``cpu``.
    gpu : str
        What SLURM gave it, as CUDA numbers it on its node; empty if nothing.
    end_s : float or None
        When its job ends, in seconds since the epoch.
    refusal : str
        Why it can have no task; empty if it can.
    backend : dict
        Device, versions and driver of a backend on a GPU; empty on a CPU.
    """

    node: str
    kind: str
    gpu: str
    end_s: float | None
    refusal: str
    backend: dict[str, str] = field(default_factory=dict)


def enlist(code: str, backend: str) -> Enlistment:
    """Look at this worker.

    Parameters
    ----------
    code : str
        Digest of the controller's code: another one would write other results.
    backend : str
        Of the fits. If it needs a device, this worker must have one that works.
    """
    job = this_job()
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    refusal, described = "", {}
    if code_digest() != code:
        refusal = (
            f"{node}: hpcenc's code differs from the controller's; install the same version on all nodes"
        )
    elif backend in ON_DEVICES:
        try:
            described = describe_backend(backend)
        except BackendError as error:
            refusal = f"{node}: {error}"
    return Enlistment(
        node=node,
        kind=worker_kind(),
        gpu=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        end_s=job.end_s if job else None,
        refusal=refusal,
        backend=described,
    )


def worker_kind() -> str:
    """Of the worker that this process is, as its job's script says."""
    return os.environ[KIND_VARIABLE]


@cache
def code_digest() -> str:
    """Of all of hpcenc's code, as it lies on this machine."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]

"""What SLURM says about a site, and the first profile that can be made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hpcenc.slurm.values import memory_text, parse_walltime, walltime_text

Ask = Callable[[Sequence[str]], str]
"""Runs a command of SLURM, and gives what it says."""

MARK = "# FIX: "
"""Begins a comment that says what SLURM cannot tell, at the place where it belongs."""

_ACCOUNT = "expected yours; sacctmgr show associations user=$USER lists them"

_CONTROLLER_MIN, _WORKER_MIN = 7 * 24 * 60, 4 * 60
_CPU_CORES, _GPU_CORES = 4, 8
_CPU_BYTES, _GPU_BYTES = 16 * 1024**3, 32 * 1024**3


@dataclass(frozen=True)
class Nodes:
    """Nodes of one partition that are alike.

    Attributes
    ----------
    gpus : dict
        GPUs of each node by their type, which is empty where SLURM names none.
    """

    n_nodes: int
    n_cores: int
    memory_bytes: int
    gpus: dict[str, int]


@dataclass(frozen=True)
class Partition:
    """A partition that this user may see.

    Attributes
    ----------
    walltime_min : int or None
        Its limit; None where there is none.
    preempts : bool
        Whether its jobs may be stopped for others.
    """

    name: str
    is_default: bool
    is_up: bool
    walltime_min: int | None
    preempts: bool
    nodes: tuple[Nodes, ...]

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """Types of its GPUs; one empty text where SLURM names no type."""
        return tuple(sorted({kind for nodes in self.nodes for kind in nodes.gpus}))


@dataclass(frozen=True)
class Site:
    """A cluster.

    Attributes
    ----------
    wants_account : bool
        Whether SLURM refuses jobs of an account that it does not know.
    scratch : str
        Folder for temporary files on each node.
    """

    cluster: str
    wants_account: bool
    scratch: str
    partitions: tuple[Partition, ...]


@dataclass(frozen=True)
class ProfileDraft:
    """Text of a profile, not yet complete where something cannot be known."""

    text: str

    @property
    def missing(self) -> tuple[str, ...]:
        """What could not be known; a draft without any is a valid profile."""
        lines = (line.strip() for line in self.text.splitlines())
        return tuple(line.removeprefix(MARK) for line in lines if line.startswith(MARK))


def read_site(ask: Ask) -> Site:
    """Ask sinfo and scontrol about the cluster of this machine.

    Parameters
    ----------
    ask : callable
        `run_command` of the folder's one door, or what stands for it.
    """
    said = ask(["sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%M|%D|%c|%m|%G"])
    rows = [line.strip().split("|", 7) for line in said.splitlines() if line.count("|") >= 7]
    config = dict(re.findall(r"^(\w+) += (.*?)\s*$", ask(["scontrol", "show", "config"]), re.MULTILINE))
    by_name: dict[str, list[list[str]]] = {}
    for row in rows:
        by_name.setdefault(row[0], []).append(row)
    never = config.get("PreemptType") == "preempt/none"
    return Site(
        cluster=config.get("ClusterName", ""),
        wants_account=config.get("AccountingStorageEnforce", "none") != "none",
        scratch=config.get("TmpFS", "/tmp"),
        partitions=tuple(_partition(name, found, never) for name, found in by_name.items()),
    )


def _partition(name: str, rows: Sequence[Sequence[str]], never_preempts: bool) -> Partition:
    """A partition from its lines of sinfo, one for each kind of node."""
    _, state, limit, preempt_mode, *_ = rows[0]
    try:
        walltime_min = parse_walltime(limit)
    except ValueError:  # "infinite"
        walltime_min = None
    return Partition(
        name=name.rstrip("*"),
        is_default=name.endswith("*"),
        is_up=state == "up",
        walltime_min=walltime_min,
        preempts=not never_preempts and preempt_mode != "OFF",
        nodes=tuple(
            Nodes(int(n_nodes), _number(cores), _number(megabytes) * 1024**2, parse_gpus(gres))
            for *_, n_nodes, cores, megabytes, gres in rows
            if int(n_nodes)
        ),
    )


def _number(text: str) -> int:
    """A number of sinfo, which adds a plus where nodes differ."""
    return int(text.rstrip("+"))


def parse_gpus(gres: str) -> dict[str, int]:
    """GPUs by type in a list such as ``gpu:a100:4(S:0-1),nvme:1``."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = item.split(":")
        if name == "gpu":
            count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
            kind = ":".join(rest)
            found[kind] = found.get(kind, 0) + count
    return found


def draft_profile(site: Site) -> ProfileDraft:
    """A profile with comments, for the user to read and to change.

    A partition is chosen where the choice is clear: the only one that fits, or the site's default. All
    else that SLURM asks for and does not tell is marked; the file is refused until it is filled in.

    Parameters
    ----------
    site : Site
    """
    up = [partition for partition in site.partitions if partition.is_up]
    gpu = [partition for partition in up if partition.gpu_types]
    cpu = [partition for partition in up if not partition.gpu_types] or up
    steady = [partition for partition in cpu if not partition.preempts]
    account = [f"{MARK}account: {_ACCOUNT}", 'account = ""'] if site.wants_account else []
    lines = [
        f"# Profile of the cluster {site.cluster}, drafted from what SLURM says. Read it, and change what is",
        "# not to your liking; docs/slurm.md explains every key. Partitions, the default with a star:",
        *(f"#   {_description(partition)}" for partition in site.partitions),
        "",
        f"scratch = {json.dumps(site.scratch)}  # of a node; or $TMPDIR, where each job has its own folder",
        "prologue = []  # what makes hpcenc runnable in a job, such as",
        '# prologue = ["module load python/3.11", "source $HOME/venvs/hpcenc/bin/activate"]',
        "",
        "[controller]  # one small job that lives as long as the run",
        *_place(steady, "that is never preempted"),
        *account,
        f"walltime = {json.dumps(_walltime(steady, _CONTROLLER_MIN))}",
        "",
        "[cpu]  # workers that decode movies and make operators",
        *_place(cpu, "for work without GPUs"),
        *account,
        f"walltime = {json.dumps(_walltime(cpu, _WORKER_MIN))}",
        *_cpu_share(cpu),
        "max_jobs = 8",
        "",
    ]
    if gpu:
        lines += [
            "[gpu]  # workers that extract features and fit, one GPU each",
            *_place(gpu, "with GPUs"),
            *account,
            f"walltime = {json.dumps(_walltime(gpu, _WORKER_MIN))}",
            *_gpu_share(gpu),
            "max_jobs = 8",
        ]
    else:
        lines.append("# No partition that is up has GPUs: all work is done by the workers of [cpu].")
    return ProfileDraft("\n".join(lines).rstrip() + "\n")


def _description(partition: Partition) -> str:
    """A line on a partition."""
    limit = walltime_text(partition.walltime_min) if partition.walltime_min else "no limit"
    parts = [f"{partition.name}{'*' if partition.is_default else ''}: {limit}"]
    if not partition.is_up:
        parts.append("not up")
    if partition.preempts:
        parts.append("may be preempted")
    for nodes in partition.nodes:
        gpus = [f"{count} GPU{'s' * (count > 1)} {kind}".rstrip() for kind, count in nodes.gpus.items()]
        each = [f"{nodes.n_cores} cores", memory_text(nodes.memory_bytes), *gpus]
        parts.append(f"{nodes.n_nodes} node{'s' * (nodes.n_nodes > 1)} of {' + '.join(each)}")
    return ", ".join(parts)


def _chosen(candidates: Sequence[Partition]) -> Sequence[Partition]:
    """The one partition that is clearly meant, or all that might be."""
    default = [partition for partition in candidates if partition.is_default]
    return default or candidates


def _place(candidates: Sequence[Partition], which: str) -> Iterator[str]:
    """The line of the partition, or a mark."""
    match [partition.name for partition in _chosen(candidates)]:
        case [name]:
            yield f"partition = {json.dumps(name)}"
        case []:
            yield f"{MARK}partition: expected one {which}; none that is up was found"
        case names:
            yield f"{MARK}partition: expected one {which}; choose from: {', '.join(names)}"


def _walltime(candidates: Sequence[Partition], wanted_min: int) -> str:
    """The walltime that is wanted, as far as every candidate allows it."""
    limits = [found.walltime_min for found in _chosen(candidates) if found.walltime_min is not None]
    return walltime_text(min([wanted_min, *limits]))


def _cpu_share(candidates: Sequence[Partition]) -> Iterator[str]:
    """Cores and memory of a CPU worker: no more of a node's memory than of its cores."""
    cores, n_bytes = _CPU_CORES, _CPU_BYTES
    for partition in _chosen(candidates):
        for nodes in partition.nodes:
            cores = min(cores, nodes.n_cores)
            n_bytes = min(n_bytes, nodes.memory_bytes * cores // nodes.n_cores)
    yield from _size(cores, n_bytes)


def _gpu_share(candidates: Sequence[Partition]) -> Iterator[str]:
    """How one GPU is asked for, and its share of the smallest node's cores and memory."""
    cores, n_bytes = _GPU_CORES, _GPU_BYTES
    kinds: dict[str, None] = {}
    for partition in _chosen(candidates):
        kinds |= dict.fromkeys(kind for kind in partition.gpu_types if kind)
        for nodes in partition.nodes:
            if n_gpus := sum(nodes.gpus.values()):
                cores = min(cores, max(1, nodes.n_cores // n_gpus))
                n_bytes = min(n_bytes, nodes.memory_bytes // n_gpus)
    yield 'gpu_request = "--gres=gpu:1"' + (
        f"  # any GPU; of one type: {', '.join(f'--gres=gpu:{kind}:1' for kind in kinds)}" if kinds else ""
    )
    yield from _size(cores, n_bytes)


def _size(cores: int, n_bytes: int) -> Iterator[str]:
    yield f"cores = {cores}"
    yield f"memory = {json.dumps(memory_text(n_bytes))}"

"""A real SLURM on one machine: munge, slurmctld and several slurmd with fake GPUs, as ordinary processes.

    python tests/slurm/sandbox.py start --dir /tmp/sandbox
    export SLURM_CONF=/tmp/sandbox/slurm.conf
    python tests/slurm/sandbox.py stop --dir /tmp/sandbox

It needs no root and changes nothing outside its folder. Debian's packages: slurmctld slurmd slurm-client
munge slurm-wlm-basic-plugins. Nothing is confined: a job may use all of the machine, whatever it asked for.
"""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
PACKAGES = "slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
FAKE_GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
"""Character devices that every machine has: SLURM takes nothing else for a GPU."""

CONFIGURATION = """\
ClusterName=sandbox
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={dir}/munge/socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd-%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/filetxt
JobCompLoc={dir}/log/jobcomp.txt
MpiDefault=none
PlugStackConfig=/dev/null
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerParameters=sched_min_interval=0,bf_interval=2,bf_continue,batch_sched_delay=0
KillWait=5
MinJobAge=3600
SlurmdTimeout=15
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
"""

PARTITIONS = """\
PartitionName=cpu Nodes=ALL PriorityTier=5 DefMemPerCPU=500 PreemptMode=OFF
PartitionName=gpu Nodes=ALL PriorityTier=1 DefMemPerCPU=500 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL PriorityTier=10 DefMemPerCPU=500 PreemptMode=OFF
"""


class SandboxError(RuntimeError):
    """The sandbox cannot start, or one of its commands failed."""


@dataclass(frozen=True)
class JobLine:
    """One line of squeue."""

    job_id: str
    name: str
    state: str
    node: str


class Sandbox:
    """A cluster in a folder.

    Parameters
    ----------
    folder : Path
        A short path: that of a unix socket in it may have 107 characters at most.
    n_nodes, n_gpus : int
        Nodes ``n1``, ``n2``, ... of eight CPUs and 16 GB, and GPUs of each, whatever the machine has.
    port : int
        The first of ``n_nodes + 1`` free ones.
    """

    def __init__(self, folder: Path, n_nodes: int = 3, n_gpus: int = 2, port: int = 26817) -> None:
        self.folder, self.n_nodes, self.n_gpus, self.port = folder.resolve(), n_nodes, n_gpus, port
        self.conf = self.folder / "slurm.conf"

    def start(self) -> None:
        """Start all daemons, and wait until every node is idle.

        Raises
        ------
        SandboxError
            If a program is missing, the folder has a living cluster, or a daemon does not come up.
        """
        if missing := [name for name in PROGRAMS if which(name) is None]:
            raise SandboxError(f"missing: {', '.join(missing)}. Debian's packages: {PACKAGES}")
        if alive := [name for name, _ in self._daemons()]:
            raise SandboxError(f"{self.folder}: {', '.join(alive)} still run; stop them first")
        for name in ("munge", "state", "spool", "run", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        self._start_munge()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        wait_for(self._all_idle, 30, "every node to be idle")

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        return [f"n{place + 1}" for place in range(self.n_nodes)]

    def stop(self) -> None:
        """Cancel all jobs, wait for their ends, and end every daemon by its pid file."""
        names = [name for name, _ in self._daemons()]
        if "slurmctld" in names:
            self.run("scancel", "--user", getpass.getuser(), check=False)
            try:
                wait_for(lambda: not self.jobs(ended=False), 20, "the jobs' ends")
            except TimeoutError as error:
                print(error, file=sys.stderr)
        for name, pid in self._daemons():
            _end(pid, name)

    def environment(self) -> dict[str, str]:
        """Environment of a process that uses this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def run(self, *command: str, check: bool = True, **options: Any) -> str:
        """What one of SLURM's commands says."""
        options = {"env": self.environment(), "capture_output": True, "text": True, "timeout": 60, **options}
        done = subprocess.run(command, check=False, **options)
        if check and done.returncode:
            raise SandboxError(f"{' '.join(command)}: {done.stderr.strip()}")
        return str(done.stdout)

    def jobs(self, ended: bool = True) -> list[JobLine]:
        """All jobs that the controller remembers, or those that wait or run."""
        states = ("--states", "all") if ended else ()
        text = self.run("squeue", "--noheader", "--format=%i|%j|%T|%N", *states)
        return [JobLine(*line.split("|")) for line in text.splitlines()]

    def state(self, job_id: str) -> str:
        """State of a job, in full letters."""
        return next((job.state for job in self.jobs() if job.job_id == job_id), "")

    def node_state(self, node: str, state: str) -> None:
        """Drain, down or resume a node."""
        self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    def hurry(self, job_id: str) -> None:
        """Let a requeued job start soon: SLURM waits two minutes, and stumbles over less than a second."""
        self.run("scontrol", "update", f"jobid={job_id}", "starttime=now+2")

    def stop_controller(self) -> None:
        """The cluster's head goes away; jobs run on."""
        for name, pid in self._daemons():
            if name == "slurmctld":
                _end(pid, name)

    def start_controller(self) -> None:
        """The head, for the first time or again."""
        self._daemon("slurmctld")
        wait_for(lambda: "UP" in self.run("scontrol", "ping", check=False), 20, "slurmctld")

    def start_node(self, node: str) -> None:
        """The daemon of one node."""
        self._daemon("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """The daemon of a node dies; its jobs' processes live on."""
        for name, pid in self._daemons():
            if name == f"slurmd-{node}":
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> set[int]:
        """Processes of the daemons."""
        return {pid for _, pid in self._daemons()}

    def keep_logs(self, folder: Path) -> None:
        """Copy the daemons' logs, and what squeue and scontrol say."""
        shutil.copytree(self.folder / "log", folder / "log", dirs_exist_ok=True)
        for name, *arguments in (("squeue", "--states", "all"), ("scontrol", "show", "job"), ("sinfo", "-N")):
            (folder / f"{name}.txt").write_text(self.run(name, *arguments, check=False))

    def _configure(self) -> None:
        host, user = socket.gethostname().partition(".")[0], getpass.getuser()
        lines = [CONFIGURATION.format(dir=self.folder, host=host, port=self.port, user=user)]
        devices = []
        for place, node in enumerate(self.nodes):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port + 1 + place} "
                f"CPUs=8 RealMemory=16000 Gres=gpu:{self.n_gpus}\n"
            )
            devices += [f"NodeName={node} Name=gpu File={FAKE_GPUS[gpu]}\n" for gpu in range(self.n_gpus)]
        self.conf.write_text("".join([*lines, PARTITIONS]))
        (self.folder / "gres.conf").write_text("".join(devices))

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.chmod(0o711)
        key = folder / "key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": "key", "socket": "socket", "seed-file": "seed", "log-file": "log"}
        self._start(
            "munged",
            "--force",  # a folder that others may enter is no danger to a key of mode 600
            *(f"--{option}={folder / name}" for option, name in files.items()),
            f"--pid-file={self.folder / 'run' / 'munged.pid'}",
        )
        wait_for(lambda: (folder / "socket").exists(), 10, "munged")

    def _daemon(self, *command: str) -> None:
        self._start(*command)

    def _start(self, *command: str) -> None:
        program = which(command[0])
        assert program is not None
        done = subprocess.run(
            [program, *command[1:]],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            start_new_session=True,
            check=False,
        )
        if done.returncode:
            raise SandboxError(f"{' '.join(command)}: {done.stderr.strip()}")

    def _all_idle(self) -> bool:
        text = self.run("sinfo", "-N", "--noheader", "--format=%N %T", check=False)
        return {line.split()[0] for line in text.splitlines() if line.endswith(" idle")} == set(self.nodes)

    def _daemons(self) -> Iterator[tuple[str, int]]:
        """Name and pid of every daemon of this folder that lives."""
        for path in sorted((self.folder / "run").glob("*.pid"), reverse=True):  # slurmd before its head
            name = path.stem
            text = path.read_text().strip()
            if text.isdecimal() and _is_program(int(text), name.partition("-")[0]):
                yield name, int(text)


@contextmanager
def sandbox(folder: Path, **settings: int) -> Iterator[Sandbox]:
    """A cluster that lives as long as the context."""
    cluster = Sandbox(folder, **settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def free_port(n_ports: int) -> int:
    """First of some free ports in a row, on the loopback."""
    for first in range(20_000 + os.getpid() % 5_000, 32_000, n_ports):
        try:
            for port in range(first, first + n_ports):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise SandboxError(f"no {n_ports} free ports in a row")


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of a condition, looked at ten times a second.

    Raises
    ------
    TimeoutError
        If it takes longer.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
    return value


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _is_program(pid: int, program: str) -> bool:
    """Whether a process lives and is that program; a zombie that nobody waits for is dead."""
    try:
        name, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[::2]
    except OSError:
        return False
    return name.partition("(")[2].startswith(program[:15]) and fields.split()[0] not in "ZX"


def _end(pid: int, name: str) -> None:
    program = name.partition("-")[0]
    os.kill(pid, signal.SIGTERM)
    try:
        wait_for(lambda: not _is_program(pid, program), 15, f"the end of {name}")
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not _is_program(pid, program), 15, f"the end of {name}")


def processes_of(job: str, program: str) -> list[int]:
    """Processes of a job that run a program; all nodes are this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            settings, command = (path / "environ").read_bytes(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"SLURM_JOB_ID={job}\0".encode() in settings and program.encode() in command:
            found.append(int(path.name))
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--dir", type=Path, required=True, help="Folder of the cluster; a short path.")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument(
        "--gpus", type=int, default=2, help=f"Fake ones of each node, {len(FAKE_GPUS)} at most."
    )
    parser.add_argument("--port", type=int, default=26817, help="First of nodes + 1 free ones.")
    given = parser.parse_args()
    cluster = Sandbox(given.dir, given.nodes, given.gpus, given.port)
    try:
        if given.action == "stop":
            cluster.stop()
        else:
            cluster.start()
            print(f"export SLURM_CONF={cluster.conf}")
    except (SandboxError, TimeoutError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

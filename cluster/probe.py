"""What a job of a site says of its node: seen from within, for `hpcenc profile test`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hpcenc.cluster.enlistment import code_digest
from hpcenc.cluster.ports import free_port
from hpcenc.cluster.recruiting import Recruiter
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import check_job
from hpcenc.slurm.profiles import MergedProfile, SlurmProfile
from hpcenc.slurm.scripts import render_script, sbatch_options
from hpcenc.storage.files import write_atomically
from hpcenc.tasks.backends import ON_DEVICES, BackendError, describe_backend
from hpcenc.tasks.records import one_line

Role = Literal["controller", "cpu", "gpu"]

ADDRESS = "address.json"
"""Where the controller's job listens; made by renaming, as all of hpcenc's files are."""

SEEN_S = 60.0
"""How long a file of another node may take to be seen."""

CONNECT_S = 10.0
"""How long a connection may take."""


@dataclass(frozen=True)
class Finding:
    """What one check of a job found.

    Attributes
    ----------
    passed : bool or None
        None if it says nothing here.
    said : str
        One line, with the way out if it did not pass.
    """

    name: str
    passed: bool | None
    said: str


def read_findings(folder: Path, role: Role) -> list[Finding] | None:
    """What a job found; None as long as it has not said so."""
    os.listdir(folder)  # network file systems look again then
    try:
        return [Finding(**found) for found in json.loads((folder / f"{role}.json").read_text())]
    except FileNotFoundError:
        return None


def probe(folder: Path, role: Role) -> None:
    """Check a job from within, and leave what was found in the folder.

    Parameters
    ----------
    folder : Path
        Of the test; ``test.json`` there says what is expected.
    role : {"controller", "cpu", "gpu"}
    """
    asked = json.loads((folder / "test.json").read_text())
    profile = MergedProfile(asked["profile"], asked["site"]).checked()
    findings = [_check_code(asked["code"])]
    if role == "controller":
        with _listening(folder, profile) as server:
            _write_findings(folder, role, [*findings, _check_sbatch(folder, profile)])
            _answer(server, asked["n_workers"], asked["seconds"])
        return
    findings += _call(folder)
    if role == "gpu":
        findings.append(_check_gpu())
    _write_findings(folder, role, findings)


def _write_findings(folder: Path, role: Role, findings: list[Finding]) -> None:
    write_atomically(folder / f"{role}.json", json.dumps([asdict(found) for found in findings]).encode())


def _check_code(expected: str) -> Finding:
    node = _node()
    if code_digest() == expected:
        return Finding("hpcenc", True, f"the same version as here, on {node}")
    return Finding(
        "hpcenc", False, f"{node} has another version than this machine: install the same one for all nodes"
    )


@contextlib.contextmanager
def _listening(folder: Path, profile: SlurmProfile) -> Iterator[socket.socket]:
    """A server as a controller has one, whose address lies in the folder."""
    host = _own_address(profile)
    with socket.create_server((host, free_port(host, profile.network.ports))) as server:
        address = {"host": host, "port": server.getsockname()[1]}
        address |= {"node": _node(), "renamed_s": time.time()}
        write_atomically(folder / ADDRESS, json.dumps(address).encode())
        yield server


def _answer(server: socket.socket, n_workers: int, seconds: float) -> None:
    """Say back what workers say, until all have called or the time is over."""
    end = time.monotonic() + seconds
    server.settimeout(1.0)
    n_called = 0
    while n_called < n_workers and time.monotonic() < end:
        with contextlib.suppress(OSError):  # none called yet, or one that called is gone
            connection, _ = server.accept()
            with connection:
                connection.settimeout(CONNECT_S)
                connection.sendall(connection.recv(200))
            n_called += 1


def _own_address(profile: SlurmProfile) -> str:
    """The address that a controller would give to its workers."""
    from distributed.utils import get_ip, get_ip_interface

    interface = profile.network.interface
    return str(get_ip_interface(interface) if interface else get_ip())


def _check_sbatch(folder: Path, profile: SlurmProfile) -> Finding:
    request = Recruiter(profile, profile.cpu, "a" * 8, folder).request
    try:
        check_job(render_script(["true"], walltime_min=1), sbatch_options(request))
    except SlurmError as error:
        way_out = "Submit with `--controller here` or `--array`"
        return Finding(
            "sbatch", False, f"jobs cannot be submitted from {_node()}: {one_line(error)}. {way_out}"
        )
    return Finding("sbatch", True, f"jobs may be submitted from {_node()}")


def _call(folder: Path) -> list[Finding]:
    """See the controller's file, and reach the controller."""
    address = _await_address(folder)
    if address is None:
        said = (
            f"a file that the controller's job renamed in {folder} is not seen on {_node()} "
            f"after {SEEN_S:.0f} s: keep studies and stores on a file system that all nodes share"
        )
        return [Finding("store", False, said), Finding("network", None, "not tried")]
    if address["node"] == _node():
        store = Finding(
            "store", None, f"{_node()} had the controller's job too: nothing is known of other nodes"
        )
    else:
        late = max(0.0, time.time() - address["renamed_s"])
        store = Finding(
            "store", True, f"what {address['node']} renamed is seen on {_node()}, at most {late:.1f} s later"
        )
    return [store, _check_network(address)]


def _await_address(folder: Path) -> dict[str, Any] | None:
    end = time.monotonic() + SEEN_S
    while time.monotonic() < end:
        os.listdir(folder)
        try:
            address: dict[str, Any] = json.loads((folder / ADDRESS).read_text())
            return address
        except FileNotFoundError:
            time.sleep(0.2)
    return None


def _check_network(address: dict[str, Any]) -> Finding:
    where = f"{address['host']}:{address['port']} on {address['node']}"
    try:
        with socket.create_connection((address["host"], address["port"]), timeout=CONNECT_S) as connection:
            connection.sendall(_node().encode())
            if connection.recv(200) == _node().encode():
                return Finding("network", True, f"{_node()} reaches the controller at {where}")
        why = "no answer"
    except OSError as error:
        why = one_line(error)
    said = (
        f"{_node()} does not reach the controller at {where}: {why}. Set network.interface or network.ports, "
        "or submit with `--array`, which needs no network"
    )
    return Finding("network", False, said)


def _check_gpu() -> Finding:
    """That fits and extraction can use the GPU which SLURM gave."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    works, fails = [], []
    for name in ON_DEVICES:
        try:
            works.append(f"{name} on {describe_backend(name).get('device', 'a device')}")
        except BackendError as error:
            fails.append(one_line(error))
    if works:
        return Finding("gpu", True, "; ".join(works))
    said = f"CUDA_VISIBLE_DEVICES is {given!r} on {_node()}; {'; '.join(fails)}"
    return Finding(
        "gpu", False, f"{said}. Is gpu.gpu_request right, and hpcenc installed with its extra for CUDA?"
    )


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())

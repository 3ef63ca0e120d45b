"""The end of a pool of SLURM workers, without SLURM; what it does with it is in tests/slurm."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Scheduler, Security
from distributed.deploy.spec import ProcessInterface, SpecCluster

from hpcenc.cluster.run_folder import Event
from hpcenc.cluster.slurm_pool import SlurmPool, UniqueNames, close_in_time
from hpcenc.slurm.profiles import SlurmProfile
from hpcenc.storage.errors import LockError

PROFILE = SlurmProfile.model_validate(
    {
        "scratch": "/tmp",
        "controller": {"partition": "any", "walltime": 30},
        "cpu": {"partition": "any", "walltime": 10, "cores": 1, "memory": "2G"},
        "network": {"interface": "lo"},
    }
)


class Never(ProcessInterface):  # type: ignore[misc]
    """A worker whose job is being submitted for ever."""

    async def start(self) -> None:
        await asyncio.sleep(3600)


def test_a_cluster_that_waits_for_a_submission_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcenc.cluster.slurm_pool.CLOSE_S", 1)
    options = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    cluster = SpecCluster(
        scheduler={"cls": Scheduler, "options": options},
        worker={"cls": Never, "options": {}},
        silence_logs=50,
    )
    cluster.shutdown_on_close = False  # or the end of the tests would wait for it
    cluster.scale(1)
    began = time.monotonic()
    close_in_time(cluster)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("looks", [0, 1])
def test_a_pool_whose_run_another_controller_has_leaves_its_jobs_and_keys(
    looks: int, tmp_path: Path, queue: Any
) -> None:
    private = tmp_path / "private"
    left = [looks]

    def check_lock() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise LockError("another controller")

    def run() -> None:
        with SlurmPool("site", PROFILE, "abcdefgh", tmp_path, "numpy", lambda _: None, check_lock).open(
            "cpu", 1, 1
        ):
            pass

    queue.add("12", "hpcenc-w-abcdefgh")
    with pytest.raises(LockError, match="another controller"):
        run()
    assert queue.states() == {"12": "RUNNING"}
    assert private.exists() == bool(looks)
    keys = {"key.pem", "cert.pem"} if looks else set()
    assert {path.name for path in private.glob("*")} == keys
    left[0] = 9
    run()
    assert queue.states() == {"12": "CANCELLED"}
    assert not private.exists()


def test_no_worker_has_the_name_of_one_before_it() -> None:
    cluster = object.__new__(UniqueNames)
    cluster.worker_spec, cluster.new_spec, cluster._i, cluster._name = {}, {}, 0, "x"
    names = []
    for _ in range(3):  # of one that is gone the name is free again
        (name,) = cluster.new_worker_spec()
        names.append(name)
    assert len(set(names)) == 3


@pytest.fixture
def pool_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[Event]]]:
    """Scheduler of an open pool that has asked for no job, at another address than 127.0.0.1."""
    workers = {"partition": "any", "walltime": 10, "cores": 1, "memory": "500M"}
    site = {"scratch": "/tmp", "controller": {"partition": "any", "walltime": 30}, "cpu": workers}
    events: list[Event] = []
    monkeypatch.setattr("hpcenc.cluster.slurm_pool.end_jobs", lambda name: True)
    pool = SlurmPool("site", SlurmProfile.model_validate(site), "abcdefgh", tmp_path, "numpy", events.append)
    settings = {
        "distributed.scheduler.contact-address": None,
        "distributed.dashboard.link": "https://hub/{port}",
    }
    with dask.config.set(settings), pool.open("cpu", 1, 1) as crew:
        yield crew._cluster, events  # type: ignore[attr-defined]


def test_the_dashboard_is_told_by_its_port_and_listens_on_its_own_machine_only(
    pool_events: tuple[Any, list[Event]],
) -> None:
    cluster, (event,) = pool_events
    port = cluster.scheduler.http_server.port
    assert event == {
        "event": "cluster",
        "host": socket.gethostname(),
        "dashboard": f"http://127.0.0.1:{port}/status",
    }
    sockets = cluster.scheduler.http_server._sockets.values()
    assert {each.getsockname()[:2] for each in sockets} == {("127.0.0.1", port)}


def test_nobody_without_the_key_can_send_code_to_a_run(pool_events: tuple[Any, list[Event]]) -> None:
    cluster = pool_events[0]
    address = cluster.scheduler_address
    assert address.startswith("tls://")
    Client(address, security=cluster.security, timeout=5).close()
    plain = address.replace("tls://", "tcp://")
    for tried, security in ((address, Security.temporary()), (plain, None)):
        with pytest.raises(OSError, match=r"(?i)timed out|certificate|closed"):
            Client(tried, security=security, timeout=1)

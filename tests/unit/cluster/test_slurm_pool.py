"""The end of a pool of SLURM workers, without SLURM; what it does with it is in tests/slurm."""

from __future__ import annotations

import asyncio
import time

import pytest
from distributed import Scheduler
from distributed.deploy.spec import ProcessInterface, SpecCluster

from hpcenc.cluster.slurm_pool import UniqueNames, close_in_time


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


def test_no_worker_has_the_name_of_one_before_it() -> None:
    cluster = object.__new__(UniqueNames)
    cluster.worker_spec, cluster.new_spec, cluster._i, cluster._name = {}, {}, 0, "x"
    names = []
    for _ in range(3):  # of one that is gone the name is free again
        (name,) = cluster.new_worker_spec()
        names.append(name)
    assert len(set(names)) == 3

"""The end of a pool of SLURM workers, without SLURM; what it does with it is in tests/slurm."""

from __future__ import annotations

import asyncio
import time

import pytest
from distributed import Scheduler
from distributed.deploy.spec import ProcessInterface, SpecCluster

from hpcenc.cluster.slurm_pool import close_in_time


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

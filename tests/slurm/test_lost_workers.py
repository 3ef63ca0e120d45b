"""Workers that are lost in the middle of a fit, on a real SLURM; results are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sandbox import processes_of, wait_for
from sites import CONTROLLER, WORKERS, Site, chunks

from hpcenc.cluster.attempts import MAX_TRIES

Check = Callable[[], None]


def finish(site: Site, check_done: Check) -> None:
    """Let all fits go on to the end of the run, in which nothing is set aside."""
    site.release_fits()
    assert "exit status 0" in site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def node_of(site: Site, job: str) -> str:
    return next(line.node for line in site.sandbox.jobs() if line.job_id == job)


def kill_worker(job: str) -> None:
    (process,) = processes_of(job, "dask_worker")
    os.kill(process, signal.SIGKILL)


@pytest.fixture
def held(site: Site) -> Site:
    """A run whose four fits are at work in two jobs, away from the controller's node, and wait."""
    path = site.profiles / "site.toml"
    path.write_text(path.read_text().replace("max_jobs = 2", 'exclude = "n3"\nmax_jobs = 2'))
    site.open()
    site.hold_fits()
    site.submit("--sbatch-arg=--nodelist=n3")
    site.await_fits(4)
    return site


@pytest.mark.parametrize("how", ["cancelled", "crash", "node_fail"])
def test_a_worker_that_is_lost_costs_the_fits_that_it_had_at_work_and_nothing_else(
    how: str, held: Site, check_done: Check
) -> None:
    job, *_ = jobs = held.at_work()
    node = node_of(held, job)
    # A node takes all its jobs along, which may be both.
    lost = [each for each in jobs if each == job or (how == "node_fail" and node_of(held, each) == node)]
    if how == "cancelled":
        held.sandbox.run("scancel", job)
    elif how == "crash":
        kill_worker(job)
    else:
        held.sandbox.node_state(node, "down")
    n_lost = len(lost)
    held.await_event("lost", n_lost)
    assert f"lost and tried again: {n_lost} by {how.replace('_', ' ')}" in held.hpcenc("status")
    finish(held, check_done)
    assert [event["by"] for event in held.told("lost")] == n_lost * [how]
    assert sorted(event["where"] for event in held.told("lost")) == sorted(
        f"job {each} on {node}" for each in lost
    )
    if how != "node_fail":  # the processes of a node that is only called down may live on, and finish
        assert len(held.told("unit")) == 4


def test_workers_that_are_preempted_again_and_again_are_no_failure(held: Site, check_done: Check) -> None:
    n_times = MAX_TRIES + 1  # as often as would set a task aside that is to blame
    for time_ in range(n_times):
        held.await_fits(4 * (time_ + 1))
        strong = held.sandbox.run(
            *("sbatch", "--parsable", "-p", "high", "-N3", "--gres=gpu:2", "-o/dev/null"),
            input="#!/bin/sh\ntrue\n",
        ).strip()
        wait_for(lambda job=strong: held.sandbox.state(job) == "COMPLETED", 60, "the strong job")  # type: ignore[misc]
    held.await_fits(4 * (n_times + 1))
    finish(held, check_done)
    assert [event["by"] for event in held.told("lost")] == 4 * n_times * ["preempted"]


def test_a_node_that_is_drained_keeps_its_worker_and_gets_no_other(held: Site, check_done: Check) -> None:
    kept, other = dict.fromkeys(held.at_work())
    drained = node_of(held, kept)
    held.sandbox.node_state(drained, "drain")
    held.sandbox.run("scancel", other)
    third = held.await_fits(5)[-1]
    assert node_of(held, third) != drained
    finish(held, check_done)
    assert [event["by"] for event in held.told("lost")] == 2 * ["cancelled"]
    assert all(other in event["where"] for event in held.told("lost"))


def test_a_worker_that_hangs_is_given_up_and_its_job_cancelled(site: Site, check_done: Check) -> None:
    site.open()
    site.hold_fits()
    site.prologue("export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=4s", CONTROLLER)
    # Two seconds in place of six minutes.
    site.patch("import hpcenc.cluster.slurm_crew as crew\ncrew.HUNG_S = 2.0\n", CONTROLLER)
    site.submit()
    job = site.await_fits(4)[0]
    (worker,) = processes_of(job, "dask_worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        site.await_event("lost", 2)
    finally:
        os.kill(worker, signal.SIGCONT)
    finish(site, check_done)
    assert [event["by"] for event in site.told("lost")] == 2 * ["hung"]
    assert site.sandbox.state(job) == "CANCELLED"


def test_slurm_away_costs_nothing_that_runs(held: Site, check_done: Check) -> None:
    held.sandbox.stop_controller()
    try:
        held.release_fits()
        held.await_event("unit", 4)
    finally:
        held.sandbox.start_controller()
    finish(held, check_done)
    assert held.told("lost") == []


@pytest.mark.slow
def test_half_a_minute_without_slurm_costs_no_more_than_the_worker_that_dies_meanwhile(
    held: Site, check_done: Check
) -> None:
    job = held.at_work()[0]
    held.sandbox.stop_controller()
    begin = time.monotonic()
    try:
        kill_worker(job)
        held.await_event("lost", 2)
        wait_for(lambda: time.monotonic() > begin + 30, 40, "half a minute")
    finally:
        held.sandbox.start_controller()
    finish(held, check_done)
    assert len(held.told("lost")) == 2


def test_a_worker_near_the_end_of_its_job_takes_nothing_more_and_is_replaced(
    site: Site, check_done: Check
) -> None:
    path = site.profiles / "site.toml"
    path.write_text(path.read_text().replace("max_jobs = 2", "max_jobs = 1"))
    # Jobs believe to end so soon; of that, 30 s are kept free. Two of the four fits begin, and last long.
    site.prologue("export SLURM_JOB_END_TIME=$(($(date +%s) + 59))", WORKERS)
    site.open()
    site.hold_fits()
    site.submit()
    first = site.await_fits(2)[0]
    until = time.monotonic() + 12
    wait_for(lambda: time.monotonic() > until, 15, "the fits' time")
    finish(site, check_done)
    # A task for each of its two slots at most, which it had been given before it was known to take nothing.
    assert len(site.told("yielded")) in (1, 2)
    assert site.told("lost") == []
    assert len({event["where"] for event in site.told("unit")}) == 2
    assert first in site.told("unit")[0]["where"]


@pytest.mark.slow
def test_jobs_that_hit_their_real_walltime_are_no_failure(site: Site, check_done: Check) -> None:
    path = site.profiles / "site.toml"
    path.write_text(path.read_text().replace("walltime = 10", "walltime = 1"))
    site.open()
    site.hold_fits()
    site.submit()
    site.await_fits(4)
    wait_for(lambda: len(site.told("lost")) >= 4, 180, "SLURM to end the jobs")
    finish(site, check_done)
    assert {event["by"] for event in site.told("lost")} == {"timeout"}


POISON = """\
import os

fsync = os.fsync


def poisoned(descriptor):
    if "/fits/mylab/s2/weights/0.0.0.2" in os.readlink(f"/proc/self/fd/{descriptor}"):
        %s
    fsync(descriptor)


os.fsync = poisoned
"""


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("os._exit(1)", "ended: failed; its log is logs/hpcenc-w-"),
        ('raise ValueError("poison")', "ValueError: poison"),
    ],
    ids=["kills its worker", "raises"],
)
def test_a_unit_that_always_fails_is_set_aside_and_all_others_are_done(
    does: str, reason: str, site: Site, undisturbed: Path
) -> None:
    site.open()
    site.patch(POISON % does)
    site.submit()
    assert "exit status 1" in site.hpcenc("wait", status=1)
    site.await_no_jobs()
    said = site.hpcenc("status")
    assert reason in said.partition("set aside: ")[2]
    assert ("Traceback" in said) == ("ValueError" in reason)
    assert "fits/mylab/s2: 1 of 2 blocks done, 1 set aside" in said
    assert "fits/mylab/s1" not in said
    found, wanted = chunks(site.results / "study.zarr"), chunks(undisturbed.parent / "results" / "study.zarr")
    poisoned = {f"fits/mylab/s2/{name}" for name in ("scores/0.0.0.1", "weights/0.0.0.2", "done/1")}
    assert {name: found.get(name) for name in wanted.keys() - poisoned} == {
        name: wanted[name] for name in wanted.keys() - poisoned
    }
    assert "fits/mylab/s2/done/1" not in found

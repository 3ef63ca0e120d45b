"""Job arrays in place of a controller, on a real SLURM."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sandbox import wait_for
from sites import Site

Check = Callable[[], None]


def a_member_that_runs(site: Site) -> str:
    """Submit a chain whose members wait, and give the id of one that has begun to."""
    site.open()
    site.hold_workers()
    site.submit("--array")
    wait_for(lambda: any(job.state == "RUNNING" for job in site.worker_states()), 60, "a member")
    return next(job.job_id for job in site.worker_states() if job.state == "RUNNING")


def test_a_chain_of_arrays_gives_the_same_results_and_records(site: Site, check_done: Check) -> None:
    site.open()
    last = site.submit("--array")
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()
    status = json.loads(site.hpcenc("status", "--json"))
    assert status["ended"] == 0
    assert (status["stages"]["fit"]["done"], status["stages"]["fit"]["units"]) == (4, 4)
    assert status["account"]["workers"]["gpu"]["hours"] > 0
    units = [event for event in site.events() if event["event"] == "unit" and event["stage"] == "fit"]
    assert len(units) == 4
    assert len({event["where"] for event in units}) == 2  # each of two members did its share
    assert f"-{units[0]['where']}.log" in site.hpcenc("logs", "--job", units[0]["where"])
    assert f"-{last}.log" in site.hpcenc("logs", "--job", last)
    assert json.loads(site.hpcenc("submit", "--array", "--json"))[
        "job"
    ]  # nothing is left, and that is no error
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def test_a_chain_holds_its_store_until_its_end(site: Site, check_done: Check) -> None:
    last = site.submit("--array")
    assert f"job arrays at work; the last is job {last}" in site.hpcenc("status")
    site.hpcenc("submit", status=2)
    assert f"(job {last}, which waits) holds this store" in site.errors
    site.open()
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def test_a_killed_member_ends_the_chain_and_the_same_submit_goes_on(site: Site, check_done: Check) -> None:
    member = a_member_that_runs(site)
    site.sandbox.run("scancel", "--signal=KILL", "--full", member)
    site.release_workers()
    site.hpcenc("wait", status=3)
    site.await_no_jobs()
    lost = {event["job"] for event in site.events() if event["event"] == "worker lost"}
    assert member in lost
    site.submit("--array")
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def test_a_member_that_slurm_starts_again_goes_on(site: Site, check_done: Check) -> None:
    member = a_member_that_runs(site)
    site.sandbox.run("scontrol", "requeue", member)
    site.release_workers()
    site.await_state(member, "PENDING")
    site.sandbox.hurry(member)
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def test_a_cancelled_chain_leaves_no_job(site: Site, check_done: Check) -> None:
    a_member_that_runs(site)
    site.hpcenc("cancel")
    assert site.sandbox.jobs(ended=False) == []
    site.release_workers()
    site.submit()  # the controller takes over where the chain was
    site.hpcenc("wait")
    site.await_no_jobs()
    check_done()


def test_what_broke_since_the_submit_is_set_aside_and_the_rest_is_done(site: Site) -> None:
    site.submit("--array")
    path = site.study.parent / "bold" / "s2" / "B.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    site.open()
    site.hpcenc("wait", status=1)
    site.await_no_jobs()
    said = site.hpcenc("status")
    assert "fits/mylab/s2: 0 of 2 blocks done" in said
    assert said.count("set aside: subject s2: ") == 1
    assert list(site.results.rglob("*.html"))


@pytest.mark.parametrize("what", ["its files do not fit any more", "no unit fits a job"])
def test_a_chain_that_cannot_go_on_says_why(what: str, site: Site) -> None:
    if what == "no unit fits a job":
        site.prologue("export SLURM_JOB_END_TIME=$(date +%s)")
    site.submit("--array")
    if what == "its files do not fit any more":
        (site.study.parent / "mylab_A.npy").unlink()
    site.open()
    site.hpcenc("wait", status=1)
    site.await_no_jobs()
    expected = "mylab_A.npy" if what == "its files do not fit any more" else "a longer walltime is needed"
    assert expected in site.hpcenc("status").partition("set aside: ")[2]

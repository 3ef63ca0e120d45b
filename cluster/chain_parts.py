"""The jobs of a chain of arrays, seen from within: the first, a member with its share, the last."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hpcenc.cluster.chain import BEGIN, END
from hpcenc.cluster.control import take_lock
from hpcenc.cluster.controller import Emit, Progress, run_stage
from hpcenc.cluster.ending import end_leftovers
from hpcenc.cluster.enlistment import worker_kind
from hpcenc.cluster.executors import SerialExecutor
from hpcenc.cluster.granted import n_cores
from hpcenc.cluster.recruiting import MARGIN_S
from hpcenc.cluster.run_folder import Event, RunFolder, last_words, reasons_of, set_aside_in
from hpcenc.cluster.submit import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Prepared,
    conclude,
    make_groups,
    prepare_study,
)
from hpcenc.slurm.jobs import how_it_ended, requeue_job, this_job
from hpcenc.slurm.profiles import MergedProfile
from hpcenc.storage.errors import FullError, is_full
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import release
from hpcenc.tasks.backends import ON_DEVICES, describe_backend
from hpcenc.tasks.records import Deadline

PLACED = ("stage", "began", "unit", "lost", "set aside")
"""Events of a stage that a member tells with its own job."""


def run_part(
    path: Path, part: str, listen: Callable[[Event], None] = lambda _: None, digest: str = ""
) -> int:
    """Do one job's part of a chain.

    Parameters
    ----------
    path : Path
        The run folder.
    part : str
        ``begin``, ``end``, or a stage, of which this member of the job array does its share.
    listen : callable
        Is told what happens, event by event.
    digest : str, optional
        Of ``run.json`` at the submit.

    Returns
    -------
    int
        Exit status. Of a member 0 also if tasks failed: they are set aside, and the next stage goes on
        without them. With another one SLURM cancels what comes after it, but for the end.

    Raises
    ------
    StudyError
        If the study's files changed so that they no longer fit, or ``run.json`` did.
    """
    member = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    folder = RunFolder(path, f"{part}-{member}" if member else part, digest)
    emit = folder.emitter(listen)
    try:
        if part == BEGIN:
            return _begin(folder, emit)
        if part == END:
            return _end(folder, emit)
        return _run_share(folder, part, int(member), emit)
    except Exception as error:
        # Where nothing is full, run.json may be what cannot be read.
        store = folder.study().store_path if is_full(error) else folder.path
        given_up = [_given_up(part, reason, traceback.format_exc()) for reason in reasons_of(error, store)]
        last_words(emit, *given_up, *([{"event": "end", "status": EXIT_FAILED}] if part == END else []))
        if is_full(error):
            raise FullError(store) from error
        raise


def _given_up(part: str, reason: str, details: str = "") -> Event:
    """That a part cannot be done, however often it is tried."""
    return {"event": "set aside", "task": part, "reason": reason, "details": details, "part": part}


def _prepare(folder: RunFolder, deep: bool) -> Prepared:
    facts = folder.read("run")
    name = facts["profile"]
    site = MergedProfile(name, facts["site"]).checked()
    return prepare_study(folder.study(), facts["models"], facts["layers"], name, site, deep)


def _begin(folder: RunFolder, emit: Emit) -> int:
    end_leftovers(folder.study().store_path, folder.read("run")["run_id"])
    prepared = _prepare(folder, deep=True)
    make_groups(prepared, {"backend": prepared.backend.name, "devices": "those of the members"})
    for reason in prepared.plan.set_aside:
        emit({"event": "set aside", "task": "", "reason": reason, "details": ""})
    return EXIT_DONE


def _run_share(folder: RunFolder, part: str, member: int, emit: Emit) -> int:
    job, label = this_job(), f"{os.environ['SLURM_ARRAY_JOB_ID']}_{member}"
    assert job is not None

    def emit_of_stage(event: Event) -> None:
        # A stage has ended when its last member has, which no member knows.
        if event["event"] != "stage end":
            emit({**event, "where": label} if event["event"] in PLACED else event)

    node = os.environ.get("SLURMD_NODENAME", "")
    emit({"event": "worker", "job": label, "node": node, "kind": worker_kind(), "why": ""})
    prepared = _prepare(folder, deep=False)
    store, keys = prepared.study.store_path, set(folder.read("shares")[part][member])
    stage = next(stage for stage in prepared.plan.pending(store) if stage.name == part)
    if stage.worker == "gpu" and prepared.backend.name in ON_DEVICES:
        name = prepared.backend.name
        described = describe_backend(name)  # or this member would set all of its share aside
        emit({"event": "backend", "job": label, "backend": name, **described})
    share = replace(stage, tasks=tuple(task for task in stage.tasks if task.key in keys))
    deadline = Deadline(job.end_s - MARGIN_S) if job.end_s else None
    progress = Progress()
    if share.tasks:
        run_stage(share, store, SerialExecutor(n_cores()), deadline, emit_of_stage, progress)
    emit({"event": "worker left", "job": label, "units_left": progress.units_left})
    if not progress.units_left:
        return EXIT_DONE
    if not progress.units_done:
        emit(_given_up(part, "no unit fitted before the end of a job: a longer walltime is needed"))
        return EXIT_FAILED
    requeue_job(job.job_id)
    return EXIT_INTERRUPTED


def _end(folder: RunFolder, emit: Emit) -> int:
    run_id, store = folder.read("run")["run_id"], folder.study().store_path
    owner = take_lock(store, run_id)
    try:
        events = list(folder.events())
        prepared = _prepare(folder, deep=False)
        progress = Progress(
            units_done=sum(event["event"] == "unit" for event in events),
            set_aside=list(dict.fromkeys([*prepared.plan.set_aside, *map(str, set_aside_in(events))])),
        )
        if not any("part" in event for event in events):
            progress.units_left = _count_lost(folder, events, emit)
        return conclude(prepared, folder, progress, emit).exit_status
    finally:
        release(lock_path(store), owner)


def _count_lost(folder: RunFolder, events: Sequence[Event], emit: Emit) -> int:
    """Tasks of the members that did not come to the end of their shares, or never began."""
    left = [event for event in events if event["event"] == "worker left"]
    whole = {event["job"] for event in left if not event["units_left"]}
    n_lost = 0
    for stage, array in folder.read("arrays").items():
        for member, keys in enumerate(folder.read("shares")[stage]):
            if (label := f"{array}_{member}") not in whole:
                n_lost += len(keys)
                why = f"{stage}: job {label} did not come to its end"
                emit({"event": "worker lost", "job": label, "by": how_it_ended(label), "why": why})
    return n_lost

"""Submit: from a study file to a filled store and a report."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcenc.cluster.backend_choice import choose_backend, choose_cluster_backend, try_backend
from hpcenc.cluster.controller import Emit, Progress, run_plan
from hpcenc.cluster.executors import Executor, make_executor
from hpcenc.cluster.granted import memory_bytes
from hpcenc.cluster.liveness import is_gone, lock_owner
from hpcenc.cluster.pools import CrewError
from hpcenc.cluster.pricing import memory_problems, price_run, walltime_problems, worker_memory_problems
from hpcenc.cluster.run_folder import (
    Event,
    RunFolder,
    last_words,
    new_run_id,
    reasons_of,
    versions_of_fits,
)
from hpcenc.cluster.watching import watched
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import this_job
from hpcenc.slurm.profiles import HERE, SlurmProfile, find_profile
from hpcenc.storage.digests import FileDigests
from hpcenc.storage.errors import StoreError, StudyError
from hpcenc.storage.groups import GroupSpec, group_state
from hpcenc.storage.layout import AVERAGE, SWEEPS, lock_path
from hpcenc.storage.lock import acquire, release
from hpcenc.storage.regions import study_regions
from hpcenc.storage.study import Study, load_study
from hpcenc.tasks.backends import ON_DEVICES, BackendChoice
from hpcenc.tasks.facts import StudyFacts
from hpcenc.tasks.inspection import check_store, digest_memory, inspect
from hpcenc.tasks.memory import WorkerPeak, worker_peak
from hpcenc.tasks.plan import Plan, planned_files
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.records import Deadline, look_again
from hpcenc.tasks.selection import FeatureSet, idle_sweeps, select_feature_sets

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_INTERRUPTED = 0, 1, 2, 3

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Prepared:
    """A study that passed the gates, with its plan; nothing is written yet.

    Attributes
    ----------
    profile : str
        ``local``, ``serial`` or that of a SLURM site.
    peak : WorkerPeak
        Memory that one worker of it needs.
    """

    study: Study
    feature_sets: tuple[FeatureSet, ...]
    facts: StudyFacts
    plan: Plan
    backend: BackendChoice
    digests: FileDigests
    models: str
    layers: str
    profile: str
    site: SlurmProfile | None
    peak: WorkerPeak

    @property
    def idle_sweeps(self) -> tuple[str, ...]:
        """What the study's sweeps ask for that this run leaves nothing to do for, one line each."""
        return idle_sweeps(self.study, self.feature_sets)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes
    ----------
    exit_status : int
        0 done, 1 something was set aside, 3 interrupted and resumable.
    report : Path or None
        The HTML page, if the run came to it.
    stopped : bool
        Whether SIGTERM or Ctrl-C ended it.
    """

    exit_status: int
    run_folder: Path | None
    units_done: int
    set_aside: tuple[str, ...]
    report: Path | None
    stopped: bool = False


def prepare(
    path: Path,
    models: str = "all",
    layers: str = "default",
    subjects: str = "all",
    profile: str | None = None,
) -> Prepared:
    """Read a study, look at everything it names, and plan it.

    Parameters
    ----------
    path : Path
        The study file.
    models, layers : str
        As `select_feature_sets` takes them.
    subjects : str
        ``all``, or ids joined by commas.
    profile : str, optional
        ``local``, ``serial`` or that of a SLURM site; the study's own if absent.

    Raises
    ------
    ProfileError
        If there is no such profile, or something is wrong with it.
    StudyError
        Everything that is wrong, before anything is computed or written.
    """
    study = choose_subjects(load_study(path), subjects)
    profile = profile or study.cluster.profile
    site = None if profile in HERE else find_profile(profile, overrides=study.cluster.slurm)
    prepared = prepare_study(study, models, layers, profile, site, deep=site is None)
    if site is not None:
        # Here alone: by the rate of a node that is busy, a run that goes on there would end.
        problems = walltime_problems(prepared.plan, study.store_path, site, profile, prepared.backend.name)
        if problems:
            raise StudyError(problems)
    return prepared


def prepare_study(
    study: Study, models: str, layers: str, profile: str, site: SlurmProfile | None, deep: bool
) -> Prepared:
    """The same for a study that was read, with the subjects that are wanted.

    Parameters
    ----------
    site : SlurmProfile or None
        What the profile is; None if the run is for this machine. A run goes by that of its submit, whose
        files may have changed since, or lie on the login node alone.
    deep : bool
        Look into checkpoints. A login node does not: that is the controller's first step.
    """
    feature_sets = select_feature_sets(study, models, layers)
    digests = digest_memory(study)
    facts = inspect(study, feature_sets, study.scanned, digests, deep)
    backend = choose_backend(study) if site is None else choose_cluster_backend(study, site.gpu is not None)
    try:
        plan = make_plan(study, feature_sets, facts, backend.name)
    except ValueError as error:
        raise StudyError(str(error)) from error
    assert facts.voxels is not None
    study_regions(facts.voxels, study.regions, study.folder)
    check_store(study, facts.voxels, plan)
    peak = worker_peak(plan, study.store_path, overlaps=profile != "serial")
    if site is not None:
        problems = worker_memory_problems(study, plan, site, profile)
    else:
        problems = memory_problems(study, peak, profile, memory_bytes(), backend.name in ON_DEVICES)
    if problems:
        raise StudyError(problems)
    return Prepared(study, feature_sets, facts, plan, backend, digests, models, layers, profile, site, peak)


def choose_subjects(study: Study, subjects: str) -> Study:
    """The study of which some subjects only are fitted; their average is of all of them in any case."""
    if subjects == "all":
        return study
    wanted = tuple(part.strip() for part in subjects.split(",") if part.strip())
    known = study.fitted
    if not wanted or len(set(wanted)) < len(wanted):
        raise StudyError(f"--subjects: expected ids of the study, each once, found {subjects!r}")
    if strangers := [subject for subject in wanted if subject not in known]:
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        hint = ""
        if AVERAGE in strangers and study.average is None:
            hint = f"; {AVERAGE} needs a table [average] in the study"
        elif {*strangers} & {AVERAGE, *study.subjects.ids}:
            hint = "; subjects.only leaves out the others"
        raise StudyError(f"--subjects: the study fits no {', '.join(strangers)}; it fits {shown}{hint}")
    return study.model_copy(update={"subjects": study.subjects.model_copy(update={"only": wanted})})


def price(prepared: Prepared) -> dict[str, Any]:
    """What a run would do: units by stage; groups new, reused, recomputed and left over; what it takes."""
    study, store = prepared.study, prepared.study.store_path
    states: dict[str, list[GroupSpec]] = {}
    for spec in prepared.plan.groups:
        states.setdefault(group_state(store, spec), []).append(spec)
    to_do = {stage.name: stage.units_left(store) for stage in prepared.plan.pending(store)}
    return {
        "stages": {
            stage.name: {
                "units": sum(len(task.units) for task in stage.tasks),
                "to_do": len(to_do[stage.name]),
            }
            for stage in prepared.plan.stages
        },
        "new": [spec.group for spec in states.get("absent", [])],
        "reused": [spec.group for spec in states.get("current", []) + states.get("superseded", [])],
        "recomputed": [spec.group for spec in states.get("other", [])],
        "left_over": _left_over(prepared),
        "files_to_write": planned_files(prepared.plan.groups_to_write(store)),
        "bytes_to_write": prepared.plan.bytes_to_write(store),
        "set_aside": list(prepared.plan.set_aside),
        "idle_sweeps": list(prepared.idle_sweeps),
        "backend": prepared.backend.name,
        "backend_choice": prepared.backend.how,
        "store": str(store),
        **price_run(
            study,
            prepared.plan,
            prepared.backend.name,
            prepared.peak,
            prepared.profile,
            prepared.site,
        ),
    }


def _left_over(prepared: Prepared) -> list[str]:
    """Fits, ceilings and single tags in the store that this plan does not name: of other subjects or feature
    sets, or of what the study asks for no more."""
    store = prepared.study.store_path
    planned = {spec.group for spec in prepared.plan.groups}
    kinds = (*(f"{kind}/*" for kind in ("fits", *SWEEPS, "singles")), "ceilings")
    found = (path.parent for kind in kinds for path in store.glob(f"{kind}/*/zarr.json"))
    groups = (path.relative_to(store).as_posix() for path in found)
    return sorted(group for group in groups if group not in planned)


def submit(
    prepared: Prepared,
    profile: str | None = None,
    command: Sequence[str] = (),
    listen: Listener = lambda _: None,
) -> Result:
    """Run what is left of a prepared study, and write the report.

    Parameters
    ----------
    prepared : Prepared
    profile : str, optional
        ``local`` or ``serial``; that of `prepare` if absent.
    command : sequence of str
        What the user typed, for the run's record.
    listen : callable
        Is told what happens, event by event.

    Raises
    ------
    LockError
        If another run holds the store.
    StudyError
        If the backend of the fits does not work on this machine.
    """
    study, store = prepared.study, prepared.study.store_path
    description = try_backend(study, prepared.backend.name)
    executor = make_executor(
        profile or prepared.profile, study.cluster, prepared.peak.n_bytes, prepared.backend.name in ON_DEVICES
    )
    job, run_id = this_job(), new_run_id()
    owner = lock_owner(run_id)
    acquire(lock_path(store), owner, is_gone)
    try:
        prepared.digests.save()
        settings = {
            **run_settings(prepared, executor.name, command),
            "backend_description": description,
            "n_workers": executor.n_workers,
            "n_threads": executor.n_threads,
        }
        folder = RunFolder.create(store, run_id, prepared.plan, settings)
        deadline = Deadline(job.end_s) if job is not None and job.end_s else None
        with watched(prepared.plan, store, listen) as told:
            return run(prepared, executor, folder, description, told, deadline)
    finally:
        release(lock_path(store), owner)


def run_settings(prepared: Prepared, profile: str, command: Sequence[str]) -> dict[str, Any]:
    """What a run folder keeps of how a run was asked for."""
    return {
        "command": list(command),
        "profile": profile,
        "backend": prepared.backend.name,
        "backend_choice": prepared.backend.how,
        "study": prepared.study.model_dump(mode="json"),
        "feature_sets": [feature_set.label for feature_set in prepared.feature_sets],
    }


def run(
    prepared: Prepared,
    executor: Executor,
    folder: RunFolder,
    description: Mapping[str, str],
    listen: Listener = lambda _: None,
    deadline: Deadline | None = None,
) -> Result:
    """Run what is left of a plan, and write the report; call it under the lock.

    Parameters
    ----------
    prepared : Prepared
    executor : Executor
    folder : RunFolder
        What happens is logged there.
    description : mapping
        Of the backend, for groups that are made now.
    listen : callable
        Is told what happens too.
    deadline : Deadline, optional
        When the job that this runs in ends, if tasks run in it.

    """
    emit = folder.emitter(listen)
    progress = Progress(set_aside=list(prepared.plan.set_aside))
    for reason in prepared.plan.set_aside:
        emit({"event": "set aside", "task": "", "reason": reason, "details": ""})

    def work() -> None:
        make_groups(prepared, description)
        run_plan(prepared.plan, prepared.study.store_path, executor, deadline, emit, progress)

    return conclude(prepared, folder, progress, emit, work)


def conclude(
    prepared: Prepared,
    folder: RunFolder,
    progress: Progress,
    emit: Emit,
    work: Callable[[], None] = lambda: None,
) -> Result:
    """Do what is left of a run, write the report of what is there, and tell how the run ended.

    Parameters
    ----------
    prepared : Prepared
    folder : RunFolder
    progress : Progress
        Kept up to date by the work.
    emit : callable
        Is told what happens, event by event.
    work : callable
        Whatever ends it: only SIGTERM and Ctrl-C are taken for an interruption.
    """

    def end(status: int, report: Path | None = None) -> Result:
        emit({"event": "end", "status": status})
        return Result(status, folder.path, progress.units_done, tuple(progress.set_aside), report)

    try:
        with _terminable():
            work()
            if progress.units_left:
                return end(EXIT_INTERRUPTED)
            if not _any_fit(prepared):
                return end(EXIT_FAILED)
            emit({"event": "stage", "stage": "report", "tasks": 1, "units": 1})
            from hpcenc.tasks.report.build import build_report

            run = {**folder.read("run"), "fitted_with": versions_of_fits(prepared.study.store_path)}
            report = build_report(prepared.study, run, folder.events(), progress.set_aside)
    except KeyboardInterrupt:
        return replace(end(EXIT_INTERRUPTED), stopped=True)
    except (CrewError, OSError, SlurmError, StoreError) as error:  # no workers, a full disk, a damaged chunk:
        # what is marked is done
        (reason,) = reasons_of(error, prepared.study.store_path)
        progress.set_aside.append(reason)
        told = {"event": "set aside", "task": "", "reason": reason, "details": ""}
        # The run folder may be as full as the store.
        last_words(emit, told, {"event": "end", "status": EXIT_FAILED})
        return Result(EXIT_FAILED, folder.path, progress.units_done, tuple(progress.set_aside), None)
    progress.set_aside += report.damaged
    return end(EXIT_FAILED if progress.set_aside else EXIT_DONE, report.files.html)


def make_groups(prepared: Prepared, description: Mapping[str, str]) -> None:
    """Make the store and all groups that the plan fills; call it under the lock.

    Fits keep the description of the backend that they began with; each run's own is in its folder.
    """
    from hpcenc.storage.store import Store

    path, voxels = prepared.study.store_path, prepared.facts.voxels
    assert voxels is not None
    if not path.exists():
        arrays, attributes = voxels.to_arrays()
        Store.create(
            path,
            {
                "study": prepared.study.name,
                "note": prepared.study.note,
                "voxels": voxels.digest(),
                "n_voxels": voxels.n_voxels,
                "voxel_axis": attributes,
            },
            arrays,
        )
    store = Store(path)
    store.sweep()
    _sweep_operators(prepared.plan)
    to_make = [spec for spec in prepared.plan.groups if group_state(path, spec) != "current"]
    if to_make:
        store.drop_consolidated()
        described = {"backend_description": description}
        store.ensure_groups(
            [
                replace(spec, attributes={**spec.attributes, **described})
                if spec.group.startswith("fits/")
                else spec
                for spec in to_make
            ]
        )
    # A run may have been killed between the last group and here.
    if "consolidated_metadata" not in json.loads((path / "zarr.json").read_bytes()):
        store.consolidate()


def _sweep_operators(plan: Plan) -> None:
    """Remove operators that killed processes left half made: they are large, and nothing reads them.

    The cache may serve other stores of this folder, so only the plan's own are looked at.
    """
    units = {unit for stage in plan.stages for task in stage.tasks for unit in task.units}
    for folder in {unit.cached for unit in units if unit.cached is not None}:
        for partial in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(partial)


def _any_fit(prepared: Prepared) -> bool:
    """Whether any unit of a fit is done, so that there is something to report."""
    store = prepared.study.store_path
    units = [unit for task in prepared.plan.stages[-1].tasks for unit in task.units]
    look_again(units, store)  # for the report, too
    return any(unit.done(store) for unit in units)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: resumable, and with the lock given back."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

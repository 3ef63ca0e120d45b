"""Status of a study's latest run, from files alone: also while it runs, and after it has ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcenc.cluster.accounting import Account, UnitState, account, unit_states
from hpcenc.cluster.chain import SHARES
from hpcenc.cluster.liveness import is_gone
from hpcenc.cluster.run_folder import Event, RunFolder, SetAside, set_aside_in
from hpcenc.cluster.runs import EXIT_INTERRUPTED, ended_with
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import JobState, job_states
from hpcenc.slurm.scripts import controller_name, job_names
from hpcenc.storage.errors import StudyError
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import LockOwner, read_lock
from hpcenc.storage.marks import is_done
from hpcenc.storage.study import Study


@dataclass(frozen=True)
class Units:
    """What became of some units; those that are none of this wait.

    Attributes
    ----------
    units : int
        How many there are.
    running, failed, lost, set_aside : int
        Of those that are not done, as `UnitState` tells.
    """

    units: int
    done: int = 0
    running: int = 0
    failed: int = 0
    lost: int = 0
    set_aside: int = 0

    @classmethod
    def of(cls, states: Iterable[str]) -> Units:
        """Count units by their states, ``done`` or those of `UnitState`."""
        counts = Counter(states)
        return cls(
            units=counts.total(),
            done=counts["done"],
            running=counts["running"],
            failed=counts["failed"],
            lost=counts["lost"],
            set_aside=counts["set aside"],
        )


@dataclass(frozen=True)
class Status:
    """What of the latest run's plan is done.

    Attributes
    ----------
    stages : mapping of str to Units
        Of every stage whose results last.
    fits : mapping of str to Units
        Blocks of every feature set and subject.
    holder : LockOwner or None
        The run that holds the store now; None too if it was killed and left its lock behind.
    ended : int or None
        Exit status; None if it has not ended, or SLURM starts its controller's job again.
    account : Account
        Pace, and what its workers cost.
    jobs : tuple of JobState
        Its jobs that wait or run; none of a run on this machine.
    jobs_unknown : str
        Why SLURM could not say so; empty if it did.
    is_chain : bool
        Whether job arrays do it, without a controller.
    dashboard : mapping or None
        ``host`` of the controller, and ``dashboard``: Dask's, on that host only; None if there is none now.
    """

    run: dict[str, Any]
    folder: str
    stages: dict[str, Units]
    fits: dict[str, Units]
    set_aside: tuple[SetAside, ...]
    ended: int | None
    holder: LockOwner | None
    account: Account
    jobs: tuple[JobState, ...] = ()
    jobs_unknown: str = ""
    is_chain: bool = False
    dashboard: Mapping[str, str] | None = None

    @property
    def is_going_on(self) -> bool:
        """Whether it may still do something by itself."""
        return self.ended is None and (self.holder is not None or bool(self.jobs) or bool(self.jobs_unknown))

    @property
    def waiting_job(self) -> str:
        """The controller's job if SLURM is to start it, for the first time or again; else empty."""
        name = controller_name(self.run["run_id"])
        waiting = (job.job_id for job in self.jobs if job.name == name and job.state == "PENDING")
        return "" if self.is_chain else next(waiting, "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def read_status(study: Study) -> Status:
    """Status of a study.

    Raises
    ------
    StudyError
        If nothing was ever submitted.
    """
    store = study.store_path
    folder = RunFolder.latest(store)
    if folder is None:
        raise StudyError(f"{store}: nothing was submitted yet. `hpcenc submit` begins.")
    holder = read_lock(lock_path(store))
    events = list(folder.events())
    run = folder.read("run")
    jobs, unknown = _jobs(run) if "site" in run else ((), "")
    ended = ended_with(folder)
    if ended == EXIT_INTERRUPTED and any(job.name == controller_name(run["run_id"]) for job in jobs):
        ended = None  # SLURM starts the controller's job again
    holder = None if holder is None or is_gone(holder) else holder
    now, states = datetime.now(UTC), unit_states(events)
    if ended is not None or not (holder or jobs or unknown):  # its workers are gone, too
        now = datetime.fromisoformat(events[-1]["time"]) if events else now
        states = {unit: state for unit, state in states.items() if state != "running"}
    stages, fits = _count(store, folder.read("plan")["stages"], states)
    return Status(
        run=run,
        folder=str(folder.path),
        stages=stages,
        fits=fits,
        set_aside=set_aside_in(events),
        ended=ended,
        holder=holder,
        account=account(events, now),
        jobs=jobs,
        jobs_unknown=unknown,
        dashboard=_dashboard(events),
        is_chain=(folder.path / SHARES).exists(),
    )


def _count(
    store: Path, planned: Mapping[str, Sequence[tuple[str, int, str]]], states: Mapping[str, UnitState]
) -> tuple[dict[str, Units], dict[str, Units]]:
    """Units of every stage, and of every group of the fits."""
    stages: dict[str, Units] = {}
    fits: defaultdict[str, list[str]] = defaultdict(list)
    for stage, units in planned.items():
        found = [
            (group, "done" if is_done(store, group, index, digest) else states.get(f"{group}#{index}", ""))
            for group, index, digest in units
        ]
        stages[stage] = Units.of(state for _, state in found)
        for group, state in found if stage == "fit" else ():
            fits[group].append(state)
    return stages, {group: Units.of(found) for group, found in fits.items()}


def _dashboard(events: Sequence[Event]) -> Event | None:
    """Of the stage at work: each has its own."""
    found = None
    for event in events:
        if event["event"] == "cluster":
            found = event
        elif event["event"] in ("stage end", "end", "controller", "requeued"):
            found = None
    return found


def _jobs(run: Mapping[str, Any]) -> tuple[tuple[JobState, ...], str]:
    """Jobs of a run that wait or run, and why SLURM cannot say; the controller's first."""
    found: list[JobState] = []
    try:
        for name in job_names(run["run_id"]):
            found += job_states(name=name, patience_s=0)
    except SlurmError as error:
        return (), str(error)
    return tuple(job for job in found if job.ending == "running"), ""

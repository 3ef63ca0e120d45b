"""Status of a study's latest run, from files alone: also while it runs, and after it has ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from hpcenc.cluster.liveness import is_gone
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.storage.errors import StudyError
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import LockOwner, read_lock
from hpcenc.storage.marks import is_done
from hpcenc.storage.study import Study


@dataclass(frozen=True)
class Status:
    """What of the latest run's plan is done.

    Attributes
    ----------
    fits : mapping of str to (done, all)
        Blocks of every feature set and subject.
    stages : mapping of str to (done, all)
        Units of every stage whose results last.
    holder : LockOwner or None
        The run that holds the store now; None too if it was killed and left its lock behind.
    """

    run: dict[str, Any]
    folder: str
    stages: dict[str, tuple[int, int]]
    fits: dict[str, tuple[int, int]]
    set_aside: tuple[str, ...]
    ended: int | None
    holder: LockOwner | None

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
    stages: dict[str, tuple[int, int]] = {}
    all_units: Counter[str] = Counter()
    done_units: Counter[str] = Counter()
    for stage, units in folder.read("plan")["stages"].items():
        done = [is_done(store, group, index, digest) for group, index, digest in units]
        stages[stage] = (sum(done), len(done))
        if stage == "fit":
            for (group, _, _), unit_done in zip(units, done, strict=True):
                all_units[group] += 1
                done_units[group] += unit_done
    holder = read_lock(lock_path(store))
    events = list(folder.events())
    ends = [event["status"] for event in events if event["event"] == "end"]
    return Status(
        run=folder.read("run"),
        folder=str(folder.path),
        stages=stages,
        fits={group: (done_units[group], n_units) for group, n_units in all_units.items()},
        set_aside=tuple(event["reason"] for event in events if event["event"] == "set aside"),
        ended=ends[-1] if ends else None,
        holder=None if holder is None or is_gone(holder) else holder,
    )

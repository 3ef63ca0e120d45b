"""A plan: tasks in stages, and the groups that they fill.

It imports neither torch nor zarr nor dask, so that a login node can hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from hpcenc.storage.groups import GroupSpec, group_state
from hpcenc.tasks.records import Task, Unit


@dataclass(frozen=True)
class Stage:
    """Tasks that may run at the same time; the next stage waits for them.

    Attributes
    ----------
    worker : {"cpu", "gpu"}
        Kind of worker that it wants.
    lasting : bool
        False for what only serves later stages: it is made again only if they need it.
    slots : int
        Tasks that a worker process has at a time: with two, one reads or writes while the other computes.
    """

    name: str
    worker: Literal["cpu", "gpu"]
    tasks: tuple[Task, ...]
    lasting: bool
    slots: int = 1

    def units_left(self, store: Path) -> list[Unit]:
        """Units of its tasks that are not done."""
        return [unit for task in self.tasks for unit in task.units if not unit.done(store)]


@dataclass(frozen=True)
class Plan:
    """Every task of a study, and the groups that they fill."""

    stages: tuple[Stage, ...]
    groups: tuple[GroupSpec, ...]
    set_aside: tuple[str, ...]

    def pending(self, store: Path) -> tuple[Stage, ...]:
        """Stages with the tasks that have anything left to do.

        Units that are done are not done again, and what only serves others is done if one of them
        is left.
        """
        wanted: set[Unit] = set()
        stages = []
        for stage in reversed(self.stages):
            tasks = []
            for task in stage.tasks:
                left = [unit for unit in task.units if not unit.done(store)]
                if left and (stage.lasting or wanted.intersection(left)):
                    tasks.append(task)
                    wanted.update(need for unit in left for need in task.needs_of(unit))
            stages.append(replace(stage, tasks=tuple(tasks)))
        return tuple(reversed(stages))

    def groups_to_write(self, store: Path) -> tuple[GroupSpec, ...]:
        """Groups that are not whole yet; one that an interrupted run began counts whole."""
        unfinished = {unit.group for stage in self.pending(store) for unit in stage.units_left(store)}
        # What is made under a new digest needs its own place: the old one moves aside.
        return tuple(
            spec
            for spec in self.groups
            if (state := group_state(store, spec)) in ("absent", "other")
            or (state == "current" and spec.group in unfinished)
        )

    def bytes_to_write(self, store: Path) -> int:
        """Bytes of the groups that are not whole yet, and of what tasks keep beside the store, at most."""
        stored = sum(array.n_bytes for spec in self.groups_to_write(store) for array in spec.arrays.values())
        left = [unit for stage in self.pending(store) for unit in stage.units_left(store)]
        return stored + sum(unit.cached_bytes for unit in left)


def planned_files(groups: Iterable[GroupSpec]) -> int:
    """Files in the store that groups will be: chunks or shards, marks, and metadata.

    Metadata are a file for each array (that of the marks too), group, and group above it.
    """
    n_files, folders = 0, set()
    for group in groups:
        folders.update([PurePosixPath(group.group), *PurePosixPath(group.group).parents])
        n_files += sum(1 + array.n_files for array in group.arrays.values()) + 1 + group.n_units
    return n_files + len(folders)

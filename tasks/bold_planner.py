"""The part of a plan that says whose BOLD is fitted: subjects, their mean, and how blocks of it are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hpcenc.storage.digests import digest
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import AVERAGE, average_group, run_array
from hpcenc.storage.study import Average, Run, Study
from hpcenc.tasks import averaging
from hpcenc.tasks.block_bold import StoredBold
from hpcenc.tasks.facts import StudyFacts
from hpcenc.tasks.folds import RunRows
from hpcenc.tasks.records import Task, Unit

if TYPE_CHECKING:
    from hpcenc.storage.bold import BoldHeader


@dataclass(frozen=True)
class Scanned:
    """A subject, or the mean over subjects, and its BOLD.

    Attributes
    ----------
    version : str
        Of the stimulus.
    runs : tuple of Run
        That are present and whole.
    bold : tuple of BoldHeader or StoredBold
        One for each run.
    identity : plain values
        What of the BOLD enters digests.
    made : tuple of Unit
        For each voxel block the unit that makes its BOLD; empty where it is there.
    """

    subject: str
    version: str
    runs: tuple[Run, ...]
    bold: tuple[BoldHeader | StoredBold, ...]
    identity: Any
    made: tuple[Unit, ...] = ()

    def needs(self, block: int) -> tuple[Unit, ...]:
        """What must be done before the BOLD of one block can be read."""
        return self.made[block : block + 1]


class BoldPlanner:
    """Plans whose BOLD is fitted.

    Parameters
    ----------
    groups : dict of str to GroupSpec
        Is filled with the group of mean BOLD.
    add : callable
        Is given each task and the name of its stage.
    set_aside : list of str
        Is told who cannot be fitted, and why.
    """

    def __init__(
        self,
        study: Study,
        facts: StudyFacts,
        groups: dict[str, GroupSpec],
        add: Callable[[str, Task], None],
        set_aside: list[str],
    ) -> None:
        self.study, self.facts, self.groups, self._add, self._set_aside = study, facts, groups, add, set_aside
        self._voxels_digest = "" if facts.voxels is None else facts.voxels.digest()

    @property
    def n_voxels(self) -> int:
        """Voxels of the study."""
        assert self.facts.voxels is not None
        return self.facts.voxels.n_voxels

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """First voxel of each block, and the one after its last."""
        block = self.study.fit.block
        return tuple((first, min(first + block, self.n_voxels)) for first in range(0, self.n_voxels, block))

    def subjects(self) -> Iterator[Scanned]:
        """Everyone who is fitted, the mean over subjects last."""
        for subject in self.study.fitted:
            if subject != AVERAGE:
                yield self._subject(subject)
            elif self.study.average is not None and (mean := self._average(self.study.average)) is not None:
                yield mean

    def _subject(self, subject: str) -> Scanned:
        runs = tuple(run for run in self.study.runs_of(subject) if (subject, run.name) in self.facts.bold)
        bold = tuple(self.facts.bold[subject, run.name] for run in runs)
        identity = [header.identity for header in bold]
        return Scanned(subject, self.study.stimulus_of(subject), runs, bold, identity)

    def _average(self, average: Average) -> Scanned | None:
        """Plan the mean over subjects, block by block; None if no run has two of them."""
        study = self.study
        version = average.stimulus or study.subjects.stimulus
        members = [
            subject
            for subject in study.subjects.ids
            if average.mixed_versions or study.stimulus_of(subject) == version
        ]
        averaged = {run.name: self._averaged(run, members) for run in study.runs}
        runs = tuple(run for run in study.runs if len(averaged[run.name].bold) > 1)
        if not runs:
            self._set_aside.append(f"subject {AVERAGE}: no run of two subjects who saw version {version!r}")
            return None
        kept = tuple(averaged[run.name] for run in runs)
        inputs = {
            "version": averaging.AVERAGE_VERSION,
            "how": average.bold,
            "bold": [[header.identity for header in run.bold] for run in kept],
            "runs": [run.name for run in runs],
            "used": [[run.rows.n_trs, run.rows.rest, run.tail if run.rows.rest else -1] for run in kept],
            "voxels": self._voxels_digest,
            "block": study.fit.block,
        }
        key, group = digest(inputs), average_group()
        arrays = averaging.average_arrays(kept, self.n_voxels, study.fit.block)
        present = [
            subject for subject in members if any((subject, run.name) in self.facts.bold for run in runs)
        ]
        attributes = {**inputs, "subjects": present, "stimulus": version}
        self.groups[group] = GroupSpec(group, key, arrays, len(self.blocks), attributes)
        units = tuple(Unit(group, index, key) for index in range(len(self.blocks)))
        for unit, voxels in zip(units, self.blocks, strict=True):
            self._add(
                "average",
                averaging.AverageBlock(
                    unit=unit,
                    voxels=voxels,
                    runs=kept,
                    grayordinates=study.bold.grayordinates,
                    how=average.bold,
                ),
            )
        stored = tuple(StoredBold(f"{group}/{run_array(run.name)}", run.n_trs) for run in runs)
        return Scanned(AVERAGE, version, runs, stored, key, units)

    def _averaged(self, run: Run, members: list[str]) -> averaging.AveragedRun:
        bold = tuple(
            self.facts.bold[subject, run.name]
            for subject in members
            if (subject, run.name) in self.facts.bold
        )
        tail = max(self.study.fit.delays) if self.study.fit.rest == "drop" else -1
        return averaging.AveragedRun(run_rows(run, self.study.tr_s), tail, bold)


def run_rows(run: Run, tr_s: float) -> RunRows:
    """A run as the folds see it."""
    rest = tuple((start, stop) for _, start, stop in run.rows("rest", tr_s))
    return RunRows(run.name, run.n_trs, rest, run.rows("repeat", tr_s))

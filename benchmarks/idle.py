"""Fits that do nothing, in a module of their own: workers import it by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcenc.tasks.fitting import FitBlock
from hpcenc.tasks.records import Deadline, TaskRecord, Unit, run_units

if TYPE_CHECKING:
    from hpcenc.storage.store import Store


@dataclass(frozen=True)
class IdleFit:
    """A fit that travels, is marked and is recorded as the real one is, and computes nothing."""

    fit: FitBlock

    @property
    def key(self) -> str:
        return self.fit.key

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.fit.units

    def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
        return self.fit.needs_of(unit)

    def run(self, store: Store, deadline: Deadline | None) -> TaskRecord:
        # Facts as many and as long as those of a fit.
        return run_units(self, store, deadline, lambda _: {"voxels": 10_000, "undefined": 0, "checked": 128})

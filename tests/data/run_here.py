"""Studies that are planned and run in this process, task after task, without a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcenc.storage.digests import FileDigests
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.tasks.decoding import DecodeAudio, DecodeFrames
from hpcenc.tasks.inspection import inspect
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.selection import FeatureSet, select_feature_sets

StandIns = Mapping[type, Callable[[Store, Any], None]]
"""What is done with tasks of some classes in place of running them."""


def _leave_out(store: Store, task: Any) -> None:
    """Do nothing with a task."""


NOT_DECODED: StandIns = {DecodeFrames: _leave_out, DecodeAudio: _leave_out}
"""Movies are left as they are."""


def run_plan(study: Study, models: str, instead: StandIns | None = None) -> tuple[Store, Plan]:
    """Plan a study and run what is left of its stages; no task may fail."""
    return run_sets(study, select_feature_sets(study, models), instead)


def run_sets(
    study: Study, chosen: Sequence[FeatureSet], instead: StandIns | None = None
) -> tuple[Store, Plan]:
    """The same of feature sets that need not be those of a command line."""
    digests = FileDigests(study.store_path.parent / "digests.json")
    # What stand-ins do needs no movie that can be decoded, nor a whole checkpoint.
    facts = inspect(study, chosen, study.subjects.ids, digests, deep=not instead)
    assert facts.voxels is not None
    plan = make_plan(study, chosen, facts, "numpy")
    if not study.store_path.exists():
        arrays, axis = facts.voxels.to_arrays()
        Store.create(study.store_path, {"voxel_axis": axis}, arrays)
    store = Store(study.store_path)
    for spec in plan.groups:
        store.ensure_group(spec)
    for stage in plan.pending(study.store_path):
        for task in stage.tasks:
            if instead and type(task) in instead:
                instead[type(task)](store, task)
            else:
                record = task.run(store, None)
                assert not record.failed, record.failed
    return store, plan

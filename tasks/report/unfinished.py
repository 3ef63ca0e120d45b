"""What is not finished of the analyses beside the main fits, whose own tables tell of themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hpcenc.storage.layout import SWEEPS
from hpcenc.storage.results import fit_groups
from hpcenc.storage.store import Store
from hpcenc.tasks.report.leftovers import WHAT
from hpcenc.tasks.report.sections import name_some


def unfinished_warnings(store: Store, left_over: Collection[str]) -> Iterator[str]:
    """A sentence for each kind of analysis and feature set of which voxel blocks are not done.

    Parameters
    ----------
    store : Store
    left_over : collection of str
        Groups that are not shown.
    """
    unfinished: dict[str, list[tuple[str, int, int]]] = {}
    groups = [group for kind in (*SWEEPS, "singles") for group in fit_groups(store, kind)]
    groups += [
        metadata.parent.relative_to(store.path).as_posix()
        for metadata in sorted((store.path / "ceilings").glob("*/zarr.json"))
    ]
    for group in groups:
        attributes = store.attributes_of(group)
        n_done, n_blocks = store.progress(group)
        if group not in left_over and n_done < n_blocks:
            of = f" of {attributes['feature_set']}" if "feature_set" in attributes else ""
            what = f"{WHAT[group.partition('/')[0]]}{of}"
            unfinished.setdefault(what, []).append((attributes["subject"], n_done, n_blocks))
    for what, rows in unfinished.items():
        subjects, done, blocks = zip(*rows, strict=True)
        yield (
            f"{what}: incomplete in {name_some(subjects)}: {sum(done)} of {sum(blocks)} voxel "
            "blocks are done. The numbers and maps are of these only."
        )

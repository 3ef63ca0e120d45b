"""What is not finished of a store's fits and analyses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from hpcenc.storage.store import Store
from hpcenc.tasks.report.leftovers import WHAT
from hpcenc.tasks.report.sections import name_some


def unfinished_warnings(
    store: Store, progress: Mapping[str, tuple[int, int]], left_over: Collection[str]
) -> Iterator[str]:
    """A sentence for each kind of analysis and feature set of which voxel blocks are not done.

    Of main fits only those of which none is done: the tables of the others tell of themselves.

    Parameters
    ----------
    store : Store
    progress : mapping of str to (int, int)
        Of every group, blocks that are done, and blocks.
    left_over : collection of str
        Groups that are not shown.
    """
    unfinished: dict[str, list[tuple[str, int, int]]] = {}
    for group, (n_done, n_blocks) in progress.items():
        kind = group.partition("/")[0]
        if group in left_over or n_done == n_blocks or (kind == "fits" and n_done):
            continue
        attributes = store.attributes_of(group)
        of = f" of {attributes['feature_set']}" if "feature_set" in attributes else ""
        unfinished.setdefault(f"{WHAT[kind]}{of}", []).append((attributes["subject"], n_done, n_blocks))
    for what, rows in unfinished.items():
        none = [subject for subject, n_done, _ in rows if not n_done]
        begun = [row for row in rows if row[1]]
        if none:
            yield f"{what}: not shown of {name_some(none)}: no voxel block is done."
        if begun:
            subjects, done, blocks = zip(*begun, strict=True)
            yield (
                f"{what}: incomplete in {name_some(subjects)}: {sum(done)} of {sum(blocks)} voxel "
                "blocks are done. The numbers and maps are of these only."
            )

"""What is done, read and written without opening the store.

A group that is filled unit by unit holds an int64 Zarr array ``done`` of shape (n_units,) in chunks
of one: a unit's mark is a file of eight bytes, written after the unit's data are on the disk. It
holds 63 bits of the group's digest, so that a damaged mark, or one of other inputs, reads as not
done. Login nodes count marks by this module alone, without importing zarr.
"""

from __future__ import annotations

from pathlib import Path

from hpcenc.storage.digests import mark_of
from hpcenc.storage.files import write_atomically

MARKS = "done"
"""Name of the array of marks in a group."""


def write_mark(store: Path, group: str, unit: int, digest: str) -> None:
    """Say that a unit is complete; call it when the unit's data are on the disk."""
    write_atomically(store / group / MARKS / str(unit), mark_of(digest).to_bytes(8, "little"))


def is_done(store: Path, group: str, unit: int, digest: str) -> bool:
    """Whether a unit is complete under this digest."""
    try:
        # Without pathlib, which takes four times as long: a login node looks at some ten thousand marks.
        with open(f"{store}/{group}/{MARKS}/{unit}", "rb") as file:
            return file.read() == mark_of(digest).to_bytes(8, "little")
    except FileNotFoundError:
        return False

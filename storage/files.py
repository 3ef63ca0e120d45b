"""Files that survive a crash: written beside, synced, renamed into place."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it holds either its old content or the new, also after a power cut."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


@contextmanager
def created_with(umask: int | None) -> Iterator[None]:
    """Let files be made under another umask; None leaves this process's own."""
    before = os.umask(0o077)
    os.umask(before if umask is None else umask)
    try:
        yield
    finally:
        os.umask(before)

"""Files that survive a crash: written beside, synced, renamed into place."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcenc.storage.errors import StudyError


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
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # on a full disk every leftover counts
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, as UTF-8.

    Raises
    ------
    StudyError
        If the text holds a file's name that is no UTF-8.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        start = text.rfind("\n", 0, error.start) + 1
        line = text[start:].partition("\n")[0].strip().encode(errors="backslashreplace").decode()
        raise StudyError(f"{path}: cannot hold a name that is not UTF-8: {line}. Rename the file.") from None
    write_atomically(path, data)


@contextmanager
def created_with(umask: int | None) -> Iterator[None]:
    """Let files be made under another umask; None leaves this process's own."""
    before = os.umask(0o077)
    os.umask(before if umask is None else umask)
    try:
        yield
    finally:
        os.umask(before)

"""Digests: what a product was made from, in one number."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcenc.storage.files import write_atomically


def digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a product's inputs.

    Parameters
    ----------
    inputs : mapping
        Plain values (str, int, float, bool, None, lists, tuples, mappings).

    Returns
    -------
    str
        64 hexadecimal digits; the same for the same inputs on every machine and Python.
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def mark_of(digest_hex: str) -> int:
    """The 63 bits of a digest that a mark holds; never 0, which means not done."""
    return (int(digest_hex[:16], 16) >> 1) or 1


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileDigests:
    """SHA-256 of files, remembered by path, size and modification time.

    Movies and checkpoints are gigabytes that seldom change: hashing them at every start would
    cost minutes. The memory is a JSON file in the cache; losing it costs time only.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            self._known: dict[str, str] = dict(json.loads(memory.read_text()))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def __call__(self, path: Path) -> str:
        """Digest of a file; OSError if it cannot be read."""
        status = os.stat(path)
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = file_digest(path)
        return self._known[key]

    def save(self) -> None:
        """Write what is remembered."""
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._memory, json.dumps(self._known, indent=0).encode())

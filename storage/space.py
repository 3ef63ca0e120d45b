"""Space that is left for a store: of its file system, and of quotas where their commands are at hand."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ASK_S = 5.0
"""How long a command may take; a file server that is away lets it hang."""

_GRACES = (3, 7)
"""Columns of a row that hold times, or ``-``."""

_ENDLESS = 2**63


@dataclass(frozen=True)
class Space:
    """What may still be written in a folder.

    Attributes
    ----------
    n_bytes : int
    n_files : int or None
        None where files are not counted.
    of_what : str
        What sets the limit of bytes: ``the file system``, ``the quota of user x``.
    files_of_what : str
        The same of files; empty where they are not counted.
    """

    n_bytes: int
    n_files: int | None
    of_what: str = "the file system"
    files_of_what: str = ""


def space_left(folder: Path) -> Space:
    """Space that is left in a folder which exists, by whatever is the tightest."""
    system = os.statvfs(folder)
    n_files = system.f_favail if system.f_files else None
    left = Space(
        system.f_bavail * system.f_frsize, n_files, files_of_what="" if n_files is None else "the file system"
    )
    for found in _quotas(folder):
        if found.n_bytes < left.n_bytes:
            left = Space(found.n_bytes, left.n_files, found.of_what, left.files_of_what)
        if found.n_files is not None and (left.n_files is None or found.n_files < left.n_files):
            left = Space(left.n_bytes, found.n_files, left.of_what, found.of_what)
    return left


def _quotas(folder: Path) -> Iterator[Space]:
    """Quotas of this user and of the group that new files will have, as far as commands tell of them."""
    owners = {"-u": _name_of_user(), "-g": _name_of_group(folder)}
    mount = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_mount())
    for option, name in owners.items():
        of_what = f"the quota of {'user' if option == '-u' else 'group'} {name}"
        yield from _parse(_ask(["lfs", "quota", "-q", option, name, str(folder)]), of_what)
        yield from _parse(_ask(["quota", "-w", "-p", option, "-f", str(mount), name]), of_what)


def _name_of_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _name_of_group(folder: Path) -> str:
    """The folder's group where that is handed on to what is made in it, else the user's own."""
    found = folder.stat()
    gid = found.st_gid if found.st_mode & 0o2000 else os.getgid()
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _ask(command: Sequence[str]) -> str:
    """What a command prints; nothing if it is absent, fails or hangs: a quota is told if it can be."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            timeout=ASK_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _parse(text: str, of_what: str) -> Iterator[Space]:
    """Quotas in rows of ``filesystem kilobytes quota limit grace files quota limit grace``.

    A ``*`` marks what is over its quota; a limit of 0 is none. ``quota`` has two lines of headers first.
    """
    words = text.split()
    for start, word in enumerate(words):
        row = [value.rstrip("*") for value in words[start + 1 : start + 9]]
        numbers = [value for place, value in enumerate(row) if place not in _GRACES and value.isdecimal()]
        if len(row) == 8 and len(numbers) == 6 and not word.rstrip("*").isdecimal():
            used, soft, hard, n_files, soft_files, hard_files = map(int, numbers)
            limit, file_limit = _limit(soft, hard), _limit(soft_files, hard_files)
            n_bytes = _ENDLESS if limit is None else max(0, limit - used) * 1024
            yield Space(n_bytes, None if file_limit is None else max(0, file_limit - n_files), of_what)


def _limit(soft: int, hard: int) -> int | None:
    """The hard limit; the soft one, beyond which a time of grace runs, where there is no other."""
    return hard or soft or None

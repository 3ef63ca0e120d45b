"""Keys of one run: only who has them can talk to its controller and workers."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

from hpcenc.storage.errors import StoreError


def make_credentials(folder: Path) -> Any:
    """Make a key and a certificate, and keep them where only this user can read them.

    Parameters
    ----------
    folder : Path
        Made with mode 700; seen by all nodes.

    Returns
    -------
    distributed.Security
        For scheduler and client, which never read the files; nothing without the key is let in.

    Raises
    ------
    StoreError
        If the folder is there already, and not this user's alone: the run folder may be the group's.
    """
    from distributed import Security

    made = Security.temporary()
    _make_private(folder)
    for name, content in (("key", made.tls_scheduler_key), ("cert", made.tls_scheduler_cert)):
        descriptor = os.open(folder / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(content)
    return made


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreError(
            f"{folder}: expected a folder of user {os.geteuid()} alone (drwx------) for keys of a run, found "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}. Remove it, and the same submit goes on"
        )


def remove_credentials(folder: Path) -> None:
    """Remove the keys of a run that has ended, or died; those of another user's are left to their owner."""
    with contextlib.suppress(PermissionError):
        for name in ("key", "cert"):
            (folder / f"{name}.pem").unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()

"""Keys of one run: only who has them can talk to its controller and workers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any


def make_credentials(folder: Path) -> Any:
    """Make a key and a certificate, and keep them where only this user can read them.

    Parameters
    ----------
    folder : Path
        Made with mode 700; seen by all nodes.

    Returns
    -------
    distributed.Security
        For scheduler, workers and client alike; nothing without the key is let in.
    """
    from distributed import Security

    made = Security.temporary()
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = {}
    for name, content in (("key", made.tls_scheduler_key), ("cert", made.tls_scheduler_cert)):
        paths[name] = folder / f"{name}.pem"
        descriptor = os.open(paths[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(content)
    ends = {
        f"tls_{role}_{name}": str(path)
        for role in ("scheduler", "worker", "client")
        for name, path in paths.items()
    }
    return Security(require_encryption=True, tls_ca_file=str(paths["cert"]), **ends)


def remove_credentials(folder: Path) -> None:
    """Remove the keys of a run that has ended, or died; those of another user's are left to their owner."""
    with contextlib.suppress(PermissionError):
        for name in ("key", "cert"):
            (folder / f"{name}.pem").unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()

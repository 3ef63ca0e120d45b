"""The lock of a store: one run at a time, also on network file systems."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcenc.storage.errors import LockError, is_full
from hpcenc.storage.files import sync


@dataclass(frozen=True)
class LockOwner:
    """Who holds a store."""

    run_id: str
    host: str
    boot_id: str
    pid: int
    user: str
    process_start: str
    """When the process began, as its kernel counts: process ids come back."""
    job_id: str = ""
    restart_count: int = 0
    cluster: str = ""
    """Of SLURM, whose job it is: another one has other jobs of the same ids."""


def this_process(run_id: str, job_id: str = "", restart_count: int = 0, cluster: str = "") -> LockOwner:
    """The owner that this process would be."""
    host, boot_id = this_host()
    return LockOwner(
        run_id=run_id,
        host=host,
        boot_id=boot_id,
        pid=os.getpid(),
        user=user_name(),
        process_start=process_start(os.getpid()),
        job_id=job_id,
        restart_count=restart_count,
        cluster=cluster,
    )


def user_name() -> str:
    """Name of the user, or the number where a container does not know the name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def this_host() -> tuple[str, str]:
    """Name of this machine, and the identity of its running kernel (empty where it has none)."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = ""
    return socket.gethostname(), boot_id


def process_start(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; empty if it has ended, or is hidden."""
    try:
        # The command's name stands in brackets and may hold anything; the start time is the 20th
        # field after it, the state the first.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended, its parent has not looked
    except (OSError, IndexError):
        return ""


def read_lock(path: Path) -> LockOwner | None:
    """Who holds a lock; None if nobody does."""
    try:
        return LockOwner(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LockError(f"{path}: the lock cannot be read ({error}). Ask its owner.") from None
    except (ValueError, TypeError) as error:
        raise LockError(
            f"{path}: not a lock file of hpcenc ({error}). If no run is at work, remove it."
        ) from None


def holds(path: Path, owner: LockOwner) -> bool:
    """Whether a lock is an owner's still; a file that cannot be read just now says nothing else."""
    try:
        return read_lock(path) == owner
    except LockError:
        return True


def acquire(path: Path, owner: LockOwner, is_gone: Callable[[LockOwner], bool]) -> None:
    """Take a lock, or take it over from an owner that is certainly gone.

    Parameters
    ----------
    path : Path
        The lock file.
    owner : LockOwner
        Who takes it.
    is_gone : callable
        Whether an owner's process is certainly no more; when in doubt it must say no.

    Raises
    ------
    LockError
        If somebody else holds it, or the file system has no means for locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        ours.write_text(json.dumps(asdict(owner)))
        sync(ours)
        for _ in range(100):
            try:
                os.link(ours, path)  # atomic, also on NFS
                return
            except FileExistsError:
                holder = read_lock(path)
            except OSError as error:
                if is_full(error):
                    raise
                raise LockError(
                    f"{path}: cannot be made ({error}). The store's folder must allow hard links."
                ) from error
            if holder == owner:  # NFS may repeat a request whose answer was lost
                return
            if holder is not None:
                _remove_stale(path, holder, is_gone)
        raise LockError(f"{path}: the lock changes hands without end; try again")
    finally:
        ours.unlink(missing_ok=True)


def refuse_held(path: Path, is_gone: Callable[[LockOwner], bool]) -> None:
    """Refuse a lock that somebody holds, as `acquire` does, and take none.

    Raises
    ------
    LockError
        If somebody holds it who is not certainly gone.
    """
    holder = read_lock(path)
    if holder is not None and not is_gone(holder):
        raise _held(path, holder)


def _held(path: Path, holder: LockOwner) -> LockError:
    where = f"job {holder.job_id}" if holder.job_id else f"process {holder.pid}"
    place = f" on {holder.host}" if holder.host else ", which waits"
    return LockError(
        f"{path}: run {holder.run_id} of {holder.user} ({where}{place}) holds this store. "
        "Wait for it or end it; if it is certainly gone, remove the lock file."
    )


def _remove_stale(path: Path, holder: LockOwner, is_gone: Callable[[LockOwner], bool]) -> None:
    if not is_gone(holder):
        raise _held(path, holder)
    # Two takers may have seen the same dead owner: one at a time, and only if it is still that owner's.
    try:
        with path.with_name(path.name + ".guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            if read_lock(path) == holder:
                path.unlink()
    except OSError as error:  # another user's folder, or a file system without flock
        raise LockError(
            f"{path}: run {holder.run_id} of {holder.user} is gone, but its lock cannot be taken over "
            f"({error}). Remove the lock file."
        ) from error


def hand_over(path: Path, to: LockOwner) -> None:
    """Give a lock that a run holds to another process of the same run, or to its job.

    Raises
    ------
    LockError
        If another run holds it, or none.
    """
    holder = read_lock(path)
    if holder is None or holder.run_id != to.run_id:
        found = "nobody" if holder is None else f"run {holder.run_id} of {holder.user}"
        raise LockError(f"{path}: expected run {to.run_id} to hold this store, found {found}")
    theirs = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        theirs.write_text(json.dumps(asdict(to)))
        sync(theirs)
        theirs.replace(path)
    finally:
        theirs.unlink(missing_ok=True)


def job_of(run_id: str, job_id: str, cluster: str = "") -> LockOwner:
    """The owner that a waiting job is: it has no process yet."""
    return LockOwner(
        run_id,
        host="",
        boot_id="",
        pid=0,
        user=user_name(),
        process_start="",
        job_id=job_id,
        cluster=cluster,
    )


def release(path: Path, owner: LockOwner) -> None:
    """Give a lock back; does nothing if another owner holds it by now."""
    if read_lock(path) == owner:
        path.unlink(missing_ok=True)

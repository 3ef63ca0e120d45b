"""Errors that callers act on."""

import errno
from pathlib import Path


class FullError(OSError):
    """There is no space left for a store, or its user's quota is used up.

    Parameters
    ----------
    store : Path
    """

    def __init__(self, store: Path) -> None:
        super().__init__(
            errno.ENOSPC,
            f"{store}: no space is left there, or your quota is used up. What was marked as done is kept and "
            "can be read; make space, and the same submit goes on",
        )

    def __str__(self) -> str:
        return str(self.strerror)


def error_words(error: Exception) -> str:
    """What a user is told of an error: of a full disk how to go on, else its own words."""
    if not is_full(error) or isinstance(error, FullError):
        return str(error)
    path = getattr(error, "filename", None)
    where = f"{path}: no space is left there" if path is not None else "no space is left on the disk"
    return f"{where}, or your quota is used up. Make space, and the same command goes on"


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space, be it at the write, at closing or at syncing the file."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class StudyError(ValueError):
    """The study file, or what it names, cannot be used; holds every problem found.

    Parameters
    ----------
    problems : sequence of str
        One message each: where, what was expected, what was found, the way out.
    """

    def __init__(self, problems: "list[str] | tuple[str, ...] | str") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class StoreError(RuntimeError):
    """The store cannot be read or written as asked."""


class BoldError(ValueError):
    """A BOLD file is damaged or not what the study says."""


class LockError(RuntimeError):
    """Another run holds the store, or another process of this one."""

"""How commands end on wrong input: messages alone, and exit status 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

_SHOWN = 3
_VARYING = re.compile(r"'[^']*'|\d+|\S*/\S*")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Wrong input ends a command with its messages alone, one line each, and exit status 2."""
    from hpcenc.slurm.commands import SlurmError
    from hpcenc.slurm.profiles import ProfileError
    from hpcenc.slurm.scripts import RequestError
    from hpcenc.storage.errors import BoldError, LockError, StoreError, StudyError, error_words

    try:
        yield
    except (ProfileError, StudyError) as error:
        refuse(*shortened(error.problems), *notes_of(error))
    except (BoldError, LockError, RequestError, SlurmError, StoreError, OSError) as error:
        refuse(error_words(error), *notes_of(error))


def shortened(problems: Sequence[str]) -> list[str]:
    """Messages, of each kind the first three: those of hundreds of subjects would hide all others.

    Those of a kind differ in numbers, in what is in quotes, and in paths.
    """
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_VARYING.sub("", problem), []).append(problem)
    shown = []
    for of_kind in kinds.values():
        shown += of_kind[:_SHOWN]
        if len(of_kind) > _SHOWN:
            shown.append(f"and {len(of_kind) - _SHOWN:,} more like it")
    return shown


def refuse(*problems: str) -> NoReturn:
    """End the command with these messages."""
    for problem in problems:
        say(f"error: {problem}")
    raise typer.Exit(2)


def notes_of(error: BaseException) -> list[str]:
    """What is to be known beside an error, one line each."""
    return list(getattr(error, "__notes__", []))


def say(text: str) -> None:
    """Print what is no result."""
    print(text, file=sys.stderr)

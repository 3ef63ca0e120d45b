"""How commands end on wrong input: messages alone, and exit status 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

_MANY, _SHOWN = 10, 3
_VARYING = re.compile(r"(?<=subject )[^\s,:]+|(?<=run )[^\s,:]+|'[^']*'|\S*/\S*|\d+")


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
    """Messages; of a kind of which there are many the first three, for hundreds would hide all others.

    Those of a kind differ in numbers, subjects, runs, paths, and in what is in quotes.
    """
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_VARYING.sub("", problem), []).append(problem)
    shown = []
    for of_kind in kinds.values():
        if len(of_kind) <= _MANY:
            shown += of_kind
        else:
            shown += [*of_kind[:_SHOWN], f"and {len(of_kind) - _SHOWN:,} more like these"]
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

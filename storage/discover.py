"""What the names of movie and BOLD files say: subjects, runs, and which movie is whose."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MOVIE_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".wmv", ".ogv", ".ogg")
"""Ends of the names of movie files."""


@dataclass(frozen=True)
class BoldName:
    """One BOLD file, as its name was read."""

    path: str
    subject: str
    run: str
    template: str
    """The path with ``{subject}`` and ``{run}`` in place of what they are here."""


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files below a folder whose names end so, relative to it and sorted.

    Hidden files and folders and Zarr stores are passed over. Links to folders are followed, but not in rings.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [
            name for name in sorted(folders) if not name.startswith(".") and not name.endswith(".zarr")
        ]
        shown = [name for name in names if not name.startswith(".")]  # "._x" is what macOS knows of x
        found += [os.path.join(parent, name) for name in shown if name.lower().endswith(suffixes)]
    return sorted(Path(path).relative_to(folder).as_posix() for path in found)


def find_subjects(folder: Path, template: str, run: str) -> dict[str, list[str]]:
    """Files of one run, by subject, that fit a template with ``*`` and ``?``; relative to a folder."""
    filled = template.replace("{run}", run)
    pattern = re.escape(filled).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    first, *others = pattern.split(re.escape("{subject}"))
    matches = re.compile("(?P<subject>[^/]+?)".join([first, "(?P=subject)".join(others)]))
    found: dict[str, list[str]] = {}
    for path in sorted(glob.glob(filled.replace("{subject}", "*"), root_dir=folder)):
        match = matches.fullmatch(Path(path).as_posix())
        if match:
            found.setdefault(match["subject"], []).append(path)
    return found


def read_names(paths: Sequence[str]) -> list[BoldName]:
    """Subjects and runs of BOLD files, from their names alone.

    BIDS names (``sub-``, ``ses-``, ``task-``, ``run-``) are read as such, with the shortest part
    that tells the runs apart as the run. Others are read by HCP's folders, as ``<subject>_<run>`` where
    every subject then has every run, or else as ``<subject>/<run>``.

    Returns
    -------
    list of BoldName
        One for each path. Empty if no reading fits all paths, or it would call two files the same.
    """
    bids = all(_BIDS_SUBJECT.search(path) for path in paths)
    readings = [
        reading for reader in (_BIDS_READERS if bids else _PLAIN_READERS) if (reading := reader(paths))
    ]
    distinct = [
        reading
        for reading in readings
        if len({(name.template, name.subject, name.run) for name in reading}) == len(paths)
    ]
    # The true reading needs fewest templates; the first of equals is the one with the shortest run names.
    return min(distinct, key=lambda reading: len({name.template for name in reading}), default=[])


def commonest_template(names: Sequence[BoldName]) -> str:
    """The template of most files."""
    return Counter(name.template for name in names).most_common(1)[0][0]


def pair_movies(runs: Sequence[str], movies: Sequence[str]) -> dict[str, str]:
    """Movie of each run, where the names leave no doubt.

    A movie fits a run if its name holds the run's, words and numbers compared one by one
    (``run-01`` fits ``movie_1.mp4``); one movie and one run fit whatever their names.

    Returns
    -------
    dict of str to str
        Path by run; a run that fits no movie, or several, or shares one, is absent.
    """
    if len(runs) == len(movies) == 1:
        return {runs[0]: movies[0]}
    fits = {run: [movie for movie in movies if _holds(_words(Path(movie).stem), _words(run))] for run in runs}
    claims = Counter(movie for found in fits.values() for movie in found)
    return {run: found[0] for run, found in fits.items() if len(found) == 1 and claims[found[0]] == 1}


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts run 2 before run 10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.findall(r"[0-9]+|[^0-9]+", name)]


Reader = Callable[[Sequence[str]], list[BoldName]]

_BIDS_SUBJECT = re.compile(r"(?:^|[/_])sub-(?P<subject>[A-Za-z0-9]+)")
_BIDS_SESSION = re.compile(r"(?:^|[/_])ses-([A-Za-z0-9]+)")


def _bids_reader(run_pattern: str) -> Reader:
    """Reader of BIDS names that takes one part of the file's name as the run."""

    def read(paths: Sequence[str]) -> list[BoldName]:
        several = len({tuple(_BIDS_SESSION.findall(path)) for path in paths}) > 1
        names = []
        for path in paths:
            subjects = list(_BIDS_SUBJECT.finditer(path))
            run = re.search(rf"(?<=_){run_pattern}(?=[_.][^/]*$)", path)
            if run is None or len({match["subject"] for match in subjects}) > 1:
                return []
            parts = [(*match.span("subject"), "{subject}") for match in subjects]
            parts.append((*run.span("run"), "{run}"))
            for session in _BIDS_SESSION.finditer(path) if several else ():
                if session.end() <= run.start("run"):  # one inside the run's name is part of it
                    parts.append((*session.span(1), "*"))
            names.append(BoldName(path, subjects[0]["subject"], run["run"], _template(path, parts)))
        return names

    return read


_BIDS_READERS = tuple(
    _bids_reader(pattern)
    for pattern in (
        r"run-(?P<run>[A-Za-z0-9]+)",
        r"task-(?P<run>[A-Za-z0-9]+)",
        r"(?P<run>task-[A-Za-z0-9]+(?:_run-[A-Za-z0-9]+)?)",
        r"(?P<run>ses-[A-Za-z0-9]+_task-[A-Za-z0-9]+(?:_run-[A-Za-z0-9]+)?)",
    )
)


def _plain_reader(pattern: str, every_run: bool) -> Reader:
    """Reader of other names; ``every_run`` refuses a reading in which a subject lacks a run."""

    def read(paths: Sequence[str]) -> list[BoldName]:
        names = []
        for path in paths:
            match = re.fullmatch(rf"(?:.*/)?{pattern}(?:\.[^/]*)", path)
            if match is None:
                return []
            parts = [(*match.span("subject"), "{subject}"), (*match.span("run"), "{run}")]
            names.append(BoldName(path, match["subject"], match["run"], _template(path, parts)))
        subjects, runs = {name.subject for name in names}, {name.run for name in names}
        if every_run and (len(subjects) < 2 or len(subjects) * len(runs) != len(names)):
            return []
        return names

    return read


def _hcp_reader(paths: Sequence[str]) -> list[BoldName]:
    """Reader of HCP's layout: ``<subject>/MNINonLinear/Results/<run>/<run>_...``."""
    names = []
    for path in paths:
        match = re.fullmatch(
            r"(?:.*/)?(?P<subject>[^/]+)/MNINonLinear/Results/(?P<run>[^/]+)/(?P<again>(?P=run))_[^/]+", path
        )
        if match is None:
            return []
        parts = [(*match.span("subject"), "{subject}")]
        parts += [(*match.span(group), "{run}") for group in ("run", "again")]
        names.append(BoldName(path, match["subject"], match["run"], _template(path, parts)))
    return names


_PLAIN_READERS = (
    _hcp_reader,
    _plain_reader(r"(?P<subject>[^/_.]+)_(?P<run>[^/.]+)", every_run=True),
    _plain_reader(r"(?P<subject>[^/.]+)_(?P<run>[^/_.]+)", every_run=True),
    _plain_reader(r"(?P<subject>[^/]+)/(?P<run>[^/.]+)", every_run=False),
)


def _template(path: str, parts: list[tuple[int, int, str]]) -> str:
    """A path with some parts replaced; the rest is escaped, for templates may hold globs."""
    pieces, position = [], 0
    for start, stop, replacement in sorted(parts):
        pieces += [glob.escape(path[position:start]), replacement]
        position = stop
    return "".join([*pieces, glob.escape(path[position:])])


def _words(name: str) -> list[str]:
    """Words and numbers of a name; leading zeros are dropped."""
    return [
        word.lstrip("0") or "0" if word.isdigit() else word
        for word in re.findall(r"\d+|[a-z]+", name.lower())
    ]


def _holds(words: list[str], wanted: list[str]) -> bool:
    wanted = [word for word in wanted if word not in ("run", "task", "ses")]
    starts = range(len(words) - len(wanted) + 1)
    return bool(wanted) and any(words[start : start + len(wanted)] == wanted for start in starts)

"""New study files: what of a study lies on disk, in HCP's layout or in any other."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from hpcenc.storage import hcp7t
from hpcenc.storage.bold import CIFTI_SUFFIX, PLAIN_SUFFIX, read_axes, read_header
from hpcenc.storage.discover import (
    MOVIE_SUFFIXES,
    BoldName,
    commonest_template,
    find_files,
    find_subjects,
    natural_key,
    pair_movies,
    read_names,
)
from hpcenc.storage.draft import NO_CHOICES, Choices, FoundRun, FoundStudy, StudyDraft, draft_study
from hpcenc.storage.errors import BoldError
from hpcenc.storage.study import MAIN_STIMULUS


def hcp7t_study(
    bold_root: Path,
    movie_root: Path,
    timing_csv: Path | None = None,
    v1_subjects: Collection[str] | None = None,
    choices: Choices = NO_CHOICES,
) -> StudyDraft:
    """Study file of the HCP 7T movie data.

    Parameters
    ----------
    bold_root : Path
        Folder of the subjects' folders, or of flat copies of their ``.dtseries.nii`` files.
    movie_root : Path
        Folder that holds the unpacked ``movie_stimulus.zip``.
    timing_csv : Path, optional
        HCP's official clip timing, which replaces the built-in table.
    v1_subjects : collection of str, optional
        Subjects who saw the first version of the movies; others may be among them. Without it everyone is
        given the second one, and a mark says so.
    choices : Choices

    Raises
    ------
    StudyError
        If the timing table cannot be read.
    """
    bold_root, movie_root = _absolute(bold_root), _absolute(movie_root)
    template, files, others = _hcp_bold(bold_root)
    run_names = list(files)
    subjects = tuple(sorted({subject for found in files.values() for subject in found}))
    bold_problems = [] if subjects else [f"no movie run of HCP's names below {bold_root}; correct the path"]
    bold_problems += others
    for run, found in files.items():
        several = sorted(subject for subject, paths in found.items() if len(paths) > 1)
        if several:
            bold_problems.append(f"several files of {run} in {', '.join(several)}; narrow the template down")
    saw_v1 = [subject for subject in subjects if subject in (v1_subjects or ())]
    versions = ("v1", "v2") if saw_v1 else ("v2",)
    return draft_study(
        FoundStudy(
            name="hcp7t",
            tr_s=hcp7t.TR_S,
            runs=_hcp_runs(movie_root, timing_csv, versions),
            subjects=subjects,
            bold_path=f"{glob.escape(str(bold_root))}/{template}",
            runs_of={
                subject: tuple(run for run in run_names if subject in files[run])
                for subject in subjects
                if any(subject not in files[run] for run in run_names)
            },
            stimulus="v2",
            stimulus_of=dict.fromkeys(saw_v1, "v1"),
            stimulus_note=hcp7t.VERSIONS_NOTE,
            stimulus_problems=(hcp7t.VERSIONS_PROBLEM,) if v1_subjects is None else (),
            bold_problems=tuple(bold_problems),
        ),
        choices,
    )


def other_study(folder: Path, movie_root: Path | None = None, choices: Choices = NO_CHOICES) -> StudyDraft:
    """Study file of a folder of movies and BOLD in any layout.

    Movies and BOLD are found by the ends of their names, subjects and runs by the names themselves,
    volumes and TR by the headers. CIFTI files are taken before plain arrays, which may be features.

    Parameters
    ----------
    folder : Path
        Folder of the BOLD files.
    movie_root : Path, optional
        Folder of the movies, if another.
    choices : Choices
    """
    folder = _absolute(folder)
    movie_root = folder if movie_root is None else _absolute(movie_root)
    movies = find_files(movie_root, MOVIE_SUFFIXES)
    paths = find_files(folder, (CIFTI_SUFFIX,)) or find_files(folder, (PLAIN_SUFFIX,))
    names = read_names(paths) if paths else []
    template = commonest_template(names) if names else None
    used = [name for name in names if name.template == template]
    run_names = sorted({name.run for name in used}, key=natural_key) or [Path(movie).stem for movie in movies]
    subjects = tuple(sorted({name.subject for name in used}))
    runs_of = {
        subject: tuple(sorted(name.run for name in used if name.subject == subject)) for subject in subjects
    }
    tr_s, tr_problems = _tr(folder, used)
    return draft_study(
        FoundStudy(
            name=folder.name or "study",
            tr_s=tr_s,
            runs=_other_runs(folder, run_names, used, movie_root, movies),
            subjects=subjects,
            bold_path=None if template is None else f"{glob.escape(str(folder))}/{template}",
            runs_of={subject: runs for subject, runs in runs_of.items() if len(runs) < len(run_names)},
            tr_problems=tr_problems,
            bold_problems=_bold_problems(folder, paths, names, used),
        ),
        choices,
    )


def _hcp_bold(root: Path) -> tuple[str, dict[str, dict[str, list[str]]], list[str]]:
    """The template that finds most subjects with all runs, or else with any, the first of equals; its files
    by run and subject; and a line on each other one that finds more subjects beside these."""
    files = {
        template: {run.name: find_subjects(root, template, run.name) for run in hcp7t.runs()}
        for template in hcp7t.BOLD_TEMPLATES
    }
    of_runs = {template: [set(each) for each in found.values()] for template, found in files.items()}
    anyone = {template: set[str]().union(*subjects) for template, subjects in of_runs.items()}
    best = max(files, key=lambda each: (len(set.intersection(*of_runs[each])), len(anyone[each])))
    others = [
        f"{len(left)} more of other files, {other}, such as subject {min(left)}; left out"
        for other, subjects in anyone.items()
        if (left := subjects - anyone[best])
    ]
    return best, files[best], others


def _hcp_runs(root: Path, timing_csv: Path | None, versions: Sequence[str]) -> tuple[FoundRun, ...]:
    by_name = {Path(path).name: path for path in find_files(root, (".mp4",))}
    found = []
    for run in hcp7t.runs(timing_csv):
        movies, problems = {}, []
        for version, expected in run.movies().items():
            path = by_name.get(Path(expected).name)
            if path is not None or version in versions:
                movies[version] = str(root / (path or expected))
            if path is None and version in versions:
                problems.append(f"no {Path(expected).name} below {root}; correct the path")
        found.append(FoundRun(run.name, run.n_trs, movies, run.segments, tuple(problems)))
    return tuple(found)


def _other_runs(
    folder: Path,
    run_names: Sequence[str],
    names: Sequence[BoldName],
    movie_root: Path,
    movies: Sequence[str],
) -> tuple[FoundRun, ...]:
    paired = pair_movies(run_names, movies)
    left = [movie for movie in movies if movie not in paired.values()]
    found = []
    for run in run_names:
        lengths: dict[int, list[str]] = {}
        problems = []
        for name in names:
            if name.run == run:
                try:
                    lengths.setdefault(read_header(folder / name.path).n_trs, []).append(name.subject)
                except BoldError as error:
                    problems.append(str(error))
        if len(lengths) != 1:
            seen = "; ".join(f"{n_trs} in {', '.join(who)}" for n_trs, who in sorted(lengths.items()))
            problems.append(
                f"n_trs: expected one number of volumes for all subjects, found {seen or 'no BOLD'}"
            )
        if run not in paired:
            choice = ", ".join(left) or "none is left"
            problems.append(f"movie: no movie's name fits this run alone; choose from: {choice}")
        shown = {MAIN_STIMULUS: str(movie_root / paired[run])} if run in paired else {}
        found.append(
            FoundRun(run, next(iter(lengths)) if len(lengths) == 1 else None, shown, (), tuple(problems))
        )
    return tuple(found)


def _tr(folder: Path, names: Sequence[BoldName]) -> tuple[float | None, tuple[str, ...]]:
    """TR that one file of each run says, in seconds, and what is wrong with it."""
    found: dict[float, list[str]] = {}
    for run in sorted({name.run for name in names}):
        path = next(name.path for name in names if name.run == run)
        try:
            _, tr_s = read_axes(folder / path)
        except BoldError:
            continue  # said where its volumes are counted
        if tr_s is not None:
            found.setdefault(round(tr_s, 6), []).append(run)
    if len(found) == 1 and 0 < next(iter(found)) < 20:
        return next(iter(found)), ()
    seen = "; ".join(f"{tr_s:g} in {', '.join(runs)}" for tr_s, runs in sorted(found.items()))
    return None, (f"tr_s: the repetition time in seconds; found {seen or 'no file that says it'}",)


def _bold_problems(
    folder: Path, paths: Sequence[str], names: Sequence[BoldName], used: Sequence[BoldName]
) -> tuple[str, ...]:
    if not paths:
        return (f"no {CIFTI_SUFFIX} or {PLAIN_SUFFIX} file below {folder}; say where BOLD lies",)
    if not names:
        return (f"the names do not tell subjects from runs, as in {paths[0]}; put {{subject}} and {{run}}",)
    problems = []
    if len({name.subject for name in used}) == 1:
        problems.append(
            f"one subject, {used[0].subject!r}, was read from the names; check it, then delete this line"
        )
    others = sorted(set(names) - set(used), key=lambda name: name.path)
    if others:
        problems.append(
            f"{len(others)} files do not fit this path, as {others[0].path}; check it, then delete this line"
        )
    return tuple(problems)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))

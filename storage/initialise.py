"""First study files: written from what lies on disk, with a mark where something is missing."""

from __future__ import annotations

import glob
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
from hpcenc.storage.errors import BoldError, StudyError
from hpcenc.storage.study import MAIN_STIMULUS, Fit, Models, Segment, parse_study

MARK = "# FIX: "
"""Begins a comment that says what could not be found, at the place where it belongs."""


PAPER_LINE = 'preset = "paper"  # named in the report; what it stands for is written out below'

_DEFAULT_SEGMENTS = (
    "# Runs in the order of scanning. Segments are seconds of the run: `rest` is not fitted, `repeat` is",
    "# a clip that other runs show too (`group` names it), which is kept out of training.",
)
_PAPER_SEGMENTS = (
    "# Runs in the order of scanning. Segments are seconds of the run: `rest`, and `repeat`, a clip that",
    "# other runs show too (`group` names it). Both are kept here, in training and test: see [fit].",
)

PAPER_ONLY = 'only = ["average"]  # what the reference study fitted; leave it out to fit each subject as well'


@dataclass(frozen=True)
class StudyDraft:
    """Text of a study file, not yet complete where something is missing."""

    text: str

    @property
    def missing(self) -> tuple[str, ...]:
        """What could not be found; a draft without any is a valid study file."""
        lines = (line.strip() for line in self.text.splitlines())
        return tuple(line.removeprefix(MARK) for line in lines if line.startswith(MARK))


@dataclass(frozen=True)
class FoundRun:
    """What was found of one run."""

    name: str
    n_trs: int | None
    movies: dict[str, str]
    """Movie by stimulus version."""
    segments: tuple[Segment, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """What the user asks of a new study, whatever is found.

    Attributes
    ----------
    preset : {"default", "paper"}
        ``paper``: the reference study as published.
    window : tuple of (int, int), optional
        First and last delay of the FIR window in TRs, in place of the preset's.
    """

    preset: Literal["default", "paper"] = "default"
    window: tuple[int, int] | None = None

    @property
    def delays(self) -> tuple[int, ...]:
        """Delays of the FIR window, in TRs."""
        first, last = self.window or ((4, 13) if self.preset == "paper" else (1, 10))
        return tuple(range(first, last + 1))


def parse_choices(preset: str, window: str | None) -> Choices:
    """Choices from the command line.

    Raises
    ------
    StudyError
        If the preset is unknown, or the window is not two delays such as ``0-9``.
    """
    if preset not in ("default", "paper"):
        raise StudyError(f"--preset: expected default or paper, found {preset!r}")
    span = None
    if window is not None:
        matched = re.fullmatch(r"(\d{1,3})-(\d{1,3})", window.strip())
        span = (int(matched[1]), int(matched[2])) if matched else None
        if span is None or span[0] > span[1]:
            raise StudyError(
                f"--window: expected the first and last delay in TRs, such as 0-9, found {window!r}"
            )
    return Choices("paper" if preset == "paper" else "default", span)


@dataclass(frozen=True)
class FoundStudy:
    """What was found of a study."""

    name: str
    tr_s: float | None
    runs: tuple[FoundRun, ...]
    subjects: tuple[str, ...]
    bold_path: str | None
    runs_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stimulus: str = MAIN_STIMULUS
    stimulus_of: dict[str, str] = field(default_factory=dict)
    stimulus_note: str = ""
    stimulus_problems: tuple[str, ...] = ()
    """What is in doubt of the versions; the study is whole all the same."""
    tr_problems: tuple[str, ...] = ()
    bold_problems: tuple[str, ...] = ()


def hcp7t_study(
    bold_root: Path,
    movie_root: Path,
    timing_csv: Path | None = None,
    v1_subjects: Collection[str] | None = None,
    choices: Choices = Choices(),
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
    return _draft(
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


def other_study(folder: Path, movie_root: Path | None = None, choices: Choices = Choices()) -> StudyDraft:
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
    return _draft(
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


def _draft(found: FoundStudy, choices: Choices) -> StudyDraft:
    """The study file of what was found; what the study schema refuses of it is marked too."""
    draft = StudyDraft(_text(found, choices))
    if set(draft.missing) - set(found.stimulus_problems):
        return draft
    try:
        parse_study(tomllib.loads(draft.text), folder=Path())
    except StudyError as error:
        return StudyDraft("\n".join([*_marks(error.problems), draft.text]))
    return draft


def _text(found: FoundStudy, choices: Choices) -> str:
    lines = [
        "# Study of hpcenc, written by `hpcenc init`. Relative paths start from this file's folder.",
        "# Row k of every array is the stimulus in [k, k + 1) TRs from the run's first volume, and volume k.",
        f"name = {_quote(found.name)}",
        *_marks(found.tr_problems),
        f"tr_s = {found.tr_s!r}  # repetition time in seconds" if found.tr_s else "# tr_s = 1.0",
        f"store = {_quote(f'results/{found.name}.zarr')}",
        *([PAPER_LINE] if choices.preset == "paper" else []),
        "",
        "[subjects]",
        *([PAPER_ONLY] if choices.preset == "paper" else []),
        *([] if found.subjects else [*_marks(["ids: no subject was found; name them"]), "# ids = []"]),
        *(_array("ids", [_quote(subject) for subject in found.subjects], 10) if found.subjects else []),
        *(f"# {line}" for line in textwrap.wrap(found.stimulus_note, 100)),
        *_marks(found.stimulus_problems),
        *([f"stimulus = {_quote(found.stimulus)}"] if found.stimulus != MAIN_STIMULUS else []),
        *_table("stimulus_of", {subject: _quote(version) for subject, version in found.stimulus_of.items()}),
        *_table("runs_of", {subject: _inline(runs) for subject, runs in found.runs_of.items()}),
        "",
        "[bold]",
        "# {subject} and {run} stand for their names; globs may be used, and must fit one file each.",
        *_marks(found.bold_problems),
        f"path = {_quote(found.bold_path)}"
        if found.bold_path
        else '# path = "bold/{subject}/{run}.dtseries.nii"',
        'grayordinates = "cortex"  # or "all"',
        "",
        *(_PAPER_SEGMENTS if choices.preset == "paper" else _DEFAULT_SEGMENTS),
    ]
    if not found.runs:
        lines += [*_marks(["runs: neither BOLD nor movies were found; describe each run"]), "# [[runs]]"]
    for run in found.runs:
        lines += ["[[runs]]", f"name = {_quote(run.name)}", *_marks(run.problems)]
        lines += [f"n_trs = {run.n_trs}" if run.n_trs else "# n_trs = 300", *_movie_lines(run.movies)]
        if run.segments:
            lines += _array("segments", [_segment(segment) for segment in run.segments], 1)
        lines.append("")
    settings = _paper_settings if choices.preset == "paper" else _default_settings
    return "\n".join([*lines, *settings(found, choices), ""])


def _default_settings(found: FoundStudy, choices: Choices) -> list[str]:
    fit = Fit()
    several = len(found.subjects) > 1
    return [
        "[models]",
        f"weights_dir = {_quote(str(Models().weights_dir))}  # folder of the checkpoints",
        "",
        "[fit]",
        f"delays = {list(choices.delays)}  # TRs",
        f'outer = {_quote(fit.outer)}  # the last run is the test run; "rotate" makes each one it once',
        f'weights = {_quote(fit.weights)}  # or "dual", "none"',
        "",
        *(["[average]  # fits the mean over subjects too, as one more subject", ""] if several else []),
        "# [sweeps]  # each voxel chooses among these inside the training runs; without weights",
        "# delays = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # single delays in TRs: about four more fits' time",
        "# layers = true  # every layer of each model: a fit's time for each",
        "# bands = true  # sums of two with a penalty each: nine fits' time",
        *(['# subjects = ["average"]  # of whom; all if left out'] if several else []),
    ]


def _paper_settings(found: FoundStudy, choices: Choices) -> list[str]:
    """The reference study as published; where it departs from the defaults, its report says what that
    means."""
    return [
        "[models]",
        f"weights_dir = {_quote(str(Models().weights_dir))}  # folder of the checkpoints",
        'beats.checkpoint = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"  # fine-tuned on AudioSet',
        "",
        "[fit]",
        f"delays = {list(choices.delays)}  # TRs",
        *_paper_split(found),
        'alpha = "shared"  # one for all vertices, by their mean score in the inner folds; or a number',
        "min_fold_trs = 300  # the part of a run before the cut joins the run before in the inner folds",
        'zscore_bold = "movie"',
        'zscore_features = "movie"',
        'rest = "keep"  # no rows are cut',
        'repeat_train = "keep"  # so that the repeated clip stands in training and in test',
        'weights = "primal"',
        "",
        "[average]",
        'bold = "raw"  # averaged, then z-scored over the movie',
        "",
        "[sweeps]",
        "delays = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "layers = true",
        "bands = true",
        'subjects = ["average"]',
    ]


def _paper_split(found: FoundStudy) -> list[str]:
    """Where training ends: known once the TR and the length of every run are."""
    n_trs = [run.n_trs for run in found.runs if run.n_trs]
    if found.tr_s is None or not n_trs or len(n_trs) < len(found.runs):
        missing = "split_s: the seconds that train, four fifths of all runs; needs tr_s and every n_trs"
        return [*_marks([missing]), "# split_s = 2924"]
    split_s = round(0.8 * sum(n_trs)) * found.tr_s
    return [f"split_s = {split_s:.10g}  # the first four fifths train, the rest tests"]


def _movie_lines(movies: dict[str, str]) -> list[str]:
    if not movies:
        return ['# movie = "movies/run.mp4"']
    if set(movies) == {MAIN_STIMULUS}:
        return [f"movie = {_quote(movies[MAIN_STIMULUS])}"]
    return [f"movie.{version} = {_quote(path)}" for version, path in movies.items()]


def _segment(segment: Segment) -> str:
    parts = [
        f"kind = {_quote(segment.kind)}",
        f"start_s = {segment.start_s:.10g}",
        f"end_s = {segment.end_s:.10g}",
    ]
    parts += [f"name = {_quote(segment.name)}"] if segment.name else []
    parts += [f"group = {_quote(segment.group)}"] if segment.group else []
    return f"{{ {', '.join(parts)} }}"


def _array(key: str, values: Sequence[str], per_line: int) -> list[str]:
    rows = [", ".join(values[i : i + per_line]) for i in range(0, len(values), per_line)]
    return [f"{key} = [", *(f"    {row}," for row in rows), "]"]


def _table(key: str, values: dict[str, str]) -> list[str]:
    return [f"{key}.{_quote(name)} = {value}" for name, value in values.items()]


def _inline(values: Sequence[str]) -> str:
    return f"[{', '.join(_quote(value) for value in values)}]"


def _quote(text: str) -> str:
    """TOML basic string: JSON's escapes are TOML's too, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _marks(problems: Sequence[str]) -> list[str]:
    """Marks of problems; control characters of file names may not stand in a comment."""
    return [MARK + "".join(sign if sign.isprintable() else "?" for sign in problem) for problem in problems]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))

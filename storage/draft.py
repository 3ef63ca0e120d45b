"""The text of a new study file, from what was found of the study and what the user asks of it.

What could not be found is marked in the text, at the place where it belongs.
"""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import MAIN_STIMULUS, Fit, Models, Segment, parse_study

MARK = "# FIX: "
"""Begins a comment that says what could not be found, at the place where it belongs."""

MIN_RUNS = 3
"""One to test, and two to choose alpha by leaving one out."""

PAPER_LINE = 'preset = "paper"  # named in the report; what it stands for is written out below'

_DEFAULT_SEGMENTS = (
    "# Runs in the order of scanning. Segments are seconds of the run: `rest` is not fitted, `repeat` is",
    "# a clip that other runs show too (`group` names it), which is kept out of training.",
)
_PAPER_SEGMENTS = (
    "# Runs in the order of scanning. Segments are seconds of the run: `rest`, and `repeat`, a clip that",
    "# other runs show too (`group` names it). Both are kept here, in training and test: see [fit].",
)

PAPER_SETS = (
    "beats",
    "clip",
    "cavmae",
    "beats+clip",
    "cavmae-audio",
    "cavmae-visual",
    "cavmae-concat",
    "beats-tags",
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


NO_CHOICES = Choices()
"""A study with nothing asked for: the default preset."""


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


def draft_study(found: FoundStudy, choices: Choices) -> StudyDraft:
    """The study file of what was found; what the study schema refuses of it is marked too.

    Parameters
    ----------
    found : FoundStudy
    choices : Choices
    """
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
    if 0 < len(found.runs) < MIN_RUNS:
        lines += _marks(
            [f"runs: {MIN_RUNS} at least, one to test and two to choose alpha; found {len(found.runs)}"]
        )
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
        "# What `--models all` stands for: the main table, CAV-MAE's branches, and AudioSet's tags.",
        *_array("sets", [_quote(name) for name in PAPER_SETS], 4),
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
        "tags = 5  # TRs",
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

"""The movie runs of the HCP S1200 7T data: lengths, clips, files.

Four runs of 1 s TRs, each with 20 s of rest before, between and after its clips; the last clip of
each run is the same 83 s in all four. Ends of runs 1 and 4 are from HCP's own WordNet labels, second
by second; the inner bounds from two published analyses that agree within 2 s. HCP's official timing
table (``HCP_7T_Movie_Clip_Timing.csv``, `read_clip_timing`) is finer and should replace them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import Run, Segment

TR_S = 1.0
VALIDATION = "validation"
"""Repeat group of the clip that ends each run."""

VERSIONS_NOTE = (
    "The 147 subjects scanned before 2014-08-22 saw version v1. HCP's wiki lists them (page '7T Movie "
    "watching task clip info, timing, versions shown per individual subject'): name yours in stimulus_of. "
    "The clip times are those of v2. Most papers use v2 for all."
)

VERSIONS_PROBLEM = (
    "147 subjects scanned before 2014-08-22 saw v1, here everyone is given v2: name them below as "
    'stimulus_of."ID" = "v1" (or init with --v1-subjects FILE, one id a line), then delete this line'
)

_CLIPS: dict[str, tuple[int, tuple[tuple[str, float, float], ...]]] = {
    "MOVIE1": (
        921,
        (
            ("two men", 20, 264),
            ("bridgeville", 284, 505),
            ("pockets", 525, 714),
            ("overcome", 734, 798),
            (VALIDATION, 818, 901),
        ),
    ),
    "MOVIE2": (
        918,
        (
            ("inception", 20, 247),
            ("social network", 267, 525),
            ("ocean's eleven", 545, 795),
            (VALIDATION, 815, 898),
        ),
    ),
    "MOVIE3": (
        915,
        (
            ("flower", 20, 201),
            ("hotel", 221, 405),
            ("garden", 425, 629),
            ("dreary", 649, 792),
            (VALIDATION, 812, 895),
        ),
    ),
    "MOVIE4": (
        901,
        (
            ("home alone", 20, 252),
            ("erin brockovich", 272, 502),
            ("star wars", 522, 778),
            (VALIDATION, 798, 881),
        ),
    ),
}
_STEMS = {
    "MOVIE1": "7T_MOVIE1_CC1",
    "MOVIE2": "7T_MOVIE2_HO1",
    "MOVIE3": "7T_MOVIE3_CC2",
    "MOVIE4": "7T_MOVIE4_HO2",
}

BOLD_TEMPLATES = tuple(
    f"{folder}tfMRI_{{run}}_7T_??_{suffix}.dtseries.nii"
    for suffix in (
        "Atlas_MSMAll_hp2000_clean",
        "Atlas_MSMAll_hp2000_clean_rclean_tclean",
        "Atlas_hp2000_clean",
        "Atlas_1.6mm_MSMAll_hp2000_clean",
        "Atlas_1.6mm_hp2000_clean",
    )
    for folder in (
        "{subject}/MNINonLinear/Results/tfMRI_{run}_7T_??/",
        "{subject}/{subject}_",
        "{subject}/",
        "{subject}_",
    )
)
"""Where BOLD may lie below a folder, the preferred first: HCP's own layout and flat copies, aligned by
MSMAll and cleaned, 2 mm before 1.6 mm. ``??`` is the phase encoding, which differs by run (AP or PA)."""


def runs(timing_csv: Path | None = None) -> tuple[Run, ...]:
    """The four runs with their segments and the files of both stimulus versions.

    Parameters
    ----------
    timing_csv : Path, optional
        HCP's official timing table, which replaces the built-in one.

    Raises
    ------
    StudyError
        If the table cannot be read.
    """
    segments = {name: _segments(clips, n_trs) for name, (n_trs, clips) in _CLIPS.items()}
    if timing_csv is not None:
        segments = read_clip_timing(timing_csv)
    return tuple(
        Run(
            name=name,
            n_trs=n_trs,
            movie={
                "v1": f"Pre_20140821_version/{_STEMS[name]}.mp4",
                "v2": f"Post_20140821_version/{_STEMS[name]}_v2.mp4",
            },
            segments=segments[name],
        )
        for name, (n_trs, _) in _CLIPS.items()
    )


def read_subjects(path: Path) -> tuple[str, ...]:
    """Subject ids of a text file, one a line; empty lines are passed over.

    Raises
    ------
    StudyError
        If the file cannot be read, or a line is not one id.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as a list of subjects: {error}") from error
    subjects = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    wrong = [
        f"{path}: line {number}: expected one subject id, found {subject!r}"
        for number, subject in subjects.items()
        if not re.fullmatch(r"\w+", subject)
    ]
    if wrong:
        raise StudyError(wrong)
    return tuple(subjects.values())


def read_clip_timing(path: Path) -> dict[str, tuple[Segment, ...]]:
    """Segments of each run from HCP's official timing table.

    The table has bare carriage returns at its lines' ends and one section per run, headed by the
    movie's name; its columns are block, start, end and duration in seconds of the run. Block 0 is
    rest, block N.M clip M of run N; the last clip of each run is the repeated one.

    Raises
    ------
    StudyError
        If the file cannot be read, a run or a number is missing, or the last clips differ in length.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as HCP's clip timing: {error}") from error
    rows: dict[str, list[tuple[str, float, float]]] = {name: [] for name in _CLIPS}
    run = None
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.split(",")]
        heading = re.match(r"7T_(MOVIE\d)", cells[0])
        if heading:
            run = heading[1]
        elif re.fullmatch(r"\d+(\.\d+)?", cells[0]):
            try:
                rows[run or ""].append((cells[0], float(cells[1]), float(cells[2])))
            except (KeyError, IndexError, ValueError):
                raise StudyError(
                    f"{path}: line {number}: expected block, start, end below a movie's name, found {line!r}"
                ) from None
    missing = [name for name, found in rows.items() if all(_is_rest(block) for block, _, _ in found)]
    if missing:
        raise StudyError(f"{path}: expected clips of {', '.join(_CLIPS)}; found none of {', '.join(missing)}")
    try:
        segments = {name: _timed_segments(name, found) for name, found in rows.items()}
    except ValidationError as error:
        raise StudyError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    lengths = [
        segment.end_s - segment.start_s for run in segments.values() for segment in run if segment.group
    ]
    if max(lengths) - min(lengths) > TR_S:
        raise StudyError(
            f"{path}: expected the same clip at the end of each run, found lengths of "
            f"{', '.join(f'{length:g}' for length in lengths)} s"
        )
    return segments


def _segments(clips: tuple[tuple[str, float, float], ...], n_trs: int) -> tuple[Segment, ...]:
    """Clips, and the rests around them."""
    edges = [0.0, *(edge for _, *bounds in clips for edge in bounds), n_trs * TR_S]
    rests = [Segment(kind="rest", start_s=start, end_s=end) for start, end in list(pairwise(edges))[::2]]
    shown = [_clip(name, start, end) for name, start, end in clips]
    return tuple(sorted([*rests, *shown], key=lambda segment: segment.start_s))


def _timed_segments(run: str, rows: list[tuple[str, float, float]]) -> tuple[Segment, ...]:
    """Segments of one section of the official table; clips take their names from ours, by order."""
    n_clips = sum(not _is_rest(block) for block, _, _ in rows)
    known = [name for name, _, _ in _CLIPS[run][1]]
    names = known if len(known) == n_clips else [*(f"clip {i + 1}" for i in range(n_clips - 1)), VALIDATION]
    of_clips = iter(names)
    segments = []
    for block, start, end in sorted(rows, key=lambda row: row[1]):
        if _is_rest(block):
            segments.append(Segment(kind="rest", start_s=start, end_s=end))
        else:
            segments.append(_clip(next(of_clips), start, end))
    return tuple(segments)


def _clip(name: str, start: float, end: float) -> Segment:
    if name == VALIDATION:
        return Segment(kind="repeat", start_s=start, end_s=end, name=name, group=VALIDATION)
    return Segment(kind="clip", start_s=start, end_s=end, name=name)


def _is_rest(block: str) -> bool:
    return float(block) == 0

"""Write the demo study: movies, BOLD of every subject, what was planted, and the study file."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.dtseries import write_dtseries
from hpcenc.storage.files import write_atomically
from hpcenc.storage.geometry import grayordinates_axis
from hpcenc.storage.study import Segment
from hpcenc.tasks.demo.planted import Planted, plan_demo, simulate_bold, write_planted
from hpcenc.tasks.demo.rendering import FPS, SAMPLE_RATE, render_frames, render_sound
from hpcenc.tasks.demo.scenes import Script
from hpcenc.tasks.demo.settings import DemoSettings
from hpcenc.tasks.models.catalogue import label
from hpcenc.tasks.movie_writer import write_movie

PHASE_ENCODINGS = ("AP", "PA", "PA", "AP")
"""Of HCP's four movie runs, and again of any further ones."""

BOLD_SUFFIX = "Atlas_MSMAll_hp2000_clean.dtseries.nii"

_BEFORE_THE_STUDY = re.compile(r"movies|planted\.(json|npz)|demo\d+|.+\.partial")
"""What `write_demo` makes before the study file."""


def write_demo(folder: Path, settings: DemoSettings | None = None) -> Path:
    """Write a small HCP-like study whose answer is known.

    Movies are written side by side, one on each core. Memory holds one run of one subject's BOLD, however
    many there are. The same settings give the same movies and BOLD, byte for byte.

    Parameters
    ----------
    folder : Path
        Where to; made if need be. Files of an earlier demo are replaced.
    settings : DemoSettings, optional

    Returns
    -------
    Path
        The study file, ``study.toml``, written last. Beside it: ``movies/``, one folder of BOLD for each
        subject in HCP's layout, and ``planted.npz`` and ``planted.json``, which say what was planted.

    Raises
    ------
    ValueError
        If a run has no room for its scenes; see `plan_segments`.
    """
    settings = settings or DemoSettings()
    planted = plan_demo(settings)
    folder.mkdir(parents=True, exist_ok=True)
    _write_movies(folder, planted)
    write_planted(folder, planted)
    for subject in settings.subjects:
        _write_subject(folder, planted, subject)
    path = folder / "study.toml"
    write_atomically(path, study_text(settings, planted.scripts).encode())
    return path


def is_unfinished_demo(folder: Path) -> bool:
    """Whether a folder holds what `write_demo` began and did not end, and nothing that could be another's."""
    names = {path.name for path in folder.iterdir()}
    return "movies" in names and all(_BEFORE_THE_STUDY.fullmatch(name) for name in names)


def movie_path(run: str) -> Path:
    """Movie of a run, from the study's folder."""
    return Path("movies", f"demo_{run}.mp4")


def bold_path(subject: str, run: str, phase_encoding: str) -> Path:
    """BOLD of one subject in one run, from the study's folder; wildcards stay what they are."""
    scan = f"tfMRI_{run}_7T_{phase_encoding}"
    return Path(subject, "MNINonLinear", "Results", scan, f"{scan}_{BOLD_SUFFIX}")


def study_text(settings: DemoSettings, scripts: tuple[Script, ...]) -> str:
    """Text of the study file."""
    clip = label("clip", "untrained", settings.model_seed)
    runs = "\n".join(
        _run_text(run, n_trs, script)
        for (run, n_trs), script in zip(settings.runs.items(), scripts, strict=True)
    )
    return f"""\
# The demo study of hpcenc, written by `hpcenc demo`.
name = "demo"
note = {_quoted(settings.note)}
simulated = true
tr_s = {_number(settings.tr_s)}
store = "results/demo.zarr"

[bold]
path = {_quoted(bold_path("{subject}", "{run}", "??").as_posix())}

[subjects]
ids = {json.dumps(settings.subjects)}

[models]
weights = "untrained"
seed = {settings.model_seed}
n_layers = {settings.n_layers}
audio_window_s = {_number(settings.audio_window_s)}

[fit]
outer = "rotate"  # every run is the test run once
weights = "dual"
weights_exceptions = [
    {{ feature_set = {_quoted(clip)}, subject = {_quoted(settings.subjects[0])}, weights = "primal" }},
]

{runs}"""


def _run_text(run: str, n_trs: int, script: Script) -> str:
    segments = "\n".join(f"    {_segment_text(segment)}," for segment in script.segments)
    return f"""\
[[runs]]
name = {_quoted(run)}
n_trs = {n_trs}
movie = {_quoted(movie_path(run).as_posix())}
segments = [
{segments}
]
"""


def _segment_text(segment: Segment) -> str:
    group = f", group = {_quoted(segment.group)}" if segment.group else ""
    times = f"start_s = {_number(segment.start_s)}, end_s = {_number(segment.end_s)}"
    return f"{{ kind = {_quoted(segment.kind)}, {times}{group} }}"


def _quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's too."""
    return json.dumps(text)


def _number(value: float) -> str:
    return f"{round(value, 6):.12g}"


def _write_movies(folder: Path, planted: Planted) -> None:
    """Write all movies in threads: most of the time is the encoder's, which leaves Python free."""
    stop = threading.Event()

    def write(run: str, script: Script) -> None:
        path = folder / movie_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = _until(stop, render_frames(script))
        write_movie(path, frames, FPS, render_sound(script), SAMPLE_RATE)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "hpcenc-movie") as pool:
        try:
            list(pool.map(write, planted.settings.runs, planted.scripts))
        except BaseException:
            stop.set()
            raise


def _until(stop: threading.Event, frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Frames, until they are not wanted any more: a user who interrupts waits for no hour of movie."""
    for frame in frames:
        if stop.is_set():
            raise CancelledError
        yield frame


def _write_subject(folder: Path, planted: Planted, subject: str) -> None:
    axis = grayordinates_axis()
    for number, run in enumerate(planted.settings.runs):
        path = folder / bold_path(subject, run, PHASE_ENCODINGS[number % len(PHASE_ENCODINGS)])
        path.parent.mkdir(parents=True, exist_ok=True)
        bold = simulate_bold(planted, subject, run, axis.n_voxels)
        write_dtseries(path, bold.T, axis, planted.settings.tr_s)

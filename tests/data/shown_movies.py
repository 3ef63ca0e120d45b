"""Movies of demo scenes shown to untrained models at a fine rate, and studies planted through what the models
make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from planting import N_VERTICES, Planted, Simulated
from typer.testing import CliRunner

from hpcenc.cli.app import app
from hpcenc.storage.store import Store
from hpcenc.tasks.demo.balance import balance_blocks
from hpcenc.tasks.demo.rendering import FPS, SAMPLE_RATE, render_frames, render_sound
from hpcenc.tasks.demo.scenes import Script, draw_block
from hpcenc.tasks.demo.seeds import Stream, generator
from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.models.loading import load_extractor
from hpcenc.tasks.models.windows import MovieChunk, sample_span
from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.movies import read_audio, read_frames, row_times

RATE_HZ, WINDOW_S = 10, 1.0
N_COURSES = 8
SINGLE = tuple(range(10))
"""Single delays of the studies' curves, in TRs."""
Floats = NDArray[np.floating[Any]]


def write_run(path: Path, number: int, duration_s: float) -> None:
    """A movie of one block of scenes, without rest: nothing goes on and off with it."""
    (block,) = balance_blocks([draw_block(duration_s, 0, (number, 0))], generator(0, Stream.ORDER, number))
    script = Script(duration_s, (), ((0.0, block),))
    write_movie(path, render_frames(script), FPS, render_sound(script), SAMPLE_RATE)


def show_runs(
    folder: Path, runs: Mapping[str, int], models: Sequence[str], n_layers: int
) -> dict[str, list[dict[str, Floats]]]:
    """Write the movies of all runs, of so many TRs of 1 s, and give each model's `fine_features` of them."""
    found: dict[str, list[dict[str, Floats]]] = {model: [] for model in models}
    for number, (run, n_trs) in enumerate(runs.items(), start=1):
        write_run(folder / f"{run}.mp4", number, float(n_trs))
        for model, of_runs in found.items():
            of_runs.append(fine_features(folder / f"{run}.mp4", n_trs, model, n_layers))
    return found


def fine_features(path: Path, n_trs: int, model: str, n_layers: int) -> dict[str, Floats]:
    """All layers of a model at `RATE_HZ`, (n_samples, n_features) each."""
    extractor = load_extractor(
        ModelSpec(model, "untrained", n_layers=n_layers, tr_s=1 / RATE_HZ, window_s=WINDOW_S)
    )
    wave, times, parts = read_audio(path), row_times(n_trs * RATE_HZ, 1 / RATE_HZ), []
    for first in range(0, len(times), 100):
        rows = times[first : first + 100]
        start, stop = sample_span(first, len(rows), 1 / RATE_HZ, WINDOW_S, "causal")
        heard = wave[max(start, 0) : stop]
        padded = np.pad(heard, (max(-start, 0), stop - max(start, 0) - len(heard)))
        chunk = MovieChunk(
            first_row=first,
            n_rows=len(rows),
            tr_s=1 / RATE_HZ,
            frames=read_frames(path, rows.tolist()).frames if extractor.needs_frames else None,
            wave=padded if extractor.needs_audio else None,
            wave_start=start,
        )
        parts.append(extractor.extract(chunk))
    return {layer: np.concatenate([part[layer] for part in parts]).astype(float) for layer in parts[0]}


def joined(of_runs: Sequence[Mapping[str, Floats]], layers: Sequence[str]) -> dict[str, Floats]:
    """Some layers of all runs, one run after the other."""
    return {layer: np.concatenate([of_run[layer] for of_run in of_runs]) for layer in layers}


def standardised(values: Floats) -> Floats:
    scale = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(scale > 0, scale, 1))


def courses_of(layers: Mapping[str, Floats], planted: str, n_leading: int = 16) -> Floats:
    """Courses of variance 1 that one layer has most of, against the others.

    Among its leading components, those of the largest variance in its features over that in the others'.
    """
    scaled = {layer: standardised(values) for layer, values in layers.items()}
    left, singular, _ = np.linalg.svd(scaled[planted], full_matrices=False)
    leading = left[:, :n_leading]
    others = [values for layer, values in scaled.items() if layer != planted]
    shared = sum((leading.T @ other) @ (leading.T @ other).T for other in others)
    _, mixtures = scipy.linalg.eigh(np.diag(singular[:n_leading] ** 2), shared)
    return standardised(leading @ mixtures[:, ::-1][:, :N_COURSES])


def leading_courses(values: Floats, n_courses: int = N_COURSES) -> Floats:
    """The layer's leading components, of variance 1."""
    return standardised(np.linalg.svd(standardised(values), full_matrices=False)[0][:, :n_courses])


def submit_planted(
    folder: Path,
    runs: Mapping[str, int],
    courses: Mapping[str, Floats],
    models: str,
    n_layers: int,
    sweeps: str = "",
) -> Simulated:
    """Write BOLD that answers to courses of all runs, and a study of it, and submit that with the command
    line.

    Parameters
    ----------
    courses : mapping
        For ``vision`` and ``audio``, (n_samples, n_courses) at `RATE_HZ`, one run after the other.
    models : str
        As ``--models`` takes them.
    sweeps : str
        Lines of the study's table of sweeps beside that of single delays.
    """
    (folder / "s1").mkdir()
    edges = np.cumsum([n_trs * RATE_HZ for n_trs in runs.values()])[:-1]
    parts = {space: np.split(values, edges) for space, values in courses.items()}
    rng = np.random.default_rng(0)
    planted = Planted(
        {space: rng.standard_normal((values.shape[1], N_VERTICES)) for space, values in courses.items()},
        RATE_HZ,
        strength=3,
    )
    for place, run in enumerate(runs):
        bold = planted.bold({space: of_runs[place] for space, of_runs in parts.items()}, rng)
        np.save(folder / "s1" / f"{run}.npy", bold.astype(np.float32))
    study = folder / "study.toml"
    tables = "\n".join(
        f'[[runs]]\nname = "{run}"\nn_trs = {n_trs}\nmovie = "{run}.mp4"' for run, n_trs in runs.items()
    )
    study.write_text(f"""\
name = "planted"
simulated = true
tr_s = 1.0
store = "results/study.zarr"
[subjects]
ids = ["s1"]
[bold]
path = "{{subject}}/{{run}}.npy"
[models]
weights = "untrained"
n_layers = {n_layers}
audio_window_s = {WINDOW_S}
[fit]
block = 5000
backend = "numpy"
weights = "none"
[sweeps]
delays = {list(SINGLE)}
{sweeps}
{tables}
""")
    command = ["submit", str(study), "--models", models, "--profile", "serial"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return Simulated(Store(folder / "results" / "study.zarr"), planted)

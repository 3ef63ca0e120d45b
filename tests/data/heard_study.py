"""A small study of sound and of a feature file on parts of a cortex, with all that a report shows of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcenc.storage.dtseries import write_dtseries
from hpcenc.storage.geometry import cortical_axis
from hpcenc.storage.regions import load_regions
from hpcenc.tasks.movie_writer import write_movie

N_TRS = {"A": 66, "B": 50, "C": 64}
MODELS = "beats-tags,beats+lab"
"""Few sets, for each has maps, which take most of the time."""
STUDY = """\
name = "heard"
note = "A study of the tests."
simulated = true
tr_s = 1.0
store = "results/study.zarr"
vertices = ["left {vertex}"]

[[runs]]
name = "A"
n_trs = 66
movie = "A.mp4"
segments = [
    {{ kind = "rest", start_s = 0, end_s = 4 }},
    {{ kind = "repeat", group = "clip", start_s = 41, end_s = 66 }},
]
[[runs]]
name = "B"
n_trs = 50
movie = "B.mp4"
[[runs]]
name = "C"
n_trs = 64
movie = "C.mp4"
segments = [{{ kind = "repeat", group = "clip", start_s = 39, end_s = 64 }}]

[subjects]
ids = ["s1"]
[bold]
path = "{{subject}}_{{run}}.dtseries.nii"
[feature_files.lab]
path = "lab_{{run}}.npy"
[models]
weights = "untrained"
n_layers = 2
audio_window_s = 1.0
[fit]
delays = [1, 2, 3]
n_alphas = 5
block = 5000
backend = "numpy"
[sweeps]
delays = [0, 2, 3]
layers = true
tags = 2
bands = true
[cluster]
threads_per_worker = 1
"""


def write_heard_study(folder: Path) -> Path:
    """Movies of noise whose loudness changes every second, features, BOLD of a subject and the study file.

    Auditory vertices follow the loudness, the others the feature file, each two TRs later; a third of all
    follow nothing.
    """
    rng = np.random.default_rng(0)
    cortex = cortical_axis()
    masks = load_regions(cortex, "glasser-groups", folder).masks
    auditory, visual = masks["early auditory"], masks["primary visual"]
    axis = cortex.take(np.flatnonzero(auditory | visual))
    hears = auditory[auditory | visual]
    mix = rng.standard_normal((3, axis.n_voxels)) * ~hears
    shown = rng.uniform(0.01, 0.3, 25), rng.standard_normal((25, 3))
    for run, n_trs in N_TRS.items():
        loudness, features = rng.uniform(0.01, 0.3, n_trs), rng.standard_normal((n_trs, 3))
        if run != "B":
            loudness[-25:], features[-25:] = shown
        wave = np.repeat(loudness, 16_000) * rng.standard_normal(n_trs * 16_000)
        frames = np.full((n_trs, 48, 64, 3), 90, np.uint8)
        write_movie(folder / f"{run}.mp4", frames, 1, wave.astype(np.float32), 16_000)
        np.save(folder / f"lab_{run}.npy", features.astype(np.float32))
        signal = np.zeros((n_trs, axis.n_voxels))
        signal[2:] = (features @ mix + (loudness[:, None] - 0.15) * 15 * hears)[:-2]
        signal *= np.arange(axis.n_voxels) % 3 < 2
        bold = 100 + signal + rng.standard_normal(signal.shape)
        write_dtseries(folder / f"s1_{run}.dtseries.nii", bold.astype(np.float32), axis, 1.0)
    path = folder / "study.toml"
    path.write_text(STUDY.format(vertex=axis.vertex[hears][0]))
    return path

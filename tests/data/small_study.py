"""A study of feature files that runs from end to end in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

N_TRS = {"A": 50, "B": 45, "C": 40}
N_VOXELS = 5_100  # two blocks of 5,000: the first has two shards, the second a part of one
N_FEATURES = 4

STUDY = """\
name = "small"
note = "of the tests"
tr_s = 1.0

[[runs]]
name = "A"
n_trs = 50
segments = [{ kind = "rest", start_s = 0, end_s = 5 }]
[[runs]]
name = "B"
n_trs = 45
[[runs]]
name = "C"
n_trs = 40

[subjects]
ids = ["s1", "s2"]

[bold]
path = "bold/{subject}/{run}.npy"

[feature_files.mylab]
path = "mylab_{run}.npy"

[fit]
delays = [1, 2, 3]
n_alphas = 5
block = 5000
backend = "numpy"

[cluster]
n_workers = 2
threads_per_worker = 1  # the bytes of a product depend on its threads
"""

_SWEPT = """
[average]
[sweeps]
delays = [0, 1, 2]
bands = true
[feature_files.other]
path = "mylab_{run}.npy"
"""
_REST = '[{ kind = "rest", start_s = 0, end_s = 5 }]'
_CLIP = '{ kind = "repeat", group = "clip", start_s = %d, end_s = %d }'


def swept(text: str) -> str:
    """The study with all analyses that feature files allow: sweeps, the average of its subjects, one alpha
    for all vertices, and a clip that the first run and the last one show, which has a noise ceiling."""
    text = text.replace("[fit]\n", f'{_SWEPT}[fit]\nalpha = "shared"\n', 1)
    text = text.replace(_REST, f"{_REST[:-1]}, {_CLIP % (30, 46)}]")
    return text.replace("n_trs = 40\n", f"n_trs = 40\nsegments = [{_CLIP % (20, 36)}]\n")


def write_small_study(folder: Path) -> Path:
    """Features, BOLD that follows them two TRs later under as much noise, and the study file."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((N_FEATURES, N_VOXELS))
    for run, n_trs in N_TRS.items():
        features = rng.standard_normal((n_trs, N_FEATURES))
        np.save(folder / f"mylab_{run}.npy", features.astype(np.float32))
        for subject in ("s1", "s2", "s3"):
            response = np.zeros((n_trs, N_VOXELS))
            response[2:] = features[:-2] @ mix
            bold = 1000 + response + N_FEATURES**0.5 * rng.standard_normal(response.shape)
            path = folder / "bold" / subject / f"{run}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, bold.astype(np.float32))
    path = folder / "study.toml"
    path.write_text(STUDY)
    return path

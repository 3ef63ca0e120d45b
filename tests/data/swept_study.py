"""A study of three subjects and two feature spaces with a planted delay, its BOLD damaged in two vertices:
for sweeps, the average of subjects and shared alphas, against plain computations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from hpcenc.storage.study import Study, parse_study
from hpcenc.tasks.scores import pearson_r

N_TRS = {"A": 70, "B": 60, "C": 80, "D": 75}
N_VOXELS = 40
WIDTHS = {"first": 6, "second": 5}
SUBJECTS = ("s1", "s2", "s3")
WINDOW, SINGLE = (1, 2, 3), (0, 2, 4)
REST = 4
LAG = 2
CONSTANT, NAN = 7, 9
"""Vertices of s2 that are constant in run B, and hold a NaN in run A."""


def write_files(path: Path) -> None:
    """Features, and BOLD of three subjects that follows the first space in the first 20 vertices, at
    `LAG`."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((WIDTHS["first"], N_VOXELS)) * (np.arange(N_VOXELS) < 20)
    for run, n_trs in N_TRS.items():
        features = {name: rng.standard_normal((n_trs, width)) for name, width in WIDTHS.items()}
        for name, values in features.items():
            np.save(path / f"{name}_{run}.npy", values.astype(np.float32))
        for place, subject in enumerate(SUBJECTS):
            bold = rng.standard_normal((n_trs, N_VOXELS))
            bold[LAG:] += features["first"][:-LAG] @ mix
            bold *= 3.0**place
            if (subject, run) == ("s2", "A"):
                bold[30, NAN] = np.nan
            if (subject, run) == ("s2", "B"):
                bold[:, CONSTANT] = 3
            (path / subject).mkdir(exist_ok=True)
            np.save(path / subject / f"{run}.npy", (500 + 10 * bold).astype(np.float32))


def study_of(folder: Path, results: Path, **tables: Any) -> Study:
    data = {
        "name": "sweeps",
        "tr_s": 1.0,
        "store": str(results / "study.zarr"),
        "runs": [
            {"name": run, "n_trs": n_trs, "segments": [{"kind": "rest", "start_s": 0, "end_s": REST}]}
            for run, n_trs in N_TRS.items()
        ],
        "subjects": {"ids": list(SUBJECTS)},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {name: {"path": f"{name}_{{run}}.npy"} for name in WIDTHS},
        "fit": {"delays": list(WINDOW), "n_alphas": 8, "block": 5000, "backend": "numpy", "weights": "none"},
        "sweeps": {"delays": list(SINGLE), "bands": True},
        "average": {},
    }
    return parse_study(data | tables, folder)


class Plain:
    """The same from the definitions: explicit designs, masks and loops."""

    def __init__(self, folder: Path, longest: int) -> None:
        names = list(N_TRS)
        run = np.repeat(range(4), list(N_TRS.values()))
        row = np.concatenate([np.arange(n_trs) for n_trs in N_TRS.values()])
        used = row >= REST + longest
        self.run, self.train, self.test = run, used & (run < 3), used & (run == 3)
        self.features = {}
        for name in WIDTHS:
            values = np.concatenate([np.load(folder / f"{name}_{one}.npy") for one in names]).astype(float)
            self.features[name] = (values - values[self.train].mean(0)) / values[self.train].std(0)
        self.row = row

    def design(self, names: Mapping[str, float], delays: tuple[int, ...]) -> NDArray[np.float64]:
        """Delayed features of some spaces, each times the root of its scale; zeros before a run's start."""
        columns = []
        for name, scale in names.items():
            for delay in delays:
                shifted = np.roll(self.features[name], delay, axis=0) * np.sqrt(scale)
                columns.append(np.where((self.row >= delay)[:, None], shifted, 0))
        return np.concatenate(columns, axis=1)

    def bold(self, folder: Path, subject: str) -> NDArray[np.float64]:
        bold = np.concatenate([np.load(folder / subject / f"{run}.npy") for run in N_TRS]).astype(float)
        for run in range(4):
            rows = (self.run == run) & (self.train | self.test)
            bold[rows] = (bold[rows] - bold[rows].mean(0)) / bold[rows].std(0)
        return bold

    def fit(self, X: NDArray[np.float64], Y: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Scores by scikit-learn's ridge, alpha by leaving one run out."""
        centred = X[self.train] - X[self.train].mean(0)
        alphas = 10 ** np.linspace(-2, 5, 8) * (centred**2).sum() / (self.train.sum() - 1)
        errors, null = np.zeros((8, Y.shape[1])), np.zeros(Y.shape[1])
        for run in range(3):
            inner, held_out = self.train & (self.run != run), self.train & (self.run == run)
            for place, alpha in enumerate(alphas):
                predicted = Ridge(alpha).fit(X[inner], Y[inner]).predict(X[held_out])
                errors[place] += ((Y[held_out] - predicted) ** 2).mean(0) / 3
            null += ((Y[held_out] - Y[inner].mean(0)) ** 2).mean(0) / 3
        chosen = errors.argmin(0)
        ridge = Ridge(alphas[chosen], solver="cholesky").fit(X[self.train], Y[self.train])
        r = pearson_r(ridge.predict(X[self.test]), Y[self.test])
        parts = X[self.test][:, :, None] * ridge.coef_.T[None]  # (rows, columns, vertices)
        return {"r": r, "alpha": alphas[chosen], "cv": 1 - errors.min(0) / null, "parts": parts}

"""Seeded scores on plain and cortical axes, as the report gets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hpcenc.storage.geometry import cortical_axis
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.data import FitScores, ReportData, TimeCourse

FOLDS = ("MOVIE1", "MOVIE2")


@pytest.fixture(scope="session")
def cortex() -> VoxelAxis:
    return cortical_axis()


@pytest.fixture(scope="session")
def make_fit() -> Callable[..., FitScores]:
    def make(n_voxels: int = 300, seed: int = 0, **changes: object) -> FitScores:
        rng = np.random.default_rng(seed)
        grid = np.tile(np.logspace(0, 4, 5), (len(FOLDS), 1))
        fit = FitScores(
            feature_set="clip[untrained, seed 0]",
            variant="clip/embedding",
            modality="vision",
            subject="S1",
            n_features=768,
            n_columns=7680,
            n_constant=3,
            folds=FOLDS,
            r=rng.normal(0.1, 0.1, (len(FOLDS), n_voxels)),
            r2=rng.normal(0, 0.1, (len(FOLDS), n_voxels)),
            alpha=rng.choice(grid[0, 1:4], (len(FOLDS), n_voxels)).astype(np.float32),
            chance=np.full((len(FOLDS), n_voxels), 0.2),
            alpha_grid=grid,
            n_shifts=(120, 118),
            blocks_done=2,
            blocks=2,
        )
        return replace(fit, **changes)

    return make


@pytest.fixture(scope="session")
def make_course() -> Callable[..., TimeCourse]:
    def make(**changes: object) -> TimeCourse:
        rng = np.random.default_rng(0)
        used = np.ones(60, dtype=bool)
        used[:8] = False
        used[30:40] = False
        course = TimeCourse(
            feature_set="clip[untrained, seed 0]",
            subject="S1",
            fold="MOVIE1",
            run="MOVIE1",
            voxel=7,
            place="left cortex, vertex 1234",
            time_s=np.arange(60) * 1.5,
            measured=rng.normal(size=60),
            predicted=rng.normal(size=60),
            r=0.5,
            used=used,
        )
        return replace(course, **changes)

    return make


@pytest.fixture(scope="session")
def plain_data(make_fit: Callable[..., FitScores], make_course: Callable[..., TimeCourse]) -> ReportData:
    """Two feature sets in two subjects on voxels of unknown place."""
    fits = tuple(
        make_fit(seed=seed, feature_set=feature_set, variant=f"{feature_set}/last", subject=subject)
        for seed, (subject, feature_set) in enumerate(
            (subject, feature_set) for subject in ("S1", "S2") for feature_set in ("beats", "clip")
        )
    )
    return ReportData("two subjects", fits, VoxelAxis.from_count(300), courses=(make_course(),))

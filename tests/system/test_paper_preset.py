"""The reference study's preset from `init` to the report, on small BOLD and features in HCP's own runs,
against a plain computation from its definitions."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from typer.testing import CliRunner

from hpcenc.cli.app import app
from hpcenc.storage.departures import MEANINGS
from hpcenc.storage.dtseries import write_dtseries
from hpcenc.storage.results import Scores, fit_groups, read_scores
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.scores import pearson_r

RUNS = {"MOVIE1": (921, "AP"), "MOVIE2": (918, "PA"), "MOVIE3": (915, "PA"), "MOVIE4": (901, "AP")}
MOVIES = ("7T_MOVIE1_CC1", "7T_MOVIE2_HO1", "7T_MOVIE3_CC2", "7T_MOVIE4_HO2")
SUBJECTS = {"100610": 1.0, "102311": 4.0}
"""Who is averaged, and the scale of their BOLD."""
N_FEATURES, N_VERTICES, LAG = 3, 60, 6
N_TRAIN, N_TEST = 2_924, 731
Floats = NDArray[np.float64]


def write_files(folder: Path) -> None:
    """HCP's layout with empty movies, BOLD whose runs have levels of their own, and features."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((N_FEATURES, N_VERTICES))
    strength = np.geomspace(0.02, 1, N_VERTICES)  # so that vertices, each by itself, want other alphas
    # A surface of 40 vertices, for the report draws maps on HCP's own, which takes a minute.
    left = BrainModelAxis.from_surface(np.arange(30), 40, name="CortexLeft")
    right = BrainModelAxis.from_surface(np.arange(30), 40, name="CortexRight")
    axis = VoxelAxis.from_cifti(left + right)
    (folder / "movies").mkdir()
    for movie in MOVIES:
        (folder / "movies" / f"{movie}_v2.mp4").touch()
    (folder / "v1.txt").write_text("999999\n")
    for place, (run, (n_trs, direction)) in enumerate(RUNS.items()):
        features = place + rng.standard_normal((n_trs, N_FEATURES))
        np.save(folder / f"lab_{run}.npy", features.astype(np.float32))
        for subject, scale in SUBJECTS.items():
            bold = rng.standard_normal((n_trs, N_VERTICES))
            bold[LAG:] += strength * (features[:-LAG] @ mix)
            bold = 500 + scale * (bold + 3 * rng.standard_normal(N_VERTICES))
            scan = f"tfMRI_{run}_7T_{direction}"
            path = folder / "bold" / subject / "MNINonLinear" / "Results" / scan
            path.mkdir(parents=True)
            write_dtseries(
                path / f"{scan}_Atlas_MSMAll_hp2000_clean.dtseries.nii", bold.astype(np.float32), axis, 1.0
            )


@dataclass(frozen=True)
class Submitted:
    """A study of the preset that was submitted."""

    folder: Path
    page: str
    tables: Path
    store: Store

    @property
    def fit(self) -> Scores:
        return read_scores(self.store, "fits/lab/average")


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """Written by `init`; the features are added by hand, and the backend: looking for a GPU takes seconds."""
    folder = tmp_path_factory.mktemp("paper")
    write_files(folder)
    study = folder / "study.toml"
    command = ["init", str(folder / "bold"), "--dataset", "hcp7t", "--movies", str(folder / "movies")]
    command += ["--v1-subjects", str(folder / "v1.txt"), "--preset", "paper", "--output", str(study)]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert "to fix by hand" not in made.output
    text = study.read_text().replace("[fit]\n", '[fit]\nbackend = "numpy"\n')
    study.write_text(f'{text}\n[feature_files.lab]\npath = "lab_{{run}}.npy"\n')
    done = CliRunner().invoke(app, ["submit", str(study), "--models", "lab", "--profile", "serial", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["set_aside"] == []
    report = Path(found["report"])
    return Submitted(folder, report.read_text("utf-8"), report.parent / "tables", Store(Path(found["store"])))


@dataclass(frozen=True)
class Plain:
    """The reference study's fit from its definitions, for one set of delays."""

    r: Floats
    alpha: float
    best_alphas: Floats
    """Of each vertex, if it had one of its own."""


def compute(folder: Path, delays: range) -> Plain:
    """Average raw BOLD, then z-score it over the movie, and features too; no row is cut."""
    X = np.concatenate([np.load(folder / f"lab_{run}.npy") for run in RUNS]).astype(float)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    Y = np.concatenate([average_of(folder, run) for run in RUNS])
    Y = (Y - Y.mean(axis=0)) / Y.std(axis=0)
    lengths = [n_trs for n_trs, _ in RUNS.values()]
    run, row = np.repeat(range(4), lengths), np.concatenate([np.arange(n_trs) for n_trs in lengths])
    # Delays reach back to the start of their run, and no further.
    design = np.concatenate(
        [np.where((row >= delay)[:, None], np.roll(X, delay, axis=0), 0) for delay in delays], axis=1
    )
    train = np.arange(len(Y)) < N_TRAIN
    centred = design[train] - design[train].mean(axis=0)
    alphas = 10 ** np.linspace(-2, 5, 20) * (centred**2).sum() / (N_TRAIN - 1)
    errors = np.zeros((len(alphas), N_VERTICES))
    # 170 rows of the last run train, fewer than 300: they join the run before.
    for held_out in (train & (run == 0), train & (run == 1), train & (run >= 2)):
        inner = train & ~held_out
        for place, alpha in enumerate(alphas):
            predicted = Ridge(alpha).fit(design[inner], Y[inner]).predict(design[held_out])
            errors[place] += ((Y[held_out] - predicted) ** 2).mean(axis=0)
    alpha = float(alphas[errors.mean(axis=1).argmin()])
    ridge = Ridge(alpha).fit(design[train], Y[train])
    r = pearson_r(ridge.predict(design[~train]), Y[~train])
    return Plain(np.asarray(r), alpha, alphas[errors.argmin(axis=0)])


def average_of(folder: Path, run: str) -> Floats:
    """Mean over the subjects as their files have it."""
    import nibabel

    paths = sorted((folder / "bold").glob(f"*/MNINonLinear/Results/tfMRI_{run}_*/*.dtseries.nii"))
    assert len(paths) == len(SUBJECTS)
    return np.asarray(np.mean([nibabel.load(path).get_fdata() for path in paths], axis=0))


def test_scores_are_those_of_the_definitions(submitted: Submitted) -> None:
    plain = compute(submitted.folder, range(4, 14))
    np.testing.assert_allclose(submitted.fit.r[0, 0], plain.r, atol=1e-5)
    np.testing.assert_allclose(submitted.fit.alpha[0, 0], plain.alpha, rtol=1e-5)
    assert len(np.unique(plain.best_alphas)) > 1, "one alpha for all is not what each would have taken"
    assert plain.r.max() > 0.5


def test_single_delays_are_fitted_on_the_same_rows(submitted: Submitted) -> None:
    found = read_scores(submitted.store, "delays/lab/average")
    for delay in (0, LAG):
        plain = compute(submitted.folder, range(delay, delay + 1))
        np.testing.assert_allclose(found.r[0, delay], plain.r, atol=1e-5)
        np.testing.assert_allclose(found.alpha[0, delay], plain.alpha, rtol=1e-5)


def test_only_the_average_is_fitted_and_the_last_fifth_tests(submitted: Submitted) -> None:
    assert list(fit_groups(submitted.store)) == ["fits/lab/average"]
    assert submitted.store.attributes_of("bold/average")["how"] == "raw"
    (variant,) = submitted.fit.attributes["variants"]
    (operators,) = variant["operators"]
    role = submitted.store.read(f"{operators}/role")
    assert role.tolist() == [1] * N_TRAIN + [2] * N_TEST, "no row is cut"
    attributes = submitted.store.attributes_of(operators)
    assert (attributes["fold"], attributes["dropped"]) == (f"last {N_TEST} TRs", {})


def test_the_report_lists_every_departure_with_its_meaning(submitted: Submitted) -> None:
    rows = list(csv.DictReader((submitted.tables / "departures.csv").open()))
    found = {row["key"]: row["found"] for row in rows}
    assert found == {
        "fit.delays": "4 5 6 7 8 9 10 11 12 13",
        "fit.rest": "keep",
        "fit.repeat_train": "keep",
        "fit.split_s": "2924.0",
        "fit.min_fold_trs": "300",
        "fit.zscore_bold": "movie",
        "fit.zscore_features": "movie",
        "fit.alpha": "shared",
        "average.bold": "raw",
    }
    for row in rows:
        table, key = row["key"].split(".")
        assert row["meaning"] == MEANINGS[table, key]
        for cell in row.values():
            assert f"{cell}</td>" in submitted.page


def test_the_report_says_what_was_run_and_that_a_clip_stands_on_both_sides(submitted: Submitted) -> None:
    for said in (
        "Preset paper: the study file began with the settings as published by the reference study",
        "Shown in training and in test: validation. Part of r is that of a stimulus which was seen before.",
        "Rows: 2,924 of training and 731 of test",
        "No row was left out.",
        "one alpha for all vertices of a subject, of 20 from",
        "at delays of 4 5 6 7 8 9 10 11 12 13 TRs",
        "the average of the raw BOLD of 2 subjects",
        "of the whole movie",
    ):
        assert said in submitted.page, said

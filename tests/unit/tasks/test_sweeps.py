"""Sweeps and the mean over subjects, from a study file to the store, against plain computations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from hpcenc.storage.digests import FileDigests
from hpcenc.storage.results import fit_groups, read_ceilings, read_scores, read_voxels
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study, Sweeps, parse_study
from hpcenc.storage.weights import read_weights
from hpcenc.tasks import at_hand
from hpcenc.tasks.folds import RowPolicy, RunRows, outer_folds
from hpcenc.tasks.inspection import inspect
from hpcenc.tasks.memory import worker_peak
from hpcenc.tasks.nested import choose_variants
from hpcenc.tasks.operators import make_operators
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.price import price_plan
from hpcenc.tasks.report.analyses import on_other_rows
from hpcenc.tasks.report.build import build_report
from hpcenc.tasks.report.courses import make_courses
from hpcenc.tasks.report.sweeps import read_sweeps
from hpcenc.tasks.scores import pearson_r
from hpcenc.tasks.selection import BAND_RATIOS, select_feature_sets
from hpcenc.tasks.shared_alpha import mean_errors
from hpcenc.tasks.zscoring import standardise

N_TRS = {"A": 70, "B": 60, "C": 80, "D": 75}
N_VOXELS = 40
WIDTHS = {"first": 6, "second": 5}
SUBJECTS = ("s1", "s2", "s3")
WINDOW, SINGLE = (1, 2, 3), (0, 2, 4)
REST = 4
LAG = 2
CONSTANT, NAN = 7, 9
"""Vertices of s2 that are constant in run B, and hold a NaN in run A."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, and BOLD of three subjects that follows the first space in the first 20 vertices, at
    `LAG`."""
    path = tmp_path_factory.mktemp("sweeps")
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
    return path


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


def run_plan(study: Study, models: str) -> tuple[Store, Plan]:
    """Plan a study and run its stages one after the other."""
    chosen = select_feature_sets(study, models)
    facts = inspect(study, chosen, study.subjects.ids, FileDigests(study.store_path.parent / "digests.json"))
    assert facts.voxels is not None
    plan = make_plan(study, chosen, facts, "numpy")
    arrays, axis = facts.voxels.to_arrays()
    store = Store.create(study.store_path, {"voxel_axis": axis}, arrays)
    for spec in plan.groups:
        store.ensure_group(spec)
    for stage in plan.stages:
        for task in stage.tasks:
            record = task.run(store, None)
            assert not record.failed, record.failed
    return store, plan


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The study fitted with both spaces and their sum, its delays and bands swept."""
    return run_plan(study_of(folder, tmp_path_factory.mktemp("results")), "first,second,first+second")[0]


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


def test_every_single_delay_is_a_fit_of_its_own(store: Store, folder: Path) -> None:
    plain = Plain(folder, longest=4)
    Y = plain.bold(folder, "s1")
    found = read_scores(store, "delays/first/s1")
    assert [variant["label"] for variant in found.attributes["variants"]] == [
        f"first/values delay {delay}" for delay in SINGLE
    ]
    for place, delay in enumerate(SINGLE):
        wanted = plain.fit(plain.design({"first": 1.0}, (delay,)), Y)
        np.testing.assert_allclose(found.alpha[0, place], wanted["alpha"], rtol=1e-5)
        np.testing.assert_allclose(found.r[0, place], wanted["r"], atol=1e-5)
        np.testing.assert_allclose(found.more["cv"][0, place], wanted["cv"], atol=1e-5)


def test_vertices_choose_the_planted_delay_and_others_none(store: Store) -> None:
    for subject in ("s1", "average"):
        found = read_scores(store, f"delays/first/{subject}")
        chance = np.full(
            found.r.shape, 0.35
        )  # of a dozen shifts of 71 rows, the 99.9th percentile says little
        best = choose_variants(found.more["cv"], found.r, chance).best
        assert set(best[:20].tolist()) == {SINGLE.index(LAG)}
        assert set(best[20:].tolist()) == {-1}


def test_a_fit_in_bands_is_that_of_scaled_spaces_and_its_parts_add_up(store: Store, folder: Path) -> None:
    plain = Plain(folder, longest=3)
    Y = plain.bold(folder, "s1")
    found = read_scores(store, "bands/first-and-second/s1")
    assert list(found.more) == ["cv", "r:first/values", "r:second/values"]
    for place, ratio in enumerate(BAND_RATIOS):
        scales = {"first": max(ratio, 1.0), "second": max(1 / ratio, 1.0)}
        wanted = plain.fit(plain.design(scales, WINDOW), Y)
        np.testing.assert_allclose(found.alpha[0, place], wanted["alpha"], rtol=1e-5)
        np.testing.assert_allclose(found.r[0, place], wanted["r"], atol=2e-5)
        np.testing.assert_allclose(found.more["cv"][0, place], wanted["cv"], atol=2e-5)
        first = wanted["parts"][:, : 6 * 3].sum(1), wanted["parts"].sum(1)
        centred = [part - part.mean(0) for part in first]
        y = Y[plain.test] - Y[plain.test].mean(0)
        share = (centred[0] * y).sum(0) / np.sqrt((centred[1] ** 2).sum(0) * (y**2).sum(0))
        np.testing.assert_allclose(found.more["r:first/values"][0, place], share, atol=2e-5)
    total = found.more["r:first/values"] + found.more["r:second/values"]
    np.testing.assert_allclose(total, found.r, atol=1e-4)


def test_equal_penalties_are_the_concatenation(store: Store) -> None:
    equal = BAND_RATIOS.index(1.0)
    bands = read_scores(store, "bands/first-and-second/s1")
    whole = read_scores(store, "fits/first-and-second/s1")
    np.testing.assert_allclose(bands.r[:, equal], whole.r[:, 0], atol=1e-6)
    assert read_scores(store, "delays/first-and-second/s1").r.shape == (1, len(SINGLE), N_VOXELS)


def test_the_report_knows_which_main_fits_are_on_other_rows_than_a_sweep(store: Store) -> None:
    fits = [read_scores(store, group) for group in fit_groups(store)]
    delays, bands = (list(read_sweeps(store, fit_groups(store, kind))) for kind in ("delays", "bands"))
    assert max(SINGLE) > max(WINDOW)
    assert on_other_rows(store, delays, fits) == tuple(delays)
    assert len(bands) == 4
    assert on_other_rows(store, bands, fits) == ()
    assert on_other_rows(store, delays, fits[:1]) == tuple(
        sweep for sweep in delays if (sweep.feature_set, sweep.subject) == ("first", "average")
    )


def test_the_report_shows_what_the_present_study_file_asks_for(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    study = study_of(folder, store.path.parent, sweeps={"delays": [0, 2], "bands": True})
    report = build_report(study, {}, [], (), tmp_path / "report")
    page = report.files.html.read_text()
    assert 'id="bands"' in page
    assert 'id="delays"' not in page
    assert "Single delays, first, of average, s1, s2, s3: left over from an earlier study file" in page
    assert "Fits in bands, first" not in page


def test_the_average_is_the_mean_of_z_scored_runs_over_the_subjects_who_have_the_vertex(
    store: Store, folder: Path
) -> None:
    counts = store.read("bold/average/n_subjects")
    assert counts.shape == (4, N_VOXELS)
    assert counts[0, NAN] == counts[1, CONSTANT] == 2
    assert (np.delete(counts, [NAN, CONSTANT], axis=1) == 3).all()
    for place, run in enumerate(N_TRS):
        parts = []
        for subject in SUBJECTS:
            bold = np.load(folder / subject / f"{run}.npy").astype(float)
            used = bold[REST + max(WINDOW) :]
            with np.errstate(all="ignore"):
                parts.append((bold - used.mean(0)) / used.std(0))
        if run == "A":
            parts[1][:, NAN] = np.nan
        if run == "B":
            parts[1][:, CONSTANT] = np.nan
        np.testing.assert_allclose(
            store.read(f"bold/average/run-{run.lower()}"), np.nanmean(parts, axis=0), atol=1e-5
        )
        assert counts[place].max() == 3


def test_the_average_is_fitted_like_a_subject(store: Store, folder: Path) -> None:
    plain = Plain(folder, longest=3)
    mean = np.concatenate([store.read(f"bold/average/run-{run.lower()}") for run in N_TRS]).astype(float)
    for run in range(4):
        rows = (plain.run == run) & (plain.train | plain.test)
        mean[rows] = (mean[rows] - mean[rows].mean(0)) / mean[rows].std(0)
    wanted = plain.fit(plain.design({"first": 1.0}, WINDOW), mean)
    found = read_scores(store, "fits/first/average")
    np.testing.assert_allclose(found.r[0, 0], wanted["r"], atol=1e-5)
    single = read_scores(store, "fits/first/s1")
    assert found.r[0, 0, :20].mean() > single.r[0, 0, :20].mean()


def test_raw_averages_weigh_subjects_by_their_scale(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path, average={"bold": "raw"}, sweeps={})
    store, _ = run_plan(study, "first")
    runs = [np.load(folder / subject / "C.npy") for subject in SUBJECTS]
    np.testing.assert_allclose(store.read("bold/average/run-c"), np.mean(runs, axis=0), rtol=1e-5)


def test_the_average_is_of_one_version_of_the_stimulus_unless_told_otherwise(
    folder: Path, tmp_path: Path
) -> None:
    subjects = {"ids": list(SUBJECTS), "stimulus": "v2", "stimulus_of": {"s3": "v1"}}
    for mixed, members in ((False, ["s1", "s2"]), (True, list(SUBJECTS))):
        study = study_of(folder, tmp_path, subjects=subjects, average={"mixed_versions": mixed}, sweeps={})
        chosen = select_feature_sets(study, "first")
        facts = inspect(study, chosen, SUBJECTS, FileDigests(tmp_path / "digests.json"))
        groups = {spec.group: spec for spec in make_plan(study, chosen, facts, "numpy").groups}
        assert groups["bold/average"].attributes["subjects"] == members
        assert groups["fits/first/average"].attributes["stimulus"] == "v2"


def test_sweeps_are_of_the_subjects_that_are_named(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path, sweeps={"delays": [2], "subjects": ["average"]})
    chosen = select_feature_sets(study, "first")
    facts = inspect(study, chosen, SUBJECTS, FileDigests(tmp_path / "digests.json"))
    groups = {spec.group for spec in make_plan(study, chosen, facts, "numpy").groups}
    assert {group for group in groups if group.startswith("delays")} == {"delays/first/average"}
    assert {f"fits/first/{subject}" for subject in (*SUBJECTS, "average")} <= groups


def test_an_average_needs_two_subjects_with_a_run(folder: Path, tmp_path: Path) -> None:
    runs = {"s2": ["A", "B"], "s1": ["C", "D"]}
    study = study_of(
        folder, tmp_path, subjects={"ids": ["s1", "s2"], "runs_of": runs}, fit={"outer": "rotate"}
    )
    chosen = select_feature_sets(study, "first")
    facts = inspect(study, chosen, ("s1", "s2"), FileDigests(tmp_path / "digests.json"))
    plan = make_plan(study, chosen, facts, "numpy")
    assert any("average: no run of two subjects" in reason for reason in plan.set_aside)


def test_the_average_names_those_whose_bold_it_has(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path, sweeps={})
    chosen = select_feature_sets(study, "first")
    facts = inspect(study, chosen, SUBJECTS, FileDigests(tmp_path / "digests.json"))
    bold = {key: header for key, header in facts.bold.items() if key[0] != "s3"}
    plan = make_plan(study, chosen, replace(facts, bold=bold), "numpy")
    groups = {spec.group: spec for spec in plan.groups}
    assert groups["bold/average"].attributes["subjects"] == ["s1", "s2"]


def paper_like(folder: Path, results: Path, **fit: Any) -> Study:
    """One subject, no row cut, the last 100 of 285 rows tested: part of run C trains."""
    runs = [{"name": run, "n_trs": n_trs} for run, n_trs in N_TRS.items()]
    settings = {"delays": [1, 2, 3], "n_alphas": 8, "block": 5000, "backend": "numpy", "weights": "none"}
    settings |= {"split_s": 185.0, "min_fold_trs": 56, "zscore_bold": "movie", "zscore_features": "movie"}
    return study_of(
        folder,
        results,
        runs=runs,
        subjects={"ids": ["s1"]},
        average=None,
        sweeps={"delays": list(SINGLE)},
        fit=settings | fit,
    )


def by_hand(folder: Path, delays: tuple[int, ...]) -> dict[str, Any]:
    """The same by scikit-learn: z-scored over the movie; runs A and B with the head of C leave each other
    out."""
    run = np.repeat(range(4), list(N_TRS.values()))
    row = np.concatenate([np.arange(n_trs) for n_trs in N_TRS.values()])
    train = np.arange(len(run)) < 185
    X, Y = (
        np.concatenate([np.load(folder / f"{name}{one}.npy") for one in N_TRS]).astype(float)
        for name in ("first_", "s1/")
    )
    X, Y = ((values - values.mean(0)) / values.std(0) for values in (X, Y))
    shifted = [np.where((row >= delay)[:, None], np.roll(X, delay, axis=0), 0) for delay in delays]
    design = np.concatenate(shifted, axis=1)
    centred = design[train] - design[train].mean(0)
    alphas = 10 ** np.linspace(-2, 5, 8) * (centred**2).sum() / (train.sum() - 1)
    folds = [train & (run == 0), train & (run > 0)]  # 55 rows of C are too few for a fold of their own
    errors = np.zeros((8, N_VOXELS))
    for held_out in folds:
        inner = train & ~held_out
        for place, alpha in enumerate(alphas):
            predicted = Ridge(alpha).fit(design[inner], Y[inner]).predict(design[held_out])
            errors[place] += ((Y[held_out] - predicted) ** 2).mean(0) / 2
    return {"train": train, "design": design, "Y": Y, "alphas": alphas, "errors": errors}


def r_of(plain: dict[str, Any], alpha: Any) -> NDArray[np.float64]:
    ridge = Ridge(alpha, solver="cholesky").fit(plain["design"][plain["train"]], plain["Y"][plain["train"]])
    return np.asarray(pearson_r(ridge.predict(plain["design"][~plain["train"]]), plain["Y"][~plain["train"]]))


def r_of_run(plain: dict[str, Any], found: Any, voxel: int) -> float:
    """r of one vertex over the part of run C that tests."""
    alpha = float(found.alpha[0, 0, voxel])
    ridge = Ridge(alpha).fit(plain["design"][plain["train"]], plain["Y"][plain["train"], voxel])
    return float(np.corrcoef(ridge.predict(plain["design"][185:210]), plain["Y"][185:210, voxel])[0, 1])


def test_a_movie_cut_in_two_is_fitted_as_the_definition_says(folder: Path, tmp_path: Path) -> None:
    store, _ = run_plan(paper_like(folder, tmp_path), "first")
    plain = by_hand(folder, WINDOW)
    found = read_scores(store, "fits/first/s1")
    chosen = plain["errors"].argmin(0)
    np.testing.assert_allclose(found.alpha[0, 0], plain["alphas"][chosen], rtol=1e-5)
    np.testing.assert_allclose(found.r[0, 0], r_of(plain, plain["alphas"][chosen]), atol=1e-5)
    assert found.attributes["folds"] == ["last 100 TRs"]
    (course,), missing = make_courses(store, [found], read_voxels(store), paper_like(folder, tmp_path))
    assert missing == ()
    assert course.r == pytest.approx(r_of_run(plain, found, course.voxel), abs=1e-4)
    assert course.used.tolist() == [False] * 55 + [True] * 25


@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_a_shared_alpha_is_that_of_the_least_mean_error(folder: Path, tmp_path: Path, solver: str) -> None:
    store, plan = run_plan(paper_like(folder, tmp_path, alpha="shared", solver=solver), "first")
    assert [stage.name for stage in plan.stages] == ["decode", "extract", "operators", "alphas", "fit"]
    for group, place, delays in [("fits", 0, WINDOW), ("delays", 0, (0,)), ("delays", 1, (2,))]:
        plain = by_hand(folder, delays)
        mean = plain["errors"].mean(axis=1)
        found = read_scores(store, f"{group}/first/s1")
        errors = store.read(f"alphas/{group}/first/s1/errors")[0, place]
        np.testing.assert_allclose(errors, mean - mean[-1], atol=1e-5)
        alpha = plain["alphas"][mean.argmin()]
        np.testing.assert_allclose(found.alpha[0, place], alpha, rtol=1e-5)
        np.testing.assert_allclose(found.r[0, place], r_of(plain, alpha), atol=1e-5)
        if group == "delays":
            folds = plain["errors"][mean.argmin()]
            null = np.zeros(N_VOXELS)
            for held_out in (plain["train"] & (np.arange(285) < 70), plain["train"] & (np.arange(285) >= 70)):
                others = plain["train"] & ~held_out
                null += ((plain["Y"][held_out] - plain["Y"][others].mean(0)) ** 2).mean(0) / 2
            np.testing.assert_allclose(found.more["cv"][0, place], 1 - folds / null, atol=2e-5)


def test_the_variants_of_a_sweep_share_bold_that_is_z_scored_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return standardise(*args, **options)

    for module in ("ridge", "zscoring"):  # where the main fit has it from, and the sweep
        monkeypatch.setattr(f"hpcenc.tasks.{module}.standardise", counted)
    run_plan(paper_like(folder, tmp_path), "first")
    assert len(calls) == 2  # of the main fit, and of all single delays


def test_a_sweep_that_is_fitted_in_parts_is_that_of_the_whole_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place, size in (("whole", None), ("parts", N_VOXELS // 3)):
        monkeypatch.setattr(at_hand.device("numpy"), "voxels_at_once", size)
        (tmp_path / place).mkdir()
        store, _ = run_plan(paper_like(folder, tmp_path / place), "first")
        found.append(read_scores(store, "delays/first/s1"))
    np.testing.assert_allclose(found[0].r, found[1].r, atol=1e-6)
    np.testing.assert_allclose(found[0].more["cv"], found[1].more["cv"], atol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "fast"])
def test_no_voxel_has_no_say_in_a_shared_alpha(solver: Any) -> None:
    (fold,) = outer_folds([RunRows(name, 30) for name in "ABC"], (1,), RowPolicy())
    design = np.random.default_rng(0).standard_normal((90, 40))
    operators = make_operators(design @ design.T, fold, np.linspace(-2, 5, 9), solver=solver)
    assert mean_errors(np.zeros((60, 0), np.float32), operators).tolist() == [0.0] * 9


def test_an_alpha_that_is_given_is_taken(folder: Path, tmp_path: Path) -> None:
    store, _ = run_plan(paper_like(folder, tmp_path, alpha=300.0), "first")
    found = read_scores(store, "fits/first/s1")
    np.testing.assert_allclose(found.alpha, 300.0)
    np.testing.assert_allclose(found.r[0, 0], r_of(by_hand(folder, WINDOW), 300.0), atol=1e-5)


def test_sweeps_averages_and_shared_alphas_have_a_price_and_a_peak(folder: Path, tmp_path: Path) -> None:
    settings = {"delays": [1, 2, 3], "n_alphas": 8, "block": 5000, "backend": "numpy", "alpha": "shared"}
    study = study_of(folder, tmp_path, fit=settings)
    chosen = select_feature_sets(study, "first,first+second")
    facts = inspect(study, chosen, study.subjects.ids, FileDigests(tmp_path / "digests.json"))
    plan = make_plan(study, chosen, facts, "numpy")
    price = price_plan(plan, study.store_path)
    assert price.n_tasks["average"] == 1
    assert price.n_tasks["alphas"] == 4
    without = make_plan(study.model_copy(update={"sweeps": Sweeps()}), chosen[:1], facts, "numpy")
    assert price.flop["fit"].total > price_plan(without, study.store_path).flop["fit"].total
    assert worker_peak(plan, study.store_path, overlaps=True).n_bytes > 0


def test_a_repeated_clip_gives_ceilings_and_a_score_on_the_same_rows(folder: Path, tmp_path: Path) -> None:
    repeat = {"kind": "repeat", "start_s": 20, "end_s": 60, "group": "clip"}
    runs = [
        {"name": run, "n_trs": n_trs, "segments": [repeat] if run != "B" else []}
        for run, n_trs in N_TRS.items()
    ]
    fit = {"delays": [1, 2, 3], "n_alphas": 8, "block": 5000, "backend": "numpy", "weights": "primal"}
    study = study_of(folder, tmp_path, runs=runs, fit=fit, sweeps={}, average=None)
    store, _ = run_plan(study, "first")
    found = read_ceilings(store, "s1")
    assert found is not None
    assert found.clips == ("clip",)
    (showing,) = found.attributes["showings"]
    assert (showing["group"], showing["n_showings"], showing["n_rows"]) == ("clip", 3, 37)
    assert showing["rows"] == [list(range(start, start + 37)) for start in (23, 153, 233)]
    bold = [np.load(folder / "s1" / f"{run}.npy").astype(float) for run in "ACD"]
    parts = np.stack([(run / run.std(0))[23:60] for run in bold])
    parts -= parts.mean(axis=1, keepdims=True)
    pairs = [(parts[a] * parts[b]).mean(0) for a, b in ((0, 1), (0, 2), (1, 2))]
    share = np.mean(pairs, axis=0) / parts.var(axis=1).mean(0)
    np.testing.assert_allclose(found.values["share"][0], share, atol=1e-5)
    np.testing.assert_allclose(
        found.values["ceiling"][0], np.sqrt(np.where(share > 0, share, np.nan)), atol=1e-4
    )
    assert (found.values["share_low"] < found.values["share_high"]).all()

    scores = read_scores(store, "fits/first/s1")
    assert list(scores.more) == ["r_repeat", "weight_norm:1", "weight_norm:2", "weight_norm:3"]
    weights = read_weights(store, "first", "s1", slice(None))["first/values"]
    predicted = np.zeros((37, N_VOXELS))
    group = scores.attributes["variants"][0]["operators"][0]
    features = np.concatenate([np.load(folder / f"first_{run}.npy") for run in N_TRS]).astype(float)
    mean, scale = (store.read(f"{group}/{name}") for name in ("feature_mean", "feature_scale"))
    for place, delay in enumerate((1, 2, 3)):
        rows = np.arange(210 + 23, 210 + 60) - delay
        predicted += ((features[rows] - mean) / scale) @ weights[place]
    np.testing.assert_allclose(scores.more["r_repeat"][0, 0], pearson_r(predicted, bold[2][23:60]), atol=1e-4)
    for place, delay in enumerate((1, 2, 3)):
        norm = np.linalg.norm(weights[place], axis=0)
        np.testing.assert_allclose(scores.more[f"weight_norm:{delay}"][0, 0], norm, rtol=1e-4)

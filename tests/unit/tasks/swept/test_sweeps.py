"""Sweeps and ceilings, from a study file to the store, against plain computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_here import run_plan, run_sets
from swept_study import (
    LAG,
    N_TRS,
    N_VOXELS,
    SINGLE,
    SUBJECTS,
    WIDTHS,
    WINDOW,
    Plain,
    study_of,
)

from hpcenc.storage.digests import FileDigests
from hpcenc.storage.regions import RegionSet
from hpcenc.storage.results import fit_groups, read_ceilings, read_scores, read_voxels
from hpcenc.storage.store import Store
from hpcenc.storage.study import Sweeps
from hpcenc.storage.weights import read_weights
from hpcenc.tasks.inspection import inspect
from hpcenc.tasks.memory import worker_peak
from hpcenc.tasks.nested import choose_variants
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.price import price_plan
from hpcenc.tasks.report import build
from hpcenc.tasks.report.analyses import on_other_rows
from hpcenc.tasks.report.build import build_report
from hpcenc.tasks.report.courses import make_courses
from hpcenc.tasks.report.sweeps import read_sweeps
from hpcenc.tasks.scores import pearson_r
from hpcenc.tasks.selection import BAND_RATIOS, FeatureSet, FeatureSpace, Variant, select_feature_sets


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


def test_every_layer_is_a_fit_of_its_own(folder: Path, tmp_path: Path) -> None:
    """Two spaces stand for the layers of a model, which feature files have none of."""
    study = study_of(folder, tmp_path, sweeps={}, average=None, subjects={"ids": ["s1"]})
    variants = tuple(Variant((FeatureSpace(name, "values"),), WINDOW) for name in WIDTHS)
    store, _ = run_sets(study, (FeatureSet("first", "first", variants, "layers"),))
    found = read_scores(store, "layers/first/s1")
    plain = Plain(folder, longest=max(WINDOW))
    Y = plain.bold(folder, "s1")
    for place, name in enumerate(WIDTHS):
        wanted = plain.fit(plain.design({name: 1.0}, WINDOW), Y)
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
    assert "average of the z-scored runs of 3 subjects (2 to 3 of them in a vertex of a run)" in page
    assert "Each subject, and the average of their BOLD." in page


def test_courses_are_of_the_best_vertex_of_each_region_and_of_those_that_are_named(
    store: Store, folder: Path
) -> None:
    names = ["voxel 3", "voxel 999", "left 5"]
    study = study_of(folder, store.path.parent, vertices=names)
    fits = [read_scores(store, group) for group in fit_groups(store)]
    late = np.arange(N_VOXELS) >= 20
    courses, missing = make_courses(
        store, fits, read_voxels(store), study, {"late": late, "none": late & ~late}
    )
    found = {course.what: course for course in courses}
    (of_late,) = (course for what, course in found.items() if "vertex of late" in what)
    average = [fit for fit in fits if fit.attributes["subject"] == "average"]
    best = {fit.attributes["feature_set"]: np.where(late, fit.r[0, 0], -1) for fit in average}
    wanted = max(best, key=lambda name: best[name].max())
    assert (of_late.subject, of_late.feature_set) == ("average", wanted)
    assert of_late.voxel == int(best[wanted].argmax())
    (named,) = (course for what, course in found.items() if "voxel 3, which the study names" in what)
    assert (named.voxel, named.subject) == (3, "average")
    assert [course.what for course in courses if course.named] == [named.what]
    why = "not among the study's voxels, as the medial wall is not"
    assert missing == (
        "none: none of its vertices is among the study's voxels",
        *(f"{name}: {why}" for name in names[1:]),
    )


def test_courses_of_too_many_regions_are_named_as_missing(store: Store, folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, store.path.parent, sweeps={}, average=None)
    many = RegionSet("many", {f"area {place}": np.arange(N_VOXELS) == place for place in range(9)}, "a test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "study_regions", lambda *_: (many,))
        page = build.build_report(study, {}, [], (), tmp_path / "report").files.html.read_text()
    assert "regions: many has 9, courses are of sets of 8 at most" in page


def test_sweeps_are_of_the_subjects_that_are_named(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path, sweeps={"delays": [2], "subjects": ["average"]})
    chosen = select_feature_sets(study, "first")
    facts = inspect(study, chosen, SUBJECTS, FileDigests(tmp_path / "digests.json"))
    groups = {spec.group for spec in make_plan(study, chosen, facts, "numpy").groups}
    assert {group for group in groups if group.startswith("delays")} == {"delays/first/average"}
    assert {f"fits/first/{subject}" for subject in (*SUBJECTS, "average")} <= groups


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

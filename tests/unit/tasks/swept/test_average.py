"""The average of subjects, from a study file to the store, against plain computations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from run_here import run_plan
from swept_study import CONSTANT, N_TRS, N_VOXELS, NAN, REST, SUBJECTS, WINDOW, Plain, study_of

from hpcenc.storage import open_study
from hpcenc.storage.digests import FileDigests
from hpcenc.storage.results import read_scores
from hpcenc.storage.store import Store
from hpcenc.tasks.inspection import inspect
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.selection import select_feature_sets


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


def test_a_study_with_an_average_opens_though_its_runs_differ_in_length(store: Store) -> None:
    average = open_study(store.path)["bold/average"]
    assert average["run-a"].sizes == {"tr_run-a": N_TRS["A"], "voxel": N_VOXELS}
    assert average["run-b"].sizes == {"tr_run-b": N_TRS["B"], "voxel": N_VOXELS}


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

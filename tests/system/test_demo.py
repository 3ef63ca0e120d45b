"""The demo study, as `make demo` makes it: what was planted is found, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.storage.bold import find_bold, read_block, read_header
from hpcenc.storage.design import standardise
from hpcenc.storage.features import read_space
from hpcenc.storage.layout import fit_group, report_folder
from hpcenc.storage.results import read_scores
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study, load_study
from hpcenc.tasks.folds import RowPolicy, RunRows, outer_folds, run_onsets
from hpcenc.tasks.gram import base_gram, window_gram
from hpcenc.tasks.operators import make_operators
from hpcenc.tasks.ridge import fit_block

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CLIP, BEATS = "clip[untrained, seed 0]", "beats[untrained, seed 0]"
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Demo:
    study: Study
    store: Store
    regions: dict[str, NDArray[np.bool_]]

    def mean_r(self, feature_set: str, subject: str) -> Floats:
        """r of each cortical vertex, mean over folds."""
        return read_scores(self.store, fit_group(feature_set, subject)).r[:, 0].mean(axis=0)

    def pooled(self, feature_set: str, region: str) -> Floats:
        """r of a region's vertices in all subjects."""
        return np.concatenate(
            [self.mean_r(feature_set, subject)[self.regions[region]] for subject in self.study.subjects.ids]
        )


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "study"
    hpcenc = [sys.executable, "-c", "from hpcenc.cli.app import main; main()"]
    subprocess.run([*hpcenc, "demo", str(folder), "--seed", str(request.param)], check=True)
    path = folder / "study.toml"
    subprocess.run([*hpcenc, "submit", str(path), "--models", "all"], check=True)
    study = load_study(path)
    with np.load(folder / "planted.npz") as planted:
        region, names = planted["region"], planted["region_names"].tolist()
    masks = {name: region == index for index, name in enumerate(names)} | {"noise": region == -1}
    return Demo(study, Store(study.store_path), masks)


def within_4_standard_errors(r: Floats) -> bool:
    return bool(abs(r.mean()) <= 4 * r.std(ddof=1) / np.sqrt(len(r)))


def test_clip_predicts_visual_vertices(demo: Demo) -> None:
    visual, noise = demo.pooled(CLIP, "visual"), demo.pooled(CLIP, "noise")
    assert np.median(visual) >= 0.40
    assert np.mean(visual > np.quantile(noise, 0.95)) >= 0.80


def test_beats_predicts_auditory_vertices(demo: Demo) -> None:
    auditory, noise = demo.pooled(BEATS, "auditory"), demo.pooled(BEATS, "noise")
    assert np.median(auditory) >= 0.15
    assert np.mean(auditory > np.quantile(noise, 0.95)) >= 0.60


@pytest.mark.parametrize(("feature_set", "region"), [(CLIP, "auditory"), (BEATS, "visual")])
def test_the_other_modality_predicts_nothing(demo: Demo, feature_set: str, region: str) -> None:
    assert abs(np.median(demo.pooled(feature_set, region))) <= 0.10


def test_still_frames_do_not_predict_motion(demo: Demo) -> None:
    assert np.median(demo.pooled(CLIP, "motion")) <= 0.15


@pytest.mark.parametrize("feature_set", [CLIP, BEATS])
def test_noise_is_not_predicted(demo: Demo, feature_set: str) -> None:
    assert within_4_standard_errors(demo.pooled(feature_set, "noise"))


def leak_r(demo: Demo, policy: RowPolicy, repeat_tail: int | None = None) -> Floats:
    """r of the leak-trap vertices over the test run's own showing of the clip, mean over folds.

    Of every subject; a fit by the pure functions, for to cut the clip's own rows only
    (`repeat_tail` = 0) is no setting that a study offers. The showing with its tail is scored always.
    """
    study, delays = demo.study, demo.study.fit.delays
    runs = [
        RunRows(
            run.name,
            run.n_trs,
            tuple((start, stop) for _, start, stop in run.rows("rest", study.tr_s)),
            run.rows("repeat", study.tr_s),
        )
        for run in study.runs
    ]
    onsets = run_onsets(runs)
    attributes = demo.store.attributes_of(fit_group(CLIP, study.subjects.ids[0]))
    features = read_space(demo.store, SpaceSource.from_dict(attributes["variants"][0]["spaces"][0]))
    trap = np.flatnonzero(demo.regions["trap"])
    bold = {subject: read_trap(study, subject, trap) for subject in study.subjects.ids}
    found: dict[str, list[Floats]] = {subject: [] for subject in bold}
    scored = outer_folds(runs, delays, policy, "rotate")
    trained = outer_folds(runs, delays, policy, "rotate", repeat_tail=repeat_tail)
    for fold in (replace(fold, test=other.test) for fold, other in zip(trained, scored, strict=True)):
        kernel = window_gram(base_gram(standardise(features, fold.train)[0]), delays, onsets)
        operators = make_operators(kernel, fold, study.fit.exponents())
        for subject, courses in bold.items():
            found[subject].append(fit_block(courses, operators, onsets).r)
    return np.concatenate([np.mean(of_folds, axis=0) for of_folds in found.values()])


def read_trap(study: Study, subject: str, trap: NDArray[np.intp]) -> NDArray[np.float32]:
    headers = [read_header(find_bold(study.bold.path, study.folder, subject, run.name)) for run in study.runs]
    return np.concatenate([read_block(header, slice(None), trap) for header in headers])


def test_the_repeated_clip_does_not_leak(demo: Demo) -> None:
    assert within_4_standard_errors(leak_r(demo, RowPolicy(repeat_test="only")))


def test_the_trap_would_show_a_leak(demo: Demo) -> None:
    assert leak_r(demo, RowPolicy(repeat_train="keep", repeat_test="only")).mean() > 0.1


def test_cutting_only_the_clips_own_rows_would_leak(demo: Demo) -> None:
    """Kept rests show it: in them lies the tail of the response, with the clip in the window."""
    policy = RowPolicy(rest="keep", repeat_test="only")
    assert leak_r(demo, policy, repeat_tail=0).mean() > 0.1
    assert within_4_standard_errors(leak_r(demo, policy))


def test_untrained_models_are_named_so_everywhere(demo: Demo) -> None:
    page = (report_folder(demo.study.store_path) / "report.html").read_text()
    assert "clip[untrained, seed 0]" in page
    assert "simulated" in page.lower()
    for subject in demo.study.subjects.ids:
        attributes = json.loads((demo.store.path / fit_group(CLIP, subject) / "zarr.json").read_text())
        assert attributes["attributes"]["feature_set"] == CLIP


def test_demo_needs_at_most_5_gb(demo: Demo) -> None:
    files = [path for path in Path(demo.study.folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5e9

"""What warnings and facts say of fits that were made differently, on a real study of feature files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_here import run_plan

from hpcenc.storage.departures import departures, settings_of
from hpcenc.storage.errors import StoreError
from hpcenc.storage.layout import AVERAGE, SWEEPS, cache_folder
from hpcenc.storage.results import fit_groups, read_progress, read_voxels, require_scores
from hpcenc.storage.store import Store
from hpcenc.storage.study import Average, Models, Study, Sweeps, parse_study
from hpcenc.tasks.report.build import build_report
from hpcenc.tasks.report.courses import make_courses
from hpcenc.tasks.report.data import TimeCourse
from hpcenc.tasks.report.leftovers import find_leftovers
from hpcenc.tasks.report.methods_section import methods_section
from hpcenc.tasks.report.provenance import Origin, origin_warnings, read_origins, row_lines, setting_lines
from hpcenc.tasks.report.unfinished import unfinished_warnings

N_TRS = {"A": 60, "B": 50, "C": 70, "D": 40}
N_VOXELS = 20


@dataclass
class Lab:
    """A folder of feature files and BOLD of two subjects, and the store that fits go to."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "study.zarr")

    @property
    def origins(self) -> tuple[Origin, ...]:
        return read_origins(self.store, require_scores(self.store))

    @property
    def warnings(self) -> list[str]:
        return list(origin_warnings(self.origins))

    def study(self, subjects: Sequence[str] = ("s1", "s2"), rest_s: float = 5, **settings: Any) -> Study:
        runs = [
            {"name": run, "n_trs": n_trs, "segments": [{"kind": "rest", "start_s": 0, "end_s": rest_s}]}
            for run, n_trs in N_TRS.items()
        ]
        data = {
            "name": "provenance",
            "tr_s": 1.0,
            "store": "study.zarr",
            "runs": runs,
            "subjects": {"ids": list(subjects), "runs_of": settings.pop("runs_of", {})},
            "bold": {"path": "{subject}_{run}.npy"},
            "feature_files": {name: {"path": f"{name}_{{run}}.npy"} for name in ("first", "second")},
            "fit": {"delays": [1, 2], "n_alphas": 4, "block": 2500, "backend": "numpy", **settings},
        }
        return parse_study(data, self.folder)

    def fit(self, *args: Any, models: str = "first", **settings: Any) -> Study:
        """Plan a study and run what is left of it."""
        study = self.study(*args, **settings)
        self.run(study, models)
        return study

    def run(self, study: Study, models: str = "first") -> None:
        run_plan(study, models)


def write_features(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for run, n_trs in N_TRS.items():
        for name in ("first", "second"):
            np.save(folder / f"{name}_{run}.npy", rng.standard_normal((n_trs, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature set `first` in both subjects."""
    folder = tmp_path_factory.mktemp("lab")
    write_features(folder, 0)
    rng = np.random.default_rng(1)
    for run, n_trs in N_TRS.items():
        for subject in ("s1", "s2"):
            bold = rng.standard_normal((n_trs, N_VOXELS))
            bold[1:, :3] += np.load(folder / f"first_{run}.npy")[:-1]
            np.save(folder / f"{subject}_{run}.npy", bold.astype(np.float32))
    Lab(folder).fit()
    return folder


@pytest.fixture
def lab(fitted: Path, tmp_path: Path) -> Lab:
    shutil.copytree(fitted, tmp_path / "lab")  # keeps the times of BOLD, which are part of its identity
    return Lab(tmp_path / "lab")


def lines(pairs: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [text for found, text in pairs if found == name]


def test_fits_under_one_setting_need_no_warning(lab):
    assert lab.warnings == []
    assert lines(setting_lines(lab.origins), "delays") == ["1 2"]
    assert lines(setting_lines(lab.origins), "weights") == [lab.study().fit.weights_of(("first",), "s1")]
    assert lines(row_lines(lab.origins), "test run D") == [
        "of A, B, C, D: 159 training, 33 test; left out: 21 train rest, 7 test rest"
    ]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"delays": [1, 2, 3]}, "delays"),
        ({"n_alphas": 5}, "alpha exponents"),
        ({"basis_tolerance": 1e-4}, "solver"),
        ({"solver": "fast"}, "solver"),
        ({"rest": "keep"}, "row policy"),
        ({"rest_s": 8}, "runs"),
        ({"test_runs": ["A"]}, "test runs"),
        ({"outer": "rotate"}, "test runs"),
    ],
)
def test_subjects_under_other_settings_are_warned_of(lab, changes, name):
    lab.fit(["s2"], **changes)
    (warning,) = lab.warnings
    assert f"first: subjects were fitted under different settings: {name} (s1; s2); their means" in warning


def test_subjects_that_lack_runs_are_warned_of(lab):
    lab.fit(outer="rotate", runs_of={"s2": ["A", "B", "D"]})
    (warning,) = lab.warnings
    assert "settings: runs (s1; s2), test runs (s1; s2);" in warning
    assert len(lines(row_lines(lab.origins), "test run A")) == 2
    assert len(lines(row_lines(lab.origins), "test run C")) == 1


def test_subjects_on_other_features_are_warned_of_though_the_group_has_their_name(lab):
    write_features(lab.folder, 2)
    lab.fit(["s2"])
    (warning,) = lab.warnings
    assert "first: subjects were fitted under different settings: features (s1; s2);" in warning
    lab.fit()
    assert lab.warnings == []


def test_feature_sets_under_other_settings_are_warned_of(lab):
    lab.fit(models="second", delays=[1, 2, 3])
    (warning,) = lab.warnings
    assert "Feature sets were fitted under different delays (first; second)" in warning


@pytest.mark.parametrize("name", ["alpha of", "BOLD z-scored over", "features z-scored over"])
def test_feature_sets_that_were_scaled_or_penalised_otherwise_are_warned_of(lab, name):
    changes = {
        "alpha of": {"alpha": "shared"},
        "BOLD z-scored over": {"zscore_bold": "movie"},
        "features z-scored over": {"zscore_features": "movie"},
    }
    lab.fit(models="second", **changes[name])
    assert any(f"Feature sets were fitted under different {name}" in warning for warning in lab.warnings)


@pytest.mark.parametrize("change", ["a file", "a rest"])
def test_feature_sets_on_other_bold_of_a_subject_are_warned_of(lab, change):
    if change == "a file":
        path = lab.folder / "s2_B.npy"
        np.save(path, np.load(path)[::-1])
    lab.fit(models="second", rest_s=8 if change == "a rest" else 5)
    (warning,) = lab.warnings
    whom = "s2" if change == "a file" else "s1, s2"
    assert f"Feature sets were not all fitted to the same BOLD of {whom}: " in warning


def test_feature_sets_of_other_numbers_of_layers_have_the_same_bold(lab):
    found = require_scores(lab.store)[0]
    layers = found.attributes["variants"] * 2
    more = replace(found, attributes=found.attributes | {"feature_set": "second", "variants": layers})
    assert list(origin_warnings(read_origins(lab.store, [found, more]))) == []


def test_a_run_by_another_name_has_the_same_bold(lab):
    for path in lab.folder.glob("*_A.npy"):
        path.rename(path.with_name(path.name.replace("_A", "_A2")))
    study = lab.study()
    runs = tuple(run.model_copy(update={"name": run.name.replace("A", "A2")}) for run in study.runs)
    lab.run(study.model_copy(update={"runs": runs}), "second")
    assert lab.warnings == []


def test_an_average_that_was_made_anew_is_not_taken_for_that_of_earlier_fits(lab):
    def averaged(how: str) -> Study:
        return lab.study().model_copy(update={"average": Average(bold=how)})

    lab.run(averaged("zscored"))
    lab.run(averaged("raw"), "second")
    assert any("the same BOLD of average: files, runs" in warning for warning in lab.warnings)
    text, _ = methods(lab, averaged("raw"))
    assert "and to an average of subjects that was made anew since" in text
    found = [each for each in require_scores(lab.store) if each.attributes["subject"] == AVERAGE]
    courses, (reason,) = make_courses(lab.store, found, read_voxels(lab.store), averaged("raw"))
    assert [course.feature_set for course in courses] == ["second"]
    assert reason == "first, subject average: the average was made anew since the fit. Submit again."


def test_what_differs_is_listed_with_whose_it_is(lab):
    lab.fit(models="second")
    lab.fit(["s2"], delays=[1, 2, 3])
    rows = lines(row_lines(lab.origins), "test run D")
    assert [text.rpartition(" — ")[2] for text in rows] == ["first of s1; second of s1, s2", "first of s2"]
    assert lines(setting_lines(lab.origins), "delays") == [
        "1 2 — first of s1; second of s1, s2",
        "1 2 3 — first of s2",
    ]


def test_the_page_states_the_settings_of_the_fits_and_not_of_the_latest_run(lab):
    study = lab.study(delays=[4])
    run = {"study": study.model_dump(mode="json")}
    page = build_report(study, run, [], []).files.html.read_text("utf-8")
    assert "<dt>delays</dt>\n<dd>1 2</dd>" in page


def test_the_page_counts_the_comparisons_of_the_fast_solver_with_exact_scores(lab):
    def page(study: Study) -> str:
        return build_report(study, {}, [], []).files.html.read_text("utf-8")

    assert "none was compared" in page(lab.study())
    assert "0 of 40 compared vertices differed" in page(lab.fit(solver="fast"))


def courses_of(lab: Lab, study: Study) -> tuple[list[float], tuple[str, ...]]:
    store = lab.store
    courses, missing = make_courses(store, require_scores(store), read_voxels(store), study)
    return [course.r for course in courses], missing


def test_the_course_of_the_best_vertex_has_the_r_of_its_fit(lab):
    (r,), missing = courses_of(lab, lab.study())
    assert r == pytest.approx(max(np.nanmax(scores.r) for scores in require_scores(lab.store)), abs=1e-5)
    assert missing == ()


def test_no_course_is_made_of_operators_that_were_cleaned_away(lab):
    shutil.rmtree(cache_folder(lab.store.path))
    courses, (reason,) = courses_of(lab, lab.study())
    assert courses == []
    assert reason.startswith("first, subject s")
    assert "operators cannot be read" in reason


def test_no_course_is_made_of_bold_that_is_not_the_fitted_file(lab):
    for path in lab.folder.glob("s?_?.npy"):
        np.save(path, np.load(path)[::-1])
    courses, (reason,) = courses_of(lab, lab.study())
    assert courses == []
    assert "the file has changed since the fit" in reason
    for path in lab.folder.glob("s?_?.npy"):
        path.unlink()
    assert "expected one file" in courses_of(lab, lab.study())[1][0]


def test_a_course_is_of_the_run_that_it_names(lab):
    def course(study: Study) -> TimeCourse:
        (found,), _ = make_courses(lab.store, require_scores(lab.store), read_voxels(lab.store), study)
        return found

    of_last = course(lab.study())
    assert (of_last.fold, of_last.run) == ("D", "D")
    of_first = course(lab.fit(test_runs=["B", "D"]))
    assert (of_first.fold, of_first.run) == ("B+D", "B")
    assert of_first.time_s[-1] == N_TRS["B"] - 1
    page = build_report(lab.study(test_runs=["B", "D"]), {}, [], []).files.html.read_text("utf-8")
    assert "over B, of the test rows of B+D: r =" in page


def test_vertices_whose_prediction_is_constant_are_no_damaged_bold(lab):
    path = lab.folder / "first_D.npy"
    np.save(path, np.ones_like(np.load(path)))
    damaged = build_report(lab.fit(delays=[0]), {}, [], []).damaged
    assert len(damaged) == 2
    for line in damaged:
        assert line.endswith("vertices have no r, for their prediction is constant over the test rows")


def methods(lab: Lab, study: Study) -> tuple[str, dict[str, str]]:
    """What the methods section says, and the departures that it lists."""
    left_over = {each.group for each in find_leftovers(lab.store, study)}
    swept = [kind for kind in SWEEPS if set(fit_groups(lab.store, kind)) - left_over]
    section = methods_section(lab.store, study, require_scores(lab.store), {}, [], swept)
    rows = section.tables[0].rows if section.tables else ()
    return " ".join(section.paragraphs), {row.key: row.found for row in rows}


@pytest.mark.parametrize(
    ("fit", "said", "not_said"),
    [
        ({}, "an alpha for each vertex, of 4 from", "given"),
        ({"alpha": "shared"}, "one alpha for all vertices of a subject, of 4 from", "each vertex"),
        ({"alpha": 5.0}, "with the alpha 5, which was given, for all vertices (solver", "least mean squared"),
        ({"min_fold_trs": 45}, "a run of fewer than 45 rows joins its neighbour", "given"),
    ],
)
def test_methods_say_where_alphas_are_from(lab: Lab, fit: dict[str, Any], said: str, not_said: str) -> None:
    text, _ = methods(lab, lab.fit(**fit))
    assert said in text
    assert not_said not in text


def test_methods_are_those_of_the_fits_and_not_of_a_later_study_file(lab: Lab) -> None:
    lab.fit(alpha=5.0)
    text, departed = methods(lab, lab.study(zscore_bold="movie", delays=[3]))
    assert departed == {"fit.delays": "1 2", "fit.n_alphas": "4", "fit.alpha": "5.0"}
    assert "at delays of 1 2 TRs" in text
    lab.fit(("s2",))
    _, departed = methods(lab, lab.study())
    assert departed["fit.alpha"] == "5.0 (some fits)"
    assert departed["fit.delays"] == "1 2"


def test_methods_name_the_versions_that_fits_were_made_with(lab: Lab) -> None:
    def said(**run: Any) -> str:
        found = require_scores(lab.store)
        return methods_section(lab.store, lab.study(), found, run, []).paragraphs[0]

    latest = {"hpcenc": "3", "numpy": "2.2"}
    made = [{"hpcenc": "1", "numpy": "2.0"}, {"hpcenc": "2", "numpy": "2.0"}]
    assert "with hpcenc 1 or 2 (numpy 2.0), to 2 subjects" in said(versions=latest, fitted_with=made)
    assert "with hpcenc 3 (numpy 2.2), to 2 subjects" in said(versions=latest, fitted_with=[])


def test_methods_say_what_joined_layers_are_made_of(lab: Lab) -> None:
    assert "side by side" not in methods(lab, lab.study())[0]
    found = require_scores(lab.store)
    layers = [[f"features/cavmae/main/{run}/{layer}" for layer in ("audio", "visual")] for run in N_TRS]
    for how in ("mean", "concat"):
        space = {"name": f"cavmae/{how}", "arrays": layers, "how": how, "n_features": 3}
        variants = [variant | {"spaces": [space]} for variant in found[0].attributes["variants"]]
        found.append(replace(found[0], attributes=found[0].attributes | {"variants": variants}))
    text = " ".join(methods_section(lab.store, lab.study(), found, {}, []).paragraphs)
    assert "cavmae/mean is the mean of cavmae/audio and cavmae/visual, feature by feature; " in text
    assert "cavmae/concat has cavmae/audio and cavmae/visual side by side." in text


def test_methods_name_the_sweeps_that_the_study_asks_for(lab: Lab) -> None:
    swept = lab.study().model_copy(update={"sweeps": Sweeps(delays=(1, 2))})
    lab.run(swept)
    text, _ = methods(lab, swept)
    assert "Beside these, single delays were fitted" in text
    text, _ = methods(lab, lab.study())
    assert "Beside these" not in text


def test_what_is_not_finished_of_a_sweep_is_told_at_the_head(lab: Lab) -> None:
    swept = lab.study().model_copy(update={"sweeps": Sweeps(delays=(1, 2))})
    lab.run(swept)
    assert list(unfinished_warnings(lab.store, read_progress(lab.store), ())) == []
    (lab.store.path / "delays" / "first" / "s2" / "done" / "0").unlink()
    progress = read_progress(lab.store)
    (line,) = unfinished_warnings(lab.store, progress, ())
    assert line == "Single delays of first: not shown of s2: no voxel block is done."
    assert list(unfinished_warnings(lab.store, progress, {"delays/first/s2"})) == []
    page = build_report(swept, {}, [], []).files.html.read_text("utf-8")
    assert "Single delays of first: not shown of s2" in page


def test_fits_of_which_nothing_is_done_and_of_subjects_that_left_have_no_part_in_the_report(lab: Lab) -> None:
    lab.fit(models="second")
    rmtree_of = lab.store.attributes_of("fits/second/s1")["variants"][0]["operators"][0]
    shutil.rmtree(lab.store.path / rmtree_of)  # as where they could never be made
    for subject in ("s1", "s2"):
        (lab.store.path / "fits" / "second" / subject / "done" / "0").unlink()
    page = build_report(lab.study(), {}, [], []).files.html.read_text("utf-8")
    assert "Fits of second: not shown of s1, s2: no voxel block is done." in page
    assert "mean of 2 subjects" in page
    page = build_report(lab.study(["s1"]), {}, [], []).files.html.read_text("utf-8")
    assert "Fits, first, of s2: left over from an earlier study file, and not shown." in page
    assert "mean of 2 subjects" not in page
    (lab.store.path / "fits" / "first" / "s1" / "done" / "0").unlink()
    with pytest.raises(StoreError, match="no fits here yet"):
        build_report(lab.study(["s1"]), {}, [], [])


def test_settings_of_models_are_those_of_fits_of_models(lab: Lab) -> None:
    """A fit of feature files stays as it is when they change, and would tell of an old value."""
    settings = require_scores(lab.store)[0].attributes["settings"]
    assert (settings["models"], settings["average"]) == (None, None)
    study = lab.study().model_copy(update={"models": Models(audio_align="centred")})
    assert {each.key for each in departures(settings_of(study, audio=False))} >= {"fit.delays"}
    assert "models.audio_align" not in {each.key for each in departures(settings_of(study, audio=False))}
    assert "models.audio_align" in {each.key for each in departures(settings_of(study))}


def test_the_last_run_by_its_name_is_no_departure(lab: Lab) -> None:
    _, departed = methods(lab, lab.fit(test_runs=["D"]))
    assert "fit.test_runs" not in departed


def test_facts_tell_given_and_shared_alphas_and_how_rows_were_scaled(lab: Lab) -> None:
    lab.fit(alpha=5.0, zscore_bold="movie", split_s=150.0)
    lines = dict(setting_lines(lab.origins))
    assert lines["alpha exponents"] == "none: alpha 5 is given"
    assert lines["alpha of"] == "all vertices"
    assert lines["BOLD z-scored over"] == "all used rows of all runs, test rows among them"
    assert lines["test runs"] == "rows from 150 on"

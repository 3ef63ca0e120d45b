from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import Fit, Run, Segment, Study, load_study, parse_study

MINIMAL: dict[str, Any] = {
    "name": "small",
    "tr_s": 1.0,
    "runs": [
        {"name": "one", "n_trs": 100, "movie": "one.mp4"},
        {"name": "two", "n_trs": 90, "movie": "two.mp4"},
    ],
    "subjects": {"ids": ["100610", "102311"]},
    "bold": {"path": "bold/{subject}_{run}.dtseries.nii"},
}

TOML = """
name = "small"
tr_s = 1
[[runs]]
name = "one"
n_trs = 100
movie = "movies/one.mp4"
segments = [{kind = "rest", start_s = 0, end_s = 20}]
[subjects]
ids = ["100610"]
[bold]
path = "bold/{subject}.npy"
"""


def edited(**changes: Any) -> dict[str, Any]:
    """The minimal study with dotted keys set (``__`` for a dot); None removes a key."""
    data = copy.deepcopy(MINIMAL)
    for key, value in changes.items():
        *tables, last = key.split("__")
        table: Any = data
        for part in tables:
            table = table[int(part)] if part.isdigit() else table.setdefault(part, {})
        if value is None:
            del table[last]
        else:
            table[last] = value
    return data


def exception(feature_set: str) -> dict[str, Any]:
    return {"feature_set": feature_set, "subject": "100610", "weights": "dual"}


def problems_of(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(StudyError) as refused:
        parse_study(edited(**changes), Path("/lab"), "study.toml")
    return refused.value.problems


def test_a_minimal_study_has_the_defaults_of_the_field() -> None:
    study = parse_study(MINIMAL, Path("/lab"))
    assert study.fit.delays == tuple(range(1, 11))
    assert study.fit.exponents() == pytest.approx([-2 + 7 * i / 19 for i in range(20)])
    assert (study.fit.rest, study.fit.repeat_train, study.fit.repeat_test) == ("drop", "drop", "keep")
    assert (study.fit.outer, study.fit.test_runs, study.fit.block) == ("single", (), 10_000)
    assert (study.models.audio_window_s, study.models.audio_align, study.models.audio_pool) == (
        10.0,
        "causal",
        "tr",
    )
    assert study.bold.grayordinates == "cortex"
    assert study.store_path == Path("/lab/results/study.zarr")


def test_what_a_study_changes_in_a_site_profile_is_kept_as_it_is() -> None:
    changes = {"gpu": {"walltime": "1-0", "max_jobs": 4}, "scratch": "$TMPDIR"}
    study = parse_study(edited(cluster={"profile": "my-site.2", "slurm": changes}), Path("/lab"))
    assert (study.cluster.profile, study.cluster.slurm) == ("my-site.2", changes)


def test_a_file_is_read_with_paths_from_its_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(TOML)
    study = load_study(path)
    assert study.resolve(study.runs[0].movies()["main"]) == tmp_path / "movies/one.mp4"
    assert study.resolve("/elsewhere/two.mp4") == Path("/elsewhere/two.mp4")
    assert study.tr_s == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such study file"),
        (b"name = \n", "not valid TOML"),
        (b"\xff\xfe", "cannot be read as a study file"),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_its_path(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "study.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyError, match=message) as refused:
        load_study(path)
    assert str(path) in str(refused.value)


def test_all_errors_of_a_file_come_at_once_with_key_expected_and_found() -> None:
    problems = problems_of(
        tr_s=-1.0, runs__0__n_trs=0, runs__1__movie=None, subjects__ids=[], bold={}, fit__weigths="dual"
    )
    assert problems == (
        "study.toml: tr_s: input should be greater than 0, found -1.0",
        "study.toml: runs.1.n_trs: input should be greater than 0, found 0",
        "study.toml: subjects.ids: input should have at least 1 item, found []",
        "study.toml: bold.path: required, but absent",
        "study.toml: fit.weigths: unknown key; did you mean 'weights'?",
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"subject": {"ids": ["S1"]}}, "subject: unknown key; did you mean 'subjects'?"),
        ({"runs__0__n_tr": 5}, "runs.1.n_tr: unknown key; did you mean 'n_trs'?"),
        (
            {"runs__0__segments": [{"kind": "rest", "start": 0, "end_s": 1, "start_s": 0}]},
            "runs.1.segments.1.start: unknown key; did you mean 'start_s'?",
        ),
        (
            {"models__clip": {"chekpoint": "x.pt"}},
            "models.clip.chekpoint: unknown key; did you mean 'checkpoint'?",
        ),
        (
            {"feature_files": {"runs": {"pth": "{run}.npy", "path": "{run}.npy"}}},
            "feature_files.runs.pth: unknown key; did you mean 'path'?",
        ),
        (
            {"cluster": {"zzz": 1}},
            "cluster.zzz: unknown key; known keys: profile, slurm, n_workers, threads_per_worker",
        ),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest_known_one_of_its_table(
    changes: dict[str, Any], expected: str
) -> None:
    assert f"study.toml: {expected}" in problems_of(**changes)


def test_the_folder_is_no_key_of_the_file() -> None:
    (problem,) = problems_of(folder="/elsewhere")
    assert problem.startswith("study.toml: folder: unknown key; known keys: name, tr_s,")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"runs__0__n_trs": "100"}, "runs.1.n_trs: input should be a valid integer, found '100'"),
        ({"runs__0__n_trs": True}, "runs.1.n_trs: input should be a valid integer, found True"),
        ({"runs__0__n_trs": 100.5}, "runs.1.n_trs: input should be a valid integer, found 100.5"),
        (
            {"subjects__ids": [100610]},
            'subjects.ids.1: a text goes in quotes, "100610"; found the number 100610',
        ),
        ({"subjects__ids": [True]}, "subjects.ids.1: input should be a valid string, found True"),
        ({"simulated": "no"}, "simulated: input should be a valid boolean, found 'no'"),
        ({"tr_s": float("inf")}, "tr_s: input should be a finite number, found inf"),
        ({"tr_s": float("nan")}, "tr_s: input should be a finite number, found nan"),
        ({"fit__delays": "1..10"}, "fit.delays: input should be a list in brackets, found '1..10'"),
        ({"fit__outer": "all"}, "fit.outer: input should be 'single' or 'rotate', found 'all'"),
        ({"fit__alpha_exponents": [1.0]}, "fit.alpha_exponents.2: required, but absent"),
        ({"runs__0__movie": 5}, "runs.1.movie: input should be a valid string, or a table, found 5"),
        ({"runs__0__movie": {"v1": 5}}, 'runs.1.movie.v1: a text goes in quotes, "5"; found the number 5'),
        ({"subjects": [1]}, "subjects: input should be a table, found [1]"),
        ({"fit__alpha": "x"}, "fit.alpha: input should be 'voxel' or 'shared', or a valid number, found 'x'"),
        ({"fit__alpha": 0}, "fit.alpha: input should be 'voxel' or 'shared', or greater than 0, found 0"),
        (
            {"fit__alpha_exponents": [1.0, 2.0, 3.0]},
            "fit.alpha_exponents: input should have at most 2 items, found [1.0, 2.0, 3.0]",
        ),
    ],
)
def test_a_value_of_another_type_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert f"study.toml: {expected}" in problems_of(**changes)


def test_a_value_that_may_have_several_forms_has_one_message() -> None:
    for changes in ({"fit__alpha": "x"}, {"runs__0__movie": 5}, {"runs__0__movie": {"v1": 5}}):
        assert len(problems_of(**changes)) == 1


@pytest.mark.parametrize(
    ("changes", "key", "found"),
    [
        ({"subjects__ids": ["S1", "S1", "S2"]}, "subjects.ids", "named twice: S1"),
        ({"subjects__ids": ["S1", "s1"]}, "subjects.ids", "S1, s1 differ in case or signs only"),
        ({"subjects__ids": ["a b", "a-b"]}, "subjects.ids", "a b, a-b differ in case or signs only"),
        ({"subjects__ids": ["é"]}, "subjects.ids", "'é' leaves no letter or digit"),
        ({"subjects__ids": [" "]}, "subjects.ids", "'' leaves no letter or digit"),
        ({"runs__1__name": "one"}, "runs", "names must differ"),
        ({"runs__1__name": "One"}, "runs", "one, One differ in case or signs only"),
        ({"runs__0__movie": {"V1": "a.mp4", "v1": "b.mp4"}}, "runs.movie", "V1, v1 differ"),
        ({"cluster__profile": "../gpu"}, "cluster.profile", "expected local, serial or the name of"),
        ({"cluster__profile": ""}, "cluster.profile", "expected local, serial or the name of"),
        ({"cluster__slurm": 1}, "cluster.slurm", "input should be a table, found 1"),
        ({"fit__test_runs": ["three"]}, "fit.test_runs", "no run is called three; runs are one, two"),
        ({"subjects__runs_of": {"100610": ["x"]}}, "subjects.runs_of.100610", "no run is called x"),
        ({"subjects__runs_of": {"100610": []}}, "subjects.runs_of.100610", "names no run"),
        ({"subjects__runs_of": {"S9": ["one"]}}, "subjects.runs_of", "not in subjects.ids: S9"),
        ({"subjects__stimulus_of": {"S9": "main"}}, "subjects.stimulus_of", "not in subjects.ids: S9"),
        ({"bold__path": "bold/{subject}.nii"}, "bold.path", "found 'bold/{subject}.nii'"),
        ({"runs__1__n_trs": 10}, "runs.two", "10 TRs are fewer than the longest delay, 10 TRs, needs"),
        ({"store": "s3://bucket/study.zarr"}, "store", "expected a folder of a file system of this machine"),
        ({"fit__delays": []}, "fit.delays", "input should have at least 1 item, found []"),
        ({"fit__delays": [2, 1]}, "fit.delays", "must rise without repeats, found [2, 1]"),
        ({"fit__delays": [1, 1]}, "fit.delays", "must rise without repeats, found [1, 1]"),
        ({"fit__block": 3000}, "fit.block", "multiple of 2500, found 3000"),
        ({"fit__alpha_exponents": [3.0, 1.0]}, "fit.alpha_exponents", "found [3.0, 1.0]"),
        ({"fit__alpha": 300.0, "sweeps": {"bands": True}}, "sweeps.bands", "only where alpha is searched"),
        (
            {"fit__n_alphas": 1, "fit__alpha_exponents": [2.0, 2.0], "sweeps": {"bands": True}},
            "sweeps.bands",
            "only where alpha is searched",
        ),
        ({"vertices": ["L 12"]}, "vertices.1", "expected such as 'left 1234'"),
        ({"fit__alpha_exponents": [1.0, 1.0]}, "fit.alpha_exponents", "20 alphas need a range"),
        ({"fit__n_alphas": 1}, "fit.n_alphas", "two equal fit.alpha_exponents, found [-2.0, 5.0]"),
        ({"models__n_layers": 4}, "models", "for weights = 'untrained' only"),
        ({"feature_files": {"clip": {"path": "{run}.npy"}}}, "feature_files.clip", "another name"),
        ({"feature_files": {"beats-tags": {"path": "{run}.npy"}}}, "feature_files.beats-tags", "another"),
        ({"feature_files": {"a+b": {"path": "{run}.npy"}}}, "feature_files.a+b", "another name"),
        ({"feature_files": {"CLIP": {"path": "{run}.npy"}}}, "feature_files.CLIP", "those of a model"),
        ({"feature_files": {"a-and-b": {"path": "{run}.npy"}}}, "feature_files.a-and-b", "or of a sum lie"),
        (
            {"feature_files": {"clip-untrained-seed-0": {"path": "{run}.npy"}}},
            "feature_files.clip-untrained-seed-0",
            "another name",
        ),
        ({"feature_files": {"pose": {"path": "pose.npy"}}}, "feature_files.pose.path", "must hold {run}"),
        (
            {"fit__weights_exceptions": [{"feature_set": "clip", "subject": "S9", "weights": "dual"}]},
            "fit.weights_exceptions",
            "not in subjects.ids: S9",
        ),
        (
            {"fit__weights_exceptions": [exception("clip+pose")]},
            "fit.weights_exceptions",
            "no feature set 'clip+pose'; known: beats, beats-tags, clip, cavmae, cavmae-audio,",
        ),
        (
            {"fit__outer": "rotate", "fit__test_runs": ["one"]},
            "fit.test_runs",
            "'rotate' makes every run the test run once",
        ),
        (
            {"fit__split_s": 190.0},
            "fit.split_s",
            "last 190 s together, found 190 s to train on; give fewer, so that a test part is left",
        ),
        (
            {"subjects__stimulus": "v2"},
            "subjects.stimulus",
            "no run has a movie of version 'v2'; versions are main",
        ),
        (
            {"subjects__stimulus_of": {"100610": "v1"}},
            "subjects.stimulus_of.100610",
            "no run has a movie of version 'v1'; versions are main",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_with_its_key(changes: dict[str, Any], key: str, found: str) -> None:
    (problem,) = problems_of(**changes)
    assert problem.startswith(f"study.toml: {key}: ")
    assert found in problem


@pytest.mark.parametrize(
    ("segment", "found"),
    [
        ({"kind": "clip", "start_s": 30.0, "end_s": 30.0}, "ends at 30.0 s, before its start at 30.0 s"),
        ({"kind": "repeat", "start_s": 0.0, "end_s": 5.0}, "a 'repeat' segment needs a 'group'"),
        ({"kind": "rest", "start_s": 0.0, "end_s": 5.0, "group": "g"}, "only a 'repeat' segment has one"),
        ({"kind": "clip", "start_s": -1.0, "end_s": 5.0}, "greater than or equal to 0, found -1.0"),
    ],
)  # fmt: skip
def test_a_wrong_segment_is_refused_with_its_place(segment: dict[str, Any], found: str) -> None:
    (problem,) = problems_of(runs__1__segments=[segment])
    assert problem.startswith("study.toml: runs.2.segments.1")
    assert found in problem


def test_a_segment_after_the_end_of_its_run_is_refused() -> None:
    segment = {"kind": "rest", "start_s": 100.0, "end_s": 110.0}
    (problem,) = problems_of(runs__0__segments=[segment])
    assert problem == "study.toml: runs.one: a segment starts at 100.0 s, after the run's end at 100 s"


def test_a_segment_may_end_one_tr_after_its_run_and_no_later() -> None:
    segment = {"kind": "rest", "start_s": 90.0, "end_s": 101.0}
    parse_study(edited(runs__0__segments=[segment]), Path())
    (problem,) = problems_of(runs__0__segments=[{**segment, "end_s": 101.5}])
    assert problem == (
        "study.toml: runs.one: a segment ends at 101.5 s, more than one TR after the run's end at 100 s"
    )


def test_segments_of_a_run_do_not_overlap() -> None:
    late = {"kind": "clip", "start_s": 20.0, "end_s": 40.0}
    parse_study(edited(runs__0__segments=[late, {"kind": "rest", "start_s": 0, "end_s": 20.005}]), Path())
    (problem,) = problems_of(runs__0__segments=[late, {"kind": "rest", "start_s": 0, "end_s": 21}])
    assert problem == "study.toml: runs.one: segments overlap: 0 to 21 s and 20 to 40 s"


def test_sweeps_of_nobody_who_is_fitted_are_refused() -> None:
    only: dict[str, Any] = {"subjects__only": ["100610"], "sweeps": {"subjects": ["102311"]}}
    assert parse_study(edited(**only), Path()).sweeps.subjects == ("102311",)  # no sweep is asked for
    (problem,) = problems_of(**only, sweeps__bands=True)
    assert problem == (
        "study.toml: sweeps.subjects: nothing would be swept: none of 102311 is fitted, subjects.only is "
        "100610. Name one of these, or leave sweeps.subjects out"
    )


def test_weights_exceptions_take_names_sums_and_labels() -> None:
    names = ("clip", "beats+clip[untrained, seed 0]", "pose", "pose+clip")
    changes: dict[str, Any] = {
        "fit__weights_exceptions": [exception(name) for name in names],
        "feature_files": {"pose": {"path": "{run}.npy"}},
    }
    assert len(parse_study(edited(**changes), Path()).fit.weights_exceptions) == len(names)


def test_versions_are_not_asked_of_a_study_without_movies() -> None:
    without = [{"name": "one", "n_trs": 100}, {"name": "two", "n_trs": 90}]
    assert parse_study(edited(runs=without, subjects__stimulus="v2"), Path()).runs[0].movies() == {}


def test_the_example_of_the_manual_is_a_study() -> None:
    manual = Path(__file__).parents[3] / "docs" / "study.md"
    example = manual.read_text().split("```toml\n")[1].split("```")[0]
    assert parse_study(tomllib.loads(example), Path()).subjects.stimulus_of == {"100610": "v1"}


def test_problems_between_tables_come_together() -> None:
    assert len(problems_of(fit__test_runs=["x"], subjects__ids=["S1", "s1"], bold__path="bold.nii")) == 3


@pytest.mark.parametrize(
    ("start_s", "end_s", "tr_s", "rows"),
    [
        (0.0, 20.0, 1.0, (0, 20)),
        (20.0, 40.0, 1.0, (20, 40)),
        (19.5, 40.2, 1.0, (19, 41)),
        (14.9, 29.8, 1.49, (10, 20)),  # whole rows in decimals, not in floating point
        (0.3, 0.9, 0.1, (3, 9)),
        (0.72, 7.2, 0.72, (1, 10)),
        (1.0, 7.0, 2.0, (0, 4)),
        (90.0, 250.0, 1.0, (90, 100)),  # cut to the run
    ],
)
def test_a_row_that_a_segment_touches_counts_as_touched(
    start_s: float, end_s: float, tr_s: float, rows: tuple[int, int]
) -> None:
    run = Run(name="one", n_trs=100, segments=(Segment(kind="rest", start_s=start_s, end_s=end_s),))
    assert run.rows("rest", tr_s) == (("", *rows),)
    assert run.rows("repeat", tr_s) == ()


def test_rows_of_a_repeat_carry_their_group() -> None:
    repeat = Segment(kind="repeat", start_s=80, end_s=90, name="last clip", group="shared")
    assert Run(name="one", n_trs=100, segments=(repeat,)).rows("repeat", 1.0) == (("shared", 80, 90),)


def test_weights_of_one_fit_can_differ_under_either_name_of_its_feature_set() -> None:
    exceptions = (
        {"feature_set": "clip[untrained, seed 0]", "subject": "S1", "weights": "primal"},
        {"feature_set": "beats", "subject": "S2", "weights": "none"},
    )
    fit = Fit.model_validate({"weights": "dual", "weights_exceptions": exceptions})
    assert fit.weights_of(("clip", "clip[untrained, seed 0]"), "S1") == "primal"
    assert fit.weights_of(("clip", "clip[untrained, seed 0]"), "S2") == "dual"
    assert fit.weights_of(("beats", "beats"), "S2") == "none"
    assert fit.weights_of(("beats+clip", "beats+clip"), "S2") == "dual"


def test_one_alpha_needs_no_range() -> None:
    study = parse_study(edited(fit__alpha_exponents=[1.5, 1.5], fit__n_alphas=1), Path())
    assert study.fit.exponents() == (1.5,)


def test_subjects_have_their_own_stimulus_and_runs() -> None:
    study = parse_study(
        edited(
            subjects__stimulus="v2",
            subjects__stimulus_of={"102311": "v1"},
            subjects__runs_of={"102311": ["two"]},
            runs__0__movie={"v1": "a.mp4", "v2": "b.mp4"},
        ),
        Path(),
    )
    assert (study.stimulus_of("100610"), study.stimulus_of("102311")) == ("v2", "v1")
    assert [run.name for run in study.runs_of("100610")] == ["one", "two"]
    assert [run.name for run in study.runs_of("102311")] == ["two"]
    assert study.runs[0].movies() == {"v1": "a.mp4", "v2": "b.mp4"}
    assert study.runs[1].movies() == {"main": "two.mp4"}
    assert Run(name="x", n_trs=5).movies() == {}


def test_a_study_is_frozen() -> None:
    study = parse_study(MINIMAL, Path())
    with pytest.raises(ValidationError, match="frozen"):
        study.fit.block = 2500  # type: ignore[misc]


def test_a_study_survives_the_way_through_json() -> None:
    study = parse_study(edited(runs__0__segments=[{"kind": "rest", "start_s": 0, "end_s": 5}]), Path("/lab"))
    again = Study.model_validate({**study.model_dump(mode="json"), "folder": Path("/lab")})
    assert again == study

"""What a plan holds, and what each edit of a study makes it do again."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcenc.storage.bold import BoldHeader
from hpcenc.storage.marks import write_mark
from hpcenc.storage.study import Study, parse_study
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.decoding import DecodeAudio
from hpcenc.tasks.facts import FeatureFileFacts, ModelFacts, MovieFacts, StudyFacts
from hpcenc.tasks.fitting import FitBlock
from hpcenc.tasks.models import catalogue
from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.operator_task import MakeOperators
from hpcenc.tasks.plan import Plan, Stage, planned_files
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.selection import select_feature_sets

N_TRS = {"A": 100, "B": 90, "C": 80, "D": 70}
N_VOXELS = 6_000
SETS = "clip,beats,mylab"

STUDY: dict[str, Any] = {
    "name": "table",
    "tr_s": 1.0,
    "store": "results/study.zarr",
    "runs": [
        {
            "name": name,
            "n_trs": n_trs,
            "movie": f"{name}.mp4",
            "segments": [
                {"kind": "rest", "start_s": 0, "end_s": 5},
                {"kind": "repeat", "start_s": n_trs - 20, "end_s": n_trs - 5, "group": "clip"},
            ],
        }
        for name, n_trs in N_TRS.items()
    ],
    "subjects": {"ids": ["s1", "s2"]},
    "bold": {"path": "bold/{subject}/{run}.npy"},
    "models": {"weights": "untrained", "n_layers": 2},
    "feature_files": {"mylab": {"path": "mylab_{run}.npy"}, "other": {"path": "other_{run}.npy"}},
    "fit": {
        "delays": [1, 2, 3],
        "n_alphas": 20,
        "basis_tolerance": 1e-5,
        "block": 2500,
        "backend": "numpy",
    },
}


@dataclass(frozen=True)
class Files:
    """What lies on the disk, as far as plans look at it."""

    movies: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    mtime_ns: Mapping[str, int] = field(default_factory=dict)
    place: str = "/data"
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    n_tags: Mapping[str, int] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    n_voxels: int = N_VOXELS


def facts_of(study: Study, files: Files) -> StudyFacts:
    """Facts of a study, as inspection would gather them."""
    place = Path(files.place)
    models = study.models
    specs = {
        name: ModelSpec(
            name,
            weights=models.weights,
            seed=models.seed,
            n_layers=models.n_layers,
            tr_s=study.tr_s,
            window_s=models.audio_window_s,
            align=models.audio_align,
            pool=models.audio_pool,
            n_tags=(catalogue.UNTRAINED_N_TAGS if models.weights == "untrained" else files.n_tags).get(name),
        )
        for name in catalogue.MODELS
    }
    return StudyFacts(
        movies={
            ("main", run): MovieFacts(place / f"{run}.mp4", files.movies.get(run, f"movie {run}"), 224, 298)
            for run in N_TRS
        },
        models={
            name: ModelFacts(
                spec,
                catalogue.label(name, spec.weights, spec.seed),
                files.checkpoints.get(name, spec.weights),
            )
            for name, spec in specs.items()
        },
        feature_files={
            (name, run): FeatureFileFacts(
                place / f"{name}_{run}.npy", files.features.get(f"{name}/{run}", f"{name} {run}"), 7
            )
            for name in study.feature_files
            for run in N_TRS
        },
        bold={
            (subject, run): BoldHeader(
                path=place / f"bold/{subject}/{run}.npy",
                n_trs=n_trs,
                n_voxels=files.n_voxels,
                dtype=np.dtype("<f4"),
                offset=128,
                layout="trs",
                slope=1.0,
                inter=0.0,
                size=128 + 4 * n_trs * files.n_voxels,
                mtime_ns=files.mtime_ns.get(f"{subject}/{run}", 1),
                header_digest="0" * 64,
            )
            for subject in study.subjects.ids
            for run, n_trs in N_TRS.items()
            if f"{subject}/{run}" not in files.damaged
        },
        voxels=VoxelAxis.from_count(files.n_voxels),
    )


def plan_of(
    folder: Path,
    edits: Mapping[str, Any] | None = None,
    files: Files | None = None,
    models: str = SETS,
    layers: str = "default",
) -> Plan:
    """Plan of the study with some of its keys edited (``"fit.delays": [1, 2]``)."""
    data = copy.deepcopy(STUDY)
    for key, value in (edits or {}).items():
        *tables, last = (int(part) if part.isdigit() else part for part in key.split("."))
        table: Any = data
        for name in tables:
            table = table[name] if isinstance(table, list) else table.setdefault(name, {})
        table[last] = value
    study = parse_study(data, folder)
    feature_sets = select_feature_sets(study, models, layers)
    return make_plan(study, feature_sets, facts_of(study, files or Files()), study.fit.backend)


def finish(plan: Plan, store: Path) -> None:
    """Leave the marks that a run of the whole plan would leave."""
    for stage in plan.stages:
        for task in stage.tasks:
            for unit in task.units:
                (store / unit.group / "done").mkdir(parents=True, exist_ok=True)
                write_mark(store, unit.group, unit.index, unit.digest)
                if unit.cached is not None:
                    unit.cached.mkdir(parents=True, exist_ok=True)


def work_of(stage: Stage, store: Path) -> dict[str, set[str]]:
    """Units of a stage that are not done: what they are of, and which of it."""
    found: dict[str, set[str]] = {}
    for task in stage.tasks:
        for unit in task.units:
            if unit.done(store):
                continue
            parts = unit.group.split("/")
            if isinstance(task, MakeOperators):
                name, detail = task.spaces[0].name.split("/")[0], task.rows.folds()[task.fold].name
            elif isinstance(task, FitBlock):
                name, detail = "ceiling" if parts[0] == "ceilings" else parts[1], task.subject
            elif stage.name == "decode":
                name, detail = "audio" if isinstance(task, DecodeAudio) else "frames", parts[-1].upper()
            else:
                name, detail = parts[1], parts[-1].upper()
            found.setdefault(name.partition("-")[0], set()).add(detail)
    return found


def written(found: Mapping[str, set[str]], everything: Mapping[str, set[str]]) -> str:
    """``clip beats:A,B``: all of the first, two of the second."""
    words = []
    for name in sorted(found):
        whole = found[name] >= everything.get(name, {"?"})
        words.append(name if whole else f"{name}:{','.join(sorted(found[name]))}")
    return " ".join(words)


def reruns(base: Plan, edited: Plan, store: Path) -> tuple[str, ...]:
    """What each stage of an edited plan does over, in words."""
    nowhere = store / "nowhere"
    whole = [work_of(stage, nowhere) for stage in base.stages]
    return tuple(
        written(work_of(stage, store), everything)
        for stage, everything in zip(edited.pending(store), whole, strict=True)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """Folder of the study after a whole run, and its plan; tests leave the folder as it is."""
    folder = tmp_path_factory.mktemp("finished")
    plan = plan_of(folder)
    finish(plan, folder / "results" / "study.zarr")
    return folder, plan


ALL = "beats clip mylab"
WITH_CEILING = "beats ceiling clip mylab"
MODELS = "beats clip"
REST_LATER = {"kind": "rest", "start_s": 0, "end_s": 6}
NOTHING = ("", "", "", "")

EDITS = [
    # what is edited, the edit, and what it makes again: decode, extract, operators, fit
    ("nothing", {}, *NOTHING),
    ("name", {"name": "another"}, *NOTHING),
    ("note", {"note": "hello", "simulated": True}, *NOTHING),
    ("cluster", {"cluster.profile": "serial", "cluster.n_workers": 7}, *NOTHING),
    ("the folder of checkpoints, when there are none", {"models.weights_dir": "elsewhere"}, *NOTHING),
    ("a subject leaves", {"subjects.ids": ["s1"]}, *NOTHING),
    ("the range of alphas", {"fit.alpha_exponents": [-1, 4]}, "", "", ALL, ALL),
    ("the number of alphas", {"fit.n_alphas": 10}, "", "", ALL, ALL),
    ("delays", {"fit.delays": [1, 2]}, "", "", ALL, WITH_CEILING),
    ("the basis tolerance, of the exact solver", {"fit.basis_tolerance": 1e-3}, "", "", "mylab", "mylab"),
    ("the solver", {"fit.solver": "exact"}, "", "", MODELS, MODELS),
    ("the solver of few columns", {"fit.solver": "fast"}, "", "", "mylab", "mylab"),
    ("a segment's time", {"runs.0.segments.0": REST_LATER}, "", "", ALL, WITH_CEILING),
    ("a segment's name", {"runs.0.segments.0.name": "fixation"}, *NOTHING),
    ("the rest policy", {"fit.rest": "keep"}, "", "", ALL, WITH_CEILING),
    ("repeats in training", {"fit.repeat_train": "keep"}, "", "", ALL, ALL),
    ("repeats in test", {"fit.repeat_test": "only"}, "", "", ALL, ALL),
    ("the test run", {"fit.test_runs": ["A"]}, "", "", "beats:A clip:A mylab:A", ALL),
    ("the test run, said aloud", {"fit.test_runs": ["D"]}, *NOTHING),
    ("a rotating test run", {"fit.outer": "rotate"}, "", "", "beats:A,B,C clip:A,B,C mylab:A,B,C", ALL),
    ("the kind of weights", {"fit.weights": "dual"}, "", "", "", ALL),
    ("the weights of one fit", {"fit.weights_exceptions": [
        {"feature_set": "clip", "subject": "s1", "weights": "none"}]}, "", "", "", "clip:s1"),
    ("the folds whose weights are kept, where there is one", {"fit.weights_folds": "all"}, *NOTHING),
    ("how BOLD is scaled", {"fit.zscore_bold": "movie"}, "", "", "", ALL),
    ("how features are scaled", {"fit.zscore_features": "movie"}, "", "", ALL, ALL),
    ("the shortest inner fold", {"fit.min_fold_trs": 55}, "", "", ALL, ALL),
    ("where the rows are cut", {"fit.split_s": 260},
        "", "", "beats:last 80 TRs clip:last 80 TRs mylab:last 80 TRs", ALL),
    ("an alpha that is given", {"fit.alpha": 100.0}, "", "", ALL, ALL),
    ("the audio pooling", {"models.audio_pool": "window"}, "", "beats", "beats", "beats"),
    ("the voxel block", {"fit.block": 5000}, "", "", "", WITH_CEILING),
    ("the backend", {"fit.backend": "torch"}, "", "", "", ALL),
    ("alphas in TF32", {"fit.tf32": True}, "", "", "", ALL),
    ("a subject comes", {"subjects.ids": ["s1", "s2", "s3"]},
        "", "", "", "beats:s3 ceiling:s3 clip:s3 mylab:s3"),
    ("a subject's run goes", {"subjects.runs_of": {"s2": ["B", "C", "D"]}},
        "", "", ALL, "beats:s2 ceiling:s2 clip:s2 mylab:s2"),
    ("the models' seed", {"models.seed": 1}, "", MODELS, MODELS, MODELS),
    ("the depth of the models", {"models.n_layers": 3}, "", MODELS, MODELS, MODELS),
    ("the audio window", {"models.audio_window_s": 4.0}, "", "beats", "beats", "beats"),
    ("the audio alignment", {"models.audio_align": "centred"}, "", "beats", "beats", "beats"),
    ("the store's path", {"store": "elsewhere/study.zarr"}, "audio frames", ALL, ALL, WITH_CEILING),
]  # fmt: skip

DISKS = [
    ("all files move", Files(place="/elsewhere"), *NOTHING),
    ("BOLD of one run changes", Files(mtime_ns={"s1/B": 2}), "", "", "",
        "beats:s1 ceiling:s1 clip:s1 mylab:s1"),
    ("a feature file changes", Files(features={"mylab/B": "new"}), "", "mylab:B", "mylab", "mylab"),
    ("a feature file of no set changes", Files(features={"other/B": "new"}), *NOTHING),
    ("a movie changes", Files(movies={"B": "new"}), "audio:B frames:B", "beats:B clip:B", MODELS, MODELS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "decode", "extract", "operators", "fit"),
    [row[1:] for row in EDITS],
    ids=[row[0] for row in EDITS],
)
def test_an_edit_reruns_exactly_what_depends_on_it(
    edit: dict[str, Any], decode: str, extract: str, operators: str, fit: str, finished: tuple[Path, Plan]
) -> None:
    folder, base = finished
    store = folder / edit.get("store", STUDY["store"])
    assert reruns(base, plan_of(folder, edit), store) == (decode, extract, operators, fit)


@pytest.mark.parametrize(
    ("files", "decode", "extract", "operators", "fit"),
    [row[1:] for row in DISKS],
    ids=[row[0] for row in DISKS],
)
def test_a_changed_file_reruns_exactly_what_depends_on_it(
    files: Files, decode: str, extract: str, operators: str, fit: str, finished: tuple[Path, Plan]
) -> None:
    folder, base = finished
    store = folder / "results" / "study.zarr"
    assert reruns(base, plan_of(folder, files=files), store) == (decode, extract, operators, fit)


def test_a_run_by_another_name_makes_anew_what_is_stored_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(edits: Mapping[str, Any]) -> dict[str, str]:
        return {spec.group: spec.digest for spec in plan_of(tmp_path, {"average": {}, **edits}).groups}

    monkeypatch.setitem(N_TRS, "E", N_TRS["D"])
    before, after = digests({}), digests({"runs.3.name": "E"})
    anew = {group for group in before if before[group] != after.get(group, "")}
    assert {"bold/average", "ceilings/s1", "ceilings/average", "fits/mylab/average"} <= anew


@pytest.mark.parametrize(
    ("edits", "change"),
    [({}, {"fit.alpha": "shared"}), ({"fit.outer": "rotate"}, {"fit.weights_folds": "all"})],
)
def test_shared_alphas_and_the_weights_of_all_folds_are_of_the_same_operators(
    edits: Mapping[str, Any], change: Mapping[str, Any], tmp_path: Path
) -> None:
    def digests(edits: Mapping[str, Any]) -> dict[str, str]:
        return {spec.group: spec.digest for spec in plan_of(tmp_path, edits).groups}

    before, after = digests(edits), digests({**edits, **change})
    anew = {group for group in before if before[group] != after.get(group)}
    assert {group.partition("/")[0] for group in anew} == {"fits"}
    assert len(anew) == 6


def test_what_bands_add_goes_by_layer_or_by_set_where_there_are_several(tmp_path: Path) -> None:
    for layers, names in (("default", ["r:beats/2", "r:clip/embedding"]), ("all", ["r:beats", "r:clip"])):
        plan = plan_of(tmp_path, {"sweeps": {"bands": True}}, models="beats+clip", layers=layers)
        (spec,) = (
            spec for spec in plan.groups if spec.group.startswith("bands/") and spec.group.endswith("s1")
        )
        assert spec.arrays["scores"].attributes["score"][-2:] == names


def test_a_new_feature_set_makes_only_its_own(tmp_path: Path) -> None:
    whole, before = plan_of(tmp_path), plan_of(tmp_path, models="clip,mylab")
    store = tmp_path / "results" / "study.zarr"
    finish(before, store)
    assert reruns(whole, whole, store) == ("audio", "beats", "beats", "beats")


def test_a_sum_of_features_that_are_there_needs_operators_and_fits_only(tmp_path: Path) -> None:
    before, after = plan_of(tmp_path), plan_of(tmp_path, models="beats+clip")
    store = tmp_path / "results" / "study.zarr"
    finish(before, store)
    assert [len(stage.tasks) for stage in after.pending(store)] == [0, 0, 1, 6]


def test_more_layers_are_extracted_already(tmp_path: Path) -> None:
    before, after = plan_of(tmp_path), plan_of(tmp_path, layers="all")
    store = tmp_path / "results" / "study.zarr"
    finish(before, store)
    # Each model's shallow layer; the deep one is the default, whose operators are there.
    assert reruns(before, after, store) == ("", "", "beats clip", "beats clip")
    assert len(after.pending(store)[2].tasks) == 2


def test_pretrained_features_depend_on_the_weights_alone(tmp_path: Path) -> None:
    pretrained = {"models.weights": "pretrained", "models.n_layers": 12}
    store = tmp_path / "results" / "study.zarr"
    base = plan_of(tmp_path, pretrained)
    finish(base, store)
    assert reruns(base, plan_of(tmp_path, {**pretrained, "models.seed": 7}), store) == NOTHING
    others = plan_of(tmp_path, pretrained, Files(checkpoints={"clip": "other weights"}))
    assert reruns(base, others, store) == ("", "clip", "clip", "clip")


def test_tags_that_a_store_from_before_does_not_hold_are_extracted(tmp_path: Path) -> None:
    pretrained = {"models.weights": "pretrained", "models.n_layers": 12}
    store = tmp_path / "results" / "study.zarr"
    before = plan_of(tmp_path, pretrained)  # of a version that knew no tags
    finish(before, store)
    after = plan_of(tmp_path, pretrained, Files(n_tags={"beats": 527}))
    assert reruns(before, after, store) == ("", "beats", "beats", "beats")
    (beats, *_) = (spec for spec in after.groups if spec.group == "features/beats/main/a")
    assert beats.arrays["tags"].shape == (N_TRS["A"], 527)
    assert beats.attributes["spec"]["n_tags"] == 527


def test_tags_and_branches_come_from_the_extraction_that_is_there(tmp_path: Path) -> None:
    before = plan_of(tmp_path, models="beats,cavmae")
    after = plan_of(tmp_path, models="beats-tags,cavmae-concat,beats+cavmae-audio")
    store = tmp_path / "results" / "study.zarr"
    finish(before, store)
    assert [len(stage.tasks) for stage in after.pending(store)] == [0, 0, 3, 6]
    widths = {
        space.name: space.n_features
        for task in after.stages[2].tasks
        if isinstance(task, MakeOperators)
        for space in task.spaces
    }
    assert widths == {"beats/tags": 527, "cavmae/concat": 1536, "beats/2": 768, "cavmae/audio": 768}
    fits = {spec.attributes["feature_set"]: spec.attributes for spec in after.groups if "fits/" in spec.group}
    assert fits["beats-tags[untrained, seed 0]"]["modality"] == "audio"


def test_what_only_serves_others_is_not_made_for_its_own_sake(tmp_path: Path) -> None:
    plan, store = plan_of(tmp_path), tmp_path / "results" / "study.zarr"
    finish(plan, store)
    shutil.rmtree(store / "stimulus")
    shutil.rmtree(store.parent / "cache")
    assert reruns(plan, plan, store) == NOTHING
    with_subject = plan_of(tmp_path, {"subjects.ids": ["s1", "s2", "s3"]})
    assert reruns(plan, with_subject, store) == ("", "", ALL, "beats:s3 ceiling:s3 clip:s3 mylab:s3")
    reseeded = plan_of(tmp_path, {"models.seed": 1})
    assert reruns(plan, reseeded, store)[0] == "audio frames"


def test_the_units_of_a_task_that_are_done_stay_done(tmp_path: Path) -> None:
    plan, store = plan_of(tmp_path), tmp_path / "results" / "study.zarr"
    finish(plan, store)
    (store / "fits" / "mylab" / "s2" / "done" / "1").unlink()
    (task,) = plan.pending(store)[3].tasks
    assert task.key == "fit s2 block 1"
    assert [str(unit) for unit in task.units if not unit.done(store)] == ["fits/mylab/s2#1"]


def test_a_chunk_needs_what_its_model_sees_and_hears(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    needs = {task.key: {str(need) for need in task.needs_of(task.units[0])} for task in plan.stages[1].tasks}
    assert needs["extract features/clip-untrained-seed-0/main/a#1"] == {"stimulus/main/a#1"}
    assert needs["extract features/beats-untrained-seed-0/main/a#1"] == {"stimulus/main/a#2"}  # the audio
    assert needs["import features/mylab/files/a#0"] == set()


def test_every_task_needs_units_of_earlier_stages_only(tmp_path: Path) -> None:
    made: set[object] = set()
    for stage in plan_of(tmp_path, {"fit.outer": "rotate"}, models="all").stages:
        for task in stage.tasks:
            assert {need for unit in task.units for need in task.needs_of(unit)} <= made
        made |= {unit for task in stage.tasks for unit in task.units}


def test_keys_are_unique_and_every_unit_is_made_once(tmp_path: Path) -> None:
    tasks = [task for stage in plan_of(tmp_path, models="all").stages for task in stage.tasks]
    units = [unit for task in tasks for unit in task.units]
    assert len({task.key for task in tasks}) == len(tasks)
    assert len(set(units)) == len(units)


def test_a_subject_whose_runs_cannot_be_split_is_set_aside(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, files=Files(damaged=("s2/D",)), edits={"fit.test_runs": ["D"]})
    assert {task.subject for task in plan.stages[3].tasks if isinstance(task, FitBlock)} == {"s1"}
    assert len(plan.set_aside) == 1
    assert plan.set_aside[0].startswith("subject s2: ")


def test_a_subject_without_a_whole_run_is_set_aside(tmp_path: Path) -> None:
    files = Files(damaged=tuple(f"s2/{run}" for run in N_TRS))
    plan = plan_of(tmp_path, {"fit.outer": "rotate"}, files, models="mylab")
    assert plan.set_aside == ("subject s2: no run of it is there and whole",)


def test_a_sweep_that_leaves_too_few_rows_is_set_aside_and_the_fits_stay(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"sweeps.delays": [0, 58]}, Files(damaged=("s2/A",)), models="mylab")
    (reason,) = plan.set_aside
    assert reason.startswith("subject s2, sweep over delays: ")
    groups = {spec.group for spec in plan.groups}
    assert {"fits/mylab/s1", "fits/mylab/s2", "delays/mylab/s1"} <= groups
    assert "delays/mylab/s2" not in groups


def test_a_cut_moved_through_rows_that_do_not_train_is_another_split(tmp_path: Path) -> None:
    """Both cuts lie in the last run's showing of the clip, which trains in no case; test rows differ."""
    store = tmp_path / "results" / "study.zarr"
    plans = [plan_of(tmp_path, {"fit.split_s": split_s}, models="mylab") for split_s in (321.0, 330.0)]
    finish(plans[0], store)
    assert reruns(plans[0], plans[1], store)[2:] == ("mylab:last 10 TRs", "mylab")


def test_another_way_to_share_an_alpha_makes_fits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan_of(tmp_path, {"fit.alpha": "shared"}, models="mylab")]
    monkeypatch.setattr("hpcenc.tasks.shared_alpha.SHARED_ALPHA_VERSION", 1_000)
    plans.append(plan_of(tmp_path, {"fit.alpha": "shared"}, models="mylab"))
    digests = [{spec.group: spec.digest for spec in plan.groups} for plan in plans]
    assert digests[0]["fits/mylab/s1"] != digests[1]["fits/mylab/s1"]


def test_a_study_that_cannot_be_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training runs"):
        plan_of(tmp_path, {"fit.test_runs": ["A", "B", "C"]})


def test_subjects_of_the_same_runs_share_operators(tmp_path: Path) -> None:
    assert len(plan_of(tmp_path).stages[2].tasks) == 3
    assert len(plan_of(tmp_path, files=Files(damaged=("s2/A",))).stages[2].tasks) == 6


def test_bytes_to_write_are_those_of_the_arrays_and_of_the_operators_beside_the_store(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, models="mylab")
    n_rows = sum(N_TRS.values())
    # Norms of weights at three delays, r in the repeated clip; ceilings.
    scores = (5 + 3 + 1) * 4 * N_VOXELS
    ceilings = 4 * 4 * N_VOXELS
    weights = 4 * 7 * 3 * N_VOXELS
    operators = n_rows + 8 * 20 + 2 * 8 * 7
    (unit,) = (unit for task in plan.stages[2].tasks for unit in task.units)
    arrays = 4 * n_rows * 7 + operators + 2 * (scores + weights + ceilings)
    assert plan.bytes_to_write(tmp_path / "absent.zarr") == arrays + unit.cached_bytes
    # 240 training rows of 21 columns: far fewer columns than rows, so that the forms are of columns.
    assert 21 * 4 * 240 < unit.cached_bytes < 20 * 4 * 240**2


def test_operators_that_need_not_be_made_are_no_bytes_to_write(tmp_path: Path) -> None:
    store, plan = tmp_path / "results" / "study.zarr", plan_of(tmp_path, models="mylab")
    before = plan.bytes_to_write(store)
    (unit,) = (unit for task in plan.stages[2].tasks for unit in task.units)
    finish(plan, store)
    assert plan.bytes_to_write(store) == before - unit.cached_bytes
    assert unit.cached is not None
    unit.cached.rmdir()  # as no fit is left, nothing needs them
    assert plan.bytes_to_write(store) == before - unit.cached_bytes
    (store / "fits/mylab/s1/done/1").unlink()
    assert plan.bytes_to_write(store) == before


def test_the_fits_of_the_reference_study_are_at_most_40_000_files(tmp_path: Path) -> None:
    edits = {"subjects.ids": [f"s{place}" for place in range(176)], "fit.block": 10_000}
    models = "beats,clip,cavmae,beats+clip"
    plan = plan_of(tmp_path, {**edits, "fit.weights": "primal"}, Files(n_voxels=59_412), models)
    fits = [spec for spec in plan.groups if spec.group.startswith("fits/")]
    assert len(fits) == 176 * 4
    assert planned_files(fits) <= 40_000
    assert sum(spec.arrays["weights"].n_files for spec in fits) <= 17_000


GOLDEN = {
    "stimulus/main/a": "e73f4425f2ccf5b7",
    "features/clip-untrained-seed-0/main/a": "be58073281c0d4ab",
    "features/beats-untrained-seed-0/main/a": "7f5e2bfb00b69bd1",
    "features/mylab/files/a": "f9527d6bbb58a9a5",
    "operators/e742326c26daf23b": "e742326c26daf23b",
    "fits/clip-untrained-seed-0/s1": "4995a9b8e0c4e023",
    "fits/mylab/s1": "0a041593e7204bb1",
}


def test_digests_change_with_a_version_only(finished: tuple[Path, Plan]) -> None:
    """If results have changed, raise the version of what makes them; if not, find what changed a digest."""
    digests = {spec.group: spec.digest[:16] for spec in finished[1].groups}
    assert {group: digests.get(group) for group in GOLDEN} == GOLDEN

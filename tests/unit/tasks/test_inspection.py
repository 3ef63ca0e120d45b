"""What the gates find; the messages of a whole command are in the system tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nibabel.cifti2 import BrainModelAxis

from hpcenc.storage.digests import FileDigests, file_digest
from hpcenc.storage.dtseries import write_dtseries
from hpcenc.storage.errors import StudyError
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study, parse_study
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.facts import StudyFacts
from hpcenc.tasks.folds import RowPolicy
from hpcenc.tasks.inspection import check_store, digest_memory, inspect
from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.operator_task import MakeOperators, Rows
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Unit
from hpcenc.tasks.selection import select_feature_sets

AXIS = VoxelAxis.from_count(20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for run in "AB":
        for name in ("first", "second"):
            np.save(tmp_path / f"{name}_{run}.npy", rng.standard_normal((40, 3), dtype=np.float32))
        for subject in ("s1", "s2"):
            np.save(tmp_path / f"{subject}_{run}.npy", rng.standard_normal((40, 20), dtype=np.float32))
    return tmp_path


def study_in(folder: Path, **tables: Any) -> Study:
    data = {
        "name": "x",
        "tr_s": 1.0,
        "runs": [{"name": "A", "n_trs": 40}, {"name": "B", "n_trs": 40}],
        "subjects": {"ids": ["s1", "s2"]},
        "bold": {"path": "{subject}_{run}.npy"},
        "feature_files": {name: {"path": f"{name}_{{run}}.npy"} for name in ("first", "second")},
        **tables,
    }
    return parse_study(data, folder)


def look(study: Study, models: str = "all", subjects: tuple[str, ...] = ("s1", "s2")) -> StudyFacts:
    return inspect(study, select_feature_sets(study, models), subjects, digest_memory(study))


def test_facts_of_what_was_chosen_are_gathered(folder: Path) -> None:
    facts = look(study_in(folder), "first", ("s2",))
    assert set(facts.bold) == {("s2", "A"), ("s2", "B")}
    assert {key: (file.digest, file.n_features) for key, file in facts.feature_files.items()} == {
        ("first", run): (file_digest(folder / f"first_{run}.npy"), 3) for run in "AB"
    }
    assert facts.voxels is not None
    assert facts.voxels.digest() == AXIS.digest()
    assert (facts.movies, facts.models, facts.set_aside) == ({}, {}, ())


def test_files_of_other_feature_sets_are_not_looked_at(folder: Path) -> None:
    (folder / "second_A.npy").unlink()
    assert look(study_in(folder), "first").set_aside == ()


def test_every_problem_is_told_at_once(folder: Path) -> None:
    (folder / "second_A.npy").unlink()
    (folder / "s1_B.npy").unlink()
    np.save(folder / "first_B.npy", np.ones((41, 3)))
    np.save(folder / "s2_A.npy", np.ones((39, 20)))
    with pytest.raises(StudyError) as refused:
        look(study_in(folder))
    assert len(refused.value.problems) == 4


def test_a_damaged_run_is_set_aside_and_the_subject_keeps_the_others(folder: Path) -> None:
    path = folder / "s1_B.npy"
    path.write_bytes(path.read_bytes()[:-10])
    facts = look(study_in(folder))
    assert set(facts.bold) == {("s1", "A"), ("s2", "A"), ("s2", "B")}
    (reason,) = facts.set_aside
    assert reason.startswith("subject s1, run B: ")
    assert "truncated" in reason


def test_runs_that_a_subject_does_not_have_are_not_missed(folder: Path) -> None:
    (folder / "s1_B.npy").unlink()
    study = study_in(folder, subjects={"ids": ["s1", "s2"], "runs_of": {"s1": ["A"]}})
    assert ("s1", "B") not in look(study).bold


def test_hashes_are_remembered_only_when_saved(folder: Path) -> None:
    digests = FileDigests(folder / "memory.json")
    inspect(study_in(folder), select_feature_sets(study_in(folder)), ["s1"], digests)
    assert not (folder / "memory.json").exists()


# The store.


def plan_of(*groups: GroupSpec) -> Plan:
    return Plan((), groups, ())


def group(n_values: int, digest: str = "a" * 64, **attributes: Any) -> GroupSpec:
    arrays = {"values": ArraySpec((n_values,), (n_values,), "float32", ("x",))}
    return GroupSpec("stimulus/main/a", digest, arrays, 1, attributes)


def make_store(study: Study, axis: VoxelAxis = AXIS) -> Store:
    return Store.create(
        study.store_path, {"voxels": axis.digest(), "n_voxels": axis.n_voxels}, {"v": np.arange(3)}
    )


def test_a_store_that_is_not_there_yet_can_be_made(folder: Path) -> None:
    check_store(study_in(folder), AXIS, plan_of(group(10)))


def test_a_store_of_the_same_axis_and_movie_is_taken(folder: Path) -> None:
    study = study_in(folder)
    make_store(study).ensure_group(group(10, movie="m", run="A", stimulus="main"))
    check_store(study, AXIS, plan_of(group(10, movie="m", run="A", stimulus="main")))


def test_a_store_of_another_axis_is_refused(folder: Path) -> None:
    study = study_in(folder)
    make_store(study, VoxelAxis.from_count(21))
    with pytest.raises(StudyError, match=r"another voxel axis \(21 voxels; the BOLD files have 20\)"):
        check_store(study, AXIS, plan_of())


def test_a_store_of_another_movie_is_refused(folder: Path) -> None:
    study = study_in(folder)
    make_store(study).ensure_group(group(10, movie="m", run="A", stimulus="main"))
    with pytest.raises(StudyError, match="another movie of run A"):
        check_store(study, AXIS, plan_of(group(10, movie="other", run="A", stimulus="main")))


def test_a_store_of_another_layout_is_refused(folder: Path) -> None:
    study = study_in(folder)
    study.store_path.mkdir(parents=True)
    (study.store_path / "zarr.json").write_text('{"attributes": {"hpcenc_layout": 99}}')
    with pytest.raises(StudyError, match="another version of hpcenc"):
        check_store(study, AXIS, plan_of())


@pytest.mark.parametrize(
    ("weights", "way_out"),
    [
        ("primal", r"Make space, or set fit\.weights to 'dual' or 'none'\.$"),
        ("dual", r"Make space, or set fit\.weights to 'none'\.$"),
        ("none", r"Make space\.$"),
    ],
)
def test_more_bytes_than_the_disk_has_are_refused(weights: str, way_out: str, folder: Path) -> None:
    with pytest.raises(StudyError, match=rf"the plan writes 4000000\.0 GB\. {way_out}"):
        check_store(study_in(folder, fit={"weights": weights}), AXIS, plan_of(group(10**15)))


def test_operators_beside_the_store_need_space_too(folder: Path) -> None:
    unit = Unit("operators/o", 0, "d" * 64, cached=folder / "cache", cached_bytes=4 * 10**15)
    rows = Rows((), 1, RowPolicy(), "single", ("A",))
    task = MakeOperators(
        unit=unit,
        rows=rows,
        fold=0,
        spaces=(),
        delays=(1,),
        nested=False,
        alpha_exponents=(0.0,),
        basis_tolerance=1e-5,
        solver="exact",
        folder=folder,
    )
    plan = Plan((Stage("operators", "cpu", (task,), lasting=True),), (), ())
    with pytest.raises(StudyError, match=r"the plan writes 4000000\.0 GB"):
        check_store(study_in(folder), AXIS, plan)


def test_bytes_that_are_written_already_are_not_asked_for_again(folder: Path) -> None:
    study = study_in(folder)
    make_store(study).ensure_group(group(10))
    check_store(study, AXIS, plan_of(group(10**15)))
    with pytest.raises(StudyError, match="GB free"):
        check_store(study, AXIS, plan_of(group(10**15, digest="b" * 64)))


# Tags.


def write_beats(folder: Path, name: str, n_tags: int | None) -> None:
    """What tells a file of BEATs and its tag head, in the official form."""
    model = {"patch_embedding.weight": torch.zeros(2, 2)}
    contents: dict[str, Any] = {"cfg": {"encoder_layers": 12}, "model": model}
    if n_tags is not None:
        model["predictor.weight"] = torch.zeros(n_tags, 4)
        contents["label_dict"] = {place: f"/m/{place}" for place in range(n_tags)}
    torch.save(contents, folder / name)


def movie_study(folder: Path, **models: Any) -> Study:
    for run in "AB":
        pictures = iter(np.zeros((80, 32, 48, 3), np.uint8))
        write_movie(folder / f"{run}.mp4", pictures, 2, np.zeros((40 * 8_000, 1), np.float32), 8_000)
    runs = [{"name": run, "n_trs": 40, "movie": f"{run}.mp4"} for run in "AB"]
    return study_in(folder, runs=runs, models={"weights_dir": ".", **models})


def test_the_version_of_an_average_of_mixed_versions_is_looked_at_though_nobody_saw_it(folder: Path) -> None:
    study = movie_study(folder, weights="untrained", n_layers=2)
    runs = [{"name": run, "n_trs": 40, "movie": dict.fromkeys(("v1", "v2"), f"{run}.mp4")} for run in "AB"]
    tables = study.model_dump(mode="json", exclude={"runs", "average", "subjects", "folder"})

    def versions(average: dict[str, Any] | None, **subjects: Any) -> set[str]:
        who = {"ids": ["s1", "s2"], "stimulus": "v1", **subjects}
        seen = study_in(folder, **{**tables, "runs": runs, "subjects": who, "average": average})
        return {version for version, _ in look(seen, "clip", seen.scanned).movies}

    mixed = {"stimulus": "v2", "mixed_versions": True}
    assert versions(mixed) == {"v1", "v2"}
    assert versions(mixed, only=["s1"]) == {"v1"}
    assert versions({"stimulus": "v2"}) == versions(None) == {"v1"}


def shallow(study: Study, models: str) -> StudyFacts:
    """As on a login node, which does not look into checkpoints."""
    return inspect(study, select_feature_sets(study, models), ["s1"], digest_memory(study), deep=False)


def test_a_login_node_knows_the_tags_of_a_checkpoint_and_their_names(folder: Path) -> None:
    write_beats(folder, "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt", 3)
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/2,Dog\n1,/m/0,Speech\n")
    found = shallow(movie_study(folder), "beats-tags").models["beats"]
    assert found.spec.n_tags == 3
    assert found.tag_labels == {"mid": ["/m/0", "/m/1", "/m/2"], "display_name": ["Speech", "/m/1", "Dog"]}


def test_a_self_supervised_checkpoint_has_no_tags_and_says_where_they_are(folder: Path) -> None:
    write_beats(folder, "BEATs_iter3_plus_AS2M.pt", None)
    study = movie_study(folder)
    found = shallow(study, "beats").models["beats"]
    assert (found.spec.n_tags, found.tag_labels) == (None, {})
    for models in ("beats-tags", "clip+beats-tags"):
        with pytest.raises(
            StudyError, match=f"{models.replace('+', '.')} needs a checkpoint of beats"
        ) as refused:
            shallow(study, models)
    said = str(refused.value)
    assert "found none in BEATs_iter3_plus_AS2M.pt" in said
    assert "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt (363 MB" in said


def test_an_absent_checkpoint_with_tags_is_asked_for_by_the_files_that_have_them(folder: Path) -> None:
    study = movie_study(folder)

    def said(models: str) -> str:
        with pytest.raises(StudyError) as refused:
            shallow(study, models)
        return str(refused.value)

    finetuned, plain = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt (", "BEATs_iter3_plus_AS2M.pt ("
    for models in ("beats-tags", "beats,beats-tags+clip"):
        assert "beats: no checkpoint with tags in" in said(models)
        assert finetuned in said(models)
        assert plain not in said(models)
    assert plain in said("beats")
    text = said("cavmae-tags")
    assert "as_46.6.pth (" in text
    assert "cav-mae-scale++.pth" not in text
    assert "Put it there and name it under [models.cavmae] checkpoint, or" in text
    assert "name it under" not in said("cavmae")


def test_untrained_models_have_tags_without_names(folder: Path) -> None:
    models = shallow(movie_study(folder, weights="untrained"), "beats-tags,clip,cavmae-tags").models
    assert {name: found.spec.n_tags for name, found in models.items()} == {
        "beats": 527,
        "clip": None,
        "cavmae": 527,
    }
    assert all(found.tag_labels == {} for found in models.values())


def test_one_file_of_two_subjects_is_refused(folder: Path) -> None:
    (folder / "s2_A.npy").unlink()
    (folder / "s2_A.npy").symlink_to(folder / "s1_A.npy")
    with pytest.raises(StudyError, match="is the file of subject s1, run A and of subject s2, run A"):
        look(study_in(folder))


def test_files_without_what_a_study_asks_for_are_named(folder: Path) -> None:
    thalamus = BrainModelAxis.from_mask(np.ones((2, 5, 2), bool), affine=np.eye(4), name="thalamus_left")
    for subject in ("s1", "s2"):
        for run in "AB":
            values = np.random.default_rng(0).standard_normal((40, 20), dtype=np.float32)
            write_dtseries(
                folder / f"{subject}_{run}.dtseries.nii", values, VoxelAxis.from_cifti(thalamus), 1.0
            )
    study = study_in(folder, bold={"path": "{subject}_{run}.dtseries.nii"})
    with pytest.raises(StudyError, match=r"s1_A\.dtseries\.nii: no cortex among the structures"):
        look(study)

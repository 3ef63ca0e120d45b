"""Wrong input ends with one clear message and nothing written; damaged data is set aside."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from nibabel.cifti2 import BrainModelAxis
from numpy.typing import NDArray

from hpcenc.cluster.submit import prepare, prepare_study, submit
from hpcenc.slurm.profiles import find_profile
from hpcenc.storage.dtseries import write_dtseries
from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import load_study
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.movie_writer import write_movie

PARITY = Path(__file__).parents[1] / "data" / "parity"
N_TRS = {"A": 50, "B": 45, "C": 40}

Hpcenc = Callable[..., Result]
Edit = Callable[[str, str], None]


def check_refused(hpcenc: Hpcenc, folder: Path, *said: str, options: tuple[str, ...] = ()) -> None:
    """`check` and `submit` end with status 2, say it on stderr only, and leave every file as it was."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    for command in ("check", "submit"):
        result = hpcenc(command, *options)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        for part in said:
            assert part in result.stderr
        assert result.stderr.startswith("error: ")
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before


# What the study file says.


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("delays = [1, 2, 3]", "delay = [1, 2, 3]", ("fit.delay", "unknown key", "'delays'")),
        ("tr_s = 1.0", 'tr_s = "one"', ("tr_s", "number", "'one'")),
        ("tr_s = 1.0", "", ("tr_s", "required")),
        ("n_trs = 50", "n_trs = -50", ("runs.1.n_trs", "greater than 0", "-50")),
        ('ids = ["s1", "s2"]', "ids = []", ("subjects.ids",)),
        ('ids = ["s1", "s2"]', 'ids = ["s1", "s1"]', ("subjects.ids", "twice", "s1")),
        ("block = 5000", "block = 5001", ("fit.block", "2500", "5001")),
        ("block = 5000", 'block = 5000\ntest_runs = ["Z"]', ("fit.test_runs", "Z", "A, B, C")),
        ("[fit]", "[fit", ("not valid TOML",)),
    ],
)
def test_a_wrong_study_file_is_refused(
    old: str, new: str, said: tuple[str, ...], hpcenc: Hpcenc, edit: Edit, study_file: Path
) -> None:
    edit(old, new)
    check_refused(hpcenc, study_file.parent, *said)


def test_everything_wrong_is_told_at_once(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    edit("delays = [1, 2, 3]", "delay = [1]")
    edit("tr_s = 1.0", "tr_s = -1")
    result = hpcenc("submit")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 2)


def test_an_absent_study_file_is_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    study_file.unlink()
    check_refused(hpcenc, study_file.parent, "no such study file", "hpcenc init")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--models", "nosuch"), ("--models", "'nosuch'", "mylab")),
        (("--subjects", "s9"), ("--subjects: the study fits no s9; it fits s1, s2",)),
        (("--subjects", "s1,average"), ("the study fits no average", "needs a table [average]")),
        (("--layers", "clip/99"), ("--layers", "'99'", "embedding")),
        (("--models", "mylab", "--layers", "clip/3"), ("'clip/3'", "no chosen feature set uses", "--models")),
    ],
)
def test_a_wrong_choice_is_refused(
    options: tuple[str, ...], said: tuple[str, ...], hpcenc: Hpcenc, study_file: Path
) -> None:
    check_refused(hpcenc, study_file.parent, *said, options=options)


def test_a_study_that_cannot_be_split_is_refused(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    edit("block = 5000", 'block = 5000\ntest_runs = ["A", "B"]')
    check_refused(hpcenc, study_file.parent, "fold 'A+B'", "at least 2", "Add runs, or hold out fewer.")


# What the files hold.


def test_an_absent_bold_file_is_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    (study_file.parent / "bold" / "s2" / "B.npy").unlink()
    check_refused(
        hpcenc, study_file.parent, "bold.path", "'s2'", "'B'", "found none", "A.npy, C.npy", "runs_of"
    )


def test_bold_of_another_length_is_refused(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    edit("n_trs = 45", "n_trs = 44")
    np.save(study_file.parent / "mylab_B.npy", np.ones((44, 4), np.float32))
    check_refused(hpcenc, study_file.parent, "run B", "45 TRs", "the study says 44", "Correct")


def test_features_of_another_length_are_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    np.save(study_file.parent / "mylab_B.npy", np.ones((44, 4), np.float32))
    check_refused(hpcenc, study_file.parent, "mylab_B.npy", "expected 45 rows", "found 44")


def test_features_of_other_widths_are_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    np.save(study_file.parent / "mylab_B.npy", np.ones((45, 5), np.float32))
    check_refused(hpcenc, study_file.parent, "feature_files.mylab", "A: 4, B: 5, C: 4")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float, hpcenc: Hpcenc, study_file: Path) -> None:
    path = study_file.parent / "mylab_C.npy"
    features = np.load(path)
    features[3, 1] = value
    np.save(path, features)
    check_refused(hpcenc, study_file.parent, "mylab_C.npy", "1 values are NaN or infinite", "row 3, column 1")


def test_an_absent_feature_file_is_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    (study_file.parent / "mylab_C.npy").unlink()
    check_refused(hpcenc, study_file.parent, "feature_files.mylab", "mylab_C.npy", "'C'")


def write_cifti(folder: Path, run: str, tr_s: float, n_vertices: int = 12) -> None:
    axis = VoxelAxis.from_cifti(BrainModelAxis.from_surface(np.arange(n_vertices), 20, name="CortexLeft"))
    bold = np.random.default_rng(0).standard_normal((N_TRS[run], n_vertices), dtype=np.float32)
    for subject in ("s1", "s2"):
        write_dtseries(folder / "bold" / subject / f"{run}.dtseries.nii", bold, axis, tr_s)


def test_another_tr_in_a_file_is_refused(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    for run in N_TRS:
        write_cifti(study_file.parent, run, tr_s=2.0 if run == "B" else 1.0)
    edit("{subject}/{run}.npy", "{subject}/{run}.dtseries.nii")
    check_refused(hpcenc, study_file.parent, "run B", "says a TR of 2 s", "the study 1 s", "Correct tr_s")


def test_files_of_different_voxel_axes_are_refused(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    for run in N_TRS:
        write_cifti(study_file.parent, run, tr_s=1.0, n_vertices=11 if run == "C" else 12)
    edit("{subject}/{run}.npy", "{subject}/{run}.dtseries.nii")
    check_refused(hpcenc, study_file.parent, "run C", "another voxel axis (11 voxels)", "A.dtseries.nii (12)")


# Movies and checkpoints.


@pytest.fixture
def movie_study(study_file: Path) -> Path:
    """The small study with a movie of 50 s for every run, and untrained models of two layers."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (50, 48, 64, 3), dtype=np.uint8)
    wave = (0.1 * rng.standard_normal(50 * 16_000)).astype(np.float32)
    write_movie(study_file.parent / "movie.mp4", frames, 1, wave, 16_000)
    text = study_file.read_text()
    for run, n_trs in N_TRS.items():
        text = text.replace(f'"{run}"\nn_trs = {n_trs}', f'"{run}"\nn_trs = {n_trs}\nmovie = "{run}.mp4"')
        shutil.copy(study_file.parent / "movie.mp4", study_file.parent / f"{run}.mp4")
    study_file.write_text(text.replace("[fit]", '[models]\nweights = "untrained"\nn_layers = 2\n\n[fit]'))
    return study_file


def test_a_study_with_movies_is_planned(movie_study: Path, hpcenc: Hpcenc) -> None:
    result = hpcenc("check", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["stages"]["decode"] == {"units": 6, "to_do": 6}


def test_an_absent_movie_is_refused(movie_study: Path, hpcenc: Hpcenc) -> None:
    (movie_study.parent / "B.mp4").unlink()
    check_refused(hpcenc, movie_study.parent, "runs.B", "no movie at", "B.mp4", "Correct `movie`")


def test_a_movie_that_is_too_short_is_refused(movie_study: Path, hpcenc: Hpcenc, edit: Edit) -> None:
    frames: NDArray[np.uint8] = np.zeros((48, 48, 64, 3), np.uint8)
    write_movie(movie_study.parent / "A.mp4", frames, 1, np.zeros(48 * 16_000, np.float32), 16_000)
    check_refused(hpcenc, movie_study.parent, "run 'A'", "48", "50", "at most one TR less")


def test_a_broken_movie_is_refused(movie_study: Path, hpcenc: Hpcenc) -> None:
    (movie_study.parent / "C.mp4").write_bytes(b"<html>not found</html>" * 100)
    check_refused(hpcenc, movie_study.parent, "C.mp4")


def test_a_silent_movie_is_refused_for_models_that_hear(movie_study: Path, hpcenc: Hpcenc) -> None:
    write_movie(movie_study.parent / "A.mp4", np.zeros((50, 48, 64, 3), np.uint8), 1, None, 16_000)
    check_refused(hpcenc, movie_study.parent, "A.mp4 has no sound", "--models clip")
    assert hpcenc("check", "--models", "clip").exit_code == 0


def test_an_unknown_stimulus_version_is_refused(movie_study: Path, hpcenc: Hpcenc, edit: Edit) -> None:
    edit('ids = ["s1", "s2"]', 'ids = ["s1", "s2"]\nstimulus = "v1"')
    check_refused(hpcenc, movie_study.parent, "'v1'", "versions are main", "subjects.stimulus")


def pretrained(study_file: Path) -> Path:
    """Make a study use checkpoints; returns their folder, which is empty."""
    text = study_file.read_text()
    study_file.write_text(text.replace('weights = "untrained"\nn_layers = 2', 'weights_dir = "weights"'))
    (study_file.parent / "weights").mkdir()
    return study_file.parent / "weights"


@pytest.mark.parametrize(
    ("model", "file", "size"),
    [
        ("beats", "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt", "363 MB"),
        ("clip", "open_clip_model.safetensors", "605 MB"),
        ("cavmae", "cav-mae-scale++.pth", "764 MB"),
    ],
)
def test_an_absent_checkpoint_is_named_with_its_size_and_place(
    model: str, file: str, size: str, movie_study: Path, hpcenc: Hpcenc
) -> None:
    folder = pretrained(movie_study)
    check_refused(hpcenc, movie_study.parent, model, file, size, str(folder), options=("--models", model))


def wrong_checkpoint(folder: Path, kind: str) -> None:
    path = folder / "open_clip_model.safetensors"
    source = PARITY / (
        "beats/tiny_ssl.safetensors" if kind == "another model" else "clip/tiny_vit.safetensors"
    )
    if kind == "a web page":
        path.write_text("<!DOCTYPE html><html>404</html>")
    else:
        data = source.read_bytes()
        path.write_bytes(data[: len(data) // 2] if kind == "truncated" else data)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a web page", "web page"),
        ("truncated", "truncated"),
        ("another model", "looks like"),
        ("of another size", "expected 12 of 768"),
    ],
)
def test_a_wrong_checkpoint_is_refused(kind: str, said: str, movie_study: Path, hpcenc: Hpcenc) -> None:
    folder = pretrained(movie_study)
    wrong_checkpoint(folder, kind)
    check_refused(
        hpcenc, movie_study.parent, "clip", "open_clip_model.safetensors", said, options=("--models", "clip")
    )


# The store.


def stop_before_report(event: dict[str, Any]) -> None:
    if event.get("stage") == "report":
        raise KeyboardInterrupt


def test_a_store_of_another_voxel_axis_is_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    submit(prepare(study_file), "serial", (), stop_before_report)
    for path in (study_file.parent / "bold").rglob("*.npy"):
        np.save(path, np.load(path)[:, :100])
    check_refused(hpcenc, study_file.parent, "another voxel axis (5100 voxels", "100", "choose another place")


def test_a_store_of_another_movie_is_refused(movie_study: Path, hpcenc: Hpcenc) -> None:
    def stop_at_once(event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            raise KeyboardInterrupt

    submit(prepare(movie_study, "clip"), "serial", (), stop_at_once)
    frames = np.random.default_rng(1).integers(0, 255, (50, 48, 64, 3), dtype=np.uint8)
    write_movie(movie_study.parent / "B.mp4", frames, 1, np.zeros(50 * 16_000, np.float32), 16_000)
    check_refused(
        hpcenc,
        movie_study.parent,
        "another movie of run B",
        "Choose another place",
        options=("--models", "clip"),
    )


def test_a_folder_that_is_no_store_is_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    (study_file.parent / "results" / "study.zarr").mkdir(parents=True)
    check_refused(hpcenc, study_file.parent, "no store of hpcenc")


@pytest.mark.parametrize(
    ("place", "said"),
    [("mylab_A.npy/results/study.zarr", "mylab_A.npy is a file"), (300 * "x", "File name too long")],
)
def test_a_store_that_cannot_be_made_is_refused(
    place: str, said: str, hpcenc: Hpcenc, edit: Edit, study_file: Path
) -> None:
    edit('name = "small"', f'name = "small"\nstore = "{place}"')
    check_refused(hpcenc, study_file.parent, said)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    (study_file.parent / "closed").mkdir(mode=0o555)
    edit('name = "small"', 'name = "small"\nstore = "closed/study.zarr"')
    check_refused(hpcenc, study_file.parent, "closed", "cannot be written")


def test_a_plan_larger_than_the_disk_is_refused(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    n_voxels = 1_000_000
    n_features = 1_000 + shutil.disk_usage(study_file.parent).free // (4 * 3 * 2 * n_voxels)
    for run, n_trs in N_TRS.items():
        np.save(study_file.parent / f"mylab_{run}.npy", np.zeros((n_trs, n_features), np.float32))
        for subject in ("s1", "s2"):
            path = study_file.parent / "bold" / subject / f"{run}.npy"
            # A sparse file: as long as it says, and empty on the disk.
            np.lib.format.open_memmap(path, "w+", np.float32, (n_trs, n_voxels))
    check_refused(hpcenc, study_file.parent, "GB free", "the plan writes", "fit.weights")


# Damaged data.


def test_damaged_data_is_set_aside_and_the_rest_goes_on(hpcenc: Hpcenc, edit: Edit, study_file: Path) -> None:
    edit('ids = ["s1", "s2"]', 'ids = ["s1", "s2", "s3"]')
    bold = study_file.parent / "bold"
    values = np.load(bold / "s1" / "B.npy")
    values[:, 3], values[7, 4], values[8, 4_000] = 12.0, np.nan, np.inf
    np.save(bold / "s1" / "B.npy", values)
    cut = bold / "s2" / "C.npy"
    cut.write_bytes(cut.read_bytes()[:-1000])
    for run in N_TRS:
        path = bold / "s3" / f"{run}.npy"
        np.save(path, np.full_like(np.load(path), 5))
    result = hpcenc("submit", "--profile", "serial", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert Path(found["report"]).is_file()
    said = "\n".join(found["set_aside"])
    assert "subject s2, run C" in said
    assert "truncated" in said
    assert "mylab of subject s1: 3 of 5100 vertices" in said
    assert "mylab of subject s3: every vertex" in said
    # s2 lacks the run that everyone is tested on.
    assert "subject s2: test run 'C' is not among the runs present: A, B" in said
    assert found["units_done"] == 3 + 1 + 4
    shown = hpcenc("status").stdout
    assert "done, something was set aside" in shown
    assert "subject s2, run C" in shown


def test_a_study_without_any_whole_subject_is_refused(hpcenc: Hpcenc, study_file: Path) -> None:
    for path in (study_file.parent / "bold").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1000])
    check_refused(hpcenc, study_file.parent, "no subject has a BOLD file that can be read", "truncated")


SITE = """\
scratch = "/tmp"
[controller]
partition = "long"
walltime = 60
[cpu]
partition = "long"
walltime = 10
cores = 2
memory = "MEMORY"
"""


@pytest.mark.parametrize(
    ("memory", "gflops", "said"),
    [
        ("400M", 100.0, "profile 'site': cpu.memory: a worker needs 0.4 GB"),
        (
            "4G",
            1e-5,
            "min on 2 cores like those here, and jobs last 10 min. Ask for at least",
        ),
    ],
)
def test_jobs_that_are_too_small_or_too_short_are_refused_with_the_figures(
    memory: str, gflops: float, said: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "site.toml").write_text(SITE.replace("MEMORY", memory))
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setattr("hpcenc.cluster.pricing.measured_gflops", lambda n_threads: gflops)
    with pytest.raises(StudyError, match=re.escape(said)):
        prepare(study_file, profile="site")
    if gflops < 1:  # the rate of a node that is busy ends no run that goes on there
        study = load_study(study_file)
        site = find_profile("site")
        # The profile's files may lie on the login node alone.
        (tmp_path / "profiles" / "site.toml").unlink()
        assert prepare_study(study, "all", "default", "site", site, deep=True).plan.stages
    assert not (tmp_path / "results").exists()

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcenc.cluster.backend_choice import choose_backend, choose_cluster_backend, try_backend
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import Study, parse_study
from hpcenc.tasks.plan import Plan


def study_of(folder: Path, backend: str, **settings: Any) -> Study:
    data = {
        "name": "x",
        "tr_s": 1.0,
        "runs": [{"name": run, "n_trs": 40} for run in "ABC"],
        "subjects": {"ids": ["s1"]},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {"mylab": {"path": "{run}.npy"}},
        "fit": {"backend": backend, **settings},
    }
    return parse_study(data, folder)


def record(study: Study, chosen: str, how: str | None = "auto: as measured then") -> None:
    settings: dict[str, Any] = {"study": study.model_dump(mode="json"), "backend": chosen}
    if how is not None:
        settings["backend_choice"] = how
    RunFolder.create(study.store_path, "abcdefgh", Plan((), (), ()), settings)


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("name", ["numpy", "torch", "torch-cuda", "cupy"])
def test_a_named_backend_is_taken_at_its_word(name: str, tmp_path: Path) -> None:
    assert choose_backend(study_of(tmp_path, name)) == (name, "named in the study")


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_tf32_is_refused_where_there_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=f"fit.tf32: needs a CUDA device.*'{name}'.*fit.backend"):
        choose_backend(study_of(tmp_path, name, tf32=True))


def test_tf32_is_left_to_a_backend_on_a_device(tmp_path: Path) -> None:
    assert choose_backend(study_of(tmp_path, "cupy", tf32=True)).name == "cupy"


@pytest.mark.usefixtures("no_device")
def test_auto_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    loaded = set(sys.modules)
    choice = choose_backend(study_of(tmp_path, "auto"))
    assert choice.name in ("numpy", "torch")
    assert choice.how.startswith("auto: numpy ")
    assert set(sys.modules) == loaded


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_auto_keeps_to_what_the_latest_run_chose(name: str, tmp_path: Path) -> None:
    study = study_of(tmp_path, "auto")
    record(study, name)
    assert choose_backend(study) == (name, "auto: as measured then")


@pytest.mark.usefixtures("no_device")
def test_auto_is_measured_again_where_the_recorded_backend_no_longer_works(tmp_path: Path) -> None:
    study = study_of(tmp_path, "auto")
    record(study, "cupy")
    choice = choose_backend(study)
    assert choice.name in ("numpy", "torch")
    assert "GFLOP/s" in choice.how


@pytest.mark.usefixtures("no_device")
def test_what_a_study_once_named_does_not_bind_its_auto(tmp_path: Path) -> None:
    record(study_of(tmp_path, "torch"), "torch", "named in the study")
    assert "GFLOP/s" in choose_backend(study_of(tmp_path, "auto")).how
    record(study_of(tmp_path, "auto"), "torch", None)  # a run of before choices were recorded
    assert "GFLOP/s" in choose_backend(study_of(tmp_path, "auto")).how


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize("name", ["torch-cuda", "cupy"])
def test_a_backend_without_its_device_is_an_error_with_the_way_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as error:
        try_backend(study_of(tmp_path, name), name)
    assert str(error.value).startswith(f"fit.backend: backend '{name}' does not work on this machine (")
    assert "gpu-cuda12" in str(error.value)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_backend_that_works_is_described(name: str, tmp_path: Path) -> None:
    described = try_backend(study_of(tmp_path, name), name)
    assert described["tf32"] == "off"
    assert name in described


@pytest.mark.usefixtures("no_child")
def test_for_other_machines_nothing_is_tried_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, "auto")
    assert choose_cluster_backend(study, has_gpus=False).name == "numpy"
    assert choose_cluster_backend(study, has_gpus=True).name == "cupy"
    monkeypatch.setattr("hpcenc.cluster.backend_choice.find_spec", lambda name: name == "torch")
    assert choose_cluster_backend(study, has_gpus=True).name == "torch-cuda"
    assert choose_cluster_backend(study_of(tmp_path, "torch"), has_gpus=True).name == "torch"
    with pytest.raises(StudyError, match=r"fit\.tf32: needs a CUDA device"):
        choose_cluster_backend(study_of(tmp_path, "auto", tf32=True), has_gpus=False)
    record(study, "torch-cuda")
    assert choose_cluster_backend(study, has_gpus=True) == ("torch-cuda", "auto: as measured then")


@pytest.mark.usefixtures("no_child")
def test_a_choice_for_cpus_keeps_no_gpus_idle_and_one_for_gpus_no_cpus(tmp_path: Path) -> None:
    study = study_of(tmp_path, "auto")
    record(study, "torch")
    assert choose_cluster_backend(study, has_gpus=False).name == "torch"
    assert choose_cluster_backend(study, has_gpus=True).name == "cupy"
    record(study, "cupy")
    assert choose_cluster_backend(study, has_gpus=False).name == "numpy"

"""Submit on a study of feature files with a few voxels; its report is left to the system tests."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcenc.cluster.status import read_status
from hpcenc.cluster.submit import choose_subjects, prepare, price, run_settings, submit
from hpcenc.storage.errors import FullError, LockError, StudyError
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import lock_path
from hpcenc.storage.lock import acquire, read_lock, this_process
from hpcenc.storage.store import Store
from hpcenc.storage.study import Average, Study, load_study

STUDY = """\
name = "x"
tr_s = 1.0
runs = [{ name = "A", n_trs = 40 }, { name = "B", n_trs = 40 }, { name = "C", n_trs = 40 }]
[subjects]
ids = ["s1", "s2", "s3"]
stimulus_of = { s2 = "v2" }
runs_of = { s3 = ["A", "B", "C"] }
[bold]
path = "{subject}/{run}.npy"
[feature_files.mylab]
path = "{run}.npy"
[fit]
delays = [1, 2]
backend = "numpy"
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for run in "ABC":
        np.save(tmp_path / f"{run}.npy", rng.standard_normal((40, 3), dtype=np.float32))
        for subject in ("s1", "s2", "s3"):
            (tmp_path / subject).mkdir(exist_ok=True)
            np.save(tmp_path / subject / f"{run}.npy", rng.standard_normal((40, 20), dtype=np.float32))
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def stop_before_report(event: dict[str, Any]) -> None:
    if event.get("stage") == "report":
        raise KeyboardInterrupt


def test_preparing_writes_nothing(study_file: Path) -> None:
    before = sorted(study_file.parent.rglob("*"))
    prepare(study_file)
    assert sorted(study_file.parent.rglob("*")) == before


def test_some_subjects_can_be_chosen_and_the_average_is_of_all_of_them(study_file: Path) -> None:
    study = load_study(study_file)
    chosen = choose_subjects(study, " s3, s2")
    assert chosen.fitted == chosen.scanned == ("s2", "s3")
    averaging = study.model_copy(update={"average": Average()})
    assert averaging.fitted == ("s1", "s2", "s3", "average")
    chosen = choose_subjects(averaging, "average")
    assert chosen.fitted == ("average",)
    assert chosen.scanned == ("s1", "s2", "s3")
    assert choose_subjects(averaging, "s1").scanned == ("s1",)


@pytest.mark.parametrize(
    ("subjects", "said"),
    [
        ("s9,s1", "the study fits no s9; it fits s1, s2, s3"),
        ("s1,average", "it fits s1, s2, s3; average needs a table [average] in the study"),
        ("s1,s1", "expected ids of the study, each once, found 's1,s1'"),
        (" ,", "expected ids"),
        ("", "expected ids"),
    ],
)
def test_subjects_of_no_study_are_refused(subjects: str, said: str, study_file: Path) -> None:
    with pytest.raises(StudyError, match=f"--subjects: .*{re.escape(said)}"):
        choose_subjects(load_study(study_file), subjects)


@pytest.mark.parametrize("left_out", ["s2", "average"])
def test_who_is_left_out_by_the_study_is_said_to_be(left_out: str, study_file: Path) -> None:
    text = STUDY.replace('"s3"]', '"s3"]\nonly = ["s1"]')
    study_file.write_text(text + "[average]\n")
    with pytest.raises(
        StudyError, match=f"fits no {left_out}; it fits s1; subjects.only leaves out the others"
    ):
        choose_subjects(load_study(study_file), f"s1,{left_out}")


def test_a_price_counts_units_groups_and_bytes_before_and_after(study_file: Path) -> None:
    before = price(prepare(study_file))
    assert before["stages"] == {
        "decode": {"units": 0, "to_do": 0},
        "extract": {"units": 3, "to_do": 3},
        "operators": {"units": 1, "to_do": 1},
        "fit": {"units": 3, "to_do": 3},
    }
    assert (len(before["new"]), before["reused"], before["recomputed"]) == (7, [], [])
    assert before["bytes_to_write"] > 0
    submit(prepare(study_file), "serial", (), stop_before_report)
    after = price(prepare(study_file))
    assert all(units["to_do"] == 0 for units in after["stages"].values())
    assert (after["new"], len(after["reused"])) == ([], 7)
    assert (after["files_to_write"], after["bytes_to_write"]) == (0, 0)
    study_file.write_text(STUDY.replace("delays = [1, 2]", "delays = [1, 2]\nweights = 'dual'"))
    changed = price(prepare(study_file))
    assert changed["recomputed"] == [f"fits/mylab/{subject}" for subject in ("s1", "s2", "s3")]
    assert changed["stages"]["operators"]["to_do"] == 0


def test_a_run_of_who_is_not_swept_says_so_and_is_read_again_from_its_folder(study_file: Path) -> None:
    study_file.write_text(STUDY + "[sweeps]\ndelays = [1]\nsubjects = ['s3']\n")
    assert prepare(study_file).idle_sweeps == ()
    (line,) = price(prepare(study_file, subjects="s1"))["idle_sweeps"]
    assert line.startswith("sweeps.subjects: none of s3 is fitted")
    kept = run_settings(prepare(study_file, subjects="s1"), "serial", ())["study"]
    assert Study.model_validate(kept).fitted == ("s1",)  # as its job reads it


def test_a_price_names_what_the_store_has_beyond_the_study(study_file: Path) -> None:
    repeats = ", segments = [{ kind = 'repeat', group = 'clip', start_s = 10, end_s = 30 }] }"
    study_file.write_text(STUDY.replace("n_trs = 40 }", f"n_trs = 40{repeats}"))
    submit(prepare(study_file), "serial", (), stop_before_report)
    assert price(prepare(study_file))["left_over"] == []
    store = Store(study_file.parent / "results" / "study.zarr")
    for group in ("fits/gone/s1", "singles/beats-tags/s1"):
        store.ensure_group(GroupSpec(group, "d" * 64, {}, 1, {}))
    study_file.write_text(STUDY.replace("n_trs = 40 }", f"n_trs = 40{repeats}", 1))  # shown once
    ceilings = [f"ceilings/{subject}" for subject in ("s1", "s2", "s3")]
    assert price(prepare(study_file))["left_over"] == [*ceilings, "fits/gone/s1", "singles/beats-tags/s1"]


def test_a_price_tells_hours_memory_and_bytes_and_nothing_once_all_is_done(study_file: Path) -> None:
    before = price(prepare(study_file))
    flop, hours = before["compute"]["flop"], before["compute"]["hours"]
    assert min(flop["operators"], flop["fit"], flop["weights"], hours["operators"], hours["fit"]) > 0
    assert (before["compute"]["rate"], hours["extract"]) == ("measured", 0)
    assert before["memory"]["task"].startswith("fit s1")
    assert before["memory"]["worker_bytes"] < before["memory"]["granted_bytes"]
    # Files: features of three runs; for each subject its BOLD, the operators, and the features again.
    features, bold = 4 * 120 * 3, 4 * 120 * 20
    operators = before["disk"]["bytes_to_read"] - 2 * features - 3 * (bold + features)
    assert operators > 0
    assert operators % 3 == 0
    # 6 columns in place of 120 TRs.
    assert before["dual_weights"]["saves_bytes"] == 3 * 4 * 20 * (6 - 120)
    assert (before["dual_weights"]["n_primal"], before["dual_weights"]["n_weights"]) == (3, 3)

    submit(prepare(study_file), "serial", (), stop_before_report)
    after = price(prepare(study_file))
    assert set(after["compute"]["flop"].values()) == {0.0}
    assert (after["memory"]["task"], after["disk"]["bytes_to_read"]) == ("", 0)
    assert set(after["dual_weights"].values()) == {0}


def test_a_price_counts_the_fits_that_keep_primal_weights(study_file: Path) -> None:
    exception = '{ feature_set = "mylab", subject = "s2", weights = "primal" }'
    study_file.write_text(
        STUDY.replace("[fit]", f'[fit]\nweights = "dual"\nweights_exceptions = [{exception}]')
    )
    weights = price(prepare(study_file))["dual_weights"]
    assert (weights["n_primal"], weights["n_weights"]) == (1, 3)


GPU_SITE = """\
scratch = "/tmp"
[controller]
partition = "long"
walltime = 60
[cpu]
partition = "batch"
walltime = 60
cores = 4
memory = "8G"
max_jobs = 3
[gpu]
partition = "gpu"
walltime = 60
gpu_request = "--gres=gpu:1"
cores = 2
memory = "16G"
max_jobs = 5
"""


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_the_price_of_a_site_is_that_of_its_workers(
    backend: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "lab.toml").write_text(GPU_SITE)
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setattr("hpcenc.cluster.pricing.measured_gflops", lambda n_threads: 10.0 * n_threads)
    study_file.write_text(STUDY.replace('backend = "numpy"', f'backend = "{backend}"'))
    priced = price(prepare(study_file, profile="lab"))
    compute = priced["compute"]
    rate = (20.0, "of cores like those here") if backend == "numpy" else (100.0, "assumed")
    assert (compute["gflops_per_worker"], compute["rate"]) == rate
    assert (compute["n_workers"], compute["n_threads"]) == (5, 2)
    assert priced["memory"]["granted_bytes"] == 5 * 16 * 1024**3


def test_a_rate_that_cannot_be_measured_here_is_assumed(study_file: Path) -> None:
    study_file.write_text(STUDY.replace('backend = "numpy"', 'backend = "cupy"'))
    compute = price(prepare(study_file))["compute"]
    assert (compute["gflops_per_worker"], compute["rate"]) == (100.0, "assumed")


def test_workers_that_do_not_fit_the_memory_are_refused_with_the_way_out(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = prepare(study_file).peak
    granted = peak.n_bytes - 1
    monkeypatch.setattr("hpcenc.cluster.submit.memory_bytes", lambda: granted)
    before = sorted(study_file.parent.rglob("*"))
    with pytest.raises(StudyError) as refused:
        prepare(study_file)
    (problem,) = refused.value.problems
    gigabytes = f"{peak.n_bytes / 1e9:.1f} GB"
    assert problem == (
        f"memory: a worker needs {gigabytes} (fit s1 block 0), this machine grants {gigabytes}. "
        'Set fit.block to 2500 (it is 10000), or fit.weights to "dual" or "none", or fit.solver to "exact", '
        "or take a machine with more memory."
    )
    assert sorted(study_file.parent.rglob("*")) == before
    assert prepare(study_file, profile="serial").peak.n_bytes < granted  # one task at a time


def test_more_workers_than_the_memory_holds_are_refused(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = prepare(study_file).peak
    monkeypatch.setattr("hpcenc.cluster.submit.memory_bytes", lambda: 3 * peak.n_bytes)
    study_file.write_text(STUDY + "[cluster]\nn_workers = 4\n")
    with pytest.raises(StudyError, match=r"4 workers need .* each .*Set cluster.n_workers to 3, or"):
        prepare(study_file)
    study_file.write_text(STUDY + "[cluster]\nn_workers = 3\n")
    assert prepare(study_file).peak == peak


def test_a_price_counts_the_files_that_a_run_leaves_in_the_store(study_file: Path) -> None:
    priced = price(prepare(study_file))
    submit(prepare(study_file), "serial", (), stop_before_report)
    store = study_file.parent / "results" / "study.zarr"
    files = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
    of_groups = [path for path in files if path.parts[0] not in ("structure", "vertex", "ijk")]
    assert len(of_groups) == priced["files_to_write"]


def test_a_price_counts_what_an_interrupted_run_left(study_file: Path) -> None:
    def stop_before_fits(event: dict[str, Any]) -> None:
        if event.get("stage") == "fit":
            raise KeyboardInterrupt

    whole = price(prepare(study_file))
    submit(prepare(study_file), "serial", (), stop_before_fits)
    left = price(prepare(study_file))
    assert left["stages"]["fit"]["to_do"] == 3
    assert 0 < left["files_to_write"] < whole["files_to_write"]
    assert 0 < left["bytes_to_write"] < whole["bytes_to_write"]


def test_an_interrupted_run_tells_what_it_did(study_file: Path) -> None:
    result = submit(prepare(study_file), "serial", ("submit", "--x"), stop_before_report)
    assert (result.exit_status, result.units_done, result.report) == (3, 7, None)
    assert result.run_folder is not None
    run = json.loads((result.run_folder / "run.json").read_text())
    assert run["command"] == ["submit", "--x"]
    assert (run["profile"], run["backend"], run["feature_sets"]) == ("serial", "numpy", ["mylab"])
    assert run["backend_choice"] == "named in the study"
    store = Store(study_file.parent / "results" / "study.zarr")
    assert run["backend_description"] == store.attributes_of("fits/mylab/s1")["backend_description"]
    assert run["backend_description"]["tf32"] == "off"
    assert not lock_path(study_file.parent / "results" / "study.zarr").exists()


def test_a_job_that_ends_leaves_the_rest_to_the_next(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 1))
    holders = []
    result = submit(
        prepare(study_file),
        "serial",
        (),
        lambda event: holders.append(read_lock(lock_path(study_file.parent / "results" / "study.zarr"))),
    )
    assert (result.exit_status, result.units_done, result.set_aside) == (3, 0, ())
    assert {holder.job_id for holder in holders if holder is not None} == {"7"}
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    assert submit(prepare(study_file), "serial", (), stop_before_report).units_done == 7


def test_a_held_store_is_left_alone(study_file: Path) -> None:
    store = study_file.parent / "results" / "study.zarr"
    acquire(lock_path(store), this_process("abcdefgh"), lambda _: False)
    with pytest.raises(LockError, match="abcdefgh"):
        submit(prepare(study_file), "serial")
    assert sorted(path.name for path in store.parent.iterdir()) == ["study.zarr.lock"]


def test_auto_chooses_once_and_computes_nothing_again(study_file: Path) -> None:
    study_file.write_text(STUDY.replace('backend = "numpy"', 'backend = "auto"'))
    submit(prepare(study_file), "serial", (), stop_before_report)
    again = prepare(study_file)
    assert price(again)["stages"]["fit"] == {"units": 3, "to_do": 0}
    result = submit(again, "serial", (), stop_before_report)
    assert result.run_folder is not None
    runs = [json.loads(path.read_text()) for path in result.run_folder.parent.glob("*/run.json")]
    assert len({(run["backend"], run["backend_choice"]) for run in runs}) == 1
    assert "GFLOP/s" in runs[0]["backend_choice"]


def test_a_backend_that_does_not_work_here_ends_a_submit_before_anything_is_written(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    study_file.write_text(STUDY.replace('backend = "numpy"', 'backend = "cupy"'))
    before = sorted(study_file.parent.rglob("*"))
    with pytest.raises(StudyError, match="backend 'cupy' does not work on this machine"):
        submit(prepare(study_file), "serial")
    assert sorted(study_file.parent.rglob("*")) == before


def test_only_what_fails_is_set_aside(study_file: Path) -> None:
    prepared = prepare(study_file)
    cut = study_file.parent / "s2" / "B.npy"
    cut.write_bytes(cut.read_bytes()[:-100])  # after the files were looked at
    result = submit(prepared, "serial", (), stop_before_report)
    assert result.units_done == 6
    (reason,) = result.set_aside
    assert reason.startswith("fit s2 block 0: BoldError: ")
    assert "B.npy" in reason


def test_hashes_of_files_are_remembered_by_runs_only(study_file: Path) -> None:
    memory = study_file.parent / "results" / "cache" / "file-digests.json"
    prepare(study_file)
    assert not memory.exists()
    submit(prepare(study_file), "serial", (), stop_before_report)
    assert len(json.loads(memory.read_text())) == 3


def test_a_feature_set_that_cannot_be_fitted_leaves_the_others_alone(study_file: Path) -> None:
    folder = study_file.parent
    for run in "ABC":
        np.save(folder / f"flat_{run}.npy", np.ones((40, 2), np.float32))
    text = STUDY.replace("[fit]", '[feature_files.flat]\npath = "flat_{run}.npy"\n[fit]')
    study_file.write_text(text)
    result = submit(prepare(study_file, "flat,mylab"), "serial", ())
    store = folder / "results" / "study.zarr"
    done = [unit for task in prepare(study_file, "mylab").plan.stages[-1].tasks for unit in task.units]
    assert all(unit.done(store) for unit in done)
    assert any("the kernel of its 80 training rows is zero" in reason for reason in result.set_aside)
    failed = [reason for reason in result.set_aside if reason.startswith("fits/flat/")]
    assert len(failed) == 3
    assert all("which was not made" in reason for reason in failed)
    assert result.report is not None
    page = result.report.read_text()
    assert "Fits of flat: not shown of s1, s2, s3: no voxel block is done." in page


def test_a_subject_without_the_test_run_is_not_tested_on_another(study_file: Path) -> None:
    np.save(study_file.parent / "D.npy", np.ones((40, 3), np.float32))
    text = STUDY.replace(
        '{ name = "C", n_trs = 40 }]', '{ name = "C", n_trs = 40 }, { name = "D", n_trs = 40 }]'
    )
    study_file.write_text(text)  # s3 has A, B and C only
    rng = np.random.default_rng(1)
    for subject in ("s1", "s2"):
        np.save(study_file.parent / subject / "D.npy", rng.standard_normal((40, 20), dtype=np.float32))
    plan = prepare(study_file).plan
    assert {task.key for task in plan.stages[-1].tasks} == {"fit s1 block 0", "fit s2 block 0"}
    (reason,) = plan.set_aside
    assert "subject s3" in reason
    assert "'D'" in reason


def test_a_full_disk_ends_a_run_with_what_is_done_kept(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, specs: Sequence[GroupSpec]) -> None:
        raise OSError(28, "No space left on device")

    prepared = prepare(study_file)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "ensure_groups", full)
        result = submit(prepared, "serial")
    assert result.exit_status == 1
    assert result.set_aside == (str(FullError(prepared.study.store_path)),)
    assert read_status(load_study(study_file)).ended == 1
    assert submit(prepare(study_file), "serial", (), stop_before_report).units_done == 7

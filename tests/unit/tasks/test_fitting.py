"""Fit tasks on a study of feature files, from their plan to the arrays in the store."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.storage import bold, lagged
from hpcenc.storage.array_folder import load_arrays
from hpcenc.storage.digests import FileDigests
from hpcenc.storage.errors import BoldError
from hpcenc.storage.layout import SCORES, SHARD_VOXELS, operators_folder
from hpcenc.storage.store import Store
from hpcenc.storage.study import parse_study
from hpcenc.storage.weights import read_weights
from hpcenc.tasks import at_hand, backends
from hpcenc.tasks.inspection import inspect
from hpcenc.tasks.operators import from_arrays
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.planner import make_plan
from hpcenc.tasks.ridge import fit_block
from hpcenc.tasks.selection import FeatureSet, FeatureSpace, Variant

N_TRS = {"A": 60, "B": 50, "C": 80}
N_VOXELS = 5_100
DELAYS = (1, 2)
WIDTHS = {"first": 4, "second": 3}
CONSTANT, NAN, SPIKE = 7, 9, 2_600
"""Vertices that are constant in run B, hold a NaN in run A, and spike in the rest of run A."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature files, and BOLD that follows the first of them."""
    path = tmp_path_factory.mktemp("fitting")
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((WIDTHS["first"], N_VOXELS))
    for run, n_trs in N_TRS.items():
        features = {name: rng.standard_normal((n_trs, width)) for name, width in WIDTHS.items()}
        for name, values in features.items():
            np.save(path / f"{name}_{run}.npy", values.astype(np.float32))
        bold = 500 + 2 * rng.standard_normal((n_trs, N_VOXELS))
        bold[1:] += features["first"][:-1] @ mix
        if run == "A":
            bold[30, NAN], bold[2, SPIKE] = np.nan, 1e6
        if run == "B":
            bold[:, CONSTANT] = 3
        (path / "s1").mkdir(exist_ok=True)
        np.save(path / "s1" / f"{run}.npy", bold.astype(np.float32))
    return path


@dataclass(frozen=True)
class Fitted:
    store: Store
    plan: Plan

    def read(self, name: str) -> NDArray[Any]:
        """A score by its name, or the weights."""
        group = f"fits/{self.feature_set}/s1"
        if name in SCORES:
            return self.store.read(f"{group}/scores")[SCORES.index(name)]
        return self.store.read(f"{group}/{name}")

    @property
    def feature_set(self) -> str:
        return next(spec.group.split("/")[1] for spec in self.plan.groups if spec.group.startswith("fits/"))


def fit(
    folder: Path,
    results: Path,
    feature_set: FeatureSet | None = None,
    *,
    run_fits: bool = True,
    **settings: Any,
) -> Fitted:
    """Plan the study and run its stages one after the other."""
    data = {
        "name": "fitting",
        "tr_s": 1.0,
        "store": str(results / "study.zarr"),
        "runs": [
            {"name": run, "n_trs": n_trs, "segments": [{"kind": "rest", "start_s": 0, "end_s": 5}]}
            for run, n_trs in N_TRS.items()
        ],
        "subjects": {"ids": ["s1"]},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {name: {"path": f"{name}_{{run}}.npy"} for name in WIDTHS},
        "fit": {"delays": list(DELAYS), "n_alphas": 6, "block": 5000, "backend": "numpy", **settings},
    }
    study = parse_study(data, folder)
    chosen = feature_set or FeatureSet("first", "first", (variant("first"),))
    facts = inspect(study, [chosen], ["s1"], FileDigests(results / "digests.json"))
    assert facts.voxels is not None
    plan = make_plan(study, [chosen], facts, study.fit.backend)
    store = Store.create(study.store_path, {"voxels": facts.voxels.digest()}, facts.voxels.to_arrays()[0])
    for spec in plan.groups:
        store.ensure_group(spec)
    for stage in plan.stages if run_fits else plan.stages[:-1]:
        for task in stage.tasks:
            task.run(store, None)
    return Fitted(store, plan)


def variant(*names: str) -> Variant:
    return Variant(tuple(FeatureSpace(name, "values") for name in names), DELAYS)


def whole_bold(folder: Path) -> NDArray[np.float32]:
    return np.concatenate([np.load(folder / "s1" / f"{run}.npy") for run in N_TRS])


def operators_of(fitted: Fitted, fold: int = 0) -> tuple[Any, Sequence[int]]:
    attributes = fitted.store.attributes_of(f"fits/{fitted.feature_set}/s1")
    group = attributes["variants"][0]["operators"][fold]
    key = fitted.store.attributes_of(group)["digest"]
    return from_arrays(load_arrays(operators_folder(fitted.store.path, key))), attributes["onsets"]


@pytest.fixture(scope="module")
def fitted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The study fitted in blocks of 5,000, dual weights."""
    return fit(folder, tmp_path_factory.mktemp("dual"), weights="dual")


def test_scores_are_those_of_one_fit_of_all_voxels(fitted: Fitted, folder: Path) -> None:
    operators, onsets = operators_of(fitted)
    whole = fit_block(whole_bold(folder), operators, onsets, want_dual=True)
    for name in ("r", "r2", "alpha", "chance"):
        found = fitted.read(name)
        assert found.shape == (1, 1, N_VOXELS)
        np.testing.assert_allclose(found[0, 0], getattr(whole, name), rtol=1e-5, atol=1e-6)
    dual = fitted.read("weights")[0, 0]
    np.testing.assert_allclose(dual[operators.train_rows], whole.dual, rtol=1e-4, atol=1e-6)


def test_a_choice_of_alpha_that_was_not_compared_says_so(fitted: Fitted) -> None:
    assert np.isnan(fitted.read("agrees")).all()


def test_a_stored_alpha_is_the_nearest_of_its_grid(fitted: Fitted, folder: Path) -> None:
    operators, onsets = operators_of(fitted)
    alpha = fitted.read("alpha")[0, 0]
    chosen = fit_block(whole_bold(folder), operators, onsets).alpha_index
    valid = ~np.isnan(alpha)
    nearest = np.abs(operators.alphas[:, None] - alpha[valid]).argmin(axis=0)
    np.testing.assert_array_equal(nearest, chosen[valid])
    assert not np.isin(alpha[valid], operators.alphas).any(), "equality would find none"


def test_the_planted_features_are_found(fitted: Fitted) -> None:
    r = fitted.read("r")[0, 0]
    assert np.nanmedian(r) > 0.5


def test_rows_that_do_not_train_weigh_nothing(fitted: Fitted) -> None:
    operators, _ = operators_of(fitted)
    dual = fitted.read("weights")[0, 0]
    others = np.setdiff1d(np.arange(sum(N_TRS.values())), operators.train_rows)
    assert np.all(dual[others][:, ~np.isnan(fitted.read("r")[0, 0])] == 0)


@pytest.mark.parametrize("block", [2500, 7500])
def test_blocks_of_any_size_give_the_same(block: int, fitted: Fitted, folder: Path, tmp_path: Path) -> None:
    other = fit(folder, tmp_path, weights="dual", block=block)
    for name in ("r", "r2", "alpha", "chance", "weights"):
        np.testing.assert_allclose(other.read(name), fitted.read(name), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(other.read("alpha"), fitted.read("alpha"))


def test_torch_gives_the_same(fitted: Fitted, folder: Path, tmp_path: Path) -> None:
    other = fit(folder, tmp_path, weights="dual", backend="torch")
    np.testing.assert_array_equal(other.read("alpha"), fitted.read("alpha"))
    for name in ("r", "r2", "chance", "weights"):
        np.testing.assert_allclose(other.read(name), fitted.read(name), rtol=1e-4, atol=1e-5)


def test_primal_weights_are_those_that_the_dual_gives_back(
    fitted: Fitted, folder: Path, tmp_path: Path
) -> None:
    primal = fit(folder, tmp_path, weights="primal")
    assert primal.read("weights").shape == (1, 1, len(DELAYS) * WIDTHS["first"], N_VOXELS)
    some = slice(2_400, 2_700)
    for_primal = read_weights(primal.store, "first", "s1", some)
    for_dual = read_weights(fitted.store, "first", "s1", some)
    assert for_primal.keys() == for_dual.keys() == {"first/values"}
    shape = (len(DELAYS), WIDTHS["first"], 300)
    assert for_primal["first/values"].shape == shape
    np.testing.assert_allclose(for_primal["first/values"], for_dual["first/values"], rtol=1e-4, atol=1e-5)


def test_undefined_vertices_are_nan_and_leave_the_others_alone(
    fitted: Fitted, folder: Path, tmp_path: Path
) -> None:
    for name in ("r", "r2", "alpha", "chance", "weights"):
        undefined = np.isnan(fitted.read(name)).reshape(-1, N_VOXELS)
        assert np.flatnonzero(undefined.all(axis=0)).tolist() == [CONSTANT, NAN]
        assert np.flatnonzero(undefined.any(axis=0)).tolist() == [CONSTANT, NAN]


def test_rows_that_are_left_out_are_never_looked_at(fitted: Fitted) -> None:
    assert fitted.read("r")[0, 0, SPIKE] > 0.2


def test_no_weights_are_kept_where_none_are_wanted(folder: Path, tmp_path: Path) -> None:
    without = fit(folder, tmp_path, weights="none")
    assert not (without.store.path / "fits" / "first" / "s1" / "weights").exists()
    assert np.isfinite(without.read("r")).sum() == N_VOXELS - 2


def test_folds_and_variants_are_axes(fitted: Fitted, folder: Path, tmp_path: Path) -> None:
    both = FeatureSet("first+second", "first+second", (variant("first", "second"), variant("first")))
    swept = fit(folder, tmp_path, both, outer="rotate", weights="primal", weights_folds="all")
    n_columns = len(DELAYS) * sum(WIDTHS.values())
    assert swept.read("r").shape == (3, 2, N_VOXELS)
    weights = swept.read("weights")
    assert weights.shape == (3, 2, n_columns, N_VOXELS)
    # The narrower variant fills its own columns only.
    assert np.isnan(weights[:, 1, len(DELAYS) * WIDTHS["first"] :]).all()
    # The last fold of the second variant is the fit of that feature set alone.
    np.testing.assert_allclose(swept.read("r")[2, 1], fitted.read("r")[0, 0], rtol=1e-4, atol=1e-5)
    alone = read_weights(fitted.store, "first", "s1", slice(0, 100))["first/values"]
    first = read_weights(swept.store, "first+second", "s1", slice(0, 100), fold=2, variant=1)
    np.testing.assert_allclose(first["first/values"], alone, rtol=1e-3, atol=1e-5)
    together = read_weights(swept.store, "first+second", "s1", slice(0, 100), fold=0, variant=0)
    assert {name: part.shape[:2] for name, part in together.items()} == {
        "first/values": (len(DELAYS), WIDTHS["first"]),
        "second/values": (len(DELAYS), WIDTHS["second"]),
    }


def test_a_record_tells_how_long_a_unit_computed_without_the_wait_for_its_turn(
    folder: Path, tmp_path: Path
) -> None:
    planned = fit(folder, tmp_path, run_fits=False)
    device, held = at_hand.device("numpy"), threading.Event()

    def hold() -> None:
        with device.turn():
            held.set()
            time.sleep(1)

    with ThreadPoolExecutor() as pool:
        pool.submit(hold)
        held.wait()
        (done,) = planned.plan.stages[-1].tasks[-1].run(planned.store, None).done
    assert 0 < done.facts["solve_seconds"] < done.seconds - 0.5
    assert done.facts["sub_block"] == device.sub_block


def test_bold_is_not_read_for_what_is_done(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    done = fit(copy, tmp_path)
    (copy / "s1" / "A.npy").unlink()
    task = done.plan.stages[-1].tasks[0]
    assert task.run(done.store, None).skipped == 1


def test_a_file_that_was_cut_since_the_plan_is_an_error_without_a_mark(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    made = fit(copy, tmp_path, run_fits=False)
    cut = copy / "s1" / "B.npy"
    cut.write_bytes(cut.read_bytes()[:-4_000])
    task = made.plan.stages[-1].tasks[-1]
    with pytest.raises(BoldError, match=r"B\.npy"):
        task.run(made.store, None)
    assert not task.units[0].done(made.store.path)


def test_a_worker_without_a_working_device_fails_and_computes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device() -> backends.Backend:
        raise OSError("no device")

    monkeypatch.setattr(backends, "_OPENERS", {**backends._OPENERS, "cupy": no_device})
    planned = fit(folder, tmp_path, backend="cupy", run_fits=False)
    for task in planned.plan.stages[-1].tasks:
        record = task.run(planned.store, None)
        assert record.done == ()
        assert all("'cupy' does not work on this machine" in failure.reason for failure in record.failed)
        assert not any(unit.done(planned.store.path) for unit in task.units)


def test_bold_is_read_while_another_slot_computes_and_nothing_is_computed_beside_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fit(folder, tmp_path, run_fits=False)
    tasks = made.plan.stages[-1].tasks
    all_read = Semaphore(0)

    def read_and_tell(*args: Any) -> NDArray[np.float32]:
        block = read_block(*args)
        all_read.release()
        return block

    read_block = bold.read_block
    monkeypatch.setattr(bold, "read_block", read_and_tell)
    with ThreadPoolExecutor(len(tasks)) as slots:
        with at_hand.device("numpy").turn():
            running = [slots.submit(task.run, Store(made.store.path), None) for task in tasks]
            assert all(all_read.acquire(timeout=60) for _ in range(len(tasks) * len(N_TRS)))
            time.sleep(0.2)
            assert not list(made.store.path.glob("fits/*/*/*/0.*")), "something was computed"
        assert [len(future.result().done) for future in running] == [1, 1]
    assert np.isfinite(made.read("r")).sum() == N_VOXELS - 2


def test_a_shard_is_written_while_the_next_one_is_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fit(folder, tmp_path, run_fits=False)
    shards_made, was_overlapped = Semaphore(0), []

    def make_and_tell(*args: Any) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = lagged_products(*args)
        shards_made.release()
        return weights

    def write_once_both_are_made(store: Store, path: str, *args: Any) -> None:
        if path.endswith("/weights") and not was_overlapped:
            was_overlapped.append(all(shards_made.acquire(timeout=20) for _ in range(2)))
        write(store, path, *args)

    lagged_products, write = lagged.lagged_products, Store.write
    monkeypatch.setattr(lagged, "lagged_products", make_and_tell)
    monkeypatch.setattr(Store, "write", write_once_both_are_made)
    (done,) = made.plan.stages[-1].tasks[0].run(made.store, None).done
    assert done.facts["voxels"] == 2 * SHARD_VOXELS
    assert was_overlapped == [True]

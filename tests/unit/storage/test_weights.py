"""A small real fit, kept in both forms: two feature spaces, four runs, BOLD with two broken voxels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.storage.bold import read_header
from hpcenc.storage.design import delayed_design
from hpcenc.storage.errors import StoreError
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.layout import fit_group
from hpcenc.storage.results import read_scores
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store
from hpcenc.storage.weights import read_weights, standardised_features
from hpcenc.tasks.block_bold import BlockBold
from hpcenc.tasks.fitting import FitBlock, FitUnit, VariantSource, fit_arrays
from hpcenc.tasks.folds import RowPolicy, RunRows
from hpcenc.tasks.operator_task import MakeOperators, Rows, operator_arrays
from hpcenc.tasks.records import Unit

RUNS = (60, 50, 55, 45)
WIDTHS = {"beats/12": 7, "clip/embedding": 5}
CONSTANT = ("clip/embedding", 2)
DELAYS = (1, 2, 4)
N_VOXELS = 40
BROKEN = {3: np.nan, 17: 5.0}
ROWS = Rows(
    tuple(RunRows(f"run{number}", n_trs, rest=((0, 6),)) for number, n_trs in enumerate(RUNS)),
    max(DELAYS),
    RowPolicy(),
    "rotate",
    (),
)
N_COLUMNS = len(DELAYS) * sum(WIDTHS.values())


def write_features(store: Store) -> tuple[SpaceSource, ...]:
    rng = np.random.default_rng(0)
    spaces = []
    for name, width in WIDTHS.items():
        model, _, layer = name.partition("/")
        for run in ROWS.runs:
            values = rng.standard_normal((run.n_trs, width), dtype=np.float32)
            if name == CONSTANT[0]:
                values[:, CONSTANT[1]] = 3.7
            array = ArraySpec(values.shape, values.shape, "float32", ("tr", "feature"))
            store.ensure_group(GroupSpec(f"features/{model}/{run.name}", "f" * 64, {layer: array}, 1, {}))
            store.write(f"features/{model}/{run.name}/{layer}", (slice(None), slice(None)), values)
        arrays = tuple((f"features/{model}/{run.name}/{layer}",) for run in ROWS.runs)
        spaces.append(SpaceSource(name, arrays, "single", width))
    return tuple(spaces)


def make_operators(store: Store, spaces: tuple[SpaceSource, ...]) -> tuple[tuple[str, Path], ...]:
    places = []
    for fold in range(len(RUNS)):
        group, folder = f"operators/{fold}", store.path.parent / f"cache/{fold}"
        attributes = {"features": [[["f" * 64] * len(RUNS), ["layer"], "single"] for _ in spaces]}
        arrays = operator_arrays(ROWS.n_trs, 8, sum(WIDTHS.values()))
        store.ensure_group(GroupSpec(group, f"{fold}" * 64, arrays, 1, attributes))
        MakeOperators(
            unit=Unit(group, 0, f"{fold}" * 64), rows=ROWS, fold=fold, spaces=spaces, delays=DELAYS,
            alpha_exponents=tuple(np.linspace(-1, 3, 8)), basis_tolerance=1e-6, solver="exact", nested=False,
            folder=folder,
        ).run(store, None)  # fmt: skip
        places.append((group, folder))
    return tuple(places)


def write_bold(folder: Path, spaces: NDArray[np.float32]) -> tuple[Path, ...]:
    rng = np.random.default_rng(1)
    signal = spaces @ rng.standard_normal((spaces.shape[1], N_VOXELS)) / np.sqrt(spaces.shape[1])
    bold = (10_000 + 100 * (signal + rng.standard_normal(signal.shape))).astype(np.float32)
    for voxel, value in BROKEN.items():
        bold[:, voxel] = value
    paths = []
    for run, part in zip(ROWS.runs, np.split(bold, ROWS.onsets[1:]), strict=True):
        paths.append(folder / f"{run.name}.npy")
        np.save(paths[-1], part)
    return tuple(paths)


def fit(store: Store, spaces: tuple[SpaceSource, ...], weights: Literal["primal", "dual", "none"]) -> None:
    """Fit subject ``weights``, whose weights of the last two folds are kept in that form."""
    variant = VariantSource(
        spaces,
        tuple((f"operators/{fold}", store.path.parent / f"cache/{fold}") for fold in range(len(RUNS))),
        DELAYS,
    )
    kept = (2, 3)
    arrays = fit_arrays(
        n_folds=len(RUNS), n_variants=1, n_voxels=N_VOXELS, block=2_500, weights=weights,
        n_weight_folds=len(kept), n_weight_rows=N_COLUMNS if weights == "primal" else ROWS.n_trs,
    )  # fmt: skip
    attributes: dict[str, Any] = {
        "weights": weights,
        "weight_folds": list(kept),
        "onsets": list(ROWS.onsets),
        "block": 2_500,
        "variants": [
            {
                "delays": list(DELAYS),
                "spaces": [space.as_dict() for space in spaces],
                "operators": [group for group, _ in variant.operators],
            }
        ],
    }
    group = fit_group("beats+clip", weights)
    store.ensure_group(GroupSpec(group, "a" * 64, arrays, 1, attributes))
    unit = Unit(group, 0, "a" * 64)
    FitBlock(
        subject=weights,
        block=0,
        voxels=(0, N_VOXELS),
        bold=BlockBold(
            tuple(read_header(store.path.parent / f"{run.name}.npy") for run in ROWS.runs), ROWS.onsets, "all"
        ),
        zscore="run",
        repeat_rows=(),
        backend="numpy",
        tf32=False,
        fits=(FitUnit(unit, (variant,), weights, kept, ()),),
    ).run(store, None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("fits")
    store = Store.create(folder / "study.zarr", {}, {})
    spaces = write_features(store)
    make_operators(store, spaces)
    design = delayed_design(
        np.concatenate(standardised_features(store, spaces, "operators/3"), axis=1), DELAYS, ROWS.onsets
    )
    write_bold(folder, design.astype(np.float32))
    for weights in ("primal", "dual", "none"):
        fit(store, spaces, weights)  # type: ignore[arg-type]
    return store


def sources(store: Store) -> tuple[SpaceSource, ...]:
    variant = store.attributes_of(fit_group("beats+clip", "dual"))["variants"][0]
    return tuple(SpaceSource.from_dict(space) for space in variant["spaces"])


@pytest.mark.parametrize("fold", [-2, -1])
def test_primal_and_dual_give_the_same_weights_back(store: Store, fold: int) -> None:
    primal = read_weights(store, "beats+clip", "primal", slice(None), fold=fold)
    dual = read_weights(store, "beats+clip", "dual", slice(None), fold=fold)
    assert list(primal) == list(dual) == list(WIDTHS)
    for name, width in WIDTHS.items():
        assert primal[name].shape == (len(DELAYS), width, N_VOXELS)
        assert primal[name].dtype == dual[name].dtype == np.float32
        assert np.nanmax(np.abs(primal[name])) > 0.1
        np.testing.assert_allclose(primal[name], dual[name], rtol=0, atol=1e-5)


def test_folds_have_weights_of_their_own(store: Store) -> None:
    last, before = (read_weights(store, "beats+clip", "dual", slice(None), fold=fold) for fold in (1, 0))
    assert np.nanmax(np.abs(last["beats/12"] - before["beats/12"])) > 1e-3


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_weights_predict_what_was_scored(store: Store, form: str) -> None:
    weights = read_weights(store, "beats+clip", form, slice(None))
    features = standardised_features(store, sources(store), "operators/3")
    predicted = sum(
        delayed_design(space, DELAYS, ROWS.onsets) @ weights[name].reshape(-1, N_VOXELS)
        for name, space in zip(WIDTHS, features, strict=True)
    )
    test = ROWS.folds()[3].test
    bold = np.concatenate([np.load(store.path.parent / f"{run.name}.npy") for run in ROWS.runs])
    r = read_scores(store, fit_group("beats+clip", form)).r[3, 0]
    for voxel in range(N_VOXELS):
        if voxel not in BROKEN:
            found = np.corrcoef(np.asarray(predicted)[test, voxel], bold[test, voxel])[0, 1]
            assert found == pytest.approx(r[voxel], abs=1e-5)
    assert np.nanmedian(r) > 0.3


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_a_constant_column_weighs_nothing_and_a_broken_voxel_is_nan(store: Store, form: str) -> None:
    weights = read_weights(store, "beats+clip", form, slice(None))
    space, column = CONSTANT
    valid = [voxel for voxel in range(N_VOXELS) if voxel not in BROKEN]
    assert (weights[space][:, column, valid] == 0).all()
    assert (np.delete(weights[space], column, axis=1)[..., valid] != 0).all()
    for values in weights.values():
        assert np.isnan(values[..., list(BROKEN)]).all()
        assert np.isfinite(values[..., valid]).all()


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_some_voxels_are_read_as_among_all(store: Store, form: str) -> None:
    whole = read_weights(store, "beats+clip", form, slice(None))
    some = read_weights(store, "beats+clip", form, slice(11, 19))
    for name in WIDTHS:
        np.testing.assert_allclose(some[name], whole[name][..., 11:19], rtol=1e-5, atol=1e-7)


def test_weights_that_were_not_kept_are_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match=r"weights were not kept. Set fit.weights and submit again"):
        read_weights(store, "beats+clip", "none", slice(None))
    with pytest.raises(StoreError, match="no group 'fits/clip/primal'"):
        read_weights(store, "clip", "primal", slice(None))


@pytest.fixture
def damaged(store: Store, tmp_path: Path) -> Store:
    """A copy, to be damaged."""
    shutil.copytree(store.path, tmp_path / "study.zarr")
    return Store(tmp_path / "study.zarr")


@pytest.mark.parametrize("form", ["primal", "dual"])
def test_weights_of_a_block_that_is_not_done_are_an_error(damaged: Store, form: str) -> None:
    (damaged.path / fit_group("beats+clip", form) / "done/0").unlink()
    with pytest.raises(StoreError, match="block 0 is not done yet"):
        read_weights(damaged, "beats+clip", form, slice(0, 5))


@pytest.mark.parametrize("path", ["fits/beats-and-clip/dual/weights/1.0.0.0", "operators/3/feature_mean/0"])
def test_a_deleted_chunk_is_an_error_and_never_weights(damaged: Store, path: str) -> None:
    (damaged.path / path).unlink()
    with pytest.raises(StoreError, match="missing"):
        read_weights(damaged, "beats+clip", "dual", slice(0, 5))


def test_dual_weights_are_not_read_through_features_made_anew(damaged: Store) -> None:
    group = "features/clip/run1"
    old = GroupSpec(group, "f" * 64, {}, 1, {})
    damaged.ensure_group(replace(old, digest="e" * 64))
    with pytest.raises(StoreError, match=rf"{group}: the features were made anew since this fit"):
        read_weights(damaged, "beats+clip", "dual", slice(0, 5))
    assert read_weights(damaged, "beats+clip", "primal", slice(0, 5))
    assert damaged.ensure_group(old) == "superseded"
    assert read_weights(damaged, "beats+clip", "dual", slice(0, 5))

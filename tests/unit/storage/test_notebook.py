from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from begun_fit import BLOCK, GROUP, N_VOXELS, begin_store, score, values
from numpy.typing import NDArray

from hpcenc.storage import open_study
from hpcenc.storage.geometry import cortical_axis
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.layout import SCORES
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.ceiling_unit import ceiling_arrays
from hpcenc.tasks.fitting import fit_arrays, score_names
from hpcenc.tasks.singles import SINGLE_SCORES, singles_arrays


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return begin_store(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("consolidated", [True, False])
def test_a_study_in_progress_shows_marked_blocks_only(store: Store, consolidated: bool) -> None:
    if consolidated:
        store.consolidate()
    fit = open_study(store.path)[GROUP]
    assert set(fit.data_vars) == {*SCORES, "r_repeat", "weight_norm", "weights"}
    for name in set(fit.data_vars) - {"weight_norm"}:
        found, expected = fit[name].values, values()["weights"] if name == "weights" else score(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found[..., :BLOCK], expected[..., :BLOCK])
        assert np.isnan(found[..., BLOCK:]).all()


def test_a_study_opens_lazily_with_names_along_its_axes(store: Store) -> None:
    store.consolidate()
    tree = open_study(str(store.path))
    fit = tree[GROUP]
    assert fit.r.chunks is not None
    assert fit.r.dims == ("fold", "variant", "voxel")
    assert fit.weights.dims == ("weight_fold", "variant", "column", "voxel")
    assert fit.weights.sel(weight_fold="run2", variant="clip/embedding").shape == (3, N_VOXELS)
    np.testing.assert_array_equal(
        fit.r.sel(fold="run2", variant="clip/embedding").values[:BLOCK], score("r")[1, 0, :BLOCK]
    )
    assert int(fit.done.sum()) == BLOCK
    assert fit.attrs["feature_set"] == "clip"
    assert tree["structure"].sizes == {"voxel": N_VOXELS}


def test_norms_of_weights_lie_along_delays_and_columns_say_what_they_are(store: Store) -> None:
    fit = open_study(store.path)[GROUP]
    assert fit.weight_norm.dims == ("delay", "fold", "variant", "voxel")
    np.testing.assert_array_equal(
        fit.weight_norm.sel(delay=4, fold="run1").values[0, :BLOCK], score("weight_norm:4")[0, 0, :BLOCK]
    )
    assert fit.weights.space.values.tolist() == ["clip/embedding"] * 3
    assert fit.weights.delay_of.values.tolist() == [2, 4, 5]
    assert fit.weights.feature.values.tolist() == [0, 0, 0]


def test_sweeps_bands_and_ceilings_have_their_names_too(tmp_path: Path) -> None:
    arrays, attributes = VoxelAxis.from_count(30).to_arrays()
    store = Store.create(tmp_path / "study.zarr", {"voxel_axis": attributes}, arrays)
    names = score_names("bands", bands=("beats/12", "clip/12"))
    whole = {"n_folds": 1, "n_variants": 2, "n_voxels": 30, "block": 2_500, "weights": "none"}
    spec = GroupSpec(
        "bands/beats-and-clip/s1",
        "b" * 64,
        fit_arrays(**whole, n_weight_folds=0, n_weight_rows=0, scores=names),  # type: ignore[arg-type]
        1,
        {"folds": ["run1"], "variants": [{"label": label} for label in ("10:1", "1:1")], "block": 2_500},
    )
    ceilings = GroupSpec(
        "ceilings/s1",
        "c" * 64,
        ceiling_arrays(1, 30, 2_500),
        1,
        {"showings": [{"group": "clip"}], "block": 2_500},
    )
    values = np.random.default_rng(0).standard_normal((len(names), 1, 2, 30)).astype(np.float32)
    for each in (spec, ceilings):
        store.ensure_group(each)
    store.write(f"{spec.group}/scores", (slice(None),) * 4, values)
    store.write("ceilings/s1/values", (slice(None),) * 3, values[:4, :, 0])
    store.mark(spec.group, 0, spec.digest)
    store.mark("ceilings/s1", 0, ceilings.digest)
    study = open_study(store.path)
    bands = study[spec.group]
    np.testing.assert_array_equal(bands.cv.sel(variant="1:1").values[0], values[5, 0, 1])
    np.testing.assert_array_equal(bands.r_band.sel(band="clip/12", variant="10:1").values[0], values[7, 0, 0])
    np.testing.assert_array_equal(study["ceilings/s1"].ceiling.sel(clip="clip").values, values[3, 0, 0])


def test_single_tags_have_their_names_and_are_nan_where_not_done(tmp_path: Path) -> None:
    arrays, attributes = VoxelAxis.from_count(30).to_arrays()
    store = Store.create(tmp_path / "study.zarr", {"voxel_axis": attributes}, arrays)
    for subject in ("s1", "s2"):
        spec = GroupSpec(
            f"singles/beats-tags/{subject}",
            "d" * 64,
            singles_arrays(1, 30, 2_500),
            1,
            {"folds": ["run1"], "block": 2_500},
        )
        store.ensure_group(spec)
    values = np.random.default_rng(0).standard_normal((len(SINGLE_SCORES), 1, 30)).astype(np.float32)
    store.write("singles/beats-tags/s1/scores", (slice(None),) * 3, values)
    store.mark("singles/beats-tags/s1", 0, "d" * 64)
    study = open_study(store.path)
    done, not_done = (study[f"singles/beats-tags/{subject}"] for subject in ("s1", "s2"))
    assert set(done.data_vars) == set(SINGLE_SCORES)
    for place, name in enumerate(SINGLE_SCORES):
        np.testing.assert_array_equal(done[name].sel(fold="run1"), values[place, 0])
    assert np.isnan(not_done.feature).all()


def test_features_have_times_and_names_and_are_nan_where_not_extracted(tmp_path: Path) -> None:
    arrays, attributes = VoxelAxis.from_count(30).to_arrays()
    store = Store.create(tmp_path / "study.zarr", {"voxel_axis": attributes}, arrays)
    names = {"display_name": ["Speech", "Music"]}
    specs = {
        "tags": ArraySpec((70, 2), (60, 2), "float32", ("tr", "tags_feature"), attributes=names),
        "12": ArraySpec((70, 3), (60, 3), "float32", ("tr", "12_feature")),
    }
    group = "features/beats/main/a"
    store.ensure_group(GroupSpec(group, "f" * 64, specs, 2, {"spec": {"tr_s": 0.5}}))
    values = np.random.default_rng(0).random((60, 2), dtype=np.float32)
    store.write(f"{group}/tags", (slice(0, 60), slice(None)), values)
    store.write(f"{group}/12", (slice(0, 60), slice(None)), np.ones((60, 3), np.float32))
    store.mark(group, 0, "f" * 64)
    features = open_study(store.path)[group]
    assert features.tags.chunks is not None
    np.testing.assert_array_equal(features.tags.sel(tags_feature="Music").values[:60], values[:, 1])
    assert np.isnan(features.tags.values[60:]).all()
    assert np.isnan(features["12"].values[60:]).all()
    assert features.time_s.values[[0, 1, 69]].tolist() == [0, 0.5, 34.5]


def test_vertices_have_their_places_and_regions_their_members(tmp_path: Path) -> None:
    axis = cortical_axis()
    arrays, attributes = axis.to_arrays()
    path = Store.create(tmp_path / "study.zarr", {"voxel_axis": attributes}, arrays).path
    masks = open_study(path)["regions/masks"].members
    assert masks.region.values.tolist() == ["visual", "auditory", "superior temporal", "prefrontal"]
    assert masks.vertex.values.tolist() == axis.vertex.tolist()
    assert set(masks.structure.values) == set(axis.names)
    assert open_study(path, ["yeo7"])["regions/yeo7"].members.shape == (7, axis.n_voxels)
    assert "regions" not in open_study(Store.create(tmp_path / "p.zarr", *plain()).path)


def plain() -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    arrays, attributes = VoxelAxis.from_count(9).to_arrays()
    return {"voxel_axis": attributes}, arrays


def test_opening_a_study_changes_nothing(store: Store) -> None:
    files = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    open_study(store.path)[GROUP].r.mean().compute()
    assert {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()} == files


def test_a_damaged_chunk_is_an_error_in_xarray_too(store: Store) -> None:
    store.consolidate()
    chunk = store.path / GROUP / "scores/0.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        open_study(store.path)[GROUP].r.compute()
    assert isinstance(open_study(store.path), xarray.DataTree)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpcenc.storage.errors import StoreError
from hpcenc.storage.features import read_feature_names, read_space
from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.store import Store

RUNS = {"one": 7, "two": 5}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two layers of equal width on two runs of unequal length."""
    store = Store.create(tmp_path / "study.zarr", {}, {})
    rng = np.random.default_rng(0)
    for run, n_trs in RUNS.items():
        arrays = {
            layer: ArraySpec((n_trs, 3), (4, 3), "float32", ("tr", f"{layer}_feature"))
            for layer in ("a", "v")
        }
        store.ensure_group(GroupSpec(run, "a" * 64, arrays, 2, {}))
        for layer in arrays:
            values = rng.standard_normal((n_trs, 3), dtype=np.float32)
            store.write(f"{run}/{layer}", (slice(None), slice(None)), values)
    return store


def source(how: str, *layers: str) -> SpaceSource:
    arrays = tuple(tuple(f"{run}/{layer}" for layer in layers) for run in RUNS)
    return SpaceSource("cavmae/x", arrays, how, 6 if how == "concat" else 3)


def test_runs_follow_each_other(store: Store) -> None:
    space = read_space(store, source("single", "a"))
    assert space.shape == (12, 3)
    np.testing.assert_array_equal(space[:7], store.read("one/a"))
    np.testing.assert_array_equal(space[7:], store.read("two/a"))


def test_a_mean_is_over_the_branches(store: Store) -> None:
    space = read_space(store, source("mean", "a", "v"))
    assert space.dtype == np.float32
    np.testing.assert_allclose(space[7:], (store.read("two/a") + store.read("two/v")) / 2, rtol=1e-6)


def test_a_concatenation_is_beside_each_other(store: Store) -> None:
    space = read_space(store, source("concat", "a", "v"))
    assert space.shape == (12, 6)
    np.testing.assert_array_equal(space[:7, 3:], store.read("one/v"))


def test_a_missing_chunk_of_any_layer_is_an_error(store: Store) -> None:
    (store.path / "two/v/1.0").unlink()
    with pytest.raises(StoreError, match=r"two/v: 1 of the chunks asked for are missing, 1\.0"):
        read_space(store, source("mean", "a", "v"))


def test_a_source_survives_the_way_through_json() -> None:
    space = source("concat", "a", "v")
    assert SpaceSource.from_dict(json.loads(json.dumps(space.as_dict()))) == space


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        ({"mid": ["/m/1", "/m/2"], "display_name": ["Speech", "Dog"]}, ("Speech", "Dog")),
        ({"mid": ["/m/1", "/m/2"]}, ("/m/1", "/m/2")),
        (None, ("0", "1")),
    ],
)
def test_names_of_tags_are_those_that_were_stored(
    tmp_path: Path, attributes: dict[str, list[str]] | None, names: tuple[str, ...]
) -> None:
    store = Store.create(tmp_path / "tags.zarr", {}, {})
    spec = ArraySpec((3, 2), (3, 2), "float32", ("tr", "tags_feature"), attributes=attributes)
    store.ensure_group(GroupSpec("one", "a" * 64, {"tags": spec}, 1, {}))
    assert read_feature_names(store, SpaceSource("beats/tags", (("one/tags",),), "single", 2)) == names


def test_features_without_names_go_by_their_places(store: Store) -> None:
    assert read_feature_names(store, source("concat", "a", "v")) == ("0", "1", "2", "3", "4", "5")

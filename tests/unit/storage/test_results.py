from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from begun_fit import BLOCK, GROUP, N_VOXELS, begin_store, fit_spec, score, write_block

from hpcenc.storage.errors import StoreError
from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.results import fit_groups, read_scores, read_voxels, require_scores
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return begin_store(tmp_path)


def test_scores_of_blocks_that_are_not_marked_are_nan(store: Store) -> None:
    scores = read_scores(store, GROUP)
    assert (scores.blocks_done, scores.blocks) == (1, 3)
    np.testing.assert_array_equal(scores.done, np.arange(N_VOXELS) < BLOCK)
    for name in ("r", "r2", "alpha", "chance", "agrees"):
        found, expected = getattr(scores, name), score(name)
        assert found.shape == (2, 1, N_VOXELS)
        np.testing.assert_array_equal(found[..., :BLOCK], expected[..., :BLOCK])
        assert np.isnan(found[..., BLOCK:]).all()
    assert scores.attributes["feature_set"] == "clip"


def test_all_scores_are_read_when_all_blocks_are_done(store: Store) -> None:
    write_block(store, GROUP, 1)
    write_block(store, GROUP, 2)
    scores = read_scores(store, GROUP)
    assert (scores.blocks_done, scores.blocks, scores.done.all()) == (3, 3, True)
    np.testing.assert_array_equal(scores.alpha, score("alpha"))


def test_a_block_is_asked_once_whether_it_is_done(store: Store) -> None:
    class BusyStore(Store):
        """One whose blocks are marked by a running fit as soon as they were asked about."""

        def is_done(self, group: str, index: int, digest: str) -> bool:
            done = super().is_done(group, index, digest)
            write_block(store, group, index)
            return done

    scores = read_scores(BusyStore(store.path), GROUP)
    assert scores.blocks_done == 1
    assert scores.done.sum() == BLOCK


def test_a_missing_chunk_of_a_marked_block_is_an_error_and_never_a_score(store: Store) -> None:
    (store.path / GROUP / "scores/0.0.0.0").unlink()
    with pytest.raises(StoreError, match="scores: 1 of the chunks asked for are missing"):
        read_scores(store, GROUP)


def test_fits_are_listed_set_by_set_without_what_is_half_made(store: Store) -> None:
    for group in ("fits/beats/s2", "fits/clip/s10", "fits/beats/s1"):
        store.ensure_group(fit_spec(group))
    (store.path / "fits/clip/zarr.json.00.partial").write_bytes(b"half")
    assert list(fit_groups(store)) == ["fits/beats/s1", "fits/beats/s2", GROUP, "fits/clip/s10"]


def test_scores_are_read_of_fits_that_are_begun_and_not_left_out(store: Store) -> None:
    store.ensure_group(fit_spec("fits/clip/s10"))  # of which no block is done
    assert [scores.group for scores in require_scores(store)] == [GROUP]
    with pytest.raises(StoreError, match="no fits here yet"):
        require_scores(store, {"fits/clip/s11"})


def test_norms_of_weights_are_read_of_one_subject_where_all_fits_are(store: Store) -> None:
    norms = ["weight_norm:2", "weight_norm:4", "weight_norm:5"]
    for subject, shown in (("S2", "S1"), (AVERAGE, AVERAGE)):
        spec = fit_spec(f"fits/clip/{subject.lower()}")
        store.ensure_group(replace(spec, attributes={**spec.attributes, "subject": subject}))
        write_block(store, spec.group, 0)
        for scores in require_scores(store):
            of = scores.attributes["subject"]
            assert list(scores.more) == (["r_repeat", *norms] if of == shown else ["r_repeat"])
            np.testing.assert_array_equal(
                scores.more["r_repeat"][..., :BLOCK], score("r_repeat")[..., :BLOCK]
            )


def test_a_store_without_fits_says_so(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "study.zarr", {}, {})
    with pytest.raises(StoreError, match="no fits here yet"):
        require_scores(store)


def test_the_voxel_axis_comes_back(store: Store) -> None:
    assert read_voxels(store).digest() == VoxelAxis.from_count(N_VOXELS).digest()

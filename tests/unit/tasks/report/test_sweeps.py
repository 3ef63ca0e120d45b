"""Curves and choices of sweeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hpcenc.storage.results import Scores
from hpcenc.tasks.report.sweeps import (
    ALL_VERTICES,
    choice_row,
    curve_rows,
    split_layers,
    spread_over_subjects,
    summarise_sweep,
)

NAN = np.nan


def scores_of(kind: str, r: Any, cv: Any, chance: Any, **more: Any) -> Scores:
    """Scores of a sweep; arrays of shape (n_folds, n_variants, n_voxels)."""
    r, cv, chance = (np.asarray(values, dtype=np.float32) for values in (r, cv, chance))
    n_folds, n_variants, n_voxels = r.shape
    variants = [
        {"label": f"v{place}", "delays": [2 * place], "scales": [10.0**place, 1.0], "operators": []}
        for place in range(n_variants)
    ]
    attributes = {
        "kind": kind,
        "feature_set": "clip",
        "subject": "s1",
        "variants": variants,
        "folds": [f"run{fold}" for fold in range(n_folds)],
    }
    same = np.zeros(r.shape, dtype=np.float32)
    extra = {"cv": cv} | {name: np.asarray(values, dtype=np.float32) for name, values in more.items()}
    return Scores("g", attributes, r, same, same, chance, same, extra, 1, 1, np.ones(n_voxels, dtype=bool))


def test_curves_are_means_over_the_vertices_that_are_valid_in_every_variant() -> None:
    r = [[[0.25, 0.5, NAN, 0.75], [0.5, 0.25, 0.5, 0.0]], [[0.75, 0.5, 0.5, 0.25], [0.5, 0.75, 0.5, 0.5]]]
    regions = {"left": np.array([True, False, True, False]), "empty": np.zeros(4, dtype=bool)}
    sweep = summarise_sweep(scores_of("delays", r, np.ones((2, 2, 4)), np.zeros((2, 2, 4))), regions)
    np.testing.assert_allclose(sweep.curves[ALL_VERTICES], [(0.5 + 0.5 + 0.5) / 3, (0.5 + 0.5 + 0.25) / 3])
    np.testing.assert_allclose(sweep.curves["left"], [0.5, 0.5])
    assert np.isnan(sweep.curves["empty"]).all()
    assert sweep.n_valid == {ALL_VERTICES: 3, "left": 1, "empty": 0}
    assert sweep.values == (0, 2)
    rows = curve_rows([sweep])
    assert [(row.region, row.variant, row.n_valid) for row in rows] == [
        (region, variant, n) for region, n in sweep.n_valid.items() for variant in ("v0", "v1")
    ]


def test_a_choice_is_compared_with_the_best_fixed_variant_and_the_window_on_the_same_vertices() -> None:
    r = [[[0.5, 0.25, 0.75], [0.25, 0.75, NAN]]]
    cv = [[[0.3, 0.1, 0.2], [0.2, 0.4, NAN]]]
    sweep = summarise_sweep(scores_of("layers", r, cv, np.full((1, 2, 3), 0.6)), {})
    assert sweep.values == (1, 2)
    np.testing.assert_array_equal(sweep.best_values, [NAN, 2, NAN])
    row = choice_row(sweep, np.array([0.5, 0.25, 0.9]))
    assert (row.n_valid, row.fixed) == (2, "v1")
    assert row.fixed_mean_r == pytest.approx((0.25 + 0.75) / 2)
    assert row.nested_mean_r == pytest.approx((0.5 + 0.75) / 2)
    assert row.window_mean_r == pytest.approx(0.375)
    assert row.share_with_best == pytest.approx(0.5)
    assert np.isnan(choice_row(sweep).window_mean_r)


def test_the_best_fixed_variant_has_no_r_in_noise_where_every_run_is_tested_in_turn() -> None:
    rng = np.random.default_rng(0)
    n_folds, n_variants = 4, 10
    fixed, same_for_all_folds = [], []
    for _ in range(400):
        # All vertices answer alike, and what a run answers to is noise: its r as a test run is its score as
        # an inner fold of the other runs.
        of_run = np.repeat(rng.normal(0, 0.2, (n_folds, n_variants, 1)), 3, axis=2)
        cv = (of_run.sum(axis=0) - of_run) / (n_folds - 1)
        sweep = summarise_sweep(scores_of("delays", of_run, cv, np.ones(of_run.shape)), {})
        fixed.append(sweep.fixed_r.mean())
        same_for_all_folds.append(sweep.curves[ALL_VERTICES][sweep.fixed])
    assert np.mean(same_for_all_folds) > 0.1
    assert abs(np.mean(fixed)) < 3 * np.std(fixed) / 400**0.5


def test_a_fold_without_a_best_fixed_variant_leaves_its_r_undefined() -> None:
    cv = [[[0.1, 0.2], [0.3, 0.2]], [[NAN, NAN], [0.1, 0.1]]]
    sweep = summarise_sweep(scores_of("layers", np.ones((2, 2, 2)), cv, np.zeros((2, 2, 2))), {})
    assert np.isnan(sweep.fixed_r).all()


def test_bands_add_up_in_the_variant_that_was_chosen() -> None:
    r = [[[0.5, 0.25], [0.75, 0.125]]]
    cv = [[[0.1, 0.4], [0.3, 0.2]]]
    first = [[[0.4, 0.05], [0.25, 0.1]]]
    second = np.asarray(r) - np.asarray(first)
    parts = {"r:beats/12": first, "r:clip/12": second}
    sweep = summarise_sweep(scores_of("bands", r, cv, np.zeros((1, 2, 2)), **parts), {})
    assert sweep.values == (1, 10)
    np.testing.assert_allclose(sweep.band_r["beats/12"], [0.25, 0.05], atol=1e-6)
    np.testing.assert_allclose(sum(sweep.band_r.values()), sweep.nested_r, atol=1e-6)


def test_a_study_without_a_valid_vertex_has_no_choice() -> None:
    undefined = np.full((1, 2, 3), NAN)
    row = choice_row(summarise_sweep(scores_of("delays", undefined, undefined, undefined), {}))
    assert (row.n_valid, row.fixed) == (0, "")
    assert np.isnan([row.fixed_mean_r, row.nested_mean_r, row.share_with_best]).all()


def test_a_share_above_chance_is_of_the_vertices_that_have_a_chance_level() -> None:
    r, cv = np.full((1, 2, 4), 0.5), np.ones((1, 2, 4))
    chance = np.array([[[0.2, 0.6, NAN, NAN]] * 2])
    assert choice_row(summarise_sweep(scores_of("delays", r, cv, chance), {})).share_with_best == 0.5
    short = summarise_sweep(scores_of("delays", r, cv, np.full(r.shape, NAN)), {})
    assert np.isnan(choice_row(short).share_with_best)
    assert choice_row(short).n_valid == 4


def test_every_layer_of_a_sweep_over_delays_or_bands_is_a_sweep_of_its_own() -> None:
    r = np.arange(8, dtype=float).reshape(1, 4, 2) / 10
    for kind, ends in (("delays", ("delay 0", "delay 1")), ("bands", ("10:1", "1:10"))):
        scores = scores_of(kind, r, r, np.zeros(r.shape))
        labels = [f"clip/{layer} {end}" for layer in (6, 12) for end in ends]
        for variant, label in zip(scores.attributes["variants"], labels, strict=True):
            variant["label"] = label
        sweeps = [summarise_sweep(part, {}, several=True) for part in split_layers(scores)]
        assert [sweep.label for sweep in sweeps] == ["clip clip/6", "clip clip/12"]
        assert [list(sweep.labels) for sweep in sweeps] == [labels[:2], labels[2:]]
        np.testing.assert_allclose(sweeps[1].curves[ALL_VERTICES], [0.45, 0.65])
        np.testing.assert_allclose(sweeps[1].nested_r, r[0, 3])
    (layers,) = split_layers(scores_of("layers", r, r, np.zeros(r.shape)))
    assert (summarise_sweep(layers, {}).layer, summarise_sweep(layers, {}).label) == ("", "clip")


def test_the_spread_between_subjects_is_that_of_a_sample() -> None:
    mean, deviation = spread_over_subjects([np.array([1.0, 2.0]), np.array([3.0, 2.0])])
    np.testing.assert_allclose(mean, [2, 2])
    np.testing.assert_allclose(deviation, [2**0.5, 0])
    assert np.isnan(spread_over_subjects([np.array([1.0])])[1]).all()
    none = np.full(2, np.nan)  # a subject without a valid vertex in a region
    mean, deviation = spread_over_subjects([np.array([1.0, 2.0]), none, np.array([3.0, 2.0])])
    np.testing.assert_allclose(mean, [2, 2])
    np.testing.assert_allclose(deviation, [np.sqrt(2), 0])
    assert np.isnan(spread_over_subjects([none, none])[0]).all()

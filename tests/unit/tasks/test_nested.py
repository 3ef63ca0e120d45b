"""Choices among variants by the inner folds."""

from __future__ import annotations

import numpy as np

from hpcenc.tasks.nested import (
    best_fixed_variant,
    best_variant_of_folds,
    choose_variants,
    mean_excess,
    values_of,
)

NAN = np.nan


def test_the_choice_of_an_outer_fold_is_by_its_own_inner_folds_and_scored_on_its_own_test_rows() -> None:
    cv = np.array([[[0.25], [0.5], [0.25]], [[0.5], [0.0], [0.5]]])  # (fold, variant, voxel)
    r = np.array([[[0.9], [0.4], [0.9]], [[0.6], [0.9], [0.9]]])
    choice = choose_variants(cv, r, np.full(r.shape, 0.2))
    assert choice.variant[:, 0].tolist() == [1, 0]
    np.testing.assert_allclose(choice.r[:, 0], [0.4, 0.6])
    np.testing.assert_allclose(choice.mean_r, [0.5])
    assert choice.best.tolist() == [0]  # of two with the best mean score the first


def test_r_has_no_say_in_the_choice() -> None:
    rng = np.random.default_rng(0)
    cv, chance = rng.random((2, 4, 50)), np.zeros((2, 4, 50))
    one, other = (choose_variants(cv, rng.random((2, 4, 50)), chance) for _ in range(2))
    np.testing.assert_array_equal(one.variant, other.variant)
    np.testing.assert_array_equal(one.best, other.best)


def test_a_vertex_at_its_chance_level_has_no_best_variant() -> None:
    cv = np.array([[[0.3, 0.3], [0.1, 0.1]]])
    r = np.array([[[0.10, 0.11], [0.9, 0.9]]])
    choice = choose_variants(cv, r, np.full(r.shape, 0.10))
    assert choice.best.tolist() == [-1, 0]
    assert choice.variant.tolist() == [[0, 0]]
    np.testing.assert_array_equal(values_of(choice.best, [3, 5]), [NAN, 3])


def test_an_undefined_vertex_has_no_choice() -> None:
    cv = np.array([[[0.3, NAN], [NAN, NAN]]])
    choice = choose_variants(cv, np.ones((1, 2, 2)), np.zeros((1, 2, 2)))
    assert choice.variant.tolist() == [[-1, -1]]
    assert choice.best.tolist() == [-1, -1]
    assert np.isnan(choice.mean_r).all()


def test_without_a_chance_level_there_is_no_best_variant() -> None:
    choice = choose_variants(np.ones((1, 2, 1)), np.ones((1, 2, 1)), np.full((1, 2, 1), NAN))
    assert choice.best.tolist() == [-1]
    np.testing.assert_array_equal(choice.mean_r, [1])


def test_folds_without_a_chance_level_have_no_say_in_whether_r_is_above_it() -> None:
    r, chance = np.array([[0.3], [0.9], [0.2]]), np.array([[0.1], [NAN], [0.3]])
    np.testing.assert_allclose(mean_excess(r, chance), [0.05])
    assert choose_variants(np.ones((3, 1, 1)), r[:, None], chance[:, None]).best.tolist() == [0]
    r[1] = NAN
    assert np.isnan(mean_excess(r, chance)).all()
    assert np.isnan(mean_excess(np.ones((2, 1)), np.full((2, 1), NAN))).all()


def test_the_best_fixed_variant_is_that_of_the_mean_over_defined_vertices() -> None:
    cv = np.array([[[0.1, 0.2, 9.0], [0.3, 0.2, NAN]]])
    assert best_fixed_variant(cv) == 1
    assert best_fixed_variant(np.full((1, 2, 3), NAN)) == -1


def test_an_outer_fold_has_the_best_fixed_variant_of_its_own_inner_folds() -> None:
    cv = np.array(
        [
            [[0.1, 0.2, 9.0], [0.3, 0.2, NAN]],
            [[0.9, 0.1, 0.1], [0.0, 0.1, 0.2]],
            [[NAN, NAN, NAN], [0.1, 0.1, 0.1]],
        ]
    )
    assert best_variant_of_folds(cv).tolist() == [1, 0, -1]

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest

from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.data import ReportData
from hpcenc.tasks.report.tables import (
    csv_text,
    fold_rows,
    format_score,
    format_share,
    mean_row,
    model_row,
    model_table,
    name_subjects,
    progress_warnings,
    share_over_chance,
    summarise,
)


def test_summary_leaves_undefined_vertices_out():
    r = np.array([0.05, np.nan, 0.15, 0.35, -0.2, 0.1, 0.3, np.nan, 0.0, 0.0, 0.0, 0.0, 0.5])
    valid = [0.05, 0.15, 0.35, -0.2, 0.1, 0.3, 0.0, 0.0, 0.0, 0.0, 0.5]
    summary = summarise(r)
    assert summary.n_valid == 11
    assert summary.mean == pytest.approx(np.mean(valid))
    assert summary.median == 0.05
    assert summary.mean_best_tenth == pytest.approx((0.5 + 0.35) / 2)  # the tenth of 11 is rounded up to 2
    assert summary.max == 0.5
    assert summary.share_over_0_1 == 4 / 11  # .1 itself is not over .1
    assert summary.share_over_0_3 == 2 / 11


def test_summary_of_no_valid_vertex_is_undefined():
    summary = summarise(np.full(4, np.nan))
    assert summary.n_valid == 0
    assert math.isnan(summary.mean)
    assert math.isnan(summary.share_over_0_3)


def test_share_over_chance_counts_each_vertex_against_its_own_level():
    r = np.array([[0.3, 0.3, 0.1, np.nan], [0.3, 0.3, 0.1, 0.1]])
    chance = np.array([[0.2, 0.4, 0.2, 0.2], [np.nan, np.nan, np.nan, np.nan]])
    shares = share_over_chance(r, chance)
    assert shares[0] == 1 / 3
    assert math.isnan(shares[1])


def test_model_row_takes_r_over_folds_and_chance_within_folds(make_fit):
    r = np.array([[0.4, 0.0], [0.0, 0.0]])
    row = model_row(make_fit(2, r=r, chance=np.full((2, 2), 0.3)))
    assert row.r.max == pytest.approx(0.2)
    assert row.share_over_chance == pytest.approx((1 / 2 + 0) / 2)


def test_mean_rows_are_means_over_complete_subjects_only(make_fit):
    fits = (
        make_fit(seed=1, subject="S1"),
        make_fit(seed=2, subject="S2"),
        make_fit(seed=3, subject="S3", blocks_done=1),
        make_fit(seed=4, subject="S1", feature_set="beats"),
    )
    means, rows = model_table(ReportData("s", fits, VoxelAxis.from_count(300)))
    assert [row.subject for row in rows] == ["S1", "S2", "S3", "S1"]
    assert len(means) == 1, "one subject has no mean over subjects"
    expected = [np.median(fit.r.mean(axis=0)) for fit in fits[:2]]
    assert means[0].r.median == pytest.approx(np.mean(expected))
    assert means[0].subject == "mean of 2 subjects"
    assert means[0].sd.median == pytest.approx(np.std(expected, ddof=1))
    assert math.isnan(rows[0].sd.median)
    assert "is incomplete in 1 of 3 subjects (S3): 1 of 2 voxel blocks" in progress_warnings(rows)[0]


def test_a_subject_without_a_valid_vertex_is_left_out_of_means(make_fit):
    fits = tuple(make_fit(seed=seed, subject=f"S{seed}") for seed in (1, 2))
    dead = make_fit(subject="S3", r=np.full((2, 300), np.nan))
    means, rows = model_table(ReportData("s", (*fits, dead), VoxelAxis.from_count(300)))
    assert len(rows) == 3
    assert means[0].subject == "mean of 2 subjects"
    assert means[0].r.mean == pytest.approx(np.mean([fit.r.mean() for fit in fits]))
    assert model_table(ReportData("s", (fits[0], dead), VoxelAxis.from_count(300)))[0] == ()


def test_folds_too_short_for_shifts_are_left_out_of_the_share_over_chance(make_fit):
    chance = np.full((2, 2), 0.3)
    chance[1] = np.nan
    r = np.array([[0.4, 0.0], [0.4, 0.4]])
    rows = [model_row(make_fit(2, r=r, chance=levels)) for levels in (chance, np.full((2, 2), np.nan))]
    assert rows[0].share_over_chance == 1 / 2
    assert math.isnan(rows[1].share_over_chance)
    assert mean_row(rows).share_over_chance == 1 / 2


def test_fold_rows_summarise_each_fold_by_itself(make_fit):
    fit = make_fit()
    rows = fold_rows(fit)
    assert [row.fold for row in rows] == ["MOVIE1", "MOVIE2"]
    assert [row.n_shifts for row in rows] == [120, 118]
    for row, r, r2 in zip(rows, fit.r, fit.r2, strict=True):
        assert row.r.mean == pytest.approx(r.mean())
        assert row.median_r2 == pytest.approx(np.median(r2))


def test_csv_keeps_full_precision_and_hostile_names(make_fit):
    fit = make_fit(feature_set='<b>&",\n')
    (cells,) = csv.DictReader(io.StringIO(csv_text([model_row(fit)])))
    assert cells["feature_set"] == '<b>&",\n'
    assert float(cells["r_mean"]) == summarise(fit.mean_r).mean
    assert cells["n_columns"] == "7680"


def test_undefined_numbers_are_shown_as_dashes():
    assert format_score(math.nan) == "–"
    assert format_share(math.nan) == "–"
    assert format_score(-0.0456) == "−0.046"
    assert format_score(-0.0001) == "0.000"
    assert format_share(0.1234) == "12.3 %"


def test_many_subjects_are_counted_rather_than_named(make_fit):
    rows = [model_row(make_fit(3, subject=f"S{index}")) for index in range(9)]
    assert name_subjects(rows, 10) == "9 of 10 subjects (S0, S1, S2, S3, S4 and 4 more)"

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hpcenc.tasks.folds import (
    RowPolicy,
    RunRows,
    clips_on_both_sides,
    outer_folds,
    rest_rows,
    run_onsets,
    showing_rows,
)

DELAYS = (1, 2)


@pytest.fixture
def runs():
    """Three runs of 20 TRs: rest at 0-2, a clip shown in each, rest after it; and one shown only once."""
    return (
        RunRows("one", 20, rest=((0, 2), (18, 20)), repeats=(("valid", 14, 18), ("once", 5, 8))),
        RunRows("two", 20, rest=((0, 2), (18, 20)), repeats=(("valid", 14, 18),)),
        RunRows("three", 22, rest=((0, 2), (18, 22)), repeats=(("valid", 12, 16),)),
    )


def rows(mask):
    return np.flatnonzero(mask).tolist()


def test_onsets_follow_the_lengths(runs):
    assert run_onsets(runs) == (0, 20, 40)
    assert run_onsets(runs[:1]) == (0,)


def test_rows_of_a_small_study_by_hand(runs):
    (fold,) = outer_folds(runs, DELAYS, RowPolicy())
    assert (fold.name, fold.test_runs) == ("three", ("three",))
    # 0-1 rest, 2-3 its tail; 14-17 the clip, 18-19 its tail and rest. The clip shown once stays.
    assert rows(fold.train) == [*range(4, 14), *range(24, 34)]
    assert rows(fold.test) == [40 + row for row in range(4, 18)]
    assert [rows(mask) for mask in fold.inner] == [[*range(4, 14)], [*range(24, 34)]]
    assert fold.dropped == {"train rest": 12, "train repeat": 8, "test rest": 8}


@pytest.mark.parametrize(
    ("repeat_test", "expected"),
    [
        ("keep", [*range(4, 18)]),
        ("drop", [*range(4, 12)]),
        ("only", [*range(12, 18)]),
    ],
)
def test_scored_rows_of_the_test_run(runs, repeat_test, expected):
    (fold,) = outer_folds(runs, DELAYS, RowPolicy(repeat_test=repeat_test))
    assert rows(fold.test[40:]) == expected


def test_a_clip_is_on_both_sides_where_one_showing_trains_and_another_tests(runs):
    def clips(of_runs, **settings):
        (fold,) = outer_folds(of_runs, DELAYS, RowPolicy(repeat_train="keep"), **settings)
        return clips_on_both_sides(of_runs, fold.train, fold.test)

    assert clips(runs) == ("valid",)
    (fold,) = outer_folds(runs, DELAYS, RowPolicy())
    assert clips_on_both_sides(runs, fold.train, fold.test) == ()
    # The test run does not show it; a cut goes through its only showing; a cut between two showings of a run.
    assert clips((*runs[:2], RunRows("three", 22))) == ()
    assert clips((*runs[:2], RunRows("three", 22, repeats=(("alone", 8, 14),))), split_row=50) == ()
    twice = RunRows("three", 30, repeats=(("twice", 2, 6), ("twice", 22, 26)))
    assert clips((*runs[:2], twice), split_row=60) == ("twice",)


def test_kept_rows_are_all_rows(runs):
    (fold,) = outer_folds(runs, DELAYS, RowPolicy(rest="keep", repeat_train="keep"))
    assert fold.train.tolist() == [True] * 40 + [False] * 22
    assert fold.test.tolist() == [False] * 40 + [True] * 22
    assert fold.dropped == {}


def test_rotation_tests_every_run_once(runs):
    folds = outer_folds(runs, DELAYS, RowPolicy(), "rotate")
    assert [fold.name for fold in folds] == ["one", "two", "three"]
    for fold in folds:
        assert not (fold.train & fold.test).any()
        assert len(fold.inner) == 2


def test_several_runs_are_held_out_together(runs):
    many = (*runs, RunRows("four", 10))
    (fold,) = outer_folds(many, DELAYS, RowPolicy(), test_runs=("four", "one"))
    assert fold.name == "one+four"
    assert fold.test_runs == ("one", "four")
    assert fold.test[:20].any()
    assert fold.test[62:].all()


def test_a_clip_that_no_other_present_run_shows_is_not_repeated(runs):
    assert rows(showing_rows(runs[:1], 0)) == []
    assert rows(showing_rows(runs[:2], 0)) == [*range(14, 18), *range(34, 38)]


def test_a_clip_that_a_run_shows_twice_does_not_train_where_the_run_is_cut():
    long = (RunRows("none", 20), RunRows("one", 60, repeats=(("clip", 5, 12), ("clip", 40, 47))))
    (fold,) = outer_folds(long, DELAYS, RowPolicy(), split_row=50)
    assert not fold.train[25:34].any()
    assert fold.dropped == {"train repeat": 9}
    assert fold.test[60:69].all()


@pytest.mark.parametrize(
    ("split_row", "message"),
    [
        (81, "fit.split_s: no test run has 3 rows left.*Give fewer seconds"),
        (9, "fit.split_s: training.*Give more seconds"),
    ],
)
def test_a_cut_that_leaves_too_little_says_how_to_move_it(split_row, message):
    long = (RunRows("one", 40), RunRows("two", 42))
    with pytest.raises(ValueError, match=message):
        outer_folds(long, DELAYS, RowPolicy(), split_row=split_row)


def test_the_tail_of_a_clip_can_be_left_in_as_a_control(runs):
    (fold,) = outer_folds(runs, DELAYS, RowPolicy(rest="keep"), repeat_tail=0)
    assert rows(fold.train[:20]) == [*range(14), 18, 19]


def test_spans_end_with_their_run(runs):
    assert rows(rest_rows(runs, 5)[20:27]) == [*range(7)]
    assert not rest_rows(runs[:1], 5)[7:18].any()


def test_a_run_with_two_rows_left_is_not_used(runs):
    scrap = RunRows("scrap", 8, rest=((0, 4),))
    (fold,) = outer_folds((scrap, *runs), DELAYS, RowPolicy())
    assert not fold.train[:8].any()
    assert len(fold.inner) == 2
    assert fold.dropped["train short run"] == 2


@pytest.mark.parametrize(
    ("policy", "runs_used", "test_runs", "message"),
    [
        (RowPolicy(), 3, ("four",), "test run 'four' is not among the runs present: one, two, three"),
        (RowPolicy(), 2, (), "fold 'two': training runs with rows left: 1 "),
        (RowPolicy(repeat_test="only"), 3, (), "fold 'scrap': no test run has 3 rows left"),
    ],
)
def test_folds_that_cannot_be_fitted_are_refused(runs, policy, runs_used, test_runs, message):
    present = runs[:runs_used]
    if policy.repeat_test == "only":
        present = (*present, RunRows("scrap", 20))
    with pytest.raises(ValueError, match=message):
        outer_folds(present, DELAYS, policy, test_runs=test_runs)


def test_run_names_are_unique(runs):
    with pytest.raises(ValueError, match="expected each name once"):
        outer_folds((runs[0], runs[0]), DELAYS, RowPolicy())


def random_runs(rng):
    def spans(n_trs, most):
        starts = rng.integers(0, n_trs - 1, rng.integers(0, most + 1))
        return tuple((int(start), int(min(n_trs, start + rng.integers(1, 9)))) for start in starts)

    runs = []
    for name in "abcde"[: rng.integers(3, 6)]:
        n_trs = int(rng.integers(30, 60))
        repeats = tuple((str(rng.choice(["v", "w"])), *span) for span in spans(n_trs, 2))
        runs.append(RunRows(name, n_trs, spans(n_trs, 2), repeats))
    return tuple(runs)


def why_dropped(runs, run, row, longest, policy, testing):
    """Reason why a row is left out, by looking at the row alone."""
    window = set(range(row - longest, row + 1))
    if policy.rest == "drop" and any(start <= row < stop + longest for start, stop in run.rest):
        return "rest"
    shown = {
        group
        for group, _, _ in run.repeats
        if any(group == g for other in runs if other is not run for g, _, _ in other.repeats)
    }
    in_showing = any(window & set(range(start, stop)) for group, start, stop in run.repeats if group in shown)
    if run.name not in testing:
        return "repeat" if policy.repeat_train == "drop" and in_showing else None
    if policy.repeat_test == "drop" and in_showing:
        return "repeat"
    return "outside repeat" if policy.repeat_test == "only" and not in_showing else None


@pytest.mark.parametrize("seed", range(40))
def test_rows_are_those_of_a_plain_loop_over_rows(seed):
    rng = np.random.default_rng(seed)
    runs = random_runs(rng)
    delays = tuple(range(int(rng.integers(0, 3)), int(rng.integers(3, 7))))
    policy = RowPolicy(
        str(rng.choice(["drop", "keep"])),
        str(rng.choice(["drop", "keep"])),
        str(rng.choice(["keep", "drop", "only"])),
    )
    try:
        folds = outer_folds(runs, delays, policy, "rotate")
    except ValueError:  # these runs are too short for it
        policy = RowPolicy("keep", policy.repeat_train, "keep")
        folds = outer_folds(runs, delays, policy, "rotate")
    for fold in folds:
        counts = Counter()
        train, test = [], []
        for run in runs:
            testing = run.name in fold.test_runs
            role = "test" if testing else "train"
            reasons = [
                why_dropped(runs, run, row, max(delays), policy, fold.test_runs) for row in range(run.n_trs)
            ]
            if reasons.count(None) < 3:
                reasons = ["short run" if reason is None else reason for reason in reasons]
            counts.update(f"{role} {reason}" for reason in reasons if reason)
            train += [reason is None and not testing for reason in reasons]
            test += [reason is None and testing for reason in reasons]
        assert fold.train.tolist() == train
        assert fold.test.tolist() == test
        assert fold.dropped == counts
        np.testing.assert_array_equal(np.sum(fold.inner, axis=0), fold.train)
        edges = [*run_onsets(runs), len(train)]
        for mask in fold.inner:
            present = [mask[start:stop].any() for start, stop in pairwise(edges)]
            assert sum(present) == 1

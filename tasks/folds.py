"""Which rows train and which test: whole runs held out, without rest and repeated clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MIN_RUN_ROWS = 3
"""Rows a run needs to be used: BOLD is z-scored per run, and r of two rows is always 1 or -1."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RunRows:
    """One run as the folds see it; spans are half-open rows ``[start, stop)`` of the run."""

    name: str
    n_trs: int
    rest: tuple[tuple[int, int], ...] = ()
    repeats: tuple[tuple[str, int, int], ...] = ()
    """Showings of repeated clips: (group, start, stop)."""


@dataclass(frozen=True)
class RowPolicy:
    """Which rows are left out.

    Test rows are split in two by `repeat_test`: ``drop`` scores what ``only`` does not, ``keep`` scores all.
    """

    rest: Literal["drop", "keep"] = "drop"
    repeat_train: Literal["drop", "keep"] = "drop"
    repeat_test: Literal["keep", "drop", "only"] = "keep"


@dataclass(frozen=True, eq=False)
class OuterFold:
    """One split of the rows of all runs into training and test rows."""

    name: str
    """Names of the test runs, joined by ``+``, or which rows test."""
    test_runs: tuple[str, ...]
    train: Mask
    """Training rows, shape (n_trs,); all runs one after the other."""
    test: Mask
    """Test rows, shape (n_trs,)."""
    inner: tuple[Mask, ...]
    """Validation rows of each inner fold, shape (n_trs,): the training rows of one run."""
    dropped: Mapping[str, int]
    """Rows left out, by the first reason that applies (``"train rest"``, ``"test repeat"``, ...)."""


def run_onsets(runs: Sequence[RunRows]) -> tuple[int, ...]:
    """First row of each run when the runs follow each other; begins with 0."""
    return tuple(accumulate((run.n_trs for run in runs[:-1]), initial=0))


def rest_rows(runs: Sequence[RunRows], tail: int) -> Mask:
    """Rows in rest or within `tail` TRs after its end.

    Any feature predicts the response to a movie that goes on and off, so these rows tell nothing of a model.

    Parameters
    ----------
    runs : sequence of RunRows
    tail : int
        TRs that the response to rest lasts: the longest delay.

    Returns
    -------
    array of bool, shape (n_trs,)
    """
    return _span_rows(runs, [run.rest for run in runs], tail)


def showing_rows(runs: Sequence[RunRows], tail: int, within_runs: bool = False) -> Mask:
    """Rows in a repeated clip or within `tail` TRs after its end.

    Parameters
    ----------
    runs : sequence of RunRows
        Runs present. A group that only one of them shows marks nothing: whole runs are held out.
    tail : int
        With the longest delay, all rows whose window the clip's features reach. With 0, the clip's own rows:
        too few, for later rows pair its features with the response to it, the same in each run.
    within_runs : bool
        Mark what one run shows twice, too: for runs that are cut between training and test.

    Returns
    -------
    array of bool, shape (n_trs,)
    """
    showings = [group for run in runs for group, _, _ in run.repeats]
    if not within_runs:
        showings = [group for run in runs for group in {group for group, _, _ in run.repeats}]
    repeated = {group for group in showings if showings.count(group) > 1}
    spans = [[(start, stop) for group, start, stop in run.repeats if group in repeated] for run in runs]
    return _span_rows(runs, spans, tail)


def clips_on_both_sides(runs: Sequence[RunRows], train: Mask, test: Mask) -> tuple[str, ...]:
    """Repeated clips of which one showing has training rows and another one has test rows.

    Parameters
    ----------
    runs : sequence of RunRows
        Runs present, in the order of their rows.
    train, test : array of bool, shape (n_trs,)
    """
    trained: dict[str, set[int]] = {}
    tested: dict[str, set[int]] = {}
    for onset, run in zip(run_onsets(runs), runs, strict=True):
        for group, start, stop in run.repeats:
            for sides, rows in ((trained, train), (tested, test)):
                if rows[onset + start : onset + stop].any():
                    sides.setdefault(group, set()).add(onset + start)
    return tuple(
        group for group, showings in trained.items() if group in tested and len(showings | tested[group]) > 1
    )


def outer_folds(
    runs: Sequence[RunRows],
    delays: Sequence[int],
    policy: RowPolicy,
    outer: Literal["single", "rotate"] = "single",
    test_runs: Sequence[str] = (),
    *,
    repeat_tail: int | None = None,
    split_row: int | None = None,
    min_fold_rows: int = 0,
) -> tuple[OuterFold, ...]:
    """Outer folds over whole runs, each with its leave-one-run-out inner folds.

    A row is left out, in this order of reasons:

    - ``rest``: it lies in rest or within the longest delay after it (training and test);
    - ``repeat``: it lies in a showing of a repeated clip or within the longest delay after it, so that it or
      a TR of its window is in the showing (training; test by ``policy.repeat_test``);
    - ``outside repeat``: ``repeat_test = "only"`` and it does not (test);
    - ``short run``: fewer than 3 rows of its run are left.

    Inner folds split the same training rows.

    Parameters
    ----------
    runs : sequence of RunRows
        Runs present, in the order of their rows.
    delays : sequence of int
        In TRs; the longest one counts.
    policy : RowPolicy
    outer : {"single", "rotate"}
        One fold that holds out `test_runs`, or one fold per run that holds out that run.
    test_runs : sequence of str
        Runs that ``"single"`` holds out together; the last run if empty.
    repeat_tail : int, optional
        TRs after a repeated clip that count as its showing; the longest delay if left out. A control:
        anything shorter leaks.
    split_row : int, optional
        In place of whole runs the rows from here on are held out, counted over all runs.
    min_fold_rows : int
        The training rows of a run with fewer of them join the inner fold of the run before, or of the next
        one if it is the first.

    Returns
    -------
    tuple of OuterFold

    Raises
    ------
    ValueError
        If a test run is unknown, a fold has no test rows left, or fewer than 2 training runs have rows left.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs {', '.join(names)}: expected each name once.")
    unknown = [name for name in test_runs if name not in names]
    if unknown:
        raise ValueError(f"test run '{unknown[0]}' is not among the runs present: {', '.join(names)}.")
    longest = max(delays)
    rest = rest_rows(runs, longest)
    showing = showing_rows(runs, longest if repeat_tail is None else repeat_tail, split_row is not None)
    run_of_row = np.repeat(np.arange(len(runs)), [run.n_trs for run in runs])
    if split_row is not None:
        held_out = [np.arange(len(run_of_row)) >= split_row]
    else:
        testing = [{name} for name in names] if outer == "rotate" else [set(test_runs or names[-1:])]
        held_out = [np.isin(names, list(tested))[run_of_row] for tested in testing]
    cut = split_row is not None
    folds = [_outer_fold(runs, is_test, rest, showing, policy, min_fold_rows, cut) for is_test in held_out]
    if split_row is not None:
        folds = [replace(fold, name=f"last {len(run_of_row) - split_row} TRs") for fold in folds]
    return tuple(folds)


def _outer_fold(
    runs: Sequence[RunRows],
    is_test: Mask,
    rest: Mask,
    showing: Mask,
    policy: RowPolicy,
    min_fold_rows: int,
    is_cut: bool,
) -> OuterFold:
    run_of_row = np.repeat(np.arange(len(runs)), [run.n_trs for run in runs])
    test_runs = tuple(runs[run].name for run in np.unique(run_of_row[is_test]))
    cuts = {
        "train rest": ~is_test & rest & (policy.rest == "drop"),
        "test rest": is_test & rest & (policy.rest == "drop"),
        "train repeat": ~is_test & showing & (policy.repeat_train == "drop"),
        "test repeat": is_test & showing & (policy.repeat_test == "drop"),
        "test outside repeat": is_test & ~showing & (policy.repeat_test == "only"),
    }
    left = np.ones(len(run_of_row), dtype=bool)
    dropped = {}
    for reason, rows in cuts.items():
        dropped[reason] = int(np.count_nonzero(left & rows))
        left &= ~rows
    # The two parts of a run that is cut count by themselves.
    part_of_row = 2 * run_of_row + is_test
    short = left & (np.bincount(part_of_row[left], minlength=2 * len(runs)) < MIN_RUN_ROWS)[part_of_row]
    dropped |= {
        "train short run": int(np.sum(short & ~is_test)),
        "test short run": int(np.sum(short & is_test)),
    }
    left &= ~short

    train, test = left & ~is_test, left & is_test
    name = "+".join(test_runs)
    dropped = {reason: count for reason, count in dropped.items() if count}
    inner = _inner_folds([train & (run_of_row == run) for run in np.unique(run_of_row[train])], min_fold_rows)
    where = "fit.split_s" if is_cut else f"fold '{name}'"
    if not test.any():
        way_out = "Give fewer seconds" if is_cut else "Hold out another run"
        if any(reason.startswith("test") for reason in dropped):
            way_out += ", or change fit.rest or fit.repeat_test"
        raise ValueError(
            f"{where}: no test run has {MIN_RUN_ROWS} rows left (dropped: {_listed(dropped)}). {way_out}."
        )
    if len(inner) < 2:
        way_out = "Give more seconds" if is_cut else "Add runs, or hold out fewer"
        if any(reason.startswith("train") for reason in dropped):
            way_out += ", or change fit.rest or fit.repeat_train"
        raise ValueError(
            f"{where}: training runs with rows left: {len(inner)} (dropped: {_listed(dropped)}). "
            "Expected at least 2, for inner folds leave one out. "
            f"{way_out}."
        )
    return OuterFold(name, test_runs, train, test, inner, dropped)


def _inner_folds(of_runs: Sequence[Mask], min_rows: int) -> tuple[Mask, ...]:
    """Training rows of each run, short ones joined to the run before them, or to the next one."""
    folds: list[Mask] = []
    for rows in of_runs:
        if folds and min(np.count_nonzero(rows), np.count_nonzero(folds[-1])) < min_rows:
            folds[-1] = folds[-1] | rows
        else:
            folds.append(rows)
    return tuple(folds)


def _span_rows(runs: Sequence[RunRows], spans: Sequence[Sequence[tuple[int, int]]], tail: int) -> Mask:
    masks = [np.zeros(run.n_trs, dtype=bool) for run in runs]
    for mask, spans_of_run in zip(masks, spans, strict=True):
        for start, stop in spans_of_run:
            mask[start : stop + tail] = True
    return np.concatenate(masks)


def _listed(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none"

"""The table of fits in bands: a sum of two feature sets beside each of them alone and beside one penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.report.sections import Column, Table, count
from hpcenc.tasks.report.sweeps import Sweep
from hpcenc.tasks.report.tables import format_score

Main = Mapping[tuple[str, str, str], NDArray[np.float64]]
"""r of main fits, mean over folds, by feature set, layer and subject."""


def main_r(main: Main, feature_set: str, layer: str, subject: str) -> NDArray[np.float64] | None:
    """r of the main fit of a layer, (n_voxels,); None where it is not there.

    Without a layer it is that of the one layer that the feature set was fitted in, None if there are several.
    """
    found = [
        r
        for (of_set, of_layer, of_subject), r in main.items()
        if (of_set, of_subject) == (feature_set, subject) and layer in ("", of_layer)
    ]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class BandRow:
    """A sum of two feature sets under one penalty and under two, and each of them alone; mean r over the
    vertices that are valid in all of these."""

    feature_set: str
    subject: str
    n_valid: int
    first: str
    second: str
    first_alone: float
    second_alone: float
    one_penalty: float
    two_penalties: float
    first_adds: float
    second_adds: float


def band_row(sweep: Sweep, main: Main) -> BandRow:
    """How one subject's fit in bands compares.

    Parameters
    ----------
    sweep : Sweep
        Of bands.
    main : mapping of (feature set, layer, subject) to array of shape (n_voxels,)
        r of the main fits, mean over folds; those that are not there leave NaN.
    """
    first_adds, second_adds = sweep.band_r.values()
    name, *bracket = sweep.feature_set.partition("[")
    layers = sweep.layer.split("+") if sweep.layer else ("", "")
    # What bands add has the names of the sets where they were fitted in several layers.
    first, second = layers if sweep.layer else sweep.band_r

    def alone_r(part: str, layer: str) -> NDArray[np.float64] | None:
        """Of one of the two: the bracket of a sum is that of its models, and feature files have none."""
        found = main_r(main, part + "".join(bracket), layer, sweep.subject)
        return main_r(main, part, layer, sweep.subject) if found is None else found

    found = [alone_r(part, layer) for part, layer in zip(name.split("+"), layers, strict=True)]
    found.append(main_r(main, sweep.feature_set, sweep.layer, sweep.subject))
    *alone, equal = (np.full(len(sweep.nested_r), np.nan) if r is None else r for r in found)
    known = [values for values in (*alone, equal) if np.isfinite(values).any()]
    valid = np.isfinite([sweep.nested_r, *known]).all(axis=0)

    def mean(values: NDArray[np.float64]) -> float:
        return float(values[valid].mean()) if valid.any() else float("nan")

    return BandRow(
        sweep.label,
        sweep.subject,
        int(valid.sum()),
        first,
        second,
        mean(alone[0]),
        mean(alone[1]),
        mean(equal),
        mean(sweep.nested_r),
        mean(first_adds),
        mean(second_adds),
    )


def band_table(sweeps: Sequence[Sweep], main: Main) -> Table:
    """A line for each fit in bands."""
    scores = ("first_alone", "second_alone", "one_penalty", "two_penalties", "first_adds", "second_adds")
    return Table(
        "bands_compared",
        "Mean r of each set alone, of both under one penalty and under two, and what each adds to the last.",
        [band_row(sweep, main) for sweep in sweeps],
        (
            Column("feature_set", "feature set"),
            Column("subject", "subject"),
            Column("n_valid", "valid vertices", count),
            *(Column(name, name.replace("_", " "), format_score) for name in scores),
        ),
    )

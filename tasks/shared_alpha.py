"""One alpha for all voxels of a subject: the one whose error in the inner folds is the least in the mean.

Errors are quadratic forms of BOLD, so that their sum over voxels depends on the voxels' second moments
only. As few courses as there are training rows have the same ones; they stand for the whole cortex.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.groups import ArraySpec
from hpcenc.tasks import at_hand
from hpcenc.tasks.block_bold import BlockBold
from hpcenc.tasks.records import Deadline, Fact, TaskRecord, Unit, run_units

if TYPE_CHECKING:
    from hpcenc.storage.store import Store
    from hpcenc.tasks.fitting import VariantSource
    from hpcenc.tasks.operators import FoldOperators

SHARED_ALPHA_VERSION = 1
"""Part of the digest of shared alphas: raised by hand whenever they change."""


@dataclass(frozen=True, slots=True)
class SharedUnit:
    """One feature set, or sweep, of one subject.

    Attributes
    ----------
    needs : tuple of Unit
        Its operators, on every outer fold, and BOLD that is made before.
    """

    unit: Unit
    variants: tuple[VariantSource, ...]
    needs: tuple[Unit, ...]


def alpha_arrays(n_folds: int, n_variants: int, n_alphas: int) -> dict[str, ArraySpec]:
    """Which alpha was chosen, and by what."""
    return {
        "alpha_index": ArraySpec(
            (n_folds, n_variants), (n_folds, n_variants), "int64", ("fold", "variant")
        ),
        "errors": ArraySpec(
            (n_folds, n_variants, n_alphas), (n_folds, n_variants, n_alphas), "float64",
            ("fold", "variant", "alpha"),
            attributes={"comment": "mean over voxels, less that of the largest alpha"},
        ),
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ShareAlphas:
    """Choose the shared alphas of one subject; its units are the feature sets, BOLD is read once.

    Attributes
    ----------
    blocks : tuple of (first, stop)
        Voxels that are read at a time, together all.
    """

    subject: str
    blocks: tuple[tuple[int, int], ...]
    bold: BlockBold
    zscore: Literal["run", "movie"]
    backend: str
    sets: tuple[SharedUnit, ...]

    @property
    def key(self) -> str:
        """Name of the task."""
        return f"alpha {self.subject}"

    @property
    def units(self) -> tuple[Unit, ...]:
        """One for each feature set."""
        return tuple(each.unit for each in self.sets)

    def needs_of(self, unit: Unit) -> tuple[Unit, ...]:
        """What one feature set needs."""
        return next(each.needs for each in self.sets if each.unit == unit)

    def run(self, store: Store, deadline: Deadline | None) -> TaskRecord:
        """Choose the alphas of the feature sets that are not done."""
        sets = {each.unit: each for each in self.sets}
        courses: dict[bytes, Any] = {}
        return run_units(self, store, deadline, lambda unit: self._choose(store, sets[unit], courses))

    def _choose(self, store: Store, each: SharedUnit, courses: dict[bytes, Any]) -> Mapping[str, Fact]:
        device, errors = at_hand.device(self.backend), []
        with device.turn():
            for variant in each.variants:
                for _, folder in variant.operators:
                    operators = device.operators(folder)
                    rows = np.concatenate([operators.train_rows, [-1], operators.test_rows]).tobytes()
                    if rows not in courses:
                        courses[rows] = device.backend.to_device(self._courses(store, operators))
                    errors.append(device.backend.to_host(mean_errors(courses[rows], operators)))
        shape = len(each.variants), len(each.variants[0].operators), -1
        by_fold = np.asarray(errors).reshape(shape).transpose(1, 0, 2)
        index = by_fold.shape[2] - 1 - by_fold[:, :, ::-1].argmin(axis=2)  # ties go to the larger alpha
        store.write(f"{each.unit.group}/alpha_index", (slice(None),) * 2, index.astype(np.int64))
        store.write(f"{each.unit.group}/errors", (slice(None),) * 3, np.ascontiguousarray(by_fold))
        return {"variants": len(each.variants)}

    def _courses(self, store: Store, operators: FoldOperators) -> NDArray[np.float32]:
        """Courses with the second moments of all voxels together, (n_train, n_courses)."""
        from hpcenc.tasks.zscoring import standardise

        n_train = len(operators.train_rows)
        moments, n_valid = np.zeros((n_train, n_train)), 0
        for first, stop in self.blocks:
            block = self.bold.read(store, slice(first, stop))
            bold = standardise(block, operators, self.bold.onsets, at_hand.SUB_BLOCK, self.zscore)
            moments += bold.train @ bold.train.T  # zero where no voxel is valid
            n_valid += int(bold.valid.sum())
        return representative_courses(moments / max(n_valid, 1))


def representative_courses(moments: NDArray[np.float64]) -> NDArray[np.float32]:
    """Few courses whose second moments are given.

    Parameters
    ----------
    moments : array of shape (n_train, n_train)
        ``Y @ Y.T`` of the voxels' courses, over their number.

    Returns
    -------
    array of shape (n_train, n_courses)
        C with ``C @ C.T`` equal to the moments, so that the sum over its columns of any quadratic form is
        the mean over voxels.
    """
    values, vectors = np.linalg.eigh(moments)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    courses: NDArray[np.float32] = (vectors[:, kept] * np.sqrt(values[kept])).astype(np.float32)
    return courses


def mean_errors(courses: Any, operators: FoldOperators) -> Any:
    """Error of every alpha in the inner folds, mean over voxels, less that of the largest alpha.

    Parameters
    ----------
    courses : array of shape (n_train, n_courses)
        As `representative_courses` gives them.
    operators : FoldOperators

    Returns
    -------
    array of shape (n_alphas,), float64
    """
    from array_api_compat import array_namespace

    from hpcenc.tasks.cv_choice import exact_costs
    from hpcenc.tasks.ridge import cross_validate

    xp = array_namespace(courses)
    if courses.shape[1] == 0:  # no voxel is defined
        return xp.zeros_like(operators.alphas)
    if operators.fast is not None:
        return xp.sum(exact_costs(xp.matrix_transpose(courses), operators.fast.forms), axis=0)
    total = xp.sum(-cross_validate(courses, operators), axis=0)
    return total - total[-1]

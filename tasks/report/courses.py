"""Time courses: measured and predicted BOLD of the best vertex of every feature set and region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.array_folder import load_arrays
from hpcenc.storage.bold import find_bold, name_axes, read_block, read_header
from hpcenc.storage.errors import BoldError, StoreError, StudyError
from hpcenc.storage.layout import AVERAGE, average_group, operators_folder, run_array
from hpcenc.storage.results import Scores
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.block_bold import positions_in
from hpcenc.tasks.operators import FoldOperators, from_arrays
from hpcenc.tasks.report.data import TimeCourse
from hpcenc.tasks.ridge import refit
from hpcenc.tasks.scores import pearson_r
from hpcenc.tasks.zscoring import zscore_rows


@dataclass(frozen=True)
class BestVertex:
    """The vertex that a feature set predicts best, over subjects and variants."""

    r: float
    """Its mean over folds."""
    scores: Scores
    variant: int
    voxel: int


def make_courses(
    store: Store,
    found: Sequence[Scores],
    voxels: VoxelAxis,
    study: Study,
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
) -> tuple[tuple[TimeCourse, ...], tuple[str, ...]]:
    """Course of the best vertex of every feature set, and of every region, and of those that the study names,
    on the last fold.

    Parameters
    ----------
    regions : mapping of str to array of bool, shape (n_voxels,), optional
        Of each the vertex that any feature set predicts best, in the average or else in the first subject.
        A vertex that the study names is drawn as the feature set predicts it that does so best.

    Returns
    -------
    courses : tuple of TimeCourse
    missing : tuple of str
        Feature sets without one, each with the reason: operators may be cleaned away, and BOLD may
        lie elsewhere or be another file by now.
    """
    courses: list[TimeCourse] = []
    missing: list[str] = []
    drawn: dict[tuple[str, int, int], int] = {}
    subjects = [scores.attributes["subject"] for scores in found]
    shown = [
        each
        for each in found
        if each.attributes["subject"] == (AVERAGE if AVERAGE in subjects else subjects[0])
    ]
    wanted = [
        (label, f"the vertex that {label} predicts best", best, False)
        for label, best in _best_vertices(found).items()
    ]
    for region, mask in (regions or {}).items():
        if not mask.any():
            missing.append(f"{region}: none of its vertices is among the study's voxels")
            continue
        bests = [best for best in _best_vertices(shown, mask).values() if best is not None]
        best = max(bests, key=lambda each: each.r, default=None)
        wanted.append((region, f"the vertex of {region} that any feature set predicts best", best, False))
    for name in study.vertices:
        mask = _named_vertex(voxels, name)
        if not mask.any():
            missing.append(f"{name}: not among the study's voxels, as the medial wall is not")
            continue
        bests = [best for best in _best_vertices(shown, mask).values() if best is not None]
        best = max(bests, key=lambda each: each.r, default=None)
        wanted.append((name, f"{name}, which the study names", best, True))
    for label, what, best, named in wanted:
        if best is None:
            missing.append(f"{label}: no vertex has an r in every fold yet")
            continue
        place = best.scores.group, best.variant, best.voxel
        if place in drawn:
            courses[drawn[place]] = replace(
                courses[drawn[place]], what=f"{courses[drawn[place]].what} and {what}"
            )
            continue
        try:
            drawn[place] = len(courses)
            courses.append(replace(_course(store, best, voxels, study, what), named=named))
        except (StoreError, StudyError, BoldError) as error:
            del drawn[place]
            missing.append(f"{label}, subject {best.scores.attributes['subject']}: {error}")
    return tuple(courses), tuple(missing)


def _named_vertex(voxels: VoxelAxis, name: str) -> NDArray[np.bool_]:
    """Where a vertex lies that the study names, such as ``left 1234``; nowhere if it is not on the axis."""
    kind, number = name.split()
    structure = f"CIFTI_STRUCTURE_CORTEX_{kind.upper()}"
    mask = np.zeros(voxels.n_voxels, dtype=bool)
    if kind == "voxel":
        mask[int(number) : int(number) + 1] = True
    elif structure in voxels.names:
        mask |= (voxels.structure == voxels.names.index(structure)) & (voxels.vertex == int(number))
    return mask


def _best_vertices(
    found: Sequence[Scores], mask: NDArray[np.bool_] | None = None
) -> dict[str, BestVertex | None]:
    """Best vertex by feature set, within a mask; None where r is undefined everywhere."""
    best: dict[str, BestVertex | None] = {}
    for scores in found:
        mean_r = scores.r.mean(axis=0)  # (variant, voxel)
        if mask is not None:
            mean_r = np.where(mask, mean_r, np.nan)
        current = best.setdefault(scores.attributes["feature_set"], None)
        if np.isnan(mean_r).all():
            continue
        variant, voxel = divmod(int(np.nanargmax(mean_r)), mean_r.shape[1])
        peak = float(mean_r[variant, voxel])
        if current is None or peak > current.r:
            best[scores.attributes["feature_set"]] = BestVertex(peak, scores, variant, voxel)
    return best


def _course(store: Store, best: BestVertex, voxels: VoxelAxis, study: Study, what: str) -> TimeCourse:
    """Measured and predicted BOLD of one vertex on the last fold."""
    attributes, voxel = best.scores.attributes, best.voxel
    subject, fold = attributes["subject"], len(attributes["folds"]) - 1
    group = attributes["variants"][best.variant]["operators"][fold]
    operators = from_arrays(load_arrays(operators_folder(store.path, store.attributes_of(group)["digest"])))
    measured = _measured(store, study, attributes, voxel)
    onsets = attributes["onsets"]
    alpha = best.scores.alpha[fold, best.variant, voxel]
    predicted, scored = _predict(operators, measured, onsets, alpha, attributes.get("zscore", "run"))
    test_run = int(np.searchsorted(onsets, operators.test_rows[0], side="right")) - 1
    edges = [*onsets, attributes["n_trs"]]
    rows = slice(edges[test_run], edges[test_run + 1])
    in_run = (operators.test_rows >= rows.start) & (operators.test_rows < rows.stop)
    used = np.zeros(rows.stop - rows.start, dtype=bool)
    used[operators.test_rows[in_run] - rows.start] = True
    courses = np.full((2, len(used)), np.nan)
    courses[0, used], courses[1, used] = scored[in_run, 0], predicted[in_run, 0]
    return TimeCourse(
        feature_set=attributes["feature_set"],
        subject=subject,
        fold=f"{attributes['folds'][fold]}",
        run=attributes["runs"][test_run],
        voxel=voxel,
        place=_place(voxels, voxel),
        what=what,
        time_s=np.arange(len(used)) * attributes["tr_s"],
        measured=courses[0],
        predicted=courses[1],
        r=float(pearson_r(predicted[in_run], scored[in_run])[0]),
        used=used,
    )


def _measured(store: Store, study: Study, attributes: Mapping[str, Any], voxel: int) -> NDArray[np.float32]:
    """BOLD of one voxel in all runs of a fit, (n_trs, 1)."""
    runs, subject = attributes["runs"], attributes["subject"]
    if subject == AVERAGE:
        if attributes["bold"] != store.attributes_of(average_group())["digest"]:
            raise StoreError("the average was made anew since the fit. Submit again.")
        return np.concatenate([_one_stored(store, run, voxel) for run in runs])
    pairs = zip(runs, attributes["bold"], strict=True)
    return np.concatenate([_one_voxel(study, subject, run, voxel, identity) for run, identity in pairs])


def _one_stored(store: Store, run: str, voxel: int) -> NDArray[np.float32]:
    path = f"{average_group()}/{run_array(run)}"
    block = store.array(path).chunks[1]
    first = voxel // block * block
    stop = min(first + block, store.array(path).shape[1])
    return store.read(path, (slice(None), slice(first, stop)))[:, voxel - first : voxel - first + 1]


def _one_voxel(
    study: Study, subject: str, run: str, voxel: int, identity: dict[str, Any]
) -> NDArray[np.float32]:
    """Time course (n_trs, 1) of a voxel of the study in one run, of the file that was fitted."""
    header = name_axes(read_header(find_bold(study.bold.path, study.folder, subject, run)))
    if header.identity != identity:
        raise BoldError(f"{header.path}: the file has changed since the fit. Submit again.")
    positions = positions_in(header, study.bold.grayordinates)
    return read_block(header, slice(voxel, voxel + 1), positions)


def _predict(
    operators: FoldOperators,
    measured: NDArray[np.floating[Any]],
    onsets: Sequence[int],
    alpha: float,
    zscore: Literal["run", "movie"],
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Prediction and z-scored measurement of the test rows, as the fit made them."""
    train, test, _ = zscore_rows(measured, (operators.train_rows, operators.test_rows), onsets, zscore)
    index = np.array([int(np.argmin(np.abs(np.asarray(operators.alphas) - alpha)))])
    predicted, _ = refit(train, operators, index)
    return predicted, test


def _place(voxels: VoxelAxis, voxel: int) -> str:
    """Where a voxel is, in words."""
    structure = int(voxels.structure[voxel])
    if structure < 0:
        return f"voxel {voxel}"
    name = voxels.names[structure].removeprefix("CIFTI_STRUCTURE_").replace("_", " ").lower()
    where = f"vertex {voxels.vertex[voxel]}" if voxels.vertex[voxel] >= 0 else f"voxel {voxels.ijk[voxel]}"
    return f"{name}, {where}"

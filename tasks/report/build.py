"""The report of a store: what the fits hold and what the runs recorded, made into pages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.array_folder import load_arrays
from hpcenc.storage.bold import find_bold, read_axes, read_block, read_header
from hpcenc.storage.digests import digest
from hpcenc.storage.errors import BoldError, StoreError, StudyError
from hpcenc.storage.layout import operators_folder, report_folder
from hpcenc.storage.results import Scores, read_voxels, require_scores
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.operators import FoldOperators, from_arrays
from hpcenc.tasks.report.data import Facts, FitScores, ReportData, TimeCourse
from hpcenc.tasks.report.page import ReportFiles, write_report
from hpcenc.tasks.ridge import refit, run_lengths, zscore_runs
from hpcenc.tasks.scores import circular_shift_count, pearson_r
from hpcenc.tasks.selection import REFERENCE_SETS

Events = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes
    ----------
    damaged : tuple of str
        Fits with undefined vertices, named and counted.
    """

    files: ReportFiles
    damaged: tuple[str, ...]


def build_report(study: Study, run: Mapping[str, Any], events: Events, set_aside: Sequence[str]) -> Report:
    """Write the report of everything that is in a store.

    Parameters
    ----------
    study : Study
    run : mapping
        Record of the latest run: versions, settings, when it began.
    events : iterable of mapping
        What happened in it.
    set_aside : sequence of str
        Subjects, runs and tasks that were set aside, each with the reason.

    Raises
    ------
    StoreError
        If the store has no fits, or a chunk of them is damaged.
    """
    store = Store(study.store_path)
    found = sorted(require_scores(store), key=_reading_order)
    voxels = read_voxels(store)
    damaged = tuple(line for scores in found if (line := _damage(scores)))
    fits = tuple(fit for scores in found for fit in _fits(store, scores))
    data = ReportData(
        study=study.name,
        scores=fits,
        voxels=voxels,
        note=study.note,
        simulated=study.simulated,
        courses=tuple(_courses(store, found, voxels, study)),
        facts=Facts(_facts(store, found, run, list(events), [*set_aside, *damaged])),
        warnings=(*(f"Set aside: {reason}" for reason in (*set_aside, *damaged)), *_mixed(store, found)),
    )
    return Report(write_report(data, report_folder(study.store_path)), damaged)


def _reading_order(scores: Scores) -> int:
    """Feature sets in the order of the reference study, others after them."""
    name = str(scores.attributes["feature_set"]).partition("[")[0]
    return REFERENCE_SETS.index(name) if name in REFERENCE_SETS else len(REFERENCE_SETS)


def _mixed(store: Store, found: Sequence[Scores]) -> Iterable[str]:
    """Warnings of feature sets whose subjects were fitted under different settings.

    That happens when a setting is changed and only some subjects are submitted again.
    """
    settings: dict[str, dict[str, list[str]]] = {}
    for scores in found:
        attributes = scores.attributes
        operators = store.attributes_of(attributes["variants"][0]["operators"][0])
        key = digest({name: operators[name] for name in ("policy", "delays", "alpha_exponents")})
        of_set = settings.setdefault(attributes["feature_set"], {})
        of_set.setdefault(key, []).append(attributes["subject"])
    for feature_set, groups in settings.items():
        if len(groups) > 1:
            each = "; ".join(", ".join(subjects) for subjects in groups.values())
            yield (
                f"{feature_set}: subjects were fitted under different settings ({each}): their means mix "
                "them. Submit all subjects again."
            )


def _damage(scores: Scores) -> str:
    """Vertices of a fit that are undefined, in words; empty if there are none."""
    undefined = np.isnan(scores.r).any(axis=(0, 1)) & scores.done
    if not undefined.any():
        return ""
    name = f"{scores.attributes['feature_set']} of subject {scores.attributes['subject']}"
    if undefined.sum() == scores.done.sum():
        return f"{name}: every vertex is constant or not finite in some run; the subject is set aside"
    return f"{name}: {undefined.sum()} of {scores.done.sum()} vertices are constant or not finite in some run"


def _fits(store: Store, scores: Scores) -> Iterable[FitScores]:
    attributes = scores.attributes
    for place, variant in enumerate(attributes["variants"]):
        groups = [store.attributes_of(group) for group in variant["operators"]]
        n_features = sum(space["n_features"] for space in variant["spaces"])
        scales = [store.read(f"{group}/feature_scale") for group in variant["operators"]]
        onsets = attributes["onsets"]
        roles = [store.read(f"{group}/role") for group in variant["operators"]]
        yield FitScores(
            feature_set=attributes["feature_set"],
            variant=variant["label"],
            modality=attributes["modality"],
            subject=attributes["subject"],
            n_features=n_features,
            n_columns=n_features * len(attributes["delays"]),
            n_constant=max(int(np.sum(scale == 0)) for scale in scales),
            folds=tuple(group["fold"] for group in groups),
            r=scores.r[:, place],
            r2=scores.r2[:, place],
            alpha=scores.alpha[:, place],
            chance=scores.chance[:, place],
            alpha_grid=np.stack([store.read(f"{group}/alphas") for group in variant["operators"]]),
            n_shifts=tuple(
                circular_shift_count(run_lengths(np.flatnonzero(role == 2), onsets)) for role in roles
            ),
            blocks_done=scores.blocks_done,
            blocks=scores.blocks,
        )


def _courses(
    store: Store,
    found: Sequence[Scores],
    voxels: VoxelAxis,
    study: Study,
) -> Iterable[TimeCourse]:
    """Course of the best vertex of every feature set, over subjects and variants."""
    best: dict[str, tuple[float, Scores, int, int]] = {}
    for scores in found:
        mean_r = scores.r.mean(axis=0)  # (variant, voxel)
        if np.isnan(mean_r).all():
            continue
        place, voxel = divmod(int(np.nanargmax(mean_r)), mean_r.shape[1])
        peak = float(mean_r[place, voxel])
        name = scores.attributes["feature_set"]
        if name not in best or peak > best[name][0]:
            best[name] = (peak, scores, place, voxel)
    for _, scores, place, voxel in best.values():
        course = _course(store, scores, place, voxel, voxels, study)
        if course is not None:
            yield course


def _course(
    store: Store,
    scores: Scores,
    place: int,
    voxel: int,
    voxels: VoxelAxis,
    study: Study,
) -> TimeCourse | None:
    """Measured and predicted BOLD of one vertex on the last fold; None where it cannot be made."""
    attributes = scores.attributes
    subject, fold = attributes["subject"], len(attributes["folds"]) - 1
    group = attributes["variants"][place]["operators"][fold]
    folder = operators_folder(store.path, store.attributes_of(group)["digest"])
    try:
        operators = from_arrays(load_arrays(folder))
        measured = np.concatenate([_one_voxel(study, subject, run, voxel) for run in attributes["runs"]])
    except (StoreError, StudyError, BoldError):
        return None  # operators may be cleaned away, and BOLD may lie elsewhere by now
    onsets = attributes["onsets"]
    predicted, scored = _predict(operators, measured, onsets, scores.alpha[fold, place, voxel])
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
        voxel=voxel,
        place=_place(voxels, voxel),
        time_s=np.arange(len(used)) * attributes["tr_s"],
        measured=courses[0],
        predicted=courses[1],
        r=float(pearson_r(predicted[in_run], scored[in_run])[0]),
        used=used,
    )


def _one_voxel(study: Study, subject: str, run: str, voxel: int) -> NDArray[np.float32]:
    """Time course (n_trs, 1) of a voxel of the study in one run."""
    header = read_header(find_bold(study.bold.path, study.folder, subject, run))
    positions = read_axes(header.path)[0].positions(study.bold.grayordinates)
    return read_block(header, slice(voxel, voxel + 1), positions)


def _predict(
    operators: FoldOperators, measured: NDArray[np.floating[Any]], onsets: Sequence[int], alpha: float
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Prediction and z-scored measurement of the test rows, as the fit made them."""
    train, _ = zscore_runs(
        measured[operators.train_rows], run_lengths(np.asarray(operators.train_rows), onsets)
    )
    test, _ = zscore_runs(measured[operators.test_rows], run_lengths(np.asarray(operators.test_rows), onsets))
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


Section = tuple[str, Sequence[tuple[str, str]]]


def _facts(
    store: Store,
    found: Sequence[Scores],
    run: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    set_aside: Sequence[str],
) -> tuple[Section, ...]:
    return (
        ("Run", [(key, _text(run[key])) for key in ("run_id", "started", "command", "profile", "backend",
                                                    "n_workers", "n_threads") if key in run]),
        ("Time of this run", _timings(events)),
        ("Rows", _rows(store, found)),
        ("Stimuli", _stimuli(store)),
        ("Features", _features(store)),
        ("Fit settings", [(key, _text(value)) for key, value in _fit_settings(run).items()]),
        ("Digests", [(scores.group, scores.attributes["digest"]) for scores in found]),
        ("Versions", [(name, str(version)) for name, version in run.get("versions", {}).items()]),
        ("Set aside", [(str(place), reason) for place, reason in enumerate(set_aside, 1)] or [("", "none")]),
    )  # fmt: skip


def _fit_settings(run: Mapping[str, Any]) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = run.get("study", {}).get("fit", {})
    return settings


def _timings(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Units and worker seconds of every stage, from the events of a run."""
    seconds: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "unit":
            seconds.setdefault(event["stage"], []).append(event["seconds"])
    lines = [
        (stage, f"{len(each)} units, {sum(each):.1f} s of workers, {np.median(each):.2f} s the median unit")
        for stage, each in seconds.items()
    ]
    return lines or [("all stages", "nothing was left to do")]


def _rows(store: Store, found: Sequence[Scores]) -> list[tuple[str, str]]:
    """Rows used and left out on every outer fold, by reason."""
    lines: dict[str, str] = {}
    for scores in found:
        attributes = scores.attributes
        for group in attributes["variants"][0]["operators"]:
            fold = store.attributes_of(group)
            runs = ", ".join(fold["run_names"])
            dropped = ", ".join(f"{count} {reason}" for reason, count in fold["dropped"].items()) or "none"
            text = f"{fold['n_train']} training, {fold['n_test']} test; left out: {dropped}"
            lines.setdefault(f"test run {fold['fold']} (of {runs})", text)
    return list(lines.items())


def _stimuli(store: Store) -> list[tuple[str, str]]:
    """Movies, and how much of each run lies after its movie's end."""
    lines = []
    for metadata in sorted((store.path / "stimulus").glob("*/*/zarr.json")):
        movie = json.loads(metadata.read_bytes())["attributes"]
        lines.append(
            (
                f"{movie['run']} (stimulus {movie['stimulus']})",
                f"{movie['file']}, {movie['n_trs']} rows, {movie['rows_padded']} of them padded; "
                f"sha256 {movie['movie'][:16]}",
            )
        )
    return lines


def _features(store: Store) -> list[tuple[str, str]]:
    """What every feature space was made with."""
    lines: dict[str, str] = {}
    for metadata in sorted((store.path / "features").glob("*/*/*/zarr.json")):
        attributes = json.loads(metadata.read_bytes())["attributes"]
        spec = attributes.get("spec")
        if spec is None:
            lines[attributes["label"]] = "from files on the TR grid"
            continue
        checkpoint = attributes["checkpoint"] or {"weights": "untrained", "seed": spec["seed"]}
        window = "frame at the middle of the TR"
        if spec["model"] != "clip":
            window = f"audio window {spec['window_s']:g} s, {spec['align']}, pooled over the {spec['pool']}"
        lines[attributes["label"]] = f"{_text(checkpoint)}; {spec['n_layers']} layers; {window}"
    return list(lines.items())


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_text(part) for part in value)
    return str(value)

"""The planner: from a study to every task it needs, with digests that say what can be reused.

A plan is made from the study, the chosen feature sets and the facts of the files, on a login node if
need be. Beside each product stands what its digest covers: exactly its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hpcenc.storage.departures import settings_of
from hpcenc.storage.digests import digest
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import (
    AVERAGE,
    fit_group,
    operators_folder,
    operators_group,
    shared_alphas_group,
)
from hpcenc.storage.study import Run, Study
from hpcenc.tasks import fitting, operator_task, shared_alpha
from hpcenc.tasks.block_bold import BlockBold
from hpcenc.tasks.bold_planner import BoldPlanner, Scanned, run_rows
from hpcenc.tasks.ceiling import find_showings
from hpcenc.tasks.extras_planner import ExtrasPlanner
from hpcenc.tasks.facts import StudyFacts
from hpcenc.tasks.feature_planner import FeaturePlanner
from hpcenc.tasks.folds import RowPolicy
from hpcenc.tasks.models import catalogue
from hpcenc.tasks.operator_task import Rows
from hpcenc.tasks.operators import Solver, choose_solver, operator_bytes
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Task, Unit
from hpcenc.tasks.selection import FeatureSet, Variant


def make_plan(study: Study, feature_sets: Sequence[FeatureSet], facts: StudyFacts, backend: str) -> Plan:
    """Plan of a study.

    Parameters
    ----------
    study : Study
    feature_sets : sequence of FeatureSet
    facts : StudyFacts
    backend : str
        The array library that fits run on, resolved.

    Raises
    ------
    ValueError
        If the rows that are left cannot be split into folds.
    """
    return _Planner(study, tuple(feature_sets), facts, backend).plan()


@dataclass(frozen=True)
class _PlannedFit:
    """One feature set in one subject: its group, and what each of its units is made from."""

    spec: GroupSpec
    variants: tuple[fitting.VariantSource, ...]
    weights: fitting.WeightsKind
    weight_folds: tuple[int, ...]
    needs: tuple[Unit, ...]
    scores: tuple[str, ...]


class _Planner:
    def __init__(
        self, study: Study, feature_sets: tuple[FeatureSet, ...], facts: StudyFacts, backend: str
    ) -> None:
        self.study = study
        self.feature_sets = feature_sets
        self.facts = facts
        self.backend = backend
        self.groups: dict[str, GroupSpec] = {}
        self.tasks: dict[str, dict[str, Task]] = {
            stage: {} for stage in ("decode", "average", "extract", "operators", "alphas", "fit")
        }
        # Most subjects have the same runs: what follows from those is made once for all of them.
        self.rows: dict[tuple[int, tuple[str, ...]], Rows] = {}
        self.cannot: dict[tuple[str, ...], dict[str, str]] = {}
        self.variants: dict[
            tuple[Variant, bool, str, Rows], tuple[fitting.VariantSource, tuple[Unit, ...]]
        ] = {}
        self.set_aside = list(facts.set_aside)
        self.voxels_digest = "" if facts.voxels is None else facts.voxels.digest()
        self.features = FeaturePlanner(study, facts, self.groups, self._add)
        self.bold = BoldPlanner(study, facts, self.groups, self._add, self.set_aside)
        self.extras = ExtrasPlanner(study, self.bold, self.features, self.groups, self.voxels_digest)

    def plan(self) -> Plan:
        for scanned in self.bold.subjects():
            self._fit_subject(scanned)
        tasks = {stage: tuple(found.values()) for stage, found in self.tasks.items()}
        stages = [
            Stage("decode", "cpu", tasks["decode"], lasting=False),
            Stage("average", "cpu", tasks["average"], lasting=False),
            Stage("extract", "gpu", tasks["extract"], lasting=True),
            Stage("operators", "cpu", tasks["operators"], lasting=False),
            Stage("alphas", "gpu", tasks["alphas"], lasting=False),
            Stage("fit", "gpu", tasks["fit"], lasting=True, slots=2),
        ]
        wanted = tuple(stage for stage in stages if stage.tasks or stage.name not in ("average", "alphas"))
        return Plan(wanted, tuple(self.groups.values()), tuple(self.set_aside))

    # Operators.

    def _rows(self, runs: Sequence[Run], kind: str = "fits") -> Rows:
        """Rows of these runs; a sweep over delays leaves out what its longest one reaches, for all of
        them."""
        fit, sweeps = self.study.fit, self.study.sweeps
        longest = max(fit.delays)
        if kind == "delays":
            longest = max((longest, *sweeps.delays))
        elif kind == "tags" and sweeps.tags is not None:
            longest = max(longest, sweeps.tags)
        key = longest, tuple(run.name for run in runs)
        if key not in self.rows:
            self.rows[key] = self._make_rows(runs, longest)
        return self.rows[key]

    def _make_rows(self, runs: Sequence[Run], longest_delay: int) -> Rows:
        fit = self.study.fit
        return Rows(
            runs=tuple(run_rows(run, self.study.tr_s) for run in runs),
            longest_delay=longest_delay,
            policy=RowPolicy(fit.rest, fit.repeat_train, fit.repeat_test),
            outer=fit.outer,
            # By name, for a subject who lacks the last run must not be tested on another.
            test_runs=fit.test_runs
            or (() if fit.outer == "rotate" or fit.split_s else (self.study.runs[-1].name,)),
            split_row=None if fit.split_s is None else math.ceil(fit.split_s / self.study.tr_s - 1e-9),
            min_fold_rows=fit.min_fold_trs,
        )

    def _solver(self, rows: Rows, n_columns: int) -> Solver:
        """One solver for all outer folds."""
        fit = self.study.fit
        if fit.solver != "auto":
            return fit.solver
        assert self.facts.voxels is not None
        largest = max(rows.folds(), key=lambda fold: int(fold.train.sum()))
        shared = fit.alpha == "shared"
        return choose_solver(largest, n_columns, self.facts.voxels.n_voxels, self.exponents, shared)

    @property
    def exponents(self) -> tuple[float, ...]:
        """Exponents of the alpha grid; of a given alpha one that means nothing."""
        return self.study.fit.exponents() if self.alpha is None else (0.0,)

    @property
    def alpha(self) -> float | None:
        """The alpha that the study gives, if it does."""
        alpha = self.study.fit.alpha
        return None if isinstance(alpha, str) else alpha

    def _operators(
        self, variant: Variant, nested: bool, version: str, runs: Sequence[Run], rows: Rows
    ) -> list[Unit]:
        """Units of the operators of every outer fold."""
        fit = self.study.fit
        spaces, needs, digests = [], [], []
        for space in variant.spaces:
            source, units, keys = self.features.space(space, version, runs)
            spaces.append(source)
            needs += units
            digests.append([keys, [path.rpartition("/")[2] for path in source.arrays[0]], source.how])
        units = []
        n_features = sum(space.n_features for space in spaces)
        n_columns = n_features * len(variant.delays)
        solver = self._solver(rows, n_columns)
        for fold, outer in enumerate(rows.folds()):
            inputs = {
                "version": operator_task.OPERATORS_VERSION,
                "features": digests,
                # The names of runs matter to nothing but the folds that they name.
                "runs": [[run.n_trs, run.rest, run.repeats] for run in rows.runs],
                "test": [run.name in outer.test_runs for run in rows.runs],
                "split_row": rows.split_row,
                "policy": asdict(rows.policy),
                "longest_delay": rows.longest_delay,
                "delays": variant.delays,
                "scales": variant.scales,
                "alpha_exponents": self.exponents,
                "alpha": self.alpha,
                "zscore": fit.zscore_features,
                "inner": [np.flatnonzero(validation)[[0, -1]].tolist() for validation in outer.inner],
                "solver": solver,
                "basis_tolerance": fit.basis_tolerance if solver == "exact" else None,
                "nested": nested,
            }
            key = digest(inputs)
            group = operators_group(key)
            folder = operators_folder(self.study.store_path, key)
            n_bytes = operator_bytes(
                outer, n_columns, self.exponents, fit.basis_tolerance, solver, nested=nested
            )
            n_bytes += 4 * len(variant.scales) * int(outer.test.sum()) * int(outer.train.sum())
            unit = Unit(group, 0, key, cached=folder, cached_bytes=n_bytes)
            units.append(unit)
            if group not in self.groups:
                arrays = operator_task.operator_arrays(rows.n_trs, len(self.exponents), n_features)
                attributes = {
                    **inputs,
                    "spaces": [space.as_dict() for space in spaces],
                    "fold": outer.name,
                    "run_names": [run.name for run in rows.runs],
                    "dropped": dict(outer.dropped),
                    "n_train": int(outer.train.sum()),
                    "n_test": int(outer.test.sum()),
                }
                self.groups[group] = GroupSpec(group, key, arrays, 1, attributes)
            self._add(
                "operators",
                operator_task.MakeOperators(
                    unit=unit,
                    needs=tuple(needs),
                    rows=rows,
                    fold=fold,
                    spaces=tuple(spaces),
                    delays=variant.delays,
                    alpha_exponents=self.exponents,
                    basis_tolerance=fit.basis_tolerance,
                    solver=solver,
                    nested=nested,
                    folder=folder,
                    scales=variant.scales,
                    alpha=self.alpha,
                    zscore=fit.zscore_features,
                ),
            )
        return units

    # Fits.

    def _fit_subject(self, scanned: Scanned) -> None:
        """Fits of one subject, or of the mean over subjects."""
        subject, runs = scanned.subject, scanned.runs
        rows, cannot = self._rows(runs), self._without_folds(runs)
        if not runs or "fits" in cannot:
            reason = cannot.get("fits", "no run of it is there and whole")
            self.set_aside.append(f"subject {subject}: {reason}")
            return
        if rows.split_row is not None and len(runs) < len(self.study.runs):
            self.set_aside.append(f"subject {subject}: fit.split_s counts all runs, and some are missing")
            return
        names = [fold.name for fold in rows.folds()]
        swept = self.study.sweeps.subjects or (subject,)
        self.set_aside += [
            f"subject {subject}, sweep over {kind}: {reason}"
            for kind, reason in cannot.items()
            if subject in swept
        ]
        fits = [
            self._fit(scanned, feature_set, names)
            for feature_set in self.feature_sets
            if feature_set.kind == "fits" or (subject in swept and feature_set.kind not in cannot)
        ]
        bold = BlockBold(scanned.bold, rows.onsets, self.study.bold.grayordinates)
        tag_rows = None if "tags" in cannot else self._rows(runs, "tags")
        extras = self.extras.units(scanned, rows, tag_rows, self.feature_sets)
        alphas = self._share_alphas(scanned, bold, fits)
        for index, voxels in enumerate(self.bold.blocks):
            self._add(
                "fit",
                fitting.FitBlock(
                    subject=subject,
                    block=index,
                    voxels=voxels,
                    bold=bold,
                    zscore=self.study.fit.zscore_bold,
                    repeat_rows=repeat_rows(rows),
                    backend=self.backend,
                    tf32=self.study.fit.tf32,
                    fits=tuple(
                        fitting.FitUnit(
                            unit=Unit(fit.spec.group, index, fit.spec.digest),
                            variants=fit.variants,
                            weights=fit.weights,
                            weight_folds=fit.weight_folds,
                            needs=(*fit.needs, *scanned.needs(index), *([shared] if shared else [])),
                            scores=fit.scores,
                            alphas=shared.group if shared else "",
                        )
                        for fit, shared in zip(fits, alphas, strict=True)
                    ),
                    extras=tuple(
                        replace(
                            extra,
                            unit=replace(extra.unit, index=index),
                            needs=(*extra.needs, *scanned.needs(index)),
                        )
                        for extra in extras
                    ),
                ),
            )

    def _without_folds(self, runs: Sequence[Run]) -> dict[str, str]:
        """For fits and the sweeps that leave out more rows, why these runs cannot be split for them.

        Raises
        ------
        ValueError
            If the study itself cannot be split, whoever was scanned.
        """
        key = tuple(run.name for run in runs)
        if key not in self.cannot:
            self.cannot[key] = found = {}
            kinds = ["fits", *(["delays"] if self.study.sweeps.delays else [])]
            kinds += ["tags"] if self.study.sweeps.tags is not None else []
            for kind in kinds if runs else ():
                try:
                    self._rows(runs, kind).folds()
                except ValueError as error:
                    if len(runs) == len(self.study.runs):
                        raise
                    found[kind] = str(error)
        return self.cannot[key]

    def _share_alphas(
        self,
        scanned: Scanned,
        bold: BlockBold,
        fits: Sequence[_PlannedFit],
    ) -> list[Unit | None]:
        """For each fit what chooses the alpha that all voxels share; None where each has its own."""
        fit = self.study.fit
        if fit.alpha != "shared":
            return [None] * len(fits)
        units = []
        for planned in fits:
            inputs = {
                "version": shared_alpha.SHARED_ALPHA_VERSION,
                "operators": [unit.digest for unit in planned.needs],
                "bold": scanned.identity,
                "voxels": self.voxels_digest,
                "zscore": fit.zscore_bold,
                "backend": self.backend,
            }
            key = digest(inputs)
            group = shared_alphas_group(planned.spec.group)
            n_folds = len(planned.spec.attributes["folds"])
            arrays = shared_alpha.alpha_arrays(n_folds, len(planned.variants), len(self.exponents))
            self.groups[group] = GroupSpec(group, key, arrays, 1, inputs)
            units.append(Unit(group, 0, key))
        self._add(
            "alphas",
            shared_alpha.ShareAlphas(
                subject=scanned.subject,
                blocks=tuple(self.bold.blocks),
                bold=bold,
                zscore=fit.zscore_bold,
                backend=self.backend,
                sets=tuple(
                    shared_alpha.SharedUnit(unit, planned.variants, (*planned.needs, *scanned.made))
                    for unit, planned in zip(units, fits, strict=True)
                ),
            ),
        )
        return list(units)

    def _fit(self, scanned: Scanned, feature_set: FeatureSet, folds: list[str]) -> _PlannedFit:
        """One feature set in one subject."""
        study, fit, kind = self.study, self.study.fit, feature_set.kind
        subject, version, runs = scanned.subject, scanned.version, scanned.runs
        rows, nested = self._rows(runs, kind), kind != "fits"
        weights: fitting.WeightsKind = "none"
        if kind == "fits":
            weights = fit.weights_of((feature_set.name, feature_set.label), subject)
        weight_folds = list(range(len(folds))) if fit.weights_folds == "all" else [len(folds) - 1]
        made = [self._variant(variant, nested, version, runs, rows) for variant in feature_set.variants]
        variants = tuple(source for source, _ in made)
        units = tuple(unit for _, operators in made for unit in operators)
        bands = _band_names(feature_set) if kind == "bands" else ()
        scores = fitting.score_names(
            kind,
            repeats=bool(repeat_rows(rows)),
            norm_delays=fit.delays if weights == "primal" and len(fit.delays) > 1 else (),
            bands=bands,
        )
        inputs = {
            "version": fitting.FIT_VERSION,
            "operators": [unit.digest for unit in units],
            "bold": scanned.identity,
            "voxels": self.voxels_digest,
            "tr_s": study.tr_s,
            "block": fit.block,
            "weights": weights,
            "weight_folds": weight_folds if weights != "none" else [],
            "scores": scores,
            "backend": self.backend,
            "dtype": "float32",
            "zscore": fit.zscore_bold,
            "alpha": f"shared, {shared_alpha.SHARED_ALPHA_VERSION}" if fit.alpha == "shared" else None,
            "repeat_rows": repeat_rows(rows),
            **({"tf32": True} if fit.tf32 else {}),
        }
        arrays = fitting.fit_arrays(
            n_folds=len(folds),
            n_variants=len(variants),
            n_voxels=self.bold.n_voxels,
            block=fit.block,
            weights=weights,
            n_weight_folds=len(weight_folds),
            n_weight_rows=max(variant.n_columns for variant in variants)
            if weights == "primal"
            else rows.n_trs,
            scores=scores,
        )
        attributes: dict[str, Any] = {
            "feature_set": feature_set.label,
            "kind": kind,
            "modality": feature_set.modality,
            "subject": subject,
            "stimulus": version,
            "folds": folds,
            "runs": [run.name for run in runs],
            "onsets": list(rows.onsets),
            "n_trs": rows.n_trs,
            "tr_s": study.tr_s,
            "zscore": fit.zscore_bold,
            "weights": weights,
            "weight_folds": weight_folds,
            "block": fit.block,
            "backend": self.backend,
            "tf32": fit.tf32,
            "bold": scanned.identity,
            "settings": settings_of(
                study,
                models=[source for source in feature_set.sources if source in catalogue.MODELS],
                audio=any("audio" in space.modality for space in feature_set.spaces),
                average=subject == AVERAGE,
            ),
            "variants": [
                {
                    "label": label.label(kind),
                    "delays": list(variant.delays),
                    "scales": list(label.scales),
                    "spaces": [space.as_dict() for space in variant.spaces],
                    "operators": [group for group, _ in variant.operators],
                }
                for label, variant in zip(feature_set.variants, variants, strict=True)
            ],
        }
        group = fit_group(feature_set.label, subject, kind)
        spec = GroupSpec(group, digest(inputs), arrays, len(self.bold.blocks), attributes)
        self.groups[group] = spec
        return _PlannedFit(spec, variants, weights, tuple(weight_folds), units, scores)

    def _variant(
        self, variant: Variant, nested: bool, version: str, runs: Sequence[Run], rows: Rows
    ) -> tuple[fitting.VariantSource, tuple[Unit, ...]]:
        """What a variant is fitted from, and the operators it needs."""
        key = (variant, nested, version, rows)
        if key not in self.variants:
            units = self._operators(variant, nested, version, runs, rows)
            spaces = tuple(self.features.space(space, version, runs)[0] for space in variant.spaces)
            places = tuple(
                (unit.group, operators_folder(self.study.store_path, unit.digest)) for unit in units
            )
            self.variants[key] = fitting.VariantSource(spaces, places, variant.delays), tuple(units)
        return self.variants[key]

    def _add(self, stage: str, task: Task) -> None:
        self.tasks[stage].setdefault(task.key, task)


def _band_names(feature_set: FeatureSet) -> tuple[str, ...]:
    """Of a fit in bands: its feature spaces, or in several layers, which have the same scores, its parts."""
    if len(feature_set.spaces) == 2:
        return tuple(f"{space.source}/{space.layer}" for space in feature_set.spaces)
    return tuple(feature_set.name.split("+"))


def repeat_rows(rows: Rows) -> tuple[int, ...]:
    """Rows of repeated clips that have a noise ceiling."""
    rest_tail = rows.longest_delay if rows.policy.rest == "drop" else -1
    showings, _ = find_showings(rows.runs, rows.longest_delay, rest_tail)
    return tuple(row for each in showings for rows_of in each.rows for row in rows_of)

"""The planner: from a study to every task it needs, with digests that say what can be reused.

A plan is made from the study, the chosen feature sets and the facts of the files, on a login node if
need be. Beside each product stands what its digest covers: exactly its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpcenc.storage.digests import digest
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import (
    features_group,
    fit_group,
    operators_folder,
    operators_group,
    stimulus_group,
)
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.study import Run, Study
from hpcenc.tasks import decoding, extraction, fitting, operator_task
from hpcenc.tasks.facts import StudyFacts
from hpcenc.tasks.folds import RowPolicy, RunRows
from hpcenc.tasks.models import catalogue
from hpcenc.tasks.operator_task import Rows
from hpcenc.tasks.operators import Solver, choose_solver, operator_bytes
from hpcenc.tasks.plan import Plan, Stage
from hpcenc.tasks.records import Task, Unit
from hpcenc.tasks.selection import FILE_LAYER, FeatureSet, FeatureSpace, Variant


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
            stage: {} for stage in ("decode", "extract", "operators", "fit")
        }
        # Most subjects have the same runs: what follows from those is made once for all of them.
        self.rows: dict[tuple[str, ...], Rows] = {}
        self.variants: dict[tuple[Variant, str, Rows], tuple[fitting.VariantSource, tuple[Unit, ...]]] = {}
        self.set_aside = list(facts.set_aside)
        self.voxels_digest = "" if facts.voxels is None else facts.voxels.digest()

    def plan(self) -> Plan:
        for subject in self.study.subjects.ids:
            self._fit_subject(subject)
        stages = (
            Stage("decode", "cpu", tuple(self.tasks["decode"].values()), lasting=False),
            Stage("extract", "gpu", tuple(self.tasks["extract"].values()), lasting=True),
            Stage("operators", "cpu", tuple(self.tasks["operators"].values()), lasting=False),
            Stage("fit", "gpu", tuple(self.tasks["fit"].values()), lasting=True, slots=2),
        )
        return Plan(stages, tuple(self.groups.values()), tuple(self.set_aside))

    # Stimuli and features: what a digest covers is written beside what is made.

    def _decode(self, version: str, run: Run) -> tuple[str, list[Unit], Unit]:
        """Group of a decoded movie, units of its frames by chunk, unit of its audio."""
        movie = self.facts.movies[version, run.name]
        group = stimulus_group(version, run.name)
        inputs = {
            "version": decoding.STIMULUS_VERSION,
            "movie": movie.digest,
            "n_trs": run.n_trs,
            "tr_s": self.study.tr_s,
            "short_side": catalogue.SHORT_SIDE,
            "sample_rate": catalogue.SAMPLE_RATE,
            "chunk": decoding.CHUNK_TRS,
        }
        key = digest(inputs)
        chunks = decoding.n_chunks(run.n_trs)
        if group not in self.groups:
            arrays = decoding.stimulus_arrays(run.n_trs, self.study.tr_s, movie.height, movie.width)
            attributes = {
                **inputs,
                "stimulus": version,
                "run": run.name,
                "file": movie.path.name,
                "rows_padded": movie.rows_padded,
            }
            self.groups[group] = GroupSpec(group, key, arrays, chunks + 1, attributes)
        frames = [Unit(group, chunk, key) for chunk in range(chunks)]
        return group, frames, decoding.audio_unit(group, run.n_trs, key)

    def _extract(self, model: str, version: str, run: Run) -> tuple[str, list[Unit]]:
        """Group of a model's features of one run, and the units that fill it."""
        found = self.facts.models[model]
        group = features_group(found.label, version, run.name)
        stimulus, frames, audio = self._decode(version, run)
        movie = self.facts.movies[version, run.name]
        inputs = {
            "version": catalogue.EXTRACTOR_VERSIONS[model],
            "stimulus": self.groups[stimulus].digest,
            "weights": found.weights,
            "spec": extraction.deciding_values(found.spec),
        }
        key = digest(inputs)
        units = [Unit(group, chunk, key) for chunk in range(len(frames))]
        if group in self.groups:
            return group, units
        arrays = extraction.feature_arrays(found.spec, run.n_trs, found.tag_labels)
        attributes = {
            **inputs,
            "label": found.label,
            "run": run.name,
            "stimulus_version": version,
            "checkpoint": dict(found.checkpoint),
            "preprocessing": catalogue.preprocessing(found.spec),
        }
        self.groups[group] = GroupSpec(group, key, arrays, len(units), attributes)
        for unit, frame in zip(units, frames, strict=True):
            needs = [frame] if extraction.needs_frames(found.spec) else []
            needs += [audio] if extraction.needs_audio(found.spec) else []
            self._add(
                "extract",
                extraction.ExtractChunk(
                    unit=unit, needs=tuple(needs), spec=found.spec, n_trs=run.n_trs, stimulus=stimulus
                ),
            )
            for need in needs:
                kind = decoding.DecodeAudio if need == audio else decoding.DecodeFrames
                self._add("decode", kind(unit=need, movie=movie.path, n_trs=run.n_trs, tr_s=self.study.tr_s))
        return group, units

    def _import(self, name: str, run: Run) -> tuple[str, list[Unit]]:
        """Group of a user's features of one run, and the unit that fills it."""
        found = self.facts.feature_files[name, run.name]
        group = features_group(name, "files", run.name)
        inputs = {
            "version": extraction.IMPORT_VERSION,
            "file": found.digest,
            "key": self.study.feature_files[name].key,
            "n_trs": run.n_trs,
        }
        key = digest(inputs)
        unit = Unit(group, 0, key)
        if group not in self.groups:
            arrays = extraction.file_arrays(run.n_trs, found.n_features)
            self.groups[group] = GroupSpec(group, key, arrays, 1, {**inputs, "label": name, "run": run.name})
            self._add(
                "extract",
                extraction.ImportFeatures(
                    unit=unit, path=found.path, array=self.study.feature_files[name].key, n_trs=run.n_trs
                ),
            )
        return group, [unit]

    def _space(
        self, space: FeatureSpace, version: str, runs: Sequence[Run]
    ) -> tuple[SpaceSource, list[Unit], list[str]]:
        """Where a feature space lies, the units that fill it, and the digests of its groups."""
        if space.source in catalogue.MODELS:
            source = catalogue.compose(space.source, space.layer)
            filled = [self._extract(space.source, version, run) for run in runs]
            widths = {
                layer.name: layer.n_features
                for layer in catalogue.stored_layers(self.facts.models[space.source].spec)
            }
            each = [widths[name] for name in source.arrays]
            names, how, n_features = (
                source.arrays,
                source.how,
                sum(each) if source.how == "concat" else each[0],
            )
        else:
            filled = [self._import(space.source, run) for run in runs]
            names, how = (FILE_LAYER,), "single"
            n_features = self.facts.feature_files[space.source, runs[0].name].n_features
        arrays = tuple(tuple(f"{group}/{name}" for name in names) for group, _ in filled)
        units = [unit for _, units in filled for unit in units]
        digests = [self.groups[group].digest for group, _ in filled]
        return SpaceSource(str(space), arrays, how, n_features), units, digests

    # Operators.

    def _rows(self, runs: Sequence[Run]) -> Rows:
        names = tuple(run.name for run in runs)
        if names not in self.rows:
            self.rows[names] = self._make_rows(runs)
        return self.rows[names]

    def _make_rows(self, runs: Sequence[Run]) -> Rows:
        fit, tr_s = self.study.fit, self.study.tr_s
        return Rows(
            runs=tuple(
                RunRows(
                    run.name,
                    run.n_trs,
                    tuple((start, stop) for _, start, stop in run.rows("rest", tr_s)),
                    run.rows("repeat", tr_s),
                )
                for run in runs
            ),
            delays=fit.delays,
            policy=RowPolicy(fit.rest, fit.repeat_train, fit.repeat_test),
            outer=fit.outer,
            # By name, for a subject who lacks the last run must not be tested on another.
            test_runs=fit.test_runs or (() if fit.outer == "rotate" else (self.study.runs[-1].name,)),
        )

    def _solver(self, rows: Rows, n_columns: int) -> Solver:
        """One solver for all outer folds."""
        fit = self.study.fit
        if fit.solver != "auto":
            return fit.solver
        assert self.facts.voxels is not None
        largest = max(rows.folds(), key=lambda fold: int(fold.train.sum()))
        return choose_solver(largest, n_columns, self.facts.voxels.n_voxels, fit.exponents())

    def _operators(self, variant: Variant, version: str, runs: Sequence[Run], rows: Rows) -> list[Unit]:
        """Units of the operators of every outer fold."""
        fit = self.study.fit
        spaces, needs, digests = [], [], []
        for space in variant.spaces:
            source, units, keys = self._space(space, version, runs)
            spaces.append(source)
            needs += units
            digests.append([keys, [path.rpartition("/")[2] for path in source.arrays[0]], source.how])
        units = []
        n_features = sum(space.n_features for space in spaces)
        n_columns = n_features * len(rows.delays)
        solver = self._solver(rows, n_columns)
        for fold, outer in enumerate(rows.folds()):
            inputs = {
                "version": operator_task.OPERATORS_VERSION,
                "features": digests,
                # The names of runs matter to nothing but the folds that they name.
                "runs": [[run.n_trs, run.rest, run.repeats] for run in rows.runs],
                "test": [run.name in outer.test_runs for run in rows.runs],
                "policy": asdict(rows.policy),
                "delays": rows.delays,
                "alpha_exponents": fit.exponents(),
                "solver": solver,
                "basis_tolerance": fit.basis_tolerance if solver == "exact" else None,
            }
            key = digest(inputs)
            group = operators_group(key)
            folder = operators_folder(self.study.store_path, key)
            n_bytes = operator_bytes(outer, n_columns, fit.exponents(), fit.basis_tolerance, solver)
            unit = Unit(group, 0, key, cached=folder, cached_bytes=n_bytes)
            units.append(unit)
            if group not in self.groups:
                arrays = operator_task.operator_arrays(rows.n_trs, fit.n_alphas, n_features)
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
                    alpha_exponents=fit.exponents(),
                    basis_tolerance=fit.basis_tolerance,
                    solver=solver,
                    folder=folder,
                ),
            )
        return units

    # Fits.

    def _fit_subject(self, subject: str) -> None:
        runs = [run for run in self.study.runs_of(subject) if (subject, run.name) in self.facts.bold]
        rows = self._rows(runs)
        try:
            folds = rows.folds()
        except ValueError as error:
            if len(runs) == len(self.study.runs):
                raise  # the study itself cannot be split, whoever was scanned
            self.set_aside.append(f"subject {subject}: {error}")
            return
        assert self.facts.voxels is not None
        n_voxels, block = self.facts.voxels.n_voxels, self.study.fit.block
        n_blocks = -(-n_voxels // block)
        names = [fold.name for fold in folds]
        fits = [self._fit(subject, feature_set, runs, rows, names) for feature_set in self.feature_sets]
        bold, onsets = tuple(self.facts.bold[subject, run.name] for run in runs), rows.onsets
        for index in range(n_blocks):
            self._add(
                "fit",
                fitting.FitBlock(
                    subject=subject,
                    block=index,
                    voxels=(index * block, min((index + 1) * block, n_voxels)),
                    bold=bold,
                    grayordinates=self.study.bold.grayordinates,
                    onsets=onsets,
                    n_trs=rows.n_trs,
                    delays=rows.delays,
                    backend=self.backend,
                    tf32=self.study.fit.tf32,
                    fits=tuple(
                        fitting.FitUnit(
                            Unit(spec.group, index, spec.digest), variants, weights, weight_folds, operators
                        )
                        for spec, variants, weights, weight_folds, operators in fits
                    ),
                ),
            )

    def _fit(
        self, subject: str, feature_set: FeatureSet, runs: Sequence[Run], rows: Rows, folds: list[str]
    ) -> tuple[
        GroupSpec, tuple[fitting.VariantSource, ...], fitting.WeightsKind, tuple[int, ...], tuple[Unit, ...]
    ]:
        """One feature set in one subject: its group, sources, weights and their folds, and the operators."""
        study, fit = self.study, self.study.fit
        version = study.stimulus_of(subject)
        weights = fit.weights_of((feature_set.name, feature_set.label), subject)
        weight_folds = list(range(len(folds))) if fit.weights_folds == "all" else [len(folds) - 1]
        made = [self._variant(variant, version, runs, rows) for variant in feature_set.variants]
        variants = tuple(source for source, _ in made)
        units = tuple(unit for _, operators in made for unit in operators)
        assert self.facts.voxels is not None
        inputs = {
            "version": fitting.FIT_VERSION,
            "operators": [unit.digest for unit in units],
            "bold": [self.facts.bold[subject, run.name].identity for run in runs],
            "voxels": self.voxels_digest,
            "block": fit.block,
            "weights": weights,
            "weight_folds": weight_folds if weights != "none" else [],
            "backend": self.backend,
            "dtype": "float32",
            **({"tf32": True} if fit.tf32 else {}),
        }
        n_columns = max(variant.n_features for variant in variants) * len(rows.delays)
        n_voxels = self.facts.voxels.n_voxels
        arrays = fitting.fit_arrays(
            n_folds=len(folds),
            n_variants=len(variants),
            n_voxels=n_voxels,
            block=fit.block,
            weights=weights,
            n_weight_folds=len(weight_folds),
            n_weight_rows=n_columns if weights == "primal" else rows.n_trs,
        )
        attributes: dict[str, Any] = {
            "feature_set": feature_set.label,
            "modality": feature_set.modality,
            "subject": subject,
            "stimulus": version,
            "folds": folds,
            "runs": [run.name for run in runs],
            "onsets": list(rows.onsets),
            "n_trs": rows.n_trs,
            "tr_s": study.tr_s,
            "delays": list(rows.delays),
            "weights": weights,
            "weight_folds": weight_folds,
            "block": fit.block,
            "backend": self.backend,
            "tf32": fit.tf32,
            "bold": inputs["bold"],
            "variants": [
                {
                    "label": str(label),
                    "spaces": [space.as_dict() for space in variant.spaces],
                    "operators": [group for group, _ in variant.operators],
                }
                for label, variant in zip(feature_set.variants, variants, strict=True)
            ],
        }
        group = fit_group(feature_set.label, subject)
        spec = GroupSpec(group, digest(inputs), arrays, -(-n_voxels // fit.block), attributes)
        self.groups[group] = spec
        return spec, variants, weights, tuple(weight_folds), units

    def _variant(
        self, variant: Variant, version: str, runs: Sequence[Run], rows: Rows
    ) -> tuple[fitting.VariantSource, tuple[Unit, ...]]:
        """What a variant is fitted from, and the operators it needs."""
        key = (variant, version, rows)
        if key not in self.variants:
            units = self._operators(variant, version, runs, rows)
            spaces = tuple(self._space(space, version, runs)[0] for space in variant.spaces)
            places = tuple(
                (unit.group, operators_folder(self.study.store_path, unit.digest)) for unit in units
            )
            self.variants[key] = fitting.VariantSource(spaces, places), tuple(units)
        return self.variants[key]

    def _add(self, stage: str, task: Task) -> None:
        self.tasks[stage].setdefault(task.key, task)

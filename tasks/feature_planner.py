"""The part of a plan that makes features: movies decoded, models run over them, the user's files read.

What a digest covers is written beside what is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpcenc.storage.digests import digest
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import features_group, stimulus_group
from hpcenc.storage.spaces import SpaceSource
from hpcenc.storage.study import Run, Study
from hpcenc.tasks import decoding, extraction
from hpcenc.tasks.facts import StudyFacts
from hpcenc.tasks.models import catalogue
from hpcenc.tasks.records import Task, Unit
from hpcenc.tasks.selection import FILE_LAYER, FeatureSpace


class FeaturePlanner:
    """Plans what feature spaces are made from, each thing once.

    Parameters
    ----------
    groups : dict of str to GroupSpec
        Is filled with the groups of stimuli and features.
    add : callable
        Is given each task and the name of its stage.
    """

    def __init__(
        self,
        study: Study,
        facts: StudyFacts,
        groups: dict[str, GroupSpec],
        add: Callable[[str, Task], None],
    ) -> None:
        self.study, self.facts, self.groups, self._add = study, facts, groups, add

    def space(
        self, space: FeatureSpace, version: str, runs: Sequence[Run]
    ) -> tuple[SpaceSource, list[Unit], list[str]]:
        """Plan a feature space on some runs.

        Returns
        -------
        source : SpaceSource
            Where it lies.
        units : list of Unit
            That fill it.
        digests : list of str
            Of its groups, run by run.
        """
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

"""Gates for bad input: everything a study names is looked at before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hpcenc.storage.bold import BoldHeader, find_bold, name_axes, read_axes, read_header
from hpcenc.storage.digests import FileDigests
from hpcenc.storage.errors import BoldError, StudyError
from hpcenc.storage.feature_files import read_feature_file
from hpcenc.storage.groups import group_attributes
from hpcenc.storage.layout import AVERAGE, LAYOUT_VERSION, cache_folder
from hpcenc.storage.space import space_left
from hpcenc.storage.study import Run, Study
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.extraction import needs_audio
from hpcenc.tasks.facts import FeatureFileFacts, ModelFacts, MovieFacts, StudyFacts
from hpcenc.tasks.models import catalogue
from hpcenc.tasks.models.catalogue import ModelSpec
from hpcenc.tasks.plan import Plan, planned_files
from hpcenc.tasks.selection import FeatureSet

TR_TOLERANCE_S = 1e-3
"""Difference of TRs that counts as rounding in a header."""

T = TypeVar("T")


def inspect(
    study: Study,
    feature_sets: Sequence[FeatureSet],
    subjects: Sequence[str],
    digests: FileDigests,
    deep: bool = True,
) -> StudyFacts:
    """Facts of everything the chosen feature sets and subjects need.

    Parameters
    ----------
    study : Study
    feature_sets : sequence of FeatureSet
    subjects : sequence of str
    digests : FileDigests
        Remembers the hashes of movies and checkpoints from run to run; the caller saves it.
    deep : bool
        Look at every name and shape in checkpoints, for which PyTorch is imported; else only at their form.

    Returns
    -------
    StudyFacts
        Subjects and runs whose BOLD is damaged are named in ``set_aside`` and left out.

    Raises
    ------
    StudyError
        Every fatal problem at once: what is missing, of another kind, or of another length.
    """
    gate = _Gate(study, digests, deep)
    sources = list(dict.fromkeys(source for chosen in feature_sets for source in chosen.sources))
    tagged = {
        space.source for chosen in feature_sets for space in chosen.spaces if space.layer == catalogue.TAGS
    }
    models = {
        source: gate.model(source, source in tagged) for source in sources if source in catalogue.MODELS
    }
    versions = _versions(study, subjects)
    movies, files = {}, {}
    found_models = {name: found for name, found in models.items() if found is not None}
    for chosen in feature_sets:
        gate.has_tags(chosen, found_models)
    hearing = [found.spec for found in found_models.values() if needs_audio(found.spec)]
    for run in study.runs:
        if models:
            for version in versions:
                movie = gate.movie(run, version, bool(hearing))
                if movie is not None:
                    movies[version, run.name] = movie
        for name in sources:
            if name not in catalogue.MODELS:
                file = gate.feature_file(name, run)
                if file is not None:
                    files[name, run.name] = file
    gate.same_widths(files)
    bold, voxels, set_aside = gate.bold(subjects)
    if gate.problems:
        raise StudyError(list(dict.fromkeys(gate.problems)))
    return StudyFacts(movies, found_models, files, bold, voxels, tuple(set_aside))


def _versions(study: Study, subjects: Sequence[str]) -> list[str]:
    """Stimulus versions whose features are fitted: those that subjects saw, and the average's."""
    versions = [study.stimulus_of(subject) for subject in subjects]
    average = study.average
    # An average of those alone who saw its version is not fitted where nobody did.
    if average is not None and average.mixed_versions and AVERAGE in study.fitted:
        versions.append(average.stimulus or study.subjects.stimulus)
    return list(dict.fromkeys(versions))


class _Gate:
    """Looks at one thing after the other and gathers what is wrong."""

    def __init__(self, study: Study, digests: FileDigests, deep: bool) -> None:
        self.study = study
        self.digests = digests
        self.deep = deep
        self.problems: list[str] = []

    def _try(self, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except StudyError as error:
            self.problems += error.problems
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
        return None

    def movie(self, run: Run, version: str, with_audio: bool) -> MovieFacts | None:
        """Facts of a run's movie in one stimulus version."""
        movies = run.movies()
        if version not in movies:
            known = ", ".join(movies) or "none"
            self.problems.append(
                f"runs.{run.name}: no movie of stimulus version {version!r}; it has {known}. "
                "Name it under `movie`, or correct subjects.stimulus (or average.stimulus)."
            )
            return None
        path = self.study.resolve(movies[version])
        return self._try(lambda: self._movie(run, path, with_audio))

    def _movie(self, run: Run, path: Path, with_audio: bool) -> MovieFacts:
        from hpcenc.tasks.movies import check_duration, frame_size, probe_movie, row_times

        if not path.is_file():
            raise StudyError(f"runs.{run.name}: no movie at {path}. Correct `movie` in the study file.")
        info = probe_movie(path)
        check_duration(info, run.n_trs, self.study.tr_s, run.name, with_audio=with_audio)
        if with_audio and not info.has_audio:
            raise StudyError(
                f"runs.{run.name}: {path} has no sound, which BEATs and CAV-MAE need. "
                "Give a movie with sound, or choose --models clip."
            )
        height, width = frame_size(info.height, info.width, catalogue.SHORT_SIDE)
        padded = int((row_times(run.n_trs, self.study.tr_s) >= info.duration_s).sum())
        return MovieFacts(path, self.digests(path), height, width, padded)

    def model(self, name: str, with_tags: bool) -> ModelFacts | None:
        """Facts of a model and its checkpoint."""
        return self._try(lambda: self._model(name, with_tags))

    def _model(self, name: str, with_tags: bool) -> ModelFacts:
        settings = self.study.models
        label = catalogue.label(name, settings.weights, settings.seed)
        spec = ModelSpec(
            model=name,
            weights=settings.weights,
            seed=settings.seed,
            n_layers=settings.n_layers,
            tr_s=self.study.tr_s,
            window_s=settings.audio_window_s,
            align=settings.audio_align,
            pool=settings.audio_pool,
        )
        if settings.weights == "untrained":
            spec = replace(spec, n_tags=catalogue.UNTRAINED_N_TAGS.get(name))
            return ModelFacts(spec, label, "untrained")
        from hpcenc.tasks.models.checkpoints import check_file, find_checkpoint, inspect_checkpoint
        from hpcenc.tasks.models.tag_heads import find_tag_head, name_tags

        folder = self.study.resolve(settings.weights_dir)
        named = getattr(settings, name).checkpoint
        path = find_checkpoint(name, folder, named, with_tags=with_tags)
        checkpoint: dict[str, Any] = {"file": path.name}
        if self.deep:
            checkpoint |= inspect_checkpoint(name, path, is_named=named is not None).facts
        else:
            check_file(name, path)
        head = find_tag_head(name, path)
        spec = replace(spec, checkpoint=str(path), n_tags=head.n_tags if head else None)
        labels = name_tags(name, head, folder).labels if head else {}
        return ModelFacts(spec, label, self.digests(path), checkpoint, labels)

    def has_tags(self, chosen: FeatureSet, models: Mapping[str, ModelFacts]) -> None:
        """The checkpoints of a feature set have the tag heads that it needs."""
        for space in chosen.spaces:
            found = models.get(space.source)
            if found is not None and space.layer == catalogue.TAGS and found.spec.n_tags is None:
                from hpcenc.tasks.models.tag_heads import missing_tags

                self.problems.append(missing_tags(space.source, chosen.name, found.checkpoint["file"]))

    def feature_file(self, name: str, run: Run) -> FeatureFileFacts | None:
        """Facts of a user's feature file of one run."""
        settings = self.study.feature_files[name]
        path = self.study.resolve(settings.path.replace("{run}", run.name))
        where = f"feature_files.{name}"
        if not path.is_file():
            self.problems.append(f"{where}: no file at {path} for run {run.name!r}. Correct its path.")
            return None

        def look() -> FeatureFileFacts:
            values = read_feature_file(path, settings.key, run.n_trs)
            return FeatureFileFacts(path, self.digests(path), values.shape[1])

        return self._try(look)

    def same_widths(self, files: dict[tuple[str, str], FeatureFileFacts]) -> None:
        """The runs of a feature space have the same features."""
        for name in {name for name, _ in files}:
            widths = {run: found.n_features for (other, run), found in files.items() if other == name}
            if len(set(widths.values())) > 1:
                each = ", ".join(f"{run}: {width}" for run, width in widths.items())
                self.problems.append(
                    f"feature_files.{name}: runs differ in their number of features ({each})"
                )

    def bold(
        self, subjects: Sequence[str]
    ) -> tuple[dict[tuple[str, str], BoldHeader], VoxelAxis | None, list[str]]:
        """Headers of whole BOLD files, the study's voxel axis, and what is set aside."""
        headers: dict[tuple[str, str], BoldHeader] = {}
        set_aside: list[str] = []
        whose: dict[Path, str] = {}
        for subject in subjects:
            for run in self.study.runs_of(subject):
                try:
                    path = find_bold(self.study.bold.path, self.study.folder, subject, run.name)
                    header = read_header(path)
                except StudyError as error:
                    self.problems += error.problems
                    continue
                except BoldError as error:
                    set_aside.append(f"subject {subject}, run {run.name}: {error}")
                    continue
                owner = whose.setdefault(path.resolve(), f"subject {subject}, run {run.name}")
                if owner != f"subject {subject}, run {run.name}":
                    self.problems.append(
                        f"bold.path: {path} is the file of {owner} and of subject {subject}, run {run.name}. "
                        "Narrow the template down."
                    )
                if header.n_trs != run.n_trs:
                    self.problems.append(
                        f"subject {subject}, run {run.name}: {header.path} has {header.n_trs} TRs, "
                        f"the study says {run.n_trs}. Correct runs.n_trs, or the file."
                    )
                headers[subject, run.name] = header
        voxels = self._axis(headers, set_aside)
        return headers, voxels, set_aside

    def _axis(self, headers: dict[tuple[str, str], BoldHeader], set_aside: list[str]) -> VoxelAxis | None:
        """The study's voxel axis, which every file must have; checks the files' TR on the way."""
        study = self.study
        chosen: VoxelAxis | None = None
        first: Path | None = None
        known: dict[str, tuple[VoxelAxis, float | None]] = {}
        same: dict[str, VoxelAxis] = {}
        for (subject, run), header in list(headers.items()):
            try:
                named = name_axes(header)
                if named.axes not in known:
                    whole, says_tr_s = read_axes(header.path)
                    selected = whole.take(whole.positions(study.bold.grayordinates))
                    # Runs of other lengths have other headers, and mostly the same axis.
                    known[named.axes] = same.setdefault(selected.digest(), selected), says_tr_s
                axis, tr_s = known[named.axes]
            except BoldError as error:
                set_aside.append(f"subject {subject}, run {run}: {error}")
                del headers[subject, run]
                continue
            except ValueError as error:  # of the structures that are asked for it has none
                self.problems.append(f"subject {subject}, run {run}: {header.path}: {error}")
                continue
            headers[subject, run] = named
            if tr_s is not None and abs(tr_s - study.tr_s) > TR_TOLERANCE_S:
                self.problems.append(
                    f"subject {subject}, run {run}: {header.path} says a TR of {tr_s:g} s, "
                    f"the study {study.tr_s:g} s. Correct tr_s, or the file."
                )
            if chosen is None:
                chosen, first = axis, header.path
            elif axis is not chosen:
                self.problems.append(
                    f"subject {subject}, run {run}: {header.path} has another voxel axis ({axis.n_voxels} "
                    f"voxels) than {first} ({chosen.n_voxels}). All subjects of a study must share one."
                )
        if chosen is None and not self.problems:
            self.problems.append("no subject has a BOLD file that can be read:\n" + "\n".join(set_aside))
        return chosen


def check_store(study: Study, voxels: VoxelAxis, plan: Plan) -> None:
    """Whether the store can take what the plan will write.

    Raises
    ------
    StudyError
        If its place cannot be written, it belongs to another voxel axis or layout, or the disk is
        too small.
    """
    path = study.store_path
    problems = []
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        state = "cannot be written" if parent.is_dir() else "is a file"
        problems.append(f"store: {path} cannot be made, for {parent} {state}. Choose another place.")
    attributes = group_attributes(path, "") if path.exists() else None
    if path.exists() and attributes is None:
        problems.append(
            f"store: {path} exists and is no store of hpcenc. Choose another place, or remove it."
        )
    elif attributes is not None:
        if not os.access(path, os.W_OK):
            problems.append(f"store: {path} cannot be written")
        if attributes.get("hpcenc_layout") != LAYOUT_VERSION:
            problems.append(f"store: {path} was written by another version of hpcenc. Choose another place.")
        elif attributes.get("voxels") != voxels.digest():
            problems.append(
                f"store: {path} holds another voxel axis ({attributes.get('n_voxels')} voxels; the BOLD "
                f"files have {voxels.n_voxels}). It is another study's: choose another place for this one."
            )
    for spec in plan.groups:
        found = group_attributes(path, spec.group) if "movie" in spec.attributes else None
        if found is not None and found["movie"] != spec.attributes["movie"]:
            problems.append(
                f"store: {path} holds another movie of run {found['run']} (stimulus {found['stimulus']}) "
                "than the study names now. Choose another place for this study's store."
            )
    if not problems:
        wanted, left = plan.bytes_to_write(path), space_left(parent)
        smaller = {"primal": " to 'dual' or 'none'", "dual": " to 'none'", "none": ""}[study.fit.weights]
        way_out = f", or set fit.weights{smaller}" if smaller else ""
        if wanted > left.n_bytes:
            problems.append(
                f"store: {parent} has {left.n_bytes / 1e9:.1f} GB free ({left.of_what}), the plan writes "
                f"{wanted / 1e9:.1f} GB. Make space{way_out}."
            )
        n_files = planned_files(plan.groups_to_write(path))
        if left.n_files is not None and n_files > left.n_files:
            problems.append(
                f"store: {parent} has room for {left.n_files:,} files ({left.files_of_what}), the plan makes "
                f"{n_files:,}. Choose another place{way_out}."
            )
    if problems:
        raise StudyError(problems)


def digest_memory(study: Study) -> FileDigests:
    """The file hashes that earlier runs of this study remembered."""
    return FileDigests(cache_folder(study.store_path) / "file-digests.json")

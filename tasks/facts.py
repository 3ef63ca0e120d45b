"""What the plan must know of the files that a study names: gathered once, plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcenc.tasks.models.catalogue import ModelSpec

if TYPE_CHECKING:
    from hpcenc.storage.bold import BoldHeader
    from hpcenc.storage.voxels import VoxelAxis


@dataclass(frozen=True)
class MovieFacts:
    """A movie file.

    Attributes
    ----------
    height, width : int
        Of cached frames.
    rows_padded : int
        Rows of the run after the movie's end, which show its last frame.
    """

    path: Path
    digest: str
    height: int
    width: int
    rows_padded: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """A model as this study uses it.

    Attributes
    ----------
    label : str
        Such as ``clip[untrained, seed 0]``.
    weights : str
        SHA-256 of the checkpoint, or what stands for it in an untrained model.
    checkpoint : mapping
        What the file was recognised as.
    tag_labels : mapping
        What is known of the names of its tags: ``mid``, ``display_name``.
    """

    spec: ModelSpec
    label: str
    weights: str
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    tag_labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureFileFacts:
    """A user's feature file of one run."""

    path: Path
    digest: str
    n_features: int


@dataclass(frozen=True)
class StudyFacts:
    """All of it.

    Attributes
    ----------
    movies : mapping of (stimulus version, run) to MovieFacts
    models : mapping of model to ModelFacts
    feature_files : mapping of (name, run) to FeatureFileFacts
    bold : mapping of (subject, run) to BoldHeader
        Runs that are present and whole.
    voxels : VoxelAxis or None
        The study's own axis; None if no subject is left.
    set_aside : tuple of str
        Subjects and runs that are damaged, each with the reason; the others go on.
    """

    movies: Mapping[tuple[str, str], MovieFacts]
    models: Mapping[str, ModelFacts]
    feature_files: Mapping[tuple[str, str], FeatureFileFacts]
    bold: Mapping[tuple[str, str], BoldHeader]
    voxels: VoxelAxis | None
    set_aside: tuple[str, ...] = ()

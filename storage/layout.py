"""Where things lie: paths and group names, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

LAYOUT_VERSION = 2
"""Version of the store's layout; readers refuse another one."""

SHARD_VOXELS = 2_500
"""Voxels of one shard of weights; a block is a whole number of shards."""

CHUNK_VOXELS = 500
"""Voxels of one inner chunk of weights."""

SCORES = ("r", "r2", "alpha", "chance", "agrees")
"""What a fit's array of scores holds, in the order of its first axis.

``agrees`` is 1 where the fast solver's choice of alpha was compared with that by exact scores and was the
same, 0 where it differed, NaN where it was not compared.
"""


SWEEP_SCORES = (*SCORES, "cv")
"""What a sweep's array of scores begins with; ``cv`` is ``1 - error / null error`` of the inner folds."""

BAND_R, WEIGHT_NORM = "r:", "weight_norm:"
"""Beginnings of the names of scores that there are several of: what each band adds to r, and the norm of the
weights at each delay."""

SWEEPS = ("delays", "layers", "bands")
"""Fits in many variants, of which each voxel chooses by its inner folds."""


def slug(label: str) -> str:
    """Group name of a label: ``[a-z0-9._-]`` only, different for different labels of one study.

    Examples
    --------
    >>> slug("clip[untrained, seed 0]")
    'clip-untrained-seed-0'
    >>> slug("beats+clip")
    'beats-and-clip'
    """
    plain = re.sub(r"[^a-z0-9._]+", "-", label.lower().replace("+", "-and-")).strip("-.")
    if not plain:
        raise ValueError(f"{label!r} leaves no letter or digit for a group name; give it another name")
    return plain


def stimulus_group(version: str, run: str) -> str:
    """Group of the decoded frames and audio of one run's movie."""
    return f"stimulus/{slug(version)}/{slug(run)}"


def features_group(model: str, version: str, run: str) -> str:
    """Group of one model's layers on one run; ``model`` is its label."""
    return f"features/{slug(model)}/{slug(version)}/{slug(run)}"


def operators_group(digest: str) -> str:
    """Group of what the operators of one outer fold were made from and with."""
    return f"operators/{digest[:16]}"


def fit_group(feature_set: str, subject: str, kind: str = "fits") -> str:
    """Group of one feature set's fit in one subject; of its sweep, where `kind` is one of `SWEEPS`."""
    return f"{kind}/{slug(feature_set)}/{slug(subject)}"


AVERAGE = "average"
"""The pseudo-subject whose BOLD is the mean over subjects."""


def singles_group(feature_set: str, subject: str) -> str:
    """Group of the single features of one feature set in one subject."""
    return f"singles/{slug(feature_set)}/{slug(subject)}"


def ceiling_group(subject: str) -> str:
    """Group of the noise ceilings of one subject."""
    return f"ceilings/{slug(subject)}"


def shared_alphas_group(fit: str) -> str:
    """Group of the alphas that all voxels of a fit share."""
    return f"alphas/{fit}"


def average_group() -> str:
    """Group of the mean BOLD over subjects."""
    return f"bold/{AVERAGE}"


def run_array(run: str) -> str:
    """Array of one run within a group of BOLD."""
    return f"run-{slug(run)}"


def superseded_folder(store: Path, digest: str, group: str) -> Path:
    """Where a group goes whose inputs have changed; it comes back if they change back."""
    return store.parent / "superseded" / store.name / digest[:16] / group


def cache_folder(store: Path) -> Path:
    """Folder of the memory-mapped operators, beside the store."""
    return store.parent / "cache"


def operators_folder(store: Path, digest: str) -> Path:
    """Folder of the memory-mapped operators of one outer fold."""
    return cache_folder(store) / "operators" / digest[:32]


def runs_folder(store: Path) -> Path:
    """Folder of a store's run folders, beside it."""
    return store.with_name(f"{store.stem}.runs")


def report_folder(store: Path) -> Path:
    """Folder of a store's report, beside it."""
    return store.with_name(f"{store.stem}.report")


def lock_path(store: Path) -> Path:
    """The lock file of a store, beside it."""
    return store.with_name(store.name + ".lock")

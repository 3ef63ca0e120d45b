"""A seeded study of the size of a paper's: BOLD of whole subjects as CIFTI files, features as files.

Vertices are those of `problem`: half of them noise, the others of as much signal. In stretches of `CHUNK`,
they respond to the leading components of `audio` and of `vision` in turn; `both` has every second component
of either. No rows are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hpcenc.storage.design import delayed_design
from hpcenc.storage.dtseries import write_dtseries
from hpcenc.storage.geometry import cortical_axis
from hpcenc.tasks.folds import RunRows, run_onsets
from problem import CHUNK, FEATURE_AR, N_LATENTS, Floats, autoregressive, bold_chunk, rotated_features, spans

FEATURE_SETS = ("audio", "vision", "both", "audio+vision")
SPECTRUM = "base"
TR_S = 1.0


@dataclass(frozen=True)
class Size:
    """Sizes of a study.

    Attributes
    ----------
    hcp_runs, equal_runs : tuple of int
        TRs of each run: of HCP's four, or of five equal ones.
    n_vertices : int
        Of a subject. HCP's files hold 59,412 of the cortex: 64,984 counts the medial walls too.
    block : int
        Vertices of a task.
    """

    hcp_runs: tuple[int, ...]
    equal_runs: tuple[int, ...]
    n_features: int
    n_delays: int
    n_vertices: int
    block: int


SIZES = {
    "full": Size((921, 918, 915, 901), (731,) * 5, 768, 10, 59_412, 10_000),
    "small": Size((62, 61, 60, 58), (48,) * 5, 96, 4, 5_000, 2_500),
}

Split = Literal["single", "rotate", "equal"]
SPLITS: tuple[Split, ...] = ("single", "rotate", "equal")
"""HCP's runs, of which the last tests, or every one once; five equal runs, of which the last tests."""


def run_lengths(size: Size, split: Split) -> tuple[int, ...]:
    """TRs of each run."""
    return size.equal_runs if split == "equal" else size.hcp_runs


def write_study(
    folder: Path, size: Size, split: Split, n_subjects: int, n_workers: int, n_threads: int, seed: int = 0
) -> Path:
    """Write the study file and all that it names to a folder, which must exist; gives the study file.

    Memory holds one subject's BOLD, 0.9 GB at full size.
    """
    lengths = run_lengths(size, split)
    names = [f"run{place + 1}" for place in range(len(lengths))]
    delays = list(range(1, size.n_delays + 1))
    rng = np.random.default_rng(seed)
    audio, vision = (autoregressive(rng, FEATURE_AR, lengths, size.n_features) for _ in range(2))
    both = np.where(np.arange(size.n_features) % 2, audio, vision)
    edges = np.cumsum(lengths)[:-1]
    for space, latents in {"audio": audio, "vision": vision, "both": both}.items():
        for name, part in zip(names, np.split(rotated_features(rng, latents, SPECTRUM), edges), strict=True):
            np.save(folder / f"{space}_{name}.npy", part)

    onsets = run_onsets([RunRows(name, length) for name, length in zip(names, lengths, strict=True)])
    sources = [
        delayed_design(latents[:, :N_LATENTS].astype(np.float32), delays, onsets)
        for latents in (audio, vision)
    ]
    subjects = [f"subject{place + 1}" for place in range(n_subjects)]
    for place, subject in enumerate(subjects):
        paths = [folder / f"{subject}_{name}.dtseries.nii" for name in names]
        _write_bold(paths, size.n_vertices, sources, lengths, (seed, place))

    runs = ", ".join(
        f'{{ name = "{name}", n_trs = {length} }}' for name, length in zip(names, lengths, strict=True)
    )
    path = folder / "study.toml"
    path.write_text(f"""\
name = "benchmark"
simulated = true
tr_s = {TR_S}
store = "results/study.zarr"
runs = [{runs}]
subjects = {{ ids = {json.dumps(subjects)} }}
bold = {{ path = "{{subject}}_{{run}}.dtseries.nii" }}
cluster = {{ n_workers = {n_workers}, threads_per_worker = {n_threads} }}
[feature_files]
audio = {{ path = "audio_{{run}}.npy" }}
vision = {{ path = "vision_{{run}}.npy" }}
both = {{ path = "both_{{run}}.npy" }}
[fit]
delays = {delays}
outer = "{"rotate" if split == "rotate" else "single"}"
weights = "primal"
block = {size.block}
backend = "numpy"
""")
    return path


def _write_bold(
    paths: list[Path], n_vertices: int, sources: list[Floats], lengths: tuple[int, ...], seed: tuple[int, int]
) -> None:
    """One subject's runs, on that many vertices from all over the cortex."""
    axis = cortical_axis()
    axis = axis.take(np.linspace(0, axis.n_voxels - 1, n_vertices).astype(np.int64))
    runs = [np.empty((n_vertices, length), np.float32) for length in lengths]
    for place, (start, stop) in enumerate(spans(0, n_vertices, CHUNK)):
        bold = bold_chunk(np.random.default_rng([*seed, start]), sources[place % len(sources)], lengths)
        for run, part in zip(runs, np.split(bold, np.cumsum(lengths)[:-1]), strict=True):
            run[start:stop] = part[:, : stop - start].T
    for path, run in zip(paths, runs, strict=True):
        write_dtseries(path, run.T, axis, TR_S)

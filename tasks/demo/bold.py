"""Simulated BOLD: planted courses through an HRF, and autocorrelated noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from hpcenc.tasks.demo.hrf import respond
from hpcenc.tasks.demo.scenes import Script
from hpcenc.tasks.demo.seeds import Stream, generator

FINE_HZ = 20
"""Samples per second at which courses are convolved with the HRF."""

_PIECE = 8192
"""Voxels treated at a time, which bounds the memory."""


@dataclass(frozen=True)
class Region:
    """Areas whose vertices respond to the same features, each vertex with its own mix."""

    name: str
    areas: tuple[str, ...]
    """Glasser areas, in both hemispheres."""
    courses: tuple[str, ...]
    """What its vertices respond to; see `fine_course`."""
    peak_s: float
    """Seconds from an event to the peak of the HRF."""


CLIP_COURSES = tuple(f"clip_{number}" for number in range(1, 9))
"""Arbitrary courses of the repeated clip; see `clip_course`."""

REGIONS = (
    Region(
        "visual",
        ("V1", "V2", "V3", "V4", "V8", "LO1", "LO2", "LO3"),
        ("luminance", "hue_cos", "hue_sin", "size"),
        5.0,
    ),
    Region(
        "auditory", ("A1", "LBelt", "MBelt", "PBelt", "RI", "A4", "A5"), ("loudness", "am_rate", "tone"), 4.5
    ),
    Region("motion", ("MT", "MST", "V4t", "FST"), ("speed",), 5.5),
    Region("trap", ("46", "9-46d", "a9-46v", "IP1"), CLIP_COURSES, 6.5),
)
"""Where what is planted. ``trap`` is the leak trap: courses that nothing but the repeated clip has."""

CLIP_LEVEL_S = 5.0
"""Seconds that a level of an arbitrary course lasts: as slow as scenes."""


def region_labels(labels: NDArray[np.int16], names: Sequence[str]) -> NDArray[np.int8]:
    """Region of each cortical vertex.

    Parameters
    ----------
    labels : array of shape (n_vertices,)
        Glasser area of each vertex, an index into ``names``.
    names : sequence of str
        ``""``, then ``L_V1`` and so on.

    Returns
    -------
    array of shape (n_vertices,)
        Index into `REGIONS`; -1 for noise alone.
    """
    region_of = {area: index for index, region in enumerate(REGIONS) for area in region.areas}
    by_label = np.array([region_of.get(name.partition("_")[2], -1) for name in names], np.int8)
    regions: NDArray[np.int8] = by_label[labels]
    return regions


def fine_course(script: Script, course: str, seed: int) -> NDArray[np.float64]:
    """Strength of any course throughout a run, before the HRF, at `FINE_HZ`; (n_samples,)."""
    return clip_course(script, course, seed) if course in CLIP_COURSES else feature_course(script, course)


def feature_course(script: Script, course: str, rate_hz: float = FINE_HZ) -> NDArray[np.float64]:
    """Strength of a feature throughout a run, before the HRF.

    Parameters
    ----------
    script : Script
    course : str
        See `Scenes.strengths`.
    rate_hz : float
        Samples per second.

    Returns
    -------
    array of shape (round(duration_s * rate_hz),)
        Value at the middle of each sample: mean 0 and variance 1 over the scenes that could be drawn. In rest
        it is 0, so that the movie's going on and off moves nothing.
    """
    values = np.zeros(round(script.duration_s * rate_hz))
    for start_s, block in script.blocks:
        scenes = block.scenes_of(course)
        times = np.arange(0.5, round(block.duration_s * rate_hz)) / rate_hz
        first = round(start_s * rate_hz)
        values[first : first + len(times)] = scenes.strengths(course)[scenes.index_at(times)]
    return values


def clip_course(script: Script, course: str, seed: int, rate_hz: float = FINE_HZ) -> NDArray[np.float64]:
    """Arbitrary course of the repeated clip: random levels of 5 s each, 0 outside of it.

    The same in every run and subject, and unrelated to anything seen or heard. Levels grow towards the clip's
    end, so that the response outlasts it: rows after the clip leak too. Shape and parameters are those of
    `feature_course`.
    """
    start_s, end_s = script.showing_s
    n_samples = round((end_s - start_s) * rate_hz)
    level_at = (np.arange(0.5, n_samples) / rate_hz / CLIP_LEVEL_S).astype(np.intp)
    rng = generator(seed, Stream.CLIP_COURSE, CLIP_COURSES.index(course))
    n_levels = int(level_at[-1]) + 1
    levels = rng.standard_normal(n_levels) * np.arange(1, n_levels + 1)
    values = np.zeros(round(script.duration_s * rate_hz))
    first = round(start_s * rate_hz)
    values[first : first + n_samples] = levels[level_at]
    return values


def sample_response(
    course: NDArray[np.float64], peak_s: float, n_trs: int, tr_s: float, rate_hz: float = FINE_HZ
) -> NDArray[np.float64]:
    """BOLD response to a course, at the volumes of a run.

    Parameters
    ----------
    course : array of shape (n_samples,)
        Strength over each of its samples, before the HRF.
    peak_s : float
        See `hrf`.
    n_trs : int
        Volumes of the run.
    tr_s : float
        Repetition time in seconds.
    rate_hz : float
        Samples per second of the course.

    Returns
    -------
    array of shape (n_trs,)
        Row k is the response at the middle of volume k, which is acquired in [k * tr_s, (k + 1) * tr_s).
    """
    ends_s = (np.arange(len(course)) + 1) / rate_hz
    middles_s = np.arange(0.5, n_trs) * tr_s
    sampled: NDArray[np.float64] = np.interp(middles_s, ends_s, respond(course, peak_s, rate_hz))
    return sampled


def region_responses(script: Script, n_trs: int, tr_s: float, seed: int) -> tuple[NDArray[np.float64], ...]:
    """Responses of every region to its courses, in one run.

    Returns
    -------
    tuple of array of shape (n_courses, n_trs)
        One for each of `REGIONS`; see `sample_response`.
    """
    return tuple(
        np.stack(
            [
                sample_response(fine_course(script, course, seed), region.peak_s, n_trs, tr_s)
                for course in region.courses
            ]
        )
        for region in REGIONS
    )


def draw_mixes(n_vertices: int, n_courses: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Weights of a region's courses in each vertex: random directions of length 1, of either sign.

    Returns
    -------
    array of shape (n_vertices, n_courses)
    """
    weights = rng.standard_normal((n_vertices, n_courses))
    mixes: NDArray[np.float32] = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
    return mixes


def mix_responses(
    mixes: NDArray[np.float32], responses: NDArray[np.float64], rows: slice, snr: float
) -> NDArray[np.float32]:
    """Signal of each vertex, scaled against noise of variance 1.

    Parameters
    ----------
    mixes : array of shape (n_vertices, n_courses)
    responses : array of shape (n_courses, n_trs)
    rows : slice
        Rows over which the ratio holds: all, or those of the repeated clip and its tail where nothing else is
        planted.
    snr : float
        Variance of the signal over variance of the noise.

    Returns
    -------
    array of shape (n_vertices, n_trs)
    """
    signal = mixes @ responses.astype(np.float32)
    scale = signal[:, rows].std(axis=1, keepdims=True)
    scaled: NDArray[np.float32] = signal * (np.sqrt(np.float32(snr)) / scale)
    return scaled


def draw_noise(n_voxels: int, n_trs: int, rho: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Stationary AR(1) noise of variance 1.

    Parameters
    ----------
    n_voxels, n_trs : int
    rho : float
        Correlation of neighbouring TRs.
    rng : numpy.random.Generator

    Returns
    -------
    array of shape (n_voxels, n_trs)
        One series after the other: as CIFTI files hold them.
    """
    noise = np.empty((n_voxels, n_trs), np.float32)
    # Stationary from the first TR on: it has the whole variance, later innovations what rho leaves.
    innovation = np.float32(np.sqrt(1 - rho**2))
    for start in range(0, n_voxels, _PIECE):
        rows = rng.standard_normal((min(_PIECE, n_voxels - start), n_trs), dtype=np.float32)
        rows[:, 1:] *= innovation
        noise[start : start + len(rows)] = lfilter([1.0], np.array([1.0, -rho], np.float32), rows, axis=1)
    return noise


def simulate_run(
    responses: Sequence[NDArray[np.float64]],
    mixes: Sequence[NDArray[np.float32]],
    regions: NDArray[np.int8],
    n_voxels: int,
    showing_start: int,
    snr: float,
    rho: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """BOLD of one subject in one run.

    Parameters
    ----------
    responses : sequence of array of shape (n_courses, n_trs)
        Of each region; see `region_responses`.
    mixes : sequence of array of shape (n_vertices of the region, n_courses)
    regions : array of shape (n_vertices,)
        Region of each cortical vertex; these are the first voxels.
    n_voxels : int
        Grayordinates in all; those beyond the cortex have noise alone.
    showing_start : int
        First row of the repeated clip. Where nothing else is planted, `snr` holds from here to the run's end.
    snr, rho : float
        See `mix_responses` and `draw_noise`.
    rng : numpy.random.Generator

    Returns
    -------
    array of shape (n_voxels, n_trs)
        Each voxel's series z-scored over the run.
    """
    bold = draw_noise(n_voxels, responses[0].shape[1], rho, rng)
    for index, (region, response, mix) in enumerate(zip(REGIONS, responses, mixes, strict=True)):
        only_clip = set(region.courses) <= set(CLIP_COURSES)
        rows = slice(showing_start if only_clip else 0, None)
        bold[np.flatnonzero(regions == index)] += mix_responses(mix, response, rows, snr)
    zscore_rows(bold)
    return bold


def zscore_rows(bold: NDArray[np.float32]) -> None:
    """Give every voxel's series, (n_voxels, n_trs), mean 0 and variance 1, in place."""
    for start in range(0, len(bold), _PIECE):
        rows = bold[start : start + _PIECE]
        rows -= rows.mean(axis=1, keepdims=True)
        rows /= rows.std(axis=1, keepdims=True)

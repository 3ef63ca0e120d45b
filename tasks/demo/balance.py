"""Deal the levels of a run so that no sense tells of the other, nor a still frame of motion.

With 19 scenes a run, features that are drawn independently still correlate by chance at .2, and a model of
one sense predicts areas of the other at |r| up to .15 (measured: SD .065 over seeds). That is chance of the
design, not of the noise, so averaging over vertices does not remove it. As in other fMRI designs, the order
is therefore chosen: levels are exchanged between scenes of a block where that lowers the correlations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.demo.hrf import respond
from hpcenc.tasks.demo.scenes import AUDITORY, Block, Scenes

STILL = ("luminance", "hue_cos", "hue_sin", "size")
"""Courses that a single frame tells."""

DEALT = ("speed", *AUDITORY)
"""Features whose levels are exchanged."""

LAGS_S = (1, 3, 5, 7, 9)
"""Delays at which a course is held against the response to another one: an FIR model may use any of them."""

SETTLED_S = 10
"""Seconds after a rest that are no test of a model."""

RATE_HZ = 2
PEAK_S = 5.0


def balance_blocks(
    blocks: Sequence[Block], rng: np.random.Generator, n_swaps: int = 1000
) -> tuple[Block, ...]:
    """Blocks with the same scenes, whose courses correlate less over the run.

    Parameters
    ----------
    blocks : sequence of Block
        Blocks of one run; correlations are those over all of them.
    rng : numpy.random.Generator
    n_swaps : int
        Exchanges tried; each one that lowers the sum of squared correlations is kept.

    Returns
    -------
    tuple of Block
        Each feature has the levels that it had in each block, in another order; only `DEALT` ones have moved.
    """
    dealt = list(blocks)
    crossings = [_Crossings(block) for block in blocks]
    parts = [crossing.products(block) for crossing, block in zip(crossings, dealt, strict=True)]
    best = _sum_of_squares(parts)
    for _ in range(n_swaps):
        at = int(rng.integers(len(dealt)))
        swapped = _swap(dealt[at], DEALT[rng.integers(len(DEALT))], rng)
        trial = [*parts[:at], crossings[at].products(swapped), *parts[at + 1 :]]
        if (value := _sum_of_squares(trial)) < best:
            best, parts, dealt[at] = value, trial, swapped
    return tuple(dealt)


def _swap(block: Block, feature: str, rng: np.random.Generator) -> Block:
    """Block with the levels of one feature exchanged between two scenes."""
    scenes = block.scenes_of(feature)
    levels = scenes.levels[feature].copy()
    pair = rng.choice(len(scenes), 2, replace=False)
    levels[pair] = levels[pair[::-1]]
    dealt = scenes.with_levels(feature, levels)
    return replace(block, sound=dealt) if feature in AUDITORY else replace(block, picture=dealt)


def _sum_of_squares(parts: Sequence[NDArray[np.float64]]) -> float:
    return float((np.sum(parts, axis=0) ** 2).sum())


class _Crossings:
    """Inner products of delayed courses and responses of one block, for any levels of its scenes."""

    def __init__(self, block: Block) -> None:
        n_samples = round(block.duration_s * RATE_HZ)
        times = np.arange(0.5, n_samples) / RATE_HZ
        picture = np.eye(len(block.picture))[block.picture.index_at(times)]
        sound = np.eye(len(block.sound))[block.sound.index_at(times)]
        self._seen_heard = _cross(picture, sound)
        self._heard_seen = _cross(sound, picture)
        self._seen_seen = _cross(picture, picture)

    def products(self, block: Block) -> NDArray[np.float64]:
        """Products of all pairs that should not correlate, in one row."""
        still = _strengths(block.picture, STILL)
        speed = _strengths(block.picture, ("speed",))
        sound = _strengths(block.sound, AUDITORY)
        seen = np.hstack([still, speed])
        return np.concatenate(
            [
                (seen.T @ self._seen_heard @ sound).ravel(),
                (sound.T @ self._heard_seen @ seen).ravel(),
                (still.T @ self._seen_seen @ speed).ravel(),
                (speed.T @ self._seen_seen @ still).ravel(),
            ]
        )


def _strengths(scenes: Scenes, courses: Sequence[str]) -> NDArray[np.float64]:
    """(n_scenes, n_courses)."""
    return np.stack([scenes.strengths(course) for course in courses], axis=1)


def _cross(shown: NDArray[np.float64], driving: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of the scenes of one sense, delayed, with the responses to those of another.

    Parameters
    ----------
    shown, driving : array of shape (n_samples, n_scenes)
        1 where a scene is on.

    Returns
    -------
    array of shape (n_lags, n_shown, n_driving)
    """
    response = respond(driving, PEAK_S, RATE_HZ)[SETTLED_S * RATE_HZ :]
    first = SETTLED_S * RATE_HZ
    delayed = [shown[first - lag * RATE_HZ : len(shown) - lag * RATE_HZ] for lag in LAGS_S]
    return np.stack([scenes.T @ response for scenes in delayed])

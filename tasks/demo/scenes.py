"""Scenes of a demo movie: how long each one lasts, and the level of every feature in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.study import Segment
from hpcenc.tasks.demo.seeds import Stream, generator

VISUAL = ("luminance", "hue", "size", "speed", "direction", "x", "y")
"""Features of a picture, each with one level a scene. Direction and starting place belong to the motion."""

AUDITORY = ("loudness", "am_rate", "pitch", "tone")
"""Features of sound, each with one level a scene."""

SHORTEST_SCENE_S = 5.0
LONGEST_SCENE_S = 8.0


@dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes of one sense, one after the other, from 0 s to the end of the last."""

    end_s: NDArray[np.float64]
    """(n_scenes,) seconds from the block's start at which each scene ends."""
    levels: dict[str, NDArray[np.float64]]
    """Level in [0, 1) of each feature in each scene, (n_scenes,)."""

    def __len__(self) -> int:
        return len(self.end_s)

    @property
    def onset_s(self) -> NDArray[np.float64]:
        """(n_scenes,) seconds from the block's start at which each scene begins."""
        return np.concatenate([[0.0], self.end_s[:-1]])

    def index_at(self, times_s: NDArray[np.float64]) -> NDArray[np.intp]:
        """Scene at each time of the block."""
        return np.minimum(np.searchsorted(self.end_s, times_s, side="right"), len(self) - 1)

    def strengths(self, course: str) -> NDArray[np.float64]:
        """How strongly each scene drives an area, (n_scenes,): mean 0 and variance 1 over possible scenes.

        Parameters
        ----------
        course : str
            A feature, or ``hue_cos`` or ``hue_sin``: hue is an angle, and a mix of these two prefers one hue.
        """
        if course in ("hue_cos", "hue_sin"):
            wave = np.cos if course == "hue_cos" else np.sin
            return np.asarray(math.sqrt(2) * wave(2 * math.pi * self.levels["hue"]))
        return math.sqrt(12) * (self.levels[course] - 0.5)

    def with_levels(self, feature: str, levels: NDArray[np.float64]) -> Scenes:
        """The same scenes with other levels of one feature."""
        return replace(self, levels=self.levels | {feature: levels})


@dataclass(frozen=True, eq=False)
class Block:
    """An unbroken part of a run with picture and sound, which change at times of their own.

    Its times count from its own start, so that a clip is the same block, number for number, in every run.
    """

    duration_s: float
    picture: Scenes
    sound: Scenes
    seed: int
    place: tuple[int, int]
    """(run, part) that the block was drawn for; with the seed, where the noise in its sound comes from."""

    def scenes_of(self, course: str) -> Scenes:
        """Scenes of the sense that a course belongs to."""
        return self.sound if course in AUDITORY else self.picture


@dataclass(frozen=True, eq=False)
class Script:
    """One run: its segments, and the block of each one that is not rest."""

    duration_s: float
    segments: tuple[Segment, ...]
    blocks: tuple[tuple[float, Block], ...]
    """(start in seconds, block) of every segment that is not rest."""

    @property
    def showing_s(self) -> tuple[float, float]:
        """Start and end of the repeated clip, in seconds from the run's start."""
        clip = next(segment for segment in self.segments if segment.kind == "repeat")
        return clip.start_s, clip.end_s


def draw_block(duration_s: float, seed: int, place: tuple[int, int]) -> Block:
    """One block of scenes, whose picture and sound are drawn apart.

    Raises
    ------
    ValueError
        If the block is shorter than two scenes of 5 s.
    """
    return Block(
        duration_s=duration_s,
        picture=draw_scenes(duration_s, VISUAL, generator(seed, Stream.PICTURE, *place)),
        sound=draw_scenes(duration_s, AUDITORY, generator(seed, Stream.SOUND, *place)),
        seed=seed,
        place=place,
    )


def draw_scenes(duration_s: float, features: Sequence[str], rng: np.random.Generator) -> Scenes:
    """Scenes of 5 to 8 s whose features are drawn independently of each other.

    Each feature takes levels spread evenly over [0, 1), one in each of ``n_scenes`` equal parts, in random
    order (a Latin hypercube): few scenes then cover its range as well as many.

    Raises
    ------
    ValueError
        If there is no room for two scenes of 5 s.
    """
    fewest, most = math.ceil(duration_s / LONGEST_SCENE_S), int(duration_s / SHORTEST_SCENE_S)
    if most < 2:
        raise ValueError(
            f"block of {duration_s:g} s: expected at least {2 * SHORTEST_SCENE_S:g} s for two scenes."
        )
    n_scenes = min(max(fewest, round(duration_s / 6.5)), most)
    ranks = np.stack([rng.permutation(n_scenes) for _ in features])
    levels = (ranks + rng.random(ranks.shape)) / n_scenes
    return Scenes(
        end_s=np.cumsum(_scene_lengths(duration_s, n_scenes, rng)),
        levels=dict(zip(features, levels, strict=True)),
    )


def _scene_lengths(duration_s: float, n_scenes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Lengths that add up to the block, spread about their mean as far as 5 to 8 s allow."""
    mean = duration_s / n_scenes
    spread = rng.uniform(-1.5, 1.5, n_scenes)
    spread -= spread.mean()
    room = min((LONGEST_SCENE_S - mean) / spread.max(), (mean - SHORTEST_SCENE_S) / -spread.min())
    lengths: NDArray[np.float64] = mean + min(1.0, room) * spread
    return lengths

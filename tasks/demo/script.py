"""Scripts of the demo's runs: rests, blocks of scenes, and the clip that ends every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from hpcenc.storage.study import Segment
from hpcenc.tasks.demo.balance import balance_blocks
from hpcenc.tasks.demo.scenes import SHORTEST_SCENE_S, Script, draw_block
from hpcenc.tasks.demo.seeds import Stream, generator

CLIP_GROUP = "clip"
"""Repeat group of the clip."""


def plan_segments(duration_s: float, rest_s: float, clip_s: float) -> tuple[Segment, ...]:
    """Segments of a run: rest, scenes, rest, scenes, rest, the repeated clip, rest.

    Parameters
    ----------
    duration_s : float
        Length of the run in seconds.
    rest_s, clip_s : float
        Length of each rest and of the clip in seconds.

    Returns
    -------
    tuple of Segment
        Seven segments without gaps. Scenes last whole seconds; the last rest takes the fraction that is left.

    Raises
    ------
    ValueError
        If less than 20 s are left for scenes: both parts need two scenes of 5 s.
    """
    scenes_s = math.floor(duration_s - 4 * rest_s - clip_s + 1e-9)
    if scenes_s < 4 * SHORTEST_SCENE_S:
        raise ValueError(
            f"demo run of {duration_s:g} s: four rests of {rest_s:g} s and a clip of {clip_s:g} s leave "
            f"{scenes_s} s for scenes, expected at least {4 * SHORTEST_SCENE_S:g} s. "
            "Ask for more TRs, or shorter rests or clip."
        )
    first_s = scenes_s // 2
    lengths_s = [rest_s, first_s, rest_s, scenes_s - first_s, rest_s, clip_s]
    ends_s = [sum(lengths_s[: n + 1]) for n in range(len(lengths_s))] + [duration_s]
    starts_s = [0.0, *ends_s[:-1]]
    kinds: tuple[Literal["rest", "clip", "repeat"], ...] = (
        "rest",
        "clip",
        "rest",
        "clip",
        "rest",
        "repeat",
        "rest",
    )
    return tuple(
        Segment(kind=kind, start_s=start_s, end_s=end_s, group=CLIP_GROUP if kind == "repeat" else "")
        for kind, start_s, end_s in zip(kinds, starts_s, ends_s, strict=True)
    )


def write_scripts(
    durations_s: Sequence[float], rest_s: float = 8.0, clip_s: float = 25.0, seed: int = 0
) -> tuple[Script, ...]:
    """Scripts of all runs: scenes of their own, and one clip that is the same in all.

    Picture and sound change at times of their own: a common onset would let the model of one sense predict
    the areas of the other. What correlates by chance is balanced; see `balance_blocks`.

    Parameters
    ----------
    durations_s : sequence of float
        Length of each run in seconds.
    rest_s, clip_s : float
        Length of each rest and of the clip in whole seconds.
    seed : int
        Same seed, same scripts; a run's script does not depend on the number of runs.

    Raises
    ------
    ValueError
        If a run is too short; see `plan_segments`.
    """
    (clip,) = balance_blocks([draw_block(clip_s, seed, (0, 0))], generator(seed, Stream.ORDER, 0))
    scripts = []
    for run, duration_s in enumerate(durations_s, start=1):
        segments = plan_segments(duration_s, rest_s, clip_s)
        shown = [(part, segment) for part, segment in enumerate(segments) if segment.kind == "clip"]
        drawn = [draw_block(segment.end_s - segment.start_s, seed, (run, part)) for part, segment in shown]
        scenes = balance_blocks(drawn, generator(seed, Stream.ORDER, run))
        blocks = [(segment.start_s, block) for (_, segment), block in zip(shown, scenes, strict=True)]
        scripts.append(Script(duration_s, segments, (*blocks, (segments[-2].start_s, clip))))
    return tuple(scripts)

"""Where the demo's random numbers come from: one seed, and a stream of its own for each thing drawn."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What is drawn; numbers never change, or the same seed would give another study."""

    PICTURE = 1
    SOUND = 2
    SOUND_NOISE = 3
    ORDER = 4
    CLIP_COURSE = 5
    MIXES = 6
    BOLD_NOISE = 7


def generator(seed: int, stream: Stream, *places: int) -> np.random.Generator:
    """Generator of one stream at one place (a run, a block, a subject).

    What it gives does not depend on how many other places there are, nor on what was drawn before.
    """
    return np.random.default_rng((seed, int(stream), *places))

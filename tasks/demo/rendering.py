"""Frames and sound of a demo run: a disc that moves on a coloured ground, and tones in noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hpcenc.tasks.demo.scenes import Block, Script
from hpcenc.tasks.demo.seeds import Stream, generator

HEIGHT, WIDTH = 224, 256
"""Pixels of a frame; the shorter side is what image models take, so that no resizing comes between."""

FPS = 24
SAMPLE_RATE = 16_000

LUMA = (0.35, 0.80)
"""Ground at the lowest and highest level of luminance; 1 is white."""
CHROMA = 0.11
"""Distance of the ground's colour from grey in the (Cb, Cr) plane; the angle is the hue."""
DISC_LUMA = 0.02
RADIUS_PX = (12.0, 64.0)
MAX_SPEED_PX_S = 240.0
"""Ten pixels a frame."""

LOUDNESS_DB = (-40.0, -17.0)
"""Root mean square of the sound against full scale."""
PULSE_S = 0.05
"""Length of one pulse of the amplitude modulation, at every rate."""
AM_RATE_HZ = (2.0, 16.0)
AM_FLOOR = 0.1
"""Amplitude between pulses against that at their peak."""
PITCH_HZ = (150.0, 300.0)
N_HARMONICS = 6
TONE_DB = (-18.0, 18.0)
"""Power of the tone against that of the noise."""


def render_frames(script: Script, fps: int = FPS) -> Iterator[NDArray[np.uint8]]:
    """Frames of a run, black in rest.

    Yields
    ------
    array of shape (HEIGHT, WIDTH, 3)
        RGB, one for each ``1 / fps`` s from 0 until the run is over.
    """
    n_frames = math.ceil(script.duration_s * fps - 1e-9)
    starts = [round(start_s * fps) for start_s, _ in script.blocks]
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    at = 0
    for start, (_, block) in zip(starts, script.blocks, strict=True):
        for _ in range(start - at):
            yield black
        yield from render_block(block, fps)
        at = start + round(block.duration_s * fps)
    for _ in range(n_frames - at):
        yield black


def render_block(block: Block, fps: int = FPS) -> Iterator[NDArray[np.uint8]]:
    """Frames of one block of scenes."""
    times = np.arange(round(block.duration_s * fps)) / fps
    onsets = block.picture.onset_s
    for time_s, scene in zip(times.tolist(), block.picture.index_at(times).tolist(), strict=True):
        levels = {name: float(values[scene]) for name, values in block.picture.levels.items()}
        yield draw_frame(levels, time_s - float(onsets[scene]))


def draw_frame(levels: dict[str, float], seconds: float) -> NDArray[np.uint8]:
    """One frame of a scene.

    The disc starts anywhere, moves straight on and comes in again on the other side, without blur: wherever
    it is, a single frame says nothing of its speed.

    Parameters
    ----------
    levels : dict of float
        Level in [0, 1) of each visual feature.
    seconds : float
        Time since the scene's start.
    """
    x, y = disc_place(levels, seconds)
    across = np.abs(np.arange(WIDTH) - x)
    down = np.abs(np.arange(HEIGHT) - y)
    across, down = np.minimum(across, WIDTH - across), np.minimum(down, HEIGHT - down)
    disc = down[:, None] ** 2 + across**2 <= _between(RADIUS_PX, levels["size"]) ** 2
    colours = np.stack([ground_colour(levels), np.full(3, round(255 * DISC_LUMA), np.uint8)])
    frame: NDArray[np.uint8] = colours.take(disc.view(np.uint8), axis=0)
    return frame


def disc_place(levels: dict[str, float], seconds: float) -> tuple[float, float]:
    """Centre of the disc in pixels, (x, y), ``seconds`` after the scene's start."""
    way = levels["speed"] * MAX_SPEED_PX_S * seconds
    angle = 2 * math.pi * levels["direction"]
    x = (levels["x"] * WIDTH + way * math.cos(angle)) % WIDTH
    y = (levels["y"] * HEIGHT + way * math.sin(angle)) % HEIGHT
    return x, y


def ground_colour(levels: dict[str, float]) -> NDArray[np.uint8]:
    """RGB of the ground, (3,): hue turns its colour at constant luma (ITU-R BT.601)."""
    luma = _between(LUMA, levels["luminance"])
    blue = CHROMA * math.cos(2 * math.pi * levels["hue"])
    red = CHROMA * math.sin(2 * math.pi * levels["hue"])
    rgb = luma + np.array([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue])
    colour: NDArray[np.uint8] = np.round(255 * rgb.clip(0, 1)).astype(np.uint8)
    return colour


def render_sound(script: Script, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Sound of a run, (n_samples,), mono in [-1, 1], silent in rest."""
    wave = np.zeros(round(script.duration_s * sample_rate), np.float32)
    for start_s, block in script.blocks:
        sound = synthesise_block(block, sample_rate)
        start = round(start_s * sample_rate)
        wave[start : start + len(sound)] = sound
    return wave


def synthesise_block(block: Block, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Sound of one block of scenes: pulses of a complex tone in white noise.

    Loudness, pulse rate, pitch and the ratio of tone to noise each follow their own level; only loudness
    changes the mean power. Phases run on across scenes, so that their edges do not click.
    """
    times = np.arange(round(block.duration_s * sample_rate)) / sample_rate
    scene = block.sound.index_at(times)
    levels = block.sound.levels
    tone = _unit_tone(_octaves(PITCH_HZ, levels["pitch"])[scene], sample_rate)
    noise = generator(block.seed, Stream.SOUND_NOISE, *block.place).standard_normal(len(times))
    ratio = _decibels(TONE_DB, levels["tone"])[scene]
    carrier = (ratio * tone + noise) / np.sqrt(ratio**2 + 1)
    pulses = _unit_pulses(_octaves(AM_RATE_HZ, levels["am_rate"])[scene], sample_rate)
    wave = _decibels(LOUDNESS_DB, levels["loudness"])[scene] * pulses * carrier
    sound: NDArray[np.float32] = wave.clip(-1, 1).astype(np.float32)
    return sound


def _unit_tone(pitch_hz: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Complex tone of mean power 1 with harmonics of falling strength."""
    phase = 2 * np.pi * _cycles(pitch_hz, sample_rate)
    harmonics = np.arange(1, N_HARMONICS + 1)
    tone: NDArray[np.float64] = np.sum([np.sin(n * phase) / n for n in harmonics], axis=0)
    return tone / math.sqrt(float((1 / harmonics**2).sum()) / 2)


def _unit_pulses(rate_hz: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Envelope of mean power 1: Hann pulses of one length, more or fewer of them a second."""
    since_pulse_s = (_cycles(rate_hz, sample_rate) % 1) / rate_hz
    pulse = np.where(since_pulse_s < PULSE_S, np.sin(np.pi * since_pulse_s / PULSE_S) ** 2, 0.0)
    # Over a pulse, sin**2 has mean 1/2 and its square mean 3/8.
    share = rate_hz * PULSE_S
    power = AM_FLOOR**2 + share * (AM_FLOOR * (1 - AM_FLOOR) + (1 - AM_FLOOR) ** 2 * 3 / 8)
    envelope: NDArray[np.float64] = (AM_FLOOR + (1 - AM_FLOOR) * pulse) / np.sqrt(power)
    return envelope


def _cycles(rate_hz: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Cycles of an oscillation whose rate changes, from its start."""
    cycles: NDArray[np.float64] = np.cumsum(rate_hz) / sample_rate
    return cycles


def _between(ends: tuple[float, float], level: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * level


def _octaves(ends: tuple[float, float], level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal steps of level are equal ratios of the value."""
    values: NDArray[np.float64] = ends[0] * (ends[1] / ends[0]) ** level
    return values


def _decibels(ends: tuple[float, float], level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Amplitude of each level between two limits in dB."""
    amplitudes: NDArray[np.float64] = 10 ** (np.interp(level, (0, 1), ends) / 20)
    return amplitudes

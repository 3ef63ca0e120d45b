"""Scenes of the demo movie, and the pictures and sounds made of them."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.tasks.demo.balance import DEALT, STILL, balance_blocks
from hpcenc.tasks.demo.bold import feature_course, sample_response
from hpcenc.tasks.demo.rendering import (
    FPS,
    LOUDNESS_DB,
    SAMPLE_RATE,
    disc_place,
    draw_frame,
    render_block,
    render_frames,
    render_sound,
    synthesise_block,
)
from hpcenc.tasks.demo.scenes import AUDITORY, VISUAL, Block, Scenes, Script, draw_block
from hpcenc.tasks.demo.script import plan_segments, write_scripts


@pytest.fixture(scope="module")
def scripts() -> tuple[Script, ...]:
    return write_scripts([180.0] * 4, seed=0)


def test_segments_fill_the_run_in_order() -> None:
    segments = plan_segments(180.0, 8.0, 25.0)
    assert [segment.kind for segment in segments] == [
        "rest",
        "clip",
        "rest",
        "clip",
        "rest",
        "repeat",
        "rest",
    ]
    assert segments[0].start_s == 0
    assert segments[-1].end_s == 180
    assert all(before.end_s == after.start_s for before, after in pairwise(segments))
    lengths = [segment.end_s - segment.start_s for segment in segments]
    assert lengths == [8, 61, 8, 62, 8, 25, 8]


def test_all_but_the_last_segment_end_at_whole_seconds_when_the_run_does_not() -> None:
    segments = plan_segments(121 * 1.49, 8.0, 25.0)
    assert all(segment.end_s % 1 == 0 for segment in segments[:-1])
    assert segments[-1].end_s == pytest.approx(180.29)


def test_run_without_room_for_scenes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"demo run of 70 s.*expected at least 20 s"):
        write_scripts([70.0])


@pytest.mark.parametrize("duration_s", [10.0, 11.0, 16.5, 25.0, 61.0, 62.0, 430.0])
def test_scenes_last_5_to_8_s_and_fill_their_block(duration_s: float) -> None:
    for seed in range(20):
        block = draw_block(duration_s, seed, (1, 1))
        for scenes in (block.picture, block.sound):
            lengths = scenes.end_s - scenes.onset_s
            assert scenes.end_s[-1] == pytest.approx(duration_s)
            assert lengths.min() >= 5 - 1e-9
            assert lengths.max() <= 8 + 1e-9


def test_picture_and_sound_change_at_times_of_their_own(scripts: tuple[Script, ...]) -> None:
    gaps = [
        np.abs(block.picture.onset_s[1:, None] - block.sound.onset_s[1:]).min(axis=1)
        for script in scripts
        for _, block in script.blocks[:2]
    ]
    # Changes of one sense lie anywhere between those of the other: at 6.5 s a scene, 1.6 s away on average.
    assert np.concatenate(gaps).mean() > 1.0


def test_features_are_drawn_independently_of_each_other() -> None:
    blocks = [draw_block(61.0, seed, (1, 1)) for seed in range(300)]
    for senses, features in (("picture", VISUAL), ("sound", AUDITORY)):
        scenes = [getattr(block, senses) for block in blocks]
        levels = np.stack([np.concatenate([s.levels[name] for s in scenes]) for name in features])
        correlations = np.corrcoef(levels)[np.triu_indices(len(features), 1)]
        assert np.abs(correlations).max() < 4.5 / np.sqrt(levels.shape[1])


def test_scripts_depend_on_the_seed_and_on_no_other_run() -> None:
    first, again, other = (write_scripts([100.0] * n, seed=seed) for n, seed in ((2, 0), (3, 0), (2, 1)))
    assert _levels(first[1]) == _levels(again[1])
    assert _levels(first[1]) != _levels(other[1])
    assert _levels(first[0])[:2] != _levels(first[1])[:2]


def _levels(script: Script) -> list[dict[str, list[float]]]:
    return [
        {name: values.tolist() for name, values in (block.picture.levels | block.sound.levels).items()}
        for _, block in script.blocks
    ]


def test_balancing_moves_levels_between_scenes_of_a_block_only() -> None:
    drawn = [draw_block(61.0, 0, (1, part)) for part in (1, 3)]
    balanced = balance_blocks(drawn, np.random.default_rng(0))
    moved = set()
    for before, after in zip(drawn, balanced, strict=True):
        for old, new in ((before.picture, after.picture), (before.sound, after.sound)):
            assert np.array_equal(old.end_s, new.end_s)
            for name, levels in old.levels.items():
                assert sorted(levels) == sorted(new.levels[name])
                if not np.array_equal(levels, new.levels[name]):
                    moved.add(name)
    assert moved == set(DEALT)


def test_responses_of_the_senses_and_of_motion_correlate_less_than_by_chance() -> None:
    def mean_square(scripts: list[Script]) -> float:
        return float(np.mean([_correlations(script) ** 2 for script in scripts]))

    balanced = [script for seed in range(3) for script in write_scripts([180.0] * 2, seed=seed)]
    by_chance = [
        Script(
            180.0,
            plan_segments(180.0, 8.0, 25.0),
            ((8.0, draw_block(61.0, n, (1, 1))), (77.0, draw_block(62.0, n, (1, 3)))),
        )
        for n in range(6)
    ]
    assert mean_square(balanced) < mean_square(by_chance) / 3


def _correlations(script: Script) -> NDArray[np.float64]:
    """Between responses to sounds or speed and to what a still frame tells, in rows away from rest."""
    rows = np.r_[18:69, 87:139]

    def responses(courses: tuple[str, ...]) -> NDArray[np.float64]:
        return np.stack(
            [sample_response(feature_course(script, course), 5.0, 180, 1.0)[rows] for course in courses]
        )

    still, other = responses(STILL), responses(("speed", *AUDITORY))
    return np.corrcoef(still, other)[: len(still), len(still) :]


def test_hue_is_an_angle() -> None:
    scenes = Scenes(np.array([5.0, 10.0]), {"hue": np.array([0.0, 0.25])})
    assert scenes.strengths("hue_cos") == pytest.approx([np.sqrt(2), 0])
    assert scenes.strengths("hue_sin") == pytest.approx([0, np.sqrt(2)])


LEVELS = {"luminance": 0.5, "hue": 0.3, "size": 0.5, "direction": 0.1, "x": 0.2, "y": 0.7}


def test_disc_looks_the_same_at_every_speed_and_place() -> None:
    areas = []
    for speed, seconds in ((0.0, 0.0), (0.0, 3.0), (0.5, 1.3), (0.99, 0.7), (0.99, 4.9)):
        frame = draw_frame({**LEVELS, "speed": speed}, seconds)
        colours, counts = np.unique(frame.reshape(-1, 3), axis=0, return_counts=True)
        assert len(colours) == 2
        areas.append(counts[colours.sum(axis=1).argmin()])
    assert max(areas) / min(areas) < 1.02


def test_place_of_the_disc_tells_nothing_of_its_speed() -> None:
    rng = np.random.default_rng(0)
    levels = rng.random((4000, 4))
    speed = levels[:, 0]
    places = np.array(
        [
            disc_place(dict(zip(("speed", "direction", "x", "y"), row, strict=True)), seconds)
            for row, seconds in zip(levels.tolist(), rng.uniform(0, 8, 4000).tolist(), strict=True)
        ]
    )
    angles = 2 * np.pi * places / places.max(axis=0)
    for values in (*np.cos(angles).T, *np.sin(angles).T):
        assert abs(np.corrcoef(values, speed)[0, 1]) < 4.5 / np.sqrt(4000)
        assert abs(np.corrcoef(values**2, speed)[0, 1]) < 4.5 / np.sqrt(4000)


def test_disc_moves_as_fast_as_asked() -> None:
    slow, fast = (
        np.subtract(disc_place({**LEVELS, "speed": speed}, 0.25), disc_place({**LEVELS, "speed": speed}, 0.0))
        for speed in (0.2, 0.4)
    )
    assert np.hypot(*slow) == pytest.approx(12)
    assert fast == pytest.approx(2 * slow)


def test_luminance_changes_luma_and_hue_does_not() -> None:
    def luma(**levels: float) -> float:
        frame = draw_frame({**LEVELS, "speed": 0.0, "size": 0.0, **levels}, 0.0)
        return float(np.percentile(frame @ np.array([0.299, 0.587, 0.114]), 90))

    hues = [luma(hue=hue) for hue in (0.0, 0.2, 0.5, 0.8)]
    assert np.ptp(hues) < 1.5
    assert luma(luminance=0.9) - luma(luminance=0.1) > 80


def test_loudness_alone_sets_the_power_of_a_scene(scripts: tuple[Script, ...]) -> None:
    block = scripts[0].blocks[0][1]
    wave = synthesise_block(block)
    edges = np.round(np.append(block.sound.onset_s, block.duration_s) * SAMPLE_RATE).astype(int)
    power_db = [10 * np.log10(np.mean(wave[a:b].astype(float) ** 2)) for a, b in pairwise(edges)]
    asked = LOUDNESS_DB[0] + np.ptp(LOUDNESS_DB) * block.sound.levels["loudness"]
    assert power_db == pytest.approx(asked, abs=0.6)
    assert np.abs(wave).max() <= 1


def test_clip_is_the_same_in_runs_of_any_length() -> None:
    short, long = write_scripts([46.0, 53.0], rest_s=4.0, clip_s=10.0, seed=2)
    pictures, sounds = [], []
    for script in (short, long):
        start_s, end_s = script.showing_s
        frames = list(render_frames(script))[round(start_s * FPS) : round(end_s * FPS)]
        pictures.append(np.stack(frames).tobytes())
        sounds.append(
            render_sound(script)[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)].tobytes()
        )
    assert pictures[0] == pictures[1]
    assert sounds[0] == sounds[1]
    assert any(sounds[0])


def test_sound_of_another_block_differs() -> None:
    block = draw_block(10.0, 0, (1, 1))
    elsewhere = Block(10.0, block.picture, block.sound, block.seed, (2, 1))
    assert not np.array_equal(synthesise_block(block), synthesise_block(elsewhere))
    assert np.array_equal(next(render_block(block)), next(render_block(elsewhere)))

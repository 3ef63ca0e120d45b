from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from hpcenc.storage import hcp7t
from hpcenc.storage.errors import StudyError

HEADINGS = ("7T_MOVIE1_CC1_v2", "7T_MOVIE2_HO1_v2", "7T_MOVIE3_CC2_v2", "7T_MOVIE4_HO2_v2")


def timing_table(shift_s: float = 1 / 24) -> str:
    """A table in the official form whose clips all end later by a frame."""
    lines = []
    for number, (heading, run) in enumerate(zip(HEADINGS, hcp7t.runs(), strict=True), start=1):
        lines += [f"{heading},,,", "block,start,end,duration"]
        n_clips = 0
        for segment in run.segments:
            is_clip = segment.kind != "rest"
            n_clips += is_clip
            start = segment.start_s + (0 if is_clip or segment.start_s == 0 else shift_s)
            end = segment.end_s + (shift_s if is_clip else 0)
            lines.append(
                f"{f'{number}.{n_clips}' if is_clip else '0'},{start:.6f},{end:.6f},{end - start:.6f}"
            )
        lines.append(",,,")
    return "\r".join(lines)


def test_runs_have_the_published_lengths() -> None:
    assert [(run.name, run.n_trs) for run in hcp7t.runs()] == [
        ("MOVIE1", 921),
        ("MOVIE2", 918),
        ("MOVIE3", 915),
        ("MOVIE4", 901),
    ]


def test_segments_fill_each_run_without_gaps_and_rests_last_20_s() -> None:
    for run in hcp7t.runs():
        edges = [(segment.start_s, segment.end_s) for segment in run.segments]
        assert edges[0][0] == 0
        assert edges[-1][1] == run.n_trs * hcp7t.TR_S
        assert all(end == start for (_, end), (start, _) in pairwise(edges))
        assert [segment.kind for segment in run.segments[::2]] == ["rest"] * (len(edges) // 2 + 1)
        assert {end - start for start, end in edges[::2]} == {20}


def test_the_same_83_s_clip_ends_every_run() -> None:
    for run in hcp7t.runs():
        (repeat,) = (segment for segment in run.segments if segment.kind == "repeat")
        assert repeat.end_s - repeat.start_s == 83
        assert repeat.end_s == run.n_trs - 20
    assert sum(segment.kind == "clip" for run in hcp7t.runs() for segment in run.segments) == 14


def test_each_version_has_its_movie_files() -> None:
    assert hcp7t.runs()[2].movies() == {
        "v1": "Pre_20140821_version/7T_MOVIE3_CC2.mp4",
        "v2": "Post_20140821_version/7T_MOVIE3_CC2_v2.mp4",
    }


@pytest.mark.parametrize("ends", ["\r", "\n", "\r\n"])
def test_the_official_table_replaces_ours(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "timing.csv"
    path.write_bytes(timing_table().replace("\r", ends).encode("utf-8-sig"))
    for ours, official in zip(hcp7t.runs(), hcp7t.runs(path), strict=True):
        assert [segment.name for segment in official.segments] == [segment.name for segment in ours.segments]
        assert [segment.kind for segment in official.segments] == [segment.kind for segment in ours.segments]
        assert official.segments[1].end_s == pytest.approx(ours.segments[1].end_s + 1 / 24, abs=1e-5)
        assert official.segments[2].start_s == pytest.approx(ours.segments[2].start_s + 1 / 24, abs=1e-5)


def test_a_table_with_other_clips_still_ends_in_the_repeated_one(tmp_path: Path) -> None:
    path = tmp_path / "timing.csv"
    path.write_text(timing_table().replace("1.4,734", "0,734"), newline="")
    run = hcp7t.runs(path)[0]
    assert [segment.name for segment in run.segments if segment.kind != "rest"] == [
        "clip 1",
        "clip 2",
        "clip 3",
        "validation",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("7T_MOVIE2_HO1_v2", "7T_MOVIE9_HO1_v2", "line 17: expected block, start, end below a movie's name"),
        ("7T_MOVIE1_CC1_v2", "a heading", "line 3: expected block, start, end"),
        ("1.1,20.000000", "1.1,soon", "line 4: expected block, start, end .*soon"),
        ("1.1,20.000000", "1.1,900", "segment ends at 264.04"),
        (
            "4.4,798.000000",
            "4.4,780.000000",
            "expected the same clip at the end of each run, found lengths of 83",
        ),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "timing.csv"
    assert old in timing_table()
    path.write_text(timing_table().replace(old, new), newline="")
    with pytest.raises(StudyError, match=message):
        hcp7t.read_clip_timing(path)


def test_a_table_that_lacks_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "timing.csv"
    path.write_text(timing_table().split("7T_MOVIE4")[0], newline="")
    with pytest.raises(StudyError, match="found none of MOVIE4"):
        hcp7t.read_clip_timing(path)
    with pytest.raises(StudyError, match="cannot be read as HCP's clip timing"):
        hcp7t.read_clip_timing(tmp_path / "absent.csv")


def test_subjects_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "v1.txt"
    path.write_bytes(b"\xef\xbb\xbf100610\r\n\r\n 102311 \n")
    assert hcp7t.read_subjects(path) == ("100610", "102311")
    path.write_text("100610\n102311, 102816\n")
    with pytest.raises(StudyError, match="line 2: expected one subject id, found '102311, 102816'"):
        hcp7t.read_subjects(path)
    with pytest.raises(StudyError, match="cannot be read as a list of subjects"):
        hcp7t.read_subjects(tmp_path / "absent.txt")

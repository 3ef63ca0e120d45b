from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from hpcenc.storage.digests import FileDigests, digest, file_digest, mark_of


def test_a_digest_is_of_what_the_inputs_say_and_not_of_their_order() -> None:
    inputs = {"delays": (1, 2), "alphas": [0.1, 1.0], "name": "é", "none": None}
    assert digest(inputs) == digest({"name": "é", "none": None, "alphas": (0.1, 1.0), "delays": [1, 2]})
    assert digest(inputs) == digest({**inputs, "alphas": [np.float64(0.1), 1.0]})


def test_a_digest_stays_the_same_from_release_to_release() -> None:
    # Written down once: a change would recompute every store there is.
    text = '{"a":[1,2.5,"x"],"b":null}'
    assert digest({"b": None, "a": (1, 2.5, "x")}) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"b": 1}, {"a": 1, "b": None}, {"a": "1"}, {"a": [1]}, {"a": 1.5}, {}]
)
def test_other_inputs_have_another_digest(other: dict[str, object]) -> None:
    assert digest({"a": 1}) != digest(other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_equals_nothing_is_no_input(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"tr_s": value})


def test_a_path_is_no_input() -> None:
    with pytest.raises(TypeError):
        digest({"path": Path("movie.mp4")})


@pytest.mark.parametrize("digest_hex", ["0" * 64, "0" * 15 + "1" + "0" * 48, "f" * 64, digest({"a": 1})])
def test_a_mark_is_positive_in_int64(digest_hex: str) -> None:
    assert 0 < mark_of(digest_hex) <= np.iinfo(np.int64).max


def test_marks_of_other_digests_differ() -> None:
    marks = {mark_of(digest({"i": i})) for i in range(1000)}
    assert len(marks) == 1000


def test_a_file_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "movie.mp4").write_bytes(b"frames" * 100_000)
    expected = hashlib.sha256(b"frames" * 100_000).hexdigest()
    assert file_digest(tmp_path / "movie.mp4") == expected
    assert FileDigests(tmp_path / "memory.json")(tmp_path / "movie.mp4") == expected


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    movie, memory = tmp_path / "movie.mp4", tmp_path / "cache/memory.json"
    movie.write_bytes(b"one")
    stamp = movie.stat().st_mtime_ns
    digests = FileDigests(memory)
    first = digests(movie)
    digests.save()

    movie.write_bytes(b"two")
    os.utime(movie, ns=(stamp, stamp))  # the same size and time: taken for the same file, not read again
    assert FileDigests(memory)(movie) == first
    os.utime(movie, ns=(stamp, stamp + 1))
    assert FileDigests(memory)(movie) == hashlib.sha256(b"two").hexdigest()
    movie.write_bytes(b"three")
    os.utime(movie, ns=(stamp, stamp))
    assert FileDigests(memory)(movie) == hashlib.sha256(b"three").hexdigest()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"3", b"\xff"])
def test_a_lost_memory_costs_time_only(tmp_path: Path, content: bytes) -> None:
    movie, memory = tmp_path / "movie.mp4", tmp_path / "memory.json"
    movie.write_bytes(b"one")
    memory.write_bytes(content)
    digests = FileDigests(memory)
    assert digests(movie) == hashlib.sha256(b"one").hexdigest()
    digests.save()
    assert FileDigests(memory)(movie) == hashlib.sha256(b"one").hexdigest()


def test_a_file_that_cannot_be_read_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileDigests(tmp_path / "memory.json")(tmp_path / "absent.mp4")

"""Decode tasks: a movie into the stimulus cache, frames on the TR grid and mono audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpcenc.storage.groups import ArraySpec
from hpcenc.tasks.models.catalogue import SAMPLE_RATE, SHORT_SIDE
from hpcenc.tasks.records import Fact, Unit, UnitTask

if TYPE_CHECKING:
    from hpcenc.storage.store import Store

STIMULUS_VERSION = 1
"""Part of the digest of stimuli: raised by hand whenever decoded frames or audio change."""

CHUNK_TRS = 60
"""Rows of a movie chunk: what one task decodes or extracts, and one Zarr chunk."""


def n_chunks(n_trs: int) -> int:
    """Movie chunks of a run."""
    return -(-n_trs // CHUNK_TRS)


def chunk_rows(chunk: int, n_trs: int) -> slice:
    """Rows of one movie chunk."""
    return slice(chunk * CHUNK_TRS, min((chunk + 1) * CHUNK_TRS, n_trs))


def n_samples(n_trs: int, tr_s: float) -> int:
    """Audio samples of a run."""
    return round(n_trs * tr_s * SAMPLE_RATE)


def stimulus_arrays(n_trs: int, tr_s: float, height: int, width: int) -> dict[str, ArraySpec]:
    """Arrays of one run's stimulus group."""
    samples = n_samples(n_trs, tr_s)
    return {
        "frames": ArraySpec(
            (n_trs, height, width, 3), (CHUNK_TRS, height, width, 3), "uint8", ("tr", "row", "column", "rgb")
        ),
        "audio": ArraySpec(
            (samples,), (samples,), "float32", ("sample",), attributes={"sample_rate_hz": SAMPLE_RATE}
        ),
    }


def audio_unit(group: str, n_trs: int, digest: str) -> Unit:
    """The unit that decodes a run's audio; frames have the units before it."""
    return Unit(group, n_chunks(n_trs), digest)


@dataclass(frozen=True, kw_only=True)
class DecodeFrames(UnitTask):
    """Decode one movie chunk: for every row, the frame on screen at the row's middle."""

    verb = "decode"
    movie: Path
    n_trs: int
    tr_s: float

    def work(self, store: Store) -> Mapping[str, Fact]:
        """Decode and write."""
        from hpcenc.tasks.movies import read_frames, row_times

        rows = chunk_rows(self.unit.index, self.n_trs)
        decoded = read_frames(self.movie, row_times(self.n_trs, self.tr_s)[rows].tolist(), SHORT_SIDE)
        everything = slice(None)
        store.write(f"{self.unit.group}/frames", (rows, everything, everything, everything), decoded.frames)
        return {"rows_padded": decoded.n_padded}


@dataclass(frozen=True, kw_only=True)
class DecodeAudio(UnitTask):
    """Decode a movie's audio in one sequential pass, for decoding in chunks is not reproducible."""

    verb = "decode"
    movie: Path
    n_trs: int
    tr_s: float

    def work(self, store: Store) -> Mapping[str, Fact]:
        """Decode, check that it reaches the run's end but for one TR, and write."""
        from hpcenc.tasks.movies import check_sound, read_audio

        wave = read_audio(self.movie, SAMPLE_RATE)
        check_sound(self.movie, len(wave) / SAMPLE_RATE, self.n_trs, self.tr_s)
        wanted = n_samples(self.n_trs, self.tr_s)
        missing = max(0, wanted - len(wave))
        store.write(f"{self.unit.group}/audio", (slice(None),), np.pad(wave[:wanted], (0, missing)))
        return {"seconds_padded": missing / SAMPLE_RATE}

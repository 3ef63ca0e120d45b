"""Time feature extraction at full depth on 10 s of movie, untrained weights (their values cost nothing).

.venv/bin/python benchmarks/extraction.py MOVIE [--threads N] [--repeats N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from hpcenc.tasks.models.catalogue import MODELS, ModelSpec
from hpcenc.tasks.models.loading import load_extractor
from hpcenc.tasks.models.windows import MovieChunk, sample_span
from hpcenc.tasks.movies import read_audio, read_frames, row_times

N_ROWS = 10


def read_chunk(movie: Path, spec: ModelSpec) -> MovieChunk:
    start, stop = sample_span(0, N_ROWS, spec.tr_s, spec.window_s, spec.align)
    wave = read_audio(movie)[:stop]
    padded = np.pad(wave, (max(0, -start), max(0, stop - len(wave))))
    frames = read_frames(movie, row_times(N_ROWS, spec.tr_s).tolist()).frames
    return MovieChunk(0, N_ROWS, spec.tr_s, frames, padded, start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("movie", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.movie.name}, {N_ROWS} rows of 1 s, {options.threads} thread(s), untrained, full depth")
    for model in MODELS:
        spec = ModelSpec(model, weights="untrained")
        extractor, chunk = load_extractor(spec), read_chunk(options.movie, spec)
        seconds = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            extractor.extract(chunk)
            seconds.append(time.perf_counter() - start)
        each = ", ".join(f"{value:.1f}" for value in seconds)
        print(f"{model:7} median {statistics.median(seconds):5.1f} s for {N_ROWS} s of movie ({each})")


if __name__ == "__main__":
    main()

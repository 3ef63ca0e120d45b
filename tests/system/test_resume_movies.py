"""Runs of real movies, killed while they decode or extract, resume to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcenc.tasks.movie_writer import write_movie

Filled = tuple[dict[str, bytes], int]

MODELS = "clip,beats"
N_TRS = {"A": 62, "B": 8, "C": 6}  # A has two movie chunks
TR_S = 0.25  # so that BEATs, with a window as long, hears little and is fast

N_MOMENTS = 3
MOMENT_SEED = 3
WRITING = r"/study\.zarr/(stimulus|features)/.*/\d[^/]*partial"
"""Chunks and marks that decode and extract tasks are writing."""

NAMED_POINTS = {
    "frames are written, not marked": (r"/stimulus/main/a/done/0\.", "kill"),
    "half of a chunk of frames is written": (r"/stimulus/main/a/frames/1\..*partial", "half"),
    "audio is written, not marked": (r"/stimulus/main/b/done/1\.", "kill"),
    "some layers of a chunk are written": (r"/features/clip-.*/a/embedding/1\.", "kill"),
}
"""Where a run is killed: when it touches a path like this first, at once or in mid-file."""


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Study file of three movies, whose picture and loudness change with every TR, and of one subject."""
    folder, rng = tmp_path_factory.mktemp("movies"), np.random.default_rng(0)
    samples_per_tr = round(16_000 * TR_S)
    for run, n_trs in N_TRS.items():
        pictures = rng.integers(0, 255, (n_trs, 6, 8, 3), dtype=np.uint8)
        frames = np.kron(pictures, np.ones((1, 8, 8, 1), np.uint8))
        loudness = np.repeat(rng.uniform(0.01, 0.3, n_trs), samples_per_tr)
        wave = loudness * rng.standard_normal(len(loudness))
        write_movie(folder / f"{run}.mp4", frames, round(1 / TR_S), wave.astype(np.float32), 16_000)
        np.save(folder / f"s1_{run}.npy", rng.standard_normal((n_trs, 20), dtype=np.float32))
    runs = "".join(
        f'[[runs]]\nname = "{run}"\nn_trs = {n_trs}\nmovie = "{run}.mp4"\n' for run, n_trs in N_TRS.items()
    )
    path = folder / "study.toml"
    path.write_text(
        f'name = "movies"\ntr_s = {TR_S}\nsubjects = {{ ids = ["s1"] }}\n'
        + runs
        + '[bold]\npath = "{subject}_{run}.npy"\n'
        + f'[models]\nweights = "untrained"\nn_layers = 2\naudio_window_s = {TR_S}\n'
        + '[fit]\ndelays = [1, 2]\nn_alphas = 5\nweights = "dual"\nbackend = "numpy"\n'
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(movies: Path, fill_undisturbed: Callable[..., Filled]) -> Filled:
    """The store of the movies, filled in one go."""
    return fill_undisturbed(movies, WRITING, MODELS)


@pytest.mark.parametrize("point", NAMED_POINTS)
def test_a_run_killed_at_a_named_point_resumes_to_the_same_bytes(
    point: str, movies: Path, undisturbed: Filled, check_resumes: Callable[..., None]
) -> None:
    pattern, how = NAMED_POINTS[point]
    check_resumes(movies, "killed", undisturbed[0], MODELS, pattern=pattern, nth=1, how=how)


def test_a_run_killed_at_seeded_moments_resumes_to_the_same_bytes(
    movies: Path, undisturbed: Filled, check_resumes: Callable[..., None]
) -> None:
    wanted, n_touches = undisturbed
    edges = np.linspace(0, n_touches, N_MOMENTS + 1).astype(int)  # the first third is of decoding
    moments = np.random.default_rng(MOMENT_SEED).integers(edges[:-1], edges[1:])
    for moment in moments.tolist():
        check_resumes(movies, f"moment-{moment}", wanted, MODELS, pattern=WRITING, nth=moment + 1, how="kill")


@pytest.mark.slow
def test_a_run_killed_at_any_of_many_moments_resumes_to_the_same_bytes(
    movies: Path, undisturbed: Filled, check_resumes: Callable[..., None]
) -> None:
    wanted, n_touches = undisturbed
    for moment in range(0, n_touches, max(1, n_touches // 30)):
        check_resumes(movies, f"moment-{moment}", wanted, MODELS, pattern=WRITING, nth=moment + 1, how="kill")

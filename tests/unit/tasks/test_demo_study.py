"""The demo study as files."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcenc.storage.bold import find_bold, read_axes, read_header
from hpcenc.storage.digests import file_digest
from hpcenc.storage.geometry import grayordinates_axis
from hpcenc.storage.study import Study, load_study
from hpcenc.tasks.demo.bold import REGIONS
from hpcenc.tasks.demo.planted import plan_demo, simulate_bold
from hpcenc.tasks.demo.scenes import Script
from hpcenc.tasks.demo.script import write_scripts
from hpcenc.tasks.demo.settings import DemoSettings
from hpcenc.tasks.demo.study import study_text, write_demo
from hpcenc.tasks.movies import read_audio, read_frames

SETTINGS = DemoSettings(n_runs=2, n_trs=(24, 26), tr_s=2.0, n_subjects=2, seed=5, rest_s=4.0, clip_s=10.0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"), SETTINGS).parent


@pytest.fixture(scope="module")
def study(demo: Path) -> Study:
    return load_study(demo / "study.toml")


@pytest.fixture(scope="module")
def scripts() -> tuple[Script, ...]:
    return plan_demo(SETTINGS).scripts


def test_study_file_says_what_was_asked(study: Study, scripts: tuple[Script, ...]) -> None:
    assert study.tr_s == 2
    assert study.subjects.ids == ("demo01", "demo02")
    assert [(run.name, run.n_trs) for run in study.runs] == [("MOVIE1", 24), ("MOVIE2", 26)]
    assert [run.segments for run in study.runs] == [script.segments for script in scripts]
    assert "SIMULATED" in study.note
    assert "untrained" in study.note
    assert (study.models.weights, study.models.n_layers, study.models.audio_window_s) == ("untrained", 4, 4)
    assert study.fit.outer == "rotate"
    assert study.fit.weights_of("clip[untrained, seed 0]", "demo01") == "primal"
    assert study.fit.weights_of("clip[untrained, seed 0]", "demo02") == "dual"


def test_bold_lies_in_hcp_layout_with_the_real_axis(demo: Path, study: Study) -> None:
    digest = grayordinates_axis().digest()
    for subject in study.subjects.ids:
        for run, encoding in zip(study.runs, ("AP", "PA"), strict=True):
            path = find_bold(study.bold.path, demo, subject, run.name)
            scan = f"tfMRI_{run.name}_7T_{encoding}"
            assert path.relative_to(demo).parts[:4] == (subject, "MNINonLinear", "Results", scan)
            assert path.name == f"{scan}_Atlas_MSMAll_hp2000_clean.dtseries.nii"
            assert read_header(path).n_trs == run.n_trs
    axis, tr_s = read_axes(path)
    assert tr_s == 2
    assert axis.digest() == digest


def test_movie_is_dark_and_silent_in_rest_and_nowhere_else(
    demo: Path, study: Study, scripts: tuple[Script, ...]
) -> None:
    for run, script in zip(study.runs, scripts, strict=True):
        assert isinstance(run.movie, str)
        wave = read_audio(demo / run.movie)
        assert len(wave) == pytest.approx(script.duration_s * 16_000, abs=2048)
        for segment in script.segments:
            # Two frames in at each end: where a segment begins and ends is a frame's business.
            times = np.linspace(segment.start_s + 0.02, segment.end_s - 0.02, 5).tolist()
            brightness = read_frames(demo / run.movie, times).frames.mean(axis=(1, 2, 3))
            heard = wave[round((segment.start_s + 0.2) * 16_000) : round((segment.end_s - 0.2) * 16_000)]
            assert np.all(brightness < 5) == (segment.kind == "rest")
            assert np.all(brightness > 30) == (segment.kind != "rest")
            assert (np.sqrt(np.mean(heard**2)) < 1e-4) == (segment.kind == "rest")


def test_clip_looks_the_same_in_every_run(demo: Path, study: Study, scripts: tuple[Script, ...]) -> None:
    pictures = []
    for run, script in zip(study.runs, scripts, strict=True):
        start_s, end_s = script.showing_s
        times = np.arange(start_s + 0.5, end_s).tolist()
        pictures.append(read_frames(demo / str(run.movie), times).frames.astype(float))
    # The encoder's state differs, the pictures do not.
    assert np.abs(pictures[0] - pictures[1]).mean() < 2
    assert np.abs(pictures[0][0] - pictures[0][-1]).mean() > 5


def test_planted_files_say_what_is_in_the_bold(demo: Path, study: Study) -> None:
    with np.load(demo / "planted.npz") as planted:
        regions, names = planted["region"], planted["region_names"].tolist()
        signal = planted["mix_demo02_visual"] @ planted["response_MOVIE1_visual"]
        fine = dict(zip(planted["courses"].tolist(), planted["fine_MOVIE2"], strict=True))
        assert planted["hrf_visual"].argmax() / planted["fine_hz"] == pytest.approx(5.0, abs=0.1)
    assert names == [region.name for region in REGIONS]
    assert fine["luminance"].shape == (26 * 2 * 20,)
    bold = simulate_bold(plan_demo(SETTINGS), "demo02", "MOVIE1", len(regions))
    visual = bold[regions == names.index("visual")]
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(visual, signal, strict=True)]
    assert np.mean(r) == pytest.approx(np.sqrt(0.5), abs=0.05)
    facts = json.loads((demo / "planted.json").read_text())
    assert facts["note"] == study.note
    assert [region["n_vertices"] for region in facts["regions"]] == [
        int((regions == index).sum()) for index in range(len(REGIONS))
    ]


def test_movies_and_bold_are_the_same_bytes_again_whoever_else_is_scanned(demo: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, replace(SETTINGS, n_subjects=1))
    written = [
        path.relative_to(tmp_path) for pattern in ("*.mp4", "*.nii") for path in tmp_path.rglob(pattern)
    ]
    assert len(written) == 2 + 2
    for path in written:
        assert file_digest(demo / path) == file_digest(tmp_path / path), path


def test_an_interrupt_ends_every_movie_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = plan_demo(SETTINGS).scripts

    def frames(script: Script) -> Iterator[NDArray[np.uint8]]:
        if script.segments == first.segments:
            raise KeyboardInterrupt
        yield from repeat(np.zeros((64, 64, 3), np.uint8), 10_000)

    monkeypatch.setattr("hpcenc.tasks.demo.study.render_frames", frames)
    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path, SETTINGS)
    assert list((tmp_path / "movies").iterdir()) == []


def test_subjects_runs_and_seeds_have_noise_of_their_own() -> None:
    planted, other = (plan_demo(DemoSettings(n_runs=2, n_trs=80, n_subjects=2, seed=seed)) for seed in (0, 1))
    places = [(planted, "demo01", "MOVIE1"), (planted, "demo02", "MOVIE1"), (planted, "demo01", "MOVIE2")]
    places.append((other, "demo01", "MOVIE1"))
    bold = [simulate_bold(of, subject, run, 60_000)[-100:].ravel() for of, subject, run in places]
    correlations = np.corrcoef(bold)[np.triu_indices(len(bold), 1)]
    assert np.abs(correlations).max() < 0.06


def test_a_whole_hcp_study_can_be_asked_for() -> None:
    settings = DemoSettings(n_trs=(921, 918, 915, 901), n_subjects=176)
    assert sum(settings.runs.values()) == 3655
    assert settings.subjects[0] == "demo001"
    assert settings.subjects[-1] == "demo176"
    (script,) = write_scripts([921.0])
    assert '"demo176"' in study_text(settings, (script,) * 4)


def test_sizes_that_make_no_study_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 runs"):
        DemoSettings(n_runs=1)
    with pytest.raises(ValueError, match="at least 2 runs and 1 subject"):
        DemoSettings(n_subjects=0)
    with pytest.raises(ValueError, match="one for each run"):
        DemoSettings(n_runs=3, n_trs=(100, 100))

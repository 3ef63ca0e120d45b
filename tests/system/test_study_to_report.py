"""From a study to its report: feature files in seconds, and movies through all four feature sets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from nibabel.cifti2 import BrainModelAxis

from hpcenc.storage import open_study
from hpcenc.storage.dtseries import write_dtseries
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.storage.weights import read_weights
from hpcenc.tasks.movie_writer import write_movie

Hpcenc = Callable[..., Result]
N_TRS = {"A": 32, "B": 30, "C": 28}
SETS = ("beats", "clip", "cavmae", "beats+clip")


def test_feature_files_become_a_report(hpcenc: Hpcenc, study_file: Path) -> None:
    result = hpcenc("submit", "--profile", "serial", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["exit_status"] == 0
    assert found["units_done"] == 3 + 1 + 4
    assert found["set_aside"] == []
    page = Path(found["report"]).read_text()
    assert "mylab" in page
    assert "of the tests" in page, "the study's note"
    assert "http://" not in page.replace("http://www.w3.org", ""), "the page is complete by itself"
    assert list(Path(found["figures"]).glob("*.png"))
    tables = list(Path(found["report"]).parent.rglob("*.csv"))
    assert tables
    rows = [row for table in tables for row in csv.reader(table.open())]
    assert any("mylab" in cell for row in rows for cell in row)

    fits = open_study(found["store"])["fits"]
    r = fits["mylab/s1"].r
    assert r.dims == ("fold", "variant", "voxel")
    assert r.fold.values.tolist() == ["C"]
    assert r.variant.values.tolist() == ["mylab/values"]
    assert float(np.nanmedian(r)) > 0.5, "features explain half of the variance"
    weights = read_weights(Store(Path(found["store"])), "mylab", "s1", slice(0, 500))["mylab/values"]
    power = (weights**2).sum(axis=(1, 2))
    assert power.argmax() == 1, "the response was planted two TRs after the features"

    assert ": done\n" in hpcenc("status").stdout
    events = Path(found["run"], "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["event"] == "end"


def test_the_same_command_again_computes_nothing_and_writes_the_report_again(
    hpcenc: Hpcenc, study_file: Path
) -> None:
    first = json.loads(hpcenc("submit", "--profile", "serial", "--json").stdout)
    run = Path(first["run"]) / "run.json"
    facts = json.loads(run.read_text())
    run.write_text(json.dumps(facts | {"versions": facts["versions"] | {"numpy": "1.2.3"}}))
    Path(first["report"]).unlink()
    second = hpcenc("submit", "--profile", "serial")
    assert second.exit_code == 0
    assert second.stderr.splitlines() == ["report: 1 units"]
    assert f"report   {first['report']}" in second.stdout
    assert Path(first["report"]).is_file()
    assert ", numpy 1.2.3, " in Path(first["report"]).read_text(), "what the fits were made with"
    Path(first["report"]).unlink()
    assert hpcenc("report").exit_code == 0
    assert ", numpy 1.2.3, " in Path(first["report"]).read_text()


def test_a_report_of_results_that_may_only_be_read_is_written_elsewhere(
    hpcenc: Hpcenc, study_file: Path
) -> None:
    first = json.loads(hpcenc("submit", "--profile", "serial", "--json").stdout)
    results = study_file.parent / "results"
    paths = [results, *results.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in paths}
    elsewhere = study_file.parent / "elsewhere"
    result = hpcenc("report", "--output", str(elsewhere))
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"report   {elsewhere / 'report.html'}\n"
    for table in (Path(first["report"]).parent / "tables").iterdir():
        assert (elsewhere / "tables" / table.name).read_bytes() == table.read_bytes()
    # Root may write everywhere, so that times are what tells.
    assert {path: path.stat().st_mtime_ns for path in [results, *results.rglob("*")]} == before


@pytest.fixture
def movie_study(study_file: Path) -> Path:
    """Three movies of noise that changes every second, and BOLD of one subject on part of a cortex."""
    folder, rng = study_file.parent, np.random.default_rng(0)
    left = BrainModelAxis.from_surface(np.arange(40), 32_492, name="CortexLeft")
    right = BrainModelAxis.from_surface(np.arange(40), 32_492, name="CortexRight")
    axis = VoxelAxis.from_cifti(left + right)
    for run, n_trs in N_TRS.items():
        loudness = rng.uniform(0.01, 0.3, n_trs)
        pictures = rng.integers(0, 255, (n_trs, 6, 8, 3), dtype=np.uint8)
        frames = np.kron(pictures, np.ones((1, 8, 8, 1), np.uint8))
        wave = np.repeat(loudness, 16_000) * rng.standard_normal(n_trs * 16_000)
        write_movie(folder / f"{run}.mp4", frames, 1, wave.astype(np.float32), 16_000)
        bold = rng.standard_normal((n_trs, 80), dtype=np.float32)
        bold[:, :40] += 5 * np.roll(loudness, 1)[:, None].astype(np.float32)
        write_dtseries(folder / "bold" / "s1" / f"{run}.dtseries.nii", bold, axis, 1.0)
    runs = "".join(
        f'[[runs]]\nname = "{run}"\nn_trs = {n_trs}\nmovie = "{run}.mp4"\n' for run, n_trs in N_TRS.items()
    )
    study_file.write_text(
        'name = "movies"\ntr_s = 1.0\nsubjects = { ids = ["s1"] }\n'
        + runs
        + '[bold]\npath = "bold/{subject}/{run}.dtseries.nii"\n'
        + '[models]\nweights = "untrained"\nn_layers = 2\naudio_window_s = 1.0\n'
        + '[fit]\ndelays = [1, 2]\nn_alphas = 5\nweights = "dual"\nbackend = "numpy"\n'
    )
    return study_file


def test_movies_become_fits_of_all_four_feature_sets(movie_study: Path, hpcenc: Hpcenc) -> None:
    result = hpcenc("submit", "--models", "all", "--profile", "serial", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    page = Path(found["report"]).read_text()
    for name in SETS:
        assert f"{name}[untrained, seed 0]" in page
    assert list(Path(found["report"]).parent.rglob("*.dscalar.nii"))
    fits = open_study(found["store"])["fits"]
    r = {name: fits[f"{slug}-untrained-seed-0/s1"].r[0, 0].values for name, slug in zip(
        SETS, ("beats", "clip", "cavmae", "beats-and-clip"), strict=True)}  # fmt: skip
    assert all(values.shape == (80,) and np.isfinite(values).all() for values in r.values())
    assert np.median(r["beats"][:40]) > 0.2, "what is heard predicts what follows loudness"
    assert abs(np.median(r["clip"][:40])) < 0.2
    assert abs(np.median(r["beats"][40:])) < 0.2

    again = hpcenc("submit", "--models", "all", "--layers", "all", "--dry-run", "--json")
    stages = json.loads(again.stdout)["stages"]
    assert stages["extract"]["to_do"] == 0
    assert stages["fit"]["to_do"] == 4

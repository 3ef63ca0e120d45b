"""What a wheel holds, and what commands import."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("cluster", "tasks", "storage", "cli", "slurm")
MAIN = "from hpcenc.cli.app import main; main()"

STUDY = """\
name = "x"
tr_s = 1.0
runs = [{ name = "A", n_trs = 40 }, { name = "B", n_trs = 40 }, { name = "C", n_trs = 40 }]
subjects = { ids = ["s1"] }
bold = { path = "{subject}_{run}.npy" }
feature_files = { mylab = { path = "mylab_{run}.npy" } }
"""


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: which files are tracked cannot be told")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of the tracked files alone."""
    pytest.importorskip("setuptools", minversion="77")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for path in tracked_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(built)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_a_wheel_holds_the_five_folders_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    wanted = {
        f"hpcenc/{path}"
        for path in tracked_files()
        if path.parts[0] in FOLDERS and (path.suffix in (".py", ".j2") or path.name == "py.typed")
    }
    assert names == wanted
    assert {f"hpcenc/{folder}/py.typed" for folder in FOLDERS} <= names
    assert any(name.startswith("hpcenc/tasks/report/") and name.endswith(".html.j2") for name in names)


def test_a_wheel_brings_the_command_and_the_license(wheel: zipfile.ZipFile) -> None:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "hpcenc = hpcenc.cli.app:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def loaded_by(code: str, folder: Path) -> set[str]:
    """Packages that a fresh process has imported after some code."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_line_loads_no_heavy_package(tmp_path: Path) -> None:
    loaded = loaded_by("import hpcenc.cli.app", tmp_path)
    assert not loaded & {"torch", "zarr", "dask", "distributed", "numpy", "pydantic", "nibabel", "matplotlib"}


def test_planning_is_fit_for_a_login_node(tmp_path: Path) -> None:
    for run in "ABC":
        np.save(tmp_path / f"mylab_{run}.npy", np.ones((40, 3), np.float32))
        np.save(tmp_path / f"s1_{run}.npy", np.ones((40, 20), np.float32))
    (tmp_path / "study.toml").write_text(STUDY)
    code = (
        "import re; from pathlib import Path\n"
        "from hpcenc.cluster.submit import prepare, price\n"
        "assert price(prepare(Path('study.toml')))['stages']['fit']['to_do'] == 1\n"
        # Unlike `resource`, this does not count the process that started it.
        "peak_kb = int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "assert peak_kb < 200_000, f'{peak_kb} kB'\n"
    )
    loaded = loaded_by(code, tmp_path)
    assert not loaded & {"torch", "zarr", "dask", "distributed", "matplotlib", "av"}


def test_help_is_instant(tmp_path: Path) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", MAIN, "--help"], cwd=tmp_path, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    # 0.25 s on an idle machine; the suite may share its cores with others.
    assert statistics.median(seconds) < 1.5


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_importable_under_the_bare_names(folder: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"No module named '{folder}'" in done.stderr

"""The interactive view, as text and in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from hpcenc.storage.geometry import surface
from hpcenc.storage.voxels import CORTEX_LEFT
from hpcenc.tasks.report.data import ReportData
from hpcenc.tasks.report.page import write_report
from hpcenc.tasks.report.surface_view import SurfaceMap, surface_page

HOSTILE = '</script><b onload="x">'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def values(cortex):
    values = np.linspace(-0.2, 0.8, cortex.n_voxels)
    values[7] = np.nan
    return values


@pytest.fixture(scope="module")
def page(cortex, values):
    maps = [SurfaceMap(HOSTILE, values, (0.0, 0.6), "r"), SurfaceMap("second", -values, (-0.5, 0.5), "less")]
    return surface_page("hpcenc maps", maps, cortex, "SIMULATED")


def constant(page, name):
    return json.loads(re.search(rf"^const {name} = (.*);$", page, re.MULTILINE)[1])


def test_every_vertex_has_its_value_and_its_place(page, cortex, values):
    (left, right), (first, second) = constant(page, "surfaces"), constant(page, "maps")
    points = np.frombuffer(base64.b64decode(left["points"]), "<f4").reshape(-1, 3)
    faces = np.frombuffer(base64.b64decode(right["faces"]), "<u2").reshape(-1, 3)
    expected, _ = surface("left", "inflated")
    np.testing.assert_allclose(points - points[0], expected - expected[0], atol=1e-3)
    np.testing.assert_array_equal(faces, surface("right", "inflated")[1])
    assert points[:, 0].max() < 0
    whole = np.frombuffer(base64.b64decode(first["values"][0]), "<f4")
    np.testing.assert_array_equal(whole, cortex.surface(values, CORTEX_LEFT).astype(np.float32))
    assert (first["low"], first["high"], second["unit"]) == (0.0, 0.6, "less")


def test_the_page_needs_nothing_from_outside_and_obeys_no_name(page):
    assert "<script src" not in page
    assert "<link" not in page
    assert HOSTILE not in page
    assert page.count("</script>") == 2
    assert "SIMULATED" in page


def test_a_report_on_the_cortex_has_a_view_and_leads_to_it(cortex, make_fit, tmp_path):
    r = np.full((2, cortex.n_voxels), 0.2)
    files = write_report(ReportData("x", (make_fit(cortex.n_voxels, r=r),), cortex), tmp_path)
    assert 'href="surface.html"' in files.html.read_text()
    assert "clip[untrained, seed 0] · S1" in (tmp_path / "surface.html").read_text()


def console_of(path, tmp_path):
    """What a browser says of a page, and its document after the scripts have run."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader"),
        *("--enable-unsafe-swiftshader", "--virtual-time-budget=20000", "--enable-logging=stderr", "--v=0"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return re.findall(r"CONSOLE[^\"]*\"(.*)\", source", run.stderr), run.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_view_without_a_complaint(page, tmp_path):
    path = tmp_path / "surface.html"
    path.write_text(page)
    said, document = console_of(path, tmp_path)
    assert [line for line in said if "willReadFrequently" not in line] == []  # advice to plotly on its speed
    assert 'data-ready="yes"' in document


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_report_without_a_complaint(cortex, make_fit, tmp_path):
    r = np.full((2, cortex.n_voxels), 0.2)
    files = write_report(ReportData("x", (make_fit(cortex.n_voxels, r=r),), cortex), tmp_path)
    said, document = console_of(files.html, tmp_path)
    assert said == []
    assert "<button" in document  # heads of tables sort by a click

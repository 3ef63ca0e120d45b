"""The interactive view, as text and in a browser."""

from __future__ import annotations

import base64
import html
import json
import re
import subprocess

import numpy as np
import pytest
from browser import CHROMIUM

from hpcenc.storage.geometry import surface
from hpcenc.storage.voxels import CORTEX_LEFT
from hpcenc.tasks.report.data import ReportData
from hpcenc.tasks.report.page import write_report
from hpcenc.tasks.report.surface_map import face_values, touches_wall
from hpcenc.tasks.report.surface_view import SurfaceMap, surface_page

HOSTILE = '</script><b onload="x">'


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


@pytest.fixture(scope="module")
def layers(cortex):
    """Two layers that are far apart, in half of the vertices."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(cortex.n_voxels) < 0.5, rng.choice([1.0, 4.0], cortex.n_voxels), np.nan)


def test_a_map_says_whether_its_values_are_categories(cortex, values, layers):
    maps = [
        SurfaceMap("r", values, (0.0, 0.6), "r"),
        SurfaceMap("layers", layers, (1.0, 4.0), "best layer"),
        SurfaceMap("ratios", np.log10(layers), (0.0, 0.6), "log10 of the best ratio"),
    ]
    told = constant(surface_page("x", maps, cortex), "maps")
    assert [each["categories"] for each in told] == [False, True, True]
    assert [each["whole"] for each in told] == [False, True, False]


def test_faces_on_the_medial_wall_are_known_to_the_view(page):
    for hemisphere, told in zip(("left", "right"), constant(page, "surfaces"), strict=True):
        wall = np.frombuffer(base64.b64decode(told["wall"]), "<u2")
        _, faces = surface(hemisphere, "inflated")
        np.testing.assert_array_equal(wall, np.flatnonzero(touches_wall(hemisphere, faces)))


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
@pytest.mark.parametrize(("categories", "whole_faces"), [(True, True), (False, True), (False, False)])
def test_a_browser_colors_faces_as_the_figures_do(cortex, layers, categories, whole_faces, tmp_path):
    noise = np.random.default_rng(1).normal(2.5, 2.0, cortex.n_voxels)
    values = layers if categories else np.where(np.isnan(layers), np.nan, noise)
    if not whole_faces:  # few vertices have a value, as in maps of the best ones
        values = np.where(noise > 5, values, np.nan)
    map_of = SurfaceMap("x", values, (1.0, 4.0), "x", whole_faces=whole_faces)
    page = surface_page("x", [map_of], cortex)
    told = """<script>
    const ready = setInterval(() => {
      if (!document.body.dataset.ready) return;
      clearInterval(ready);
      const view = document.getElementById("view");
      view.emit("plotly_hover", { points: [{ curveNumber: 0, pointNumber: 5 }] });
      const { intensitymode, colorbar: { dtick } } = view.data[0];
      document.body.dataset.seen = JSON.stringify(
        { ...current, map: 0, values: 0, shown: [...current.shown[0]], intensitymode, dtick });
    }, 100);
    </script></body>"""
    path = tmp_path / "surface.html"
    path.write_text(page.replace("</body>", told))
    _, document = console_of(path, tmp_path)
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', document)[1]))
    _, faces = surface("left", "inflated")
    expected = face_values(
        cortex.surface(values, CORTEX_LEFT),
        faces,
        touches_wall("left", faces),
        categories=categories,
        whole_faces=whole_faces,
    )
    undefined = np.isnan(expected)
    assert 0.3 < undefined.mean() < (0.7 if whole_faces else 0.95)
    shown = np.array(seen["shown"])
    np.testing.assert_allclose(shown[undefined], seen["bottom"], atol=1e-6)
    np.testing.assert_allclose(shown[~undefined], np.clip(expected[~undefined], 1, 4), atol=1e-6)
    # The lowest value keeps clear of the grey, by several of the 256 colours that a scale is drawn with.
    grey = re.search(r"greyShare = ([0-9.]+)", page)[1]
    assert (1 - seen["bottom"]) / (seen["top"] - seen["bottom"]) > float(grey) + 3 / 256
    assert seen["intensitymode"] == "cell"
    assert seen.get("dtick") == (1 if categories else None)
    whole = cortex.surface(values, CORTEX_LEFT)[faces[5]]
    numbers = ["undefined" if np.isnan(value) else f"{value:.{0 if categories else 3}f}" for value in whole]
    where = ", ".join(map(str, faces[5]))
    assert f"left cortex, vertices {where}: {', '.join(numbers)} (x)" in document


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_report_without_a_complaint(cortex, make_fit, tmp_path):
    r = np.full((2, cortex.n_voxels), 0.2)
    files = write_report(ReportData("x", (make_fit(cortex.n_voxels, r=r),), cortex), tmp_path)
    said, document = console_of(files.html, tmp_path)
    assert said == []
    assert "<button" in document  # heads of tables sort by a click

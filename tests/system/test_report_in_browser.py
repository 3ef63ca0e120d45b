"""A whole report, made by the commands and read in a browser as its user would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from heard_study import MODELS, write_heard_study
from typer.testing import CliRunner

from hpcenc.cli.app import app

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

SECTIONS = [
    *("Models", "Accuracy", "Cortical maps", "Time courses", "Alphas", "Feature sets compared", "Regions"),
    *("Delays", "Layers", "One penalty or two", "Noise ceilings", "AudioSet tags", "Methods"),
    *("What was run", "Files", "Acknowledgements"),
]
UNDEFINED = ("", "–")
WIDTHS = (375, 800, 1280)
"""Of a telephone, of half a screen, of a window, in pixels."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a report with every section that there is."""
    study = write_heard_study(tmp_path_factory.mktemp("heard"))
    command = ["submit", str(study), "--models", MODELS, "--profile", "serial"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return study.parent / "results" / "study.report"


@pytest.fixture(scope="module")
def browser(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, report: Path) -> Browser:
    """The report's page."""
    if browser.evaluate("location.pathname") != str(report / "report.html"):
        browser.open(report / "report.html")
    return browser


def check_that_it_is_complete(browser: Browser, report: Path) -> None:
    """Nothing went wrong on the page that is open, and it asked for nothing but itself and what it holds."""
    assert browser.complaints == []
    asked = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert all(url.startswith(report.as_uri() + "/") for url in asked), asked


def test_the_page_opens_without_a_complaint_and_asks_for_nothing_else(page: Browser, report: Path) -> None:
    check_that_it_is_complete(page, report)
    assert page.evaluate("document.title") == "hpcenc report: heard"
    assert page.evaluate("[...document.querySelectorAll('h2')].map(each => each.innerText)") == [
        page.evaluate("document.getElementById('warnings').innerText"),
        *SECTIONS,
    ]


def test_every_link_of_the_contents_leads_to_the_heading_of_its_name(page: Browser) -> None:
    links = "document.querySelectorAll('nav a')"
    assert page.evaluate(f"[...{links}].map(each => each.innerText)") == SECTIONS
    for place, name in enumerate(SECTIONS):
        page.click(f"{links}[{place}]")
        tag, text, top = page.evaluate(
            """(() => {
              const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
              return [target.tagName, target.innerText, target.getBoundingClientRect().top];
            })()"""
        )
        assert (tag, text) == ("H2", name)
        assert -1 <= top < 900, f"{name} is not in the window"


def test_every_figure_is_loaded_and_said_in_words(page: Browser) -> None:
    images = page.evaluate(
        "[...document.images].map(each => [each.alt, each.complete, each.naturalWidth, each.width])"
    )
    assert len(images) > 20
    for words, complete, natural_width, width in images:
        assert complete, words
        assert natural_width >= width > 200, words
        assert len(words.split()) >= 4, words


def test_every_figure_has_its_two_files_and_every_table_its_own_beside_it(
    page: Browser, report: Path
) -> None:
    for what, kinds in (("figure", ["PNG", "SVG"]), ("caption", ["CSV"])):
        for links in page.evaluate(
            f"""[...document.querySelectorAll("{what}")].map(each => [...each.querySelectorAll("a")].map(
              link => [link.innerText, link.getAttribute("href")]))"""
        ):
            assert [name for name, _ in links] == kinds
            for name, path in links:
                assert path.endswith(f".{name.lower()}")
                assert (report / path).stat().st_size > 0


def test_every_file_of_the_report_can_be_opened_from_its_page(page: Browser, report: Path) -> None:
    targets = page.evaluate(
        "[...document.querySelectorAll('[href], [src]')].map(each => each.href || each.src)"
    )
    outside = [
        each for each in targets if not each.startswith((report.as_uri() + "/", "data:image/png;base64,"))
    ]
    assert outside == []
    linked = {each.partition("#")[0] for each in targets if each.startswith("file:")}
    assert linked == {path.as_uri() for path in report.rglob("*") if path.is_file()}


def cells(page: Browser, table: int) -> list[list[str]]:
    """What a table shows, row by row, first lines only."""
    rows: list[list[str]] = page.evaluate(
        f"""[...document.querySelectorAll("table")[{table}].tBodies[0].rows].map(
          row => [...row.cells].map(cell => cell.innerText.split("\\n")[0].trim()))"""
    )
    return rows


def natural_order(text: str) -> list[tuple[int, Any]]:
    """Key of texts by their letters, with numbers in them by value; signs as a dictionary has them."""
    parts = re.findall(r"\d+|.", text.casefold())
    return [
        (1, int(part)) if part.isdigit() else (2, part) if part.isalpha() else (0, " _-,:.[]/+".index(part))
        for part in parts
    ]


def number(text: str) -> float:
    """Value of what a cell shows: the last of two numbers, as of a dimension with delays."""
    return float(text.rpartition("/")[2].strip(" %").replace(",", "").replace("−", "-"))


def test_a_click_on_a_head_sorts_the_rows_and_another_turns_them_round(page: Browser) -> None:
    tables: list[list[bool]] = page.evaluate(
        """[...document.querySelectorAll("table")].map(
          table => [...table.tHead.rows[0].cells].map(head => head.classList.contains("number")))"""
    )
    found = set()
    for table, heads in enumerate(tables):
        rows = sorted(cells(page, table))
        for column, is_number in enumerate(heads):
            head = f"document.querySelectorAll('table')[{table}].tHead.rows[0].cells[{column}]"
            for downwards in (is_number, not is_number):  # of numbers the largest is looked for
                page.click(f"{head}.querySelector('button')")
                shown = cells(page, table)
                assert sorted(shown) == rows, "rows stay whole"
                texts = [row[column] for row in shown]
                defined = [text for text in texts if text not in UNDEFINED]
                where = f"table {table}, column {column}: {texts}"
                assert texts[: len(defined)] == defined, f"undefined ones are last in {where}"
                keys: list[Any] = [number(text) if is_number else natural_order(text) for text in defined]
                assert keys == sorted(keys, reverse=downwards), where
                assert page.evaluate(f"{head}.ariaSort") == ("descending" if downwards else "ascending")
                if len(set(defined)) > 1:
                    found.add((is_number, len(defined) < len(texts)))
    assert found == {(True, True), (True, False), (False, True), (False, False)}, "each kind was there"
    assert page.complaints == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_as_wide_as_the_window_and_wide_tables_scroll(page: Browser, width: int) -> None:
    page.resize(width)
    inside, outside = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert inside <= outside
    # What a table is of, and its file, are read without scrolling.
    ends = page.evaluate(
        """[...document.querySelectorAll("caption, caption a, figcaption a")].map(each => Math.max(
          ...[...(each.firstElementChild || each).getClientRects()].map(box => box.right)))"""
    )
    assert max(ends) <= outside
    page.resize(1280)


def test_the_view_shows_every_map_without_a_complaint(page: Browser, report: Path) -> None:
    page.click("[...document.querySelectorAll('main p a')].find(each => each.innerText.includes('by hand'))")
    page.wait_for("location.pathname.endsWith('/surface.html') && document.body?.dataset.ready")
    check_that_it_is_complete(page, report)
    names = page.evaluate("[...document.querySelectorAll('option')].map(each => each.innerText)")
    assert len(names) >= 10
    for place, name in enumerate(names):
        low, high, n_colored = page.evaluate(
            f"""(() => {{
              const {{ bottom, top, shown }} = look(maps[{place}]);
              return [bottom, top, new Set(shown.flatMap(each => [...each])).size - 1];
            }})()"""
        )
        assert low < high, name
        assert n_colored > 1, name
    page.evaluate(
        """new Promise(done => {
          document.getElementById("view").on("plotly_afterplot", done);
          const select = document.getElementById("map");
          select.value = select.options.length - 1;
          select.dispatchEvent(new Event("change"));
        })"""
    )
    assert page.evaluate("document.getElementById('view').data[0].colorbar.title.text") == "noise ceiling (r)"
    check_that_it_is_complete(page, report)

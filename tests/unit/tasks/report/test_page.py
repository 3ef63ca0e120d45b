from __future__ import annotations

import base64
import csv
import io
import math
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
from PIL import Image

from hpcenc.storage.geometry import HCP_ACKNOWLEDGEMENT, grayordinates_axis
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.data import Facts, ReportData
from hpcenc.tasks.report.illustrations import cortical_maps, illustrate
from hpcenc.tasks.report.page import file_names, map_remark, render_page, write_report
from hpcenc.tasks.report.sections import Column, Illustration, Section, Table, count
from hpcenc.tasks.report.style import new_figure, render
from hpcenc.tasks.report.tables import format_score, model_row

HOSTILE = '<b onload="x">&\'"</b>'
VOID = {"meta", "img", "br", "link", "hr", "wbr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.text, self.styles = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open[-1:] in (["style"], ["script"]) else self.text).append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def _read(files):
    return Page(files.html.read_text("utf-8"))


@pytest.fixture(scope="session")
def plain_report(plain_data, tmp_path_factory):
    return write_report(plain_data, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def cortical_report(cortex, make_fit, tmp_path_factory):
    r = np.random.default_rng(0).normal(0.1, 0.1, (2, cortex.n_voxels)).astype(np.float32)
    r[:, 5] = np.nan
    fits = tuple(
        make_fit(cortex.n_voxels, r=r, subject=subject, feature_set="clip") for subject in ("S1", "S2")
    )
    data = ReportData("cortex", fits, cortex, note="A simulation.", simulated=True)
    return data, write_report(data, tmp_path_factory.mktemp("cortical"))


def test_page_needs_nothing_from_outside(cortical_report):
    page = _read(cortical_report[1])
    sources = [tag.get("src", "") for _, tag in page.tags if "src" in tag]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    beside = [link["href"] for link in page.all("a") if not link["href"].startswith("#")]
    assert beside
    assert all((cortical_report[1].html.parent / path).is_file() for path in beside)
    assert not page.all("link")
    assert not re.search(r"https?://|url\(|@import", " ".join(page.styles))


def test_every_figure_is_in_the_page_and_beside_it(cortical_report):
    _, files = cortical_report
    embedded = [
        base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        for image in _read(files).all("img")
    ]
    pngs, svgs = files.figures[::2], files.figures[1::2]
    assert embedded == [path.read_bytes() for path in pngs]
    assert [path.stem for path in svgs] == [path.stem for path in pngs]
    for path in svgs:
        assert ElementTree.parse(path).getroot().tag.endswith("}svg")
        assert path.stat().st_size < 2e6
    for png in embedded:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert 0.02 < (pixels < 250).mean() < 0.9


def test_every_figure_has_a_caption_and_an_alternative_text(cortical_report):
    page = _read(cortical_report[1])
    assert len(page.all("figcaption")) == len(page.all("img"))
    assert all(len(image["alt"]) > 20 for image in page.all("img"))
    assert page.all("html") == [{"lang": "en"}]


def test_contents_lead_to_sections_that_exist(cortical_report):
    page = _read(cortical_report[1])
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")} <= ids
    assert {attributes["aria-labelledby"] for attributes in page.all("section")} <= ids


def test_maps_hold_r_over_folds_with_nan_kept(cortical_report):
    data, files = cortical_report
    assert [path.name for path in files.maps] == [
        "r-mean-of-subjects.dscalar.nii",
        "r-s1.dscalar.nii",
        "r-s2.dscalar.nii",
    ]
    image = nibabel.load(files.maps[1])
    assert image.header.get_axis(0).name.tolist() == ["r clip"]
    stored = np.asarray(image.dataobj)[0]
    np.testing.assert_allclose(stored, data.scores[0].r.mean(axis=0), rtol=1e-6)
    assert np.isnan(stored[5])


def test_hcp_is_acknowledged_where_its_surfaces_are_shown(cortical_report, plain_report):
    assert HCP_ACKNOWLEDGEMENT in _read(cortical_report[1]).words
    assert HCP_ACKNOWLEDGEMENT not in _read(plain_report).words


def test_a_map_of_grayordinates_counts_the_cortex_only(make_fit):
    axis = grayordinates_axis()
    r = np.full((2, axis.n_voxels), 0.1)
    r[:, -1] = 0.9  # in the cerebellum
    data = ReportData("brain", (make_fit(axis.n_voxels, r=r),), axis)
    (cortical_map,) = (illustration for illustration in illustrate(data) if illustration.section == "maps")
    assert "n = 59,412 valid vertices" in cortical_map.caption
    assert "Largest r 0.100, in cortex left" in cortical_map.alternative


def test_note_is_before_the_first_table(cortical_report):
    words = _read(cortical_report[1]).words
    assert 0 < words.index("A simulation.") < words.index("feature set")


def test_both_pages_begin_with_that_the_bold_is_simulated(cortical_report, plain_report):
    view = Page((cortical_report[1].html.parent / "surface.html").read_text("utf-8"))
    for page in (_read(cortical_report[1]), view):
        assert "Simulated BOLD. A simulation." in page.words.partition("feature set")[0]
    assert "Simulated BOLD" not in _read(plain_report).words


def test_only_of_a_vertex_picked_for_its_r_it_is_said_that_its_r_is_biased(plain_data, make_course):
    for named in (False, True):
        data = replace(plain_data, courses=(make_course(named=named),))
        (course,) = (each for each in illustrate(data) if each.section == "courses")
        assert ("biased upwards" in course.caption) != named


def test_plain_voxels_have_tables_and_figures_but_no_maps(plain_report):
    assert plain_report.maps == ()
    assert "No cortical maps: the BOLD files are plain arrays" in _read(plain_report).words
    assert len(plain_report.figures) == 2 * (2 + 1 + 1 + 2)  # r, folds, time course, alphas


def test_tables_have_a_line_per_fit_and_per_mean(plain_report):
    models, folds, edges = (list(csv.DictReader(path.open(newline=""))) for path in plain_report.tables)
    assert [line["subject"] for line in models] == ["mean of 2 subjects"] * 2 + ["S1", "S1", "S2", "S2"]
    assert len(folds) == 4 * 2
    assert len(edges) == 4


def test_table_on_the_page_shows_the_numbers_of_the_csv(plain_report):
    text = _read(plain_report).words
    for line in csv.DictReader(plain_report.tables[0].open(newline="")):
        assert f"{float(line['r_mean_best_tenth']):.3f}" in text
        assert f"{100 * float(line['share_over_chance']):.1f} %" in text


def test_same_data_give_the_same_files(plain_data, plain_report, tmp_path):
    again = write_report(plain_data, tmp_path)
    for first, second in zip(
        (plain_report.html, *plain_report.figures, *plain_report.tables),
        (again.html, *again.figures, *again.tables),
        strict=True,
    ):
        assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_hostile_names_are_shown_and_not_obeyed(make_fit, make_course, tmp_path):
    fit = make_fit(
        feature_set=HOSTILE, variant=HOSTILE, subject=HOSTILE, modality=HOSTILE, folds=(HOSTILE, "b")
    )
    data = ReportData(
        HOSTILE,
        (fit,),
        VoxelAxis.from_count(300),
        note=HOSTILE,
        courses=(make_course(feature_set=HOSTILE, subject=HOSTILE, fold=HOSTILE, place=HOSTILE),),
        facts=Facts(((HOSTILE, ((HOSTILE, HOSTILE),)),)),
        warnings=(HOSTILE,),
        acknowledgements=(HOSTILE,),
    )
    page = _read(write_report(data, tmp_path))
    assert not page.all("b")
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert page.words.count(HOSTILE) >= 10


def test_the_layers_of_a_sum_may_stand_on_two_lines(make_fit):
    fit = make_fit(variant="beats/4+clip/embedding")
    data = ReportData("sum", (fit,), VoxelAxis.from_count(300))
    page = render_page(data, (), [model_row(fit)], (), (), (), {}, view="")
    assert "<td>beats/4+<wbr>clip/embedding</td>" in page


def test_one_subject_has_no_means(make_fit, tmp_path):
    data = ReportData("one", (make_fit(),), VoxelAxis.from_count(300))
    files = write_report(data, tmp_path)
    assert "Mean over subjects" not in _read(files).words
    assert len(list(csv.DictReader(files.tables[0].open(newline="")))) == 1


def test_incomplete_fit_is_shown_and_said(make_fit, tmp_path):
    r = make_fit().r.copy()
    r[:, 150:] = np.nan
    fit = make_fit(r=r, blocks_done=1)
    words = _read(write_report(ReportData("half", (fit,), VoxelAxis.from_count(300)), tmp_path)).words
    assert "is incomplete in 1 of 1 subjects (S1): 1 of 2 voxel blocks are done" in words
    assert "1 of 2 blocks done" in words
    assert "Not finished: clip[untrained, seed 0] (incomplete: 1 of 2 blocks)" in words


def test_only_the_average_and_the_first_subjects_have_figures_and_the_page_says_so(make_fit, tmp_path):
    subjects = (*(f"{index}" for index in range(6)), "average")  # as ids of numbers are sorted
    fits = tuple(make_fit(30, subject=subject) for subject in subjects)
    files = write_report(ReportData("six", fits, VoxelAxis.from_count(30)), tmp_path)
    assert len(files.figures) == 2 * (4 + 1 + 4)
    assert "show average, 0, 1, 2, of 7" in _read(files).words
    assert len(list(csv.DictReader(files.tables[0].open(newline="")))) == 1 + 7


def test_the_page_counts_the_maps_of_all_subjects_against_those_that_it_shows(cortex, make_fit):
    def remark(n_subjects, n_sets):
        return map_remark(
            ReportData(
                "many",
                tuple(
                    make_fit(cortex.n_voxels, subject=f"S{subject}", feature_set=f"set {index}")
                    for subject in range(n_subjects)
                    for index in range(n_sets)
                ),
                cortex,
            )
        )

    assert remark(4, 1) == ""
    assert remark(6, 1).startswith("5 of 7 maps of r are shown")
    assert remark(5, 5).startswith("24 of 30 maps of r are shown")


def test_the_rule_that_faces_are_painted_by_is_said_where_there_are_maps(cortical_report, plain_report):
    rule = "a face of the surface is painted where two of its three corners have a value"
    assert rule in _read(cortical_report[1]).words
    assert rule not in _read(plain_report).words


def test_the_link_to_the_view_says_what_is_in_it(cortical_report):
    words = _read(cortical_report[1]).words
    assert "Turn maps by hand : these and most of those of the sections below" in words
    assert "all maps" not in words.partition("Turn")[2].partition("WebGL")[0]


@dataclass(frozen=True)
class Row:
    name: str
    r: float
    n: int


def test_a_section_has_its_tables_and_figures_in_the_page_and_beside_it(make_fit, tmp_path):
    picture = render(new_figure())
    section = Section(
        "delays",
        "Delays <b>",
        ("What it shows.",),
        (
            Table(
                "delays",
                "Best delays.",
                (Row("clip", 0.5, 1200), Row("beats", math.nan, 0)),
                (Column("name", "feature set"), Column("r", "mean r", format_score), Column("n", "n", count)),
            ),
        ),
        (Illustration("delays", "delay curve", picture, "A curve.", "A curve in words, long enough."),),
    )
    data = ReportData("x", (make_fit(),), VoxelAxis.from_count(300), sections=(section,))
    files = write_report(data, tmp_path)
    page = _read(files)
    assert "What it shows." in page.words
    assert "Delays <b>" in page.words
    assert "1,200" in page.words
    assert "–" in page.words
    assert (tmp_path / "tables" / "delays.csv").read_text() == "name,r,n\nclip,0.5,1200\nbeats,nan,0\n"
    assert (tmp_path / "figures" / "delay-curve.svg").read_bytes() == picture.svg
    assert {"#delays", "tables/delays.csv", "figures/delay-curve.png"} <= {
        link["href"] for link in page.all("a")
    }
    assert {"0.5", "nan"} <= {cell.get("data-value") for cell in page.all("td")}


def test_means_over_subjects_leave_the_average_out(make_fit, tmp_path):
    fits = tuple(make_fit(seed=seed, subject=subject) for seed, subject in enumerate(("S1", "S2", "average")))
    files = write_report(ReportData("x", fits, VoxelAxis.from_count(300)), tmp_path)
    lines = list(csv.DictReader(files.tables[0].open(newline="")))
    assert [line["subject"] for line in lines] == ["mean of 2 subjects", "S1", "S2", "average"]
    alone = write_report(ReportData("x", fits[:2], VoxelAxis.from_count(300)), tmp_path / "alone")
    assert lines[0] == next(csv.DictReader(alone.tables[0].open(newline="")))
    assert "The square is the average of the subjects' BOLD" in _read(files).words
    assert "square" not in _read(alone).words


def test_means_of_other_subjects_are_warned_of_at_the_head_of_the_page(make_fit, tmp_path):
    fits = [
        make_fit(subject=subject, feature_set=name) for subject in ("S1", "S2", "S3") for name in ("a", "b")
    ]
    whole = write_report(ReportData("x", tuple(fits), VoxelAxis.from_count(300)), tmp_path / "whole")
    assert "not of the same ones" not in _read(whole).words
    part = write_report(ReportData("x", tuple(fits[:-1]), VoxelAxis.from_count(300)), tmp_path / "part")
    assert "not of the same ones" in _read(part).words


def test_a_study_without_fits_has_a_page(tmp_path):
    data = ReportData("empty", (), VoxelAxis.from_count(5), warnings=("all subjects were set aside",))
    files = write_report(data, tmp_path)
    assert "No fit has been made yet." in _read(files).words
    assert files.figures == ()


def test_means_do_not_count_a_subject_without_a_valid_vertex(cortex, make_fit):
    r = np.full((2, cortex.n_voxels), 0.2)
    fits = [
        make_fit(cortex.n_voxels, r=values, subject=subject)
        for subject, values in (("S1", r), ("S2", r), ("S3", np.full_like(r, np.nan)))
    ]
    data = ReportData("dead", tuple(fits), cortex)
    assert [shown.subject for shown in cortical_maps(data)] == ["mean of 2 subjects", "S1", "S2", "S3"]
    of_folds = next(shown for shown in illustrate(data) if shown.name == "r by fold")
    assert "(n = 2)" in of_folds.caption


def test_a_missing_time_course_is_said_with_its_reason(make_fit, tmp_path):
    data = ReportData(
        "gone", (make_fit(),), VoxelAxis.from_count(300), missing_courses=("clip: BOLD is gone",)
    )
    page = _read(write_report(data, tmp_path))
    assert "No time course of clip: BOLD is gone" in page.words
    assert "#courses" in [link["href"] for link in page.all("a")]


def test_chance_that_shifts_cannot_give_is_said(make_fit, tmp_path):
    fit = make_fit(chance=np.full((2, 300), np.nan), n_shifts=(0, 0))
    words = _read(write_report(ReportData("short", (fit,), VoxelAxis.from_count(300)), tmp_path)).words
    assert "too short for circular shifts" in words


def test_few_shifts_are_counted_and_what_they_let_through_is_said(make_fit, tmp_path):
    fit = make_fit(n_shifts=(51, 60))
    words = _read(write_report(ReportData("short", (fit,), VoxelAxis.from_count(300)), tmp_path)).words
    assert "51 to 60 shifts in a fold: without any effect about 1.9 % of vertices exceed the level" in words


def test_an_older_page_is_replaced(make_fit, tmp_path):
    data = ReportData("first", (make_fit(),), VoxelAxis.from_count(300))
    write_report(data, tmp_path)
    page = _read(write_report(replace(data, study="second"), tmp_path))
    assert "hpcenc report: second" in page.words
    assert "first" not in page.words


def test_labels_that_differ_by_signs_get_different_files():
    assert file_names(["r S1", "r s1", "r s/1"]) == ["r-s1", "r-s1-2", "r-s-1"]


def test_labels_that_are_too_long_for_a_file_name_are_cut():
    labels = [f"difference {'beats+clip+cavmae-concat[untrained, seed 0] ' * 6}{end}" for end in ("S1", "S2")]
    first, second = file_names(labels)
    assert len(first) <= 180
    assert second == f"{first}-2"

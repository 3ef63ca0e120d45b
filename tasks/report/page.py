"""The report as files: one self-contained HTML page, and its figures, tables and maps beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from hpcenc.storage.exports import write_dscalar
from hpcenc.storage.files import write_atomically
from hpcenc.storage.geometry import HCP_ACKNOWLEDGEMENT
from hpcenc.storage.layout import slug
from hpcenc.tasks.report.alphas import AlphaRow, alpha_row, alpha_warnings
from hpcenc.tasks.report.data import ReportData, mean_over_subjects, unlike_means
from hpcenc.tasks.report.illustrations import (
    SHOWN_MAPS,
    SHOWN_SUBJECTS,
    cortical_maps,
    hidden_subjects,
    illustrate,
    r_limits,
)
from hpcenc.tasks.report.sections import Illustration
from hpcenc.tasks.report.surface_map import has_cortical_map
from hpcenc.tasks.report.surface_view import SurfaceMap, surface_page
from hpcenc.tasks.report.tables import (
    ModelRow,
    csv_text,
    fold_rows,
    format_score,
    format_share,
    model_table,
    progress_warnings,
)

MAX_STEM = 180
"""Bytes of a file's name, but for a number that tells it from another, and its suffix."""


@dataclass(frozen=True)
class ReportFiles:
    """Where a report's files are."""

    html: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    maps: tuple[Path, ...]


def write_report(data: ReportData, folder: Path) -> ReportFiles:
    """Write a report: ``report.html``, ``figures/``, ``tables/*.csv`` and ``maps/*.dscalar.nii``.

    Each figure is there as ``.png`` and as ``.svg``.

    The page holds its figures itself. The same data give the same bytes; each file replaces an
    older one as a whole, the page last, so that it never shows figures that are not there yet.

    Parameters
    ----------
    data : ReportData
    folder : Path
        Made if it is not there. Files of other names in it are left as they are.
    """
    for name in ("figures", "tables", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    means, rows = model_table(data)
    alphas = tuple(alpha_row(fit) for fit in data.scores)
    tables = {
        "models": csv_text((*means, *rows)),
        "folds": csv_text([row for fit in data.scores for row in fold_rows(fit)]),
        "alpha_edges": csv_text(alphas),
        **{
            table.name: csv_text(table.rows if table.in_file is None else table.in_file)
            for section in data.sections
            for table in section.tables
        },
    }
    table_paths = tuple(folder / "tables" / f"{name}.csv" for name in tables)
    for path, text in zip(table_paths, tables.values(), strict=True):
        write_atomically(path, text.encode())
    illustrations = tuple(illustrate(data))
    drawn = (*illustrations, *(figure for section in data.sections for figure in section.figures))
    names = file_names(illustration.name for illustration in drawn)
    figure_paths = []
    for name, illustration in zip(names, drawn, strict=True):
        for suffix, content in (("png", illustration.picture.png), ("svg", illustration.picture.svg)):
            figure_paths.append(folder / "figures" / f"{name}.{suffix}")
            write_atomically(figure_paths[-1], content)
    map_paths = _write_maps(data, folder / "maps")
    views = _write_view(data, folder)
    paths = (*views, *table_paths, *map_paths, *figure_paths)
    page = render_page(
        data,
        means,
        rows,
        alphas,
        illustrations,
        [path.relative_to(folder).as_posix() for path in paths],
        dict(zip((illustration.name for illustration in drawn), names, strict=True)),
        views[0].name if views else "",
    )
    html = folder / "report.html"
    write_atomically(html, page.encode())
    return ReportFiles(html, tuple(figure_paths), table_paths, map_paths)


def render_page(
    data: ReportData,
    means: Sequence[ModelRow],
    rows: Sequence[ModelRow],
    alphas: Sequence[AlphaRow],
    illustrations: Sequence[Illustration],
    file_list: Sequence[str],
    stems: Mapping[str, str],
    view: str,
) -> str:
    """HTML of the report's page, with its figures inside.

    Parameters
    ----------
    data : ReportData
    means, rows : sequence of ModelRow
        Lines of the model table: means over subjects, and single fits.
    alphas : sequence of AlphaRow
        Where the warnings on the alpha grid come from.
    illustrations : sequence of Illustration
    file_list : sequence of str
        Files beside the page, by their path relative to it.
    stems : mapping of str to str
        Names of the figures' files, without their ends, by the figures' own names.
    view : str
        Name of the interactive view's file; empty if there is none.
    """
    by_section: dict[str, list[Illustration]] = {}
    for illustration in illustrations:
        by_section.setdefault(illustration.section, []).append(illustration)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": data_uri, "score": format_score, "share": format_share}
    template = files("hpcenc.tasks.report").joinpath("report.html.j2").read_text("utf-8")
    page: str = environment.from_string(template).render(
        data=data,
        means=means,
        rows=rows,
        warnings=_warnings(data, rows, alphas),
        figures=by_section,
        map_remark=map_remark(data),
        hidden_subjects=hidden_subjects(data),
        chance_remark=_chance_remark(data),
        file_list=file_list,
        stems=stems,
        view=view,
        acknowledgements=_acknowledgements(data),
    )
    return page


def file_names(labels: Iterable[str]) -> list[str]:
    """File names of labels, in their order; different ones, also where only signs or case tell labels apart,
    and short enough for file systems, which take 255 bytes with what is added while a file is written.

    Examples
    --------
    >>> file_names(["r map S1", "r map s1", "r map s/1"])
    ['r-map-s1', 'r-map-s1-2', 'r-map-s-1']
    """
    names: list[str] = []
    for label in labels:
        stem = slug(label)[:MAX_STEM].rstrip("-.")
        name, count = stem, 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return names


def data_uri(png: bytes) -> str:
    """A PNG as text that an ``img`` takes as its source."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _write_maps(data: ReportData, folder: Path) -> tuple[Path, ...]:
    """Write r (mean over folds) of all feature sets: a file per subject, and one of means over subjects."""
    if data.voxels.is_plain or not data.scores:
        return ()
    maps = {
        f"r {subject}": {label: fit.mean_r for label, fit in data.fits_by_label(subject).items()}
        for subject in data.subjects
    }
    means = {label: mean_over_subjects(fits) for label, fits in data.fits_in_means().items()}
    if means:
        maps = {"r mean of subjects": means} | maps
    paths = tuple(folder / f"{name}.dscalar.nii" for name in file_names(maps))
    for path, of_subject in zip(paths, maps.values(), strict=True):
        write_dscalar(path, {f"r {label}": r for label, r in of_subject.items()}, data.voxels)
    return paths


def _write_view(data: ReportData, folder: Path) -> tuple[Path, ...]:
    """Write the interactive view: the maps of r that the page shows, and the sections' maps.

    Nothing where they cannot be shown.
    """
    if not has_cortical_map(data.voxels) or not data.scores:
        return ()
    limits = r_limits([fit.mean_r for fit in data.scores])
    maps = [
        SurfaceMap(f"r · {each.label} · {each.subject}", each.r, limits, "r")
        for each in cortical_maps(data)[:SHOWN_MAPS]
    ]
    maps += [each for section in data.sections for each in section.maps]
    path = folder / "surface.html"
    page = surface_page(f"Maps of {data.study}", maps, data.voxels, data.first_to_know)
    write_atomically(path, page.encode())
    return (path,)


def _warnings(data: ReportData, rows: Sequence[ModelRow], alphas: Sequence[AlphaRow]) -> tuple[str, ...]:
    return (*data.warnings, *unlike_means(data), *progress_warnings(rows), *alpha_warnings(alphas))


def map_remark(data: ReportData) -> str:
    """Sentence on the maps that are not shown; empty if all are."""
    if data.voxels.is_plain:
        return "No cortical maps: the BOLD files are plain arrays, which do not say where a voxel lies."
    if not has_cortical_map(data.voxels):
        return (
            "No cortical maps: the voxels do not lie on the fs_LR 32k surface, the only one that hpcenc can "
            "paint. The files in maps/ can be opened with the data's own surfaces in wb_view."
        )
    n_maps = len(data.fits_in_means()) + len(data.scores)
    n_shown = min(len(cortical_maps(data)), SHOWN_MAPS)
    if n_maps > n_shown:
        return (
            f"{n_shown} of {n_maps} maps of r are shown, means over subjects before the first "
            f"{SHOWN_SUBJECTS} subjects' own; the files in maps/ hold all of them."
        )
    return ""


def _chance_remark(data: ReportData) -> str:
    """How many vertices exceed their chance level without any effect."""
    n_shifts = [count for fit in data.scores for count in fit.n_shifts if count > 0]
    if not n_shifts:
        return "The test runs are too short for circular shifts, so that there is no chance level."
    expected = max(0.001, 1 / (min(n_shifts) + 1))
    span = f"{min(n_shifts)}" if min(n_shifts) == max(n_shifts) else f"{min(n_shifts)} to {max(n_shifts)}"
    return (
        f"There are {span} shifts in a fold: without any effect about {format_share(expected)} of vertices "
        "exceed the level where a prediction is independent from TR to TR, and three to four times as many "
        "where it is as smooth as BOLD."
    )


def _acknowledgements(data: ReportData) -> tuple[str, ...]:
    """The study's acknowledgements, and HCP's where its surfaces are shown."""
    ours = (HCP_ACKNOWLEDGEMENT,) if data.scores and has_cortical_map(data.voxels) else ()
    return tuple(dict.fromkeys((*data.acknowledgements, *ours)))

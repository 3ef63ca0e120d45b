"""What a report is made of: sections of paragraphs, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hpcenc.tasks.report.style import Picture
from hpcenc.tasks.report.surface_view import SurfaceMap


@dataclass(frozen=True)
class Illustration:
    """A figure as the report shows it."""

    section: str
    """Where it stands, among the figures of the models themselves."""
    name: str
    """Label that its files are named after."""
    picture: Picture
    caption: str
    alternative: str
    """What the figure says, for who cannot see it."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    field : str
        Attribute of its rows.
    head : str
    show : callable or None
        Text of a number; None where values are text.
    """

    field: str
    head: str
    show: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place; `value` is what it is sorted by."""

    text: str
    value: float | str


@dataclass(frozen=True)
class Table:
    """A table as the report shows it; its file holds all fields of the rows.

    Attributes
    ----------
    name : str
        Stem of its file.
    title : str
    rows : sequence of dataclasses of one kind
    columns : tuple of Column
    in_file : sequence of dataclasses, optional
        Rows of the file, where it holds more than the page can show.
    """

    name: str
    title: str
    rows: Sequence[Any]
    columns: tuple[Column, ...]
    in_file: Sequence[Any] | None = None

    def cells(self) -> list[list[Cell]]:
        """Cells row by row."""
        return [[_cell(row, column) for column in self.columns] for row in self.rows]


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes
    ----------
    id : str
        Anchor in the page.
    paragraphs : tuple of str
        What it shows, and what one must know of it.
    """

    id: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Illustration, ...] = ()
    maps: tuple[SurfaceMap, ...] = ()
    """What the interactive view shows of it."""


def _cell(row: Any, column: Column) -> Cell:
    value = getattr(row, column.field)
    if column.show is None:
        return Cell(str(value), str(value))
    number = math.nan if value is None else float(value)
    return Cell(column.show(value), number)


def count(value: float) -> str:
    """A whole number with thousands apart; an en dash where undefined."""
    return "–" if math.isnan(value) else f"{value:,.0f}"


def span_of(counts: Sequence[int]) -> str:
    """One number, or the smallest and the largest of several: ``1,200 to 1,340``."""
    return " to ".join(f"{n:,}" for n in dict.fromkeys((min(counts), max(counts))))


def name_some(names: Sequence[str], n_named: int = 5) -> str:
    """The first few of some names, and how many more there are: ``S1, S2 and 3 more``."""
    more = len(names) - n_named
    return ", ".join(names[:n_named]) + (f" and {more} more" if more > 0 else "")


def style_places(labels: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """Place of each feature set in the report, which its colour goes by in every figure.

    Parameters
    ----------
    labels : iterable of str
        Feature sets of one figure.
    order : sequence of str
        Those of the report. A label that has its layer there alone has the place of its first layer; one that
        is not there at all comes after them.
    """
    places: dict[str, int] = {}
    n_others = 0
    for label in labels:
        found = [
            place for place, known in enumerate(order) if known == label or known.startswith(f"{label} ")
        ]
        places[label] = found[0] if found else len(order) + n_others
        n_others += not found
    return places

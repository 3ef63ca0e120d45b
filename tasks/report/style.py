"""How the report's figures look: sizes, type and colours, in one place.

Settings are made on the figures themselves, never in matplotlib's global ones: reports may be
drawn in a process with other figures in it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FIGURE_WIDTH_IN = 7.2
"""Width of a figure in inches: two columns of most journals."""

DPI = 150

TITLE_SIZE = 9
"""Points of a panel's title."""

TEXT_COLOR = "#222222"
MUTED_COLOR = "#666666"
LEFT_OUT_COLOR = "#ececec"
MEASURED_COLOR = "#444444"

SURFACE_COLORS = matplotlib.colormaps["viridis"]
"""Perceptually uniform, and readable with any colour vision and in grey."""

DIFFERENCE_COLORS = matplotlib.colormaps["managua"]
"""Diverging and perceptually uniform (Crameri 2018): dark in the middle, so that it stands out from bare
cortex."""

# Okabe and Ito's colours without yellow and black, which vanish on white or in axes.
_LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINE_STYLES = ("-", "--", ":", "-.")


def new_figure(width_in: float = FIGURE_WIDTH_IN, height_in: float = 3.2) -> Figure:
    """Empty figure on an Agg canvas: drawn in memory, unknown to pyplot."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the ``index``-th feature set; different for the first 24."""
    dashes = _LINE_STYLES[index // len(_LINE_COLORS) % len(_LINE_STYLES)]
    return {"color": _LINE_COLORS[index % len(_LINE_COLORS)], "linestyle": dashes}


def style_axes(axes: Any) -> None:
    """Axes with two spines and quiet ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=TEXT_COLOR, width=0.6, length=3)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def set_title(figure: Figure, title: str, remark: str = "") -> None:
    """Title at the upper left, and a remark in small type at the upper right."""
    figure.text(0.012, 0.985, escape(title), ha="left", va="top", fontsize=10.5, fontweight="bold")
    if remark:
        figure.text(0.988, 0.985, escape(remark), ha="right", va="top", fontsize=8.5, color=MUTED_COLOR)


def escape(text: str) -> str:
    """Text that matplotlib draws as it stands: a pair of dollar signs would be read as a formula."""
    return text.replace("$", r"\$")


def wrap_label(label: str, width: int = 20) -> str:
    """A feature set's label on two lines where it is too long for its place, broken before its bracket."""
    head, bracket, tail = label.partition("[")
    return escape(f"{head}\n{bracket}{tail}" if len(label) > width and bracket else label)


@dataclass(frozen=True)
class Picture:
    """A figure as files: for screens, and for papers."""

    png: bytes
    svg: bytes
    """Text stays text; what has thousands of parts is a raster image in it."""


def render(figure: Figure) -> Picture:
    """Files of a figure, the same bytes for the same figure."""
    buffer = io.BytesIO()
    # Ids in SVG are random but for this salt, and the file would hold the time.
    with matplotlib.rc_context({"svg.hashsalt": "hpcenc", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(png_bytes(figure), buffer.getvalue())


def png_bytes(figure: Figure) -> bytes:
    """PNG of a figure, the same bytes for the same figure."""
    buffer = io.BytesIO()
    # A map takes half the time, and a twentieth more bytes, than at zlib's own level.
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def fit_layout(figure: Figure, bottom: float = 0.0, between: float | None = None) -> None:
    """Give the axes the room that their texts leave; the title's line stays free.

    Parameters
    ----------
    figure : Figure
    bottom : float
        Inches to keep free below, for a legend.
    between : float, optional
        Widths of a letter to keep free between panels side by side, where numbers of their axes would meet.
    """
    height = figure.get_figheight()
    figure.tight_layout(rect=(0, bottom / height, 1, 1 - 0.27 / height), pad=0.5, w_pad=between)
    figure.set_layout_engine(None)  # what it leaves would have each file's figure drawn twice


def panel_grid(n_panels: int, n_columns: int = 4) -> tuple[int, int]:
    """Rows and columns for some panels of equal size."""
    columns = min(n_panels, n_columns)
    return -(-n_panels // columns), columns


def hide_unused(axes: Iterable[Any], n_used: int) -> None:
    """Take away the panels of a grid that nothing is drawn in."""
    for panel in list(axes)[n_used:]:
        panel.set_visible(False)

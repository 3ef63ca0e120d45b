"""Plots of sweeps: mean r by delay, layer or ratio of scalings, and how vertices chose among these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpcenc.storage.layout import AVERAGE
from hpcenc.tasks.report.sections import span_of, style_places
from hpcenc.tasks.report.style import (
    MUTED_COLOR,
    TITLE_SIZE,
    escape,
    fit_layout,
    hide_unused,
    line_style,
    new_figure,
    panel_grid,
    set_title,
    style_axes,
)
from hpcenc.tasks.report.sweeps import Sweep, alike, spread_over_subjects


@dataclass(frozen=True)
class Axis:
    """What the variants of a sweep are, on an axis.

    Attributes
    ----------
    label : str
        With its unit.
    log : bool
    """

    label: str
    log: bool = False


AXES: Mapping[str, Axis] = {
    "delays": Axis("delay (TRs)"),
    "layers": Axis("layer, from the shallowest"),
    "bands": Axis("scaling of the first over the second", log=True),
}


def draw_curves(
    sweeps: Mapping[str, Sequence[Sweep]],
    regions: Sequence[str],
    *,
    title: str,
    remark: str = "",
    order: Sequence[str] = (),
) -> Figure:
    """Mean r of each variant, a panel for each region, a line for each feature set.

    Lines are means over subjects with the standard deviation between them; dashed ones are the average's.
    Subjects whose variants are other than those of most are left out.

    Parameters
    ----------
    sweeps : mapping of str to sequence of Sweep
        Sweeps of one kind by feature set, of all subjects and of the average.
    regions : sequence of str
        Names of the curves that are shown.
    title, remark : str
    order : sequence of str
        Feature sets of the report, whose colours the lines have.
    """
    places = style_places(sweeps, order)
    kind = next(iter(sweeps.values()))[0].kind
    n_rows, n_columns = panel_grid(len(regions), n_columns=2)
    figure = new_figure(height_in=0.8 + 2.3 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True).ravel()
    for panel, region in zip(panels, regions, strict=False):
        panel.axhline(0, color=MUTED_COLOR, linewidth=0.6)
        for label, of_set in sweeps.items():
            _draw_set(panel, of_set, region, label, line_style(places[label])["color"])
        panel.set_title(_panel_title(region, sweeps), loc="left", fontsize=TITLE_SIZE)
        if AXES[kind].log:
            panel.set_xscale("log")
        else:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        style_axes(panel)
    hide_unused(panels, len(regions))
    for first in range(0, len(regions), n_columns):
        panels[first].set_ylabel("mean r (Pearson)")
    for panel in panels[max(0, len(regions) - n_columns) : len(regions)]:
        panel.set_xlabel(AXES[kind].label)
        panel.tick_params(labelbottom=True)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=2, fontsize=8, frameon=False, borderpad=0)
    set_title(figure, title, remark)
    fit_layout(figure, bottom=0.18 * -(-len(names) // 2) + 0.1)
    return figure


def draw_choices(
    sweeps: Mapping[str, Sweep], *, title: str, remark: str = "", order: Sequence[str] = ()
) -> Figure:
    """Share of one subject's vertices that chose which variant, a panel for each feature set.

    Parameters
    ----------
    sweeps : mapping of str to Sweep
        Sweeps of one kind and subject by feature set.
    title, remark : str
    order : sequence of str
        Feature sets of the report, whose colours the bars have.
    """
    places = style_places(sweeps, order)
    n_rows, n_columns = panel_grid(len(sweeps), n_columns=2)
    figure = new_figure(height_in=0.6 + 2.1 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).ravel()
    for panel, (label, sweep) in zip(panels, sweeps.items(), strict=False):
        chosen = sweep.best[sweep.best >= 0]
        rising = np.argsort(sweep.values)  # as along the axis of the curves
        counts = np.bincount(chosen, minlength=len(sweep.values))[rising]
        positions = np.arange(len(sweep.values))
        color = line_style(places[label])["color"]
        panel.bar(positions, 100 * counts / max(1, counts.sum()), color=color, width=0.8)
        panel.set_xticks(positions, [f"{sweep.values[place]:g}" for place in rising])
        above = f"n = {counts.sum():,} vertices above chance" if sweep.n_with_chance else "no chance level"
        panel.set_title(f"{escape(label)}\n{above}", loc="left", fontsize=TITLE_SIZE)
        style_axes(panel)
        if sweep.kind == "bands":
            panel.tick_params(axis="x", rotation=45)
    hide_unused(panels, len(sweeps))
    kind = next(iter(sweeps.values())).kind
    for first in range(0, len(sweeps), n_columns):
        panels[first].set_ylabel("share of them (%)")
    for panel in panels[max(0, len(sweeps) - n_columns) : len(sweeps)]:
        panel.set_xlabel(AXES[kind].label)
    set_title(figure, title, remark)
    fit_layout(figure)
    return figure


def _draw_set(panel: Any, sweeps: Sequence[Sweep], region: str, label: str, color: str) -> None:
    subjects, _ = alike(sweeps)
    if subjects:
        values = subjects[0].values
        mean, deviation = spread_over_subjects([sweep.curves[region] for sweep in subjects])
        panel.plot(
            values, mean, marker="o", ms=3, lw=1.4, color=color, label=f"{escape(label)}, n = {len(subjects)}"
        )
        panel.fill_between(values, mean - deviation, mean + deviation, color=color, alpha=0.18, linewidth=0)
    for sweep in sweeps:
        if sweep.subject == AVERAGE:
            panel.plot(
                sweep.values,
                sweep.curves[region],
                "s--",
                ms=3,
                lw=1.2,
                color=color,
                label=f"{escape(label)}, average",
            )


def _panel_title(region: str, sweeps: Mapping[str, Sequence[Sweep]]) -> str:
    n_valid = [sweep.n_valid[region] for of_set in sweeps.values() for sweep in of_set]
    return f"{escape(region)} (n = {span_of(n_valid)} vertices)"

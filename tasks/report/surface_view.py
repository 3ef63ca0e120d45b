"""An interactive view of cortical maps: one page that needs nothing else, with the library of plotly
inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, cast

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import Colormap, to_hex
from numpy.typing import NDArray

from hpcenc.storage.geometry import STRUCTURES, Hemisphere, surface
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.report.style import SURFACE_COLORS
from hpcenc.tasks.report.surface_map import N_VERTICES, are_whole, has_categories, touches_wall

GAP_MM = 8.0
"""Between the two hemispheres."""

N_COLORS = 33
"""Colours that a scale is drawn by, linear between them."""


@dataclass(frozen=True, eq=False)
class SurfaceMap:
    """One map of the view.

    Attributes
    ----------
    name : str
        As the list of maps has it.
    values : array of shape (n_voxels,)
        NaN is grey. A face has one colour by the rule of `face_values`; where `has_categories` holds, no
        values are averaged.
    limits : (float, float)
        Values of the two ends of the colours; what lies beyond has the colour of the end, and its own value
        where one points at it.
    unit : str
    color_map : Colormap
    whole_faces : bool
        As `face_values` takes it: without it one corner with a value colours a face.
    """

    name: str
    values: NDArray[np.floating[Any]]
    limits: tuple[float, float]
    unit: str
    color_map: Colormap = field(default_factory=lambda: SURFACE_COLORS)
    whole_faces: bool = True


def surface_page(title: str, maps: Sequence[SurfaceMap], voxels: VoxelAxis, note: str = "") -> str:
    """HTML of the view.

    Parameters
    ----------
    title : str
    maps : sequence of SurfaceMap
        At least one.
    voxels : VoxelAxis
        One for which `has_cortical_map` holds.
    note : str
        What must be known before any map.

    Returns
    -------
    str
        About 8 MB, of which 5 are the library, and 0.35 for each map: float32 values of every vertex.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("hpcenc.tasks.report").joinpath("surface.html.j2").read_text("utf-8")
    page: str = environment.from_string(template).render(
        title=title,
        note=note,
        maps=maps,
        # A text that ends a script element would end it.
        library=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        surfaces=_script([_surface(hemisphere) for hemisphere in _HEMISPHERES]),
        data=_script([_map(each, voxels) for each in maps]),
    )
    return page


_HEMISPHERES = cast(tuple[Hemisphere, ...], ("left", "right"))


def _surface(hemisphere: Hemisphere) -> dict[str, str]:
    points, faces = surface(hemisphere, "inflated")
    # The surfaces of both hemispheres lie at the same place.
    inner = points[:, 0].max() if hemisphere == "left" else points[:, 0].min()
    shift = np.array([-inner + (-GAP_MM if hemisphere == "left" else GAP_MM) / 2, 0, 0], np.float32)
    return {
        "name": hemisphere,
        "points": _encoded((points + shift).astype("<f4")),
        "faces": _encoded(faces.astype("<u2")),
        "wall": _encoded(np.flatnonzero(touches_wall(hemisphere, faces)).astype("<u2")),
    }


def _map(each: SurfaceMap, voxels: VoxelAxis) -> dict[str, Any]:
    values = []
    for hemisphere in _HEMISPHERES:
        structure = STRUCTURES[hemisphere]
        known = structure in voxels.n_vertices
        whole = voxels.surface(each.values, structure) if known else np.full(N_VERTICES, np.nan)
        values.append(_encoded(whole.astype("<f4")))
    colors = [to_hex(each.color_map(place)) for place in np.linspace(0, 1, N_COLORS)]
    low, high = each.limits
    return {
        "low": float(low),
        "high": float(high),
        "unit": each.unit,
        "colors": colors,
        "categories": (categories := has_categories(each.values)),
        "whole_faces": each.whole_faces,
        "whole": categories and are_whole(each.values, each.limits),
        "values": values,
    }


def _encoded(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _script(value: Any) -> Markup:
    """JSON that is safe within a script element."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))

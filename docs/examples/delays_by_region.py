"""A figure of one's own from a store: single delays in the visual and the auditory mask.

    python docs/examples/delays_by_region.py results/study.zarr clip average delays.png

The feature set goes by its label, with its brackets: "clip[untrained, seed 0]" of untrained models. The study
must have been fitted with ``[sweeps] delays``, on the fs_LR 32k surface.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from hpcenc.storage import open_study
from hpcenc.storage.layout import fit_group


def main(store: str, feature_set: str, subject: str, picture: str) -> None:
    """Draw mean r against delay."""
    study = open_study(store)
    swept = {path: study[path].attrs for path in study.groups if path.startswith("/delays/")}
    swept = {path: attributes for path, attributes in swept.items() if "feature_set" in attributes}
    group = f"/{fit_group(feature_set, subject, 'delays')}"
    if group not in swept:
        there = [f"{found['feature_set']!r} of {found['subject']!r}" for found in swept.values()]
        raise SystemExit(
            f"{store}: no delays of {feature_set!r} of {subject!r}; it has {', '.join(there) or 'none'}. "
            "Give a label as it is here, with its brackets, or fit the study with [sweeps] delays."
        )
    if "regions" not in study:
        raise SystemExit(f"{store}: expected a study on the fs_LR 32k surface, of which the masks are")
    sweep = study[group]
    members = study["regions/masks"].members
    places: dict[str, list[int]] = {}
    for place, variant in enumerate(sweep.attrs["variants"]):  # "clip/embedding delay 3"
        places.setdefault(variant["label"].partition(" delay ")[0], []).append(place)
    figure, axes = plt.subplots(figsize=(4.5, 3), layout="constrained")
    for layer, of_layer in places.items():
        delays = [sweep.attrs["variants"][place]["delays"][0] for place in of_layer]
        for region in ("visual", "auditory"):
            r = sweep.r.isel(variant=of_layer).mean("fold").where(members.sel(region=region))
            n_vertices = int(r.notnull().all("variant").sum())
            label = f"{region}, {layer} (n = {n_vertices:,} vertices)"
            axes.plot(delays, r.mean("voxel"), marker="o", label=label)
    axes.set(
        xlabel="delay (TRs)", ylabel="mean r (Pearson)", title=f"{sweep.attrs['feature_set']} · {subject}"
    )
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])

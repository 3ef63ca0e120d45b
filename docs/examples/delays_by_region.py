"""A figure of one's own from a store: single delays in the visual and the auditory mask.

    python docs/examples/delays_by_region.py results/study.zarr clip average delays.png

The study must have been fitted with ``[sweeps] delays``.
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
    sweep = study[fit_group(feature_set, subject, "delays")]
    members = study["regions/masks"].members
    delays = [variant["delays"][0] for variant in sweep.attrs["variants"]]
    figure, axes = plt.subplots(figsize=(4.5, 3), layout="constrained")
    for region in ("visual", "auditory"):
        r = sweep.r.mean("fold").where(members.sel(region=region))
        n_vertices = int(r.notnull().all("variant").sum())
        axes.plot(delays, r.mean("voxel"), marker="o", label=f"{region} (n = {n_vertices:,} vertices)")
    axes.set(
        xlabel="delay (TRs)", ylabel="mean r (Pearson)", title=f"{sweep.attrs['feature_set']} · {subject}"
    )
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])

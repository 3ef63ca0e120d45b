"""A study for notebooks: everything that the store holds as lazy xarray objects with named coordinates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.layout import BAND_R, SWEEPS, WEIGHT_NORM
from hpcenc.storage.regions import study_regions
from hpcenc.storage.results import fit_groups, read_voxels
from hpcenc.storage.store import Store


def open_study(path: Path | str, regions: Sequence[str] | None = None) -> Any:
    """The store as a lazy xarray.DataTree with named coordinates.

    Parameters
    ----------
    path : path of the store
    regions : sequence of str, optional
        Sets of regions, as `hpcenc.storage.regions.load_regions` takes them; the default ones where the
        study is on their surface.

    Returns
    -------
    xarray.DataTree
        Nodes as in the store:

        - ``fits/<feature set>/<subject>`` with ``r``, ``r2``, ``alpha``, ``chance``, ``agrees``,
          ``r_repeat`` (r in the repeated clip) and ``weights`` over ``fold``, ``variant`` and ``voxel``, and
          ``weight_norm`` over ``delay`` too; primal weights have ``space``, ``delay_of`` and ``feature``
          along their columns;
        - ``delays``, ``layers``, ``bands`` likewise, with ``cv``, the score of the inner folds, and
          ``r_band`` over ``band``;
        - ``singles/<feature set>/<subject>`` with ``r``, ``chance``, ``feature`` (the place of the single tag
          that was chosen) and ``r_train``, over ``fold`` and ``voxel``;
        - ``ceilings/<subject>`` with ``share``, ``share_low``, ``share_high`` and ``ceiling`` over ``clip``;
        - ``features/<model>/<version>/<run>`` with a variable for each layer, over ``tr`` (``time_s``, its
          start, where it is known) and ``<layer>_feature``, which has the tags' names;
        - ``regions/<set>`` with ``members``, (region, voxel);
        - ``stimulus``, ``operators``, ``alphas``, ``bold`` as they are.

        Voxels have ``structure`` and ``vertex``, folds and variants their names. Blocks of fits, sweeps,
        single tags and ceilings, and rows of features, that are not marked as done are NaN: a run in progress
        shows what it has.

    Examples
    --------
    >>> study = open_study("results/study.zarr")  # doctest: +SKIP
    >>> r = study["fits/clip/100610"].r.mean("fold")  # doctest: +SKIP
    >>> visual = study["regions/masks"].members.sel(region="visual")  # doctest: +SKIP
    >>> float(r.where(visual).mean())  # doctest: +SKIP
    """
    import xarray

    store = Store(Path(path))
    with warnings.catch_warnings():  # while a run makes groups there is no consolidated metadata
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata")
        tree = xarray.open_datatree(str(store.path), engine="zarr", chunks={})
    voxels = _voxel_coordinates(store)
    for kind in ("fits", *SWEEPS):
        for group in fit_groups(store, kind):
            tree[group] = _named(store, group, tree[group].to_dataset(inherit=False), voxels)
    for group in fit_groups(store, "singles"):
        tree[group] = _singles(store, group, tree[group].to_dataset(inherit=False), voxels)
    for metadata in sorted((store.path / "ceilings").glob("*/zarr.json")):
        group = f"ceilings/{metadata.parent.name}"
        tree[group] = _ceilings(store, group, tree[group].to_dataset(inherit=False), voxels)
    for metadata in sorted((store.path / "features").glob("*/*/*/zarr.json")):
        group = metadata.parent.relative_to(store.path).as_posix()
        tree[group] = _features(store, group, tree[group].to_dataset(inherit=False))
    for each in study_regions(read_voxels(store), regions, Path()):
        members = xarray.DataArray(
            np.stack(list(each.masks.values())),
            dims=("region", "voxel"),
            coords={"region": list(each.masks), **voxels},
            attrs={"source": each.source},
        )
        tree[f"regions/{each.name}"] = xarray.Dataset({"members": members})
    return tree


def _voxel_coordinates(store: Store) -> dict[str, tuple[str, NDArray[Any]]]:
    axis = read_voxels(store)
    if axis.is_plain:
        return {}
    return {"structure": ("voxel", np.array(axis.names)[axis.structure]), "vertex": ("voxel", axis.vertex)}


def _done(store: Store, group: str, attributes: Mapping[str, Any], n_voxels: int) -> NDArray[np.bool_]:
    """Voxels whose block is done."""
    block = attributes["block"]
    return np.concatenate(
        [
            np.full(min(block, n_voxels - start), store.is_done(group, start // block, attributes["digest"]))
            for start in range(0, n_voxels, block)
        ]
    )


def _named(store: Store, group: str, dataset: Any, voxels: Mapping[str, Any]) -> Any:
    attributes = dataset.attrs
    done = _done(store, group, attributes, dataset.sizes["voxel"])
    scores = dataset.scores.assign_coords(score=dataset.scores.attrs["score"])
    found = _split(scores, WEIGHT_NORM, "weight_norm", "delay", int) | _split(
        scores, BAND_R, "r_band", "band", str
    )
    dataset = (
        dataset.drop_vars(["done", "scores"])
        .assign(found)
        .assign_coords(
            fold=list(attributes["folds"]),
            variant=[variant["label"] for variant in attributes["variants"]],
            done=("voxel", done),
            **voxels,
        )
    )
    if "weights" in dataset:
        kept = [attributes["folds"][place] for place in attributes["weight_folds"]]
        dataset = dataset.assign_coords(weight_fold=kept, **_columns(dataset, attributes))
    return _masked(dataset)


def _masked(dataset: Any) -> Any:
    """NaN where a block is not done; a mask on hundreds of whole fits would take longer than all else."""
    return dataset if dataset.done.all() else dataset.where(dataset.done)


def _split(scores: Any, prefix: str, name: str, dim: str, of: type) -> dict[str, Any]:
    """Scores by name; those of one prefix as one variable along a dimension of their own."""
    names = [str(score) for score in scores.score.values]
    several = [score for score in names if score.startswith(prefix)]
    single = [score for score in names if not score.startswith((WEIGHT_NORM, BAND_R))]
    found = {score: scores.sel(score=score, drop=True) for score in single}
    if several:
        part = scores.sel(score=several).rename(score=dim)
        found[name] = part.assign_coords({dim: [of(score.removeprefix(prefix)) for score in several]})
    return found


def _columns(dataset: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What each column of primal weights is; nothing where variants have columns of their own."""
    layouts = {
        tuple((space["name"], space["n_features"]) for space in variant["spaces"]) + tuple(variant["delays"])
        for variant in attributes["variants"]
    }
    if "column" not in dataset.sizes or len(layouts) > 1:
        return {}
    variant = attributes["variants"][0]
    delays, spaces = variant["delays"], variant["spaces"]
    names = np.concatenate([np.full(len(delays) * space["n_features"], space["name"]) for space in spaces])
    delay = np.concatenate([np.repeat(delays, space["n_features"]) for space in spaces])
    feature = np.concatenate([np.tile(np.arange(space["n_features"]), len(delays)) for space in spaces])
    return {"space": ("column", names), "delay_of": ("column", delay), "feature": ("column", feature)}


def _singles(store: Store, group: str, dataset: Any, voxels: Mapping[str, Any]) -> Any:
    attributes = dataset.attrs
    done = _done(store, group, attributes, dataset.sizes["voxel"])
    scores = dataset.scores.assign_coords(score=dataset.scores.attrs["score"])
    named = scores.to_dataset("score").assign_coords(
        fold=list(attributes["folds"]), done=("voxel", done), **voxels
    )
    return _masked(named.assign_attrs(attributes))


def _features(store: Store, group: str, dataset: Any) -> Any:
    attributes, n_trs = dataset.attrs, dataset.sizes["tr"]
    layers = [str(name) for name in dataset.data_vars if name != "done"]
    rows = store.array(f"{group}/{layers[0]}").chunks[0]
    units = [store.is_done(group, unit, attributes["digest"]) for unit in range(-(-n_trs // rows))]
    coordinates: dict[str, Any] = {
        "tr": np.arange(n_trs),
        "done": ("tr", np.repeat(units, rows)[:n_trs]),
    }
    if tr_s := (attributes.get("spec") or {}).get("tr_s"):  # files of features do not say it
        coordinates["time_s"] = ("tr", np.arange(n_trs) * tr_s)
    for layer in layers:
        labels = dataset[layer].attrs
        if names := labels.get("display_name", labels.get("mid")):
            coordinates[f"{layer}_feature"] = list(names)
    return _masked(dataset.drop_vars("done").assign_coords(coordinates))


def _ceilings(store: Store, group: str, dataset: Any, voxels: Mapping[str, Any]) -> Any:
    attributes = dataset.attrs
    done = _done(store, group, attributes, dataset.sizes["voxel"])
    values = dataset["values"].assign_coords(statistic=dataset["values"].attrs["statistic"])
    named = values.to_dataset("statistic").assign_coords(
        clip=[showing["group"] for showing in attributes["showings"]], done=("voxel", done), **voxels
    )
    return _masked(named.assign_attrs(attributes))

"""The scripts of the manual run on a store."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from hpcenc.storage.geometry import cortical_axis
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import fit_group
from hpcenc.storage.store import Store
from hpcenc.storage.voxels import VoxelAxis
from hpcenc.tasks.fitting import fit_arrays, score_names

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "delays_by_region.py"
LABEL = "clip[untrained, seed 0]"


def sweep_store(folder: Path, axis: VoxelAxis, *labels: str) -> Path:
    """A store with two single delays of two layers of some feature sets in the average, all one block."""
    arrays, attributes = axis.to_arrays()
    store = Store.create(folder / "study.zarr", {"voxel_axis": attributes}, arrays)
    names = score_names("delays")
    for label in labels:
        spec = GroupSpec(
            fit_group(label, "average", "delays"),
            "d" * 64,
            fit_arrays(
                n_folds=1, n_variants=4, n_voxels=axis.n_voxels, block=60_000, weights="none",
                n_weight_folds=0, n_weight_rows=0, scores=names,
            ),
            1,
            {
                "feature_set": label,
                "subject": "average",
                "folds": ["run1"],
                "variants": [
                    {"label": f"clip/{layer} delay {delay}", "delays": [delay]}
                    for layer in (6, 12)
                    for delay in (2, 5)
                ],
                "block": 60_000,
            },
        )  # fmt: skip
        store.ensure_group(spec)
        values = np.random.default_rng(0).uniform(size=spec.arrays["scores"].shape).astype(np.float32)
        store.write(f"{spec.group}/scores", (slice(None),) * 4, values)
        store.mark(spec.group, 0, spec.digest)
    return store.path


def draw(store: Path, feature_set: str) -> subprocess.CompletedProcess[str]:
    """Run the example; the picture goes beside the store."""
    command = [sys.executable, SCRIPT, store, feature_set, "average", store.parent / "delays.png"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_delays_by_region_are_drawn_by_the_label_of_a_feature_set(tmp_path: Path) -> None:
    store = sweep_store(tmp_path, cortical_axis(), LABEL)
    drawn = draw(store, LABEL)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "delays.png").read_bytes().startswith(b"\x89PNG")
    refused = draw(store, "clip")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"{store}: no delays of 'clip' of 'average'; it has '{LABEL}' of 'average'. "
        "Give a label as it is here, with its brackets, or fit the study with [sweeps] delays.\n"
    )


def test_each_layer_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: drawn.append(figure))
    main = runpy.run_path(str(SCRIPT))["main"]
    main(str(sweep_store(tmp_path, cortical_axis(), LABEL)), LABEL, "average", "")
    lines = drawn[0].axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[2, 5]] * 4  # of two layers in two regions
    assert [str(line.get_label()).partition(" (")[0] for line in lines][::3] == [
        "visual, clip/6",
        "auditory, clip/12",
    ]


@pytest.mark.parametrize(("labels", "said"), [((), "it has none."), ((LABEL,), "fs_LR 32k surface")])
def test_delays_by_region_need_a_sweep_and_the_surface_of_the_masks(
    labels: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    refused = draw(sweep_store(tmp_path, VoxelAxis.from_count(30), *labels), LABEL)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_every_example_is_named_in_the_manual() -> None:
    manual = "".join(path.read_text() for path in SCRIPT.parents[1].glob("*.md"))
    assert all(f"(examples/{path.name})" in manual for path in SCRIPT.parent.iterdir())
